"""Signed 64-bit integers in two words, and exact sums that need them."""

import jax
import jax.numpy as jnp
from jax import lax

from lowprec.engines.register import Sum
from lowprec.numerics import float32

Wide = tuple[jax.Array, jax.Array]
"""uint32 high and low words of a two's complement integer."""


def widen(value: jax.Array) -> Wide:
    """An int32 as a wide integer."""
    high = lax.bitcast_convert_type(value >> 31, jnp.uint32)
    return high, lax.bitcast_convert_type(value, jnp.uint32)


def add(a: Wide, b: Wide) -> Wide:
    high, low = float32.add_carry(a[0], a[1], b[1])
    return high + b[0], low


def shift_left(x: Wide, distance: int) -> Wide:
    """By 1 to 31 places."""
    high, low = x
    return (high << distance) | (low >> (32 - distance)), low << distance


def shift_right(x: Wide, distance: jax.Array) -> Wide:
    """By any number of places, downwards: what is cut off is dropped."""
    high, low = x
    signed = lax.bitcast_convert_type(high, jnp.int32)
    distance = jnp.clip(distance, 0, 63)
    near = (distance & 31).astype(jnp.uint32)
    into = jnp.where(near == 0, 0, high << ((32 - near) & 31))
    moved = lax.bitcast_convert_type(signed >> near.astype(jnp.int32), jnp.uint32)
    far = distance >= 32
    filled = lax.bitcast_convert_type(signed >> 31, jnp.uint32)
    return jnp.where(far, filled, moved), jnp.where(far, moved, (low >> near) | into)


def to_sum(x: Wide, exponent: jax.Array) -> Sum:
    """x * 2^exponent, normalised."""
    sign, high, low = sign_and_size(x)
    return Sum(sign, *float32.normalise(exponent + 63, high, low))


def sign_and_size(x: Wide) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The sign bit, and both words of the magnitude."""
    high, low = x
    negative = high >> 31 == 1
    flipped_low = jnp.uint32(0) - low
    flipped_high = ~high + (low == 0).astype(jnp.uint32)
    return (
        jnp.where(negative, float32.SIGN, jnp.uint32(0)),
        jnp.where(negative, flipped_high, high),
        jnp.where(negative, flipped_low, low),
    )


def add_float32(x: Wide, exponent: jax.Array, bits: jax.Array) -> Sum:
    """x * 2^exponent plus a finite float32 exactly, as far as a sticky bit keeps it."""
    x_sign, high, low = sign_and_size(x)
    # Both as integers of 62 bits, the top bit set, in units of 2^(exponent - 61).
    zeros = leading_zeros(high, low)
    high, low = shifted_left(high, low, zeros)
    x_exponent = jnp.where((high | low) == 0, -2000, exponent + 63 - zeros)
    high, low = high >> 2, (low >> 2) | (high << 30)
    sign, c_exponent, significand = float32.unpack(bits)
    c_exponent = jnp.where(significand == 0, -2000, c_exponent)
    c_high, c_low = significand << 6, jnp.zeros_like(significand)
    top = jnp.maximum(x_exponent, c_exponent)
    high, low = float32.shift_right_jam(high, low, top - x_exponent)
    c_high, c_low = float32.shift_right_jam(c_high, c_low, top - c_exponent)
    sign, high, low = float32.add_signed((x_sign, high, low), (sign, c_high, c_low))
    return Sum(sign, *float32.normalise(top + 2, high, low))


def leading_zeros(high: jax.Array, low: jax.Array) -> jax.Array:
    """int32, 64 of zero."""
    return jnp.where(high == 0, 32 + lax.clz(low), lax.clz(high)).astype(jnp.int32)


def shifted_left(high: jax.Array, low: jax.Array, distance: jax.Array) -> Wide:
    """By 0 to 63 places."""
    near = (distance & 31).astype(jnp.uint32)
    into = jnp.where(near == 0, 0, low >> ((32 - near) & 31))
    far = distance >= 32
    return jnp.where(far, low << near, (high << near) | into), jnp.where(far, 0, low << near)
