"""Scale rules: from the largest magnitude of a tile to its scale, on bit patterns."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.numerics import float32
from lowprec.numerics.codec import decode_bits, encode_bits
from lowprec.scaling.block import Block


class Scales(NamedTuple):
    """What a rule finds for each tile.

    Attributes:
      stored: codes of the scale format, or float32 bits (uint32).
      multiplier: float32 bits that a value is multiplied by before it is encoded, or None.
      divisor: float32 bits that a value is divided by before it is encoded, or None.
      exponent: the power of two that a value is multiplied by before it is encoded, or None.
      tensor: float32 bits of the tensor's scale, or None.
    """

    stored: jax.Array
    multiplier: jax.Array | None = None
    divisor: jax.Array | None = None
    exponent: jax.Array | None = None
    tensor: jax.Array | None = None


def find_scales(amax: jax.Array, tensor_amax: jax.Array, block: Block) -> Scales:
    """The scales of tiles with the largest magnitudes `amax` (uint32 float32 bits).

    `tensor_amax` (uint32 bits, broadcastable) is used by `two_level` alone.
    """
    amax = jnp.maximum(amax, np.float32(block.min_amax).view(np.uint32))
    if block.power_of_two:
        return _power_of_two(amax, block)
    if block.scale_arithmetic == "two_level":
        return _two_level(amax, tensor_amax, block)
    largest = float32.constant(block.element.max)
    if block.scale_arithmetic == "divide":
        scale = _with_unit(float32.divide(amax, _like(amax, largest)), amax, block)
        return Scales(scale, divisor=scale)
    encode_scale = _finite(_divide(largest, amax))
    encode_scale = _with_unit(encode_scale, amax, block)
    return Scales(_divide(float32.ONE, encode_scale), multiplier=encode_scale)


def _power_of_two(amax: jax.Array, block: Block) -> Scales:
    """OCP MX: a scale 2^(code - bias), NaN for a tile with Inf or NaN, the smallest for zeros."""
    scale_format, element = block.scale_format, block.element
    largest_mantissa, largest_exponent = math.frexp(element.max)
    _, exponent, significand = float32.unpack(amax)
    match block.scale_rule:
        case "floor":
            step = jnp.zeros_like(exponent)
        case "even":
            half = np.uint32(1 << (22 - element.mantissa_bits))
            step = (significand + half >= np.uint32(1 << 24)).astype(jnp.int32)
        case "ceil":
            step = (significand > np.uint32(1 << 23)).astype(jnp.int32)
        case _:
            step = (significand > np.uint32(int(largest_mantissa * 2**24))).astype(jnp.int32)
    code = exponent + step - (largest_exponent - 1) + scale_format.bias
    code = jnp.where(amax == 0, 0, jnp.clip(code, 0, scale_format.max_code))
    power = scale_format.bias - code
    nan = amax >= float32.INFINITY
    stored = jnp.where(nan, np.int32(scale_format.nan_code or 0), code)
    return Scales(stored.astype(scale_format.code_dtype), exponent=power)


def _two_level(amax: jax.Array, tensor_amax: jax.Array, block: Block) -> Scales:
    """TransformerEngine's NVFP4: S = SMAX * MAX / g, scale = e4m3(amax * (S * (1/MAX)))."""
    scale_format, element = block.scale_format, block.element
    range_bits = float32.constant(scale_format.max * element.max)
    inverse_max = np.float32(1.0 / element.max).view(np.uint32)
    tensor = _finite(_divide(range_bits, tensor_amax))
    tensor = jnp.where((tensor_amax == 0) | (tensor == 0), float32.ONE, tensor)
    factor = float32.multiply(tensor, _like(tensor, inverse_max))
    wanted = _finite(float32.multiply(amax, factor))
    stored = encode_bits(wanted, scale_format, "nearest_even", "saturate")
    tensor_scale = _divide(float32.ONE, tensor)
    decoded = decode_bits(stored.astype(jnp.uint32), scale_format)
    encode_scale = _finite(_divide(float32.ONE, float32.multiply(decoded, tensor_scale)))
    return Scales(stored, multiplier=encode_scale, tensor=tensor_scale)


def _with_unit(scale: jax.Array, amax: jax.Array, block: Block) -> jax.Array:
    """The scale 1 where the block's source leaves a tile unscaled."""
    unit = jnp.zeros(amax.shape, bool)
    if block.unit_scale_amax is not None:
        unit |= amax <= np.float32(block.unit_scale_amax).view(np.uint32)
    if block.nonfinite == "unit_scale":
        unit |= amax >= float32.INFINITY
    return jnp.where(unit, float32.ONE, scale)


def _divide(constant: np.uint32, bits: jax.Array) -> jax.Array:
    # A barrier after each quotient: fused into one expression, a chain of them takes seconds to
    # compile.
    return lax.optimization_barrier(float32.divide(_like(bits, constant), bits))


def _finite(bits: jax.Array) -> jax.Array:
    """Inf becomes the largest finite number; NaN stays."""
    return jnp.where(bits == float32.INFINITY, float32.MAX_FINITE, bits)


def _like(x: jax.Array, bits: np.uint32) -> jax.Array:
    return jnp.full_like(x, bits)
