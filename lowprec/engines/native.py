"""The machine's own float32 dot product, over tiles of one fixed shape."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lowprec.engines.engine import Engine
from lowprec.engines.tiling import join_tiles, split_tiles


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
    a_tiles = split_tiles(a, (rows, depth))
    b_tiles = split_tiles(b, (depth, columns)).transpose(1, 0, 2, 3)

    def one(a_row: jax.Array, b_column: jax.Array) -> jax.Array:
        def step(total: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            return total + _dot(*pair), None

        start = jnp.zeros((rows, columns), jnp.float32)
        return lax.scan(step, start, (a_row, b_column))[0]

    def over_columns(a_row: jax.Array) -> jax.Array:
        return lax.map(lambda b_column: one(a_row, b_column), b_tiles)

    return join_tiles(lax.map(over_columns, a_tiles), (a.shape[0], b.shape[1])) + c


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return lax.dot_general(
        a,
        b,
        (((1,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
