"""Exact numbers of the engines' oracle: an integer times a power of two, and how one is rounded.

All of it is integer arithmetic; nothing is shared with what `matmul` computes.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from lowprec.numerics import oracle
from lowprec.numerics.format import Format
from lowprec.numerics.rounding import Rounding

_WORD_BITS = 32


class Number(NamedTuple):
    """significand * 2^exponent, with a sign that zero has too; or Inf or NaN."""

    kind: Literal["finite", "infinity", "nan"]
    negative: bool
    significand: int = 0
    exponent: int = 0

    @property
    def is_zero(self) -> bool:
        return self.kind == "finite" and self.significand == 0

    @property
    def binade(self) -> int:
        """floor(log2 |x|) of a finite number other than zero."""
        return abs(self.significand).bit_length() - 1 + self.exponent

    @property
    def sign(self) -> int:
        return -1 if self.negative else 1


ZERO = Number("finite", False)
NAN = Number("nan", False)


def finite(significand: int, exponent: int) -> Number:
    """significand * 2^exponent; a zero is +0."""
    return Number("finite", significand < 0, significand, exponent)


def infinity(negative: bool) -> Number:
    """An Inf."""
    return Number("infinity", negative)


@functools.cache
def decoder(fmt: Format) -> Callable[[int], Number]:
    """What reads the codes of a format; it remembers them."""

    @functools.lru_cache(maxsize=1 << 16)
    def read(code: int) -> Number:
        exact = oracle.decode(code, fmt)
        numerator, denominator = exact.value.as_integer_ratio()
        # The denominator is a power of two.
        return Number(exact.kind, exact.negative, numerator, 1 - denominator.bit_length())

    return read


def min_exponent(fmt: Format) -> int:
    """The exponent of a format's smallest normal number, which its subnormals are read with."""
    return (1 if fmt.subnormals else 0) - fmt.bias


def field_exponent(x: Number, lowest: int) -> int:
    """floor(log2 |x|) of a finite x other than zero, or `lowest` where it lies below."""
    return max(x.binade, lowest)


def multiply(x: Number, y: Number) -> Number:
    """x * y exactly; Inf * 0 is NaN."""
    negative = x.negative != y.negative
    if x.kind == y.kind == "finite":
        return Number("finite", negative, x.significand * y.significand, x.exponent + y.exponent)
    if "nan" in (x.kind, y.kind) or x.is_zero or y.is_zero:
        return NAN
    return infinity(negative)


def add(x: Number, y: Number, rounding: Rounding = "nearest_even") -> Number:
    """x + y exactly; Inf - Inf is NaN.

    The sum of zeros of one sign keeps it; x - x is +0, or -0 where it is rounded toward negative.
    """
    special = special_sum((x, y))
    if special is not None:
        return special
    lowest = min(x.exponent, y.exponent)
    shifted = (term.significand << (term.exponent - lowest) for term in (x, y))
    total = finite(sum(shifted), lowest)
    if total.significand:
        return total
    same = x.is_zero and y.is_zero and x.negative == y.negative
    return total._replace(negative=x.negative if same else rounding == "toward_negative")


def special_sum(terms: tuple[Number, ...] | list[Number]) -> Number | None:
    """The sum of terms of which one is not finite; None where all are."""
    if all(term.kind == "finite" for term in terms):
        return None
    infinities = {term.negative for term in terms if term.kind == "infinity"}
    if len(infinities) == 2 or any(term.kind == "nan" for term in terms):
        return NAN
    return infinity(infinities.pop())


def shift_and_round(significand: int, shift: int, rounding: Rounding, word: int = 0) -> int:
    """significand * 2^shift rounded to an integer.

    `word` is the random word of the stochastic modes, of 32 bits.
    """
    if shift >= 0:
        return significand << shift
    negative = significand < 0
    whole, rest = divmod(abs(significand), 1 << -shift)
    away = rest and _goes_away(whole, rest, -shift, negative, rounding, word)
    magnitude = whole + 1 if away else whole
    return -magnitude if negative else magnitude


def _goes_away(
    whole: int, rest: int, bits: int, negative: bool, rounding: Rounding, word: int
) -> bool:
    """Whether whole + rest / 2^bits, which is no integer, is rounded away from zero."""
    twice, one = 2 * rest, 1 << bits
    match rounding:
        case "nearest_even":
            return twice > one or (twice == one and whole % 2 == 1)
        case "nearest_away":
            return twice >= one
        case "nearest_toward_zero":
            return twice > one
        case "toward_zero":
            return False
        case "toward_positive":
            return not negative
        case "toward_negative":
            return negative
        case "to_odd":
            return whole % 2 == 0
    kept, lost = divmod(rest << _WORD_BITS, one)
    match rounding:
        case "stochastic_fast":
            kept += 2 * lost >= one
        case "stochastic_corrected":
            kept += 2 * lost > one or (2 * lost == one and kept % 2 == 1)
        case "stochastic_odd":
            kept += 2 * lost > one or (2 * lost == one and kept % 2 == 0)
    return word % 2**_WORD_BITS + kept >= 2**_WORD_BITS


def round_to(
    x: Number,
    fmt: Format,
    rounding: Rounding,
    *,
    flush: bool = False,
    stops_at_max: bool = False,
    word: int = 0,
) -> Number:
    """x in a format with Inf; what is zero, Inf or NaN stays, and a zero has x's sign.

    Args:
      x: any number.
      fmt: a format with a sign and IEEE 754's Inf.
      rounding: a mode by name.
      flush: what is rounded, as if exponents had no limit, below the smallest normal number is
        zero; else there are subnormals.
      stops_at_max: overflow as in IEEE 754 section 7.4, in which some modes stop at the largest
        number; else it is Inf in all of them.
      word: the random word of the stochastic modes.
    """
    if x.kind != "finite" or x.significand == 0:
        return x
    lowest = min_exponent(fmt)
    unit = (x.binade if flush else max(x.binade, lowest)) - fmt.mantissa_bits
    significand = shift_and_round(x.significand, x.exponent - unit, rounding, word)
    rounded = Number("finite", x.negative, significand, unit)
    if significand == 0 or (flush and rounded.binade < lowest):
        return Number("finite", x.negative)
    beyond = 2**fmt.exponent_bits - 1 - fmt.bias
    if rounded.binade < beyond:
        return rounded
    inwards = ("toward_zero", "to_odd", "toward_positive" if x.negative else "toward_negative")
    if not stops_at_max or rounding not in inwards:
        return infinity(x.negative)
    largest = 2 ** (fmt.mantissa_bits + 1) - 1
    return Number("finite", x.negative, x.sign * largest, beyond - 1 - fmt.mantissa_bits)


def to_float32_bits(x: Number, nan: int) -> int:
    """The float32 bits of a number that float32 holds; `nan` for NaN."""
    if x.kind == "nan":
        return nan
    magnitude = math.inf if x.kind == "infinity" else math.ldexp(abs(x.significand), x.exponent)
    return oracle.float32_bits(math.copysign(magnitude, x.sign))
