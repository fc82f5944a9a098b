"""Cutting a product into tiles of one shape, and running an engine's steps over each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

TILE = 128
"""Rows and columns of a tile: what a step works on stays near the processor."""


class Kernel(NamedTuple):
    """How one tile is computed.

    Attributes:
      length: how many k a step takes; the last step may take fewer.
      start: c's float32 bits (R, C) to the state.
      step: state, leaves (length, R) of a, (length, C) of b and a key or None, to the next state.
      finish: state to float32 bits (R, C).
    """

    length: int
    start: Callable[[jax.Array], Any]
    step: Callable[[Any, Any, Any, jax.Array | None], Any]
    finish: Callable[[Any], jax.Array]


def over_tiles(
    kernel: Kernel, depth: int, a: Any, b: Any, c: jax.Array, key: jax.Array | None = None
) -> jax.Array:
    """Runs a kernel over a product of `depth` k: float32 bits (M, N).

    The leaves of a are (K, M) and of b (K, N), or have fewer, evenly spread rows: one for so many
    k. Tiles beyond M and N are padded with zeros.
    """
    m, n = c.shape
    rows, columns = min(TILE, m), min(TILE, n)
    a_tiles = jax.tree.map(lambda x: split_tiles(x, (x.shape[0], rows))[0], a)
    b_tiles = jax.tree.map(lambda x: split_tiles(x, (x.shape[0], columns))[0], b)
    c_tiles = split_tiles(c, (rows, columns))
    keys = None if key is None else jax.random.split(key, c_tiles.shape[:2])

    def tile(a_tile: Any, b_tile: Any, c_tile: jax.Array, key: jax.Array | None) -> jax.Array:
        return kernel.finish(_steps(kernel, depth, a_tile, b_tile, kernel.start(c_tile), key))

    def row(operands: Any) -> jax.Array:
        a_tile, c_row, key_row = operands
        return lax.map(lambda x: tile(a_tile, *x), (b_tiles, c_row, key_row))

    return join_tiles(lax.map(row, (a_tiles, c_tiles, keys)), (m, n))


def _steps(kernel: Kernel, depth: int, a: Any, b: Any, state: Any, key: jax.Array | None) -> Any:
    """All steps of a tile: whole ones in a loop, then what is left of K."""
    whole, left = divmod(depth, kernel.length)
    keys = None if key is None else jax.random.split(key, whole + 1)
    if whole:

        def cut(x: jax.Array) -> jax.Array:
            per_step = x.shape[0] * kernel.length // depth
            return x[: per_step * whole].reshape(whole, per_step, *x.shape[1:])

        def step(state: Any, chunk: Any) -> tuple[Any, None]:
            return kernel.step(state, chunk[0], chunk[1], chunk[2]), None

        chunks = (*jax.tree.map(cut, (a, b)), None if keys is None else keys[:whole])
        state = lax.scan(step, state, chunks)[0]
    if left:
        rest_a, rest_b = jax.tree.map(lambda x: x[whole * kernel.length :], (a, b))
        state = kernel.step(state, rest_a, rest_b, None if keys is None else keys[whole])
    return state


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
