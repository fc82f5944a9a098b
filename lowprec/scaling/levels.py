"""Float scales: of a tile from its largest magnitude, under a scale of the tensor where it has one.

Every operation is a float32 one on bit patterns, in the order in which the block's source has it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.numerics import float32
from lowprec.numerics.codec import decode_bits, encode_bits
from lowprec.scaling.block import Block


class TensorScale(NamedTuple):
    """The scale above the tiles' scales, as float32 bits that broadcast over them.

    Attributes:
      decode: T, which multiplies on decoding.
      encode: S or 1 / T, which multiplies before encoding.
      factor: what amax is multiplied by, or divided by in `two_level_divide`, to give a tile's
        scale.
    """

    decode: jax.Array
    encode: jax.Array
    factor: jax.Array


def bits_of(number: float | np.float32) -> np.uint32:
    """The bits of a number rounded to float32."""
    return np.float32(number).view(np.uint32)


def largest_element(block: Block) -> np.float32:
    """What amax is scaled to: the largest element, less the guard."""
    return np.float32(block.element.max * float(np.float32(block.guard)))


def tensor_scale(amax: jax.Array, block: Block) -> TensorScale:
    """The scale of a tensor, or of rows, with the largest magnitudes `amax` (float32 bits)."""
    largest = largest_element(block)
    smax = block.scale_format.max if block.tensor_scale_max is None else block.tensor_scale_max
    reach = bits_of(smax * float(largest))
    if block.scale_arithmetic in ("two_level_divide", "two_level_inverse"):
        decode = float32.divide(amax, like(amax, reach))
        encode = divide_constant(float32.ONE, decode)
        factor = float32.multiply(decode, like(amax, bits_of(largest)))
        return TensorScale(decode, encode, factor)
    encode = finite(divide_constant(reach, amax))
    encode = jnp.where((amax == 0) | (encode == 0), float32.ONE, encode)
    inverse = (np.float32(1) / largest).view(np.uint32)
    factor = float32.multiply(encode, like(encode, inverse))
    return TensorScale(divide_constant(float32.ONE, encode), encode, factor)


def wanted_scale(amax: jax.Array, tensor: TensorScale | None, block: Block) -> jax.Array:
    """float32 bits of the tiles' scales before they are rounded to the scale format."""
    largest = largest_element(block)
    over = lambda level: jnp.broadcast_to(level, amax.shape)
    match block.scale_arithmetic:
        case "reciprocal_max":
            inverse = (np.float32(1) / largest).view(np.uint32)
            scale = float32.multiply(amax, like(amax, inverse))
        case "two_level":
            assert tensor is not None
            scale = float32.multiply(amax, over(tensor.factor))
        case "two_level_divide":
            assert tensor is not None
            scale = float32.divide(amax, over(tensor.factor))
        case arithmetic:
            scale = float32.divide(amax, like(amax, largest.view(np.uint32)))
            if arithmetic == "two_level_divide_first":
                assert tensor is not None
                scale = float32.multiply(lax.optimization_barrier(scale), over(tensor.encode))
            elif arithmetic == "two_level_inverse":
                assert tensor is not None
                scale = float32.divide(lax.optimization_barrier(scale), over(tensor.decode))
    scale = with_unit(scale, amax, block, also=scale == 0)
    if block.min_scale is not None:
        scale = jnp.maximum(scale, np.float32(block.min_scale).view(np.uint32))
    return scale


def stored_scale(wanted: jax.Array, block: Block) -> jax.Array:
    """Scales rounded to the scale format: codes, or float32 bits where it has more than 8 bits."""
    if block.scale_format.name == "float32":
        return wanted
    codes = encode_bits(wanted, block.scale_format, block.scale_rounding, "saturate")
    if block.scale_format.bits <= 8:
        return codes
    return decode_bits(codes.astype(jnp.uint32), block.scale_format)


def decoded_scale(stored: jax.Array, block: Block) -> jax.Array:
    """float32 bits of stored scales."""
    if block.scale_format.bits > 8:
        return stored
    return decode_bits(stored.astype(jnp.uint32), block.scale_format)


def with_unit(
    scale: jax.Array, amax: jax.Array, block: Block, also: jax.Array | bool = False
) -> jax.Array:
    """The scale 1 where the block's source leaves a tile unscaled."""
    unit = jnp.zeros(amax.shape, bool)
    if block.unit_scale_amax is not None:
        unit |= (amax <= np.float32(block.unit_scale_amax).view(np.uint32)) | also
        # 0 / 0 under the scale of a tensor of zeros stays NaN.
        unit &= scale <= float32.INFINITY
    if block.nonfinite == "unit_scale":
        unit |= amax >= float32.INFINITY
    return jnp.where(unit, float32.ONE, scale)


def divide_constant(constant: np.uint32, bits: jax.Array) -> jax.Array:
    """constant / bits."""
    # A barrier after each quotient: fused into one expression, a chain of them takes seconds to
    # compile.
    return lax.optimization_barrier(float32.divide(like(bits, constant), bits))


def finite(bits: jax.Array) -> jax.Array:
    """Inf becomes the largest finite number; NaN stays."""
    return jnp.where(bits == float32.INFINITY, float32.MAX_FINITE, bits)


def like(x: jax.Array, constant: np.uint32) -> jax.Array:
    """An array of x's shape of one number's bits."""
    return jnp.full_like(x, constant)
