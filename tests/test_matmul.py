"""matmul() of every format and instruction set against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lola_cpp import _core

testing = _core.testing

FORMATS = {row["name"]: row for row in testing.quant_formats()}
ISAS = testing.available_isas()
TOKENS = [1, 2, 3, 7, 8, 33, 100]

# Float32 sums of up to a few hundred terms, relative to the sum of |weight| |activation|.
FLOAT_ROUNDING = 1e-5
# An activation is off by at most 1/254 of the largest of its group. The errors are independent, so their sum over a
# row stays far below the sum of the bounds; normal activations have a largest of about 2.2 times the mean magnitude.
INT8_ROUNDING = 0.02

Weight = tuple[int, NDArray[np.uint8], NDArray[np.float64]]


def make_weight(name: str, rows: int, cols: int, seed: int = 0) -> Weight:
    """(type, bytes, float64 [rows, cols]) of random blocks whose numbers are finite and not huge."""
    row = FORMATS[name]
    rng = np.random.default_rng(seed)
    if row["group_size"] == 0:
        values = rng.standard_normal((rows, cols), dtype=np.float32)
        if name == "F32":
            data = values.view(np.uint8)
        elif name == "F16":
            data = values.astype(np.float16).view(np.uint8)
        else:
            data = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        blocks = data.reshape(-1)
    else:
        count = rows * cols // row["block_size"]
        pool: list[NDArray[np.uint8]] = []
        while len(pool) < count:
            candidates = rng.integers(0, 256, (2 * count, row["block_bytes"]), dtype=np.uint8)
            decoded = testing.decode(row["type"], candidates.tobytes()).reshape(2 * count, -1)
            with np.errstate(invalid="ignore"):
                fine = np.isfinite(decoded).all(axis=1) & (np.abs(decoded).max(axis=1) < 100)
            pool.extend(candidates[fine])
        blocks = np.concatenate(pool[:count])
    decoded = testing.decode(row["type"], blocks.tobytes())
    return row["type"], blocks, decoded.reshape(rows, cols).astype(np.float64)


def round_to_int8(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """x [tokens, cols] with groups of 32 rounded as matmul() rounds them."""
    groups = x.reshape(x.shape[0], -1, 32)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    q = np.rint(groups * inverse).astype(np.float64)
    return (q * (largest / np.float32(127)).astype(np.float64)).reshape(x.shape)


def cols_of(name: str) -> int:
    """A width that ends in the middle of a chunk of 256 where the format allows it."""
    size = FORMATS[name]["block_size"]
    return 301 if size == 1 else 512 if size == 256 else 320


def multiply(isa: str, x: NDArray[np.float32], weights: list[Weight], threads: int = 1) -> list[NDArray[np.float32]]:
    outs = [np.zeros((x.shape[0], w[2].shape[0]), np.float32) for w in weights]
    jobs = [(w[0], w[1], w[2].shape[0], None, out, False) for w, out in zip(weights, outs, strict=True)]
    testing.Matmul(isa, threads).multiply(x, jobs)
    return outs


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FORMATS)
def test_products_equal_float64_products_of_the_rounded_activations(name: str, isa: str) -> None:
    weight = make_weight(name, 37, cols_of(name))
    for tokens in TOKENS:
        x = np.random.default_rng(tokens).standard_normal((tokens, cols_of(name)), dtype=np.float32)
        used = x.astype(np.float64) if FORMATS[name]["group_size"] == 0 else round_to_int8(x)
        bound = np.abs(used) @ np.abs(weight[2]).T
        found = multiply(isa, x, [weight])[0]
        assert (np.abs(found - used @ weight[2].T) <= FLOAT_ROUNDING * bound).all(), tokens
        assert (np.abs(found - x.astype(np.float64) @ weight[2].T) <= INT8_ROUNDING * bound).all(), tokens


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_instruction_set_equals_the_scalar_one(name: str, isa: str) -> None:
    weight = make_weight(name, 21, cols_of(name), seed=1)
    for tokens in (1, 9):
        x = np.random.default_rng(tokens).standard_normal((tokens, cols_of(name)), dtype=np.float32)
        bound = np.abs(x).astype(np.float64) @ np.abs(weight[2]).T
        difference = np.abs(multiply(isa, x, [weight])[0] - multiply("scalar", x, [weight])[0])
        assert (difference <= FLOAT_ROUNDING * bound).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_the_number_of_threads_changes_no_bit(tokens: int, isa: str) -> None:
    weights = [make_weight("Q4_K", 301, 512), make_weight("Q6_K", 77, 512), make_weight("F16", 130, 512)]
    x = np.random.default_rng(0).standard_normal((tokens, 512), dtype=np.float32)
    one = multiply(isa, x, weights, threads=1)
    for threads in (2, 3):
        for a, b in zip(one, multiply(isa, x, weights, threads=threads), strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["Q8_0", "Q5_K", "Q6_K", "IQ3_S", "F32"])
def test_no_bit_of_a_token_depends_on_the_others(name: str, isa: str) -> None:
    weight = make_weight(name, 50, 512)
    x = np.random.default_rng(0).standard_normal((300, 512), dtype=np.float32)
    everything = multiply(isa, x, [weight])[0]
    for begin, end in ((0, 1), (299, 300), (5, 12), (120, 137), (1, 300)):
        part = multiply(isa, np.ascontiguousarray(x[begin:end]), [weight])[0]
        assert part.tobytes() == everything[begin:end].tobytes(), (begin, end)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tokens", [1, 20])
def test_bias_accumulation_strides_and_several_jobs(tokens: int, isa: str) -> None:
    rng = np.random.default_rng(3)
    first, second = make_weight("Q4_0", 19, 96), make_weight("BF16", 5, 96)
    wide = rng.standard_normal((tokens, 200), dtype=np.float32)
    x = wide[:, 7:103]  # unaligned, with gaps between the rows
    bias = rng.standard_normal(19, dtype=np.float32)
    out = rng.standard_normal((tokens, 31), dtype=np.float32)
    other = np.full((tokens, 5), 7, np.float32)
    before = out.copy()
    testing.Matmul(isa, 2).multiply(
        x, [(first[0], first[1], 19, bias, out, True), (second[0], second[1], 5, None, other, False)]
    )
    product = multiply(isa, np.ascontiguousarray(x), [first])[0]
    np.testing.assert_allclose(out[:, :19], before[:, :19] + (product + bias), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(out[:, 19:], before[:, 19:])
    np.testing.assert_allclose(other, x.astype(np.float64) @ second[2].T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tokens", [1, 16])
def test_the_extreme_weight_of_q8_0_is_exact(tokens: int, isa: str) -> None:
    block = np.concatenate([np.array([1], np.float16).view(np.uint8), np.full(32, 0x80, np.uint8)])
    x = np.full((tokens, 32), 127, np.float32)
    x[:, ::2] = -127
    x[:, :3] = 127
    out = np.zeros((tokens, 1), np.float32)
    testing.Matmul(isa, 1).multiply(x, [(FORMATS["Q8_0"]["type"], block, 1, None, out, False)])
    np.testing.assert_array_equal(out[:, 0], -128 * x.sum(axis=1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FORMATS)
def test_blocks_of_nonsense_are_multiplied_without_a_crash(name: str, isa: str) -> None:
    row = FORMATS[name]
    count = 3 * 512 // row["block_size"]
    for tokens in (1, 10):
        for fill in (0, 0x7F, 0xFF):
            data = np.full(count * row["block_bytes"], fill, np.uint8)
            out = np.zeros((tokens, 3), np.float32)
            x = np.ones((tokens, 512), np.float32)
            testing.Matmul(isa, 1).multiply(x, [(row["type"], data, 3, None, out, False)])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tokens", [1, 12])
def test_activations_that_are_not_finite_show_in_their_token_only(tokens: int, isa: str) -> None:
    weight = make_weight("Q4_K", 3, 256)
    for value in (np.nan, np.inf, -np.inf):
        x = np.ones((tokens + 1, 256), np.float32)
        x[0, 40] = value
        out = multiply(isa, x, [weight])[0]
        assert np.isnan(out[0]).all()
        assert np.isfinite(out[1:]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_activations_too_small_to_scale_count_as_zero(isa: str) -> None:
    out = multiply(isa, np.full((1, 256), 1e-38, np.float32), [make_weight("Q6_K", 3, 256)])[0]
    np.testing.assert_array_equal(out, 0)


def test_no_tokens_are_no_work() -> None:
    assert multiply("scalar", np.zeros((0, 256), np.float32), [make_weight("Q4_K", 3, 256)])[0].shape == (0, 3)


@pytest.mark.parametrize("panels", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_a_decoded_row_is_the_row_of_the_weight(name: str, panels: bool) -> None:
    weight = make_weight(name, 19, 768)
    for row in (0, 15, 16, 18):
        decoded = testing.decode_weight_row(weight[0], weight[1], 19, 768, row, panels)
        np.testing.assert_array_equal(decoded, weight[2][row].astype(np.float32))


def test_weights_of_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="wanted"):
        multiply("scalar", np.zeros((1, 256), np.float32), [make_weight("Q4_K", 3, 512)])
