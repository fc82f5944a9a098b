"""Sequential float32 accumulation: each product rounded, then added, k ascending."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.engines.engine import Engine
from lowprec.engines.tiling import join_tiles, split_tiles

_TILE = 128
_UNROLL = 8
_MIN_NORMAL = np.float32(2.0**-126)


def sequential_product(engine: Engine, a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """c + a[:, 0] * b[0, :] + a[:, 1] * b[1, :] + ... in float32, in this order.

    (M, K), (K, N), (M, N) float32 to (M, N). Subnormal operands, products and sums are zero.
    """
    del engine
    m, n = c.shape
    rows, columns = min(_TILE, m), min(_TILE, n)

    def tile(operands: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        a_tile, b_tile, c_tile = operands

        def step(total: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            column, row = pair
            return flush(total + flush(column[:, None] * row[None, :])), None

        # A barrier, or the compiler drops the sum with a constant zero, and -0 stays -0.
        start = lax.optimization_barrier(flush(c_tile))
        return lax.scan(step, start, (a_tile, b_tile), unroll=_UNROLL)[0]

    a, b = flush(a), flush(b)
    a_tiles = split_tiles(a.T, (a.shape[1], rows))[0]
    b_tiles = split_tiles(b, (b.shape[0], columns))[0]
    c_tiles = split_tiles(c, (rows, columns))
    by_column = lambda a_tile, c_row: lax.map(  # noqa: E731
        lambda pair: tile((a_tile, *pair)), (b_tiles, c_row)
    )
    out = lax.map(lambda pair: by_column(*pair), (a_tiles, c_tiles))
    return join_tiles(out, (m, n))


def flush(x: jax.Array) -> jax.Array:
    """Subnormals become zeros of their sign; everything else stays.

    The comparison also keeps the compiler from fusing the product before it into the sum after it.
    """
    return jnp.where(jnp.abs(x) < _MIN_NORMAL, x * 0, x)
