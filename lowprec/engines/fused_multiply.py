"""a * b + c rounded once, in float32 sums and products, far from the ends of float32's range.

The product is taken with its error, both are added to c with theirs, and what is left over is
rounded to odd, after which the last sum rounds as if it were the only one: Boldo and Melquiond,
"Emulation of FMA and Correctly Rounded Sums: Proved Algorithms Using Rounding to Odd" (IEEE
Transactions on Computers 57, 2008). Vector units do it many times as fast as integers would.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.engines.arithmetic import apart, two_sum
from lowprec.numerics import float32


class Split(NamedTuple):
    """float32 numbers, and each as a sum of two of 12 significant bits."""

    whole: jax.Array
    high: jax.Array
    low: jax.Array


def split(x: jax.Array) -> Split:
    """Products of the parts of two numbers are exact."""
    high = float32.from_bits(float32.to_bits(x) & np.uint32(0xFFFFF000))
    return Split(x, high, x - high)


def within_range(a: Split, b: Split, c: jax.Array) -> jax.Array:
    """Whether no step from c, as bits, through (K, R) x (K, C) overflows or is subnormal.

    Every number on the way is a multiple of the last place of a product, 2^-46 times the smallest
    product's exponent, or of c's: that is to be a normal number.
    """
    (a_low, a_high), (b_low, b_high), (c_low, c_high) = (
        _exponents(x) for x in (float32.to_bits(a.whole), float32.to_bits(b.whole), c)
    )
    tiny = jnp.minimum(a_low, b_low) < -126 + 24
    tiny |= (a_low + b_low < -126 + 46) | (c_low < -126 + 23)
    sums = a.whole.shape[0].bit_length() + 2
    # An infinite factor has no parts, however small the other one is.
    large = (jnp.maximum(a_high, b_high) > 127) | (a_high + b_high + sums > 125)
    return ~(tiny | large | (c_high > 125))


def _exponents(bits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest exponent of numbers but zeros, int32."""
    size = bits & float32.MAGNITUDE
    ends = jnp.min(jnp.where(size == 0, float32.INFINITY, size)), jnp.max(size)
    low, high = ((x >> 23).astype(jnp.int32) - 127 for x in ends)
    return low, high


def multiply_add(a: Split, b: Split, c: jax.Array) -> jax.Array:
    """a * b + c rounded once to nearest even, `within_range`."""
    product = apart(a.whole * b.whole)
    # Exact one by one, so that it is all the same which of them a compiler fuses.
    error = a.high * b.high - product + a.high * b.low + a.low * b.high + a.low * b.low
    rest, rest_error = two_sum(c, error)
    total, total_error = two_sum(product, rest)
    fused = total + _odd_sum(total_error, rest_error)
    # Zeros alone lose their sign on the way.
    return jnp.where(fused == 0, product + c, fused)


def _odd_sum(a: jax.Array, b: jax.Array) -> jax.Array:
    """a + b, exact or with its last bit set."""
    total, error = two_sum(a, b)
    bits = float32.to_bits(total)
    inward = lax.bitcast_convert_type(float32.to_bits(error) ^ bits, jnp.int32) >> 31
    step = lax.bitcast_convert_type(inward | 1, jnp.uint32)
    even = (error != 0) & (bits & 1 == 0)
    return float32.from_bits(jnp.where(even, bits + step, bits))
