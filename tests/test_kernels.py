"""Every float kernel of every instruction set of this machine, against float64 NumPy."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from lola_cpp import _core

kernels = _core.testing

ISAS = kernels.available_isas()
SIZES = (1, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100, 257)

# Half an ulp: the largest relative error of one float32 rounding.
FLOAT32_ROUNDING = 2.0**-24
# Sums of n <= 512 products in float32: each of the n additions rounds once, and random errors hardly ever add up to a
# tenth of the bound n * FLOAT32_ROUNDING * sum |a b|, which also holds for the scalar loop.
SUM_TOLERANCE = 64 * FLOAT32_ROUNDING
# The contract of exp_shift, in ulps of the float32 result; x - shift rounds before, so the tests shift exactly.
EXP_ULPS = 4
# exp_shift gives 0 below e^-87.3, just above the smallest normal float32.
EXP_SMALLEST = np.exp(-87.3)
# silu adds to the error of exp a sum, a quotient and a product: 4 + 3 roundings of half an ulp to one ulp.
SILU_TOLERANCE = 2 * 7 * FLOAT32_ROUNDING
# A norm: the sum, then four more roundings.
NORM_TOLERANCE = 16 * FLOAT32_ROUNDING
# A rotation: two products and a sum, each rounded.
ROPE_TOLERANCE = 3 * FLOAT32_ROUNDING

every_isa = pytest.mark.parametrize("isa", ISAS)
every_size = pytest.mark.parametrize("size", SIZES)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def padded(x: np.ndarray, padding: int) -> np.ndarray:
    """A view of x's values in rows that are `padding` longer, where NaN waits for whoever reads too far."""
    wide = np.full((x.shape[0], x.shape[1] + padding), np.nan, np.float32)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def gemm_case(kind: str, m: int, n: int, k: int, padding: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """a, b, c as the kernel takes them, and the float64 product."""
    a, b, c = numbers(m, k, seed=1), numbers(k, n, seed=2), numbers(m, n, seed=3)
    product = a.astype(np.float64) @ b.astype(np.float64)
    if kind != "nt":
        product += c
    a = np.ascontiguousarray(a.T) if kind == "tn" else a
    b = np.ascontiguousarray(b.T) if kind == "nt" else b
    return padded(a, padding), padded(b, padding), padded(c, padding), product


def check_gemm(isa: str, kind: str, m: int, n: int, k: int, padding: int = 0) -> None:
    a, b, c, expected = gemm_case(kind, m, n, k, padding)
    kernels.gemm(isa, kind, a, b, c)
    np.testing.assert_allclose(c, expected, rtol=0, atol=SUM_TOLERANCE * np.sqrt(k) * 4, err_msg=f"{m} {n} {k}")
    if padding:
        assert np.isnan(c.base[:, n:]).all(), f"{m} {n} {k}: wrote between the rows"


@every_isa
@pytest.mark.parametrize("kind", ["nt", "nn", "tn"])
def test_products_of_awkward_sizes_are_right(isa: str, kind: str) -> None:
    for m in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 17):
        for n in SIZES:
            for k in (1, 3, 8, 17, 33, 64, 100):
                check_gemm(isa, kind, m, n, k)


@every_isa
@pytest.mark.parametrize("kind", ["nt", "nn", "tn"])
@pytest.mark.parametrize("shape", [(1, 64, 256), (4, 320, 128), (31, 33, 257), (100, 257, 64), (64, 64, 300)])
def test_products_leave_what_lies_between_rows_alone(isa: str, kind: str, shape: tuple[int, int, int]) -> None:
    check_gemm(isa, kind, *shape, padding=5)


@every_isa
@pytest.mark.parametrize("kind", ["nt", "nn", "tn"])
def test_products_over_nothing_add_nothing(isa: str, kind: str) -> None:
    for m, n in ((1, 5), (9, 70)):
        check_gemm(isa, kind, m, n, 0)


def stored_rows(isa: str, form: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x [rows, columns] as pairs are stored, and the values that this stands for."""
    values = np.empty_like(x)
    if form == "f16":
        halves = x.astype(np.float16)
        return halves.view(np.uint16), halves.astype(np.float32)
    blocks = np.empty((x.shape[0], x.shape[1] // 32 * 34), np.uint8)
    kernels.f32_to_q8_0(isa, x.ravel(), blocks.ravel())
    kernels.q8_0_to_f32(isa, blocks.ravel(), values.ravel())
    return blocks, values


@every_isa
@pytest.mark.parametrize("form", ["f16", "q8_0"])
@pytest.mark.parametrize("kind", ["nt", "nn"])
def test_products_with_stored_pairs_are_products_with_their_values(isa: str, kind: str, form: str) -> None:
    for m in (1, 2, 3, 4, 5, 7, 12):
        for pairs in (1, 3, 8, 17, 100):
            for head_dim in (32, 64, 96, 128) if form == "q8_0" else (1, 7, 20, 64, 96, 100, 128):
                b, values = stored_rows(isa, form, numbers(pairs, head_dim, seed=2))
                a = padded(numbers(m, head_dim if kind == "nt" else pairs, seed=1), 3)
                c = padded(numbers(m, pairs if kind == "nt" else head_dim, seed=3), 3)
                expected = a.astype(np.float64) @ (values.T if kind == "nt" else values).astype(np.float64)
                expected += 0 if kind == "nt" else c
                kernels.gemm_of_pairs(isa, kind, a, b, c)
                bound = SUM_TOLERANCE * np.sqrt(a.shape[1]) * 4
                np.testing.assert_allclose(c, expected, rtol=0, atol=bound, err_msg=f"{m} {pairs} {head_dim}")
                assert np.isnan(c.base[:, c.shape[1] :]).all(), "wrote between the rows"


@every_isa
@every_size
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_exponential_features_are_softmax_in_both_directions(isa: str, size: int, both: bool, normalise: bool) -> None:
    x = numbers(size) * 4
    row = np.concatenate([x, numbers(size, seed=1)]) if both else x.copy()
    kernels.exp_features(isa, row, size, normalise, 1e-3)
    for half, z in zip(row.reshape(-1, size), (x.astype(np.float64), -x.astype(np.float64)), strict=False):
        power = np.exp(z - z.max())
        expected = np.maximum(power / power.sum() if normalise else power, 1e-3)
        np.testing.assert_allclose(half, expected, rtol=SUM_TOLERANCE)


@every_isa
def test_exponential_features_of_nan_are_nan(isa: str) -> None:
    row = np.full(128, np.nan, np.float32)
    kernels.exp_features(isa, row, 64, True, 1e-12)
    assert np.isnan(row).all()


@every_isa
@every_size
def test_reductions_are_right(isa: str, size: int) -> None:
    a, b = numbers(size, seed=1), numbers(size, seed=2)
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    assert kernels.max(isa, a) == a.max()
    assert kernels.max(isa, -np.abs(a)) == (-np.abs(a)).max()
    bound = SUM_TOLERANCE * np.abs(a64 * b64).sum()
    assert kernels.dot(isa, a, b) == pytest.approx(a64 @ b64, rel=0, abs=bound)
    distance = ((a64 - b64) ** 2).sum()
    assert kernels.squared_distance(isa, a, b) == pytest.approx(distance, rel=SUM_TOLERANCE, abs=0)


@every_isa
def test_the_maximum_is_found_wherever_it_is(isa: str) -> None:
    for size in SIZES:
        for place in range(size):
            x = np.full(size, -5, np.float32)
            x[place] = -1
            assert kernels.max(isa, x) == -1


@every_isa
@every_size
def test_elementwise_kernels_round_once(isa: str, size: int) -> None:
    x, y = numbers(size, seed=1), numbers(size, seed=2)
    scaled, sum_ = x.copy(), x.copy()
    kernels.scale(isa, scaled, 0.3)
    kernels.add(isa, sum_, y)
    np.testing.assert_array_equal(scaled, x * np.float32(0.3))
    np.testing.assert_array_equal(sum_, x + y)


@every_isa
@every_size
def test_exp_shift_returns_the_sum(isa: str, size: int) -> None:
    x = numbers(size) * 4
    shift = float(x.max())
    expected = np.exp(x.astype(np.float64) - shift)
    total = kernels.exp_shift(isa, x, shift)
    # x - shift is rounded: an error of half an ulp of up to 32 in the exponent.
    np.testing.assert_allclose(x, expected, rtol=32 * FLOAT32_ROUNDING, atol=EXP_SMALLEST)
    assert total == pytest.approx(expected.sum(), rel=SUM_TOLERANCE)


@every_isa
def test_exp_is_within_four_ulps_over_its_range(isa: str) -> None:
    x = np.concatenate(
        [
            np.linspace(-87.29, 88.72, 400_001, dtype=np.float32),
            np.linspace(-1, 1, 100_001, dtype=np.float32),
            np.float32(2.0) ** np.arange(-149, 6, dtype=np.float32),
            np.array([0.0, -0.0, 88.7228, 88.72283], np.float32),
        ]
    )
    expected = np.exp(x.astype(np.float64))
    result = x.copy()
    kernels.exp_shift(isa, result, 0.0)
    ulps = np.abs(result - expected) / np.spacing(expected.astype(np.float32))
    assert ulps.max() <= EXP_ULPS


@every_isa
def test_exp_of_extremes_is_zero_infinity_or_nan(isa: str) -> None:
    x = np.array([-np.inf, -1e30, -1000, -104, -88, 89, 1e30, np.inf, np.nan] * 3, np.float32)
    kernels.exp_shift(isa, x, 0.0)
    expected = np.array([0, 0, 0, 0, 0, np.inf, np.inf, np.inf, np.nan] * 3, np.float32)
    np.testing.assert_array_equal(x, expected)
    almost_everything_masked = np.full(100, -np.inf, np.float32)
    almost_everything_masked[70] = 3
    assert kernels.exp_shift(isa, almost_everything_masked, 3.0) == 1


@every_isa
@pytest.mark.parametrize("size", [*SIZES, 4096, 16384])
def test_rms_norm_is_accurate_however_long_the_row(isa: str, size: int) -> None:
    x, weight = numbers(size, seed=1) + np.float32(0.5), numbers(size, seed=2)
    out = np.empty_like(x)
    kernels.rms_norm(isa, x, weight, 1e-5, out)
    x64 = x.astype(np.float64)
    expected = x64 / np.sqrt((x64**2).mean() + 1e-5) * weight
    np.testing.assert_allclose(out, expected, rtol=NORM_TOLERANCE)


@every_isa
def test_rms_norm_may_write_over_its_input(isa: str) -> None:
    x, weight = numbers(100, seed=1), numbers(100, seed=2)
    out = np.empty_like(x)
    kernels.rms_norm(isa, x, weight, 1e-5, out)
    kernels.rms_norm(isa, x, weight, 1e-5, x)
    np.testing.assert_array_equal(x, out)


@every_isa
@every_size
def test_silu_gate_is_right(isa: str, size: int) -> None:
    gate, up = numbers(size, seed=1) * 10, numbers(size, seed=2)
    gate64 = gate.astype(np.float64)
    expected = gate64 / (1 + np.exp(-gate64)) * up
    kernels.silu_gate(isa, gate, up)
    np.testing.assert_allclose(gate, expected, rtol=SILU_TOLERANCE)


@every_isa
def test_silu_of_large_numbers_is_zero_or_the_number(isa: str) -> None:
    gate = np.array([-1e30, -200, -89, 0, 89, 200, 1e30] * 3, np.float32)
    expected = np.maximum(gate, 0)
    kernels.silu_gate(isa, gate, np.ones_like(gate))
    # -89 e^-89 is 2e-37, and may be lost.
    np.testing.assert_allclose(gate, expected, rtol=0, atol=2e-37)


@every_isa
@every_size
@pytest.mark.parametrize("interleaved", [True, False])
def test_rope_rotates_pairs_and_leaves_the_rest(isa: str, size: int, interleaved: bool) -> None:
    x = numbers(2 * size + 3)
    angle = numbers(size, seed=1).astype(np.float64) * 3
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    pairs = (slice(0, 2 * size, 2), slice(1, 2 * size, 2)) if interleaved else (slice(0, size), slice(size, 2 * size))
    first, second = (x[part].astype(np.float64) for part in pairs)
    expected = x.astype(np.float64)
    expected[pairs[0]] = first * cosine - second * sine
    expected[pairs[1]] = second * cosine + first * sine
    kernels.rope(isa, x, cosine, sine, interleaved)
    bound = ROPE_TOLERANCE * (np.abs(first) + np.abs(second)).max()
    np.testing.assert_allclose(x, expected, rtol=0, atol=bound)
    np.testing.assert_array_equal(x[2 * size :], numbers(2 * size + 3)[2 * size :])


@every_isa
def test_every_half_survives_the_way_to_float_and_back(isa: str) -> None:
    halves = np.arange(65536, dtype=np.uint16)
    floats, back = np.empty(65536, np.float32), np.empty(65536, np.uint16)
    kernels.f16_to_f32(isa, halves, floats)
    np.testing.assert_array_equal(floats, halves.view(np.float16).astype(np.float32))
    kernels.f32_to_f16(isa, floats, back)
    nan = np.isnan(halves.view(np.float16))
    np.testing.assert_array_equal(back[~nan], halves[~nan])
    assert np.isnan(back[nan].view(np.float16)).all()


@every_isa
@every_size
def test_floats_round_to_halves_as_numpy_rounds_them(isa: str, size: int) -> None:
    ties = np.array([2049, 2051, 65519.996, 65520, -65520, 1e30, 2.0**-25, 3 * 2.0**-25, 1e-9], np.float32)
    x = np.concatenate([ties, numbers(size) * np.float32(1e-6), numbers(size) * 1000])[:size]
    out = np.empty(size, np.uint16)
    kernels.f32_to_f16(isa, x, out)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, x.astype(np.float16).view(np.uint16))
    wide = np.empty(size, np.float32)
    kernels.f16_to_f32(isa, out, wide)
    np.testing.assert_array_equal(wide, out.view(np.float16).astype(np.float32))


def q8_0_round_trip(isa: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    blocks, back = np.empty(x.size // 32 * 34, np.uint8), np.empty_like(x)
    kernels.f32_to_q8_0(isa, x, blocks)
    kernels.q8_0_to_f32(isa, blocks, back)
    return blocks.reshape(-1, 34), back


@every_isa
@pytest.mark.parametrize("magnitude", [1e-7, 1e-3, 1.0, 1000.0])
def test_q8_0_is_within_half_a_step(isa: str, magnitude: float) -> None:
    x = numbers(32 * 33) * np.float32(magnitude)
    blocks, back = q8_0_round_trip(isa, x)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float64)
    largest = np.abs(x.reshape(-1, 32)).max(axis=1, keepdims=True).astype(np.float32)
    np.testing.assert_array_equal(scale, (largest / np.float32(127)).astype(np.float16))
    error = np.abs(back.reshape(-1, 32).astype(np.float64) - x.reshape(-1, 32))
    # Half a step, and what rounding the scale down to float16 leaves beyond level 127 (more for subnormal scales).
    overhang = np.maximum(largest - 127 * scale, 0)
    assert (error <= np.maximum(scale / 2, overhang) * (1 + 4 * FLOAT32_ROUNDING)).all()


@every_isa
def test_q8_0_of_zeros_is_zeros_and_of_nan_is_nan(isa: str) -> None:
    x = np.zeros(160, np.float32)
    x[35] = np.nan
    x[70] = np.inf
    x[100] = 3e38
    x[130] = 1e-12
    blocks, back = q8_0_round_trip(isa, x)
    assert not blocks[0].any()
    assert np.isnan(back[32:96]).all()
    assert back[100] == np.float32(65504 * 127)
    assert not back[128:].any()


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_every_isa_stores_pairs_bit_for_bit_as_scalar(isa: str) -> None:
    x = np.concatenate([numbers(3200), numbers(3200) * np.float32(1e-6), numbers(320) * np.float32(1e6)])
    np.testing.assert_array_equal(q8_0_round_trip(isa, x)[0], q8_0_round_trip("scalar", x)[0])
    np.testing.assert_array_equal(q8_0_round_trip(isa, x)[1], q8_0_round_trip("scalar", x)[1])


def selected_isa(forced: str) -> subprocess.CompletedProcess[str]:
    code = "from lola_cpp import _core; print(_core.testing.selected_isa())"
    environment = {**os.environ, "LOLA_FORCE_ISA": forced}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@every_isa
def test_the_forced_isa_is_the_one_running(isa: str) -> None:
    assert selected_isa(isa).stdout.strip() == isa


def test_the_best_isa_is_chosen_when_none_is_forced() -> None:
    assert selected_isa("").stdout.strip() == ISAS[0]


@pytest.mark.parametrize("name", ["avx9000", "AVX2", "sparc"])
def test_forcing_an_isa_that_is_not_there_says_which_are(name: str) -> None:
    result = selected_isa(name)
    assert result.returncode != 0
    assert "UnsupportedError" in result.stderr
    assert "LOLA_FORCE_ISA" in result.stderr and f"'{name}'" in result.stderr
    assert f"available: {', '.join(ISAS)}" in result.stderr


def test_the_scalar_reference_is_always_there_and_last() -> None:
    assert ISAS[-1] == "scalar"
    assert len(set(ISAS)) == len(ISAS)
