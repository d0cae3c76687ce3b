"""Random weights: valid in every format, of the wanted size, and the same for the same seed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from lola_cpp._core import GgufFile
from lola_cpp.convert.merge import merge_adapter
from lola_cpp.convert.random_blocks import FORMATS, RandomBlocks

TOOL = Path(__file__).parent.parent / "tools" / "make_random_model.py"


@pytest.mark.parametrize("name", FORMATS)
def test_random_weights_of_every_format_have_the_wanted_spread(name):
    data = RandomBlocks(seed=3, std=0.02).tensor(name, (64, 1024))
    values = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])
    assert values.shape == (64, 1024)
    assert np.isfinite(values).all()
    # Two formats have coarse scales: MXFP4 powers of two, NVFP4 steps of 2^-9 at this size.
    tolerance = {"MXFP4": 0.42, "NVFP4": 0.3}.get(name, 0.1)
    assert values.std() == pytest.approx(0.02, rel=tolerance)
    assert abs(values.mean()) < 0.003  # Q4_0's 16 levels lie half a step below zero


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, same, other = (RandomBlocks(seed=seed).tensor("Q4_K", (2, 512)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_rows_that_are_not_whole_blocks_and_unknown_formats_are_refused():
    with pytest.raises(ValueError, match="rows of 100 weights cannot be stored as Q4_K: wanted a multiple of 256"):
        RandomBlocks().tensor("Q4_K", (2, 100))
    with pytest.raises(ValueError, match="unknown tensor format 'Q9'"):
        RandomBlocks().tensor("Q9", (2, 256))


def make(*arguments: str) -> None:
    subprocess.run([sys.executable, str(TOOL), *arguments], check=True)


@pytest.mark.parametrize("preset", ["tiny", "tiny-qwen2", "tiny-qwen3"])
def test_the_tool_writes_a_model_and_an_adapter_that_fit_each_other(tmp_path, preset):
    make("--preset", preset, "--type", "q8_0", "-o", str(tmp_path / "m.gguf"), "--adapter", str(tmp_path / "a.gguf"))
    merge_adapter(tmp_path / "m.gguf", tmp_path / "a.gguf", tmp_path / "merged.gguf")
    architecture = GgufFile(tmp_path / "m.gguf").get("general.architecture")
    assert GgufFile(tmp_path / "merged.gguf").get(f"lola-{architecture}.block_count") == 2


def test_the_k_quant_mixture_keeps_more_bits_where_llama_cpp_does(tmp_path):
    make("--preset", "tiny", "--type", "q4_k_m", "-o", str(tmp_path / "m.gguf"))
    formats = {name: kind for name, kind, _, _ in GgufFile(tmp_path / "m.gguf").tensors()}
    # Two layers: 2 // 8 = 0, so only the last eighth, layer 1, and layers with i % 3 == 2 get more bits.
    found = [formats[f"blk.{layer}.{name}.weight"] for name in ("ffn_down", "attn_v", "attn_k") for layer in (0, 1)]
    assert found == ["Q4_K", "Q6_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K"]
    assert (formats["output.weight"], formats["token_embd.weight"]) == ("Q6_K", "Q4_K")


def test_the_vocabulary_of_another_file_is_taken_over(tmp_path):
    make("--preset", "tiny", "--type", "q8_0", "-o", str(tmp_path / "a.gguf"))
    make("--preset", "tiny-qwen2", "--type", "f16", "--vocab", str(tmp_path / "a.gguf"), "-o", str(tmp_path / "b.gguf"))
    first, second = GgufFile(tmp_path / "a.gguf"), GgufFile(tmp_path / "b.gguf")
    keys = [key for key in first.keys() if key.startswith("tokenizer.")]  # noqa: SIM118
    assert len(keys) >= 7
    for key in keys:
        np.testing.assert_array_equal(second.get(key), first.get(key))
