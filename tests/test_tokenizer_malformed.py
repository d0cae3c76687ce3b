"""The tokenizer refuses metadata that is damaged or unknown, and says where."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lola_cpp._core import FormatError, UnsupportedError, UsageError
from lola_cpp.tokenizer import Tokenizer
from reference.tokenizer_metadata import UNKNOWN, byte_level, sentencepiece


def test_an_unknown_pre_tokenization_is_named_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match=r"tokenizer\.ggml\.pre: found 'martian', wanted one of .*qwen2"):
        Tokenizer.from_gguf(byte_level(pre="martian"))


def test_an_unknown_model_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="found 'bert'"):
        Tokenizer.from_gguf(byte_level(model="bert"))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, r"tokenizer\.ggml\.model: found nothing"),
        (byte_level(model=3), r"tokenizer\.ggml\.model: found int"),
        (byte_level(pre=["x"]), r"tokenizer\.ggml\.pre: found list"),
        (byte_level(tokens=None), r"tokenizer\.ggml\.tokens: found nothing"),
        (byte_level(tokens=[]), r"tokenizer\.ggml\.tokens: found no piece"),
        (byte_level(tokens=7), r"tokenizer\.ggml\.tokens: found int"),
        (byte_level(tokens=np.zeros(259, np.int32)), r"tokenizer\.ggml\.tokens: found ndarray"),
        (byte_level(tokens=["text"] * 259), r"tokenizer\.ggml\.tokens: found an array of something else"),
        (byte_level(tokens=[b"a", b"b", b"a"], token_type=None), r"tokens\[0\]: found 'a' again at 2"),
        (byte_level(tokens=[b"a", b"\xff\xfe"], token_type=None), r"tokens\[1\]: found .*UTF-8"),
        (byte_level(tokens=[b"a"], token_type=None), r"bos_token_id|eos_token_id: found 1"),
        (byte_level(token_type=np.ones(3, np.int32)), r"token_type: found 3 values, wanted 259"),
        (byte_level(token_type=np.ones((259, 1), np.int32)), r"token_type: found 259 values"),
        (byte_level(token_type=np.full(259, 9, np.int32)), r"token_type\[0\]: found 9"),
        (byte_level(token_type=np.full(259, -1, np.int32)), r"token_type\[0\]: found -1"),
        (byte_level(token_type=np.ones(259, np.float32)), r"token_type: found .* wanted an array of integers"),
        (byte_level(token_type="x"), r"token_type: found str"),
        (byte_level(merges=None), r"merges: found nothing"),
        (byte_level(merges=[b"ab"]), r"merges\[0\]: found b'ab'"),
        (byte_level(merges=[b"a b", b"a b c", b"d"]), r"merges\[1\]: found b'a b c'"),
        (byte_level("a b", merges=[b"a b", b"a\nb c"]), r"merges\[1\]"),
        (byte_level(merges=[b"\xff a"]), r"merges\[0\]: .*UTF-8"),
        (byte_level(merges=[b"a b"]), r"no piece 'ab'"),
        (byte_level(merges=[b"a zz"]), r"no piece 'zz'"),
        (byte_level(merges=[b" a"]), r"no piece ''"),
        (byte_level(bos_token_id=259), r"bos_token_id: found 259, wanted an id below .* 259"),
        (byte_level(eos_token_id=-1), r"eos_token_id: found -1"),
        (byte_level(eot_token_id="x"), r"eot_token_id: found str"),
        (byte_level(eot_token_id=True), r"eot_token_id: found bool"),
        (byte_level(bos_token_id=None, add_bos_token=True), r"add_bos_token: found true"),
        (byte_level(add_eos_token=1), r"add_eos_token: found int, wanted a bool"),
        (sentencepiece(scores=None), r"scores: found nothing"),
        (sentencepiece(scores=np.zeros(2, np.float32)), r"scores: found 2 values"),
        (sentencepiece(scores=np.full(268, np.nan, np.float32)), r"scores\[0\]: found NaN"),
        (
            sentencepiece(tokens=[b"<0xZZ>"], token_type=np.array([6]), scores=np.zeros(1)),
            r"tokens\[0\]: found '<0xZZ>'",
        ),
        (sentencepiece(bos_token_id=2**40), r"bos_token_id: found"),
    ],
)
def test_damaged_metadata_is_a_format_error_that_says_where(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Tokenizer.from_gguf(metadata)


def test_vocabularies_of_one_piece_work() -> None:
    assert Tokenizer.from_gguf(
        byte_level(tokens=[b"a"], token_type=None, merges=[], bos_token_id=None, eos_token_id=None)
    ).encode("aaa") == [0, 0, 0]
    single = sentencepiece(tokens=[b"<unk>"], token_type=np.array([UNKNOWN]), scores=np.zeros(1, np.float32))
    tokenizer = Tokenizer.from_gguf(single)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, None)
    assert set(tokenizer.encode("hello")) == {0}


def test_ids_out_of_range_and_text_that_utf8_cannot_hold_are_usage_errors() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level())
    for token in (-1, 259, 2**40):
        with pytest.raises(UsageError, match=f"token: found {token}"):
            tokenizer.decode([token])
    with pytest.raises(UsageError, match="lone surrogate at 1"):
        tokenizer.encode("a\ud800")
    assert tokenizer.token_to_id("nothing like it") is None


@given(st.dictionaries(
    st.sampled_from(["model", "pre", "tokens", "token_type", "merges", "scores", "bos_token_id", "add_bos_token"]),
    st.one_of(
        st.integers(), st.booleans(), st.text(max_size=3), st.floats(), st.none(),
        st.lists(st.binary(max_size=4), max_size=4),
        st.lists(st.integers(-3, 9), max_size=4).map(lambda values: np.array(values, np.int32)),
    ),
))  # fmt: skip
@settings(deadline=None)
def test_random_metadata_never_fails_with_another_exception(fields: dict[str, Any]) -> None:
    for base in (byte_level("a b"), sentencepiece("he")):
        metadata = base | {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
        try:
            tokenizer = Tokenizer.from_gguf(metadata)
        except (FormatError, UnsupportedError):
            continue
        assert isinstance(tokenizer.decode(tokenizer.encode("ab", parse_special=False)), str)


def test_the_garbage_collector_stays_as_it_was() -> None:
    Tokenizer.from_gguf(byte_level())
    assert gc.isenabled()
    with pytest.raises(FormatError):
        Tokenizer.from_gguf(byte_level("one"))
    assert gc.isenabled()
    gc.disable()
    try:
        Tokenizer.from_gguf(byte_level())
        assert not gc.isenabled()
    finally:
        gc.enable()
