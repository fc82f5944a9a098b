"""Lloyd-Max: the codebook of least squared error for given numbers, as a number format."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowprec.numerics.format import Format

_SMALLEST = 2.0**-100
"""What a table's value is at least, unless it is 0."""


def lloyd_max(
    samples: ArrayLike,
    bits: int,
    *,
    largest: float | None = None,
    name: str = "lloyd_max",
    max_iterations: int = 1000,
) -> Format:
    """Fits 2^bits levels to samples, as a `Format(table=...)` of ascending values.

    Levels are the means of what is nearest to them, and cells end halfway between levels, until no
    sample changes its cell; the levels are then rounded to float32. It starts at quantiles and at
    levels as dense as the cube root of the density, and keeps the better: with many levels the
    iteration stops early, from quantiles 3 dB short at 8 bits for a million normal samples. Equal
    samples give equal levels. A local minimum, which is the global one for log-concave densities
    such as the normal one, where the iteration reaches it. On the host, in float64.

    Args:
      samples: any shape; finite. For blocks scaled by amax: elements divided by their tile's amax.
      bits: 1 to 8.
      largest: fixes the lowest and the highest level at -largest and +largest, as blocks need whose
        largest magnitude is scaled to the largest level.
      name: of the format.
      max_iterations: where to stop at the latest.

    Raises:
      ValueError: samples that are not finite, or fewer distinct ones than levels.

    Example:
      >>> lloyd_max([-3.0, -2.0, -2.0, -1.0, 1.0, 2.0, 2.0, 3.0], 1).table
      (-2.0, 2.0)
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"`bits` = {bits}; use 1 to 8")
    x = np.sort(np.asarray(samples, np.float64).ravel())
    size = 1 << bits
    if not np.isfinite(x).all():
        raise ValueError("`samples` must be finite, and some are Inf or NaN")
    if len(np.unique(x)) < size:
        raise ValueError(f"`samples` has {len(np.unique(x))} distinct values, {size} are needed")
    if largest is not None and not 0 < largest < math.inf:
        raise ValueError(f"`largest` = {largest!r} must be positive and finite")
    levels = _fit(x, size, largest, max_iterations)
    rounded = np.where(np.abs(levels) < _SMALLEST, 0.0, levels).astype(np.float32)
    return Format(name=name, table=tuple(float(level) for level in rounded))


def _fit(
    x: NDArray[np.float64], size: int, largest: float | None, max_iterations: int
) -> NDArray[np.float64]:
    """The better of what two starts lead to; of the first where they are as good."""
    fits = [
        _iterate(x, _pinned(start, largest), largest, max_iterations)
        for start in (_quantiles(x, size), _cube_roots(x, size))
    ]
    return min(fits, key=lambda levels: _squared_error(x, levels))


def _quantiles(x: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The middles of equally filled parts; moved apart where samples repeat."""
    levels = x[(np.arange(size) * 2 + 1) * len(x) // (2 * size)]
    if len(np.unique(levels)) < size:
        distinct = np.unique(x)
        levels = distinct[(np.arange(size) * 2 + 1) * len(distinct) // (2 * size)]
    return levels


def _cube_roots(x: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Levels as dense as the cube root of the samples' density, the optimum of many levels.

    Between neighbours a gap apart the density is as 1 / gap, and its cube root's integral as
    gap^(2/3).
    """
    filled = np.concatenate([[0.0], np.cumsum(np.diff(x) ** (2 / 3))])
    return np.interp((np.arange(size) + 0.5) / size * filled[-1], filled, x)


def _cells(x: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where the samples nearest to each level begin and end."""
    inner = np.searchsorted(x, (levels[1:] + levels[:-1]) / 2, side="right")
    return np.concatenate([[0], inner, [len(x)]])


def _squared_error(x: NDArray[np.float64], levels: NDArray[np.float64]) -> float:
    return float(np.sum((x - np.repeat(levels, np.diff(_cells(x, levels)))) ** 2))


def _iterate(
    x: NDArray[np.float64],
    levels: NDArray[np.float64],
    largest: float | None,
    max_iterations: int,
) -> NDArray[np.float64]:
    sums = np.concatenate([[0.0], np.cumsum(x)])
    ends: NDArray[np.int64] | None = None
    for _ in range(max_iterations):
        cells = _cells(x, levels)
        if ends is not None and np.array_equal(cells, ends):
            break
        ends = cells
        counts = np.diff(cells)
        means = np.diff(sums[cells]) / np.maximum(counts, 1)
        # An empty cell keeps its level.
        levels = _pinned(np.where(counts > 0, means, levels), largest)
    return levels


def _pinned(levels: NDArray[np.float64], largest: float | None) -> NDArray[np.float64]:
    if largest is None:
        return levels
    pinned = levels.copy()
    pinned[0], pinned[-1] = -largest, largest
    return pinned
