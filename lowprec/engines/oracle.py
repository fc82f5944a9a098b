"""The exact oracle of the `fp32` engine: one dot product in Python integers and fractions.

It spells out what `lowprec.matmul(..., engine="fp32")` must return; no arithmetic is shared.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

from lowprec.numerics import oracle
from lowprec.numerics.oracle import float32_bits

_MIN_NORMAL = Fraction(2) ** -126
_NAN = float32_bits(math.nan)


def sequential_dot(a: Sequence[int], b: Sequence[int], c: int = 0) -> int:
    """c + a[0] * b[0] + a[1] * b[1] + ... of float32 bits, each product rounded, then added.

    Subnormal operands and results are zeros of their sign; NaN is 0x7FC00000.
    """
    total = flush(c)
    for x, y in zip(a, b, strict=True):
        total = add(total, multiply(flush(x), flush(y)))
    return total


def multiply(a: int, b: int) -> int:
    """The float32 product of two bit patterns, flushed."""
    x, y = oracle.decode(a, "float32"), oracle.decode(b, "float32")
    negative = x.negative != y.negative
    zero = any(factor.kind == "finite" and factor.value == 0 for factor in (x, y))
    if "nan" in (x.kind, y.kind) or (zero and "infinity" in (x.kind, y.kind)):
        return _NAN
    if "infinity" in (x.kind, y.kind):
        return float32_bits(-math.inf if negative else math.inf)
    return round_and_flush(x.value * y.value, negative)


def add(a: int, b: int) -> int:
    """The float32 sum of two bit patterns, flushed; an exact zero of opposite signs is +0."""
    x, y = oracle.decode(a, "float32"), oracle.decode(b, "float32")
    opposed = x.kind == y.kind == "infinity" and x.negative != y.negative
    if "nan" in (x.kind, y.kind) or opposed:
        return _NAN
    if "infinity" in (x.kind, y.kind):
        return a if x.kind == "infinity" else b
    return round_and_flush(x.value + y.value, x.negative and y.negative)


def flush(bits: int) -> int:
    """A subnormal becomes a zero of its sign; everything else stays, NaN made canonical."""
    x = oracle.decode(bits, "float32")
    if x.kind == "nan":
        return _NAN
    tiny = x.kind == "finite" and abs(x.value) < _MIN_NORMAL
    return float32_bits(-0.0 if x.negative else 0.0) if tiny else bits


def round_and_flush(x: Fraction, negative_zero: bool) -> int:
    """Bits of x rounded to 24 bits, nearest even, as if exponents had no limits; then the limits.

    Below 2^-126 after rounding is zero, from 2^128 on Inf. A zero has x's sign, or the given one.
    """
    negative = x < 0 or (x == 0 and negative_zero)
    rounded = _to_24_bits(abs(x))
    if rounded < _MIN_NORMAL:
        magnitude = 0.0
    else:
        magnitude = math.inf if rounded >= Fraction(2) ** 128 else float(rounded)
    return float32_bits(-magnitude if negative else magnitude)


def _to_24_bits(x: Fraction) -> Fraction:
    if x == 0:
        return x
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    if Fraction(2) ** exponent > x:
        exponent -= 1
    ulp = Fraction(2) ** (exponent - 23)
    # Python rounds a Fraction to the nearest integer, ties to even.
    return round(x / ulp) * ulp
