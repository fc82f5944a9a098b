"""A cast as a step function: where its code changes, found in exact fractions.

Over the float32 patterns of one sign, in order, the code of a cast to a number format changes at a
few thresholds alone. They are placed here from the exact values of the codes and the definition of
the rounding mode; neither the codec nor the oracle's `encode` has a say in it.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowprec.numerics import oracle
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.rounding import Overflow, Rounding

INFINITY = 0x7F800000
LARGEST = INFINITY - 1
SIGN = 0x80000000


@dataclasses.dataclass(frozen=True)
class Steps:
    """The codes of all float32 patterns of one sign.

    Attributes:
      first: (n,) int64, ascending from 0: the first pattern of each step, without its sign.
      codes: (n,) uint32, the code of each; neighbours differ.
      identity: whether on the first step, which is that of all finite values, the code counts on
        with the pattern: float32's steps are single patterns.
    """

    first: NDArray[np.int64]
    codes: NDArray[np.uint32]
    identity: bool = False

    def at(self, magnitudes: NDArray) -> NDArray[np.uint32]:
        """The codes of patterns without their sign, any shape."""
        place = np.searchsorted(self.first, magnitudes, side="right") - 1
        return self.codes[place] + (self.rises_at(magnitudes) * magnitudes).astype(np.uint32)

    def rises_at(self, magnitudes: NDArray) -> NDArray[np.int64]:
        """1 where the code counts on with the pattern, else 0."""
        return (self.identity & (magnitudes < INFINITY)).astype(np.int64)


def steps(fmt: Format, rounding: Rounding, overflow: Overflow, *, negative: bool) -> Steps:
    """The step function of a cast over the patterns of one sign, NaN included.

    Codes for overflow, Inf and NaN, which are chosen and not rounded, are the oracle's.

    Args:
      fmt: a format.
      rounding: a deterministic mode.
      overflow: a policy.
      negative: which sign.

    Example:
      >>> from lowprec.numerics import get_format
      >>> e2m1 = steps(get_format("e2m1"), "nearest_even", "saturate", negative=False)
      >>> e2m1.first[:-1].astype(np.uint32).view(np.float32).round(4).tolist()
      [0.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    """

    def code(pattern: int) -> int:
        return oracle.encode(value(pattern, negative), fmt, rounding=rounding, overflow=overflow)

    specials = (INFINITY, INFINITY + 1)
    if _is_float32(fmt):
        codes = [code(0), *map(code, specials)]
        return Steps(np.array([0, *specials]), np.array(codes, np.uint32), identity=True)
    if negative and not fmt.signed:
        starts, codes = [0, 1], [code(0), code(LARGEST)]
    else:
        side = _side(fmt, negative)
        starts = [0, *np.minimum(side.thresholds(rounding), INFINITY)]
        codes = [*side.codes, code(LARGEST)]
        if fmt.table is not None and fmt.zero == "none":
            inner = _around_zero(fmt, rounding, negative)
            starts = [*(first for first, _ in inner), side.at[0], *starts[1:]]
            codes = [*(inner_code for _, inner_code in inner), *codes]
    first = np.array([*starts, *specials])
    codes = np.array([*codes, *map(code, specials)], np.uint32)
    # Of steps that begin at one pattern the last counts: float32 has nothing between the others.
    seen = np.append(np.diff(first) > 0, True)
    first, codes = first[seen], codes[seen]
    changed = np.append(True, np.diff(codes.astype(np.int64)) != 0)
    return Steps(first[changed].astype(np.int64), codes[changed])


def _is_float32(fmt: Format) -> bool:
    return dataclasses.replace(get_format("float32"), name=fmt.name) == fmt


def value(pattern: int, negative: bool) -> float:
    """The float32 of a pattern and a sign; NaN has the sign too."""
    bits = pattern | (SIGN if negative else 0)
    if pattern > INFINITY:
        return math.copysign(math.nan, -1.0 if negative else 1.0)
    return float(np.uint32(bits).view(np.float32))


@dataclasses.dataclass(frozen=True)
class _Side:
    """The finite values of one sign by magnitude, and the patterns from them on.

    Attributes:
      codes: (n,) uint32.
      odd: (n,) whether each is odd where values are tied.
      at: (n + 1,) the first pattern at or above each value; last the value that would follow.
      met: (n + 1,) whether that pattern is the value itself.
      middle, middle_met: (n,) the same for the points halfway to the next value.
    """

    codes: NDArray[np.uint32]
    odd: NDArray[np.bool_]
    at: NDArray[np.int64]
    met: NDArray[np.bool_]
    middle: NDArray[np.int64]
    middle_met: NDArray[np.bool_]
    away_is_up: bool

    def thresholds(self, rounding: Rounding) -> NDArray[np.int64]:
        """(n,) the first pattern that leaves each value for the next."""
        just_above, next_value = self.at[:-1] + self.met[:-1], self.at[1:]
        match rounding:
            case "nearest_even":
                return self.middle + (self.middle_met & ~self.odd)
            case "nearest_away":
                return self.middle
            case "nearest_toward_zero":
                return self.middle + self.middle_met
            case "toward_zero":
                return next_value
            case "toward_positive":
                return just_above if self.away_is_up else next_value
            case "toward_negative":
                return next_value if self.away_is_up else just_above
            case "to_odd":
                return np.where(self.odd, next_value, just_above)
        raise ValueError(f"`rounding` = {rounding!r} is no deterministic mode")


@functools.lru_cache(maxsize=8)
def _side(fmt: Format, negative: bool) -> _Side:
    ladder = _ladder(fmt)
    rungs = [x for x in ladder if x.negative == negative or (x.value == 0 and x.both)]
    if negative:
        rungs.reverse()
    values = [abs(x.value) for x in rungs]
    values.append(_next_value(fmt, values[-1]))
    at, met, middle, middle_met = _placed(tuple(values))
    codes = np.array([x.code for x in rungs], np.uint32)
    odd = np.array([x.odd for x in rungs], bool)
    return _Side(codes, odd, at, met, middle, middle_met, not negative)


class _Rung(NamedTuple):
    """A finite value: its code, its sign, whether it is odd, and whether it serves both signs."""

    value: Fraction
    negative: bool
    code: int
    odd: bool
    both: bool


@functools.lru_cache(maxsize=2)
def _ladder(fmt: Format) -> list[_Rung]:
    """The finite values of a format that a cast can return, ascending, -0 before +0."""
    exact = ((oracle.decode(code, fmt), code) for code in range(2**fmt.bits))
    finite = [(x.value, not x.negative, code) for x, code in exact if x.kind == "finite"]
    finite.sort()
    if fmt.narrow_range:
        del finite[0]
    both = fmt.zero == "unsigned"
    numbers = [code for x, positive, code in finite if x != 0 or positive]
    in_turn = all((a ^ b) & 1 for a, b in itertools.pairwise(numbers))
    # The parity of a table is that of the rank where its codes do not go up in turn.
    by_code = fmt.table is None or in_turn
    rank = {code: place for place, code in enumerate(numbers)}
    return [
        _Rung(x, not positive, code, (code if by_code else rank.get(code, 0)) % 2 == 1, both)
        for x, positive, code in finite
    ]


def _next_value(fmt: Format, largest: Fraction) -> Fraction:
    """The value that would follow the largest one of a sign; beyond float32 where none does."""
    if fmt.table is not None:
        return Fraction(2**200 if fmt.overflow_value is None else fmt.overflow_value)
    exponent = largest.numerator.bit_length() - largest.denominator.bit_length()
    if fmt.subnormals:
        exponent = max(exponent, 1 - fmt.bias)
    return largest + Fraction(2) ** (exponent - fmt.mantissa_bits)


def _around_zero(fmt: Format, rounding: Rounding, negative: bool) -> list[tuple[int, int]]:
    """First pattern and code of the steps between zero and the first value of a sign.

    Of a table without zero: there one gap reaches from the largest negative value, the lower, to
    the smallest positive one, the upper.
    """
    ladder = _ladder(fmt)
    upper = next((x for x in ladder if x.value > 0), ladder[-1])
    lower = next((x for x in reversed(ladder) if x.value < 0), upper)
    turn, upper_from_turn = _turn(lower, upper, rounding)
    pattern, met = first_pattern(abs(turn))
    if turn == 0:
        at_zero = upper if upper_from_turn else lower
        return [(0, at_zero.code), (1, (lower if negative else upper).code)]
    if (turn < 0) != negative:
        return [(0, (upper if turn < 0 else lower).code)]
    # Moving away from zero, the turn is passed at its pattern or one later.
    late = met and upper_from_turn == (turn < 0)
    inside, outside = (upper, lower) if turn < 0 else (lower, upper)
    return [(0, inside.code), (pattern + late, outside.code)]


def _turn(lower: _Rung, upper: _Rung, rounding: Rounding) -> tuple[Fraction, bool]:
    """Where between two values around zero the upper one is taken, and whether from there on."""
    low, high = -lower.value, upper.value
    always, never = (lower.value, False), (upper.value, True)
    match rounding:
        case "nearest_even":
            return (high - low) / 2, lower.odd
        case "nearest_away":
            return (high - low) / 2, high >= low
        case "nearest_toward_zero":
            return (high - low) / 2, high <= low
        case "toward_zero":
            return (Fraction(0), True) if high == low else always if high < low else never
        case "toward_positive":
            return always
        case "toward_negative":
            return never
    return never if lower.odd else always


@functools.lru_cache(maxsize=2)
def _placed(values: tuple[Fraction, ...]) -> tuple[Any, ...]:
    """The patterns of values and of their midpoints: often those of both signs."""
    middles = [(low + high) / 2 for low, high in itertools.pairwise(values)]
    return *_patterns(values), *_patterns(middles)


def _patterns(values: Sequence[Fraction]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    found = [first_pattern(x) for x in values]
    return np.array([p for p, _ in found], np.int64), np.array([met for _, met in found], bool)


def first_pattern(x: Fraction) -> tuple[int, bool]:
    """The first float32 pattern whose value is at least x >= 0, and whether it is x.

    Past the largest finite value that is Inf's.

    Example:
      >>> first_pattern(Fraction(1)), first_pattern(1 + Fraction(1, 2**30))
      ((1065353216, True), (1065353217, False))
    """
    if x == 0:
        return 0, True
    # A dyadic number, numerator / 2^shift: its binade is plain from the numerator's length.
    shift = x.denominator.bit_length() - 1
    if x.denominator != 1 << shift:
        raise ValueError(f"`x` = {x}; the values of formats and their midpoints are dyadic")
    exponent = max(x.numerator.bit_length() - 1 - shift, -126)
    if exponent > 127:
        return INFINITY, False
    # In units of the binade's last place, rounded up.
    scale = 23 - exponent - shift
    count = x.numerator << scale if scale >= 0 else -(-x.numerator >> -scale)
    met = scale >= 0 or count << -scale == x.numerator
    # 2^23 units fill the exponent field by one; the binade's own are counted among them.
    return (exponent + 126) * 2**23 + count, met
