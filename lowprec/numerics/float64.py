"""float64 bits to numbers and back, on 64-bit integers: only where JAX has x64 switched on."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.numerics.float32 import Number

SIGN = np.uint64(1 << 63)
MAGNITUDE = np.uint64((1 << 63) - 1)
INFINITY = np.uint64(0x7FF << 52)
QUIET_NAN = np.uint64(0x7FF8 << 48)
_HIDDEN = np.uint64(1 << 52)
_FRACTION = np.uint64((1 << 52) - 1)


def number(bits: jax.Array) -> Number:
    """The number that float64 bits (uint64) encode, exactly: a significand of 53 bits in uint64.

    The value is significand * 2^(exponent - 52).
    """
    magnitude = bits & MAGNITUDE
    subnormal = magnitude < _HIDDEN
    # A subnormal's leading one is moved to the hidden bit's place.
    zeros = jnp.where(magnitude == 0, 0, lax.clz(magnitude) - 11)
    shift = jnp.where(subnormal, zeros, 0)
    fraction = jnp.where(subnormal, magnitude << shift, (magnitude & _FRACTION) | _HIDDEN)
    exponent = (magnitude >> 52).astype(jnp.int32) - 1023
    exponent = jnp.where(subnormal, -1022 - shift.astype(jnp.int32), exponent)
    sign = ((bits >> 63) << 31).astype(jnp.uint32)
    return Number(sign, exponent, fraction, magnitude == INFINITY, magnitude > INFINITY)


def pack(x: Number) -> jax.Array:
    """float64 bits of a number with a 24-bit significand, rounded to nearest even.

    Exact in float64's normal and subnormal range; Inf above it.
    """
    significand = x.significand.astype(jnp.uint64) << 29
    # Below 2^-1022 a bit is lost for every binade; nothing is left at 64.
    shift = jnp.clip(-1022 - x.exponent, 0, 63).astype(jnp.uint64)
    kept = significand >> shift
    rest = significand - (kept << shift)
    twice = rest << 1
    unit = np.uint64(1) << shift
    up = (shift > 0) & ((twice > unit) | ((twice == unit) & ((kept & 1) == 1)))
    kept = kept + up.astype(jnp.uint64)
    field = jnp.clip(x.exponent + 1022, 0, 2046).astype(jnp.uint64)
    magnitude = jnp.where(x.exponent > 1023, INFINITY, (field << 52) + kept)
    magnitude = jnp.where(x.significand == 0, 0, magnitude)
    magnitude = jnp.where(x.infinite, INFINITY, magnitude)
    magnitude = jnp.where(x.nan, QUIET_NAN, magnitude)
    return (x.sign.astype(jnp.uint64) << 32) | magnitude
