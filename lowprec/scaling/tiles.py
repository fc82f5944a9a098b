"""Tiles of an array: the largest magnitude in each, and a value a tile spread over its elements."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from lowprec.numerics.arguments import whole_number
from lowprec.scaling.block import Block


def normalise_axis(axis: int, ndim: int) -> int:
    """`axis` counted from the end, so that it stays right when `vmap` adds axes in front.

    Raises:
      TypeError: `axis` is no integer.
      ValueError: the array has no such axis.
    """
    axis = whole_number("axis", axis)
    if not -ndim <= axis < ndim:
        raise ValueError(f"`axis` = {axis} is out of range for an array with {ndim} axes")
    return axis - ndim if axis >= 0 else axis


def tile_shape(block: Block, shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The tile's size along every axis of an array of `shape`.

    The block's second size runs along `axis`, its first along the other of the last two axes, or
    along the last where `axis` is neither; all other axes are batch axes.
    """
    if block.tile == ("all", "all"):
        return shape
    ndim, along = len(shape), axis % len(shape)
    across = ndim - 2 if along == ndim - 1 else ndim - 1
    sizes: list[int] = [1] * ndim
    for where, size in ((across, block.tile[0]), (along, block.tile[1])):
        if where >= 0:
            sizes[where] = shape[where] if isinstance(size, str) else min(size, shape[where])
    return tuple(sizes)


def scales_shape(shape: tuple[int, ...], tiles: tuple[int, ...]) -> tuple[int, ...]:
    """One entry a tile, ragged ones at the end included."""
    return tuple(-(-size // tile) for size, tile in zip(shape, tiles, strict=True))


def amax_bits(magnitudes: jax.Array, tiles: tuple[int, ...]) -> jax.Array:
    """The largest of float32 magnitude bits in each tile; NaN is above Inf, and wins.

    Compared as integers, since a float comparison flushes subnormals.
    """
    grouped = _group(magnitudes, tiles)
    size = grouped.shape[-1]
    # Halves that are compared whole take far fewer steps than a reduction of neighbours.
    while size % 2 == 0:
        size //= 2
        low, high = (lax.slice_in_dim(grouped, i * size, (i + 1) * size, axis=-1) for i in (0, 1))
        grouped = jnp.maximum(low, high)
    return jnp.max(grouped, axis=tuple(range(1, grouped.ndim, 2)))


def spread(per_tile: jax.Array, shape: tuple[int, ...], tiles: tuple[int, ...]) -> jax.Array:
    """Gives every element of an array of `shape` its tile's value."""
    counts = per_tile.shape
    interleaved = tuple(size for count in counts for size in (count, 1))
    repeated = tuple(size for pair in zip(counts, tiles, strict=True) for size in pair)
    full = lax.broadcast_in_dim(
        per_tile.reshape(interleaved), repeated, tuple(range(len(repeated)))
    ).reshape([count * tile for count, tile in zip(counts, tiles, strict=True)])
    return full if full.shape == shape else full[tuple(slice(size) for size in shape)]


def beside_tiles(
    function: Callable[..., jax.Array],
    elements: Sequence[jax.Array],
    per_tile: Sequence[jax.Array],
    tiles: tuple[int, ...],
) -> jax.Array:
    """`function(*elements, *per_tile)`, elementwise, each tile's values beside its elements.

    With an axis of tiles and one of a tile's elements each loop reads one value a tile; `spread`
    makes the compiler look each element's up, several times as slowly.

    Args:
      elements: arrays that broadcast to the first one, and with as many axes.
      per_tile: arrays of one shape, one value a tile.
    """
    shape = elements[0].shape
    if any(size % tile for size, tile in zip(shape, tiles, strict=True)):
        return function(*elements, *(spread(x, shape, tiles) for x in per_tile))

    def split(x: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
        pairs = zip(x.shape, sizes, strict=True)
        return x.reshape(
            [y for size, tile in pairs for y in (size // min(size, tile), min(size, tile))]
        )

    one = (1,) * len(shape)
    given = [split(x, tiles) for x in elements] + [split(x, one) for x in per_tile]
    return function(*given).reshape(shape)


def tiles_of(
    shape: tuple[int, ...], scales: tuple[int, ...], block: Block, axis: int
) -> tuple[int, ...]:
    """The tile sizes that give an array of `shape` scales of the shape `scales`."""
    named = tile_shape(block, shape, axis)
    return tuple(
        size if count == 1 else 1 if count == size else tile
        for size, count, tile in zip(shape, scales, named, strict=True)
    )


def _group(x: jax.Array, tiles: tuple[int, ...]) -> jax.Array:
    """(n, m, ...) to (n / t, t, m / u, u, ...), zero-padded to whole tiles."""
    padding = [(0, -size % tile) for size, tile in zip(x.shape, tiles, strict=True)]
    if any(after for _, after in padding):
        x = jnp.pad(x, padding)
    split = [
        part for size, tile in zip(x.shape, tiles, strict=True) for part in (size // tile, tile)
    ]
    return x.reshape(split)
