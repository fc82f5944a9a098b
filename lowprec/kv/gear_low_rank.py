"""A low-rank part of matrices by power iteration, the same bits on every backend."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.kv.fixed_order import norm, normal, product
from lowprec.numerics import float32


@functools.partial(jax.jit, static_argnames=("rank", "iterations", "seed"))
def low_rank(
    rest: jax.Array, *, rank: int, iterations: int, seed: int
) -> tuple[jax.Array, jax.Array]:
    """Factors Q and P of matrices E (batch, rows, columns) float32, so that E is near Q P^T.

    From a start of normal numbers P (columns, rank), drawn from `seed`: P is made orthonormal,
    Q = E P is made orthonormal, P = E^T Q, and so on; the last Q and P are the result, Q P^T the
    projection of E on the span of Q. Products are `lowprec.kv.fixed_order.product`; columns are
    made orthonormal one after the other, twice each (Gram and Schmidt), a column of zeros stays.

    Args:
      rest: finite, below 2^60 in magnitude; numbers below 2^-40 count as zero.
      rank: columns of the factors, at least 1.
      iterations: at least 1.
      seed: of the start.

    Returns:
      Q (batch, rows, rank), orthonormal, and P (batch, columns, rank), float32.

    Example:
      >>> e = jnp.outer(jnp.arange(4.0), jnp.ones(3))[None]
      >>> q, p = low_rank(e, rank=1, iterations=1, seed=0)
      >>> bool(jnp.abs(q @ p.swapaxes(1, 2) - e).max() < 1e-6)
      True
    """
    start = normal(rest.shape[2], rank, (seed, 0)).astype(np.float32)

    def factors(e: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(_: int, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            q = orthonormal(product(e, orthonormal(found[1])))
            return q, product(e.T, q)

        empty = jnp.zeros((e.shape[0], rank), jnp.float32)
        return lax.fori_loop(0, iterations, step, (empty, jnp.asarray(start)))

    return jax.vmap(factors)(rest)


@jax.jit
def orthonormal(columns: jax.Array) -> jax.Array:
    """An orthonormal basis of the span of float32 columns (n, rank), the first ones first.

    A column within the span of earlier ones becomes a direction of rounding errors, or stays zero.
    """

    def one(place: jax.Array, basis: jax.Array) -> jax.Array:
        column = lax.dynamic_slice_in_dim(columns, place, 1, axis=1)
        for _ in range(2):
            column = column - product(basis, product(basis.T, column))
        bits = float32.to_bits(column)
        length = norm(bits.T)
        divisor = jnp.where(length == 0, float32.ONE, length)
        unit = float32.from_bits(float32.divide(bits, jnp.broadcast_to(divisor, bits.shape)))
        return lax.dynamic_update_slice_in_dim(basis, unit, place, axis=1)

    return lax.fori_loop(0, columns.shape[1], one, jnp.zeros_like(columns))
