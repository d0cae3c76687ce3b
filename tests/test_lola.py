"""The engine's LoLA layers against the float64 oracle: outputs, and what is in each memory."""

from __future__ import annotations

import itertools

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
    oracle_layer,
    random_inputs,
    random_weights,
    with_stored_pairs,
)

# float32 rounding through two products, exp (4 ulp) and one division; 1e-6 is usual.
FLOAT32_TOLERANCE = 2e-5
# A recall error is a difference of vectors, which loses up to two digits more.
SCORE_TOLERANCE = 1e-3
# The oracle's choices must be clearer than float32 recall errors are exact, or both may be right and differ.
LEAST_MARGIN = 3e-5

POLICIES = _core.testing.cache_policies()
MIXINGS = ["lolcats", "gated", "natural"]
# (C, eta): terraced, several chunks in the window, strict sliding window.
CHUNKINGS = [(16, 16), (8, 24), (1, 7)]
TOKENS = 90


def clear_cut_case(shape: Shape, config: lola.Config) -> tuple[Weights32, Inputs, lola.Layer, lola.Array]:
    """The first seed at which no choice of the oracle is a near tie, the oracle after its run, and its outputs."""
    for seed in range(20):
        weights, inputs = random_weights(shape, seed), random_inputs(shape, TOKENS, seed)
        oracle = oracle_layer(shape, weights, config)
        wanted = oracle.advance(*inputs.as_float64())
        if oracle.smallest_margin > LEAST_MARGIN:
            return weights, inputs, oracle, wanted
    raise AssertionError("every seed has a near tie")


def check_against_oracle(shape: Shape, config: lola.Config) -> None:
    weights, inputs, oracle, wanted = clear_cut_case(shape, config)
    for isa in ISAS:
        layer = engine_layer(shape, weights, config, isa=isa)
        found = layer.advance(inputs.q, inputs.k, inputs.v)
        assert largest_error(found, wanted) < FLOAT32_TOLERANCE, isa
        check_memories(shape, layer, oracle)


def check_memories(shape: Shape, layer: _core.testing.LolaLayer, oracle: lola.Layer) -> None:
    sections, counts = layer.sections(), layer.counts()
    owner_heads = 1 if oracle.config.scope == "head" else shape.heads // shape.kv_heads
    for head, memory in enumerate(oracle.memories):
        assert counts == {
            "window": len(memory.window),
            "cache": len(memory.cache),
            "absorbed": memory.absorbed,
        }
        check_window(sections, head * shape.kv_heads // shape.heads, memory)
        if memory.cache:
            check_cache(sections, head // owner_heads, memory)
        if memory.absorbed:
            state, total = sections["hidden_state"][head], sections["hidden_sum"][head]
            if "pending_state" in sections:
                state, total = state + sections["pending_state"][head], total + sections["pending_sum"][head]
            assert largest_error(state, memory.state) < FLOAT32_TOLERANCE
            assert largest_error(total, memory.sum) < FLOAT32_TOLERANCE


def check_window(sections: dict[str, np.ndarray], kv_head: int, memory: lola.HeadMemory) -> None:
    capacity = sections["window_k"].shape[1]
    for pair in memory.window:
        np.testing.assert_array_equal(sections["window_k"][kv_head, pair.position % capacity], pair.k)
        np.testing.assert_array_equal(sections["window_v"][kv_head, pair.position % capacity], pair.v)


def check_cache(sections: dict[str, np.ndarray], owner: int, memory: lola.HeadMemory) -> None:
    count = len(memory.cache)
    found = {name: sections[f"cache_{name}"][owner, :count] for name in ("position", "k", "v", "score")}
    np.testing.assert_array_equal(found["position"], [pair.position for pair in memory.cache])
    np.testing.assert_array_equal(found["k"], [pair.k for pair in memory.cache])
    np.testing.assert_array_equal(found["v"], [pair.v for pair in memory.cache])
    scores = np.array([pair.score for pair in memory.cache])
    np.testing.assert_allclose(found["score"], scores, rtol=SCORE_TOLERANCE, atol=SCORE_TOLERANCE)


@pytest.mark.parametrize("scope", ["head", "group"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_keeps_and_absorbs_the_pairs_that_the_oracle_does(policy: str, scope: str) -> None:
    for case, ((chunk, window), sparse) in enumerate(itertools.product(CHUNKINGS, [5, 24])):
        mixing = MIXINGS[case % len(MIXINGS)]
        config = lola.Config(window, chunk, sparse, scope, policy, mixing, seed=11)
        check_against_oracle(Shape(), config)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize(("chunk", "window"), CHUNKINGS)
def test_every_mixing_agrees_with_the_oracle(chunk: int, window: int, mixing: str, affine: bool) -> None:
    for sparse in [0, 6, TOKENS + 1]:
        check_against_oracle(Shape(), lola.Config(window, chunk, sparse, mixing=mixing, affine=affine))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    "feature_map", ["softmax_dim", "softmax_dim_half", "exp_dim", "exp_dim_half", "relu", "pos_elu"]
)
def test_every_feature_map_agrees_with_the_oracle(feature_map: str, skip: bool) -> None:
    shape = Shape(feature_map=feature_map, skip=skip, map_size=16 if skip else 10)
    check_against_oracle(shape, lola.Config(16, 16, 6))


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "map_size"), [(1, 1, 1, 1), (3, 3, 5, 7), (6, 1, 24, 3)])
def test_odd_shapes_agree_with_the_oracle(heads: int, kv_heads: int, head_dim: int, map_size: int) -> None:
    shape = Shape(heads, kv_heads, head_dim, map_size, feature_map="exp_dim")
    check_against_oracle(shape, lola.Config(12, 6, 4, scope="group"))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pair_type", ["f16", "q8_0"])
def test_everything_reads_the_pair_as_it_was_rounded_on_entry(pair_type: str, isa: str) -> None:
    shape, config = Shape(head_dim=32), lola.Config(16, 8, 5)
    weights, inputs = random_weights(shape), random_inputs(shape, TOKENS)
    stored = engine_layer(shape, weights, config, isa=isa, pair_type=pair_type)
    exact = engine_layer(shape, weights, config, isa=isa, pair_type="f32")
    pairs = with_stored_pairs(shape, inputs, isa, pair_type)
    found, wanted = stored.advance(inputs.q, inputs.k, inputs.v), exact.advance(pairs.q, pairs.k, pairs.v)
    np.testing.assert_array_equal(found, wanted)
    for name, array in exact.sections().items():
        np.testing.assert_array_equal(stored.sections()[name], array, err_msg=name)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mixing", ["gated", "natural"])
def test_huge_logits_neither_overflow_nor_lose_the_exact_pairs(mixing: str, isa: str) -> None:
    shape, config = Shape(), lola.Config(8, 8, 4, mixing=mixing)
    weights, inputs = random_weights(shape), random_inputs(shape, 40)
    scaled = Inputs(inputs.q * np.float32(300), inputs.k, inputs.v)  # logits of several hundred, both signs
    wanted = oracle_layer(shape, weights, config).advance(*scaled.as_float64())
    found = engine_layer(shape, weights, config, isa=isa).advance(scaled.q, scaled.k, scaled.v)
    # A logit of 1000 has a rounding error of 1e-4 in float32, and so has its exponential.
    assert largest_error(found, wanted) < 2e-3


@pytest.mark.parametrize("gate", [0.0, 1.0])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("mixing", MIXINGS)
def test_gates_at_the_ends_of_their_range_agree_with_the_oracle(mixing: str, affine: bool, gate: float) -> None:
    shape, config = Shape(), lola.Config(8, 8, 4, mixing=mixing, affine=affine)
    weights, inputs = random_weights(shape), random_inputs(shape, 40)
    weights = Weights32(weights.query_map, weights.key_map, np.full(shape.heads, gate, np.float32), weights.kappa)
    queries = inputs.q * np.float32(60)  # exp(-max) underflows in float32, and not in the oracle
    wanted = oracle_layer(shape, weights, config).advance(np.float64(queries), *inputs.as_float64()[1:])
    found = engine_layer(shape, weights, config).advance(queries, inputs.k, inputs.v)
    assert largest_error(found, wanted) < 2e-4  # as above, with logits a fifth as large


def test_another_seed_makes_another_random_sample() -> None:
    shape, inputs = Shape(), random_inputs(Shape(), TOKENS)
    positions = []
    for seed in (1, 2):
        layer = engine_layer(shape, random_weights(shape), lola.Config(8, 8, 6, policy="random", seed=seed))
        layer.advance(inputs.q, inputs.k, inputs.v)
        positions.append(layer.sections()["cache_position"])
    assert (positions[0] != positions[1]).any()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"window_size": 0}, "window_size: found 0, wanted 1 to"),
        ({"chunk_size": 0}, "chunk_size: found 0, wanted 1 to"),
        ({"window_size": 20}, "window_size: found 20, wanted a multiple of chunk_size, 8"),
        ({"sparse_size": -1}, "sparse_size: found -1, wanted 0 to"),
        ({"sparse_size": 1 << 40}, "sparse_size: found 1099511627776, wanted 0 to"),
        ({"policy": "best"}, "policy: found 'best', wanted one of none, first, recent, random, self_recall"),
        ({"scope": "layer"}, "scope: found 'layer', wanted one of head, group"),
        ({"mixing": "half"}, "mixing: found 'half', wanted one of lolcats, gated, natural"),
    ],
)
def test_a_wrong_config_is_refused_with_what_was_found_and_wanted(change: dict[str, object], problem: str) -> None:
    config = lola.Config(**{**vars(lola.Config(16, 8, 4)), **change})
    with pytest.raises(_core.UsageError, match=problem):
        engine_layer(Shape(), random_weights(Shape()), config)


@pytest.mark.parametrize(
    ("shape", "pair_type", "problem"),
    [
        (Shape(heads=3), "f32", "heads: found 3, wanted a multiple of kv_heads, 2"),
        (Shape(kv_heads=0), "f32", "kv_heads: found 0, wanted 1 to"),
        (Shape(head_dim=0), "f32", "head_dim: found 0, wanted 1 to"),
        (Shape(map_size=0), "f32", "feature_size: found 0, wanted 1 to"),
        (Shape(), "q8_0", "pair_type q8_0: found head_dim 16, wanted a multiple of 32"),
        (Shape(), "q4_0", "pair_type: found 'q4_0', wanted one of f32, f16, q8_0"),
        (Shape(feature_map="cosine"), "f32", "feature map: found 'cosine', wanted one of softmax_dim"),
    ],
)
def test_a_wrong_shape_is_refused_with_what_was_found_and_wanted(shape: Shape, pair_type: str, problem: str) -> None:
    with pytest.raises(_core.UsageError, match=problem):
        engine_layer(shape, random_weights(shape), lola.Config(16, 8, 4), pair_type=pair_type)
