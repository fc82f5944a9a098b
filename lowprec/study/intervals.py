"""Intervals: a paired bootstrap over documents, Student's t, and ranks that own up to ties."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000


def paired_interval(
    difference: NDArray, weight: NDArray, *, seed: int, level: float = 0.95
) -> tuple[float, float, float]:
    """The weighted mean of paired differences with its percentile bootstrap interval.

    Units (documents) are drawn with replacement, so the interval speaks of other documents of the
    same kind, not of other seeds of the model.

    Args:
      difference: (units,) float64, summed over each unit: bits under the recipe minus under bf16.
      weight: (units,) float64: bytes.
      seed: of the resampling.
      level: coverage.

    Returns:
      Mean, low, high: sum(difference) / sum(weight) over the units and over the resamples.

    Raises:
      ValueError: fewer than two units, or shapes differ.

    Example:
      >>> paired_interval(np.ones(5), np.ones(5), seed=0)
      (1.0, 1.0, 1.0)
    """
    if difference.shape != weight.shape or difference.size < 2:
        raise ValueError(
            f"`difference` {difference.shape} and `weight` {weight.shape} must pair 2 units or more"
        )
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, difference.size, (RESAMPLES, difference.size))
    means = difference[drawn].sum(1) / weight[drawn].sum(1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(difference.sum() / weight.sum()), float(low), float(high)


def tied_ranks(intervals: Sequence[tuple[float, float]]) -> list[str]:
    """Ranks from the smallest, as `2` or, where intervals overlap, the range `2-3`.

    Example:
      >>> tied_ranks([(0.0, 1.0), (0.5, 2.0), (3.0, 4.0)])
      ['1-2', '1-2', '3']
    """
    ranks = []
    for low, high in intervals:
        first = 1 + sum(other_high < low for _, other_high in intervals)
        last = len(intervals) - sum(other_low > high for other_low, _ in intervals)
        ranks.append(str(first) if first == last else f"{first}-{last}")
    return ranks


def student_t(probability: float, degrees: int) -> float:
    """The quantile of Student's t at a probability above one half, for whole degrees of freedom.

    The distribution function is the finite sum of Abramowitz and Stegun 26.7.3 and 26.7.4.

    >>> [round(student_t(0.975, n), 3) for n in (1, 2, 4, 30)]
    [12.706, 4.303, 2.776, 2.042]
    """
    if degrees < 1 or not 0.5 < probability < 1:
        raise ValueError(
            f"`probability` = {probability} and `degrees` = {degrees}; use one in (0.5, 1) and at "
            f"least 1"
        )
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if _within(middle, degrees) > 2 * probability - 1 else (middle, high)
        )
    return high


def _within(t: float, degrees: int) -> float:
    """The probability of [-t, t]."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine = math.cos(angle)
    odd = degrees % 2
    term, total = (cosine, cosine if degrees > 1 else 0.0) if odd else (1.0, 1.0)
    for j in range(2 + odd, degrees - 1, 2):
        term *= cosine * cosine * (j - 1) / j
        total += term
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
