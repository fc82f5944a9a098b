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
