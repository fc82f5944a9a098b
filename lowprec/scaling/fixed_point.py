"""log2 and exp2 on integers, by the polynomials of a block's table [logarithmic].

Logarithms are int32 in units of 2^-23: from -149 to 128 octaves. Polynomials are evaluated by
Horner's rule, acc = c[k] + floor(acc * t / 2^32), with acc in units of 2^-30 and t in 2^-32; the
product is exact before it is floored, so that Python's integers say the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.numerics import float32

FRACTION_BITS = 23
"""A logarithm's bits behind the point."""
_FRACTION = np.uint32(0x007FFFFF)
_LOW = np.uint32(0xFFFF)


def log2(bits: jax.Array, coefficients: tuple[int, ...]) -> jax.Array:
    """log2 of positive finite float32 bits, int32 in units of 2^-23; of 0 any number."""
    _, exponent, significand = float32.unpack(bits & float32.MAGNITUDE)
    t = (significand & _FRACTION) << 9
    # From units of 2^-30 to 2^-23, to nearest, ties up.
    return (exponent << FRACTION_BITS) + ((polynomial(t, coefficients) + 64) >> 7)


def exp2(logarithm: jax.Array, coefficients: tuple[int, ...]) -> jax.Array:
    """float32 bits, rounded once, of the polynomial's power of two; subnormals and Inf included."""
    t = lax.bitcast_convert_type(logarithm, jnp.uint32) << 9
    significand = lax.bitcast_convert_type(polynomial(t, coefficients), jnp.uint32) << 1
    sign = jnp.zeros_like(significand)
    return float32.pack(sign, logarithm >> FRACTION_BITS, significand)


def polynomial(t: jax.Array, coefficients: tuple[int, ...]) -> jax.Array:
    """A polynomial of t in [0, 1), uint32 in units of 2^-32, as int32 in units of 2^-30."""
    result = jnp.full(t.shape, coefficients[-1], jnp.int32)
    for coefficient in reversed(coefficients[:-1]):
        result = multiply_high(result, t) + np.int32(coefficient)
    return result


def multiply_high(a: jax.Array, b: jax.Array) -> jax.Array:
    """floor(a * b / 2^32) of an int32 and a uint32, exactly, as int32."""
    a_high = a >> 16
    a_low = lax.bitcast_convert_type(a, jnp.uint32) & _LOW
    b_high, b_low = (b >> 16).astype(jnp.int32), b & _LOW
    low = a_low * b_low
    middle = a_high * b_low.astype(jnp.int32)
    other = a_low * b_high.astype(jnp.uint32)
    middle_bits = lax.bitcast_convert_type(middle, jnp.uint32)
    carry = ((middle_bits & _LOW) + (other & _LOW) + (low >> 16)) >> 16
    high = a_high * b_high + (middle >> 16)
    return high + ((other >> 16) + carry).astype(jnp.int32)
