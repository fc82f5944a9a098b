"""Rounding a weight as a recipe's product will: whole, or column by column with its scales held.

Every code comes from the same integer arithmetic as `quantize`; what is held fixed is the scale.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from lowprec.gemm.operand import prepare_operand
from lowprec.numerics import float32
from lowprec.numerics.codec import decode_bits, encode_bits
from lowprec.numerics.format import Format
from lowprec.scaling import affine, transforms
from lowprec.scaling.block import Block
from lowprec.scaling.candidates import TRIED, tried_scales
from lowprec.scaling.ordinary import decode_scaled, encode_scaled
from lowprec.scaling.qtensor import QTensor
from lowprec.scaling.quantize import quantize
from lowprec.scaling.rules import Scales, find_scales
from lowprec.scaling.tiles import amax_bits, spread, tile_shape

_AXIS = -2


def nearest_values(w: jax.Array, target: Format | Block) -> jax.Array:
    """The weight (K, N) as a product multiplies it, each number rounded to its nearest: float32."""
    if isinstance(target, Format):
        return _format_values(w, target)
    return quantize(w, target, axis=_AXIS).dequantize()


class Rounder:
    """Rounds a weight (K, N) one column of N numbers at a time.

    Tiles are those of the block along K; a format has none. Scales are made from the columns that
    are shown, and held until the tile is shown again; a tensor scale is that of the first weight.
    """

    def __init__(self, w: NDArray, target: Format | Block) -> None:
        self.target = target
        self.depth, self.width = w.shape
        if isinstance(target, Format):
            self.along = self.depth
            return
        self.block = dataclasses.replace(target, transform=None)
        along = target.tile[1]
        self.along = self.depth if isinstance(along, str) else min(along, self.depth)
        self._tensor = _tensor_amax(_narrow(w), self.block)
        self._held: dict[int, Any] = {}
        self._codes = np.zeros(w.shape, target.element.code_dtype)

    def tile(self, k: int) -> slice:
        """The columns that share a scale with column k."""
        start = k // self.along * self.along
        return slice(start, min(start + self.along, self.depth))

    def holds(self, k: int) -> bool:
        """Whether column k's tile has its scales."""
        return isinstance(self.target, Format) or k // self.along in self._held

    def hold(self, k: int, columns: NDArray) -> None:
        """Makes the scales of column k's tile, for these columns of it (float64, rounded here)."""
        if isinstance(self.target, Block):
            self._held[k // self.along] = _find(_narrow(columns), self._tensor, self.block)

    def round(self, k: int, column: NDArray) -> NDArray:
        """The values of column k as quantized, (N,) float64."""
        x = _narrow(column[None])
        if isinstance(self.target, Format):
            return np.asarray(_format_values(x, self.target), np.float64)[0]
        codes, values = _round(x, self._held[k // self.along], self.block)
        self._codes[k] = np.asarray(codes)[0]
        return np.asarray(values, np.float64)[0]

    def quantized(self) -> QTensor:
        """All columns, as the block's QTensor along K."""
        assert isinstance(self.target, Block)
        held = [self._held[i] for i in sorted(self._held)]
        stored = jnp.concatenate([x.scales for x in held])
        offsets = None
        if held[0].offsets is not None:
            offsets = jnp.concatenate([x.offsets for x in held])
        return QTensor(
            codes=jnp.asarray(self._codes),
            scales=stored,
            offsets=offsets,
            tensor_scale=held[0].tensor_scale,
            block=self.target,
            axis=_AXIS,
        )


def turned(x: jax.Array, target: Format | Block, axis: int) -> jax.Array:
    """x as the block's own transform leaves it, along the contraction axis: float32."""
    if isinstance(target, Format) or target.transform is None:
        return float32.from_bits(float32.to_bits(x))
    return _turned(x, target, axis)


@functools.partial(jax.jit, static_argnames=("block", "axis"))
def _turned(x: jax.Array, block: Block, axis: int) -> jax.Array:
    assert block.transform is not None
    bits, _ = transforms.apply(float32.to_bits(x), block.transform, axis, None)
    return float32.from_bits(bits)


def _narrow(x: NDArray) -> jax.Array:
    return jnp.asarray(x.astype(np.float32))


@functools.partial(jax.jit, static_argnames="target")
def _format_values(x: jax.Array, target: Format) -> jax.Array:
    return prepare_operand(x, target, "operands", axis=_AXIS, key=None)[0].values


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Held:
    """The scales of a tile row: as a QTensor has them, and as they are applied."""

    scales: jax.Array
    offsets: jax.Array | None
    tensor_scale: jax.Array | None
    applied: Scales | affine.Tile


@functools.partial(jax.jit, static_argnames="block")
def _tensor_amax(w: jax.Array, block: Block) -> jax.Array | None:
    """Bits of the largest magnitude of the tensor, or of each column of the product."""
    if block.tensor_scale == "none":
        return None
    sizes = float32.to_bits(w) & float32.MAGNITUDE
    return jnp.max(sizes, axis=None if block.tensor_scale == "amax" else _AXIS, keepdims=True)


@functools.partial(jax.jit, static_argnames="block")
def _find(x: jax.Array, tensor: jax.Array | None, block: Block) -> _Held:
    bits = float32.to_bits(x)
    tiles = tile_shape(block, x.shape, _AXIS)
    if block.affine is not None:
        return _find_affine(bits, block, block.affine, tiles)
    amax = amax_bits(bits & float32.MAGNITUDE, tiles)
    top = amax if tensor is None else tensor
    if block.scale_rule in TRIED:
        found = tried_scales(bits, amax, top, tiles, _AXIS, block)
    else:
        found = find_scales(amax, top, block)
    as_float = block.scale_format.bits > 8
    return _Held(
        scales=float32.from_bits(found.stored) if as_float else found.stored,
        offsets=None,
        tensor_scale=None if found.tensor is None else float32.from_bits(found.tensor),
        applied=found,
    )


def _find_affine(
    bits: jax.Array, block: Block, rule: affine.Affine, tiles: tuple[int, ...]
) -> _Held:
    """What `affine.quantize` makes of the tile that is shown."""
    _, scales, offsets = affine.quantize(bits, block, tiles, block.rounding, None, 0)
    x = affine._rounded(bits, rule.arithmetic)
    low, high = affine._ends(x, tiles, rule)
    applied = affine._tile(low, high, affine=rule, top=float32.constant(block.element.max))
    return _Held(
        scales=float32.from_bits(scales),
        offsets=None if offsets is None else float32.from_bits(offsets),
        tensor_scale=None,
        applied=affine.Tile(*(lax.optimization_barrier(part) for part in applied)),
    )


@functools.partial(jax.jit, static_argnames="block")
def _round(x: jax.Array, held: _Held, block: Block) -> tuple[jax.Array, jax.Array]:
    """Codes and values of one column."""
    bits = float32.to_bits(x)
    tiles = tile_shape(block, x.shape, _AXIS)
    if isinstance(held.applied, affine.Tile):
        codes = _affine_codes(bits, held.applied, block, tiles)
        offsets = None if held.offsets is None else float32.to_bits(held.offsets)
        values = affine.dequantize(codes, float32.to_bits(held.scales), offsets, block, tiles)
        return codes, float32.from_bits(values)
    codes = encode_scaled(bits, held.applied, None, block, tiles, block.rounding, None, 0)
    if held.scales.dtype == jnp.float32:
        scales = float32.to_bits(held.scales)
    else:
        scales = decode_bits(held.scales.astype(jnp.uint32), block.scale_format)
    tensor = None if held.tensor_scale is None else float32.to_bits(held.tensor_scale)
    return codes, float32.from_bits(decode_scaled(codes, scales, tensor, block, tiles))


def _affine_codes(
    bits: jax.Array, tile: affine.Tile, block: Block, tiles: tuple[int, ...]
) -> jax.Array:
    """The last steps of `affine.quantize`, with the range of a tile that was shown before."""
    rule = block.affine
    assert rule is not None
    x = affine._rounded(bits, rule.arithmetic)
    each = affine.Tile(*(spread(part, x.shape, tiles) for part in tile))
    value = affine._scaled(x, each, rule, block.rounding, None, 0)
    rounding = "toward_zero" if rule.add_half else block.rounding
    rounding = "nearest_even" if rule.zero_point == "integer" else rounding
    return encode_bits(value, block.element, rounding, "saturate", None, 0)
