"""One operand of a product, quantized: its elements, and the scales still to be applied."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lowprec.gemm.recipe import OperandPair, ScalePlace, takes_amax
from lowprec.numerics import float32
from lowprec.numerics.codec import decode, encode
from lowprec.numerics.format import Format
from lowprec.numerics.rounding import Overflow, is_stochastic
from lowprec.scaling.block import Block
from lowprec.scaling.qtensor import QTensor
from lowprec.scaling.quantize import quantize
from lowprec.scaling.tiles import scales_shape, spread, tile_shape, tiles_of
from lowprec.scaling.transforms import mean

Matrix = jax.Array | QTensor
"""A matrix, or one as its block quantized it along its contraction axis."""


class Operand(NamedTuple):
    """A matrix whose product is scaled later.

    Attributes:
      values: float32, of the operand's shape.
      scales: float32 bits that the product is multiplied by: one for each row (of a) or column
        (of b) and each k, or a single one along K, or None where `values` hold the scales already.
      tensor_scale: float32 bits of shape (1, 1), or None.
      block_scales: uint8 codes for the engine, (M, ceil(K / block)) or (ceil(K / block), N).
    """

    values: jax.Array
    scales: jax.Array | None = None
    tensor_scale: jax.Array | None = None
    block_scales: jax.Array | None = None


def prepare_operand(
    x: Matrix,
    target: Format | Block,
    place: ScalePlace,
    *,
    axis: int,
    key: jax.Array | None,
    scale_block: int | None = None,
    turned: bool = False,
    signs: jax.Array | None = None,
    amax: jax.Array | None = None,
) -> tuple[Operand, QTensor | None]:
    """Quantizes a matrix along its contraction axis, -1 for a and -2 for b.

    The QTensor beside the operand is what its values come from; None for a plain format. With
    `place` = "engine" scales are left as codes, one for every `scale_block` elements along K. A
    transform is undone, unless the values are to stay `turned`; `signs` are those of one that takes
    them, and `amax` what a block for given ones is scaled by. An `x` that is quantized already is
    taken as it is.
    """
    if isinstance(target, Format):
        assert not isinstance(x, QTensor)
        return Operand(_plain(x, target)), None
    if isinstance(x, QTensor):
        q = x
    else:
        words = random_words(x.shape, target, axis, key)
        q = quantize(x, target, axis=axis, random_bits=words, signs=signs, amax=amax)
    if target.transform is not None and not turned:
        return Operand(q.dequantize()), q
    tensor = None if q.tensor_scale is None else float32.to_bits(q.tensor_scale)
    if place == "operands":
        # What is left as it was turned is scaled like any other.
        plain = dataclasses.replace(q, block=dataclasses.replace(target, transform=None))
        return Operand(float32.from_bits(plain.scaled_bits()), None, tensor), q
    if place == "engine":
        assert scale_block is not None
        codes = _block_scales(q, target, axis, scale_block)
        return Operand(float32.from_bits(q.element_bits()), None, tensor, codes), q
    per_tile = q.scale_bits()
    tiles = tiles_of(q.shape, per_tile.shape, target, axis)
    # Tiles are spread over rows, columns and K; where one spans K, one scale is left there.
    shape, keep = list(q.shape), list(tiles)
    if per_tile.shape[axis] == 1:
        shape[axis], keep[axis] = 1, 1
    scales = spread(per_tile, tuple(shape), tuple(keep))
    return Operand(float32.from_bits(q.element_bits()), scales, tensor), q


def random_words(
    shape: tuple[int, ...], block: Block, axis: int, key: jax.Array | None
) -> jax.Array | None:
    """The words that round elements stochastically, or with [eden] scales; None where none do."""
    if key is None or not (is_stochastic(block.rounding) or block.eden):
        return None
    if block.eden is not None:
        shape = scales_shape(shape, tile_shape(block, shape, axis))
    return jax.random.bits(key, shape, jnp.uint32)


def random_signs(target: Format | Block, key: jax.Array | None) -> jax.Array | None:
    """The signs of a transform that takes some, float32; from one key the same for both operands.

    `key` is the product's; of what `jax.random.split` makes of it, the operands have the first two.
    """
    transform = target.transform if isinstance(target, Block) else None
    if key is None or transform is None or transform.needs != "signs":
        return None
    third = jax.random.fold_in(key, 2)
    return jax.random.rademacher(third, (transform.size,), jnp.float32)


def earlier_copies(a: Matrix, b: Matrix, pair: OperandPair) -> tuple[Matrix, Matrix]:
    """Both matrices as the copies of other roles hold them, where the pair starts from those."""
    if pair.a_from is not None:
        assert not isinstance(a, QTensor)
        a = _copy(a, pair.a_from, -2)
    if pair.b_from is not None:
        assert not isinstance(b, QTensor)
        b = _copy(b, pair.b_from, -1)
    return a, b


@functools.partial(jax.jit, static_argnames=("target", "axis"))
def _copy(x: jax.Array, target: Format | Block, axis: int) -> jax.Array:
    if isinstance(target, Format):
        return _plain(x, target).astype(x.dtype)
    return quantize(x, target, axis=axis, amax=mean_amax(x, target, axis)).dequantize(x.dtype)


def mean_amax(x: jax.Array, target: Format | Block, axis: int) -> jax.Array | None:
    """The mean magnitude of each tile, for a block that is to be given its amax; else None.

    A float32 sum of pairs of pairs, divided: over the tensor with the contraction axis last, or
    along that axis.
    """
    if not takes_amax(target):
        return None
    assert isinstance(target, Block)
    return _mean_magnitude(x, target, axis)


@functools.partial(jax.jit, static_argnames=("target", "axis"))
def _mean_magnitude(x: jax.Array, target: Block, axis: int) -> jax.Array:
    magnitudes = float32.to_bits(x) & float32.MAGNITUDE
    if target.tile == ("all", "all"):
        return mean(jnp.moveaxis(magnitudes, axis, -1).reshape(-1), 0)
    return mean(magnitudes, axis % x.ndim)


def whole_transforms(a: Matrix, b: Matrix, pair: OperandPair) -> tuple[Matrix, Matrix]:
    """Both matrices with zeros along K up to whole blocks of their transforms."""
    sizes = [x.transform.size for x in (pair.a, pair.b) if isinstance(x, Block) and x.transform]
    missing = -a.shape[1] % math.lcm(*(size or 1 for size in sizes))
    if not missing:
        return a, b
    assert not isinstance(a, QTensor) and not isinstance(b, QTensor)
    return jnp.pad(a, [(0, 0), (0, missing)]), jnp.pad(b, [(0, missing), (0, 0)])


def _block_scales(q: QTensor, block: Block, axis: int, every: int) -> jax.Array:
    """The scale codes of a matrix, one for each row (of a) or column (of b) and `every` k."""
    tiles = list(tiles_of(q.shape, q.scales.shape, block, axis))
    shape = list(q.shape)
    along = block.tile[1]
    assert isinstance(along, int)
    shape[axis], tiles[axis] = -(-q.shape[axis] // every), along // every
    return spread(q.scales, tuple(shape), tuple(tiles))


def _plain(x: jax.Array, target: Format) -> jax.Array:
    """x cast to a format, in float32; nothing to do where the format holds every value of x."""
    if target.name in ("float32", x.dtype.name):
        return float32.from_bits(float32.to_bits(x))
    return decode(encode(x, target, overflow=_plain_overflow(target)), target)


def _plain_overflow(fmt: Format) -> Overflow:
    """A plain cast overflows as IEEE 754 says where the format has an Inf."""
    return "nonsaturating" if fmt.has_inf else "saturate"
