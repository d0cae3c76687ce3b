"""What a session generates, token by token: texts, stop strings, reasons to end, probabilities."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lola_cpp import Model
from reference import tiny_gguf
from reference.session_models import ROUNDING, SAMPLING, assert_same_logits, random_tokens, read

EOS = 1
FIRST_BYTE = 2  # the token of the first of the 256 stand-ins for bytes


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.float64(logits) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def only_tokens(*ids: int) -> dict[int, float]:
    return dict.fromkeys(ids, 1000.0)


def letters() -> list[int]:
    vocabulary = tiny_gguf.vocabulary()
    return [vocabulary.index(letter) for letter in "abcdefgh"]


def test_a_stop_string_ends_the_text_across_token_borders(lola: Model) -> None:
    options = {"logit_bias": only_tokens(*letters()), "top_k": 8, "temperature": 500.0, "seed": 3}
    free = list(lola.session().generate([5], max_tokens=60, **options))
    text = "".join(token.text for token in free)
    assert len(text) == 60
    for stop in (text[20:23], text[30:36], text[5]):
        tokens = list(lola.session().generate([5], max_tokens=60, stop=["zzz", stop], **options))
        assert "".join(token.text for token in tokens) == text[: text.index(stop)]
        assert [token.finish_reason for token in tokens] == [None] * (len(tokens) - 1) + ["stop"]
        assert len(tokens) == text.index(stop) + len(stop)


def test_what_may_be_a_stop_string_is_held_back_and_given_in_the_end(lola: Model) -> None:
    a, b = letters()[:2]
    options = {"logit_bias": only_tokens(a), "stop": "aab"}
    tokens = list(lola.session().generate([b], max_tokens=4, **options))
    assert [token.text for token in tokens] == ["", "", "a", "aaa"]
    assert tokens[-1].finish_reason == "length"


def test_streaming_never_yields_half_a_character(lola: Model) -> None:
    first, second = FIRST_BYTE + 0xC3, FIRST_BYTE + 0xA9  # é
    options = {"logit_bias": only_tokens(first, second), "top_k": 2, "temperature": 500.0, "seed": 1}
    tokens = list(lola.session().generate([5], max_tokens=80, **options))
    raw = bytes(token.id - FIRST_BYTE for token in tokens)
    text = "".join(token.text for token in tokens)
    assert text == raw.decode("utf-8", errors="replace")
    assert text.count("é") > 5
    for token, after in itertools.pairwise(tokens):
        if (token.id, after.id) == (first, second):
            assert (token.text[-1:], after.text) in {("", "é"), ("\ufffd", "é")}  # U+FFFD is of a half before


def test_the_reason_why_a_generation_ends_is_named(lola: Model) -> None:
    ended = list(lola.session().generate([5], max_tokens=9, logit_bias=only_tokens(EOS)))
    assert [(token.id, token.text, token.finish_reason) for token in ended] == [(EOS, "", "stop")]
    going_on = list(lola.session().generate([5], max_tokens=3, stop_at_end=False, logit_bias=only_tokens(EOS)))
    assert [token.finish_reason for token in going_on] == [None, None, "length"]
    assert list(lola.session().generate([5], max_tokens=0)) == []


def test_logprobs_are_the_log_softmax_of_the_logits_whatever_the_sampling(model: Model) -> None:
    session = read(model, random_tokens(30))
    stream = session.generate(max_tokens=8, top_logprobs=5, stop_at_end=False, **SAMPLING)
    for _ in range(8):
        wanted = log_softmax(session.logits)
        token = next(stream)
        assert token.logprob == pytest.approx(wanted[token.id], abs=1e-5)
        ids = [i for i, _ in token.top_logprobs]
        assert ids == list(np.argsort(-wanted, kind="stable")[:5])
        assert [p for _, p in token.top_logprobs] == pytest.approx(list(wanted[ids]), abs=1e-5)


def test_score_gives_the_log_probability_of_each_token_given_all_before(model: Model) -> None:
    tokens = random_tokens(80)
    session, step = read(model, tokens[:10]), read(model, tokens[:10])
    found = session.score(tokens[10:])
    for token, logprob in zip(tokens[10:], found, strict=True):
        assert logprob == pytest.approx(log_softmax(step.logits)[token], rel=ROUNDING)
        step.append([token])
    assert_same_logits(session.logits, step.logits)
    assert session.position == 80
    parts = read(model, tokens[:10])
    cut = np.concatenate([parts.score(tokens[10:11]), parts.score(tokens[11:50]), parts.score(tokens[50:])])
    np.testing.assert_allclose(cut, found, rtol=ROUNDING)
    assert parts.score([]).size == 0
