"""Conversion of Hugging Face folders to GGUF, read back by the project's own reader."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from lola_cpp._core import FormatError, GgufFile, UnsupportedError, UsageError
from lola_cpp.convert.hf import convert_folder
from lola_cpp.convert.optional import require
from reference import tiny_gguf
from reference.gguf_tensors import assert_same_tensors, expected_tensors, tensors_of
from reference.tiny_vocabulary import QWEN2_PATTERN, tokenizer_json, vocabulary

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

# Small, since these tests look at files and not at text.
LLAMA = tiny_gguf.tiny("llama", hidden=64, ffn=96, heads=4, kv_heads=2, head_dim=16)
TOKENIZER_SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|bos|>",
    "eos_token": {"content": "<|eos|>"},
    "add_bos_token": True,
    "add_eos_token": False,
    "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}


def write_folder(
    folder: Path,
    config: tiny_gguf.TinyConfig = LLAMA,
    *,
    dtype: Any = torch.float32,
    changes: dict[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """A Hugging Face folder with random weights, which are returned as the file holds them."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tiny_gguf.hf_config(config) | (changes or {})))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_SETTINGS))
    tensors = {k: torch.from_numpy(v).to(dtype) for k, v in tiny_gguf.random_weights(config).items()}
    safetensors_torch.save_file(tensors, folder / "model.safetensors")
    return {name: value.float().numpy() for name, value in tensors.items()}


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_architecture_converts_to_the_same_weights_under_the_names_of_gguf(tmp_path, arch, tied):
    config = tiny_gguf.tiny(arch, hidden=64, ffn=96, head_dim=16, tied=tied)
    weights = write_folder(tmp_path / "hf", config)
    convert_folder(tmp_path / "hf", tmp_path / "out.gguf", kind="f32")
    assert_same_tensors(tensors_of(tmp_path / "out.gguf"), expected_tensors(config, weights))


def test_the_converted_metadata_describes_the_model(tmp_path):
    write_folder(tmp_path / "hf")
    convert_folder(tmp_path / "hf", tmp_path / "out.gguf", kind="f16", name="my model")
    file = GgufFile(tmp_path / "out.gguf")
    wanted = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "my model",
        "general.file_type": 1,
        "llama.block_count": LLAMA.layers,
        "llama.context_length": LLAMA.context_length,
        "llama.embedding_length": LLAMA.hidden,
        "llama.feed_forward_length": LLAMA.ffn,
        "llama.attention.head_count": LLAMA.heads,
        "llama.attention.head_count_kv": LLAMA.kv_heads,
        "llama.attention.key_length": LLAMA.head_dim,
        "llama.attention.value_length": LLAMA.head_dim,
        "llama.rope.dimension_count": LLAMA.head_dim,
        "llama.rope.freq_base": LLAMA.rope_theta,
        "llama.vocab_size": LLAMA.vocab_size,
    }
    assert {key: file.get(key) for key in wanted} == wanted
    assert file.get("llama.attention.layer_norm_rms_epsilon") == np.float32(LLAMA.norm_eps)


@pytest.mark.parametrize(("kind", "name"), [("f16", "F16"), ("bf16", "BF16"), ("q8_0", "Q8_0")])
def test_matrices_are_encoded_as_well_as_gguf_quants_does_and_vectors_stay_float32(tmp_path, kind, name):
    weights = write_folder(tmp_path / "hf", dtype=torch.bfloat16)
    convert_folder(tmp_path / "hf", tmp_path / "out.gguf", kind=kind)
    file = GgufFile(tmp_path / "out.gguf")
    wanted = expected_tensors(LLAMA, weights)
    formats = {tensor: form for tensor, form, _, _ in file.tensors()}
    assert formats == {tensor: name if value.ndim > 1 else "F32" for tensor, value in wanted.items()}
    for tensor, value in wanted.items():
        form = gguf.GGMLQuantizationType[formats[tensor]]
        encoded = gguf.quants.quantize(value, form)
        if name == "Q8_0" and value.ndim > 1:  # a search finds scales that are better than the usual one
            found = gguf.quants.dequantize(file.tensor_data(tensor).reshape(encoded.shape), form)
            errors = [((values - value) ** 2).mean() for values in (found, gguf.quants.dequantize(encoded, form))]
            assert 0.5 * errors[1] < errors[0] < errors[1]
        else:
            np.testing.assert_array_equal(file.tensor_data(tensor), encoded.view(np.uint8).ravel(), err_msg=tensor)


def test_sharded_and_pytorch_folders_convert_to_the_same_file_as_one_safetensors_file(tmp_path):
    weights = write_folder(tmp_path / "one")
    for form in ("shards", "torch"):
        write_folder(tmp_path / form)
        (tmp_path / form / "model.safetensors").unlink()
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    places = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for place in set(places.values()):
        part = {name: value for name, value in tensors.items() if places[name] == place}
        safetensors_torch.save_file(part, tmp_path / "shards" / place)
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    torch.save(tensors, tmp_path / "torch" / "pytorch_model.bin")
    for form in ("one", "shards", "torch"):
        convert_folder(tmp_path / form, tmp_path / f"{form}.gguf", name="same")
    one = (tmp_path / "one.gguf").read_bytes()
    assert (tmp_path / "shards.gguf").read_bytes() == one
    assert (tmp_path / "torch.gguf").read_bytes() == one


def test_a_folder_saved_by_transformers_converts(tmp_path):
    pytest.importorskip("transformers")
    config = tiny_gguf.tiny("qwen3", hidden=64, ffn=96, head_dim=16, tied=True, rope_scaling="yarn")
    weights = tiny_gguf.random_weights(config)
    write_folder(tmp_path / "hf", config)
    tiny_gguf.hf_model(config, weights).save_pretrained(tmp_path / "hf")
    convert_folder(tmp_path / "hf", tmp_path / "out.gguf", kind="f32")
    assert_same_tensors(tensors_of(tmp_path / "out.gguf"), expected_tensors(config, weights))
    file = GgufFile(tmp_path / "out.gguf")
    assert file.get("qwen3.rope.scaling.type") == "yarn"
    assert file.get("qwen3.rope.scaling.factor") == config.rope_factor
    assert file.get("qwen3.rope.scaling.original_context_length") == config.rope_original_context
    assert file.get("qwen3.rope.freq_base") == config.rope_theta


def test_linear_rope_scaling_becomes_metadata(tmp_path):
    write_folder(tmp_path / "hf", changes={"rope_scaling": {"type": "linear", "factor": 2.5}})
    convert_folder(tmp_path / "hf", tmp_path / "out.gguf")
    file = GgufFile(tmp_path / "out.gguf")
    assert file.get("llama.rope.scaling.type") == "linear"
    assert file.get("llama.rope.scaling.factor") == 2.5


def test_llama3_rope_scaling_becomes_the_tensor_of_frequency_divisors(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = tiny_gguf.tiny("llama", hidden=64, ffn=96, head_dim=32, rope_scaling="llama3")
    write_folder(tmp_path / "hf", config)
    convert_folder(tmp_path / "hf", tmp_path / "out.gguf")
    factors = tensors_of(tmp_path / "out.gguf")["rope_freqs.weight"]
    hf_config = transformers.LlamaConfig(**tiny_gguf.hf_config(config))
    scaled = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(hf_config).inv_freq.numpy()
    plain = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    # transformers computes the frequencies in float32: a few units in the last place.
    np.testing.assert_allclose(plain / factors, scaled, rtol=1e-6)
    assert len(np.unique(factors)) > 2


def test_a_byte_level_vocabulary_round_trips_with_its_special_tokens(tmp_path):
    write_folder(tmp_path / "hf")
    convert_folder(tmp_path / "hf", tmp_path / "out.gguf")
    file = GgufFile(tmp_path / "out.gguf")
    tokens = [token.decode() for token in file.get("tokenizer.ggml.tokens")]
    assert tokens == vocabulary()
    assert [merge.decode() for merge in file.get("tokenizer.ggml.merges")] == list(tiny_merges())
    assert file.get("tokenizer.ggml.token_type").tolist() == [3, 3] + [1] * (len(tokens) - 2)
    wanted = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": TOKENIZER_SETTINGS["chat_template"],
    }
    assert {key: file.get(key) for key in wanted} == wanted


def tiny_merges() -> tuple[str, ...]:
    return tuple(" ".join(pair) for pair in tokenizer_json()["model"]["merges"])


LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}| ", r"|\p{N}{1,3}| ")


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "name"),
    [
        ([("Split", LLAMA3_PATTERN), ("ByteLevel", False)], True, "llama-bpe"),
        ([("Split", LLAMA3_PATTERN), ("ByteLevel", False)], False, "smaug-bpe"),
        ([("ByteLevel", True)], False, "gpt-2"),
        ([("Digits", True), ("ByteLevel", True)], False, "smollm"),
    ],
)
def test_the_pre_tokenizer_is_recognised_by_what_it_does(tmp_path, steps, ignore_merges, name):
    write_folder(tmp_path / "hf")
    tokenizer = tokenizer_json()
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [pre_step(*step) for step in steps]}
    tokenizer["model"]["ignore_merges"] = ignore_merges
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(tokenizer))
    convert_folder(tmp_path / "hf", tmp_path / "out.gguf")
    assert GgufFile(tmp_path / "out.gguf").get("tokenizer.ggml.pre") == name


def pre_step(kind: str, value: Any) -> dict[str, Any]:
    if kind == "Split":
        return {"type": kind, "pattern": {"Regex": value}, "behavior": "Isolated", "invert": False}
    if kind == "Digits":
        return {"type": kind, "individual_digits": value}
    return {"type": kind, "add_prefix_space": False, "use_regex": value}


def test_an_unknown_pre_tokenizer_is_refused_until_it_is_named(tmp_path):
    write_folder(tmp_path / "hf")
    tokenizer = tokenizer_json()
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+"
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UsageError, match=r"wanted that of .*qwen2.*--pre NAME"):
        convert_folder(tmp_path / "hf", tmp_path / "out.gguf")
    convert_folder(tmp_path / "hf", tmp_path / "out.gguf", pre="default")
    assert GgufFile(tmp_path / "out.gguf").get("tokenizer.ggml.pre") == "default"


def test_a_sentencepiece_vocabulary_keeps_pieces_scores_and_types(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    write_folder(tmp_path / "hf")
    (tmp_path / "text").write_text("to be or not to be\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "hf" / "tokenizer"),
        vocab_size=268,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "hf" / "tokenizer.model"))
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    convert_folder(tmp_path / "hf", tmp_path / "out.gguf")
    file = GgufFile(tmp_path / "out.gguf")
    count = processor.vocab_size()
    pieces = [processor.IdToPiece(i) for i in range(count)]
    tokens = [token.decode() for token in file.get("tokenizer.ggml.tokens")]
    types = file.get("tokenizer.ggml.token_type")
    assert file.get("tokenizer.ggml.model") == "llama"
    assert tokens == pieces + [f"[PAD{i}]" for i in range(count, LLAMA.vocab_size)]
    assert file.get("tokenizer.ggml.scores")[:count].tolist() == [processor.GetScore(i) for i in range(count)]
    assert (types[0], types[1], types[pieces.index("<0x41>")], types[-1]) == (2, 3, 6, 5)
    assert tokens[file.get("tokenizer.ggml.bos_token_id")] == "<s>"
    assert tokens[file.get("tokenizer.ggml.eos_token_id")] == "</s>"


def test_sentencepiece_merges_of_a_tokenizer_json_become_scores_in_their_order(tmp_path):
    write_folder(tmp_path / "hf")
    tokenizer = tokenizer_json()
    tokenizer["pre_tokenizer"] = None
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}]}
    tokenizer["model"] |= {"byte_fallback": True, "vocab": {"<unk>": 2, "<0x41>": 3, "a": 4, "b": 5, "ab": 6, "abb": 7}}
    tokenizer["model"] |= {"merges": ["a b", "ab b"], "unk_token": "<unk>"}
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(tokenizer))
    convert_folder(tmp_path / "hf", tmp_path / "out.gguf")
    file = GgufFile(tmp_path / "out.gguf")
    assert file.get("tokenizer.ggml.token_type")[:8].tolist() == [3, 3, 2, 6, 1, 1, 1, 1]
    scores = file.get("tokenizer.ggml.scores")
    assert scores[6] > scores[7]
    assert file.get("tokenizer.ggml.add_space_prefix") is True


def change_tensor(folder: Path, name: str, value: Any) -> None:
    tensors = safetensors_torch.load_file(folder / "model.safetensors")
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    safetensors_torch.save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", None, "up_proj.weight': found nothing, wanted shape \\[96, 64\\]"),
        ("lm_head.weight", None, "'lm_head.weight': found nothing"),
        ("model.norm.weight", torch.ones(3), "'model.norm.weight': found shape \\[3\\], wanted shape \\[64\\]"),
        ("model.layers.0.mlp.experts.0", torch.ones(3), "experts.0' is unknown"),
        ("model.norm.weight", torch.full((64,), torch.nan), "'output_norm.weight': found nan"),
        ("lm_head.weight", torch.full((272, 64), 1e5), "wanted at most 65504, what F16 can hold: BF16 holds more"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_named(tmp_path, name, value, message):
    write_folder(tmp_path / "hf")
    change_tensor(tmp_path / "hf", name, value)
    with pytest.raises(FormatError, match=message):
        convert_folder(tmp_path / "hf", tmp_path / "out.gguf", kind="f16")
    assert not list(tmp_path.glob("out.gguf*"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, UnsupportedError, "architectures: found 'MixtralForCausalLM'"),
        ({"hidden_act": "gelu"}, UnsupportedError, "hidden_act: found 'gelu'"),
        ({"quantization_config": {"bits": 4}}, UnsupportedError, "quantization_config"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, UnsupportedError, "longrope"),
        ({"rope_scaling": {"rope_type": "linear"}}, FormatError, "factor: found 0.0, wanted a positive number"),
        ({"num_attention_heads": "4"}, FormatError, "num_attention_heads: found '4', wanted a positive integer"),
        ({"num_hidden_layers": 10**9}, FormatError, "more layers than the weights have tensors"),
        ({"num_attention_heads": 0}, FormatError, "num_attention_heads: found 0"),
        ({"rms_norm_eps": float("nan")}, FormatError, "rms_norm_eps: found nan"),
        ({"vocab_size": 100}, FormatError, "token_embd|embed_tokens"),
    ],
)
def test_configurations_that_cannot_be_converted_say_why(tmp_path, changes, error, message):
    write_folder(tmp_path / "hf", changes=changes)
    with pytest.raises(error, match=message):
        convert_folder(tmp_path / "hf", tmp_path / "out.gguf")


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 2000, -1])
def test_a_truncated_safetensors_file_is_refused(tmp_path, keep):
    write_folder(tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        convert_folder(tmp_path / "hf", tmp_path / "out.gguf")


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    write_folder(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Path("run me")}, tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(FormatError, match="not a PyTorch file of plain tensors"):
        convert_folder(tmp_path / "hf", tmp_path / "out.gguf")


def test_a_shard_index_cannot_name_files_outside_the_folder(tmp_path):
    write_folder(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "secret.safetensors")
    index = {"weight_map": {"model.norm.weight": "../secret.safetensors"}}
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="wanted the name of a file beside it"):
        convert_folder(tmp_path / "hf", tmp_path / "out.gguf")


def test_folders_without_weights_tokenizer_or_configuration_are_usage_errors(tmp_path):
    for missing in ("config.json", "model.safetensors", "tokenizer.json"):
        write_folder(tmp_path / missing)
        (tmp_path / missing / missing).unlink()
        with pytest.raises(UsageError, match=missing):
            convert_folder(tmp_path / missing, tmp_path / "out.gguf")


def test_a_missing_optional_package_names_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match=r"'sentencepiece'.*pip install 'lola_cpp\[convert\]'"):
        require("sentencepiece")
