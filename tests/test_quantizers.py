"""The encoders of the block formats: error, edge cases, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGMLQuantizationType

from lola_cpp import FormatError, UnsupportedError, UsageError, _core
from reference.quantizer_samples import PEER_ERRORS, relative_error, sample_importance, samples

FORMATS = list(PEER_ERRORS)
ALLOWED = 1.01  # error here by llama.cpp's


def encode(values: np.ndarray, kind: str, **options: object) -> np.ndarray:
    return _core.encode(np.asarray(values, np.float32), kind, "w", **options)


def round_trip(values: np.ndarray, kind: str, **options: object) -> np.ndarray:
    """What the gguf package, which shares no code with the encoders, reads of the encoded values."""
    return quants.dequantize(encode(values, kind, **options), GGMLQuantizationType[kind])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "importance"])
def test_the_error_is_no_more_than_that_of_llama_cpp_and_one_percent(kind: str, weighted: bool) -> None:
    importance = sample_importance() if weighted else None
    for (name, weights), allowed in zip(samples().items(), PEER_ERRORS[kind][weighted], strict=True):
        error = relative_error(round_trip(weights, kind, importance=importance), weights, importance)
        assert error <= ALLOWED * allowed, name


@pytest.mark.parametrize("kind", FORMATS)
def test_importance_moves_the_error_to_where_it_matters_less(kind: str) -> None:
    weights, importance = samples()["student-t"], sample_importance()
    with_it, without = (round_trip(weights, kind, importance=factors) - weights for factors in (importance, None))
    heavy = importance > np.quantile(importance, 0.9)
    assert np.std(with_it[:, heavy]) < 0.97 * np.std(without[:, heavy])


@pytest.mark.parametrize("kind", FORMATS)
def test_equal_importance_is_no_importance(kind: str) -> None:
    weights = samples()["gaussian"]
    for level in (1e-20, 1.0, 1e20):
        factors = np.full(weights.shape[1], level, np.float32)
        found, wanted = (round_trip(weights, kind, importance=given) for given in (factors, None))
        assert relative_error(found, weights, None) < 1.002 * relative_error(wanted, weights, None)


@pytest.mark.parametrize("kind", FORMATS)
def test_columns_without_importance_stay_near_what_they_were(kind: str) -> None:
    weights, importance = samples()["gaussian"], sample_importance()
    importance[::2] = 0.0
    importance[512:768] = 0.0  # whole blocks of 256 too
    decoded = round_trip(weights, kind, importance=importance)
    assert np.abs(decoded - weights).max() < np.abs(weights).max()


@pytest.mark.parametrize("kind", FORMATS)
def test_zeros_stay_zeros_and_constants_near_constants(kind: str) -> None:
    assert not round_trip(np.zeros((2, 512)), kind).any()
    for constant in (1.0, -1.0, 3e-5, -2.5e4):
        decoded = round_trip(np.full((1, 256), constant), kind)
        np.testing.assert_allclose(decoded, constant, rtol=0.02)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("size", [1e-38, 1e-9, 1e-6, 65504.0])
def test_any_magnitude_gives_finite_weights_no_larger_than_the_largest(kind: str, size: float) -> None:
    rng = np.random.default_rng(2)
    uniform, ends = rng.uniform(-size, size, (64, 512)), rng.choice([-size, -size, 0.9 * size, size], (64, 512))
    for weights in (uniform, ends):
        decoded = round_trip(weights, kind)
        assert np.isfinite(decoded).all()
        assert np.abs(decoded).max() <= 1.5 * size


@pytest.mark.parametrize("kind", FORMATS)
def test_one_outlier_in_a_block_is_kept(kind: str) -> None:
    weights = np.random.default_rng(3).standard_normal((1, 256)).astype(np.float32) * 0.01
    for outlier in (1.0, -1.0):
        weights[0, 77] = outlier
        assert abs(round_trip(weights, kind)[0, 77] - outlier) < 0.15


def test_weights_of_a_grid_are_encoded_exactly() -> None:
    q = np.random.default_rng(4).integers(-8, 8, (8, 32))
    q[:, 0] = -8
    np.testing.assert_array_equal(round_trip(q * 0.25, "Q4_0"), (q * 0.25).astype(np.float32))
    q = np.random.default_rng(4).integers(0, 32, (8, 32))
    q[:, 0], q[:, 1] = 0, 31
    np.testing.assert_array_equal(round_trip(q * 0.5 - 3.0, "Q5_1"), (q * 0.5 - 3.0).astype(np.float32))


@pytest.mark.parametrize("kind", FORMATS)
def test_the_bytes_do_not_depend_on_the_number_of_threads(kind: str) -> None:
    weights = samples()["student-t"]
    one, many = (encode(weights, kind, importance=sample_importance(), threads=threads) for threads in (1, 5))
    np.testing.assert_array_equal(one, many)


def test_the_shape_of_the_rows_is_kept() -> None:
    assert encode(np.ones((2, 3, 512)), "Q4_K").shape == (2, 3, 288)
    assert encode(np.ones(64), "Q8_0").shape == (68,)
    assert encode(np.ones((0, 64)), "Q8_0").shape == (0, 68)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_plain_floats_are_rounded_as_gguf_quants_rounds_them(kind: str) -> None:
    weights = samples()["student-t"]
    wanted = quants.quantize(weights, GGMLQuantizationType[kind]).view(np.uint8).reshape(len(weights), -1)
    np.testing.assert_array_equal(encode(weights, kind), wanted)


@pytest.mark.parametrize("kind", [*FORMATS, "F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_with_its_tensor_and_column(kind: str, value: float) -> None:
    weights = np.ones((3, 512))
    weights[1, 300] = value
    with pytest.raises(
        FormatError, match=rf"tensor 'w': found {str(value).lstrip('+')}.* in column 300, wanted a finite"
    ):
        encode(weights, kind)


@pytest.mark.parametrize("kind", [*FORMATS, "F16"])
def test_a_weight_beyond_float16_is_refused_but_by_the_wide_formats(kind: str) -> None:
    with pytest.raises(FormatError, match=f"found 70000 in column 0, wanted at most 65504, what {kind} can hold"):
        encode(np.full((1, 256), 7e4), kind)
    for wide in ("F32", "BF16"):
        np.testing.assert_allclose(round_trip(np.full((1, 256), 7e4), wide), 7e4, rtol=0.01)


def test_what_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(FormatError, match="tensor 'w': found rows of 48 weights, wanted a multiple of 32 for Q4_0"):
        encode(np.ones((2, 48)), "Q4_0")
    with pytest.raises(UnsupportedError, match="tensor 'w': this build reads IQ4_XS, but cannot write it"):
        encode(np.ones((2, 256)), "IQ4_XS")
    with pytest.raises(UsageError, match="tensor format: found 'Q9_K', wanted one of F32, F16, Q4_0"):
        encode(np.ones((2, 256)), "Q9_K")
    with pytest.raises(UsageError, match="wanted rows of weights"):
        encode(np.array(1.0), "Q8_0")


@pytest.mark.parametrize(
    ("importance", "found"),
    [(np.ones(31), "found 31 numbers, wanted 32"), (np.full(32, -1.0), "found -1"), (np.full(32, np.nan), "found nan")],
)
def test_an_importance_that_is_none_is_refused(importance: np.ndarray, found: str) -> None:
    with pytest.raises(FormatError, match=f"importance of tensor 'w': {found}"):
        encode(np.ones((2, 32)), "Q8_0", importance=importance.astype(np.float32))
