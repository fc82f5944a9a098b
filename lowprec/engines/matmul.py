"""Matrix products with a named order and precision of summation."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from lowprec.engines.engine import Engine, get_engine
from lowprec.engines.native import native_product
from lowprec.engines.sequential import sequential_product


def matmul(
    a: ArrayLike, b: ArrayLike, c: ArrayLike | None = None, *, engine: str | Engine
) -> jax.Array:
    """The product a @ b + c as an engine computes it.

    The bits depend on neither M, N nor batching: a row of a and a column of b give the same number
    in any product. Both engines flush subnormal operands and results to zero; NaN and Inf follow
    IEEE 754. The gradient is that of the exact product, by a plain float32 product.

    Args:
      a: (..., M, K) of a float type that float32 holds exactly.
      b: (..., K, N), the same; batch axes broadcast.
      c: (..., M, N), the same, or None. `sequential` engines start the sum from it, `native`
        adds it last.
      engine: an engine by name, path or value.

    Returns:
      float32 (..., M, N).

    Raises:
      TypeError: an operand is float64 or not a float.
      ValueError: shapes that do not fit, an empty operand, or an unknown engine.

    Example:
      >>> matmul(jnp.array([[1.0, 2.0]]), jnp.array([[3.0], [4.0]]), engine="fp32")
      Array([[11.]], dtype=float32)
    """
    engine = get_engine(engine)
    a, b = _operand("a", a), _operand("b", b)
    batch = check_shapes(a.shape, b.shape)
    m, n = a.shape[-2], b.shape[-1]
    c = None if c is None else _operand("c", c)
    if c is not None and (c.ndim < 2 or c.shape[-2:] != (m, n)):
        raise ValueError(f"`c` has shape {c.shape}; a @ b has shape {(*batch, m, n)}")
    return _compiled(a, b, c, engine)


def product(a: jax.Array, b: jax.Array, c: jax.Array | None, engine: Engine) -> jax.Array:
    """`matmul` on float32 arrays of shapes that fit."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if c is None:
        c = jnp.zeros((*batch, a.shape[-2], b.shape[-1]), jnp.float32)
    batch = np.broadcast_shapes(batch, c.shape[:-2])
    a, b, c = (jnp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, b, c))
    return _product(engine, a, b, c)


_compiled = jax.jit(product, static_argnames="engine")


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(engine: Engine, a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    compute = sequential_product if engine.accumulation == "sequential" else native_product
    batch = a.shape[:-2]
    if not batch:
        return compute(engine, a, b, c)
    count = math.prod(batch)
    flat = [x.reshape(count, *x.shape[-2:]) for x in (a, b, c)]
    out = lax.map(lambda operands: compute(engine, *operands), tuple(flat))
    return out.reshape(*batch, *out.shape[1:])


@_product.defjvp
def _product_jvp(engine: Engine, primals: Any, tangents: Any) -> Any:
    a, b, c = primals
    da, db, dc = tangents
    native = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    return _product(engine, a, b, c), native(da, b) + native(a, db) + dc


def check_shapes(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The batch shape of a product; ValueError where a @ b is not one."""
    fits = len(a) >= 2 and len(b) >= 2 and a[-1] == b[-2]
    if not fits:
        raise ValueError(
            f"`a` of shape {a} and `b` of shape {b} do not multiply; "
            f"(..., M, K) x (..., K, N) is needed"
        )
    if 0 in a or 0 in b:
        raise ValueError(f"an operand is empty: `a` has shape {a}, `b` has shape {b}")
    try:
        return np.broadcast_shapes(a[:-2], b[:-2])
    except ValueError:
        raise ValueError(f"the batch axes of `a` {a} and `b` {b} do not broadcast") from None


def _operand(argument: str, x: ArrayLike) -> jax.Array:
    """An operand as float32, exactly. The conversion keeps subnormals, and has a gradient."""
    dtype = np.dtype(getattr(x, "dtype", np.float32))
    if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize > 4:
        raise TypeError(
            f"`{argument}` must be of a float type that float32 holds, got {dtype.name}; "
            f"convert it first, so that its rounding happens where you see it"
        )
    return jnp.asarray(x, dtype).astype(jnp.float32)
