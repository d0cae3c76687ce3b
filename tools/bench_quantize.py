"""Error and speed of the quantizers, beside llama.cpp's where its library is given.

    python tools/bench_quantize.py --peer .../site-packages/llama_cpp/lib/libggml-base.so

The error is the root of the mean squared difference, each column times its importance where there is one, relative to
that of the weights.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable

import numpy as np

from lola_cpp import _core

FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
ROWS, COLUMNS = 256, 4096
NUMBERS = {row["name"]: row for row in _core.testing.quant_formats()}

Encode = Callable[[str, np.ndarray, np.ndarray | None], bytes]


def distributions(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """[ROWS, COLUMNS] each, as float32."""
    gaussian = rng.standard_normal((ROWS, COLUMNS))
    outliers = rng.standard_normal((ROWS, COLUMNS))
    outliers[:, rng.choice(COLUMNS, COLUMNS // 100, replace=False)] *= 20.0
    all_of_them = {"gaussian": gaussian, "student-t 3": rng.standard_t(3, (ROWS, COLUMNS)), "outlier columns": outliers}
    return {name: np.ascontiguousarray(values * 0.02, np.float32) for name, values in all_of_them.items()}


def encode_here(name: str, weights: np.ndarray, importance: np.ndarray | None) -> bytes:
    return bytes(_core.encode(weights, name, "benchmark", importance, threads=1))


def peer_encoder(path: str) -> Encode:
    library = ctypes.CDLL(path)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    floats = ctypes.POINTER(ctypes.c_float)

    def encode(name: str, weights: np.ndarray, importance: np.ndarray | None) -> bytes:
        row = NUMBERS[name]
        out = ctypes.create_string_buffer(weights.size // row["block_size"] * row["block_bytes"])
        factors = None if importance is None else importance.ctypes.data_as(floats)
        rows, columns = (ctypes.c_int64(size) for size in weights.shape)
        start = ctypes.c_int64(0)
        library.ggml_quantize_chunk(row["type"], weights.ctypes.data_as(floats), out, start, rows, columns, factors)
        return out.raw

    return encode


def relative_error(name: str, data: bytes, weights: np.ndarray, importance: np.ndarray | None) -> float:
    decoded = _core.testing.decode(NUMBERS[name]["type"], data).reshape(weights.shape).astype(np.float64)
    factors = 1.0 if importance is None else importance
    wrong, whole = ((factors * values.astype(np.float64) ** 2).sum() for values in (decoded - weights, weights))
    return float(np.sqrt(wrong / whole))


def measure(encode: Encode, name: str, weights: np.ndarray, importance: np.ndarray | None) -> tuple[float, float]:
    """Relative error, and million weights a second in one thread."""
    start = time.perf_counter()
    data = encode(name, weights, importance)
    return relative_error(name, data, weights, importance), weights.size / (time.perf_counter() - start) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="llama.cpp's libggml-base.so")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    samples = distributions(rng)
    importance = np.exp(rng.standard_normal(COLUMNS) * 1.5).astype(np.float32)
    peer = peer_encoder(options.peer) if options.peer else None
    print("format  weights          importance     error      peer  ratio   Mw/s   peer")
    for name in options.formats:
        for kind, weights in samples.items():
            for factors in (None, importance):
                error, speed = measure(encode_here, name, weights, factors)
                line = f"{name:7} {kind:16} {'no' if factors is None else 'yes':10} {error:9.6f}"
                if peer is None:
                    print(f"{line} {'':>9} {'':>6} {speed:6.1f}")
                    continue
                other, other_speed = measure(peer, name, weights, factors)
                print(f"{line} {other:9.6f} {error / other:6.3f} {speed:6.1f} {other_speed:6.1f}")


if __name__ == "__main__":
    main()
