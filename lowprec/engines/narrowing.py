"""Rounding float32 numbers to the format of a register, in few operations that vectorise."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.numerics import float32, magnitudes
from lowprec.numerics.codec import encode_bits, goes_away, round_bits
from lowprec.numerics.decoding import decode_bits
from lowprec.numerics.format import Format
from lowprec.numerics.rounding import is_stochastic


def holds_products(fmt: Format, a: Format, b: Format) -> bool:
    """Whether every product of numbers of two formats is a number of a third."""
    plain = all(x.exponent_bits > 0 and x.signed and x.table is None for x in (fmt, a, b))
    if not plain or not fmt.subnormals or fmt.infinity != "ieee":
        return False
    unit = sum(x.min_exponent - x.mantissa_bits for x in (a, b))
    return (
        a.mantissa_bits + b.mantissa_bits + 1 <= fmt.mantissa_bits
        and unit >= fmt.min_exponent - fmt.mantissa_bits
        and a.max * b.max <= fmt.max
    )


def _top_exponent(fmt: Format) -> int:
    return math.frexp(fmt.max)[1] - 1


def has_units(fmt: Format) -> bool:
    """Whether `nearest_even` is right: 2^23 units of any exponent of a format are a float32."""
    ieee = fmt.signed and fmt.subnormals and fmt.infinity == "ieee"
    if not ieee or not 1 <= fmt.mantissa_bits <= 21:
        return False
    more = 23 - fmt.mantissa_bits
    # Half a unit is a normal number: what is less may be a zero to the processor. And 2^23 times
    # the largest unit's double is finite.
    return fmt.min_exponent - fmt.mantissa_bits > -126 and _top_exponent(fmt) + 2 + more <= 127


def nearest_even(x: jax.Array, fmt: Format, within: bool = False) -> jax.Array:
    """x rounded to a format with subnormals and Inf.

    In a sum with 1.5 * 2^23 units of the last place, float32's own rounding is that to the format.
    The number of units is even, so that ties go to even codes; it depends on x, so that a compiler
    cannot take the difference after the sum for x. `within`: x is a sum of two numbers of the
    format, so that no binade lies far above the format's, and below it nothing is to be rounded.
    """
    bits = float32.to_bits(x)
    lowest, beyond = (
        np.uint32(exponent + 127 << 23) for exponent in (fmt.min_exponent, _top_exponent(fmt) + 1)
    )
    binade = bits & float32.INFINITY
    if not within:
        binade = jnp.clip(binade, lowest, beyond)
    units = float32.from_bits(binade + np.uint32((23 - fmt.mantissa_bits << 23) | 1 << 22))
    size = float32.to_bits((x + units) - units) & float32.MAGNITUDE
    size = jnp.where(size < beyond, size, jnp.maximum(size, float32.INFINITY))
    return float32.from_bits(size | (bits & float32.SIGN))


def to_format(bits: jax.Array, fmt: Format, rounding: str, words: jax.Array | None) -> jax.Array:
    """float32 bits rounded to a format as IEEE 754 says; stochastically by 32 random bits each."""
    if fmt.exponent_bits == 8 and fmt.min_exponent == -126:
        return _cut(bits, 23 - fmt.mantissa_bits, rounding, words)
    if magnitudes.serves(fmt, rounding):
        return round_bits(bits, fmt, rounding, "nonsaturating")
    ieee = fmt.signed and fmt.infinity == "ieee"
    if rounding == "stochastic" and ieee and magnitudes.serves(fmt, "nearest_even"):
        assert words is not None
        return _stochastic(bits, fmt, words)
    count = 32 if is_stochastic(rounding) else 0
    codes = encode_bits(bits, fmt, rounding, "nonsaturating", words, count)
    return decode_bits(codes.astype(jnp.uint32), fmt)


def _stochastic(bits: jax.Array, fmt: Format, words: jax.Array) -> jax.Array:
    """Rounds float32 bits, subnormals of which are zeros, to a format with subnormals and Inf."""
    size = bits & float32.MAGNITUDE
    own = size >> 23
    field = jnp.maximum(own, np.uint32(fmt.min_exponent + 127))
    significand = jnp.where(own == 0, 0, (size & np.uint32(0x7FFFFF)) | np.uint32(0x800000))
    shift = np.uint32(23 - fmt.mantissa_bits) + (field - own)
    near = jnp.minimum(shift, 31)
    kept = significand >> near
    rest = significand - (kept << near)
    # Random bits are added to so many of the fraction, and the carry counts.
    fraction = (rest >> (jnp.clip(shift, 32, 63) - 32)) << (32 - jnp.minimum(shift, 32))
    units = kept + (words > ~fraction).astype(jnp.uint32)
    value = magnitudes.value_of(magnitudes.Rounded(size, units, field), fmt)
    beyond = np.uint32(_top_exponent(fmt) + 1 + 127 << 23)
    value = jnp.where(value < beyond, value, float32.INFINITY)
    return (bits & float32.SIGN) | jnp.where(size < float32.INFINITY, value, size)


def _cut(bits: jax.Array, drop: int, rounding: str, words: jax.Array | None) -> jax.Array:
    """Rounds normal float32 bits to fewer mantissa bits; overflow as IEEE 754 says."""
    size, sign = bits & float32.MAGNITUDE, bits & float32.SIGN
    near = np.uint32(drop)
    if rounding == "nearest_even":
        # Carries into the kept bits above half, and at half where they are odd.
        carried = bits + np.uint32((1 << drop - 1) - 1) + ((bits >> near) & 1)
        return jnp.where(size < float32.INFINITY, carried >> near << near, bits)
    kept = size >> near
    rest = size - (kept << near)
    shift = jnp.full(bits.shape, drop, jnp.int32)
    up = goes_away(
        sign,
        kept,
        rest,
        shift.astype(jnp.uint32),
        shift,
        rounding,
        words,
        0 if words is None else 32,
    )
    rounded = sign | ((kept + up.astype(jnp.uint32)) << near)
    return jnp.where(size < float32.INFINITY, rounded, bits)
