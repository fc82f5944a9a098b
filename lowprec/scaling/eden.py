"""MS-EDEN: a block quantizer that is unbiased although its elements are rounded to nearest.

After a random rotation, EDEN's factor sum(y^2) / sum(y q) makes the quantized q of y unbiased; it
is multiplied into the scales, which are then rounded stochastically. The randomness is in the
rotation and in one word a scale, none in the elements.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from lowprec.numerics import float32
from lowprec.numerics.codec import check_random, decode_bits, encode_bits, encode_number
from lowprec.scaling.addition import tree_sum
from lowprec.scaling.block import Block
from lowprec.scaling.once import once
from lowprec.scaling.tiles import amax_bits, scales_shape, spread, tile_shape


def check_words(
    block: Block, shape: tuple[int, ...], axis: int, random_bits: ArrayLike | None
) -> tuple[jax.Array | None, int]:
    """The random words, one a scale, as uint32, and how many bits they have.

    Raises:
      ValueError: they are missing, or not of the scales' shape.
    """
    wanted = scales_shape(shape, tile_shape(block, shape, axis))
    given = None if random_bits is None else jnp.shape(random_bits)
    if given != wanted:
        raise ValueError(
            f"the block {block.name} rounds its scales stochastically and needs `random_bits`, an "
            f"unsigned array of the scales' shape {wanted}; got "
            f"{'none' if given is None else f'shape {given}'}"
        )
    return check_random(wanted, "stochastic", random_bits, None)


def quantize(
    bits: jax.Array,
    block: Block,
    tiles: tuple[int, ...],
    axis: int,
    static: jax.Array | None,
    mode: str,
    words: jax.Array | None,
    word_bits: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Element codes, scale codes and the tensor scale (float32 bits) of float32 bits.

    With g the largest magnitude of the tensor, a a tile's, v = MAX / scale_override and every
    operation a float32 one: T = (g / largest_scale) / v, X = fmt((a / v) / T), y = x / (X T), q the
    element nearest to y, and X becomes X * (sum(y^2) / sum(y q)), rounded stochastically. T is 1
    for a tensor of zeros, X is 1 where it would be 0, and so is the factor where sum(y q) is 0. Inf
    or NaN anywhere makes the whole tensor NaN.
    """
    assert block.eden is not None
    amax = amax_bits(bits & float32.MAGNITUDE, tiles)
    largest = jnp.max(amax, keepdims=True) if static is None else static
    tensor, decoded, divisor = once(functools.partial(_scales, block=block), amax, largest)
    scaled = once(float32.divide, bits, spread(divisor, bits.shape, tiles))
    codes = encode_number(float32.number(scaled), block.element, mode, block.overflow)
    elements = decode_bits(codes.astype(jnp.uint32), block.element)
    weight = decoded if block.eden.weights == "scale" else None
    weights = None if weight is None else spread(weight, bits.shape, tiles)
    correct = functools.partial(correction, group=block.eden.group, axis=axis)
    operands = (scaled, elements) if weights is None else (scaled, elements, weights)
    factor = once(correct, *operands)
    per_tile = jnp.repeat(factor, block.eden.group // tiles[axis], axis)
    per_tile = lax.slice_in_dim(per_tile, 0, amax.shape[axis], axis=axis)
    corrected = float32.multiply(decoded, per_tile)
    scales = encode_bits(corrected, block.scale_format, "stochastic", "saturate", words, word_bits)
    return codes, scales, tensor


def correction(
    y: jax.Array, q: jax.Array, weights: jax.Array | None = None, *, group: int, axis: int
) -> jax.Array:
    """sum(y^2) / sum(y q) over groups along an axis, float32 bits; 1 where sum(y q) is 0.

    With weights y and q are y * weight and q * weight, each product rounded.
    """
    if weights is not None:
        y, q = float32.multiply(jnp.stack([y, q]), jnp.stack([weights, weights]))
    products = float32.multiply(jnp.stack([y, y]), jnp.stack([y, q]))
    above, below = tree_sum(_grouped(products, group, axis), axis + y.ndim + 2)
    nothing = (below & float32.MAGNITUDE) == 0
    factor = jnp.where(nothing, float32.ONE, _divide(above, below))
    return lax.squeeze(factor, (axis + y.ndim + 1,))


def _grouped(terms: jax.Array, group: int, axis: int) -> jax.Array:
    """(..., n, ...) to (..., n / group, group, ...), zero-padded; `axis` counts from the end."""
    axis += terms.ndim
    padding = [(0, -size % group if i == axis else 0) for i, size in enumerate(terms.shape)]
    terms = jnp.pad(terms, padding) if padding[axis][1] else terms
    return terms.reshape(*terms.shape[:axis], -1, group, *terms.shape[axis + 1 :])


def _scales(
    amax: jax.Array, largest: jax.Array, block: Block
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The tensor scale, the tiles' scales before correction, and what x is divided by."""
    assert block.eden is not None
    top = np.float32(block.eden.largest_scale).view(np.uint32)
    clip = np.float32(block.element.max / block.eden.scale_override).view(np.uint32)
    tensor = _divide(_divide(largest, jnp.full_like(largest, top)), jnp.full_like(largest, clip))
    tensor = jnp.where(largest == 0, float32.ONE, tensor)
    wanted = _divide(amax, jnp.full_like(amax, clip))
    wanted = _divide(wanted, jnp.broadcast_to(tensor, amax.shape))
    codes = encode_bits(wanted, block.scale_format, "nearest_even", "saturate")
    decoded = decode_bits(codes.astype(jnp.uint32), block.scale_format)
    decoded = jnp.where(decoded == 0, float32.ONE, decoded)
    return tensor, decoded, float32.multiply(decoded, tensor)


def _divide(a: jax.Array, b: jax.Array) -> jax.Array:
    # A barrier after each quotient: fused into one expression, a chain of them compiles slowly.
    return lax.optimization_barrier(float32.divide(a, b))
