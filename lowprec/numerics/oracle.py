"""The exact oracle: formats, rounding and float32 arithmetic in Python integers and fractions.

Slow and obvious, it spells out what `lowprec.numerics.codec` and `lowprec.numerics.float32` must
return, bit for bit. It shares no arithmetic with them: of a `Format` it reads the declared
parameters alone, finds the two values around x by bisection and decides between them with exact
fractions.
"""

import bisect
import dataclasses
import functools
import itertools
import math
import struct
from fractions import Fraction
from typing import Literal, NamedTuple

from lowprec.numerics.format import Format, get_format
from lowprec.numerics.rounding import Overflow, Rounding

_HALF = Fraction(1, 2)
_QUIET_NAN = 0x7FC00000


@dataclasses.dataclass(frozen=True)
class Exact:
    """What a code means: a finite value with its sign, which zero has too, or Inf or NaN."""

    kind: Literal["finite", "infinity", "nan"]
    negative: bool
    value: Fraction = Fraction(0)

    def __float__(self) -> float:
        """The nearest Python float: exact but for exponent fields of more than 10 bits."""
        try:
            finite = abs(float(self.value))
        except OverflowError:
            finite = math.inf
        magnitude = {"finite": finite, "infinity": math.inf, "nan": math.nan}
        return math.copysign(magnitude[self.kind], -1.0 if self.negative else 1.0)


def decode(code: int, fmt: str | Format) -> Exact:
    """The exact value of a code. The only NaN of a format that spends -0 on it has no sign."""
    fmt = get_format(fmt)
    if fmt.table is not None:
        x = fmt.table[code]
        negative = math.copysign(1.0, x) < 0
        if math.isfinite(x):
            return Exact("finite", negative, Fraction(x))
        return Exact("nan", False) if math.isnan(x) else Exact("infinity", negative)
    width = fmt.exponent_bits + fmt.mantissa_bits
    if fmt.encoding == "twos_complement":
        negative = code >= 2**width
        magnitude = 2 ** (width + 1) - code if negative else code
    else:
        sign, magnitude = divmod(code, 2**width)
        negative = sign == 1
        field, mantissa = divmod(magnitude, 2**fmt.mantissa_bits)
        if fmt.nan == "negative_zero" and negative and magnitude == 0:
            return Exact("nan", False)
        if fmt.nan == "all_ones" and magnitude == 2**width - 1:
            return Exact("nan", negative)
        if fmt.infinity == "ieee" and field == 2**fmt.exponent_bits - 1:
            return Exact("infinity" if mantissa == 0 else "nan", negative)
        if fmt.infinity == "last" and magnitude == 2**width - 1 - (fmt.nan == "all_ones"):
            return Exact("infinity", negative)
    value = _magnitude(magnitude, fmt)
    return Exact("finite", negative, -value if negative else value)


def encode(
    x: float,
    fmt: str | Format,
    *,
    rounding: Rounding,
    overflow: Overflow,
    word: int = 0,
    word_bits: int = 32,
    nan_code: int | None = None,
) -> int:
    """The code of x: what `lowprec.encode` returns for the same arguments.

    Args:
      x: any Python float, each of which is an exact number, Inf or NaN.
      fmt: a format by name, path or value.
      rounding: a rounding mode by name.
      overflow: an overflow policy by name.
      word: the random word of `stochastic`, of which the low `word_bits` bits count.
      word_bits: how many bits of the word count.
      nan_code: the code of NaN in a format without NaN.

    Example:
      >>> encode(464.0, "float8_e4m3fn", rounding="nearest_even", overflow="nonsaturating")
      126
    """
    fmt = get_format(fmt)
    negative = math.copysign(1.0, x) < 0
    if math.isnan(x):
        return _nan(fmt, negative, nan_code)
    if fmt.table is not None:
        return _encode_in_table(x, fmt, rounding, overflow, word % 2**word_bits, word_bits)
    if x < 0 and not fmt.signed:
        return 0 if fmt.nan == "none" else _nan(fmt, False, None)
    if math.isinf(x):
        return _past_the_end(True, negative, fmt, rounding, overflow)
    below, fraction = _neighbour(abs(x), fmt)
    last = _last_finite(fmt, negative)
    if below > last:
        return _past_the_end(False, negative, fmt, rounding, overflow)
    up = _goes_away(fraction, below, negative, rounding, word % 2**word_bits, word_bits)
    if up and below == last:
        return _past_the_end(False, negative, fmt, rounding, overflow)
    return _with_sign(below + up, negative, fmt)


def _magnitude(code: int, fmt: Format) -> Fraction:
    """The value of a code without its sign; beyond the format's codes the pattern goes on."""
    field, mantissa = divmod(code, 2**fmt.mantissa_bits)
    if field == 0 and fmt.subnormals:
        return mantissa * Fraction(2) ** (1 - fmt.bias - fmt.mantissa_bits)
    significand = 2**fmt.mantissa_bits + mantissa
    return significand * Fraction(2) ** (field - fmt.bias - fmt.mantissa_bits)


def _last_finite(fmt: Format, negative: bool) -> int:
    """The code without sign of the largest finite value on one side of zero."""
    width = fmt.exponent_bits + fmt.mantissa_bits
    if fmt.encoding == "twos_complement":
        return 2**width if negative and not fmt.narrow_range else 2**width - 1
    if fmt.infinity == "ieee":
        return (2**fmt.exponent_bits - 1) * 2**fmt.mantissa_bits - 1
    taken = (fmt.nan == "all_ones") + (fmt.infinity == "last")
    return 2**width - 1 - taken


@functools.lru_cache(maxsize=1 << 14)
def _neighbour(x: float, fmt: Format) -> tuple[int, Fraction]:
    """The code at or below a positive x, and how far above it lies on the way to the next.

    What lies past the value that would follow the last is clipped to it: there all overflows. A
    format without zero has its smallest value for what lies below.
    """
    magnitude = Fraction(x)
    codes = range(_last_finite(fmt, negative=True) + 2)
    below = bisect.bisect_right(codes, magnitude, key=lambda code: _magnitude(code, fmt)) - 1
    if below < 0:
        return 0, Fraction(0)
    if below == codes[-1]:
        return below, Fraction(0)
    lower, upper = _magnitude(below, fmt), _magnitude(below + 1, fmt)
    return below, (magnitude - lower) / (upper - lower)


def _goes_away(
    fraction: Fraction, code: int, negative: bool, rounding: Rounding, word: int, word_bits: int
) -> bool:
    """Whether a value `fraction` of the way from `code` to the next is rounded away from zero."""
    match rounding:
        case "nearest_even":
            return fraction > _HALF or (fraction == _HALF and code % 2 == 1)
        case "nearest_away":
            return fraction >= _HALF
        case "nearest_toward_zero":
            return fraction > _HALF
        case "toward_zero":
            return False
        case "toward_positive":
            return fraction > 0 and not negative
        case "toward_negative":
            return fraction > 0 and negative
        case "to_odd":
            return fraction > 0 and code % 2 == 0
        case "stochastic":
            return word + math.floor(fraction * 2**word_bits) >= 2**word_bits
        case "stochastic_fast":
            return 2 * word + 1 + math.floor(fraction * 2 ** (word_bits + 1)) >= 2 ** (
                word_bits + 1
            )
        case "stochastic_corrected":
            # Python rounds a Fraction to the nearest integer, ties to even.
            return word + round(fraction * 2**word_bits) >= 2**word_bits
        case "stochastic_odd":
            scaled = fraction * 2**word_bits
            below = math.floor(scaled)
            tie_to_odd = below + (below % 2 == 0)
            nearest = tie_to_odd if scaled - below == _HALF else round(scaled)
            return word + nearest >= 2**word_bits


def _past_the_end(
    infinite: bool, negative: bool, fmt: Format, rounding: Rounding, overflow: Overflow
) -> int:
    """The code for what was rounded past the largest value, or for Inf."""
    largest = _with_sign(_last_finite(fmt, negative), negative, fmt)
    infinity = _with_sign(_last_finite(fmt, negative) + 1, negative, fmt)
    nan = None if fmt.nan == "none" else _nan(fmt, negative, None)
    return _by_policy(
        infinite,
        negative,
        rounding,
        overflow,
        largest,
        None if fmt.infinity == "none" else infinity,
        nan,
    )


def _by_policy(
    infinite: bool,
    negative: bool,
    rounding: Rounding,
    overflow: Overflow,
    largest: int,
    infinity: int | None,
    nan: int | None,
) -> int:
    """One of three codes, of which the format may lack the last two."""
    if overflow == "saturate":
        return largest
    if overflow == "saturate_finite":
        return infinity if infinite and infinity is not None else largest
    stops = rounding in ("toward_zero", "to_odd", "toward_positive" if negative else "")
    stops = stops or (rounding == "toward_negative" and not negative)
    if (stops and not infinite) or (infinity is None and nan is None):
        return largest
    return infinity if infinity is not None else nan or 0


class _Table(NamedTuple):
    """A table sorted: its numbers, the code of each, and whether that counts as odd."""

    values: list[float]
    places: dict[float, int]
    zeros: dict[float, int]
    odd: dict[float, bool]
    infinities: dict[float, int]
    nan: int | None


@functools.lru_cache(maxsize=256)
def _sorted_table(fmt: Format) -> _Table:
    assert fmt.table is not None
    finite = {value: code for code, value in enumerate(fmt.table) if math.isfinite(value) and value}
    zeros = {math.copysign(1.0, value): c for c, value in enumerate(fmt.table) if value == 0}
    if zeros:
        finite[0.0] = zeros.get(1.0, zeros.get(-1.0, 0))
    values = sorted(finite)
    codes = [finite[value] for value in values]
    in_turn = all(a % 2 != b % 2 for a, b in itertools.pairwise(codes))
    return _Table(
        values,
        finite,
        zeros,
        {x: bool((finite[x] if in_turn else rank) % 2) for rank, x in enumerate(values)},
        {value: code for code, value in enumerate(fmt.table) if math.isinf(value)},
        next((code for code, value in enumerate(fmt.table) if math.isnan(value)), None),
    )


def _encode_in_table(
    x: float, fmt: Format, rounding: Rounding, overflow: Overflow, word: int, word_bits: int
) -> int:
    """The code of a finite or infinite x in a table: the values around it, and which is taken."""
    table = _sorted_table(fmt)
    values, negative = table.values, math.copysign(1.0, x) < 0
    lowest, highest = values[0], values[-1]
    places = table.places
    if table.zeros:
        # A zero with the sign of x, or the only one there is.
        places = {**places, 0.0: table.zeros.get(-1.0 if negative else 1.0, places[0.0])}
    if x < 0 and lowest >= 0:
        # The lowest value that stands first: of two zeros either.
        first = next(code for code, value in enumerate(fmt.table or ()) if value == lowest)
        return first if table.nan is None else table.nan
    last = places[lowest if negative else highest]
    infinity = table.infinities.get(-math.inf if negative else math.inf)
    past = (rounding, overflow, last, infinity, table.nan)
    if math.isinf(x):
        return _by_policy(True, negative, *past)
    if x in places:
        return places[x]
    beyond = math.inf if fmt.overflow_value is None else fmt.overflow_value
    if x < lowest and (lowest >= 0 or beyond == math.inf):
        return places[lowest]
    if x > highest and beyond == math.inf:
        return places[highest]
    if abs(x) >= beyond:
        return _by_policy(False, negative, *past)
    grid = [-beyond, *values, beyond]
    above = bisect.bisect_right(grid, x)
    chosen = _of_two(x, grid[above - 1], grid[above], table, rounding, word, word_bits)
    return places[chosen] if chosen in places else _by_policy(False, negative, *past)


def _of_two(
    x: float,
    lower: float,
    upper: float,
    table: _Table,
    rounding: Rounding,
    word: int,
    word_bits: int,
) -> float:
    """Which of the values around x it is rounded to; one of them may lie past the last."""
    from_lower = Fraction(x) - Fraction(lower)
    share = from_lower / (Fraction(upper) - Fraction(lower))
    # Past the last value, parity goes on in turn.
    lower_odd = table.odd.get(lower, not table.odd[table.values[0]])
    upper_is_positive = math.copysign(1.0, x) > 0 or x == 0
    if abs(lower) == abs(upper):
        nearer, further = (upper, upper) if upper_is_positive else (lower, lower)
    else:
        nearer, further = sorted((lower, upper), key=abs)
    match rounding:
        case "toward_zero":
            return nearer
        case "toward_positive":
            return upper
        case "toward_negative":
            return lower
        case "to_odd":
            return lower if lower_odd else upper
        case "nearest_even" | "nearest_away" | "nearest_toward_zero":
            if share != _HALF:
                return lower if share < _HALF else upper
            even = upper if lower_odd else lower
            return {"nearest_even": even, "nearest_away": further}.get(rounding, nearer)
    straddles = lower < 0 < upper
    upwards = straddles or abs(lower) < abs(upper)
    away = _goes_away(share if upwards else 1 - share, 0, False, rounding, word, word_bits)
    return upper if away == upwards else lower


def _nan(fmt: Format, negative: bool, nan_code: int | None) -> int:
    """The code of a quiet NaN; where the format has none, the caller's, or that of ml_dtypes."""
    if fmt.table is not None:
        codes = [code for code, x in enumerate(fmt.table) if math.isnan(x)]
        minus_zero = [
            code for code, x in enumerate(fmt.table) if x == 0 and math.copysign(1.0, x) < 0
        ]
        return codes[0] if codes else nan_code if nan_code is not None else (*minus_zero, 0)[0]
    width = fmt.exponent_bits + fmt.mantissa_bits
    match fmt.nan:
        case "ieee":
            first = (2**fmt.exponent_bits - 1) * 2**fmt.mantissa_bits
            return _with_sign(first + 2 ** (fmt.mantissa_bits - 1), negative, fmt)
        case "all_ones":
            return _with_sign(2**width - 1, negative, fmt)
        case "negative_zero":
            return 2**width
    if nan_code is not None:
        return nan_code
    has_minus_zero = fmt.signed and fmt.zero == "signed"
    return 2**width if has_minus_zero and not negative else 0


def _with_sign(magnitude: int, negative: bool, fmt: Format) -> int:
    width = fmt.exponent_bits + fmt.mantissa_bits
    if fmt.encoding == "twos_complement":
        return -magnitude % 2 ** (width + 1) if negative else magnitude
    if not negative or not fmt.signed or (magnitude == 0 and fmt.zero == "unsigned"):
        return magnitude
    return 2**width + magnitude


def round_to_float32(x: Fraction, negative_zero: bool = False) -> int:
    """The float32 bits of x, to nearest even: subnormals kept, Inf past the largest finite value.

    Args:
      x: an exact number; where it rounds to zero the sign is x's.
      negative_zero: whether an x of 0 is -0.
    """
    negative = x < 0 or (x == 0 and negative_zero)
    # The binade by the lengths of numerator and denominator, which is at most one too high.
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
    if abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, -126) - 23)
    # Python rounds a Fraction to the nearest integer, ties to even.
    rounded = round(abs(x) / unit) * unit
    magnitude = math.inf if rounded >= 2**128 else float(rounded)
    return float32_bits(math.copysign(magnitude, -1.0 if negative else 1.0))


def float32_bits(x: float) -> int:
    """The bits of a Python float that is a float32; NaN is quiet and has x's sign."""
    if math.isnan(x):
        return _QUIET_NAN | (0x80000000 if math.copysign(1.0, x) < 0 else 0)
    return struct.unpack("<I", struct.pack("<f", x))[0]


def multiply(a: int, b: int) -> int:
    """The float32 product of two bit patterns, as bits; NaN is 0x7FC00000."""
    return fused_multiply_add(a, b, float32_bits(-0.0 if (a ^ b) >> 31 else 0.0))


def divide(a: int, b: int) -> int:
    """The float32 quotient of two bit patterns, as bits; 0/0 and Inf/Inf are NaN."""
    x, y = decode(a, "float32"), decode(b, "float32")
    negative = x.negative != y.negative
    dividend_zero = x.kind == "finite" and x.value == 0
    divisor_zero = y.kind == "finite" and y.value == 0
    if "nan" in (x.kind, y.kind) or (x.kind == y.kind == "infinity"):
        return _QUIET_NAN
    if dividend_zero and divisor_zero:
        return _QUIET_NAN
    if x.kind == "infinity" or divisor_zero:
        return float32_bits(-math.inf if negative else math.inf)
    if y.kind == "infinity":
        return float32_bits(-0.0 if negative else 0.0)
    return round_to_float32(x.value / y.value, negative)


def fused_multiply_add(a: int, b: int, c: int) -> int:
    """The float32 a * b + c of three bit patterns, rounded once, as bits; NaN is 0x7FC00000."""
    x, y, z = decode(a, "float32"), decode(b, "float32"), decode(c, "float32")
    negative = x.negative != y.negative
    if "nan" in (x.kind, y.kind, z.kind):
        return _QUIET_NAN
    if "infinity" in (x.kind, y.kind):
        zero_factor = any(factor.kind == "finite" and factor.value == 0 for factor in (x, y))
        opposed = z.kind == "infinity" and z.negative != negative
        return (
            _QUIET_NAN
            if zero_factor or opposed
            else float32_bits(-math.inf if negative else math.inf)
        )
    if z.kind == "infinity":
        return c
    return round_to_float32(x.value * y.value + z.value, negative and z.negative)
