"""Exact arrays: Python integers times one power of two, and exact products of float64 matrices.

Nothing here rounds but `Exact.floats`, and that once.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Exact:
    """integers * 2^unit.

    Attributes:
      integers: an object array of Python integers.
      unit: the power of two that all of them count.

    Example:
      >>> half = Exact.of(np.array([0.5, 3.0]))
      >>> ((half + half) * half).floats()
      array([ 0.5, 18. ])
    """

    integers: NDArray[np.object_]
    unit: int

    @classmethod
    def of(cls, x: ArrayLike) -> "Exact":
        """Finite floats of any type that float64 holds."""
        return cls.scaled(*_integers(np.asarray(x, np.float64)))

    @classmethod
    def total_of(cls, x: ArrayLike, axis: int) -> "Exact":
        """The sum of finite floats along an axis."""
        return cls.total(*_integers(np.asarray(x, np.float64)), axis)

    @classmethod
    def scaled(cls, integers: NDArray[np.int64], units: NDArray[np.int64]) -> "Exact":
        """integers * 2^units, elementwise; the unit of a zero says nothing."""
        some = integers != 0
        lowest = int(units[some].min()) if some.any() else 0
        shifts = np.where(some, units - lowest, 0)
        return cls(_objects(integers) << _objects(shifts), lowest)

    @classmethod
    def total(cls, integers: NDArray[np.int64], units: NDArray[np.int64], axis: int) -> "Exact":
        """The sum of integers * 2^units along an axis of fewer than 2^31.

        What counts one unit is added as 64-bit numbers, in halves: few Python integers are made.
        """
        shape = integers.sum(axis=axis).shape
        found = cls(_objects(np.zeros(shape, np.int64)), 0)
        for unit in np.unique(units[integers != 0]).tolist():
            here = np.where(units == unit, integers, 0)
            high, low = (_objects(x.sum(axis=axis)) for x in (here >> 32, here & 0xFFFFFFFF))
            found = found + cls((high << 32) + low, unit)
        return found

    def at_unit(self, unit: int) -> "Exact":
        """The same numbers, counted in a unit that is no larger."""
        return self if unit == self.unit else Exact(self.integers << (self.unit - unit), unit)

    def __add__(self, other: "Exact") -> "Exact":
        unit = min(self.unit, other.unit)
        return Exact(self.at_unit(unit).integers + other.at_unit(unit).integers, unit)

    def __sub__(self, other: "Exact") -> "Exact":
        return self + Exact(-other.integers, other.unit)

    def __mul__(self, other: "Exact") -> "Exact":
        return Exact(self.integers * other.integers, self.unit + other.unit)

    def sum(self, axis: int = 0) -> "Exact":
        """The sum along one axis."""
        return Exact(self.integers.sum(axis=axis), self.unit)

    def dot(self, other: "Exact") -> tuple[int, int]:
        """The sum of all products, as an integer and the power of two that it counts."""
        return int((self.integers * other.integers).sum()), self.unit + other.unit

    def floats(self) -> Floats:
        """float64, each correctly rounded."""
        rounded = [to_float(int(x), self.unit) for x in self.integers.ravel()]
        return np.array(rounded, np.float64).reshape(self.integers.shape)


def to_float(integer: int, unit: int) -> float:
    """integer * 2^unit, correctly rounded to a float."""
    # A quotient of two Python integers is correctly rounded.
    return float(integer << unit) if unit >= 0 else integer / (1 << -unit)


def ratio(numerator: tuple[int, int], denominator: tuple[int, int]) -> float:
    """The quotient of two numbers (integer, unit), correctly rounded; 0 where the second is 0."""
    (n, first), (d, second) = numerator, denominator
    if d == 0:
        return 0.0
    shift = first - second
    return (n << max(shift, 0)) / (d << max(-shift, 0))


def exact_product(a: Floats, b: Floats) -> Exact:
    """(..., M, K) @ (..., K, N) of finite float64 matrices.

    Both are cut into digits so short that a float64 product of them is a sum of integers below
    2^53: exact in whatever order a library adds.

    Example:
      >>> exact_product(np.array([[1.0, 2.0**-80]]), np.array([[1.0], [2.0**-80]])).integers[0, 0]
      1461501637330902918203684832716283019655932542977
    """
    width = (53 - math.ceil(math.log2(max(a.shape[-1], 2)))) // 2
    (left, low), (right, lower) = _digits(a, width), _digits(b, width)
    places: dict[int, NDArray[np.int64]] = {}
    for p, x in left:
        for q, y in right:
            product = (x @ y).astype(np.int64)
            # Far fewer digits than 2^10 add up at one place.
            places[p + q] = places[p + q] + product if p + q in places else product
    shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    total = _objects(np.zeros(shape, np.int64))
    for place, numbers in places.items():
        total = total + (_objects(numbers) << place * width)
    return Exact(total, low + lower)


def _digits(x: Floats, width: int) -> tuple[Sequence[tuple[int, Floats]], int]:
    """x as the sum of digits * 2^(lowest + place * width), those places that are not all zero."""
    integers, units = _integers(x)
    size, some = np.abs(integers), integers != 0
    if not some.any():
        return [], 0
    # The lowest set bit of a number is a power of two.
    trailing = np.frexp((size & -size).astype(np.float64))[1] - 1
    lowest = int((units + trailing)[some].min())
    highest = int((units + np.frexp(size.astype(np.float64))[1])[some].max())
    found = []
    for place in range(-(-(highest - lowest) // width)):
        shift = units - (lowest + place * width)
        # Of what a shift to the left pushes out, no digit of this place is lost.
        up = np.where(shift < width, size.astype(np.uint64) << np.clip(shift, 0, 63).view("u8"), 0)
        down = size.astype(np.uint64) >> np.clip(-shift, 0, 63).view("u8")
        digit = np.where(shift >= 0, up, down) & np.uint64((1 << width) - 1)
        if digit.any():
            found.append((place, np.where(integers < 0, -1.0, 1.0) * digit.astype(np.float64)))
    return found, lowest


def _integers(x: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Integers of 53 bits, and the powers of two that they count."""
    fraction, exponent = np.frexp(x)
    return (fraction * 2.0**53).astype(np.int64), exponent.astype(np.int64) - 53


def _objects(x: NDArray[np.int64]) -> NDArray[np.object_]:
    return x.astype(object)
