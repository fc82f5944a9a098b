"""Intervals: a paired bootstrap over documents, and ranks that own up to ties."""

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
