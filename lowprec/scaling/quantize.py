"""Quantizing a tensor: a scale for each tile, then a code for each element."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from lowprec.numerics import float32
from lowprec.numerics.codec import check_random, encode_number, float_array, refuse_gradient
from lowprec.numerics.rounding import Rounding
from lowprec.scaling.block import Block, get_block
from lowprec.scaling.qtensor import QTensor
from lowprec.scaling.rules import Scales, find_scales
from lowprec.scaling.tiles import amax_bits, normalise_axis, scales_shape, spread, tile_shape


def quantize(
    x: ArrayLike,
    block: str | Block,
    *,
    axis: int = -1,
    amax: ArrayLike | None = None,
    rounding: Rounding | None = None,
    random_bits: ArrayLike | None = None,
) -> QTensor:
    """Quantizes a tensor in tiles that share a scale.

    Zero tiles give zero codes, and -0 keeps its sign; subnormals, of x and of the scales, are
    exact. A tile with Inf or NaN follows the block: MX blocks make the whole tile NaN. Ragged tiles
    at the end are tiles of what is left.

    Args:
      x: float32, bfloat16 or float16, any shape with at least one axis and no empty one. Axes
        before the last two are batch axes, but a tile of ["all", "all"] and a tensor scale span
        them all: `jax.vmap` gives each batch member its own.
      block: a block by name, path or value.
      axis: the contraction axis, along which the tile's second size runs.
      amax: for static or delayed scaling, the largest magnitudes to scale by instead of the
        measured ones, float32 >= 0: of the tensor (a scalar) where the block has a tensor scale,
        else of the tiles (broadcastable to the scales' shape). What lies above saturates.
      rounding: of the elements; by default the block's.
      random_bits: for `stochastic`, an unsigned array of x's shape.

    Returns:
      A `QTensor`.

    Raises:
      TypeError: x is not float32, bfloat16 or float16.
      ValueError: an empty array, an axis out of range, a misshapen `amax`, an unknown block or
        rounding, random bits missing or superfluous. Under `jax.grad`: use `lowprec.cast`.

    Source: the block's own citation, `lowprec show NAME`.

    Example:
      >>> q = quantize(jnp.array([[1.0, 3.1, -7.0]]), "mxfp4")
      >>> q.codes, q.scales, q.bits_per_element
      (Array([[ 2,  5, 15]], dtype=uint8), Array([[127]], dtype=uint8), 6.666666666666667)
    """
    block = get_block(block)
    x = float_array("x", x)
    if x.ndim == 0 or x.size == 0:
        raise ValueError(f"`x` of shape {x.shape} has no elements to share a scale")
    axis = normalise_axis(axis, x.ndim)
    mode = block.rounding if rounding is None else rounding
    count = block.random_bit_count if mode == "stochastic" else None
    words, word_bits = check_random(x.shape, mode, random_bits, count)
    static = None if amax is None else _static_amax(amax, x.shape, block, axis)
    return _quantize(refuse_gradient("quantize", x), static, words, block, axis, mode, word_bits)


@functools.partial(jax.jit, static_argnames=("block", "axis", "mode", "word_bits"))
def _quantize(
    x: jax.Array,
    static: jax.Array | None,
    words: jax.Array | None,
    block: Block,
    axis: int,
    mode: str,
    word_bits: int,
) -> QTensor:
    bits = float32.to_bits(x)
    tiles = tile_shape(block, x.shape, axis)
    tile_amax, tensor_amax = _amax(bits, tiles, block, static)
    found = _materialised(tile_amax, tensor_amax, block)
    scaled = _scale(bits, found, block, tiles)
    codes = encode_number(scaled, block.element, mode, block.overflow, words, word_bits)
    float_scales = block.scale_format.bits > 8
    return QTensor(
        codes=codes,
        scales=float32.from_bits(found.stored) if float_scales else found.stored,
        tensor_scale=None if found.tensor is None else float32.from_bits(found.tensor),
        block=block,
        axis=axis,
    )


def _static_amax(amax: ArrayLike, shape: tuple[int, ...], block: Block, axis: int) -> jax.Array:
    """Bits of the given largest magnitudes, in the shape of the scales or of the tensor scale."""
    given = jnp.asarray(amax, jnp.float32)
    tiles = tile_shape(block, shape, axis)
    two_level = block.tensor_scale == "amax"
    target = (1,) * len(shape) if two_level else scales_shape(shape, tiles)
    given = given.reshape((1,) * len(shape)) if given.size == 1 else given
    if given.ndim != len(target) or any(
        size not in (1, wanted) for size, wanted in zip(given.shape, target, strict=True)
    ):
        raise ValueError(
            f"`amax` of shape {np.shape(amax)} does not broadcast to {target}, the shape of "
            f"{'the tensor scale' if two_level else 'the scales'}"
        )
    return float32.to_bits(jnp.broadcast_to(given, target)) & float32.MAGNITUDE


def _amax(
    bits: jax.Array, tiles: tuple[int, ...], block: Block, static: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Bits of the largest magnitude of each tile and of the tensor, as measured or as given."""
    if block.tensor_scale == "none":
        tile_amax = amax_bits(bits & float32.MAGNITUDE, tiles) if static is None else static
        return tile_amax, tile_amax
    measured = amax_bits(bits & float32.MAGNITUDE, tiles)
    return measured, jnp.max(measured, keepdims=True) if static is None else static


def _materialised(amax: jax.Array, tensor_amax: jax.Array, block: Block) -> Scales:
    """`find_scales` in a loop of one turn, whose count the compiler does not see.

    Otherwise it would fuse the scale's arithmetic into what follows, and do it again for every
    element of the tile.
    """
    if block.power_of_two:
        # A few integer operations: cheap to repeat, and equal tensors are quantized once.
        return find_scales(amax, tensor_amax, block)
    shapes = jax.eval_shape(functools.partial(find_scales, block=block), amax, tensor_amax)
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    once = lax.optimization_barrier(jnp.int32(1))
    return lax.fori_loop(0, once, lambda *_: find_scales(amax, tensor_amax, block), start)


def _scale(bits: jax.Array, found: Scales, block: Block, tiles: tuple[int, ...]) -> float32.Number:
    """The elements divided by their scales, as the block's arithmetic does it."""
    if found.exponent is not None:
        x = float32.number(bits)
        nan = found.stored == np.asarray(block.scale_format.nan_code, found.stored.dtype)
        return x._replace(
            exponent=x.exponent + spread(found.exponent, bits.shape, tiles),
            nan=x.nan | spread(nan, bits.shape, tiles),
        )
    if found.divisor is not None:
        return float32.scaled_down(bits, spread(found.divisor, bits.shape, tiles))
    assert found.multiplier is not None
    return float32.scaled_up(bits, spread(found.multiplier, bits.shape, tiles))
