"""Embeddings: the hidden states that the output matrix sees, pooled or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lola_cpp import Model, UsageError
from reference import tiny_gguf
from reference.device import DEVICE
from reference.tiny_gguf import tiny

CONFIG = tiny(hidden=64, ffn=96, head_dim=32, heads=2, kv_heads=1)
TOKENS = np.random.default_rng(5).integers(2, 272, 40).tolist()
ROUNDING = 1e-4  # of float32 sums over 64 terms, in another order


@pytest.fixture(scope="module")
def default() -> Model:
    return Model.default(threads=1)


def test_the_output_matrix_makes_the_logits_of_them(tmp_path: Path) -> None:
    weights = tiny_gguf.random_weights(CONFIG, std=0.12)
    stored = tiny_gguf.write_model(tmp_path / "m.gguf", CONFIG, weights)
    model = Model(tmp_path / "m.gguf", threads=1)
    hidden = model.embed(TOKENS, pooling="none")
    assert hidden.shape == (len(TOKENS), CONFIG.hidden)
    session = model.session()
    for row, token in zip(hidden, TOKENS, strict=True):
        session.append([token])
        np.testing.assert_allclose(stored["lm_head.weight"] @ row, session.logits, atol=ROUNDING)


def test_pooling_takes_the_mean_or_the_last(default: Model) -> None:
    tokens = [int(t) for t in np.random.default_rng(1).integers(2, 1000, 1100)]
    rows = default.embed(tokens, pooling="none")
    np.testing.assert_allclose(default.embed(tokens), rows.mean(axis=0), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(default.embed(tokens, pooling="last"), rows[-1])


def test_embedding_reads_as_append_does(default: Model) -> None:
    text, told = "import os\n" * 400, list[int]()
    read, embedded = default.session(rewind_budget=1 << 24), default.session(rewind_budget=1 << 24)
    read.append(text)
    embedded.embed(text, progress=told.append)
    assert embedded.tokens == read.tokens and told[-1] == read.position
    if DEVICE == "cpu":
        np.testing.assert_array_equal(embedded.logits, read.logits)
    embedded.rewind(700)
    read.rewind(700)
    assert embedded.tokens == read.tokens


def test_a_conversation_can_be_embedded_where_it_stands(default: Model) -> None:
    session = default.session()
    session.append("def f(x):\n")
    alone = default.embed(default.tokenize("    return x\n", add_special=False))
    assert np.abs(session.embed("    return x\n") - alone).max() > 0.01


def test_wrong_calls_say_what_is_wanted(default: Model) -> None:
    with pytest.raises(UsageError, match="pooling: found 'max', wanted one of mean, last, none"):
        default.embed("x", pooling="max")
    with pytest.raises(UsageError, match="embed: found no tokens"):
        default.embed([])
    with pytest.raises(UsageError, match="tokens: found id -1"):
        default.embed([-1])
    with pytest.raises(TypeError, match="unexpected keyword argument 'poling'"):
        default.embed("x", poling="mean")
