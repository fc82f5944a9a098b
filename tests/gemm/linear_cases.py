"""What the tests of `linear` share: operands, recipes on another engine, three plain products."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.engines import get_engine
from lowprec.gemm import Recipe, gemm, get_recipe, linear

KEY = jax.random.key(5)


def on(name: str | Recipe, engine: str) -> Recipe:
    """A recipe whose three products an engine sums."""
    recipe = get_recipe(name)
    pairs = {
        role: dataclasses.replace(getattr(recipe, role), engine=None)
        for role in ("fprop", "dgrad", "wgrad")
    }
    return dataclasses.replace(recipe, engine=get_engine(engine), **pairs)


def operands(
    rows: tuple[int, ...] = (2, 35), depth: int = 40, out: int = 33, *, dtype: Any = jnp.float32
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x, w and dy: normal numbers of many sizes, with outliers; dy in bfloat16."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(*rows, depth)) * np.exp(rng.normal(size=depth))
    w = rng.normal(size=(depth, out)) / depth
    dy = rng.normal(size=(*rows, out)) * np.exp(2 * rng.normal(size=(*rows, 1))) / 1e3
    x[..., 3] *= 30
    return jnp.asarray(x, dtype), jnp.asarray(w, jnp.float32), jnp.asarray(dy, jnp.bfloat16)


def by_linear(
    x: jax.Array, w: jax.Array, dy: jax.Array, recipe: Recipe, key: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """y, dx and dw of one call and its gradient."""
    y, pull = jax.vjp(lambda x, w: linear(x, w, recipe, key=key), x, w)
    return (y, *pull(dy.astype(y.dtype)))


def by_products(
    x: jax.Array, w: jax.Array, dy: jax.Array, recipe: Recipe, key: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same by three calls of `gemm`, in the types that these put out."""
    keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
    rows = x.reshape(-1, x.shape[-1])
    y = gemm(rows, w, recipe, key=keys[0])
    dy = dy.reshape(-1, dy.shape[-1]).astype(y.dtype)
    dx = gemm(dy, w.T, recipe, role="dgrad", key=keys[1])
    dw = gemm(rows.T, dy, recipe, role="wgrad", key=keys[2])
    return y.reshape(*x.shape[:-1], -1), dx.reshape(x.shape), dw
