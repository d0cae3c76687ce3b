"""Weights on which quantizers are compared, and the errors llama.cpp's make on them."""

from __future__ import annotations

import numpy as np

ROWS, COLUMNS = 32, 1024

# Relative errors of ggml_quantize_chunk in llama-cpp-python 0.3.36: format -> (gaussian, student-t, outlier columns),
# and the same with the importance below. tools/bench_quantize.py measures them.
PEER_ERRORS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "Q4_0": ((0.085984, 0.129592, 0.148377), (0.06974, 0.119592, 0.166355)),
    "Q4_1": ((0.078166, 0.100398, 0.109266), (0.054478, 0.073697, 0.090715)),
    "Q5_0": ((0.042722, 0.066249, 0.090757), (0.034737, 0.06058, 0.104895)),
    "Q5_1": ((0.037948, 0.048061, 0.051625), (0.026231, 0.035615, 0.047004)),
    "Q8_0": ((0.005361, 0.008256, 0.011691), (0.005388, 0.008598, 0.013227)),
    "Q2_K": ((0.295867, 0.351708, 0.242949), (0.195274, 0.246685, 0.269904)),
    "Q3_K": ((0.150883, 0.193315, 0.148412), (0.118831, 0.166571, 0.165379)),
    "Q4_K": ((0.071549, 0.092694, 0.09791), (0.05562, 0.077023, 0.095965)),
    "Q5_K": ((0.036139, 0.046584, 0.049488), (0.028708, 0.040785, 0.052525)),
    "Q6_K": ((0.017798, 0.025776, 0.032715), (0.01434, 0.024122, 0.036732)),
}


def samples() -> dict[str, np.ndarray]:
    """float32 [ROWS, COLUMNS] each: the shapes of weights that quantizers meet."""
    rng = np.random.default_rng(0)
    outliers = rng.standard_normal((ROWS, COLUMNS))
    outliers[:, ::101] *= 20.0
    gaussian = rng.standard_normal((ROWS, COLUMNS))
    # Student's t with 3 degrees of freedom: a normal over the root of a third of a chi-square.
    chi_square = (rng.standard_normal((3, ROWS, COLUMNS)) ** 2).sum(axis=0)
    heavy = rng.standard_normal((ROWS, COLUMNS)) / np.sqrt(chi_square / 3.0)
    by_name = {"gaussian": gaussian, "student-t": heavy, "outlier columns": outliers}
    return {name: (values * 0.02).astype(np.float32) for name, values in by_name.items()}


def sample_importance() -> np.ndarray:
    """float32 [COLUMNS], spread over three orders of magnitude like the squared activations of a model."""
    return np.exp(1.5 * np.random.default_rng(1).standard_normal(COLUMNS)).astype(np.float32)


def relative_error(decoded: np.ndarray, weights: np.ndarray, importance: np.ndarray | None) -> float:
    """Root mean square of the difference by that of the weights, each column times its importance."""
    factors = 1.0 if importance is None else importance.astype(np.float64)
    wrong, whole = ((factors * values.astype(np.float64) ** 2).sum() for values in (decoded - weights, weights))
    return float(np.sqrt(wrong / whole))
