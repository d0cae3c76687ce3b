"""The configurations of the LoLA paper's comparison: one budget of exact pairs, spent in different ways."""

from __future__ import annotations

from collections.abc import Sequence

from .configurations import Configuration


def paper_configurations(base: Configuration, sparse_sizes: Sequence[int]) -> list[Configuration]:
    """Softmax, no sparse cache, other ways to spend the middle budget, and the recall rules at every size."""
    defaults = {**base.load().session_defaults, **dict(base.options)}
    window, chunk = defaults["window_size"], defaults["chunk_size"]
    budget = sorted(sparse_sizes)[len(sparse_sizes) // 2]
    enlarged = window + -(-budget // chunk) * chunk
    named = {
        "lambda 0": base.with_options(sparse_size=0),
        f"window {enlarged}": base.with_options(sparse_size=0, window_size=enlarged),
        f"random, lambda {budget}": base.with_options(policy="random", sparse_size=budget),
        f"first, lambda {budget}": base.with_options(policy="first", sparse_size=budget),
    }
    for policy in ("self_recall", "weighted_recall"):
        for size in sorted(sparse_sizes):
            named[f"{policy}, lambda {size}"] = base.with_options(policy=policy, sparse_size=size)
    renamed = [Configuration(**{**vars(c), "name": name}) for name, c in named.items()]
    return [base.softmax(), *renamed]
