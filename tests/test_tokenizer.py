"""The tokenizer against llama.cpp's published vectors and against its definitions."""

from __future__ import annotations

import functools
import itertools
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lola_cpp import _core
from lola_cpp._pretokenizers import PRE_TOKENIZATIONS
from lola_cpp.tokenizer import Tokenizer
from reference.tokenizer_metadata import (
    NORMAL,
    byte_level,
    changed,
    sentencepiece,
)

VECTORS = os.environ.get("LOLA_TEST_VECTORS")
needs_vectors = pytest.mark.skipif(VECTORS is None, reason="LOLA_TEST_VECTORS names no folder of ggml-vocab-*.gguf")
VOCABULARIES = ("gpt-2", "llama-bpe", "llama-spm")


@functools.cache
def published(name: str) -> Tokenizer:
    return Tokenizer.from_gguf(_core.GgufFile(Path(str(VECTORS)) / f"ggml-vocab-{name}.gguf"))


def published_pairs(name: str) -> list[tuple[str, list[int]]]:
    """Texts and their tokens, with no special token added or parsed."""
    path = Path(str(VECTORS)) / f"ggml-vocab-{name}.gguf"
    texts = path.with_name(path.name + ".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = path.with_name(path.name + ".out").read_text().split("\n")
    pairs = list(zip(texts, ([int(number) for number in line.split()] for line in lines), strict=True))
    assert len(pairs) >= 40
    return pairs


@needs_vectors
@pytest.mark.parametrize("name", VOCABULARIES)
def test_vectors_of_llama_cpp_encode_exactly(name: str) -> None:
    for text, ids in published_pairs(name):
        assert published(name).encode(text, add_special=False, parse_special=False) == ids, text


@needs_vectors
@pytest.mark.parametrize("name", VOCABULARIES)
def test_vectors_of_llama_cpp_decode_to_their_text(name: str) -> None:
    tokenizer = published(name)
    for text, ids in published_pairs(name):
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(tokenizer.encode(text), skip_special=True) == text


@needs_vectors
@pytest.mark.parametrize(("name", "ids"), [("gpt-2", []), ("llama-bpe", [128000]), ("llama-spm", [1])])
def test_begin_of_text_is_added_where_the_model_wants_it(name: str, ids: list[int]) -> None:
    assert published(name).encode("") == ids


@needs_vectors
def test_a_vocabulary_of_128_thousand_pieces_loads_within_a_second() -> None:
    file = _core.GgufFile(Path(str(VECTORS)) / "ggml-vocab-llama-bpe.gguf")

    def seconds() -> float:
        start = time.process_time()  # of this process alone: other programs must not fail the test
        Tokenizer.from_gguf(file)
        return time.process_time() - start

    assert min(seconds() for _ in range(3)) < 1.0


@needs_vectors
@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_survives_encode_and_decode(text: str) -> None:
    for name in ("gpt-2", "llama-spm"):
        tokenizer = published(name)
        wanted = text.replace("\u2581", " ") if name == "llama-spm" else text  # SentencePiece's own spelling of a space
        assert tokenizer.decode(tokenizer.encode(text, parse_special=False), skip_special=True) == wanted


def merge_by_score(text: str, score: dict[str, float]) -> list[str]:
    """SentencePiece BPE by its definition: always join the neighbours whose joined piece scores best, leftmost."""
    parts = list(text)
    while True:
        joined = [(score[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in score]
        if not joined:
            return parts
        _, at = min(joined, key=lambda pair: (-pair[0], pair[1]))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


WORDS = ("he", "ll", "lo", "\u2581a", "hell", "\u2581\u2581", "ab", "ba", "aba", "abab", "\u2581" * 4, "hello", "cd")


@given(st.text("abcdehlo ", max_size=30))
@settings(deadline=None)
def test_sentencepiece_merges_the_best_score_first(text: str) -> None:
    score = dict.fromkeys("\u2581abcdehlo", -1000.0) | {word: -float(i) for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer.from_gguf(sentencepiece(*WORDS, add_space_prefix=False))
    pieces = [tokenizer.id_to_token(token) for token in tokenizer.encode(text, add_special=False)]
    assert pieces == merge_by_score(text.replace(" ", "\u2581"), score)


def test_sentencepiece_spells_unknown_characters_in_bytes() -> None:
    tokenizer = Tokenizer.from_gguf(sentencepiece())
    ids = tokenizer.encode("a\u00e9", add_special=False)
    assert [tokenizer.id_to_token(token) for token in ids] == ["\u2581", "a", "<0xC3>", "<0xA9>"]
    assert [tokenizer.token_bytes(token) for token in ids] == [b" ", b"a", b"\xc3", b"\xa9"]
    assert tokenizer.decode(ids) == "a\u00e9"


def test_the_space_before_a_text_is_added_and_removed() -> None:
    spaced = Tokenizer.from_gguf(sentencepiece("\u2581a"))
    plain = Tokenizer.from_gguf(sentencepiece("\u2581a", add_space_prefix=False))
    assert spaced.token_bytes(spaced.encode("a", add_special=False)[0]) == b" a"
    assert plain.encode("a", add_special=False) == [plain.token_to_id("a")]
    for tokenizer in (spaced, plain):
        for text in ("a", " a", "  a", "a</s>a", "a</s> a</s>", "</s>"):
            assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


@pytest.mark.parametrize("metadata", [byte_level(), sentencepiece()], ids=["byte level", "sentencepiece"])
def test_special_text_is_plain_text_unless_parsed(metadata: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_gguf(metadata)
    end = tokenizer.token_to_id("</s>")
    assert tokenizer.encode("a</s>b").count(end) == 1
    ids = tokenizer.encode("a</s>b", add_special=False, parse_special=False)
    assert end not in ids
    assert tokenizer.decode(ids, skip_special=True) == "a</s>b"


def test_sentencepiece_text_never_merges_into_a_control_piece() -> None:
    metadata = sentencepiece("</", "</s", "s>")
    metadata = changed(metadata, "tokens", [*metadata["tokenizer.ggml.tokens"], b"<", b"/", b"s", b">"])
    metadata = changed(metadata, "scores", np.zeros(len(metadata["tokenizer.ggml.tokens"]), np.float32))
    kinds = np.append(metadata["tokenizer.ggml.token_type"], [NORMAL] * 4).astype(np.int32)
    tokenizer = Tokenizer.from_gguf(changed(metadata, "token_type", kinds))
    ids = tokenizer.encode("</s>", add_special=False, parse_special=False)
    assert [tokenizer.id_to_token(token) for token in ids] == ["\u2581", "</s", ">"]


def test_user_defined_pieces_are_found_even_without_parsing() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level())
    assert tokenizer.encode("<tool>", add_special=False, parse_special=False) == [2]
    assert tokenizer.decode([2], skip_special=True) == "<tool>"


def test_special_tokens_are_added_as_the_metadata_says() -> None:
    both = Tokenizer.from_gguf(byte_level(add_bos_token=True, add_eos_token=True))
    a = both.token_to_id("a")
    assert both.encode("a") == [0, a, 1]
    assert both.encode("a", add_special=False) == [a]
    assert Tokenizer.from_gguf(byte_level()).encode("a") == [a]
    assert Tokenizer.from_gguf(byte_level(pre="llama-bpe")).encode("a") == [0, a]
    assert Tokenizer.from_gguf(byte_level(pre="llama-bpe", add_bos_token=False)).encode("a") == [a]
    assert Tokenizer.from_gguf(sentencepiece()).encode("")[0] == 1


def test_merges_apply_in_their_order() -> None:
    first = Tokenizer.from_gguf(byte_level("a b", "b c"))
    second = Tokenizer.from_gguf(byte_level("b c", "a b"))
    assert [first.id_to_token(token) for token in first.encode("abc")] == ["ab", "c"]
    assert [second.id_to_token(token) for token in second.encode("abc")] == ["a", "bc"]


def test_a_whole_word_needs_no_merges_where_the_pre_tokenization_says_so() -> None:
    # "abc" is a piece that the merges do not reach: "a b" comes first and "ab c" does not exist.
    metadata = byte_level("a b", "b c")
    tokens = [*metadata["tokenizer.ggml.tokens"], b"abc"]
    metadata = changed(metadata, "tokens", tokens)
    metadata = changed(metadata, "token_type", np.append(metadata["tokenizer.ggml.token_type"], NORMAL))
    for pre, pieces in (("gpt-2", ["ab", "c"]), ("llama-bpe", ["abc"]), ("tekken", ["abc"])):
        tokenizer = Tokenizer.from_gguf(changed(metadata, "pre", pre))
        assert [tokenizer.id_to_token(token) for token in tokenizer.encode("abc", add_special=False)] == pieces


def words(pre: str, text: str) -> list[str]:
    """How a pre-tokenization cuts a text."""
    pieces = PRE_TOKENIZATIONS[pre].pre_tokenizer().pre_tokenize_str(text)
    return [text[start:stop] for _, (start, stop) in pieces]


# Each line shows what tells its tokenizer from the others: digits, contractions, punctuation, combining marks, CJK.
@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-2", "it's 12345  ok", ["it", "'s", " 12345", " ", " ok"]),
        ("gpt-2", "IT'S", ["IT", "'", "S"]),
        ("llama-bpe", "IT'S 12345  ok", ["IT", "'S", " ", "123", "45", " ", " ok"]),
        ("llama-bpe", "a\n\n b!!\n", ["a", "\n\n", " b", "!!\n"]),
        ("qwen2", "x 123", ["x", " ", "1", "2", "3"]),
        ("qwen35", "x\u0301y", ["x\u0301y"]),
        ("qwen2", "x\u0301y", ["x", "\u0301y"]),
        ("starcoder", "a 12", ["a", " ", "1", "2"]),
        ("command-r", "a 12", ["a", " ", "1", "2"]),
        ("falcon", "a 12345!?", ["a", " ", "123", "45", "!?"]),
        ("default", "a 12345 $x", ["a", " ", "123", "45", " ", "$", "x"]),
        ("tekken", "HelloWorld 12/\n", ["Hello", "World", " ", "1", "2", "/\n"]),
        ("gpt-4o", "HelloWorld's 1234/\n", ["Hello", "World's", " ", "123", "4", "/\n"]),
        ("deepseek-v3", "\u4f60\u597d1234abc", ["\u4f60\u597d", "123", "4", "abc"]),
        ("deepseek-llm", "\u4f60\u597dabc\n1", ["\u4f60\u597d", "abc", "\n", "1"]),
        ("deepseek-coder", "x=12\ny", ["x", "=", "1", "2", "\n", "y"]),
        ("bloom", "a, b", ["a", ",", " b"]),
    ],
)
def test_each_pre_tokenization_cuts_words_its_own_way(pre: str, text: str, expected: list[str]) -> None:
    assert words(pre, text) == expected


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZATIONS))
def test_every_pre_tokenization_keeps_every_character(pre: str) -> None:
    text = "\n \n\n\t It's 3 33 333 3333 \u4f60\u597d \u1e9e\u0301 \U0001f999!!/\r\n  'LL we\u2019ll $x_y<|end|> "
    assert "".join(words(pre, text)) == text
    tokenizer = Tokenizer.from_gguf(byte_level("a b", pre=pre))
    assert tokenizer.decode(tokenizer.encode(text), skip_special=True) == text


def test_text_is_composed_where_the_model_was_trained_so() -> None:
    decomposed = "e\u0301"
    for pre, wanted in (("qwen2", "\u00e9"), ("llama-bpe", decomposed)):
        tokenizer = Tokenizer.from_gguf(byte_level(pre=pre))
        assert tokenizer.decode(tokenizer.encode(decomposed), skip_special=True) == wanted


def test_token_bytes_may_be_half_a_character() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level())
    halves = tokenizer.encode("\u00e9")
    assert [tokenizer.token_bytes(token) for token in halves] == [b"\xc3", b"\xa9"]
    assert tokenizer.decode(halves[:1]) == "\ufffd"
    assert tokenizer.token_bytes(0) == b"<s>"


def test_bytes_encode_like_their_text() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level())
    assert tokenizer.encode_bytes("h\u00e9".encode()) == tokenizer.encode("h\u00e9")
    assert tokenizer.encode_bytes(b"a\xff") == tokenizer.encode("a\ufffd")


def test_tokens_that_end_a_generation_are_found_by_metadata_and_by_name() -> None:
    assert Tokenizer.from_gguf(byte_level()).end_ids == {1}
    metadata = byte_level()
    metadata = changed(metadata, "tokens", [*metadata["tokenizer.ggml.tokens"], b"<|im_end|>", b"<|eom_id|>"])
    metadata = changed(metadata, "token_type", np.append(metadata["tokenizer.ggml.token_type"], [NORMAL, NORMAL]))
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.eot_id == tokenizer.token_to_id("<|im_end|>") == 259
    assert tokenizer.end_ids == {1, 259, 260}
    assert 259 not in tokenizer.encode("<|im_end|>", parse_special=False)
