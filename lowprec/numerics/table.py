"""Formats given as a table of values: a code is found by comparing with thresholds.

Every deterministic mode is a step function of the ordered inputs. Its steps are computed once, in
exact arithmetic, as the first float from which a value rounds to the next of the table; what runs
on arrays are comparisons of integers. Stochastic rounding divides by the gap, bit by bit.
"""

import functools
import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from lowprec.numerics.float32 import INFINITY, MAX_FINITE, Number
from lowprec.numerics.format import Format
from lowprec.numerics.stochastic import carries


class Lattice(NamedTuple):
    """The finite values of a table in ascending order, between one beyond them on either side.

    Attributes:
      values: exact; the first and the last are where overflow begins, or None where it saturates.
      codes: of the values; 0 for the first and last.
      odd: whether a code counts as odd in ties.
    """

    values: tuple[Fraction | None, ...]
    codes: tuple[int, ...]
    odd: tuple[bool, ...]


@functools.cache
def lattice(fmt: Format) -> Lattice:
    """The table of a format, sorted."""
    assert fmt.table is not None
    finite = [(x, math.copysign(1.0, x), i) for i, x in enumerate(fmt.table) if math.isfinite(x)]
    finite.sort(key=lambda entry: (entry[0], entry[1]))
    # -0 and +0 are one number: only different numbers can be even and odd in turn.
    numbers = [code for x, sign, code in finite if x or sign > 0 or fmt.zero != "signed"]
    alternate = all((a ^ b) & 1 for a, b in itertools.pairwise(numbers))
    # Ranks likewise count zero once.
    ranks = {x: rank for rank, x in enumerate(sorted({x for x, _, _ in finite}))}
    odd = [bool((code if alternate else ranks[x]) & 1) for x, _, code in finite]
    beyond = None if fmt.overflow_value is None else Fraction(fmt.overflow_value)
    return Lattice(
        values=(
            -beyond if beyond and fmt.signed else None,
            *(Fraction(x) for x, _, _ in finite),
            beyond,
        ),
        codes=(0, *(code for _, _, code in finite), 0),
        odd=(not odd[0], *odd, not odd[-1]),
    )


def encode(
    x: Number,
    fmt: Format,
    rounding: str,
    words: jax.Array | None,
    word_bits: int,
    past: Callable[[bool], tuple[int, int]],
) -> jax.Array:
    """Codes (uint32) of numbers; NaN gives an arbitrary one.

    Args:
      x: numbers with significands of 24 bits (uint32) or 53 (uint64).
      past: the codes for what is rounded past the last finite value and for Inf, by whether it is
        on the negative side.
    """
    key = _key(x)
    floor = "toward_negative" if words is not None else rounding
    thresholds = _thresholds(fmt, floor, _is_wide(x))
    rank = _rank(key, thresholds)
    if words is not None:
        rank = rank + _goes_up(x, rank, fmt, rounding, words, word_bits)
    codes = np.array(lattice(fmt).codes, np.uint32)
    (codes[0], below), (codes[-1], above) = past(True), past(False)
    code = jnp.take(jnp.asarray(codes), rank, mode="clip")
    infinite = jnp.where(x.sign != 0, np.uint32(below), np.uint32(above))
    return jnp.where(x.infinite, infinite, code)


def decode(codes: jax.Array, fmt: Format) -> jax.Array:
    """float32 bits of codes below 2^bits."""
    table = np.array(fmt.table, np.float32).view(np.uint32)
    return jnp.take(jnp.asarray(table), codes, mode="clip")


def _is_wide(x: Number) -> bool:
    return x.significand.dtype == jnp.uint64


def _key(x: Number) -> jax.Array:
    """Finite numbers as unsigned integers in their order, -0 before +0.

    The bits of the float of x's precision, negatives complemented. Where that float would be
    subnormal or too large the smallest and the largest float serve: no threshold but that of zero
    lies among them.
    """
    wide = _is_wide(x)
    precision, bias, word = (52, 1022, jnp.uint64) if wide else (23, 126, jnp.uint32)
    top = word(MAX_FINITE if not wide else (0x7FF << 52) - 1)
    field = jnp.clip(x.exponent + bias, 0, 2 * bias + 1).astype(word)
    size = (field << precision) + x.significand.astype(word)
    size = jnp.where(x.exponent < -bias, word(1), jnp.where(x.exponent > bias + 1, top, size))
    size = jnp.where(x.significand == 0, word(0), size)
    half = word(1 << (63 if wide else 31))
    return jnp.where(x.sign != 0, half - word(1) - size, half + size)


def _rank(key: jax.Array, thresholds: NDArray[np.unsignedinteger]) -> jax.Array:
    """How many thresholds lie at or below the key."""
    if len(thresholds) <= 32:
        whole = jnp.asarray(thresholds)
        return jnp.searchsorted(whole, key, side="right", method="compare_all")
    drawers = _drawers(thresholds)
    if drawers is None:
        whole = jnp.asarray(thresholds)
        return jnp.searchsorted(whole, key, side="right", method="scan_unrolled")
    place = (key >> drawers.shift).astype(jnp.int32)
    rank = jnp.asarray(drawers.below).at[place].get(mode="promise_in_bounds")
    for firsts in drawers.thresholds:
        first = jnp.asarray(firsts).at[place].get(mode="promise_in_bounds")
        rank = rank + (key >= first).astype(rank.dtype)
    return rank


class _Drawers(NamedTuple):
    """Thresholds by the leading bits of a key, which are all but a few.

    Attributes:
      shift: of a key to its drawer.
      below: int32, how many thresholds lie in the drawers before each.
      thresholds: for each, one after the other; the largest key where there are no more.
    """

    shift: int
    below: NDArray[np.int32]
    thresholds: tuple[NDArray[np.unsignedinteger], ...]


_DRAWERS, _FULL = 1 << 13, 2


def _drawers(thresholds: NDArray[np.unsignedinteger]) -> _Drawers | None:
    """The fewest drawers that hold few thresholds each; None where too many were needed."""
    bits = 8 * thresholds.dtype.itemsize
    for drawers in (1 << n for n in range(5, _DRAWERS.bit_length())):
        shift = bits + 1 - drawers.bit_length()
        places = (thresholds >> thresholds.dtype.type(shift)).astype(np.int64)
        counts = np.bincount(places, minlength=drawers)
        if counts.max() > _FULL:
            continue
        below = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int32)
        never = np.iinfo(thresholds.dtype).max
        padded = np.append(thresholds, np.full(_FULL, never, thresholds.dtype))
        rows = (np.where(counts > n, padded[below + n], never) for n in range(counts.max()))
        return _Drawers(shift, below, tuple(rows))
    return None


@functools.cache
def _thresholds(fmt: Format, rounding: str, wide: bool) -> NDArray[np.unsignedinteger]:
    """The key of the first float that rounds to each rank above the first."""
    values, _, odd = lattice(fmt)
    keys = []
    for rank in range(len(values) - 1):
        lower, upper = values[rank], values[rank + 1]
        if lower is None or upper is None:
            keys.append(_infinite_key(negative=lower is None, wide=wide))
        elif lower == upper:
            # From -0 to +0.
            keys.append(_key_of(Fraction(0), False, wide) + 1)
        else:
            first, included = _step(lower, upper, odd[rank + 1], rounding)
            keys.append(_key_of(first, not included, wide))
    return np.array(keys, np.uint64 if wide else np.uint32)


def _step(
    lower: Fraction, upper: Fraction, upper_odd: bool, rounding: str
) -> tuple[Fraction, bool]:
    """Where rounding up to `upper` begins between two values, and if that point is included."""
    # Between values of equal size, and different sign, those modes go by the sign of x.
    match rounding:
        case "nearest_even":
            return (lower + upper) / 2, not upper_odd
        case "nearest_away":
            return (lower + upper) / 2, abs(upper) >= abs(lower)
        case "nearest_toward_zero":
            return (lower + upper) / 2, abs(upper) <= abs(lower)
        case "toward_zero" if lower == -upper:
            return Fraction(0), True
        case "toward_zero":
            return (lower, False) if abs(upper) < abs(lower) else (upper, True)
        case "toward_positive":
            return lower, False
        case "toward_negative":
            return upper, True
        case _:
            return (lower, False) if upper_odd else (upper, True)


def _key_of(x: Fraction, above: bool, wide: bool) -> int:
    """The key of the first float at or above x, or strictly above it; of 0 that of -0."""
    kind = np.float64 if wide else np.float32
    nearest = kind(float(x))
    if Fraction(float(nearest)) < x or (above and Fraction(float(nearest)) == x):
        nearest = np.nextafter(nearest, kind(np.inf))
    bits = int(nearest.view(np.uint64 if wide else np.uint32))
    half = 1 << (63 if wide else 31)
    if nearest == 0:
        return half - 1
    return half - 1 - (bits - half) if nearest < 0 else half + bits


def _infinite_key(negative: bool, wide: bool) -> int:
    """A key that no finite number reaches above, and that all reach below."""
    half, infinity = (1 << 63, 0x7FF << 52) if wide else (1 << 31, int(INFINITY))
    return 0 if negative else half + infinity


class _Gaps(NamedTuple):
    """The gap above each rank, in units of 2^unit, in which both of its ends are whole.

    Attributes:
      start: the size of the end nearer zero; of the lower end, negated, where zero lies between.
      size: how long the gap is; 0 where there is none.
      inward: whether the upper end is the one nearer zero.
      straddles: whether zero lies between.
    """

    unit: NDArray[np.int32]
    start: NDArray[np.int32]
    size: NDArray[np.int32]
    inward: NDArray[np.bool_]
    straddles: NDArray[np.bool_]


@functools.cache
def _gaps(fmt: Format) -> _Gaps:
    values = lattice(fmt).values
    rows = []
    for lower, upper in zip(values, (*values[1:], None), strict=True):
        if lower is None or upper is None or lower == upper:
            rows.append((0, 0, 0, False, False))
            continue
        unit = min(_lowest_bit(end) for end in (lower, upper) if end)
        first, last = (int(end / Fraction(2) ** unit) for end in (lower, upper))
        if max(abs(first), abs(last)) >= 1 << 29:
            raise ValueError(
                f"format {fmt.name!r}: stochastic rounding between {float(lower)!r} and "
                f"{float(upper)!r} needs more than 29 bits; use values with fewer bits"
            )
        straddles, inward = first < 0 < last, last <= 0
        start = first if straddles else min(abs(first), abs(last))
        rows.append((unit, start, last - first, inward, straddles))
    unit, start, size, inward, straddles = zip(*rows, strict=True)
    return _Gaps(
        np.array(unit, np.int32),
        np.array(start, np.int32),
        np.array(size, np.int32),
        np.array(inward, bool),
        np.array(straddles, bool),
    )


def _lowest_bit(x: Fraction) -> int:
    """The exponent of the last one of a dyadic number."""
    numerator = abs(x.numerator)
    return (numerator & -numerator).bit_length() - x.denominator.bit_length()


def _goes_up(
    x: Number, rank: jax.Array, fmt: Format, rounding: str, words: jax.Array, word_bits: int
) -> jax.Array:
    """1 where stochastic rounding takes the value above, which lies between `rank` and the next."""
    unit, origin, size, inward, straddles = (
        jnp.take(jnp.asarray(column), rank, mode="clip") for column in _gaps(fmt)
    )
    precision = 52 if _is_wide(x) else 23
    # |x| in units of the gap is significand / 2^point.
    point = precision - x.exponent + unit
    point = jnp.where(x.significand == 0, precision, point)
    whole = _shifted(x.significand, point, precision + 8).astype(jnp.int32)
    whole = jnp.where(point < precision - 30, np.int32(1 << 30), whole)
    # Between a negative and a positive end the way of a negative x is the lower end less |x|.
    back = straddles & (x.sign != 0)
    part = point > 0
    below = x.significand & _ones(point, x.significand)
    borrow = (back & part & (below != 0)).astype(jnp.int32)
    distance = jnp.where(back, -whole - borrow, whole) - origin

    inside = (distance >= 0) & (distance < size)
    start = jnp.where(inside, distance, 0).astype(jnp.uint32)
    division = _Division(start, jnp.zeros_like(start), size, x.significand, point, back)
    # The last of the turns gives the bit after the fraction's.
    division = lax.fori_loop(1, jnp.int32(word_bits + 1), _divide_step, division)
    last = _divide_step(jnp.int32(word_bits + 1), division)
    half = (last.quotient & 1) == 1
    rest = (last.remainder != 0) | _bit(last, jnp.int32(word_bits + 1))[1]
    away = carries(division.quotient, half, rest, words, word_bits, rounding)
    return (inside & (away != inward)).astype(rank.dtype)


class _Division(NamedTuple):
    """A long division of a distance by the gap's size, whose fraction's bits come one by one.

    Attributes:
      remainder, quotient: uint32.
      significand, point: the fraction is what lies below bit `point` of |x|'s significand.
      back: whether it counts from above, as one minus that fraction.
    """

    remainder: jax.Array
    quotient: jax.Array
    size: jax.Array
    significand: jax.Array
    point: jax.Array
    back: jax.Array


def _bit(division: _Division, place: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A bit of the fraction, the first at place 1, and whether any is set after it."""
    below = division.point - place
    lower = (division.significand & _ones(below, division.significand)) != 0
    shifted = _shifted(division.significand, below, 8 * division.significand.dtype.itemsize - 1)
    own = ((shifted & 1) == 1) & (below >= 0)
    return own ^ (division.back & lower), lower


def _divide_step(place: jax.Array, state: _Division) -> _Division:
    doubled = (state.remainder << 1) | _bit(state, place)[0].astype(jnp.uint32)
    size = state.size.astype(jnp.uint32)
    fits = doubled >= size
    return state._replace(
        remainder=jnp.where(fits, doubled - size, doubled),
        quotient=(state.quotient << 1) | fits.astype(jnp.uint32),
    )


def _shifted(significand: jax.Array, right: jax.Array, most: int) -> jax.Array:
    """A shift to the right, or to the left where it is negative, by at most `most` bits."""
    word = significand.dtype
    down = jnp.clip(right, 0, most).astype(word)
    return (significand >> down) << jnp.clip(-right, 0, 31).astype(word)


def _ones(count: jax.Array, like: jax.Array) -> jax.Array:
    """A mask of the lowest bits: none for a negative count, at most all but the top bit."""
    one = jnp.ones_like(like)
    return (one << jnp.clip(count, 0, 8 * like.dtype.itemsize - 1).astype(like.dtype)) - one
