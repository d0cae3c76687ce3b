"""Error and speed of the quantizers, beside llama.cpp's where its library is given.

    PYTHONPATH=tests python tools/bench_quantize.py --peer .../site-packages/llama_cpp/lib/libggml-base.so

The error is the root of the mean squared difference, each column times its importance where there is one, relative to
that of the weights. The speed is that of one thread, in million weights a second.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable

import numpy as np

from lola_cpp import _core
from reference.quantizer_samples import PEER_ERRORS, relative_error, sample_importance, samples

NUMBERS = {row["name"]: row for row in _core.testing.quant_formats()}
REPEATS = 5

Encode = Callable[[str, np.ndarray, np.ndarray | None], bytes]


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


def measure(encode: Encode, name: str, weights: np.ndarray, importance: np.ndarray | None) -> tuple[float, float]:
    """Relative error, and million weights a second."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        data = encode(name, weights, importance)
        times.append(time.perf_counter() - start)
    decoded = _core.testing.decode(NUMBERS[name]["type"], data).reshape(weights.shape)
    return relative_error(decoded, weights, importance), weights.size / min(times) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="llama.cpp's libggml-base.so")
    parser.add_argument("--formats", nargs="+", choices=PEER_ERRORS, default=PEER_ERRORS)
    options = parser.parse_args()
    peer = peer_encoder(options.peer) if options.peer else None
    print("format  weights          importance     error      peer  ratio   Mw/s   peer")
    for name in options.formats:
        for kind, weights in samples().items():
            for importance in (None, sample_importance()):
                error, speed = measure(encode_here, name, weights, importance)
                line = f"{name:7} {kind:16} {'no' if importance is None else 'yes':10} {error:9.6f}"
                if peer is None:
                    print(f"{line} {'':>9} {'':>6} {speed:6.1f}")
                    continue
                other, other_speed = measure(peer, name, weights, importance)
                print(f"{line} {other:9.6f} {error / other:6.3f} {speed:6.1f} {other_speed:6.1f}")


if __name__ == "__main__":
    main()
