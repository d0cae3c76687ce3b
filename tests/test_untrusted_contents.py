"""Whole files that hold nonsense: weights that are no numbers, keys of vocabularies and states of the wrong kind."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.gguf_writer import GGUFValue

from lola_cpp import ChatTemplate, FormatError, LolaError, Model, Session
from reference import crafted_gguf, tiny_gguf
from reference.edited_files import ODD_VALUES, Files, Kind, assert_refused, key, without_key
from reference.tiny_gguf import tiny

# Where a block keeps its float16 scale and offset.
SCALES_AT = {"Q4_0": [0], "Q4_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q6_K": [208]}
NOT_NUMBERS = {"nan": 0x7E00, "infinity": 0x7C00, "negative infinity": 0xFC00, "largest": 0x7BFF}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    return Files(tmp_path, monkeypatch)


@pytest.fixture
def model(files: Files) -> Model:
    return files.load()


# --- Files cut short ---


@pytest.mark.parametrize("which", ["model", "adapter"])
def test_a_file_cut_anywhere_is_refused(which: str, files: Files) -> None:
    path = getattr(files, which)
    whole = path.read_bytes()
    last = gguf.GGUFReader(path).tensors[-1]
    end = int(last.data_offset + last.n_bytes)
    for length in [*range(0, end, 37), end - 1]:
        path.write_bytes(whole[:length])
        assert_refused(files.load, path.name)


# --- Weights ---


@pytest.mark.parametrize("kind", SCALES_AT)
@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_scales_that_are_no_numbers_end_in_an_error_or_in_numbers(kind: str, value: str, tmp_path: Path) -> None:
    config = tiny(layers=1)
    path = tmp_path / "m.gguf"
    tiny_gguf.write_model(path, config, tiny_gguf.random_weights(config), tensor_format=kind)
    data = bytearray(path.read_bytes())
    size, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert size in (32, 256)
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.tensor_type.name == kind:
            for at in SCALES_AT[kind]:
                place = int(tensor.data_offset) + 3 * block_bytes + at
                data[place : place + 2] = NOT_NUMBERS[value].to_bytes(2, "little")
    path.write_bytes(data)
    session = Model(path, threads=1).session()
    try:
        list(session.generate([3, 4, 5], max_tokens=3, stop_at_end=False))
    except LolaError as error:
        assert "logits" in str(error)
    else:
        assert np.isfinite(session.logits).all()


# --- Vocabularies ---

VOCABULARY_KEYS = {
    "tokenizer.ggml.model": (),
    "tokenizer.ggml.pre": (),
    "tokenizer.ggml.tokens": (),
    "tokenizer.ggml.token_type": (),
    "tokenizer.ggml.merges": (),
    "tokenizer.ggml.bos_token_id": (),
    "tokenizer.ggml.eos_token_id": (),
    "tokenizer.ggml.add_bos_token": ("bool",),
    "tokenizer.ggml.add_eos_token": ("bool",),
}


@pytest.mark.parametrize("name", VOCABULARY_KEYS)
def test_every_key_of_a_vocabulary_refuses_every_wrong_type(files: Files, name: str) -> None:
    for odd, value in ODD_VALUES.items():
        if odd not in VOCABULARY_KEYS[name]:
            files.write_model(lambda writer, value=value: writer.kv_data[0].update({name: value}))
            assert_refused(lambda: files.load().tokenizer, name)


def test_a_vocabulary_without_merges_model_or_tokens_is_refused(files: Files) -> None:
    for name in ("merges", "model", "tokens"):
        files.write_model(without_key(f"tokenizer.ggml.{name}"))
        assert_refused(lambda: files.load().tokenizer, f"tokenizer.ggml.{name}")


def test_a_vocabulary_of_no_pieces_is_refused_and_one_of_one_piece_works(tmp_path: Path) -> None:
    config = tiny(layers=1, hidden=32, ffn=32, head_dim=16, heads=2, kv_heads=1)
    weights = tiny_gguf.random_weights(config)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:1]
    for pieces in ([], ["a"], ["a", "b"]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny_gguf, "write_vocabulary", lambda writer, pieces=pieces: write_pieces(writer, pieces))
            tiny_gguf.write_model(tmp_path / "m.gguf", config, weights)
        if len(pieces) == 1:
            session = Model(tmp_path / "m.gguf", threads=1).session()
            session.append([0, 0])
            assert session.logits.shape == (1,)
        else:
            with pytest.raises(FormatError, match=r"tokenizer\.ggml\.tokens.?: found"):
                Model(tmp_path / "m.gguf", threads=1)


def write_pieces(writer: gguf.GGUFWriter, pieces: list[str]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.kv_data[0]["tokenizer.ggml.tokens"] = GGUFValue(
        pieces or [7], Kind.ARRAY, Kind.STRING if pieces else Kind.UINT8
    )


def test_a_chat_template_refuses_every_wrong_type(files: Files) -> None:
    for odd, value in ODD_VALUES.items():
        if odd not in ("string", "empty string", "no UTF-8"):
            files.write_model(lambda writer, value=value: writer.kv_data[0].update({"tokenizer.chat_template": value}))
            assert_refused(lambda: ChatTemplate.of(files.load()), "tokenizer.chat_template")
    files.write_model(key("tokenizer.chat_template", b"\xff{{ messages | length }}", Kind.STRING))
    assert ChatTemplate.of(files.load()).render([]) == "\ufffd0"


# --- States ---

STATE_INTEGERS = ("version", "position", "context_length", "window_size", "chunk_size", "sparse_size", "seed", "affine")
STATE_NAMES = ("fingerprint", "policy", "mixing", "sparse_scope", "pair_type", "checksum")


def edited_state(path: Path, name: bytes, kind: int, payload: bytes) -> bytes:
    """The state file at `path` with another value for a key."""
    source = gguf.GGUFReader(path)
    keys = []
    for field in source.fields.values():
        if field.name.startswith("GGUF."):
            continue
        parts = b"".join(part.tobytes() for part in field.parts[3:])
        changed = field.name.encode() == name
        keys.append(crafted_gguf.key(field.name.encode(), *((kind, payload) if changed else (field.types[0], parts))))
    tensors = [
        crafted_gguf.tensor(
            tensor.name.encode(),
            [int(size) for size in tensor.shape],
            int(tensor.tensor_type),
            int(tensor.data_offset - source.data_offset),
        )
        for tensor in source.tensors
    ]
    return crafted_gguf.craft(keys, tensors, path.read_bytes()[source.data_offset :])


def saved(model: Model, path: Path) -> Session:
    session = model.session()
    session.append([20, 21, 22])
    session.save(path)
    return session


def test_an_edited_state_is_only_wrong_where_it_was_edited(files: Files, model: Model) -> None:
    session = saved(model, files.state)
    files.state.write_bytes(edited_state(files.state, b"no such key", crafted_gguf.U8, b"1"))
    np.testing.assert_array_equal(model.load_session(files.state).logits, session.logits)


@pytest.mark.parametrize("name", [*STATE_INTEGERS, *STATE_NAMES])
def test_every_key_of_a_state_refuses_every_wrong_type(name: str, files: Files, model: Model) -> None:
    saved(model, files.state)
    whole = files.state.read_bytes()
    odd = {
        "string": (crafted_gguf.STRING, crafted_gguf.text(b"x")),
        "bool": (crafted_gguf.BOOL, b"\x01"),
        "float": (crafted_gguf.F32, np.float32(np.nan).tobytes()),
        "array": (crafted_gguf.ARRAY, crafted_gguf.array(crafted_gguf.I64, 1, bytes(8))),
        "strings": (crafted_gguf.ARRAY, crafted_gguf.array(crafted_gguf.STRING, 1, crafted_gguf.text(b"x"))),
    }
    for kind, payload in odd.values():
        files.state.write_bytes(whole)
        files.state.write_bytes(edited_state(files.state, f"state.{name}".encode(), kind, payload))
        assert_refused(lambda: model.load_session(files.state), "state.gguf")


def test_a_model_is_no_state_and_a_state_no_model(files: Files, model: Model) -> None:
    saved(model, files.state)
    for path in (files.model, files.adapter):
        assert_refused(lambda path=path: model.load_session(path), path.name, "general.type")
    assert_refused(lambda: Model(files.state, threads=1), "state.gguf")
    assert_refused(lambda: Model(files.adapter, threads=1), "adapter.gguf")
    assert_refused(lambda: Model(files.model, files.model, threads=1), "adapter.type")


def test_a_fingerprint_of_any_other_text_is_shown_escaped(files: Files, model: Model) -> None:
    saved(model, files.state)
    data = edited_state(files.state, b"state.fingerprint", crafted_gguf.STRING, crafted_gguf.text(b"\x1b[31m\xff"))
    files.state.write_bytes(data)
    assert_refused(lambda: model.load_session(files.state), r"found '\x1b[31m\xff'")


def test_a_name_of_a_megabyte_is_refused_with_a_short_message(files: Files) -> None:
    files.write_model(key("general.architecture", "x" * (1 << 20), Kind.STRING))
    with pytest.raises(LolaError) as caught:
        files.load()
    assert len(str(caught.value)) < 2000
