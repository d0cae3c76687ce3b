"""Files that lie: models, adapters and states end in one of the package's own errors that names file and place."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.gguf_writer import GGUFValue

from lola_cpp import FormatError, LolaError, Model
from reference.edited_files import (
    FITTING,
    ODD_VALUES,
    Edit,
    Files,
    Kind,
    assert_refused,
    key,
    tensor,
    without_key,
    without_tensor,
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    return Files(tmp_path, monkeypatch)


# --- Models ---

MODEL_KEYS = {
    "general.architecture": "choice",
    "general.name": "name",
    "llama.block_count": "int",
    "llama.context_length": "int",
    "llama.embedding_length": "int",
    "llama.feed_forward_length": "int",
    "llama.attention.head_count": "int",
    "llama.attention.head_count_kv": "int",
    "llama.attention.key_length": "int",
    "llama.attention.value_length": "int",
    "llama.attention.layer_norm_rms_epsilon": "float",
    "llama.rope.freq_base": "float",
    "llama.rope.dimension_count": "int",
    "llama.rope.scaling.type": "choice",
    "llama.rope.scale_linear": "float",
    "llama.expert_count": "int",
}


@pytest.mark.parametrize("name", MODEL_KEYS)
def test_every_key_of_a_model_refuses_every_wrong_type(files: Files, name: str) -> None:
    for odd, value in ODD_VALUES.items():
        if odd not in FITTING[MODEL_KEYS[name]]:
            files.write_model(lambda writer, value=value: writer.kv_data[0].update({name: value}))
            assert_refused(files.load, "model.gguf", name)


@pytest.mark.parametrize(
    "name", ["factor", "original_context_length", "yarn_beta_fast", "yarn_beta_slow", "attn_factor"]
)
def test_every_key_of_yarn_refuses_every_wrong_type(files: Files, name: str) -> None:
    kind = "int" if name == "original_context_length" else "float"
    for odd, value in ODD_VALUES.items():
        if odd not in FITTING[kind]:

            def edit(writer: gguf.GGUFWriter, value: GGUFValue = value) -> None:
                key("llama.rope.scaling.type", "yarn", Kind.STRING)(writer)
                key("llama.rope.scaling.original_context_length", 32, Kind.UINT32)(writer)
                writer.kv_data[0][f"llama.rope.scaling.{name}"] = value

            files.write_model(edit)
            assert_refused(files.load, "model.gguf", name)


MODEL_LIES: dict[str, tuple[Edit, str]] = {
    "no block_count": (without_key("llama.block_count"), "llama.block_count"),
    "no epsilon": (without_key("llama.attention.layer_norm_rms_epsilon"), "layer_norm_rms_epsilon"),
    "no layer": (key("llama.block_count", 0, Kind.UINT32), "llama.block_count"),
    "a layer too many": (key("llama.block_count", 2, Kind.UINT32), "blk.1.attn_norm.weight"),
    "a billion layers": (key("llama.block_count", 10**9, Kind.UINT32), "llama.block_count"),
    "no heads": (key("llama.attention.head_count", 0, Kind.UINT32), "head_count"),
    "a billion heads": (key("llama.attention.head_count", 10**9, Kind.UINT32), "head_count"),
    "no kv heads": (key("llama.attention.head_count_kv", 0, Kind.UINT32), "head_count_kv"),
    "more kv heads than heads": (key("llama.attention.head_count_kv", 4, Kind.UINT32), "head_count_kv"),
    "heads that do not divide": (key("llama.attention.head_count", 3, Kind.UINT32), "attn_q.weight"),
    "another key length": (key("llama.attention.key_length", 8, Kind.UINT32), "value_length: found 4"),
    "an odd rope dimension": (key("llama.rope.dimension_count", 3, Kind.UINT32), "rope.dimension_count"),
    "rope wider than a head": (key("llama.rope.dimension_count", 6, Kind.UINT32), "rope.dimension_count"),
    "rope base zero": (key("llama.rope.freq_base", 0.0, Kind.FLOAT32), "rope.freq_base"),
    "rope base below zero": (key("llama.rope.freq_base", -5.0, Kind.FLOAT32), "rope.freq_base"),
    "negative epsilon": (key("llama.attention.layer_norm_rms_epsilon", -1.0, Kind.FLOAT32), "rms_epsilon"),
    "an epsilon beyond float32": (key("llama.attention.layer_norm_rms_epsilon", 1e300, Kind.FLOAT64), "rms_epsilon"),
    "a wider residual stream": (key("llama.embedding_length", 16, Kind.UINT32), "token_embd.weight"),
    "a longer feed-forward": (key("llama.feed_forward_length", 16, Kind.UINT32), "ffn_gate.weight"),
    "experts": (key("llama.expert_count", 8, Kind.UINT32), "expert_count"),
    "no embedding": (without_tensor("token_embd.weight"), "token_embd.weight"),
    "an embedding of one dimension": (tensor("token_embd.weight", np.zeros(8)), "token_embd.weight"),
    "no output norm": (without_tensor("output_norm.weight"), "output_norm.weight"),
    "no q": (without_tensor("blk.0.attn_q.weight"), "blk.0.attn_q.weight"),
    "a misshaped q": (tensor("blk.0.attn_q.weight", np.zeros((7, 8))), "blk.0.attn_q.weight"),
    "a misshaped bias": (tensor("blk.0.attn_k.bias", np.zeros(3)), "blk.0.attn_k.bias"),
    "an output for another vocabulary": (tensor("output.weight", np.zeros((9, 8))), "output.weight"),
    "rope divisors of another size": (tensor("rope_freqs.weight", np.ones(3)), "rope_freqs.weight"),
    "rope divisors of zero": (tensor("rope_freqs.weight", np.zeros(2)), "rope_freqs.weight"),
    "NaN rope divisors": (tensor("rope_freqs.weight", np.full(2, np.nan)), "rope_freqs.weight"),
    "fewer tokens than embeddings": (
        key("tokenizer.ggml.tokens", ["a", "b"], Kind.ARRAY, Kind.STRING),
        "tokenizer.ggml.tokens: found 2 tokens, wanted 272",
    ),
    "tokens that are numbers": (key("tokenizer.ggml.tokens", [1], Kind.ARRAY, Kind.UINT32), "tokenizer.ggml.tokens"),
}


@pytest.mark.parametrize("lie", MODEL_LIES)
def test_a_model_that_contradicts_itself_is_refused(files: Files, lie: str) -> None:
    edit, place = MODEL_LIES[lie]
    files.write_model(edit)
    assert_refused(files.load, "model.gguf", place)


def test_a_name_that_is_not_utf_8_is_shown_escaped(files: Files) -> None:
    files.write_model(key("general.name", b"tiny\xff", Kind.STRING))
    assert files.load().info.name == "tiny\\xff"


# --- Adapters ---

ADAPTER_KEYS = {
    "general.architecture": "choice",
    "adapter.type": "choice",
    "adapter.lola.version": "int",
    "adapter.lola.feature_map": "choice",
    "adapter.lola.feature_dim": "int",
    "adapter.lola.skip_connection": "bool",
    "adapter.lola.affine": "bool",
    "adapter.lola.mixing": "choice",
    "adapter.lola.sparse_scope": "choice",
    "adapter.lola.policy": "choice",
    "adapter.lola.window_size": "int",
    "adapter.lola.chunk_size": "int",
    "adapter.lola.sparse_size": "int",
    "adapter.lola.kappa": "float",
    "adapter.lola.softmax_layers": "layers",
    "adapter.lola.base.block_count": "int",
    "adapter.lola.base.head_count": "int",
    "adapter.lola.base.head_count_kv": "int",
    "adapter.lola.base.key_length": "int",
    "adapter.lola.base.vocab_size": "int",
    "adapter.lola.base.rope_freq_base": "float",
    "adapter.lora.alpha": "float",
}
PLACES = {
    "adapter.lola.sparse_scope": "scope",
    "adapter.lola.softmax_layers": "softmax_layers",
}


@pytest.mark.parametrize("name", ADAPTER_KEYS)
def test_every_key_of_an_adapter_refuses_every_wrong_type(files: Files, name: str) -> None:
    for odd, value in ODD_VALUES.items():
        if odd not in FITTING[ADAPTER_KEYS[name]]:
            files.write_adapter(lambda writer, value=value: writer.kv_data[0].update({name: value}))
            assert_refused(files.load, "adapter.gguf", PLACES.get(name, name))


NAN_GATES = np.array([1.0, np.nan], np.float32)
ADAPTER_LIES: dict[str, tuple[Edit, str]] = {
    "a plain LoRA": (key("adapter.type", "lora", Kind.STRING), "adapter.type: found 'lora', wanted 'lola'"),
    "no type": (without_key("adapter.type"), "adapter.type"),
    "version 2": (key("adapter.lola.version", 2, Kind.UINT32), "adapter.lola.version"),
    "another architecture": (key("general.architecture", "qwen2", Kind.STRING), "general.architecture"),
    "other layers": (key("adapter.lola.base.block_count", 3, Kind.UINT32), "base.block_count: found 3, wanted 1"),
    "other heads": (key("adapter.lola.base.head_count", 4, Kind.UINT32), "base.head_count: found 4, wanted 2"),
    "other kv heads": (key("adapter.lola.base.head_count_kv", 2, Kind.UINT32), "base.head_count_kv"),
    "other head dim": (key("adapter.lola.base.key_length", 8, Kind.UINT32), "base.key_length"),
    "another vocabulary": (key("adapter.lola.base.vocab_size", 9, Kind.UINT32), "base.vocab_size"),
    "another rope base": (key("adapter.lola.base.rope_freq_base", 5e5, Kind.FLOAT32), "base.rope_freq_base"),
    "another feature dim": (key("adapter.lola.feature_dim", 3, Kind.UINT32), "attn_lola_fq.weight"),
    "no feature dim": (without_key("adapter.lola.feature_dim"), "adapter.lola.feature_dim"),
    "no feature map": (without_key("adapter.lola.feature_map"), "adapter.lola.feature_map"),
    "a skip into another size": (key("adapter.lola.skip_connection", True, Kind.BOOL), "adapter.lola.feature_dim"),
    "a huge window": (key("adapter.lola.window_size", 2**40, Kind.UINT64), "adapter.lola.window_size"),
    "a window of no chunks": (key("adapter.lola.window_size", 3, Kind.UINT32), "window_size: found 3"),
    "softmax layers beyond": (
        key("adapter.lola.softmax_layers", [5], Kind.ARRAY, Kind.UINT32),
        "adapter.lola.softmax_layers",
    ),
    "no gates": (without_tensor("blk.0.attn_lola_window.weight"), "blk.0.attn_lola_window.weight"),
    "NaN gates": (tensor("blk.0.attn_lola_window.weight", NAN_GATES), "blk.0.attn_lola_window.weight' element 1"),
    "gates of other heads": (tensor("blk.0.attn_lola_window.weight", np.zeros(3)), "blk.0.attn_lola_window.weight"),
    "no map": (without_tensor("blk.0.attn_lola_fk.weight"), "blk.0.attn_lola_fk.weight"),
    "maps of other heads": (tensor("blk.0.attn_lola_fk.weight", np.zeros((3, 2, 4))), "blk.0.attn_lola_fk.weight"),
    "infinite maps": (tensor("blk.0.attn_lola_fk.weight", np.full((2, 2, 4), np.inf)), "blk.0.attn_lola_fk.weight"),
    "kappa of other heads": (tensor("blk.0.attn_lola_kappa.weight", np.zeros(3)), "blk.0.attn_lola_kappa.weight"),
    "a tensor of the base": (tensor("token_embd.weight", np.zeros((272, 8))), "token_embd.weight"),
    "a layer beyond": (tensor("blk.1.attn_lola_window.weight", np.zeros(2)), "blk.1.attn_lola_window.weight"),
    "an unknown name": (tensor("blk.0.attn_lola_fx.weight", np.zeros(2)), "blk.0.attn_lola_fx.weight"),
    "a LoRA without A": (without_tensor("blk.0.attn_q.weight.lora_a"), "blk.0.attn_q.weight.lora_a"),
    "a LoRA without B": (without_tensor("blk.0.attn_q.weight.lora_b"), "blk.0.attn_q.weight.lora_b"),
    "a LoRA of another rank": (tensor("blk.0.attn_q.weight.lora_b", np.zeros((8, 3))), "blk.0.attn_q.weight.lora_b"),
    "a LoRA of another width": (tensor("blk.0.attn_q.weight.lora_a", np.zeros((2, 9))), "blk.0.attn_q.weight.lora_a"),
    "a LoRA of one dimension": (tensor("blk.0.attn_q.weight.lora_a", np.zeros(16)), "blk.0.attn_q.weight.lora_a"),
    "a NaN LoRA": (tensor("blk.0.attn_q.weight.lora_a", np.full((2, 8), np.nan)), "blk.0.attn_q.weight.lora_a"),
    "no alpha": (without_key("adapter.lora.alpha"), "adapter.lora.alpha"),
}


@pytest.mark.parametrize("lie", ADAPTER_LIES)
def test_an_adapter_that_lies_or_does_not_fit_is_refused(files: Files, lie: str) -> None:
    edit, place = ADAPTER_LIES[lie]
    files.write_adapter(edit)
    assert_refused(files.load, "adapter.gguf", place)


# --- States ---


@pytest.fixture
def model(files: Files) -> Model:
    model = files.load()
    session = model.session()
    for _ in session.generate(list(range(20, 29)), max_tokens=2, stop_at_end=False, temperature=1.0, seed=3):
        pass
    session.save(files.state)
    return model


def test_a_state_cut_short_at_any_byte_is_refused(files: Files, model: Model) -> None:
    whole = files.state.read_bytes()
    for size in range(len(whole)):
        files.state.write_bytes(whole[:size])
        with pytest.raises(FormatError, match=r"state\.gguf"):
            model.load_session(files.state)


def test_a_flipped_bit_is_noticed_or_changes_nothing(files: Files, model: Model) -> None:
    whole = files.state.read_bytes()
    harmless = 0
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        files.state.write_bytes(damaged)
        try:
            loaded = model.load_session(files.state)
        except LolaError as error:
            assert "state.gguf" in str(error)
            continue
        loaded.save(files.state)
        assert files.state.read_bytes() == whole, at
        harmless += 1
    # Padding, and the keys that are there for other readers.
    assert harmless < len(whole) // 4


def test_a_state_of_another_model_or_adapter_is_refused(files: Files, model: Model) -> None:
    files.write_adapter(key("adapter.lola.kappa", 0.25, Kind.FLOAT32))
    with pytest.raises(FormatError, match="saved with another model or adapter"):
        files.load().load_session(files.state)
    with pytest.raises(FormatError, match=r"general\.type: found 'model', wanted 'state'"):
        model.load_session(files.model)


STATE_LIES = {
    b"state.position": (2**62 + 1, -1),
    b"state.context_length": (2**62 + 1, 0),
    b"state.window_size": (2**40, 0, -1),
    b"state.chunk_size": (2**40, 0),
    b"state.sparse_size": (2**40, 2**24, -1),
}


@pytest.mark.parametrize("name", STATE_LIES)
def test_huge_numbers_in_a_state_are_refused_before_memory_is_taken(files: Files, model: Model, name: bytes) -> None:
    whole = files.state.read_bytes()
    at = whole.index(name) + len(name) + 4  # behind the name and the type
    for lie in STATE_LIES[name]:
        files.state.write_bytes(whole[:at] + lie.to_bytes(8, "little", signed=True) + whole[at + 8 :])
        with pytest.raises(FormatError, match=r"state\.gguf"):
            model.load_session(files.state)
