"""The machine's own float32 dot product, over tiles of one fixed shape."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lowprec.engines.engine import Engine


def native_product(engine: Engine, a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """a @ b + c: (M, K), (K, N), (M, N) float32 to (M, N).

    A library product's order of summation depends on the shapes it is called with. Here it is
    always called with one shape: the operands are cut into zero-padded tiles, and tiles are added
    in order of k, so the bits depend on neither M nor N.
    """
    assert engine.tile is not None
    return _mapped(engine.tile)(a, b, c)


@functools.cache
def _mapped(tile: tuple[int, int, int]) -> Callable[..., jax.Array]:
    # Under `vmap` the products would become one batched product, which sums in another order.
    return jax.custom_batching.sequential_vmap(functools.partial(_tiled, tile))


def _tiled(tile: tuple[int, int, int], a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    rows, depth, columns = tile
    sizes = (a.shape[0], a.shape[1], b.shape[1])
    down, steps, across = (-(-size // t) for size, t in zip(sizes, tile, strict=True))
    # Tiles are read where they lie: cut out beforehand, copies took longer than the products.
    a = _padded(a, (down * rows, steps * depth))
    b = _padded(b, (steps * depth, across * columns))

    def one(index: jax.Array, out: jax.Array) -> jax.Array:
        row, column = index // across * rows, index % across * columns

        def step(k: jax.Array, total: jax.Array) -> jax.Array:
            left = lax.dynamic_slice(a, (row, k * depth), (rows, depth))
            right = lax.dynamic_slice(b, (k * depth, column), (depth, columns))
            return total + _dot(left, right)

        total = lax.fori_loop(0, steps, step, jnp.zeros((rows, columns), jnp.float32))
        return lax.dynamic_update_slice(out, total, (row, column))

    out = jnp.zeros((down * rows, across * columns), jnp.float32)
    return lax.fori_loop(0, down * across, one, out)[: sizes[0], : sizes[2]] + c


def sums_in_turn(
    engine: Engine,
    a: jax.Array,
    b: jax.Array,
    beside: tuple[jax.Array | None, jax.Array | None],
    every: int,
    add: Callable[..., jax.Array],
) -> jax.Array:
    """What sums of `every` k, each from zero, add up to: (M, K), (K, N) to (M, N) float32.

    Tile by tile, so that totals stay near the processor; the bits of each sum are those of
    `native_product`.

    Args:
      engine: the native one.
      a, b: float32.
      beside: (steps, M) and (steps, N), or None: what `add` is handed of its step and tile.
      every: a whole number of the engine's tiles of k.
      add: the total and a step's sum, (rows, columns), and (rows, 1) and (1, columns) of what is
        beside them, to the next total.
    """
    assert engine.tile is not None
    run = functools.partial(_in_turn, engine.tile, every, add)
    return jax.custom_batching.sequential_vmap(run)(a, b, *beside)


def _in_turn(
    tile: tuple[int, int, int],
    every: int,
    add: Callable[..., jax.Array],
    a: jax.Array,
    b: jax.Array,
    of_rows: jax.Array | None,
    of_columns: jax.Array | None,
) -> jax.Array:
    rows, depth, columns = tile
    sizes = (a.shape[0], a.shape[1], b.shape[1])
    steps = -(-sizes[1] // every)
    down, across = -(-sizes[0] // rows), -(-sizes[2] // columns)
    a = _padded(a, (down * rows, steps * every))
    b = _padded(b, (steps * every, across * columns))
    if of_rows is not None:
        of_rows = _padded(of_rows, (steps, down * rows))
    if of_columns is not None:
        of_columns = _padded(of_columns, (steps, across * columns))
    nothing = jnp.zeros((rows, columns), jnp.float32)

    def one(index: jax.Array, out: jax.Array) -> jax.Array:
        row, column = index // across * rows, index % across * columns

        def product(k: jax.Array, partial: jax.Array) -> jax.Array:
            left = lax.dynamic_slice(a, (row, k * depth), (rows, depth))
            right = lax.dynamic_slice(b, (k * depth, column), (depth, columns))
            return partial + _dot(left, right)

        def step(number: jax.Array, total: jax.Array) -> jax.Array:
            first = number * (every // depth)
            partial = lax.fori_loop(first, first + every // depth, product, nothing)
            own = other = None
            if of_rows is not None:
                own = lax.dynamic_slice(of_rows, (number, row), (1, rows)).T
            if of_columns is not None:
                other = lax.dynamic_slice(of_columns, (number, column), (1, columns))
            return add(total, partial, own, other)

        total = lax.fori_loop(0, steps, step, nothing)
        return lax.dynamic_update_slice(out, total, (row, column))

    out = jnp.zeros((down * rows, across * columns), jnp.float32)
    return lax.fori_loop(0, down * across, one, out)[: sizes[0], : sizes[2]]


def _padded(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return jnp.pad(x, [(0, wide - size) for wide, size in zip(shape, x.shape, strict=True)])


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return lax.dot_general(
        a,
        b,
        (((1,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
