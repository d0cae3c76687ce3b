"""Random weights in every GGUF tensor format: valid blocks with sane scales, made without a quantizer.

Used for benchmarks in real shapes and for tests of formats that gguf-py can only decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from lola_cpp.convert.optional import require

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_CALIBRATION_BLOCKS = 512
_POOL_SIZE = 1 << 22  # float formats repeat slices of one pool: drawing a normal for each weight of 8B takes minutes


@dataclass(frozen=True)
class _ScaleField:
    """Where a block keeps its float16 scale d, and the offset that makes its weights centred on zero."""

    scale_at: int
    min_at: int | None = None
    min_ratio: float = 0.0  # offset field = min_ratio * d


_SCALE_FIELDS = {
    "Q4_0": _ScaleField(0),
    "Q4_1": _ScaleField(0, 2, -7.5),
    "Q5_0": _ScaleField(0),
    "Q5_1": _ScaleField(0, 2, -15.5),
    "Q8_0": _ScaleField(0),
    "Q2_K": _ScaleField(80, 82, 1.5),
    "Q3_K": _ScaleField(108),
    "Q4_K": _ScaleField(0, 2, 7.5),
    "Q5_K": _ScaleField(0, 2, 15.5),
    "Q6_K": _ScaleField(208),
    "IQ1_S": _ScaleField(0),
    "IQ2_XXS": _ScaleField(0),
    "IQ2_XS": _ScaleField(0),
    "IQ2_S": _ScaleField(0),
    "IQ3_XXS": _ScaleField(0),
    "IQ3_S": _ScaleField(0),
    "IQ4_NL": _ScaleField(0),
    "IQ4_XS": _ScaleField(0),
    "TQ1_0": _ScaleField(52),
    "TQ2_0": _ScaleField(64),
}
_FLOAT_FORMATS = ("F32", "F16", "BF16")
_OTHER_FORMATS = ("IQ1_M", "MXFP4", "NVFP4")

FORMATS = (*_FLOAT_FORMATS, *_SCALE_FIELDS, *_OTHER_FORMATS)


class RandomBlocks:
    """Draws tensors of one format after another from one seed.

    Args:
        seed: the same seed and the same sequence of calls give the same bytes.
        std: standard deviation of the decoded weights.
    """

    def __init__(self, *, seed: int = 0, std: float = 0.02) -> None:
        self._gguf = require("gguf")
        self._rng = np.random.Generator(np.random.SFC64(seed))
        self._std = std
        self._unit_std: dict[str, float] = {}
        self._pools: dict[str, Bytes] = {}

    def tensor(self, name: str, shape: tuple[int, ...]) -> Bytes:
        """Bytes of a tensor of format `name` and `shape` (slowest dimension first): [..., bytes of a row].

        Raises:
            ValueError: an unknown format, or rows that are not whole blocks.
        """
        if name not in FORMATS:
            raise ValueError(f"unknown tensor format {name!r}, wanted one of {', '.join(FORMATS)}")
        block_size, block_bytes = self._sizes(name)
        if shape[-1] % block_size:
            raise ValueError(
                f"rows of {shape[-1]} weights cannot be stored as {name}: wanted a multiple of {block_size}"
            )
        row_bytes = shape[-1] // block_size * block_bytes
        count = prod(shape) // block_size
        data = self._from_pool(name, count) if name in _FLOAT_FORMATS else self._blocks(name, count).reshape(-1)
        return data.reshape(*shape[:-1], row_bytes)

    def _sizes(self, name: str) -> tuple[int, int]:
        size, bytes_ = self._gguf.GGML_QUANT_SIZES[self._gguf.GGMLQuantizationType[name]]
        return int(size), int(bytes_)

    def _from_pool(self, name: str, count: int) -> Bytes:
        if name not in self._pools:
            values = self._rng.standard_normal(_POOL_SIZE, dtype=np.float32) * np.float32(self._std)
            self._pools[name] = _encode_float(values, name)
        pool = self._pools[name]
        width = self._sizes(name)[1]
        out = np.empty(count * width, dtype=np.uint8)
        for start in range(0, out.size, pool.size // 2):
            length = min(pool.size // 2, out.size - start)
            offset = int(self._rng.integers(0, _POOL_SIZE // 2)) * width
            out[start : start + length] = pool[offset : offset + length]
        return out

    def _blocks(self, name: str, count: int) -> Bytes:
        blocks = self._raw_blocks(name, count)
        scale = self._std / self._std_at_scale_one(name)
        if name in _SCALE_FIELDS:
            # Scales that differ between blocks: a kernel that reads the wrong block's scale must not go unnoticed.
            factors = self._rng.uniform(0.75, 1.25, count).astype(np.float32)
            _set_scales(blocks, _SCALE_FIELDS[name], scale * factors)
        elif name == "IQ1_M":
            _set_iq1_m_scale(blocks, scale)
        elif name == "MXFP4":
            blocks[:, 0] = 127 + round(float(np.log2(scale)))
        else:
            blocks[:, :4] = _ue4m3_code(scale)
        return blocks

    def _raw_blocks(self, name: str, count: int) -> Bytes:
        block_bytes = self._sizes(name)[1]
        blocks = np.frombuffer(bytearray(self._rng.bytes(count * block_bytes)), dtype=np.uint8)
        blocks = blocks.reshape(count, block_bytes)
        if name == "TQ2_0":
            # Of the four two-bit values the ternary format uses 0, 1 and 2.
            threes = blocks[:, :64] & (blocks[:, :64] >> 1) & 0x55
            blocks[:, :64] ^= threes << 1
        return blocks

    def _std_at_scale_one(self, name: str) -> float:
        if name not in self._unit_std:
            blocks = self._raw_blocks(name, _CALIBRATION_BLOCKS)
            if name in _SCALE_FIELDS:
                _set_scales(blocks, _SCALE_FIELDS[name], np.ones(len(blocks), dtype=np.float32))
            elif name == "IQ1_M":
                _set_iq1_m_scale(blocks, 1.0)
            elif name == "MXFP4":
                blocks[:, 0] = 127
            else:
                blocks[:, :4] = _ue4m3_code(1.0)
            kind = self._gguf.GGMLQuantizationType[name]
            self._unit_std[name] = float(self._gguf.quants.dequantize(blocks, kind).std())
        return self._unit_std[name]


def _encode_float(values: Floats, name: str) -> Bytes:
    if name == "F32":
        return values.view(np.uint8)
    if name == "F16":
        return values.astype(np.float16).view(np.uint8)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest even; the values are finite
    return rounded.astype(np.uint16).view(np.uint8)


def _f16_bytes(values: npt.NDArray[Any]) -> Bytes:
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)


def _set_scales(blocks: Bytes, field: _ScaleField, scales: npt.NDArray[Any]) -> None:
    blocks[:, field.scale_at : field.scale_at + 2] = _f16_bytes(scales)
    if field.min_at is not None:
        blocks[:, field.min_at : field.min_at + 2] = _f16_bytes(scales * field.min_ratio)


def _set_iq1_m_scale(blocks: Bytes, scale: float) -> None:
    # The float16 scale is spread over the top four bits of the block's last four 16-bit words, low nibble first.
    bits = int(np.float16(scale).view(np.uint16))
    words = blocks[:, 48:56].view("<u2")
    for index in range(4):
        words[:, index] = (words[:, index] & 0x0FFF) | (((bits >> (4 * index)) & 0xF) << 12)


def _ue4m3_code(scale: float) -> int:
    """The unsigned 8-bit float (4 exponent bits, 3 mantissa bits, bias 7) just below `scale`."""
    exponent = int(np.floor(np.log2(scale)))
    mantissa = int((scale / 2.0**exponent - 1.0) * 8)
    if exponent < -6:
        return max(1, int(scale * 2.0**9))
    return ((exponent + 7) << 3) | mantissa
