"""Confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

_Z = 1.959964  # 95 %


def wilson(right: int, samples: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which holds for few samples and for shares of 0 and 1 too."""
    if samples == 0:
        return 0.0, 1.0
    share, spread = right / samples, _Z * _Z / samples
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / samples + spread / (4 * samples))
    # Rounding would otherwise leave the ends of 0 and 1 a hair outside.
    return max(0.0, middle - half) if right else 0.0, min(1.0, middle + half) if right < samples else 1.0


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean with its standard error; the error of one value is not known (NaN)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
