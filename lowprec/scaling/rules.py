"""Scale rules: from the largest magnitude of a tile to its scale and what it does to an element."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.numerics import float32
from lowprec.scaling.block import Block
from lowprec.scaling.levels import (
    TensorScale,
    bits_of,
    decoded_scale,
    divide_constant,
    finite,
    largest_element,
    like,
    stored_scale,
    tensor_scale,
    wanted_scale,
    with_unit,
)
from lowprec.scaling.powers import power_codes

FOUR_THIRDS = np.float32(1 / 0.75)
"""The constant that `three_quarter` keeps outside the stored scales."""


class Scales(NamedTuple):
    """What a rule finds for each tile.

    Attributes:
      stored: codes of the scale format, or float32 bits (uint32).
      multiplier: float32 bits that a value is multiplied by before it is encoded, or None.
      divisor: float32 bits that a value is divided by before it is encoded, or None.
      exponent: the power of two that a value is multiplied by before it is encoded, or None.
      tensor: float32 bits of the tensor's scale, of the rows' scales, or None.
    """

    stored: jax.Array
    multiplier: jax.Array | None = None
    divisor: jax.Array | None = None
    exponent: jax.Array | None = None
    tensor: jax.Array | None = None


def find_scales(amax: jax.Array, tensor_amax: jax.Array, block: Block) -> Scales:
    """The scales of tiles with the largest magnitudes `amax` (uint32 float32 bits).

    `tensor_amax` (uint32 bits, broadcastable) is used where the block has a tensor scale.
    """
    amax = raised(amax, block)
    if block.scale_arithmetic == "encode_scale":
        largest = largest_element(block).view(np.uint32)
        encode = with_unit(finite(divide_constant(largest, amax)), amax, block)
        return Scales(divide_constant(float32.ONE, encode), multiplier=encode)
    tensor = None if block.tensor_scale == "none" else tensor_scale(tensor_amax, block)
    return applied(first_choice(amax, tensor, block), tensor, block)


def raised(amax: jax.Array, block: Block) -> jax.Array:
    """amax, at least the block's `min_amax`; NaN stays."""
    return jnp.maximum(amax, np.float32(block.min_amax).view(np.uint32))


def first_choice(amax: jax.Array, tensor: TensorScale | None, block: Block) -> jax.Array:
    """The stored scales that the largest magnitudes alone decide."""
    if block.power_of_two:
        return power_codes(amax, block).astype(block.scale_format.code_dtype)
    return stored_scale(wanted_scale(amax, tensor, block), block)


def applied(stored: jax.Array, tensor: TensorScale | None, block: Block) -> Scales:
    """What stored scales do to the elements before they are encoded."""
    if block.scale_rule == "three_quarter":
        constant = jnp.full((1,) * stored.ndim, bits_of(FOUR_THIRDS))
        decoded = decoded_scale(stored, block)
        divisor = float32.multiply(decoded, like(decoded, bits_of(FOUR_THIRDS)))
        return Scales(stored, divisor=divisor, tensor=constant)
    if block.power_of_two:
        power = block.scale_format.bias - stored.astype(jnp.int32)
        return Scales(stored, exponent=power)
    decoded = decoded_scale(stored, block)
    match block.scale_arithmetic:
        case "divide" | "reciprocal_max":
            return Scales(stored, divisor=decoded)
        case "multiply_inverse":
            return Scales(stored, multiplier=divide_constant(float32.ONE, decoded))
    assert tensor is not None
    level = lambda bits: jnp.broadcast_to(bits, decoded.shape)
    if block.scale_arithmetic == "two_level_inverse":
        multiplier = float32.divide(level(tensor.encode), decoded)
        return Scales(stored, multiplier=multiplier, tensor=tensor.decode)
    whole = float32.multiply_short(decoded, level(tensor.decode))
    if block.scale_arithmetic == "two_level_divide":
        return Scales(stored, divisor=whole, tensor=tensor.decode)
    multiplier = finite(divide_constant(float32.ONE, whole))
    return Scales(stored, multiplier=multiplier, tensor=tensor.decode)


def scaled_elements(
    bits: jax.Array, found: Scales, block: Block, to_elements: Callable[[jax.Array], jax.Array]
) -> float32.Number:
    """Elements (float32 bits) divided by their scales, as the block's arithmetic does it.

    `to_elements` gives every element its tile's value.
    """
    if found.exponent is not None:
        x = float32.number(bits)
        nan_code = block.scale_format.nan_code
        nan = found.stored == np.asarray(nan_code or 0, found.stored.dtype)
        return x._replace(
            exponent=x.exponent + to_elements(found.exponent),
            nan=x.nan if nan_code is None else x.nan | to_elements(nan),
        )
    if found.divisor is not None:
        return float32.scaled_down(bits, to_elements(found.divisor))
    assert found.multiplier is not None
    return float32.scaled_up(bits, to_elements(found.multiplier))
