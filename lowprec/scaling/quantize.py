"""Quantizing a tensor: a scale for each tile, then a code for each element."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from lowprec.numerics import float32
from lowprec.numerics.arguments import (
    check_random,
    float_array,
    real_array,
    refuse_gradient,
    refuse_gradient_of,
)
from lowprec.numerics.rounding import Rounding, is_stochastic
from lowprec.scaling import affine, eden, logarithmic, transforms
from lowprec.scaling.block import Block, get_block
from lowprec.scaling.candidates import TRIED, tried_scales
from lowprec.scaling.once import once
from lowprec.scaling.ordinary import encode_scaled
from lowprec.scaling.qtensor import QTensor
from lowprec.scaling.rules import Scales, find_scales
from lowprec.scaling.tiles import amax_bits, normalise_axis, scales_shape, tile_shape
from lowprec.scaling.transforms import vector_for


def quantize(
    x: ArrayLike,
    block: str | Block,
    *,
    axis: int = -1,
    amax: ArrayLike | None = None,
    rounding: Rounding | None = None,
    random_bits: ArrayLike | None = None,
    signs: ArrayLike | None = None,
    smoothing: ArrayLike | None = None,
) -> QTensor:
    """Quantizes a tensor in tiles that share a scale.

    Zero tiles give zero codes, and -0 keeps its sign where the element has it, except where a
    source divides 0 by 0: `nvfp4_jax` and `nvfp4_ue5m3` code the NaN of a tile whose scale rounds
    to 0 as -0 (that of -0 as 0); in `nvfp4_torchao`, `nvfp4_modelopt` and `nvfp4_modelopt_g32` a
    tensor of zeros becomes NaN, and a tile of zeros in every `fp8_*_torchao_inference`.
    Subnormals, of x and of the scales, are exact. A tile with Inf or NaN follows the block: MX
    blocks make the whole tile NaN. Ragged tiles at the end are tiles of what is left.

    Args:
      x: float32, bfloat16 or float16, any shape with at least one axis and no empty one; a Python
        list is rounded to float32 first. Axes before the last two are batch axes, but a tile of
        ["all", "all"] and a tensor scale span them all: `jax.vmap` gives each batch member its own.
      block: a block by name, path or value.
      axis: the contraction axis, along which the tile's second size runs.
      amax: for static or delayed scaling, the largest magnitudes to scale by instead of the
        measured ones, float32, finite and >= 0: of the tensor (a scalar) or of its rows (the tensor
        shape with 1 for `axis`) where the block has a tensor scale, else of the tiles
        (broadcastable to the scales' shape). What lies above saturates.
      rounding: of the elements; by default the block's.
      random_bits: for `stochastic`, an unsigned array of x's shape; for a block with [eden], of the
        scales' shape.
      signs: for a transform with signs = "given": +1 or -1, one an element of the transform's
        block or of the axis.
      smoothing: for a `smoothing` transform: finite factors above 0, one a place along the axis.

    Returns:
      A `QTensor`.

    Raises:
      TypeError: x is not float32, bfloat16 or float16, `axis` is no integer, or `amax`, `signs` or
        `smoothing` are no numbers.
      ValueError: an empty array, an axis out of range, an unknown block or rounding, random bits
        missing or superfluous; `amax`, `signs` or `smoothing` missing, misshapen or of other values
        than those above. Traced ones have no values to look at: then what is negative counts as
        -1 among signs, the sign of an `amax` is dropped, and Inf, NaN and factors of 0 go through
        the arithmetic. Under `jax.grad`: use `lowprec.cast`; `amax` and `smoothing` have no
        gradient there either, and raise.

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
    count = block.random_bit_count if is_stochastic(mode) else None
    check_coding(block, rounding, amax)
    vector = vector_for(block.transform, x.shape[axis], signs, smoothing)
    if block.eden is None:
        words, word_bits = check_random(x.shape, mode, random_bits, count)
    else:
        words, word_bits = eden.check_words(block, x.shape, axis, random_bits)
    if amax is None and block.amax_source == "given":
        raise ValueError(
            f"the block {block.name} is for static scaling: pass `amax`, the largest magnitudes to "
            f"scale by, found on other data"
        )
    static = None if amax is None else _static_amax(amax, x.shape, block, axis)
    fixed = refuse_gradient("quantize", x)
    return _quantize(fixed, static, words, vector, block, axis, mode, word_bits)


@functools.partial(jax.jit, static_argnames=("block", "axis", "mode", "word_bits"))
def _quantize(
    x: jax.Array,
    static: jax.Array | None,
    words: jax.Array | None,
    vector: jax.Array | None,
    block: Block,
    axis: int,
    mode: str,
    word_bits: int,
) -> QTensor:
    bits = float32.to_bits(x)
    if block.transform is not None:
        bits, vector = transforms.apply(bits, block.transform, axis, vector)
        # Otherwise it would be done again for each of those who need its result.
        bits = lax.optimization_barrier(bits)
    tiles = tile_shape(block, x.shape, axis)
    if block.coding != "scaled":
        coder = affine.quantize if block.coding == "affine" else logarithmic.quantize
        codes, scales, offsets = coder(bits, block, tiles, mode, words, word_bits)
        return QTensor(
            codes=codes,
            scales=float32.from_bits(scales),
            offsets=None if offsets is None else float32.from_bits(offsets),
            transform_state=vector,
            block=block,
            axis=axis,
        )
    if block.eden is not None:
        codes, scales, tensor = eden.quantize(
            bits, block, tiles, axis, static, mode, words, word_bits
        )
        return QTensor(
            codes=codes,
            scales=scales,
            tensor_scale=float32.from_bits(tensor),
            transform_state=vector,
            block=block,
            axis=axis,
        )
    tile_amax, tensor_amax = _amax(bits, tiles, axis, block, static)
    if block.scale_rule in TRIED:
        found = tried_scales(bits, tile_amax, tensor_amax, tiles, axis, block)
    else:
        found = _materialised(tile_amax, tensor_amax, block)
    measured = None if static is not None and block.tensor_scale == "none" else tile_amax
    codes = encode_scaled(bits, found, measured, block, tiles, mode, words, word_bits)
    float_scales = block.scale_format.bits > 8
    return QTensor(
        codes=codes,
        scales=float32.from_bits(found.stored) if float_scales else found.stored,
        tensor_scale=None if found.tensor is None else float32.from_bits(found.tensor),
        transform_state=vector,
        block=block,
        axis=axis,
    )


def check_coding(block: Block, rounding: Rounding | None, amax: ArrayLike | None) -> None:
    """Raises ValueError for an argument of `quantize` that the block's coding has no use for."""
    if block.coding != "scaled" and amax is not None:
        raise ValueError(
            f"the {block.coding} block {block.name} measures the range of its tiles; leave out "
            f"`amax`"
        )
    if block.eden is not None and rounding is not None and is_stochastic(rounding):
        raise ValueError(
            f"`rounding` = {rounding!r}; the block {block.name} rounds its scales stochastically, "
            f"and its elements not"
        )
    fixed = "half is added before" if block.affine and block.affine.add_half else ""
    fixed = "codes are the nearest in" if block.logarithmic else fixed
    if fixed and rounding is not None:
        raise ValueError(
            f"`rounding` = {rounding!r}; the rounding of {block.name} is part of its coding "
            f"({fixed} {'truncating' if block.affine else 'linear space'}): leave it out"
        )


def _static_amax(amax: ArrayLike, shape: tuple[int, ...], block: Block, axis: int) -> jax.Array:
    """Bits of the given largest magnitudes, in the shape of the scales or of the tensor scale."""
    given = real_array("amax", amax)
    # Under `jit` the sign is dropped, unseen, and Inf and NaN make Inf and NaN.
    if not isinstance(given, Tracer):
        _check_amax(amax, np.asarray(given))
    given = refuse_gradient_of("amax", "the largest magnitude to scale by", given)
    tiles = tile_shape(block, shape, axis)
    two_level = block.tensor_scale != "none"
    target = _tensor_shape(shape, axis, block) if two_level else scales_shape(shape, tiles)
    given = given.reshape((1,) * len(shape)) if given.size == 1 else given
    if given.ndim != len(target) or any(
        size not in (1, wanted) for size, wanted in zip(given.shape, target, strict=True)
    ):
        raise ValueError(
            f"`amax` of shape {np.shape(amax)} does not broadcast to {target}, the shape of "
            f"{'the tensor scale' if two_level else 'the scales'}"
        )
    return float32.to_bits(jnp.broadcast_to(given, target)) & float32.MAGNITUDE


def _check_amax(amax: ArrayLike, given: np.ndarray) -> None:
    if np.any(given < 0):
        raise ValueError(f"`amax` = {amax} is negative; it is the largest magnitude, at least 0")
    if not np.all(np.isfinite(given)):
        raise ValueError(
            f"`amax` = {amax} is not finite as a float32; it is the largest magnitude, from 0 to "
            f"{np.finfo(np.float32).max}"
        )


def _tensor_shape(shape: tuple[int, ...], axis: int, block: Block) -> tuple[int, ...]:
    """The shape of the tensor scale: one number, or one a row, which is all of `axis`."""
    if block.tensor_scale == "amax":
        return (1,) * len(shape)
    return tuple(1 if i == axis % len(shape) else size for i, size in enumerate(shape))


def _amax(
    bits: jax.Array, tiles: tuple[int, ...], axis: int, block: Block, static: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Bits of the largest magnitude of each tile and of the tensor, as measured or as given."""
    if block.tensor_scale == "none":
        tile_amax = amax_bits(bits & float32.MAGNITUDE, tiles) if static is None else static
        return tile_amax, tile_amax
    measured = amax_bits(bits & float32.MAGNITUDE, tiles)
    if static is not None:
        return measured, static
    over = None if block.tensor_scale == "amax" else axis
    return measured, jnp.max(measured, axis=over, keepdims=True)


def _materialised(amax: jax.Array, tensor_amax: jax.Array, block: Block) -> Scales:
    """`find_scales`, done once for a tile where it takes more than a few integer operations."""
    if block.power_of_two and block.scale_rule not in ("oas", "three_quarter"):
        # Cheap to repeat, and equal tensors are quantized once.
        return find_scales(amax, tensor_amax, block)
    return once(functools.partial(find_scales, block=block), amax, tensor_amax)
