"""Rounding float32 magnitudes in few integer operations, for most formats and modes.

The general way of `lowprec.numerics.codec` takes any exponent and any mode. Where a format's
smallest unit is a normal float32 well above the smallest, and no random bits are wanted, float32's
subnormals need no exponent of their own, and a value is rounded without a code in between.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.numerics import float32
from lowprec.numerics.format import Format
from lowprec.numerics.rounding import is_stochastic


class Rounded(NamedTuple):
    """A rounded magnitude: units * 2^(field - 127 - mantissa_bits).

    Attributes:
      size: the float32 bits without sign that were rounded.
      units: uint32, up to 2^(mantissa_bits + 1); meaningless for Inf and NaN.
      field: uint32, float32's exponent field of the value, raised to that of the smallest normal.
    """

    size: jax.Array
    units: jax.Array
    field: jax.Array


def serves(fmt: Format, rounding: str) -> bool:
    """Whether `round_magnitude` is right for a format and a mode."""
    if fmt.table is not None or not fmt.subnormals or is_stochastic(rounding):
        return False
    if not 0 <= fmt.mantissa_bits <= 22 or fmt.exponent_bits > 8:
        return False
    top = (1 << fmt.exponent_bits) - 1 - fmt.bias if fmt.exponent_bits else fmt.min_exponent
    # A float32 subnormal must lie below half a unit: 26 bits or more below the unit's place.
    return fmt.min_exponent - fmt.mantissa_bits >= -124 and top <= 127


def round_magnitude(bits: jax.Array, fmt: Format, rounding: str) -> Rounded:
    """Rounds float32 bits to a format, as if its exponent had no upper limit."""
    size = bits & float32.MAGNITUDE
    own = size >> 23
    field = jnp.maximum(own, np.uint32(_lowest_field(fmt)))
    shift = jnp.minimum(np.uint32(23 - fmt.mantissa_bits) + (field - own), 31)
    # The bit is wrong for zero and subnormals, which round as anything does that is as small.
    significand = (size & np.uint32(0x7FFFFF)) | np.uint32(0x800000)
    kept = significand >> shift
    half = np.uint32(1) << (shift - 1)
    # The code's last bit, which is the exponent's where there are no mantissa bits.
    odd = kept & 1 if fmt.mantissa_bits else (kept + field - np.uint32(_lowest_field(fmt))) & 1
    if rounding == "nearest_even":
        # Carries into the kept bits above half, and at half where the code is odd.
        return Rounded(size, (significand + (half - 1) + odd) >> shift, field)
    if rounding == "nearest_away":
        return Rounded(size, (significand + half) >> shift, field)
    if rounding == "nearest_toward_zero":
        return Rounded(size, (significand + (half - 1)) >> shift, field)
    inexact = ((kept << shift) != significand) & (size != 0)
    negative = (bits & float32.SIGN) != 0
    match rounding:
        case "toward_positive":
            up = inexact & ~negative
        case "toward_negative":
            up = inexact & negative
        case "to_odd":
            up = inexact & (odd == 0)
        case _:
            return Rounded(size, kept, field)
    return Rounded(size, kept + up.astype(jnp.uint32), field)


def code_of(rounded: Rounded, fmt: Format) -> jax.Array:
    """The magnitude's code, beyond the format's codes where the value is."""
    binades = rounded.field - np.uint32(_lowest_field(fmt))
    return rounded.units + (binades << fmt.mantissa_bits)


def value_of(rounded: Rounded, fmt: Format) -> jax.Array:
    """The magnitude's float32 bits: above those of the largest finite value where it overflows."""
    bits = float32.integer_bits(rounded.units)
    scaled = bits + ((rounded.field - np.uint32(127 + fmt.mantissa_bits)) << 23)
    return jnp.where(rounded.units == 0, 0, scaled)


def _lowest_field(fmt: Format) -> int:
    return fmt.min_exponent + 127
