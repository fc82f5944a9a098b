"""Cutting a product into tiles of one shape, and running an engine's steps over each."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

TILE = 256
"""Rows and columns of a tile: what a step works on stays near the processor."""


class Kernel(NamedTuple):
    """How one tile is computed.

    Attributes:
      length: how many k a step takes; the last step may take fewer.
      start: c's float32 bits (R, C) to the state.
      step: state, leaves (length, R) of a, (length, C) of b, what `before` gives and a key or None,
        to the next state.
      finish: state to float32 bits (R, C).
      before: leaves (steps, length, R) and (steps, length, C) of all whole steps at once to what
        each step is handed beside them, first axis (steps,); None for nothing. It is computed in a
        loop of its own, which narrow integers make worth its while.
      fits: whether this kernel is right for a tile's a, b and c; None where it always is.
      otherwise: what computes the tiles that it does not fit.
    """

    length: int
    start: Callable[[jax.Array], Any]
    step: Callable[[Any, Any, Any, Any, jax.Array | None], Any]
    finish: Callable[[Any], jax.Array]
    before: Callable[[Any, Any], Any] = lambda a, b: None
    fits: Callable[[Any, Any, jax.Array], jax.Array] | None = None
    otherwise: "Kernel | None" = None


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

    def run(
        kernel: Kernel, a_tile: Any, b_tile: Any, c_tile: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        return kernel.finish(run_steps(kernel, depth, a_tile, b_tile, kernel.start(c_tile), key))

    def tile(a_tile: Any, b_tile: Any, c_tile: jax.Array, key: jax.Array | None) -> jax.Array:
        operands = a_tile, b_tile, c_tile, key
        if kernel.fits is None or kernel.otherwise is None:
            return run(kernel, *operands)
        ways = (functools.partial(run, x) for x in (kernel, kernel.otherwise))
        return lax.cond(kernel.fits(a_tile, b_tile, c_tile), *ways, *operands)

    def row(operands: Any) -> jax.Array:
        a_tile, c_row, key_row = operands
        return _map(lambda x: tile(a_tile, *x), (b_tiles, c_row, key_row))

    return join_tiles(_map(row, (a_tiles, c_tiles, keys)), (m, n))


def _taken(x: Any, index: jax.Array | int) -> Any:
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, 0, False), x)


def _map(function: Callable[[Any], jax.Array], operands: Any) -> jax.Array:
    """`lax.map`, which takes the next operands while it works on these, and carries them over.

    Slices that a compiler moves into a loop over elements keep it from being vectorised.
    """
    count = jax.tree.leaves(operands)[0].shape[0]
    first = _taken(operands, 0)
    if count == 1:
        return function(first)[None]
    shape = jax.eval_shape(function, first)
    out = jnp.zeros((count, *shape.shape), shape.dtype)

    def step(index: jax.Array, carried: Any) -> Any:
        out, here = carried
        out = lax.dynamic_update_index_in_dim(out, function(here), index, 0)
        return out, _taken(operands, jnp.minimum(index + 1, count - 1))

    return lax.fori_loop(0, count, step, (out, first))[0]


def run_steps(kernel: Kernel, depth: int, a: Any, b: Any, state: Any, key: jax.Array | None) -> Any:
    """All steps of a tile: whole ones in a loop, then what is left of K."""
    whole, left = divmod(depth, kernel.length)
    keys = None if key is None else jax.random.split(key, whole + 1)
    if whole:

        def cut(x: jax.Array) -> jax.Array:
            per_step = x.shape[0] * kernel.length // depth
            return x[: per_step * whole].reshape(whole, per_step, *x.shape[1:])

        left_chunks, right_chunks = jax.tree.map(cut, (a, b))
        known = kernel.before(left_chunks, right_chunks)
        chunks = (left_chunks, right_chunks, known, None if keys is None else keys[:whole])

        def step(index: jax.Array, carried: Any) -> Any:
            state, chunk = carried
            following = _taken(chunks, jnp.minimum(index + 1, whole - 1))
            return kernel.step(state, *chunk), following

        state = lax.fori_loop(0, whole, step, (state, _taken(chunks, 0)))[0]
    if left:

        def rest(x: jax.Array) -> jax.Array:
            return x[x.shape[0] * kernel.length // depth * whole if whole else 0 :]

        rest_a, rest_b = jax.tree.map(rest, (a, b))
        one_step = jax.tree.map(lambda x: x[None], (rest_a, rest_b))
        known = jax.tree.map(lambda x: x[0], kernel.before(*one_step))
        state = kernel.step(state, rest_a, rest_b, known, None if keys is None else keys[whole])
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
