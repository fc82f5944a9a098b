"""Scale rules that try scales on the elements of a tile and keep the one with the smallest error.

Errors are float32, computed on integers and summed in one order, so that every backend and every
transformation decides alike: along the contraction axis one element after the other, each row of a
tile for itself, and then the rows by halves (row i and row i + half, and so on).
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.numerics import float32
from lowprec.numerics.codec import decode_bits, encode_bits, encode_number
from lowprec.numerics.format import Format
from lowprec.scaling.addition import add, subtract
from lowprec.scaling.block import Block
from lowprec.scaling.levels import (
    TensorScale,
    bits_of,
    decoded_scale,
    like,
    stored_scale,
    tensor_scale,
    wanted_scale,
)
from lowprec.scaling.once import once
from lowprec.scaling.powers import power_codes
from lowprec.scaling.rules import Scales, applied, first_choice, raised, scaled_elements

TRIED = ("four_over_six", "minimum_error")
"""The rules of this module."""


def tried_scales(
    bits: jax.Array,
    amax: jax.Array,
    tensor_amax: jax.Array,
    tiles: tuple[int, ...],
    axis: int,
    block: Block,
) -> Scales:
    """The scales of tiles of float32 bits, as `find_scales` gives them where amax decides."""
    amax = raised(amax, block)
    tensor = None
    if block.tensor_scale != "none":
        tensor = once(functools.partial(tensor_scale, block=block), tensor_amax)
    elements = _by_column(bits, tiles, axis)
    if block.scale_rule == "four_over_six":
        stored = _four_over_six(elements, amax, tensor, tensor_amax, block)
    else:
        stored = _minimum_error(elements, amax, tensor, block, math.prod(tiles))
    return _applied(stored, tensor, block)


def _applied(stored: jax.Array, tensor: TensorScale | None, block: Block) -> Scales:
    """`applied`, once for every tile."""
    if tensor is None:
        return once(functools.partial(applied, tensor=None, block=block), stored)
    return once(lambda x, *level: applied(x, TensorScale(*level), block), stored, *tensor)


class _Columns(NamedTuple):
    """The elements of tiles, column by column of the contraction axis, without a copy of them.

    Attributes:
      grouped: float32 bits, (which tile, place in it) for each axis, zero-padded to whole tiles.
      axis: the contraction axis.
    """

    grouped: jax.Array
    axis: int

    @property
    def columns(self) -> int:
        """How many a tile has."""
        return self.grouped.shape[2 * self.axis + 1]

    def column(self, place: jax.Array) -> jax.Array:
        """The elements at one place of the axis in every tile: (place across, *which tile)."""
        picked = lax.dynamic_index_in_dim(self.grouped, place, 2 * self.axis + 1, keepdims=True)
        ndim = self.grouped.ndim
        counts = picked.shape[::2]
        order = [*range(1, ndim, 2), *range(0, ndim, 2)]
        return picked.transpose(order).reshape(-1, *counts)


def _by_column(bits: jax.Array, tiles: tuple[int, ...], axis: int) -> _Columns:
    padding = [(0, -size % tile) for size, tile in zip(bits.shape, tiles, strict=True)]
    padded = jnp.pad(bits, padding) if any(after for _, after in padding) else bits
    split = [
        part
        for size, tile in zip(padded.shape, tiles, strict=True)
        for part in (size // tile, tile)
    ]
    return _Columns(padded.reshape(split), axis % bits.ndim)


def _four_over_six(
    elements: _Columns,
    amax: jax.Array,
    tensor: TensorScale | None,
    tensor_amax: jax.Array,
    block: Block,
) -> jax.Array:
    """The scale that maps amax to 6, or 1.5 times it, which maps amax to 4, if its error is less.

    The value that an error is taken from is element * scale * g / (MAX * SMAX), each operation
    rounded, as in the source, and not by the tensor scale 1 / S.
    """
    assert tensor is not None and block.tensor_scale_max is not None
    to_six = wanted_scale(amax, tensor, block)
    to_four = float32.multiply(to_six, like(to_six, bits_of(1.5)))
    reach = bits_of(block.element.max * block.tensor_scale_max)

    def values(element: jax.Array, scale: jax.Array) -> jax.Array:
        level = jnp.broadcast_to(tensor_amax, element.shape)
        product = float32.multiply(float32.multiply_short(element, scale), level)
        return float32.divide(lax.optimization_barrier(product), like(product, reach))

    # Both candidates at once, on an axis in front of the tiles'.
    stored = jnp.stack([stored_scale(to_six, block), stored_scale(to_four, block)])
    six, four = _errors(elements, stored, tensor, block, values, None)
    return jnp.where(four < six, stored[1], stored[0])


def _minimum_error(
    elements: _Columns, amax: jax.Array, tensor: TensorScale | None, block: Block, size: int
) -> jax.Array:
    """The scale with the smallest sum of squares of error / 2^E, E = floor(log2 amax).

    Of equal ones the smallest scale. A tile of zeros, one that is not finite, or whose errors all
    are not, gets the scale that `rceil` or `amax` gives it.
    """
    usual = dataclasses.replace(block, scale_rule="rceil" if block.power_of_two else "amax")
    plain = first_choice(amax, tensor, usual)
    if block.power_of_two:
        smallest = power_codes(amax, usual)
    else:
        up = wanted_scale(amax, tensor, usual)
        smallest = encode_bits(up, block.scale_format, "toward_positive", "saturate")
    lowest, highest = search_window(block, size)
    first = smallest.astype(jnp.int32) + lowest
    exponent = float32.unpack(amax)[1]

    def values(element: jax.Array, scale: jax.Array) -> jax.Array:
        value = float32.multiply(element, scale)
        if tensor is None:
            return value
        return float32.multiply(value, jnp.broadcast_to(tensor.decode, value.shape))

    def attempt(step: jax.Array, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        code = jnp.clip(first + step, 0, block.scale_format.max_code)
        stored = code.astype(block.scale_format.code_dtype)
        error = _errors(elements, stored[None], tensor, block, values, exponent)[0]
        better = error < best[0]
        return jnp.where(better, error, best[0]), jnp.where(better, stored, best[1])

    start = (jnp.full(amax.shape, float32.INFINITY), plain)
    found = lax.fori_loop(0, highest - lowest + 1, attempt, start)[1]
    return jnp.where((amax == 0) | (amax >= float32.INFINITY), plain, found)


def _errors(
    elements: _Columns,
    stored: jax.Array,
    tensor: TensorScale | None,
    block: Block,
    values: Callable[[jax.Array, jax.Array], jax.Array],
    exponent: jax.Array | None,
) -> jax.Array:
    """float32 bits of the errors of tiles under candidates `stored` (candidate, *which tile)."""
    found, scale = _applied(stored, tensor, block), decoded_scale(stored, block)
    across = math.prod(elements.grouped.shape[1::2]) // elements.columns
    shape = (stored.shape[0], across, *stored.shape[1:])
    to_elements = lambda x: jnp.broadcast_to(x[:, None], shape)

    def step(place: jax.Array, total: jax.Array) -> jax.Array:
        x = jnp.broadcast_to(elements.column(place), shape)
        scaled = scaled_elements(x, found, block, to_elements)
        codes = encode_number(scaled, block.element, "nearest_even", block.overflow)
        # Barriers, since one expression of all this takes seconds to compile.
        codes = lax.optimization_barrier(codes)
        element = decode_bits(codes.astype(jnp.uint32), block.element)
        value = lax.optimization_barrier(values(element, to_elements(scale)))
        error = lax.optimization_barrier(subtract(value, x)) & float32.MAGNITUDE
        if exponent is not None:
            error = _divided(error, jnp.broadcast_to(exponent, shape))
        term = error if block.error == "absolute" else float32.multiply(error, error)
        return add(total, lax.optimization_barrier(term))

    # From a value that vmap sees as batched where the elements are.
    start = jnp.broadcast_to(elements.column(jnp.int32(0)) & np.uint32(0), shape)
    return _sum_by_halves(lax.fori_loop(0, elements.columns, step, start))


def _divided(size: jax.Array, exponent: jax.Array) -> jax.Array:
    """Magnitudes of float32 bits divided by 2^exponent; Inf and NaN stay."""
    sign, own, significand = float32.unpack(size)
    moved = float32.pack(sign, own - exponent, significand << 8)
    return jnp.where(size >= float32.INFINITY, size, moved)


def _sum_by_halves(rows: jax.Array) -> jax.Array:
    """Sums axis 1: the first half and the second, row by row, until one is left."""
    width = 1 << (rows.shape[1] - 1).bit_length()
    missing = width - rows.shape[1]
    rows = jnp.pad(rows, [(0, missing if i == 1 else 0) for i in range(rows.ndim)])
    while rows.shape[1] > 1:
        half = rows.shape[1] // 2
        rows = add(rows[:, :half], rows[:, half:])
    return rows[:, 0]


def search_window(block: Block, size: int) -> tuple[int, int]:
    """Which scale codes `minimum_error` tries, counted from the smallest that clips nothing.

    A scale of more than twice that one is no better than its half, whose multiples of the element's
    values hold all that matter of the larger one's; and below 2^-k of it the clipped maximum loses
    more than `size` elements can gain. Of an element without these properties, all are tried.
    """
    codes, element = block.scale_format.max_code, block.element
    if element.table is not None:
        return -codes, codes
    binade = 1 << block.scale_format.mantissa_bits
    above = 0 if block.power_of_two else 2 * binade
    below = binade * halvings(element, size)
    return -min(below, codes), min(above, codes)


@functools.cache
def halvings(element: Format, size: int) -> int:
    """The k from which on scales 2^-k of the smallest that clips nothing cannot win.

    In units of that scale, with h(x) the rounding error of x and c = MAX / 2^k where clipping
    starts, an element x gains h(x)^2 - max(x - c, 0)^2 at most, which is largest halfway between
    two values, while the maximum, above MAX / 2, loses (x - c)^2 - h(x)^2.
    """
    ladder = [element.magnitude(code) for code in range(element.max_code + 1)]
    middles = [((a + b) / 2, (b - a) / 2) for a, b in itertools.pairwise(ladder)]
    half = element.max / 2
    for k in range(1, 64):
        clip = element.max / 2**k
        gain = max(h * h - max(x - clip, 0.0) ** 2 for x, h in middles)
        loss = min((x - clip) ** 2 - h * h for x, h in [*middles, (half, 0.0)] if x >= half)
        if clip < half and size * gain < 0.999 * loss:
            return k
    return 64
