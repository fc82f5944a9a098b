"""Ratios of sums over independent units, in decibels, with intervals by linearisation."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

WIDTH = 2.0
"""Standard errors to each side of a 95 % interval: Student's t of 60 degrees of freedom."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its standard error over the units.

    Attributes:
      value, standard_error: in one unit.
    """

    value: float
    standard_error: float

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval."""
        return self.value - WIDTH * self.standard_error

    @property
    def high(self) -> float:
        """The upper end of the 95 % interval."""
        return self.value + WIDTH * self.standard_error

    @property
    def resolved(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def mean(values: ArrayLike) -> Estimate:
    """The mean over units.

    Raises:
      ValueError: fewer than two units.
    """
    x = _units("values", values)
    return Estimate(float(x.mean()), float(x.std(ddof=1) / math.sqrt(x.size)))


def decibels(numerator: ArrayLike, denominator: ArrayLike) -> Estimate:
    """10 log10(sum numerator / sum denominator), its error over paired units.

    To first order the logarithm of a ratio of sums is the mean of n / mean(n) - d / mean(d), whose
    spread over units gives the standard error; what two sums share, as the same data under two
    quantizers do, cancels in it. Both sums must be positive.

    Args:
      numerator, denominator: (units,).

    Raises:
      ValueError: fewer than two units, shapes that differ, or a sum that is not positive.

    Example:
      >>> decibels([10.0, 30.0], [1.0, 3.0])
      Estimate(value=10.0, standard_error=0.0)
    """
    n, d = _units("numerator", numerator), _units("denominator", denominator)
    if n.shape != d.shape:
        raise ValueError(f"`numerator` has {n.size} units, `denominator` {d.size}")
    if not (n.sum() > 0 and d.sum() > 0):
        raise ValueError(f"sums of {n.sum()!r} and {d.sum()!r} have no ratio in decibels")
    spread = (n / n.mean() - d / d.mean()).std(ddof=1) / math.sqrt(n.size)
    return Estimate(10 * math.log10(n.sum() / d.sum()), float(10 / math.log(10) * spread))


def crossings(
    places: Sequence[float], differences: Sequence[Estimate], *, seed: int, draws: int = 2000
) -> list[tuple[float, float, float]]:
    """Where a curve of estimates changes its sign, each with a 95 % interval.

    Between neighbours the curve is a straight line. The interval is of the zeros next to it when
    every difference is drawn anew from a normal distribution with its standard error.

    Args:
      places: ascending.
      differences: one a place, independent of each other.
      seed, draws: of the resampling.

    Returns:
      (place, low, high) of each crossing, ascending; none where the sign never changes.

    Example:
      >>> crossings([1.0, 2.0], [Estimate(1.0, 0.0), Estimate(-1.0, 0.0)], seed=0)
      [(1.5, 1.5, 1.5)]
    """
    at = np.asarray(places, np.float64)
    values = np.array([x.value for x in differences])
    errors = np.array([x.standard_error for x in differences])
    found = _zeros(at, values)
    rng = np.random.default_rng(seed)
    resampled = [
        _zeros(at, values + errors * rng.standard_normal(values.size)) for _ in range(draws)
    ]
    out = []
    for zero in found:
        nearest = [min(zeros, key=lambda z: abs(z - zero)) for zeros in resampled if zeros]
        low, high = np.quantile(nearest, [0.025, 0.975])
        out.append((zero, float(low), float(high)))
    return out


def _zeros(at: NDArray, values: NDArray) -> list[float]:
    changes = np.flatnonzero(np.signbit(values[1:]) != np.signbit(values[:-1]))
    return [
        float(at[i] + (at[i + 1] - at[i]) * values[i] / (values[i] - values[i + 1]))
        for i in changes
    ]


def _units(name: str, values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or x.size < 2:
        raise ValueError(f"`{name}` of shape {x.shape}; an interval needs two units or more")
    return x
