"""Weight formats: the table, exact decoding, and the integer form, against the `gguf` package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from lola_cpp import _core

core = _core.testing
ROOT = Path(__file__).parent.parent

FORMATS = {row["name"]: row for row in core.quant_formats()}
UNPACKED = [name for name, row in FORMATS.items() if row["group_size"]]
# Those that gguf.quants writes as well as reads.
QUANTIZED = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]

# Where a block keeps its float16 scales and offsets.
FLOAT16_AT = {
    "F16": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ1_S": [0],
    "IQ2_XXS": [0],
    "IQ2_XS": [0],
    "IQ2_S": [0],
    "IQ3_XXS": [0],
    "IQ3_S": [0],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "TQ1_0": [52],
    "TQ2_0": [64],
}
BLOCKS = 300


def random_blocks(name: str, seed: int) -> np.ndarray:
    """Bytes [BLOCKS, block_bytes] with every bit pattern a file could hold, infinite and NaN scales among them."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (BLOCKS, FORMATS[name]["block_bytes"]), dtype=np.uint8)


def sane_blocks(name: str, seed: int) -> np.ndarray:
    """As random_blocks, with the scales finite and of the size that models have, of either sign."""
    blocks = random_blocks(name, seed)
    rng = np.random.default_rng(seed + 1)
    scales = (rng.uniform(0.001, 0.1, (BLOCKS, 2)) * rng.choice([-1, 1], (BLOCKS, 2))).astype(np.float16).view(np.uint8)
    for index, at in enumerate(FLOAT16_AT.get(name, [])):
        blocks[:, at : at + 2] = scales[:, 2 * index : 2 * index + 2]
    if name == "F32":
        blocks[:] = rng.standard_normal((BLOCKS, 1)).astype(np.float32).view(np.uint8)
    if name == "BF16":
        blocks[:, 1] = blocks[:, 1] & 0x80 | 0x3E
    if name == "MXFP4":
        blocks[:, 0] = rng.integers(100, 140, BLOCKS)
    if name == "IQ1_M":
        # The float16 scale is the upper nibbles of bytes 49, 51, 53 and 55, the lowest nibble first.
        for part in range(4):
            nibble = scales[:, part // 2] >> (part % 2 * 4) & 0x0F
            blocks[:, 49 + 2 * part] = blocks[:, 49 + 2 * part] & 0x0F | nibble << 4
    return blocks


def expected_weights(name: str, blocks: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return quants.dequantize(blocks, GGMLQuantizationType[name]).ravel()


def assert_same_floats(found: np.ndarray, wanted: np.ndarray) -> None:
    """Every bit equal, except that any NaN equals any other."""
    assert found.dtype == wanted.dtype == np.float32
    assert found.shape == wanted.shape
    same = (found.view(np.uint32) == wanted.view(np.uint32)) | (np.isnan(found) & np.isnan(wanted))
    assert same.all(), f"{(~same).sum()} of {same.size} differ, first {found[~same][0]} for {wanted[~same][0]}"


def weights_of_integer_form(name: str, data: bytes) -> np.ndarray:
    q, scale, minimum = core.unpack(FORMATS[name]["type"], data)
    group_size = FORMATS[name]["group_size"]
    assert q.dtype == np.int8
    assert q.size == group_size * scale.size
    assert (minimum is not None) == FORMATS[name]["has_min"]
    with np.errstate(all="ignore"):
        weights = scale.repeat(group_size) * q.astype(np.float32)
        return weights if minimum is None else weights - minimum.repeat(group_size)


def test_the_table_names_and_sizes_are_those_of_gguf() -> None:
    for name, row in FORMATS.items():
        gguf_type = GGMLQuantizationType[name]
        assert row["type"] == gguf_type.value
        assert (row["block_size"], row["block_bytes"]) == GGML_QUANT_SIZES[gguf_type]


def test_the_table_has_every_format_once_and_in_whole_groups() -> None:
    rows = core.quant_formats()
    assert len({row["type"] for row in rows}) == len(rows) == len(FORMATS)
    assert set(FORMATS) == {*FLOAT16_AT, "F32", "BF16", "IQ1_M", "MXFP4", "NVFP4"}
    for row in rows:
        if row["name"] in ("F32", "F16", "BF16"):
            assert row["group_size"] == 0
        else:
            assert row["group_size"] in (16, 32)
            assert row["block_size"] % row["group_size"] == 0


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_decodes_as_gguf_quants_does(name: str) -> None:
    blocks = sane_blocks(name, seed=1)
    wanted = expected_weights(name, blocks)
    assert np.isfinite(wanted).all()
    assert np.unique(wanted).size > 100
    assert_same_floats(core.decode(FORMATS[name]["type"], blocks.tobytes()), wanted)


@pytest.mark.parametrize("name", FORMATS)
def test_any_bytes_decode_as_gguf_quants_does(name: str) -> None:
    blocks = random_blocks(name, seed=2)
    assert_same_floats(core.decode(FORMATS[name]["type"], blocks.tobytes()), expected_weights(name, blocks))


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_weights_decode_as_gguf_quants_does(name: str) -> None:
    weights = np.random.default_rng(3).standard_normal((16, 512)).astype(np.float32)
    blocks = quants.quantize(weights, GGMLQuantizationType[name])
    decoded = core.decode(FORMATS[name]["type"], blocks.tobytes())
    assert_same_floats(decoded, expected_weights(name, blocks))
    # Three levels, spread over four standard deviations to either side, keep 0.7 of a normal distribution.
    assert np.corrcoef(decoded, weights.ravel())[0, 1] > 0.65


# No tolerance: the integer form does the operations of gguf.quants in the same order, and what it folds into q (the
# eighths of IQ1) is a power of two, which rounds nothing.
@pytest.mark.parametrize("name", UNPACKED)
def test_the_integer_form_is_exactly_the_decoded_weight(name: str) -> None:
    for blocks in (sane_blocks(name, seed=4), random_blocks(name, seed=5)):
        assert_same_floats(weights_of_integer_form(name, blocks.tobytes()), expected_weights(name, blocks))


@pytest.mark.parametrize("name", UNPACKED)
def test_only_q8_0_reaches_minus_128(name: str) -> None:
    q, _, _ = core.unpack(FORMATS[name]["type"], random_blocks(name, seed=6).tobytes())
    assert (q.min() == -128) == (name == "Q8_0")


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_narrow_float_decodes_exactly(name: str) -> None:
    values = np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    assert_same_floats(core.decode(FORMATS[name]["type"], values.tobytes()), expected_weights(name, values))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_a_plain_float_format_has_no_integer_form(name: str) -> None:
    with pytest.raises(_core.UsageError, match=f"{name} has no integer form"):
        core.unpack(FORMATS[name]["type"], bytes(4))


@pytest.mark.parametrize("name", FORMATS)
def test_no_blocks_decode_to_no_weights(name: str) -> None:
    assert core.decode(FORMATS[name]["type"], b"").size == 0


@pytest.mark.parametrize("name", FORMATS)
def test_a_part_of_a_block_is_refused(name: str) -> None:
    size = FORMATS[name]["block_bytes"] + 1
    with pytest.raises(_core.UsageError, match=f"{name} data: found {size} bytes"):
        core.decode(FORMATS[name]["type"], bytes(size))


@pytest.mark.parametrize("number", [4, 5, 9, 15, 24, 31, 41, 2**32 - 1])
def test_an_unknown_format_is_refused_by_its_number(number: int) -> None:
    with pytest.raises(_core.UnsupportedError, match=f"tensor type {number} "):
        core.decode(number, b"")


def test_the_codebooks_are_those_of_gguf() -> None:
    script = ROOT / "tools" / "generate_iq_tables.py"
    written = subprocess.run([sys.executable, script], check=True, capture_output=True, encoding="utf-8").stdout
    assert (ROOT / "cpp" / "quant" / "iq_tables.h").read_text(encoding="utf-8") == written
