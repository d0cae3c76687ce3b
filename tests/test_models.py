"""Whole models: logits against transformers, against a float64 decoder, and against the same model in other forms."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest

from lola_cpp import Model, _core
from lola_cpp.convert.merge import merge_adapter
from reference import decoder, tiny_gguf
from reference.tiny_gguf import TinyAdapter, TinyConfig, Weights, tiny

# Two layers of float32 sums over a few hundred terms; 1e-6 is usual.
FLOAT32_TOLERANCE = 1e-4
# Keys and values are rounded by 2^-11 (f16), and by 1/254 of a block's largest (q8_0: up to 1 % of a usual value).
PAIR_TOLERANCES = {"f32": FLOAT32_TOLERANCE, "f16": 2e-3, "q8_0": 2e-2}
# A block of activations is rounded to 8 bits, 1/254 of its largest value: less than 1 % of its usual size, for each of
# the products in a row. A wrong scale or a swapped half of a block gives 30 % and more.
INT8_NOISE = 0.03
# Formats whose products take activations as they are; F16 and BF16 weights may round them to that type, by 2^-9.
FLOAT_NOISE = 5e-3

SMALL = {"hidden": 64, "ffn": 96, "head_dim": 32, "heads": 2, "kv_heads": 1}
ARCHITECTURES = {
    "llama": tiny(**SMALL),
    "llama with one kv head per query head": tiny(**SMALL | {"heads": 2, "kv_heads": 2}),
    "llama with one kv head": tiny(**SMALL | {"heads": 4, "kv_heads": 1}),
    "llama with groups of three": tiny(**SMALL | {"heads": 6, "kv_heads": 2, "hidden": 96}),
    "llama with tied output": tiny(**SMALL, tied=True),
    "llama with the scaling of Llama 3.1": tiny(**SMALL, rope_scaling="llama3", rope_original_context=32),
    "llama with linear scaling": tiny(**SMALL, rope_scaling="linear"),
    "llama with yarn": tiny(**SMALL, rope_scaling="yarn", rope_original_context=32),
    "qwen2": tiny("qwen2", **SMALL),
    "qwen2 with tied output": tiny("qwen2", **SMALL | {"heads": 4, "kv_heads": 2}, tied=True),
    "qwen2 with yarn": tiny("qwen2", **SMALL, rope_scaling="yarn", rope_original_context=32),
    "qwen3": tiny("qwen3", **SMALL),
    "qwen3 with heads wider than dim / heads": tiny("qwen3", **SMALL | {"heads": 4, "kv_heads": 2, "head_dim": 64}),
}
TOKENS = [int(x) for x in np.random.default_rng(5).integers(2, 272, 48)]


def largest_error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(np.float64(found) - wanted).max() / np.abs(wanted).max())


def noise(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((np.float64(found) - wanted) ** 2) / np.mean(np.float64(wanted) ** 2)))


def decoded_logits(model: Model, **options: object) -> np.ndarray:
    """[tokens, vocabulary], token by token."""
    session = model.session(**options)
    rows = []
    for token in TOKENS:
        session.append([token])
        rows.append(session.logits)
    return np.array(rows)


def prefilled_logits(model: Model, **options: object) -> np.ndarray:
    """[vocabulary], after one pass over all tokens."""
    session = model.session(**options)
    session.append(TOKENS)
    return session.logits


def written(path: Path, config: TinyConfig, **options: object) -> tuple[Model, Weights]:
    weights = tiny_gguf.random_weights(config, std=0.12)
    stored = tiny_gguf.write_model(path / "model.gguf", config, weights, **options)
    return Model(path / "model.gguf", threads=1), stored


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.float64(logits) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_agree_with_transformers(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    pytest.importorskip("transformers", reason="the reference needs transformers")
    model, stored = written(tmp_path, ARCHITECTURES[name])
    with torch.no_grad():
        wanted = tiny_gguf.hf_model(ARCHITECTURES[name], stored)(torch.tensor([TOKENS])).logits[0].numpy()
    assert largest_error(decoded_logits(model, pair_type="f32"), wanted) < FLOAT32_TOLERANCE
    for pair_type, tolerance in PAIR_TOLERANCES.items():
        assert largest_error(prefilled_logits(model, pair_type=pair_type), wanted[-1]) < tolerance, pair_type


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "yarn" not in name])
def test_logits_agree_with_the_float64_decoder(tmp_path: Path, name: str) -> None:
    model, stored = written(tmp_path, ARCHITECTURES[name])
    wanted = decoder.logits(ARCHITECTURES[name], stored, TOKENS)
    assert largest_error(decoded_logits(model, pair_type="f32"), wanted) < FLOAT32_TOLERANCE
    assert largest_error(prefilled_logits(model, pair_type="f32"), wanted[-1]) < FLOAT32_TOLERANCE


def test_a_score_is_the_log_softmax_at_every_position(tmp_path: Path) -> None:
    config = ARCHITECTURES["llama"]
    model, stored = written(tmp_path, config)
    wanted = log_softmax(decoder.logits(config, stored, TOKENS))
    found = model.session(pair_type="f32").score(TOKENS)
    assert math.isnan(found[0])
    np.testing.assert_allclose(found[1:], wanted[range(len(TOKENS) - 1), TOKENS[1:]], rtol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("name", [row["name"] for row in _core.testing.quant_formats()])
def test_every_weight_format_computes_what_its_decoded_weights_do(tmp_path: Path, name: str) -> None:
    config = tiny(layers=1)
    model, stored = written(tmp_path, config, tensor_format=name)
    wanted = decoder.logits(config, stored, TOKENS[:12])[-1]
    session = model.session(pair_type="f32")
    session.append(TOKENS[:11])  # as a matrix
    session.append(TOKENS[11:12])  # as a vector
    assert noise(session.logits, wanted) < (FLOAT_NOISE if name in ("F32", "F16", "BF16") else INT8_NOISE)


LOLA_SHAPE = tiny(**SMALL | {"heads": 4, "kv_heads": 2, "head_dim": 16})
LOLA_CASES = {
    "the defaults": TinyAdapter(feature_dim=8),
    "plain LoLCATs": TinyAdapter(feature_dim=8, mixing="lolcats", sparse_size=0),
    "LoLCATs affine": TinyAdapter(feature_dim=8, mixing="lolcats", affine=True, sparse_size=4),
    "natural mixing and a cache per group": TinyAdapter(feature_dim=8, mixing="natural", sparse_scope="group"),
    "strict sliding window": TinyAdapter(feature_dim=8, window_size=7, chunk_size=1, sparse_size=5),
    "several chunks in the window": TinyAdapter(feature_dim=8, window_size=12, chunk_size=4, sparse_scope="group"),
    "weighted recall": TinyAdapter(feature_dim=8, policy="weighted_recall", kappa=1.0, sparse_size=6),
    "recall after absorption": TinyAdapter(feature_dim=8, policy="self_recall_after", sparse_size=6),
    "the first pairs": TinyAdapter(feature_dim=8, policy="first", sparse_size=6),
    "no sparse cache": TinyAdapter(feature_dim=8, policy="none"),
    "half maps": TinyAdapter(feature_dim=8, feature_map="exp_dim_half"),
    "maps with a skip connection": TinyAdapter(feature_dim=16, feature_map="pos_elu", skip_connection=True),
    "a softmax layer": TinyAdapter(feature_dim=8, softmax_layers=(1,)),
}
# As in test_lola.py: a choice between recall errors closer than float32 is exact may rightly go either way.
LEAST_MARGIN = 1e-3


def with_adapter(path: Path, config: TinyConfig, adapter: TinyAdapter, seed: int = 0) -> tuple[Model, Weights, Weights]:
    """A model with LoLA attention, its weights and its adapter's."""
    weights = tiny_gguf.random_weights(config, seed=seed, std=0.12)
    learned = tiny_gguf.random_adapter(config, adapter, seed=seed + 1)
    tiny_gguf.write_model(path / "model.gguf", config, weights)
    tiny_gguf.write_adapter(path / "adapter.gguf", config, adapter, learned)
    return Model(path / "model.gguf", path / "adapter.gguf", threads=1), weights, learned


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
@pytest.mark.parametrize("name", LOLA_CASES)
def test_a_model_with_lola_attention_agrees_with_the_float64_decoder(tmp_path: Path, name: str, arch: str) -> None:
    config, adapter = replace(LOLA_SHAPE, arch=arch), LOLA_CASES[name]
    for seed in range(20):
        weights = tiny_gguf.random_weights(config, seed=seed, std=0.12)
        learned = tiny_gguf.random_adapter(config, adapter, seed=seed + 1)
        oracle = decoder.LolaAttention(config, adapter, learned)
        wanted = decoder.logits(config, weights, TOKENS, oracle)
        if oracle.smallest_margin > LEAST_MARGIN:
            break
    else:
        raise AssertionError("every seed has a near tie")
    model, _, _ = with_adapter(tmp_path, config, adapter, seed)
    assert largest_error(decoded_logits(model, pair_type="f32"), wanted) < FLOAT32_TOLERANCE
    assert largest_error(prefilled_logits(model, pair_type="f32"), wanted[-1]) < FLOAT32_TOLERANCE


def test_options_of_a_session_override_what_the_adapter_says(tmp_path: Path) -> None:
    adapter = TinyAdapter(feature_dim=8)
    model, weights, learned = with_adapter(tmp_path, LOLA_SHAPE, adapter)
    changes = {"window_size": 12, "chunk_size": 6, "sparse_size": 3, "policy": "recent", "mixing": "natural"}
    oracle = decoder.LolaAttention(LOLA_SHAPE, replace(adapter, **changes), learned)
    wanted = decoder.logits(LOLA_SHAPE, weights, TOKENS, oracle)
    assert largest_error(prefilled_logits(model, pair_type="f32", **changes), wanted[-1]) < FLOAT32_TOLERANCE
    assert largest_error(prefilled_logits(model, pair_type="f32"), wanted[-1]) > 100 * FLOAT32_TOLERANCE


def test_a_window_as_long_as_the_text_is_softmax_attention(tmp_path: Path) -> None:
    model, weights, _ = with_adapter(tmp_path, LOLA_SHAPE, TinyAdapter(feature_dim=8))
    found = decoded_logits(model, pair_type="f32", window_size=64, chunk_size=64)
    assert largest_error(found, decoder.logits(LOLA_SHAPE, weights, TOKENS)) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_lora_at_run_time_equals_merged_weights(tmp_path: Path, arch: str) -> None:
    config = replace(LOLA_SHAPE, arch=arch)
    adapter = TinyAdapter(feature_dim=8, policy="first", lora_rank=4)
    model, weights, learned = with_adapter(tmp_path, config, adapter)
    merged = tiny_gguf.merged_weights(weights, learned, adapter)
    wanted = decoder.logits(config, merged, TOKENS, decoder.LolaAttention(config, adapter, learned))
    assert largest_error(decoded_logits(model, pair_type="f32"), wanted) < FLOAT32_TOLERANCE
    assert largest_error(prefilled_logits(model, pair_type="f32"), wanted[-1]) < FLOAT32_TOLERANCE
    without = decoder.logits(config, weights, TOKENS, decoder.LolaAttention(config, adapter, learned))
    assert largest_error(wanted, without) > 100 * FLOAT32_TOLERANCE


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_the_one_file_form_equals_base_and_adapter(tmp_path: Path, lora_rank: int) -> None:
    adapter = TinyAdapter(feature_dim=8, policy="first", lora_rank=lora_rank)
    model, _, _ = with_adapter(tmp_path, LOLA_SHAPE, adapter)
    merge_adapter(tmp_path / "model.gguf", tmp_path / "adapter.gguf", tmp_path / "one.gguf")
    one = Model(tmp_path / "one.gguf", threads=1)
    assert (one.info.architecture, one.info.has_lola) == ("llama", True)
    assert one.session_defaults == model.session_defaults
    found, wanted = decoded_logits(one, pair_type="f32"), decoded_logits(model, pair_type="f32")
    if lora_rank == 0:
        np.testing.assert_array_equal(found, wanted)
    assert largest_error(found, wanted) < FLOAT32_TOLERANCE


def test_a_second_adapter_for_a_one_file_model_is_refused(tmp_path: Path) -> None:
    with_adapter(tmp_path, LOLA_SHAPE, TinyAdapter(feature_dim=8))
    merge_adapter(tmp_path / "model.gguf", tmp_path / "adapter.gguf", tmp_path / "one.gguf")
    with pytest.raises(_core.UsageError, match=r"one\.gguf already holds a LoLA adapter"):
        Model(tmp_path / "one.gguf", tmp_path / "adapter.gguf")


# Digits enough for angles of 10^16 radians; pi to as many.
DIGITS = 60
PI = Decimal("3.141592653589793238462643383279502884197169399375105820974944592")


def exact_angle(position: int, base: int, pair: int, dimensions: int) -> float:
    with localcontext() as context:
        context.prec = DIGITS
        return float(position * Decimal(base) ** (Decimal(-2 * pair) / dimensions) % (2 * PI))


@pytest.mark.parametrize("position", [0, 10, 255, 131_071, 10_000_000, 2**24 - 1, 2**24, 2**40])
@pytest.mark.parametrize("base", [10_000, 500_000])
def test_rope_angles_are_as_exact_at_ten_million_as_at_ten(position: int, base: int) -> None:
    cosine, sine = _core.testing.rope_angles(dimensions=128, base=base, position=position)
    angles = [exact_angle(position, base, pair, 128) for pair in range(64)]
    # Half a unit of float32 below one, and the rounding of a double frequency times the position.
    tolerance = 2.0**-25 + position * 4 * 2.0**-53
    np.testing.assert_allclose(cosine, np.cos(angles), rtol=0, atol=tolerance)
    np.testing.assert_allclose(sine, np.sin(angles), rtol=0, atol=tolerance)
