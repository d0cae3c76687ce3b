"""What must hold of LoLA whatever the weights: each invariant of its definition."""

from __future__ import annotations

import numpy as np
import pytest

from lola_cpp import _core
from reference import lola
from reference.layers import (
    ISAS,
    Inputs,
    Shape,
    Weights32,
    engine_layer,
    largest_error,
    random_inputs,
    random_split,
    random_weights,
)

# As in test_lola.py: float32 rounding through two products, exp and a division.
FLOAT32_TOLERANCE = 2e-5

MIXINGS = ["lolcats", "gated", "natural"]
TOKENS = 150


def plain_lolcats(shape: Shape, weights: Weights32, inputs: Inputs, window: int, affine: bool) -> lola.Array:
    """LoLCATs as full attention matrices: each query sees its own chunk and the one before, the rest is linear."""
    q, k, v = inputs.as_float64()
    tokens = len(q)
    chunk = np.arange(tokens) // window
    causal = np.tril(np.ones((tokens, tokens), bool))
    near = causal & (chunk[:, None] - chunk[None, :] <= 1)
    y = np.empty_like(q)
    for head in range(shape.heads):
        kv_head, gate = head * shape.kv_heads // shape.heads, float(weights.gate[head])
        logits = q[:, head] @ k[:, kv_head].T / np.sqrt(shape.head_dim)
        logits = np.where(near, logits, -np.inf)
        soft = gate * np.exp(logits - logits.max(axis=1, keepdims=True))
        phi = [
            np.array([lola.features(shape.feature_map, shape.skip, np.float64(w[head]), row) for row in x])
            for w, x in ((weights.query_map, q[:, head]), (weights.key_map, k[:, kv_head]))
        ]
        linear = np.where(causal & ~near, phi[0] @ phi[1].T, 0) * (1 - gate if affine else 1)
        weight = soft + linear
        y[:, head] = weight @ v[:, kv_head] / weight.sum(axis=1, keepdims=True)
    return y


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("affine", [False, True])
def test_without_a_sparse_cache_lola_is_plain_lolcats(affine: bool, isa: str) -> None:
    shape = Shape()
    weights, inputs = random_weights(shape), random_inputs(shape, TOKENS)
    config = lola.Config(16, 16, 0, mixing="lolcats", affine=affine)
    found = engine_layer(shape, weights, config, isa=isa).advance(inputs.q, inputs.k, inputs.v)
    assert largest_error(found, plain_lolcats(shape, weights, inputs, 16, affine)) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("scope", ["head", "group"])
@pytest.mark.parametrize(
    ("window", "chunk", "sparse"),
    [(160, 16, 4), (150, 1, 0), (16, 16, 150), (8, 1, 150)],
    ids=["window", "strict window", "cache", "cache, strict window"],
)
def test_with_room_for_every_pair_lola_is_softmax(
    window: int, chunk: int, sparse: int, scope: str, mixing: str, isa: str
) -> None:
    shape = Shape()
    inputs = random_inputs(shape, TOKENS)
    config = lola.Config(window, chunk, sparse, scope, mixing=mixing)
    layer = engine_layer(shape, random_weights(shape), config, isa=isa)
    found = layer.advance(inputs.q, inputs.k, inputs.v)
    assert largest_error(found, lola.softmax_attention(*inputs.as_float64())) < FLOAT32_TOLERANCE
    assert layer.counts()["absorbed"] == 0


@pytest.mark.parametrize(("window", "chunk", "sparse"), [(8, 8, 5), (12, 4, 0), (3, 1, 6), (64, 64, 9)])
def test_every_pair_is_in_exactly_one_memory_at_every_position(window: int, chunk: int, sparse: int) -> None:
    """Values of one: the hidden state's sums then count the absorbed pairs, whatever the features."""
    shape = Shape(feature_map="softmax_dim_half")  # its features sum to one
    inputs = random_inputs(shape, TOKENS)
    layer = engine_layer(shape, random_weights(shape), lola.Config(window, chunk, sparse))
    for t in range(TOKENS):
        one = inputs[t : t + 1]
        layer.advance(one.q, one.k, one.v)
        counts, sections = layer.counts(), layer.sections()
        assert sum(counts.values()) == t + 1
        total = sections["hidden_sum"].sum(axis=1)
        if "pending_sum" in sections:
            total = total + sections["pending_sum"].sum(axis=1)
        np.testing.assert_allclose(total, counts["absorbed"], rtol=1e-5)  # float32 sums of at most 150 ones
        if sparse:
            cached = sections["cache_position"][:, : counts["cache"]]
            assert (np.diff(cached, axis=1) > 0).all()
            assert (cached < t + 1 - counts["window"]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scope", ["head", "group"])
@pytest.mark.parametrize(
    ("window", "chunk", "sparse", "policy"),
    [(16, 16, 9, "self_recall"), (24, 8, 9, "self_recall_after"), (70, 70, 5, "weighted_recall"), (5, 1, 7, "random")],
)
def test_one_prefill_and_any_split_remember_and_answer_the_same(
    window: int, chunk: int, sparse: int, policy: str, scope: str, isa: str
) -> None:
    shape, rng = Shape(), np.random.default_rng(5)
    weights, inputs = random_weights(shape), random_inputs(shape, 230)
    config = lola.Config(window, chunk, sparse, scope, policy)
    whole = engine_layer(shape, weights, config, isa=isa)
    wanted, memories = whole.advance(inputs.q, inputs.k, inputs.v), whole.sections()
    token_by_token = [slice(t, t + 1) for t in range(230)]
    for split in [token_by_token, *(random_split(230, rng) for _ in range(5))]:
        layer = engine_layer(shape, weights, config, isa=isa)
        found = np.concatenate([layer.advance(*vars(inputs[part]).values()) for part in split])
        assert largest_error(found, wanted) < FLOAT32_TOLERANCE
        for name, array in layer.sections().items():  # boundaries see the same numbers, to the last bit
            np.testing.assert_array_equal(array, memories[name], err_msg=name)


@pytest.mark.parametrize(("window", "chunk"), [(16, 8), (8, 8), (3, 1)])
def test_pairs_move_at_absolute_chunk_boundaries_only(window: int, chunk: int) -> None:
    shape = Shape()
    inputs = random_inputs(shape, 60)
    layer = engine_layer(shape, random_weights(shape), lola.Config(window, chunk, 0))
    layer.advance(*vars(inputs[:5]).values())  # a first piece that ends inside a chunk
    before = layer.sections()
    for t in range(5, 60):
        layer.advance(*vars(inputs[t : t + 1]).values())
        after = layer.sections()
        name = "pending_sum" if "pending_sum" in after else "hidden_sum"
        moved = (after[name] != before[name]).any()
        assert moved == ((t + 1) % chunk == 0 and t + 1 > window)
        before = after


def test_among_equal_scores_the_older_pair_stays() -> None:
    shape = Shape()
    inputs = random_inputs(shape, TOKENS)
    silent = Inputs(inputs.q, inputs.k, np.zeros_like(inputs.v))  # recalled without error, all of them
    layer = engine_layer(shape, random_weights(shape), lola.Config(8, 8, 5))
    layer.advance(silent.q, silent.k, silent.v)
    assert (layer.sections()["cache_position"] == np.arange(5)).all()
    assert _core.testing.choose_kept([1.0, 2.0, 1.0, 2.0, 1.0], 3) == [True, True, False, True, False]


def test_a_score_that_is_not_a_number_ranks_last() -> None:
    shape = Shape(heads=1, kv_heads=1)
    inputs = random_inputs(shape, 24)
    inputs.k[3] = np.nan
    layer = engine_layer(shape, random_weights(shape), lola.Config(8, 8, 7))
    layer.advance(inputs.q, inputs.k, inputs.v)
    assert layer.counts() == {"window": 8, "cache": 7, "absorbed": 9}
    cached = layer.sections()["cache_position"][0]
    assert 3 not in cached
    assert (np.diff(cached) > 0).all()


def test_no_tokens_change_nothing() -> None:
    shape = Shape()
    inputs = random_inputs(shape, 40)
    layer = engine_layer(shape, random_weights(shape), lola.Config(8, 8, 5))
    layer.advance(inputs.q, inputs.k, inputs.v)
    before = layer.sections()
    assert layer.advance(inputs.q[:0], inputs.k[:0], inputs.v[:0]).shape == (0, shape.heads, shape.head_dim)
    for name, array in layer.sections().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_a_layer_takes_the_bytes_that_its_config_says_and_no_more() -> None:
    shape = Shape(heads=8, kv_heads=2, head_dim=64, map_size=64)
    layer = engine_layer(shape, random_weights(shape), lola.Config(128, 64, 32, "group"), pair_type="f16")
    window = 2 * 2 * (128 + 64) * 64 * 2
    cache = 2 * (2 * 32 * 64 * 2 + 32 * 8 + 32 * 4)
    hidden = 8 * 128 * (64 + 1) * 4
    assert layer.bytes == window + cache + hidden
    before = {name: array.shape for name, array in layer.sections().items()}
    inputs = random_inputs(shape, 400)
    layer.advance(inputs.q, inputs.k, inputs.v)
    assert {name: array.shape for name, array in layer.sections().items()} == before


def features64(weight: np.ndarray, k: np.ndarray) -> np.ndarray:
    """phi [T, 2 f] of the keys [T, d] under softmax_dim, in float64."""
    z = np.float64(k) @ np.float64(weight).T
    halves = [np.exp(z), np.exp(-z)]
    return np.concatenate([half / half.sum(axis=1, keepdims=True) for half in halves], axis=1)


def accumulation_error(tokens: int, chunk: int, isa: str) -> float:
    """The largest relative error of s and Hs after so many tokens, in one tiny head, against float64."""
    block = 50_000
    shape = Shape(heads=1, kv_heads=1, head_dim=4, map_size=4)
    weights, rng = random_weights(shape), np.random.default_rng(9)
    layer = engine_layer(shape, weights, lola.Config(chunk, chunk, 0), isa=isa)
    state, total = np.zeros((8, 4)), np.zeros(8)
    for start in range(0, tokens, block):
        inputs = random_inputs(shape, block, seed=int(rng.integers(1 << 30)))
        inputs.v[:] += 1  # a mean, so that the sums grow
        layer.advance(inputs.q, inputs.k, inputs.v)
        absorbed = block if start + block < tokens else block - layer.counts()["window"]
        phi = features64(weights.key_map[0], inputs.k[:absorbed, 0])
        state, total = state + phi.T @ np.float64(inputs.v[:absorbed, 0]), total + phi.sum(axis=0)
    sections = layer.sections()
    found = {name: sections[f"hidden_{name}"][0] for name in ("state", "sum")}
    if chunk < 64:
        found = {name: array + sections[f"pending_{name}"][0] for name, array in found.items()}
    return max(largest_error(found["state"], state), largest_error(found["sum"], total))


@pytest.mark.parametrize("chunk", [1, 64])
def test_the_hidden_state_keeps_its_precision_over_a_million_tokens(chunk: int) -> None:
    assert accumulation_error(1_000_000, chunk, ISAS[0]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 64, 256])
def test_the_hidden_state_keeps_its_precision_over_ten_million_tokens(chunk: int) -> None:
    assert accumulation_error(10_000_000, chunk, ISAS[0]) < 1e-4
