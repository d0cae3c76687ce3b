"""Recall of the embedded model by length and sparse cache size: passkey and needle prompts, greedy exact match.

    python tools/eval_recall.py --lengths 512 1024 4096 --sparse 0 64 --samples 100 --jobs 2

Prints one markdown table per task and policy; --json keeps the raw counts.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lola_cpp import Model
from lola_cpp.recall import TASKS


@dataclass(frozen=True)
class Cell:
    """One entry of a table, or a part of its samples."""

    model: str | None
    adapter: str | None
    task: str
    policy: str
    length: int
    sparse_size: int
    first_sample: int
    samples: int


@functools.cache
def load(path: str | None, adapter: str | None) -> Model:
    return Model.default(threads=1) if path is None else Model(path, adapter, threads=1)


def run(cell: Cell) -> tuple[Cell, int, int]:
    """The cell with how many answers were right, and the tokens read."""
    model = load(cell.model, cell.adapter)
    right = tokens = 0
    for sample in range(cell.first_sample, cell.first_sample + cell.samples):
        rng = random.Random(f"{cell.task} {cell.length} {sample}")
        prompt = TASKS[cell.task](model.tokenizer, cell.length, rng=rng)
        session = model.session(sparse_size=cell.sparse_size, policy=cell.policy)
        answer = "".join(token.text for token in session.generate(prompt.tokens, max_tokens=8))
        right += prompt.found_in(answer)
        tokens += len(prompt.tokens)
    return cell, right, tokens


def plan(options: argparse.Namespace) -> list[Cell]:
    cells = [
        Cell(options.model, options.adapter, task, policy, length, sparse, first, min(10, options.samples - first))
        for length in sorted(options.lengths, reverse=True)
        for task in options.tasks
        for policy in options.policies
        for sparse in options.sparse
        for first in range(0, options.samples, 10)
    ]
    # lambda = 0 is the same under every policy.
    return [cell for cell in cells if cell.sparse_size > 0 or cell.policy == options.policies[0]]


def table(options: argparse.Namespace, task: str, policy: str, right: dict[tuple[str, str, int, int], int]) -> str:
    sizes = [size for size in options.sparse if size > 0 or policy == options.policies[0]]
    lines = [f"{task}, {policy}, n = {options.samples}", ""]
    lines.append("| tokens | " + " | ".join(f"lambda {size}" for size in sizes) + " |")
    lines.append("|---" * (len(sizes) + 1) + "|")
    for length in options.lengths:
        shares = [f"{right[task, policy, length, size] / options.samples:.3f}" for size in sizes]
        lines.append(f"| {length} | " + " | ".join(shares) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a GGUF file; default: the embedded model")
    parser.add_argument("--adapter")
    parser.add_argument("--tasks", nargs="+", default=["passkey", "needle"], choices=list(TASKS))
    parser.add_argument("--policies", nargs="+", default=["self_recall", "weighted_recall"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--sparse", nargs="+", type=int, default=[0, 32, 64, 128, 256])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with one thread")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    right: dict[tuple[str, str, int, int], int] = {}
    cells, begin, tokens = plan(options), time.perf_counter(), 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for cell, hits, read in tqdm(pool.map(run, cells), total=len(cells), file=sys.stderr, disable=None):
            key = (cell.task, cell.policy, cell.length, cell.sparse_size)
            right[key] = right.get(key, 0) + hits
            tokens += read
    seconds = time.perf_counter() - begin
    for task in options.tasks:
        for policy in options.policies:
            print(table(options, task, policy, right))
    print(f"{tokens:,} tokens in {seconds:,.0f} s, {options.jobs} jobs")
    if options.json is not None:
        rows = [
            {"task": task, "policy": policy, "length": length, "sparse_size": size, "right": hits}
            for (task, policy, length, size), hits in sorted(right.items())
        ]
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        options.json.write_text(json.dumps({"settings": settings, "seconds": seconds, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
