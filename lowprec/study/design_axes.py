"""The axes of a study: lists of values, runs of whole numbers, and ranges that a sample draws from.

An axis turns a number in [0, 1) into one of its values, so that a sample is a set of points of the
unit cube, and a grid is every combination of its values.
"""

import dataclasses
import importlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lowprec.catalogue import decode

Method = Literal["sobol", "random"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Values to choose from, each as likely as the others."""

    values: tuple[Any, ...]

    def at(self, place: float) -> Any:
        """The value at a place in [0, 1)."""
        return self.values[min(int(place * len(self.values)), len(self.values) - 1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, for samples alone.

    Attributes:
      low, high: ends that are both included.
      spacing: `linear`, or `logarithmic`: each octave as likely as the next.
      multiple_of: rounded to whole multiples of it; None leaves real numbers.

    Raises:
      ValueError: ends that are no range, or without a multiple between them.

    Example:
      >>> Range(low=8, high=512, spacing="logarithmic", multiple_of=8).at(0.5)
      64
    """

    low: float
    high: float
    spacing: Literal["linear", "logarithmic"] = "linear"
    multiple_of: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low = {self.low:g}, high = {self.high:g}; low must be below high")
        if self.spacing == "logarithmic" and self.low <= 0:
            raise ValueError(f"low = {self.low:g}; a logarithmic range lies above 0")
        step = self.multiple_of
        if step is not None and (
            step < 1 or math.ceil(self.low / step) > math.floor(self.high / step)
        ):
            raise ValueError(f"multiple_of = {step}; from {self.low:g} to {self.high:g} is none")

    def at(self, place: float) -> float | int:
        """The number at a place in [0, 1)."""
        if self.spacing == "linear":
            value = self.low + place * (self.high - self.low)
        else:
            value = self.low * (self.high / self.low) ** place
        if self.multiple_of is None:
            return value
        step = self.multiple_of
        least, most = math.ceil(self.low / step), math.floor(self.high / step)
        return step * min(max(round(value / step), least), most)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    count: int
    first: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count = {self.count}; at least 1")


Axis = Choice | Range


def whole_numbers(where: str, value: Any, *, least: int) -> Axis:
    """An axis of whole numbers: one, a list, `{ first, count }`, or a `Range` by its keys.

    Raises:
      ValueError: anything else, or a number below `least`.
    """
    if isinstance(value, Mapping):
        if "low" in value or "high" in value:
            found = real_range(where, {"multiple_of": 1} | dict(value))
            if found.low < least:
                raise ValueError(f"{where}: low = {found.low:g}; at least {least}")
            return found
        run = decode(value, _Run, where=where)
        value = list(range(run.first, run.first + run.count))
    values = value if isinstance(value, list) else [value]
    for number in values:
        if type(number) is not int or number < least:
            raise ValueError(f"{where} = {number!r}; use whole numbers of at least {least}")
    return choice(where, values)


def real_range(where: str, value: Mapping[str, Any]) -> Range:
    """A range of numbers by its keys.

    Raises:
      ValueError: a key that does not belong there, or ends that are no range.
    """
    return decode(value, Range, where=where)


def choice(where: str, values: Sequence[Any]) -> Choice:
    """A list of values as an axis.

    Raises:
      ValueError: there are none.
    """
    if not values:
        raise ValueError(f"{where} = []; give at least one value")
    return Choice(values=tuple(values))


def every_combination(axes: Mapping[str, Axis]) -> Iterator[dict[str, Any]]:
    """The grid: the last axis varies fastest.

    Raises:
      ValueError: an axis is a range.
    """
    for name, axis in axes.items():
        if isinstance(axis, Range):
            raise ValueError(f"{name} is a range, which only a [[sample]] draws from; list values")
    values = [axis.values for axis in axes.values() if isinstance(axis, Choice)]
    for combination in itertools.product(*values):
        yield dict(zip(axes, combination, strict=True))


def cube(method: Method, points: int, dimensions: int, seed: int) -> NDArray[np.float64]:
    """(points, dimensions) places in the unit cube.

    `sobol` is a scrambled Sobol sequence (Owen 1998, as in SciPy), of which the first `points` are
    taken; `random` has independent places.
    """
    if method == "random":
        return np.random.default_rng(seed).random((points, dimensions))
    # A second to import, and nothing but a Sobol sample needs it.
    qmc = importlib.import_module("scipy.stats.qmc")
    sequence = qmc.Sobol(dimensions, scramble=True, rng=seed)
    return sequence.random_base2(max(points - 1, 1).bit_length())[:points]
