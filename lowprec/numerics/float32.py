"""IEEE 754 binary32 arithmetic on bit patterns: subnormals kept, every result correctly rounded.

XLA's CPU backend flushes subnormals, turns divisions into multiplications by a reciprocal and fuses
products into sums, each of which moves a result by a bit. Scales are computed here instead, from
integers alone, so that the bits are the same on every backend and under every transformation.

Numbers travel as (sign, exponent, significand): the value is significand * 2^(exponent - 31), the
significand either 0 or with its top bit set, its last bit a sticky bit that stands for all below.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SIGN = np.uint32(0x80000000)
MAGNITUDE = np.uint32(0x7FFFFFFF)
INFINITY = np.uint32(0x7F800000)
QUIET_NAN = np.uint32(0x7FC00000)
MAX_FINITE = np.uint32(0x7F7FFFFF)
ONE = np.uint32(0x3F800000)
_HIDDEN = np.uint32(0x00800000)
_FRACTION = np.uint32(0x007FFFFF)

Parts = tuple[jax.Array, jax.Array, jax.Array]


class Number(NamedTuple):
    """A float32-precision number with an unbounded exponent.

    Attributes:
      sign: uint32, the sign bit.
      exponent: int32.
      significand: uint32 of 24 bits, normalised or 0: the value is significand * 2^(exponent - 23).
        Of a float64 number, uint64 of 53 bits.
      infinite, nan: bool; where either holds, exponent and significand mean nothing.
    """

    sign: jax.Array
    exponent: jax.Array
    significand: jax.Array
    infinite: jax.Array
    nan: jax.Array


def to_bits(x: jax.Array) -> jax.Array:
    """float32, bfloat16 or float16 of any shape to the uint32 bits of the same float32 value."""
    if x.dtype == jnp.bfloat16:
        return lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32) << 16
    return lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)


def from_bits(bits: jax.Array) -> jax.Array:
    """uint32 bits to the float32 they encode."""
    return lax.bitcast_convert_type(bits, jnp.float32)


def constant(value: float) -> np.uint32:
    """The bits of a float32 constant; ValueError if float32 does not hold it exactly."""
    rounded = np.float32(value)
    if float(rounded) != value:
        raise ValueError(f"{value!r} is not a float32")
    return rounded.view(np.uint32)


def unpack(bits: jax.Array) -> Parts:
    """Finite float32 bits as sign bit, int32 exponent and a normalised 24-bit significand.

    Here alone the significand has 24 bits: the value is significand * 2^(exponent - 23).
    """
    magnitude = bits & MAGNITUDE
    # A subnormal is an integer below 2^23: its conversion to float32 is exact and normalises it.
    as_integer = lax.bitcast_convert_type(magnitude.astype(jnp.float32), jnp.uint32)
    subnormal = magnitude < _HIDDEN
    source = jnp.where(subnormal, as_integer, magnitude)
    exponent = (source >> 23).astype(jnp.int32) - jnp.where(subnormal, 127 + 149, 127)
    significand = jnp.where(magnitude == 0, 0, (source & _FRACTION) | _HIDDEN)
    return bits & SIGN, exponent, significand


def integer_bits(x: jax.Array) -> jax.Array:
    """The float32 bits of integers up to 2^24, which float32 holds exactly."""
    return lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)


def number(bits: jax.Array) -> Number:
    """The number that float32 bits encode, exactly."""
    magnitude = bits & MAGNITUDE
    return Number(*unpack(bits), magnitude == INFINITY, magnitude > INFINITY)


def scaled_up(a: jax.Array, b: jax.Array) -> Number:
    """a * b of two bit patterns, rounded once to 24 bits, also where float32 is subnormal."""
    (_, a_exponent, a_significand), (_, b_exponent, b_significand) = unpack(a), unpack(b)
    # Of significands in [1, 2) the float product neither overflows nor is subnormal.
    ones = [from_bits((x & _FRACTION) | ONE) for x in (a_significand, b_significand)]
    product = lax.bitcast_convert_type(ones[0] * ones[1], jnp.uint32)
    exponent = a_exponent + b_exponent + (product >> 23).astype(jnp.int32) - 127
    a_size, b_size = a & MAGNITUDE, b & MAGNITUDE
    zero, infinite = (a_size == 0) | (b_size == 0), (a_size == INFINITY) | (b_size == INFINITY)
    nan = (a_size > INFINITY) | (b_size > INFINITY) | (zero & infinite)
    significand = jnp.where(zero, 0, (product & _FRACTION) | _HIDDEN)
    return _within_range(Number((a ^ b) & SIGN, exponent, significand, infinite, nan))


def scaled_down(a: jax.Array, b: jax.Array) -> Number:
    """a / b of two bit patterns, rounded once to 24 bits, also where float32 is subnormal."""
    (_, a_exponent, a_significand), (_, b_exponent, b_significand) = unpack(a), unpack(b)
    less = (a_significand < b_significand).astype(jnp.int32)
    quotient, sticky = _quotient(a_significand, jnp.maximum(b_significand, _HIDDEN), less)
    up = (quotient & 1) & (sticky | (quotient >> 1))
    rounded = (quotient >> 1) + up
    carried = rounded >> 24
    a_size, b_size = a & MAGNITUDE, b & MAGNITUDE
    infinite, zero = (a_size == INFINITY) | (b_size == 0), (a_size == 0) | (b_size == INFINITY)
    nan = (a_size > INFINITY) | (b_size > INFINITY) | (zero & infinite)
    exponent = a_exponent - b_exponent - less + carried.astype(jnp.int32)
    significand = jnp.where(zero, 0, rounded >> carried)
    return _within_range(Number((a ^ b) & SIGN, exponent, significand, infinite, nan))


def _within_range(x: Number) -> Number:
    """Zero and Inf where float32 has nothing smaller or larger to round to."""
    vanished = (x.exponent < -150) | ((x.exponent == -150) & (x.significand == _HIDDEN))
    return x._replace(
        significand=jnp.where(vanished, 0, x.significand),
        infinite=x.infinite | ((x.exponent > 127) & (x.significand != 0)),
    )


def multiply_short(a: jax.Array, b: jax.Array) -> jax.Array:
    """`multiply`, cheaper, where a is 0, Inf, NaN or normal with at most 8 significant bits."""
    a_size, b_size = a & MAGNITUDE, b & MAGNITUDE
    short = ((a_size & _FRACTION) | _HIDDEN) >> 16
    _, exponent, significand = unpack(b)
    product = short * significand
    whole = product >> 31
    exponent = exponent + (a_size >> 23).astype(jnp.int32) - 127 + whole.astype(jnp.int32)
    sign = (a ^ b) & SIGN
    finite = pack(sign, exponent, product << (1 - whole))
    infinite = (a_size == INFINITY) | (b_size == INFINITY)
    zero = (a_size == 0) | (b_size == 0)
    result = jnp.where(zero, sign, jnp.where(infinite, sign | INFINITY, finite))
    nan = (a_size > INFINITY) | (b_size > INFINITY) | (infinite & zero)
    return jnp.where(nan, QUIET_NAN, result)


def pack(sign: jax.Array, exponent: jax.Array, significand: jax.Array) -> jax.Array:
    """Rounds once, to nearest even, to float32 bits; above the largest finite value to Inf."""
    # Below 2^-149 the bits to keep lie beyond a shift of 31: move them down first, stickily.
    beyond = jnp.clip(-149 - exponent, 0, 31).astype(jnp.uint32)
    lowered = significand >> beyond
    significand = lowered | ((lowered << beyond) != significand).astype(jnp.uint32)
    # A normal result keeps 24 of the 32 bits; below 2^-126 it keeps one less per binade.
    shift = jnp.clip(-118 - exponent, 8, 31).astype(jnp.uint32)
    kept = significand >> shift
    rest = significand - (kept << shift)
    half = np.uint32(1) << (shift - 1)
    kept = kept + ((rest > half) | ((rest == half) & ((kept & 1) == 1))).astype(jnp.uint32)
    # The hidden bit carries into the exponent field, also where rounding reaches the next binade.
    field = jnp.clip(exponent + 126, 0, 255).astype(jnp.uint32)
    magnitude = jnp.minimum((field << 23) + kept, INFINITY)
    return sign | jnp.where(significand == 0, 0, magnitude)


def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    """The float32 product of two bit patterns, as bits; NaN is 0x7FC00000."""
    sign = (a ^ b) & SIGN
    (_, a_exponent, a_significand), (_, b_exponent, b_significand) = unpack(a), unpack(b)
    high, low = product(a_significand, b_significand)
    exponent, significand = normalise(a_exponent + b_exponent + 17, high, low)
    finite = pack(sign, exponent, significand)
    a_size, b_size = a & MAGNITUDE, b & MAGNITUDE
    infinite = (a_size == INFINITY) | (b_size == INFINITY)
    invalid = (
        (a_size > INFINITY) | (b_size > INFINITY) | (infinite & ((a_size == 0) | (b_size == 0)))
    )
    return jnp.where(invalid, QUIET_NAN, jnp.where(infinite, sign | INFINITY, finite))


def divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """The float32 quotient a / b of two bit patterns, as bits; 0/0 and Inf/Inf are NaN."""
    sign = (a ^ b) & SIGN
    (_, a_exponent, a_significand), (_, b_exponent, b_significand) = unpack(a), unpack(b)
    less = (a_significand < b_significand).astype(jnp.int32)
    quotient, sticky = _quotient(a_significand, jnp.maximum(b_significand, _HIDDEN), less)
    significand = (quotient << 7) | sticky
    finite = pack(sign, a_exponent - b_exponent - less, significand)
    a_size, b_size = a & MAGNITUDE, b & MAGNITUDE
    infinite = (a_size == INFINITY) | (b_size == 0)
    zero = (b_size == INFINITY) | (a_size == 0)
    result = jnp.where(infinite, sign | INFINITY, jnp.where(zero, sign, finite))
    invalid = (a_size > INFINITY) | (b_size > INFINITY) | (infinite & zero)
    return jnp.where(invalid, QUIET_NAN, result)


def _quotient(a: jax.Array, b: jax.Array, less: jax.Array) -> tuple[jax.Array, jax.Array]:
    """floor(a * 2^(24 + less) / b), which has 25 bits, and whether a remainder is left.

    A float quotient comes within a few units however XLA computes it; the exact remainder, whose
    low 32 bits are enough since it is small, corrects it.
    """
    estimate = a.astype(jnp.float32) / b.astype(jnp.float32)
    scaled = estimate * jnp.where(less == 1, np.float32(2**25), np.float32(2**24))
    quotient = scaled.astype(jnp.int32)
    divisor = b.astype(jnp.int32)
    shifted = (a << (24 + less).astype(jnp.uint32)) - quotient.astype(jnp.uint32) * b
    remainder = lax.bitcast_convert_type(shifted, jnp.int32)
    step = jnp.floor(remainder.astype(jnp.float32) / b.astype(jnp.float32)).astype(jnp.int32)
    quotient, remainder = quotient + step, remainder - step * divisor
    for _ in range(2):
        step = (remainder >= divisor).astype(jnp.int32) - (remainder < 0).astype(jnp.int32)
        quotient, remainder = quotient + step, remainder - step * divisor
    return quotient.astype(jnp.uint32), (remainder != 0).astype(jnp.uint32)


def fused_multiply_add(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """fma(a, b, c) of three bit patterns, as bits: the exact a * b + c rounded once.

    An exact zero from operands of opposite sign is +0; NaN is 0x7FC00000.
    """
    product_sign, c_sign = (a ^ b) & SIGN, c & SIGN
    (_, a_exponent, a_significand), (_, b_exponent, b_significand) = unpack(a), unpack(b)
    _, c_exponent, c_significand = unpack(c)
    high, low = product(a_significand, b_significand)
    # Both summands as 64-bit integers in units of 2^(exponent - 61): two bits of headroom.
    p_exponent = jnp.where((high | low) == 0, -1000, a_exponent + b_exponent)
    c_exponent = jnp.where(c_significand == 0, -1000, c_exponent)
    p_high, p_low = (high << 15) | (low >> 17), low << 15
    c_high, c_low = c_significand << 6, jnp.zeros_like(c_significand)
    exponent = jnp.maximum(p_exponent, c_exponent)
    p_high, p_low = shift_right_jam(p_high, p_low, exponent - p_exponent)
    c_high, c_low = shift_right_jam(c_high, c_low, exponent - c_exponent)
    sign, high, low = add_signed((product_sign, p_high, p_low), (c_sign, c_high, c_low))
    exponent, significand = normalise(exponent + 2, high, low)
    nothing = (high | low) == 0
    finite = jnp.where(nothing, product_sign & c_sign, pack(sign, exponent, significand))
    return _fma_specials(a, b, c, finite)


def _fma_specials(a: jax.Array, b: jax.Array, c: jax.Array, finite: jax.Array) -> jax.Array:
    a_size, b_size, c_size = a & MAGNITUDE, b & MAGNITUDE, c & MAGNITUDE
    product_sign = (a ^ b) & SIGN
    infinite_product = (a_size == INFINITY) | (b_size == INFINITY)
    result = jnp.where(c_size == INFINITY, c, finite)
    result = jnp.where(infinite_product, product_sign | INFINITY, result)
    invalid = (a_size > INFINITY) | (b_size > INFINITY) | (c_size > INFINITY)
    invalid |= infinite_product & ((a_size == 0) | (b_size == 0))
    opposed = (c_size == INFINITY) & (product_sign != (c & SIGN))
    return jnp.where(invalid | (infinite_product & opposed), QUIET_NAN, result)


def product(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The 48-bit product of 24-bit integers as a high and a low uint32."""
    a_top, a_rest, b_top, b_rest = a >> 12, a & 0xFFF, b >> 12, b & 0xFFF
    top, middle, low = a_top * b_top, a_top * b_rest + a_rest * b_top, a_rest * b_rest
    high, low = add_carry(middle >> 20, low, middle << 12)
    return add_carry(high + (top >> 8), low, top << 24)


def add_carry(high: jax.Array, low: jax.Array, more: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Adds `more` to the low half of a 64-bit integer."""
    total = low + more
    return high + (total < low).astype(jnp.uint32), total


def normalise(exponent: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A 64-bit integer, worth 2^(exponent - 63) a unit, as exponent and 32-bit significand."""
    in_low = high == 0
    high, low = jnp.where(in_low, low, high), jnp.where(in_low, 0, low)
    exponent = exponent - jnp.where(in_low, 32, 0)
    zeros = jnp.minimum(lax.clz(high), 31)
    carried = jnp.where(zeros == 0, 0, low >> (32 - jnp.maximum(zeros, 1)))
    lost = low << zeros
    significand = (high << zeros) | carried
    return exponent - zeros.astype(jnp.int32), significand | (lost != 0).astype(jnp.uint32)


def shift_right_jam(
    high: jax.Array, low: jax.Array, distance: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A 64-bit right shift whose last bit remembers whether a one was lost."""
    distance = jnp.clip(distance, 0, 63).astype(jnp.uint32)
    far = distance >= 32
    near = jnp.where(far, distance - 32, distance)
    first, second = jnp.where(far, 0, high), jnp.where(far, high, low)
    dropped = jnp.where(far, low, 0)
    into = jnp.where(near == 0, 0, first << ((32 - near) & 31))
    sticky = (dropped != 0) | ((second >> near) << near != second)
    return first >> near, (second >> near) | into | sticky.astype(jnp.uint32)


def add_signed(a: Parts, b: Parts) -> Parts:
    """Adds two sign-magnitude 64-bit integers of 62 bits at most."""
    (a_sign, a_high, a_low), (b_sign, b_high, b_low) = a, b
    smaller = (a_high < b_high) | ((a_high == b_high) & (a_low < b_low))
    high = jnp.where(smaller, b_high, a_high)
    low = jnp.where(smaller, b_low, a_low)
    other_high = jnp.where(smaller, a_high, b_high)
    other_low = jnp.where(smaller, a_low, b_low)
    sum_low = low + other_low
    sum_high = high + other_high + (sum_low < low).astype(jnp.uint32)
    difference_low = low - other_low
    difference_high = high - other_high - (low < other_low).astype(jnp.uint32)
    same = a_sign == b_sign
    sign = jnp.where(smaller, b_sign, a_sign)
    return (
        sign,
        jnp.where(same, sum_high, difference_high),
        jnp.where(same, sum_low, difference_low),
    )
