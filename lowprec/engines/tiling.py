"""Cutting a matrix into zero-padded tiles of one shape, and putting them together again."""

import jax
import jax.numpy as jnp


def split_tiles(x: jax.Array, tile: tuple[int, int]) -> jax.Array:
    """(R, C) to (ceil(R / rows), ceil(C / columns), rows, columns), zero-padded."""
    rows, columns = tile
    x = jnp.pad(x, [(0, -x.shape[0] % rows), (0, -x.shape[1] % columns)])
    split = x.reshape(x.shape[0] // rows, rows, x.shape[1] // columns, columns)
    return split.transpose(0, 2, 1, 3)


def join_tiles(tiles: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Undoes `split_tiles`, the padding cut off."""
    down, across, rows, columns = tiles.shape
    whole = tiles.transpose(0, 2, 1, 3).reshape(down * rows, across * columns)
    return whole[: shape[0], : shape[1]]
