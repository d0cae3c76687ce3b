"""Softmax layers over a KV cache, against float64."""

from __future__ import annotations

import numpy as np
import pytest

from reference import lola
from reference.layers import ISAS, Shape, largest_error, random_inputs, random_split, softmax_layer, with_stored_pairs

# float32 rounding through two products, exp (4 ulp) and one division; 1e-6 is usual.
FLOAT32_TOLERANCE = 2e-5

TOKENS = 600  # several pages and tiles of pairs, and pieces of queries


# The largest rounding error of a stored value, relative to the largest of its block of 32: half of a step.
HALF_STEP = {"f32": 0.0, "f16": 2.0**-11, "q8_0": 0.5 / 127 * 1.01}  # 1 %: the scale itself is rounded to 16 bit


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pair_type", HALF_STEP)
def test_pairs_are_stored_to_the_nearest_step_of_their_type(pair_type: str, isa: str) -> None:
    shape = Shape(head_dim=32)
    inputs = random_inputs(shape, TOKENS)
    stored = with_stored_pairs(shape, inputs, isa, pair_type)
    for found, given in ((stored.k, inputs.k), (stored.v, inputs.v)):
        largest = np.abs(given).max(axis=-1, keepdims=True)
        assert (np.abs(found - given) <= HALF_STEP[pair_type] * largest).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pair_type", HALF_STEP)
def test_softmax_layers_agree_with_float64_on_the_stored_pairs(pair_type: str, isa: str) -> None:
    shape, rng = Shape(head_dim=32), np.random.default_rng(3)
    inputs = random_inputs(shape, TOKENS)
    wanted = lola.softmax_attention(*with_stored_pairs(shape, inputs, isa, pair_type).as_float64())
    decoding = [slice(0, 500), *(slice(t, t + 1) for t in range(500, TOKENS))]
    for split in [[slice(0, TOKENS)], random_split(TOKENS, rng), decoding]:
        layer = softmax_layer(shape, isa, pair_type)
        found = np.concatenate([layer.advance(*vars(inputs[part]).values()) for part in split])
        assert largest_error(found, wanted) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("ranges", [1, 2, 7])
def test_a_cache_read_in_ranges_gives_the_same_outputs(ranges: int, isa: str) -> None:
    shape = Shape()
    inputs = random_inputs(shape, TOKENS)
    wanted = lola.softmax_attention(*inputs.as_float64())
    layer = softmax_layer(shape, isa, "f32")
    # The first token alone leaves most ranges empty, and a range of later pairs invisible to the first queries.
    parts = [slice(0, 1), slice(1, 90), slice(90, TOKENS)]
    pieces = [layer.advance(*vars(inputs[part]).values(), ranges) for part in parts]
    assert largest_error(np.concatenate(pieces), wanted) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("isa", ISAS)
def test_huge_logits_do_not_overflow(isa: str) -> None:
    shape = Shape()
    inputs = random_inputs(shape, 100)
    queries = inputs.q * np.float32(300)
    wanted = lola.softmax_attention(np.float64(queries), *inputs.as_float64()[1:])
    found = softmax_layer(shape, isa, "f32").advance(queries, inputs.k, inputs.v)
    # A logit of 1000 has a rounding error of 1e-4 in float32, and so has its exponential.
    assert largest_error(found, wanted) < 2e-3
