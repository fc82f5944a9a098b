"""Exact arrays and products against fractions, over bit patterns of every size."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lowprec.study.ledger_exact import Exact, exact_product, ratio, to_float
from tests.helpers import SIGN, floats

FINITE = st.integers(0, 0x7F7FFFFF).flatmap(lambda x: st.sampled_from((x, x | SIGN)))
NEAR_ONE = st.integers(0x3E000000, 0x41000000)
SIZE = 24


@st.composite
def matrix(draw: st.DrawFn) -> NDArray[np.float64]:
    """2 x 12 numbers of a few kinds, as wide as products of float32 numbers."""
    kind = draw(st.sampled_from(("any", "near one", "wide", "zeros")))
    bits = draw(st.lists(NEAR_ONE if kind == "near one" else FINITE, min_size=SIZE, max_size=SIZE))
    x = floats(bits).astype(np.float64).reshape(2, 12)
    if kind == "wide":
        # Elements times scales: up to 48 bits, and far below float32's subnormals.
        return x * floats(bits[::-1]).astype(np.float64).reshape(2, 12)
    return x * (np.arange(SIZE).reshape(2, 12) % 5 == 0) if kind == "zeros" else x


def value(x: Exact, *place: int) -> Fraction:
    return int(x.integers[place]) * Fraction(2) ** x.unit


@given(a=matrix(), b=matrix())
def test_products_are_exact(a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    found = exact_product(a, b.T)
    for i, j in np.ndindex(2, 2):
        pairs = zip(a[i].tolist(), b[j].tolist(), strict=True)
        assert value(found, i, j) == sum(Fraction(x) * Fraction(y) for x, y in pairs)


def test_long_and_stacked_products_are_exact() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2, 2, 3000)) * np.exp2(rng.integers(-30, 30, (2, 2, 3000)))
    b = rng.normal(size=(2, 3000, 1))
    found = exact_product(a, b)
    assert found.integers.shape == (2, 2, 1)
    for p, i in np.ndindex(2, 2):
        pairs = zip(a[p, i].tolist(), b[p, :, 0].tolist(), strict=True)
        assert value(found, p, i, 0) == sum(Fraction(x) * Fraction(y) for x, y in pairs)


@given(x=matrix(), y=matrix())
def test_sums_and_products_of_arrays_are_exact(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> None:
    first, second = Exact.of(x), Exact.of(y)
    results = first + second, first - second, first * second
    total = sum((Fraction(v) for v in x[:, 3].tolist()), Fraction(0))
    assert value(first.sum(), 3) == value(Exact.total_of(x, axis=0), 3) == total
    for i, j in np.ndindex(*x.shape):
        p, q = Fraction(float(x[i, j])), Fraction(float(y[i, j]))
        assert [value(r, i, j) for r in results] == [p + q, p - q, p * q]
    np.testing.assert_array_equal(results[0].floats(), [
        [float(Fraction(float(p)) + Fraction(float(q))) for p, q in zip(*rows, strict=True)]
        for rows in zip(x, y, strict=True)
    ])  # fmt: skip


@given(integer=st.integers(-(2**200), 2**200), unit=st.integers(-1200, 700))
def test_numbers_are_correctly_rounded(integer: int, unit: int) -> None:
    assert to_float(integer, unit) == float(integer * Fraction(2) ** unit)


def test_ratios() -> None:
    assert ratio((1, 0), (3, 1)) == 1 / 6 and ratio((3, 70), (1, 69)) == 6.0
    assert ratio((5, 0), (0, 0)) == 0.0
    first = Exact.of(np.array([0.5, 2.0]))
    assert ratio(first.dot(first), (1, -2)) == 17.0
    assert math.isclose(to_float(*first.dot(first)), 4.25)


def test_sums_of_large_integers_are_exact() -> None:
    rng = np.random.default_rng(1)
    integers = rng.integers(-(2**63), 2**63 - 1, (50, 3), endpoint=True)
    units = rng.integers(-3, 4, (50, 3)) * 40
    found = Exact.total(integers, units, axis=0)
    for j in range(3):
        pairs = zip(integers[:, j].tolist(), units[:, j].tolist(), strict=True)
        assert value(found, j) == sum(n * Fraction(2) ** unit for n, unit in pairs)


def test_a_zero_has_no_unit() -> None:
    units = np.array([-500, 3, 900])
    found = Exact.scaled(np.array([0, 5, 0]), units)
    assert found.integers.tolist() == [0, 5, 0] and found.unit == 3
    assert Exact.of(np.zeros(2)).floats().tolist() == [0.0, 0.0]
    with pytest.raises(OverflowError):
        to_float(1, 2000)
