"""Measures matrix products by themselves, beside the limits of the machine in the same run.

Decode (one token) is bound by memory: GB/s of weight bytes, and their share of the read bandwidth that NumPy reaches
with as many threads. Prefill is bound by arithmetic: G-op/s (a multiplication and an addition are two), beside the
GFLOP/s of a float32 product with the BLAS of NumPy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from lola_cpp import _core

testing = _core.testing
FORMATS = {row["name"]: row for row in testing.quant_formats()}
BEYOND_CACHE = 192 << 20  # bytes of weights to walk through, so that none is found in a cache


def best_seconds(work: Callable[[], object], repeats: int) -> float:
    """The fastest of some runs: a busy machine only ever adds time."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def read_bandwidth(threads: int) -> float:
    """Bytes a second of reading memory once with several threads."""
    memory = np.ones(BEYOND_CACHE // 8, np.uint64)
    parts = np.array_split(memory, threads)
    with ThreadPoolExecutor(threads) as pool:
        seconds = best_seconds(lambda: list(pool.map(np.bitwise_or.reduce, parts)), 8)
    return memory.nbytes / seconds


def float_peak(size: int = 1024) -> float:
    """Operations a second of a float32 product."""
    a = np.ones((size, size), np.float32)
    return 2 * size**3 / best_seconds(lambda: a @ a, 8)


def random_weight(name: str, rows: int, cols: int) -> NDArray[np.uint8]:
    """Bytes below 0x38, which every format reads as finite numbers of moderate size."""
    size = rows * cols // FORMATS[name]["block_size"] * FORMATS[name]["block_bytes"]
    return np.random.default_rng(0).integers(0, 0x38, size, dtype=np.uint8)


def seconds_of_product(
    engine: testing.Matmul, name: str, rows: int, cols: int, tokens: int, bytes_to_walk: int, repeats: int
) -> tuple[float, int]:
    """Seconds of one product, and the bytes of its weight. Copies of the weight are the jobs of one call."""
    weight = random_weight(name, rows, cols)
    copies = [weight.copy() for _ in range(max(1, bytes_to_walk // weight.nbytes))]
    x = np.random.default_rng(1).standard_normal((tokens, cols), dtype=np.float32)
    out = np.zeros((tokens, rows), np.float32)
    jobs = [(FORMATS[name]["type"], copy, rows, None, out, False) for copy in copies]
    return best_seconds(lambda: engine.multiply(x, jobs), repeats) / len(copies), weight.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default=testing.selected_isa())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--formats", nargs="+", default=["Q4_K", "Q8_0", "Q4_0", "Q6_K", "F16"], choices=list(FORMATS))
    parser.add_argument("--shapes", nargs="+", default=["2048x2048", "8192x2048"], help="rows x columns of the weights")
    parser.add_argument("--tokens", type=int, default=512, help="of the prefill")
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()

    engine = testing.Matmul(options.isa, options.threads)
    bandwidth = read_bandwidth(options.threads)
    print(
        f"{options.isa}, {options.threads} threads: read bandwidth {bandwidth * 1e-9:.1f} GB/s, "
        f"float32 product of NumPy {float_peak() * 1e-9:.0f} GFLOP/s"
    )
    print(f"{'format':8} {'shape':>10} {'decode GB/s':>12} {'of read':>8} {'prefill G-op/s':>15}")
    for name in options.formats:
        for shape in options.shapes:
            rows, cols = (int(part) for part in shape.split("x"))
            alone, size = seconds_of_product(engine, name, rows, cols, 1, BEYOND_CACHE, options.repeats)
            many, _ = seconds_of_product(engine, name, rows, cols, options.tokens, 0, options.repeats)
            rate = 2e-9 * rows * cols * options.tokens / many
            print(f"{name:8} {shape:>10} {size / alone * 1e-9:12.1f} {size / alone / bandwidth:8.0%} {rate:15.0f}")


if __name__ == "__main__":
    main()
