"""LoLCATs checkpoints as LoLA adapters, and adapters merged into their base or split."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from lola_cpp._core import FormatError, GgufFile, UnsupportedError, UsageError
from lola_cpp.convert import cli
from lola_cpp.convert.adapter import Settings, read_base, read_settings
from lola_cpp.convert.copying import copy_keys
from lola_cpp.convert.lolcats import convert_lolcats
from lola_cpp.convert.merge import merge_adapter, split_adapter
from reference import tiny_gguf
from reference.gguf_tensors import assert_same_tensors, expected_tensors, tensors_of

torch = pytest.importorskip("torch")

LLAMA = tiny_gguf.tiny("llama", hidden=64, ffn=96, heads=4, kv_heads=2, head_dim=16)
ADAPTER = tiny_gguf.TinyAdapter(
    feature_dim=8, lora_rank=4, lora_alpha=8.0, window_size=64, chunk_size=64, sparse_size=64
)


@pytest.fixture
def base(tmp_path) -> Path:
    path = tmp_path / "base.gguf"
    tiny_gguf.write_model(path, LLAMA, tiny_gguf.random_weights(LLAMA))
    return path


def save_checkpoints(
    folder: Path, weights: dict[str, np.ndarray], *, prefix: str = "", wrap: bool = True
) -> list[Path]:
    """Maps and LoRA as two .pt files, names with `prefix` before 'model.layers'."""
    paths = []
    for name, is_lora in (("distill.pt", False), ("lora.pt", True)):
        part = {prefix + k: torch.from_numpy(v) for k, v in weights.items() if ("lora_" in k) == is_lora}
        torch.save({"model_state_dict": part} if wrap else part, folder / name)
        paths.append(folder / name)
    return paths


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
@pytest.mark.parametrize("wrap", [True, False])
def test_lolcats_checkpoints_become_the_adapter_of_the_reference(tmp_path, base, prefix, wrap):
    weights = tiny_gguf.random_adapter(LLAMA, ADAPTER)
    checkpoints = save_checkpoints(tmp_path, weights, prefix=prefix, wrap=wrap)
    convert_lolcats(checkpoints, base, tmp_path / "out.gguf", settings=Settings(lora_alpha=8.0))
    tiny_gguf.write_adapter(tmp_path / "wanted.gguf", LLAMA, ADAPTER, weights)
    assert_same_tensors(tensors_of(tmp_path / "out.gguf"), tensors_of(tmp_path / "wanted.gguf"))
    found, wanted = GgufFile(tmp_path / "out.gguf"), GgufFile(tmp_path / "wanted.gguf")
    keys = [key for key in wanted.keys() if key != "adapter.lola.kappa"]  # noqa: SIM118
    assert {key: found.get(key) for key in keys} == {key: wanted.get(key) for key in keys}
    assert found.get("general.base_model.0.name") == "tiny"


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_adapters_of_architectures_without_permutation_keep_their_rows(tmp_path, arch):
    config = tiny_gguf.tiny(arch, hidden=64, ffn=96, head_dim=16)
    tiny_gguf.write_model(tmp_path / "base.gguf", config, tiny_gguf.random_weights(config))
    weights = tiny_gguf.random_adapter(config, ADAPTER)
    convert_lolcats(
        save_checkpoints(tmp_path, weights), tmp_path / "base.gguf", tmp_path / "out.gguf", settings=Settings()
    )
    found = tensors_of(tmp_path / "out.gguf")
    query_map = weights["model.layers.1.self_attn.feature_map_q.mlp.layer"]
    np.testing.assert_array_equal(found["blk.1.attn_lola_fq.weight"], query_map.transpose(0, 2, 1))
    lora_b = weights["model.layers.1.self_attn.k_proj.lora_B.default.weight"]
    np.testing.assert_array_equal(found["blk.1.attn_k.weight.lora_b"], lora_b)


def test_a_skip_connection_permutes_the_features_like_the_key(tmp_path, base):
    adapter = replace(ADAPTER, feature_dim=LLAMA.head_dim, skip_connection=True)
    weights = tiny_gguf.random_adapter(LLAMA, adapter)
    settings = Settings(skip_connection=True)
    convert_lolcats(save_checkpoints(tmp_path, weights), base, tmp_path / "out.gguf", settings=settings)
    tiny_gguf.write_adapter(tmp_path / "wanted.gguf", LLAMA, adapter, weights)
    assert_same_tensors(tensors_of(tmp_path / "out.gguf"), tensors_of(tmp_path / "wanted.gguf"))


def test_permuted_feature_maps_give_the_features_of_the_original(tmp_path, base):
    weights = tiny_gguf.random_adapter(LLAMA, ADAPTER)
    convert_lolcats(save_checkpoints(tmp_path, weights), base, tmp_path / "out.gguf", settings=Settings())
    stored = tensors_of(tmp_path / "out.gguf")["blk.0.attn_lola_fk.weight"]  # [heads, f, d]
    original = weights["model.layers.0.self_attn.feature_map_k.mlp.layer"]  # [heads, d, f]
    key = np.random.default_rng(0).standard_normal(LLAMA.head_dim).astype(np.float32)
    interleaved = np.empty_like(key)
    interleaved[0::2], interleaved[1::2] = key[: LLAMA.head_dim // 2], key[LLAMA.head_dim // 2 :]
    # Sums of 16 products in another order.
    np.testing.assert_allclose(stored @ interleaved, np.einsum("hdf,d->hf", original, key), rtol=1e-5, atol=1e-6)


def test_half_precision_maps_stay_within_half_an_ulp(tmp_path, base):
    weights = tiny_gguf.random_adapter(LLAMA, ADAPTER)
    checkpoints = save_checkpoints(tmp_path, weights)
    for kind in ("f32", "f16"):
        convert_lolcats(checkpoints, base, tmp_path / f"{kind}.gguf", settings=Settings(), kind=kind)
    exact, half = tensors_of(tmp_path / "f32.gguf"), tensors_of(tmp_path / "f16.gguf")
    for name, value in exact.items():
        np.testing.assert_allclose(half[name], value, rtol=2.0**-11, atol=2.0**-25)
        assert name.endswith("window.weight") == np.array_equal(half[name], value)


def replaced(weights: dict[str, np.ndarray], name: str, value: np.ndarray | None) -> dict[str, np.ndarray]:
    rest = {key: old for key, old in weights.items() if key != name}
    return rest if value is None else rest | {name: value}


PREFIX = "model.layers.1.self_attn."


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("feature_map_q.mlp.layer", None, "layer 1: found .*, but no feature_map_q"),
        ("feature_map_q.mlp.layer", np.zeros((2, 16, 8)), r"layer 1: query feature map: found shape \[2, 16, 8\]"),
        ("feature_map_k.mlp.layer", np.zeros((4, 16, 9)), r"found shape \[4, 16, 9\], wanted \[4, 16, 8\]"),
        ("feature_map_k.mlp.layer", np.full((4, 16, 8), np.nan), "'blk.1.attn_lola_fk.weight': found nan"),
        ("window_factors", np.zeros((1, 2, 1, 1)), "window_factors: found shape"),
        ("window_factors", np.full((1, 4, 1, 1), np.inf), "'blk.1.attn_lola_window.weight': found inf"),
        ("q_proj.lora_A.default.weight", None, "LoRA of q_proj: found only B"),
        ("o_proj.lora_B.default.weight", np.zeros((3, 4)), "layer 1: LoRA of o_proj: found shapes"),
        ("gate_proj.lora_A.default.weight", np.zeros((3, 4)), "gate_proj.lora_A.default.weight' is unknown"),
    ],
)
def test_checkpoints_that_do_not_fit_the_base_say_what_is_wrong(tmp_path, base, name, value, message):
    weights = tiny_gguf.random_adapter(LLAMA, ADAPTER)
    checkpoints = save_checkpoints(tmp_path, replaced(weights, PREFIX + name, value))
    with pytest.raises(FormatError, match=message):
        convert_lolcats(checkpoints, base, tmp_path / "out.gguf", settings=Settings())
    assert not list(tmp_path.glob("out.gguf*"))


def test_a_layer_without_maps_has_to_be_declared_as_softmax(tmp_path, base):
    weights = tiny_gguf.random_adapter(LLAMA, tiny_gguf.TinyAdapter(feature_dim=8, softmax_layers=(1,)))
    checkpoints = save_checkpoints(tmp_path, weights)
    with pytest.raises(FormatError, match="layer 1 of 2 has no feature maps"):
        convert_lolcats(checkpoints, base, tmp_path / "out.gguf", settings=Settings())
    convert_lolcats(checkpoints, base, tmp_path / "out.gguf", settings=Settings(softmax_layers=(1,)))
    assert GgufFile(tmp_path / "out.gguf").get("adapter.lola.softmax_layers").tolist() == [1]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"window": 64}, FormatError, "unknown setting 'window'"),
        ({"policy": "best"}, UsageError, "policy: found 'best'"),
        ({"window_size": 0}, UsageError, "window_size: found 0"),
        ({"window_size": 96}, UsageError, "window_size 96 with chunk_size 64"),
        ({"kappa": "1"}, UsageError, "kappa: found '1'"),
        ({"softmax_layers": 3}, UsageError, "softmax_layers: found 3"),
        ({"affine": 1}, UsageError, "affine: found 1"),
        ({"feature_map": ["relu"]}, UsageError, "feature_map"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, values, error, message):
    (tmp_path / "lola.json").write_text(json.dumps(values))
    with pytest.raises(error, match=message):
        read_settings(tmp_path / "lola.json")


def test_the_command_line_converts_with_options_over_settings(tmp_path, base, capsys):
    checkpoints = save_checkpoints(tmp_path, tiny_gguf.random_adapter(LLAMA, ADAPTER))
    (tmp_path / "lola.json").write_text(json.dumps({"policy": "weighted_recall", "kappa": 0.5, "sparse_size": 32}))
    arguments = ["lolcats", *map(str, checkpoints), "--base", str(base), "-o", str(tmp_path / "out.gguf")]
    assert cli.main([*arguments, "--settings", str(tmp_path / "lola.json"), "--sparse", "16", "--scope", "group"]) == 0
    file = GgufFile(tmp_path / "out.gguf")
    names = ("policy", "kappa", "sparse_size", "sparse_scope", "mixing", "feature_dim")
    assert [file.get(f"adapter.lola.{name}") for name in names] == ["weighted_recall", 0.5, 16, "group", "gated", 8]
    assert cli.main([*arguments, "--window", "100"]) == 1
    assert "error: found window_size 100" in capsys.readouterr().err


# One file, and back


def adapter_file(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    weights = tiny_gguf.random_adapter(LLAMA, ADAPTER)
    tiny_gguf.write_adapter(tmp_path / "adapter.gguf", LLAMA, ADAPTER, weights)
    return tmp_path / "adapter.gguf", weights


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_merging_adds_the_scaled_product_of_the_lora_to_the_stored_weights(tmp_path, kind):
    weights = tiny_gguf.random_weights(LLAMA)
    stored = tiny_gguf.write_model(tmp_path / "base.gguf", LLAMA, weights, tensor_format=kind)
    adapter, adapter_weights = adapter_file(tmp_path)
    merge_adapter(tmp_path / "base.gguf", adapter, tmp_path / "out.gguf")
    merged = tiny_gguf.merged_weights(stored, adapter_weights, ADAPTER)
    found, file = tensors_of(tmp_path / "out.gguf"), GgufFile(tmp_path / "out.gguf")
    for name, value in expected_tensors(LLAMA, merged).items():
        form = gguf.GGMLQuantizationType[kind if value.ndim > 1 else "F32"]
        # The product of rank 4 may be summed in another order: one step of the format apart, relative to the largest.
        step = {"F32": 2.0**-22, "F16": 2.0**-10, "BF16": 2.0**-7, "Q8_0": 1 / 127}[form.name]
        wanted = gguf.quants.dequantize(gguf.quants.quantize(value, form), form)
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=step * np.abs(value).max(), err_msg=name)
        np.testing.assert_allclose(found[name].mean(), value.mean(), rtol=0, atol=step * np.abs(value).max() / 8)
    assert file.get("general.architecture") == "lola-llama"
    assert file.get("lola-llama.block_count") == LLAMA.layers
    assert file.get("adapter.lola.window_size") == ADAPTER.window_size
    assert file.get("adapter.lora.alpha") is None
    assert not [name for name in found if ".lora_" in name]


def test_merging_copies_everything_the_lora_does_not_change_byte_for_byte(tmp_path, base):
    adapter, _ = adapter_file(tmp_path)
    merge_adapter(base, adapter, tmp_path / "out.gguf")
    out = GgufFile(tmp_path / "out.gguf")
    for source in (GgufFile(base), GgufFile(adapter)):
        for name, _, _, _ in source.tensors():
            if "attn_lola" in name or not any(part in name for part in ("attn_q", "attn_k", "attn_v", "attn_output")):
                np.testing.assert_array_equal(out.tensor_data(name), source.tensor_data(name))
    source = GgufFile(base)
    for key in source.keys():  # noqa: SIM118
        target = f"lola-{key}" if key.startswith("llama.") else key
        if key != "general.architecture":
            assert out.value_type(target) == source.value_type(key)
            np.testing.assert_array_equal(out.get(target), source.get(key))


@pytest.mark.parametrize("kind", ["Q4_0", "Q2_K", "Q4_K", "Q6_K"])
def test_merging_into_a_quantized_model_keeps_its_format(tmp_path, kind):
    config = tiny_gguf.tiny("llama")
    weights = tiny_gguf.random_weights(config)
    stored = tiny_gguf.write_model(tmp_path / "base.gguf", config, weights, tensor_format=kind)
    adapter = tiny_gguf.TinyAdapter(lora_rank=4)
    adapter_weights = tiny_gguf.random_adapter(config, adapter)
    tiny_gguf.write_adapter(tmp_path / "a.gguf", config, adapter, adapter_weights)
    merge_adapter(tmp_path / "base.gguf", tmp_path / "a.gguf", tmp_path / "out.gguf")
    formats = {name: form for name, form, _, _ in GgufFile(tmp_path / "out.gguf").tensors()}
    assert formats["blk.1.attn_q.weight"] == formats["blk.1.ffn_up.weight"] == kind
    found = tensors_of(tmp_path / "out.gguf")
    merged = expected_tensors(config, tiny_gguf.merged_weights(stored, adapter_weights, adapter))
    step = {"Q4_0": 0.12, "Q2_K": 0.4, "Q4_K": 0.1, "Q6_K": 0.03}[kind]  # relative error of the format, with a margin
    for name in ("blk.0.attn_q.weight", "blk.1.attn_output.weight"):
        assert np.std(found[name] - merged[name]) < step * np.std(merged[name])


def test_merging_into_blocks_that_cannot_be_written_needs_a_format(tmp_path):
    config = tiny_gguf.tiny("llama")
    tiny_gguf.write_model(tmp_path / "base.gguf", config, tiny_gguf.random_weights(config), tensor_format="IQ4_NL")
    adapter = tiny_gguf.TinyAdapter(lora_rank=4)
    tiny_gguf.write_adapter(tmp_path / "a.gguf", config, adapter, tiny_gguf.random_adapter(config, adapter))
    with pytest.raises(UnsupportedError, match=r"'blk.0.attn_q.weight'.* cannot be merged into IQ4_NL.*-type q8_0"):
        merge_adapter(tmp_path / "base.gguf", tmp_path / "a.gguf", tmp_path / "out.gguf")
    merge_adapter(tmp_path / "base.gguf", tmp_path / "a.gguf", tmp_path / "out.gguf", lora_type="q4_k")
    formats = {name: kind for name, kind, _, _ in GgufFile(tmp_path / "out.gguf").tensors()}
    assert (formats["blk.1.attn_v.weight"], formats["blk.1.ffn_up.weight"]) == ("Q4_K", "IQ4_NL")


def test_an_adapter_of_another_base_is_not_merged(tmp_path, base):
    other = tiny_gguf.tiny("llama", hidden=64, ffn=96, head_dim=16, rope_theta=5e5)
    tiny_gguf.write_adapter(tmp_path / "a.gguf", other, ADAPTER, tiny_gguf.random_adapter(other, ADAPTER))
    with pytest.raises(FormatError, match=r"adapter.lola.base.rope_freq_base: found 500000.0, the base has 10000.0"):
        merge_adapter(base, tmp_path / "a.gguf", tmp_path / "out.gguf")
    with pytest.raises(FormatError, match=r"wanted \('adapter', 'lola'\)"):
        merge_adapter(base, base, tmp_path / "out.gguf")


def test_an_adapter_cannot_replace_tensors_of_its_base(tmp_path, base):
    weights = tiny_gguf.random_adapter(LLAMA, ADAPTER)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    tiny_gguf.write_adapter(tmp_path / "good.gguf", LLAMA, ADAPTER, weights)
    good = GgufFile(tmp_path / "good.gguf")
    copy_keys(good, writer, lambda key: key)
    writer.add_tensor("output_norm.weight", np.zeros(LLAMA.hidden, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match=r"'output_norm.weight' is unknown in an adapter"):
        merge_adapter(base, tmp_path / "a.gguf", tmp_path / "out.gguf")


def test_the_split_lora_has_the_keys_and_tensors_of_a_llama_cpp_lora(tmp_path):
    adapter, _ = adapter_file(tmp_path)
    split_adapter(adapter, tmp_path / "lora.gguf")
    file, source = GgufFile(tmp_path / "lora.gguf"), GgufFile(adapter)
    assert file.get("general.type") == "adapter"
    assert file.get("general.architecture") == "llama"
    assert file.get("adapter.type") == "lora"
    assert file.get("adapter.lora.alpha") == ADAPTER.lora_alpha
    names = [name for name, _, _, _ in file.tensors()]
    assert sorted(names) == sorted(name for name, _, _, _ in source.tensors() if ".lora_" in name)
    for name in names:
        np.testing.assert_array_equal(file.tensor_data(name), source.tensor_data(name))


def test_the_facts_of_a_base_are_those_it_was_written_with(base):
    facts = read_base(base)
    assert (facts.architecture, facts.block_count, facts.vocab_size) == ("llama", LLAMA.layers, LLAMA.vocab_size)
    assert (facts.heads.query, facts.heads.key_value, facts.heads.dim) == (LLAMA.heads, LLAMA.kv_heads, LLAMA.head_dim)
