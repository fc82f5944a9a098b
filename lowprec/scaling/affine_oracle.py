"""The exact oracle of affine blocks: each operation of a source in fractions, rounded once.

Numbers are Python floats, each of which holds a float32 or float16 exactly. It shares no arithmetic
with `lowprec.scaling.affine`.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from lowprec.numerics import oracle
from lowprec.numerics.rounding import Rounding
from lowprec.scaling.block import Block
from lowprec.scaling.codings import Affine

_PRECISION = {"float32": (24, -126, 128), "float16": (11, -14, 16), "bfloat16": (8, -126, 128)}


class Coded(NamedTuple):
    """Codes of a tile, its scale and offset (None where packed), and the values it decodes to."""

    codes: list[int]
    scale: float
    offset: float | None
    values: list[float]


def round_to(x: Fraction, to: str, negative: bool = False) -> float:
    """x rounded to nearest even: subnormals kept, Inf past the largest; a zero's sign is given."""
    precision, lowest, top = _PRECISION[to]
    size = abs(x)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent = max(exponent - (size < Fraction(2) ** exponent), lowest)
    unit = Fraction(2) ** (exponent - precision + 1)
    rounded = round(size / unit) * unit
    sign = -1.0 if x < 0 or (x == 0 and negative) else 1.0
    return math.copysign(math.inf if rounded >= Fraction(2) ** top else float(rounded), sign)


def code_tile(
    xs: list[float],
    block: Block,
    rounding: Rounding | None = None,
    words: list[int] | None = None,
) -> Coded:
    """What `lowprec.quantize` makes of one tile of float32 values, and what they decode to."""
    affine = block.affine
    assert affine is not None
    to = affine.arithmetic
    largest = 2**block.element.bits - 1
    xs = [_round(x, to) for x in xs]
    low, high = _ends(xs, affine)
    rule = _Rule(affine, to, largest)
    scale, zero = rule.scale_and_zero(low, high)
    drawn = words or [0] * len(xs)
    mode: Rounding = block.rounding if rounding is None else rounding
    bits = block.random_bit_count or 32
    if affine.zero_point == "integer":
        low = zero
    codes = [
        rule.code(x, low, scale, zero, lambda v, w=w: _integer(v, mode, w, bits))
        for x, w in zip(xs, drawn, strict=True)
    ]
    if affine.zero_point == "packed":
        kept = oracle.float32_bits(scale) // 16 * 16
        packed = float(oracle.decode(kept + int(zero), "float32"))
        plain = float(oracle.decode(kept, "float32"))
        return Coded(codes, packed, None, [rule.value(code, plain, zero) for code in codes])
    offset = low if affine.zero_point == "minimum" else zero
    scale, offset = (_round(x, block.scale_format.name) for x in (scale, offset))
    return Coded(codes, scale, offset, [rule.value(code, scale, offset) for code in codes])


class _Rule(NamedTuple):
    affine: Affine
    to: str
    largest: int

    def scale_and_zero(self, low: float, high: float) -> tuple[float, float]:
        affine, to = self.affine, self.to
        span = _raised(_add(high, -low, to), affine.min_range, affine)
        if affine.zero_point == "offset":
            encode = _multiply(float(self.largest), _divide(1.0, span, to), to)
            offset = _multiply(low, encode, to)
            if affine.round_offset and not math.isnan(offset):
                offset = min(max(_integer(offset), float(-self.largest)), 0.0)
            return encode, offset
        scale = _raised(_divide(span, float(self.largest), to), affine.min_scale, affine)
        if affine.zero_point == "minimum":
            return scale, 0.0
        zero = self.half(_divide(-low, scale, to))
        if affine.zero_point == "integer":
            return scale, zero
        return scale, 0.0 if math.isnan(zero) else min(max(zero, 0.0), float(self.largest))

    def code(
        self,
        x: float,
        low: float,
        scale: float,
        zero: float,
        integer: Callable[[float], float],
    ) -> int:
        affine, to = self.affine, self.to
        match affine.zero_point:
            case "minimum":
                value = _divide(_add(x, -low, to), scale, to)
            case "offset":
                value = self.multiply_add(x, scale, -zero)
            case "packed":
                value = self.multiply_add(x, _divide(1.0, scale, to), zero)
            case _:
                rounded = _add(integer(_divide(x, scale, to)), zero, to)
                return self.clamped(rounded)
        return self.clamped(self.half(value) if affine.add_half else integer(value))

    def value(self, code: int, scale: float, offset: float) -> float:
        affine, to, q = self.affine, self.to, float(code)
        match affine.zero_point:
            case "minimum":
                value = self.multiply_add(q, scale, offset)
            case "integer" | "packed":
                value = _multiply(scale, _add(q, -offset, to), to)
            case _:
                value = _divide(_add(q, offset, to), scale, to)
        return 0.0 if affine.nan_value_zero and not math.isfinite(value) else value

    def multiply_add(self, a: float, b: float, c: float) -> float:
        if not self.affine.fused:
            return _add(_multiply(a, b, self.to), c, self.to)
        if not all(map(math.isfinite, (a, b, c))):
            return _special(lambda: a * b + c)
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        return round_to(exact, self.to, _negative(a) != _negative(b) and _negative(c))

    def half(self, value: float) -> float:
        """To nearest even, or by adding a half and cutting off what lies behind the point."""
        if not self.affine.add_half:
            return _integer(value)
        if not math.isfinite(value):
            return value
        return float(math.trunc(_add(value, math.copysign(0.5, value), self.to)))

    def clamped(self, value: float) -> int:
        if math.isnan(value):
            return 0
        return int(min(max(value, 0.0), float(self.largest)))


def _ends(xs: list[float], affine: Affine) -> tuple[float, float]:
    numbers = [x for x in xs if not math.isnan(x)]
    if affine.nan == "propagate" and len(numbers) < len(xs):
        low = high = math.nan
    else:
        low = min([*numbers, math.inf], key=_place)
        high = max([*numbers, -math.inf], key=_place)
    if affine.with_zero and not math.isnan(low):
        low, high = min(low, 0.0, key=_place), max(high, 0.0, key=_place)
    if affine.clip_ratio != 1.0:
        # The ratio is a float32, and so is the product before it is rounded to the arithmetic.
        ratio = _round(affine.clip_ratio, "float32")
        low, high = (_round(_multiply(x, ratio, "float32"), affine.arithmetic) for x in (low, high))
    return (-1.0, 1.0) if low == high == 0 and affine.zero_range == "unit" else (low, high)


def _place(x: float) -> tuple[float, float]:
    """Where a number stands in order, -0 below +0."""
    return x, math.copysign(1.0, x)


def _raised(x: float, least: float, affine: Affine) -> float:
    if least == 0.0:
        return x
    least = _round(least, affine.arithmetic)
    if math.isnan(x):
        return x if affine.nan == "propagate" else least
    return max(x, least)


def _integer(x: float, mode: Rounding = "nearest_even", word: int = 0, bits: int = 32) -> float:
    """A number rounded to an integer, with the sign of what it came from."""
    if not math.isfinite(x):
        return x
    below = math.floor(abs(Fraction(x)))
    fraction, odd = abs(Fraction(x)) - below, below % 2 == 1
    half = Fraction(1, 2)
    up = {
        "nearest_even": fraction > half or (fraction == half and odd),
        "nearest_away": fraction >= half,
        "nearest_toward_zero": fraction > half,
        "toward_zero": False,
        "toward_positive": fraction > 0 and x > 0,
        "toward_negative": fraction > 0 and x < 0,
        "to_odd": fraction > 0 and not odd,
        "stochastic": word % 2**bits + math.floor(fraction * 2**bits) >= 2**bits,
    }[mode]
    return math.copysign(float(below + up), x)


def _round(x: float, to: str) -> float:
    return round_to(Fraction(x), to, _negative(x)) if math.isfinite(x) else x


def _add(a: float, b: float, to: str) -> float:
    if not (math.isfinite(a) and math.isfinite(b)):
        return _special(lambda: a + b)
    return round_to(Fraction(a) + Fraction(b), to, _negative(a) and _negative(b))


def _multiply(a: float, b: float, to: str) -> float:
    if not (math.isfinite(a) and math.isfinite(b)):
        return _special(lambda: a * b)
    return round_to(Fraction(a) * Fraction(b), to, _negative(a) != _negative(b))


def _divide(a: float, b: float, to: str) -> float:
    negative = _negative(a) != _negative(b)
    if math.isnan(a) or math.isnan(b) or a == b == 0 or (math.isinf(a) and math.isinf(b)):
        return math.nan
    if math.isinf(a) or b == 0:
        return -math.inf if negative else math.inf
    if math.isinf(b):
        return -0.0 if negative else 0.0
    return round_to(Fraction(a) / Fraction(b), to, negative)


def _special(operation: Callable[[], float]) -> float:
    """An operation on Inf or NaN, which float64 does as any other float type; NaN has no sign."""
    result = operation()
    return math.nan if math.isnan(result) else result


def _negative(x: float) -> bool:
    return math.copysign(1.0, x) < 0
