#!/usr/bin/env python3
"""Measures what LoLA's memories (attend, score, absorb) cost inside a running model.

For each scope, window and sparse size: milliseconds a token in prefill (of the last pass, when all three memories are
in use), and while decoding the mean, median and worst token (one that passes a boundary and scores the cache), and the
share of the whole decode time.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lola_cpp import LolaError, Model, Session
from lola_cpp.options import SessionOptions

PASS_TOKENS = 512
SIZES = ["64/64/64", "256/64/256", "256/256/256"]


@dataclass(frozen=True)
class Cost:
    """Seconds a token in the memories, and in all."""

    prefill: float
    decode: list[float]
    decode_total: float


def read(session: Session, tokens: list[int]) -> tuple[float, float]:
    """Seconds in attention, and in all."""
    before, start = session._core.attention_seconds, time.perf_counter()
    session.append(tokens)
    return session._core.attention_seconds - before, time.perf_counter() - start


def measure(model: Model, options: SessionOptions, depth: int, decode_tokens: int) -> Cost:
    rng = random.Random(0)
    session = model.session(**options)
    prefill = 0.0
    while session.position < depth:
        prefill, _ = read(session, [rng.randrange(model.info.vocabulary) for _ in range(PASS_TOKENS)])
    decode = [read(session, [rng.randrange(model.info.vocabulary)]) for _ in range(decode_tokens)]
    return Cost(prefill / PASS_TOKENS, [inside for inside, _ in decode], sum(total for _, total in decode))


def row(cost: Cost) -> str:
    decode = (statistics.mean(cost.decode), statistics.median(cost.decode), max(cost.decode))
    times = " ".join(f"{1e3 * seconds:8.2f}" for seconds in (cost.prefill, *decode))
    return f"{times} {sum(cost.decode) / cost.decode_total:7.1%}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("-a", "--adapter", type=Path, required=True)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--scopes", nargs="+", default=["group", "head"], choices=["group", "head"])
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="window/chunk/sparse")
    parser.add_argument("--depth", type=int, default=1536, help="tokens read before decoding")
    parser.add_argument("--decode-tokens", type=int, default=256, help="best a multiple of the chunks")
    options = parser.parse_args()
    try:
        model = Model(options.model, options.adapter, threads=options.threads)
        print(f"{model.info.backend}; milliseconds a token in the memories")
        names = " ".join(f"{name:>8}" for name in ("prefill", "mean", "median", "worst", "share"))
        print(f"{'scope':5} {'window/chunk/sparse':>19} {names}")
        for size in options.sizes:
            window, chunk, sparse = (int(part) for part in size.split("/"))
            for scope in options.scopes:
                chosen = SessionOptions(
                    window_size=window, chunk_size=chunk, sparse_size=sparse, sparse_scope=scope, context_length=1
                )
                cost = measure(model, chosen, options.depth, options.decode_tokens)
                print(f"{scope:5} {size:>19} {row(cost)}", flush=True)
    except (LolaError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
