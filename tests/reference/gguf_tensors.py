"""What a converted GGUF file should hold, and what it does hold."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from lola_cpp._core import GgufFile
from reference import tiny_gguf


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a GGUF file, decoded to float32."""
    file = GgufFile(path)
    decoded = {}
    for name, kind, shape, _ in file.tensors():
        data = file.tensor_data(name).reshape(*shape[:-1], -1)
        decoded[name] = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]).reshape(shape)
    return decoded


def formats_of(path: Path) -> dict[str, str]:
    """The format of each tensor of a GGUF file."""
    return {name: kind for name, kind, *_ in GgufFile(path).tensors()}


def expected_tensors(config: tiny_gguf.TinyConfig, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights under GGUF names, Q and K permuted by the formula of the reference."""
    expected = {}
    for name, value in weights.items():
        rows = np.arange(len(value))
        if config.arch == "llama" and ".q_proj." in name:
            rows = tiny_gguf.permuted_rows(config.heads, config.head_dim)
        if config.arch == "llama" and ".k_proj." in name:
            rows = tiny_gguf.permuted_rows(config.kv_heads, config.head_dim)
        expected[tiny_gguf.gguf_name(name)] = value[rows]
    return expected


def assert_same_tensors(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert sorted(found) == sorted(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
