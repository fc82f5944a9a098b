"""Rounding an exact sum once to the format of a register."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.numerics import float32
from lowprec.numerics.codec import goes_away
from lowprec.numerics.format import Format

_LOWEST = -100
"""The exponent of the smallest unit of a register, but for one with float32's own subnormals."""


class Sum(NamedTuple):
    """An exact number: significand * 2^(exponent - 31).

    Attributes:
      sign: uint32, the sign bit.
      exponent: int32.
      significand: uint32, its top bit set, or 0; the last bit stands for all bits below it too.
    """

    sign: jax.Array
    exponent: jax.Array
    significand: jax.Array


def from_integer(value: jax.Array, exponent: jax.Array) -> Sum:
    """value * 2^exponent of an int32 above -2^31."""
    sign = lax.bitcast_convert_type(value, jnp.uint32) & float32.SIGN
    magnitude = lax.bitcast_convert_type(jnp.abs(value), jnp.uint32)
    zeros = jnp.minimum(lax.clz(magnitude), 31)
    return Sum(sign, exponent + 31 - zeros.astype(jnp.int32), magnitude << zeros)


def serves(fmt: Format) -> bool:
    """Whether sums are rounded to a format: signs, Inf and subnormals as IEEE 754 has them.

    Its subnormals must be normal float32 numbers, or float32's own.
    """
    ieee = fmt.signed and fmt.infinity == "ieee" and fmt.subnormals and fmt.exponent_bits <= 8
    within = fmt.min_exponent == -126 or fmt.min_exponent - fmt.mantissa_bits >= _LOWEST
    return ieee and fmt.mantissa_bits > 0 and within


def round_sum(
    x: Sum,
    fmt: Format,
    rounding: str,
    zero_sign: str = "positive",
    words: jax.Array | None = None,
) -> jax.Array:
    """float32 bits of x rounded once to a format; overflow is Inf in every mode.

    The format is one that `serves` knows. `positive`: a result of zero is +0; `kept`: it has the
    sign of x, unless x is zero.
    """
    lowest, width = fmt.min_exponent, fmt.mantissa_bits
    exponent = jnp.maximum(x.exponent, lowest)
    shift = 31 - width + exponent - x.exponent
    # A shift of more than 31 is done in two, the first one stickily.
    beyond = jnp.clip(shift - 31, 0, 31).astype(jnp.uint32)
    lowered = x.significand >> beyond
    significand = lowered | ((lowered << beyond) != x.significand).astype(jnp.uint32)
    shift = jnp.minimum(shift, 31)
    near = shift.astype(jnp.uint32)
    kept = significand >> near
    rest = significand - (kept << near)
    count = 0 if words is None else 32
    up = goes_away(x.sign, kept, rest, near, shift, rounding, words, count)
    kept = kept + up.astype(jnp.uint32)
    magnitude = jnp.minimum(_value(kept, exponent, fmt), float32.INFINITY)
    top = (1 << fmt.exponent_bits) - 1 - fmt.bias
    if top <= 127:
        beyond = np.uint32(top + 127 << 23)
        magnitude = jnp.where(magnitude >= beyond, float32.INFINITY, magnitude)
    nothing = (x.significand == 0) | ((kept == 0) & (zero_sign == "positive"))
    return jnp.where(nothing, 0, x.sign | jnp.where(kept == 0, 0, magnitude))


def _value(kept: jax.Array, exponent: jax.Array, fmt: Format) -> jax.Array:
    """float32 bits of kept * 2^(exponent - mantissa_bits); far too large ones saturate."""
    width = fmt.mantissa_bits
    if fmt.min_exponent == -126:
        # The hidden bit carries into the exponent field; among subnormals there is none to carry.
        field = jnp.clip(exponent + 126, 0, 255).astype(jnp.uint32)
        return (field << 23) + (kept << np.uint32(23 - width))
    field = jnp.clip(exponent - width, _LOWEST, 140).astype(jnp.uint32)
    return lax.bitcast_convert_type(kept.astype(jnp.float32), jnp.uint32) + (field << 23)
