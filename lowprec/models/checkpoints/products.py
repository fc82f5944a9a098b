"""Products of linear layers under a recipe, for the hooks of a checkpoint."""

import functools
import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lowprec.gemm.gemm import gemm
from lowprec.gemm.recipe import Recipe, get_recipe
from lowprec.models import transformer
from lowprec.models.checkpoints.architecture import by_rows
from lowprec.models.transformer import NamedLinear


def bfloat16_linear(name: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """`lowprec.models.transformer.bfloat16_linear`: operands rounded, summed in float32."""
    del name
    return by_rows(lambda x: _bfloat16(x, w), x)


def recipe_linear(recipe: str | Recipe, *, seed: int = 0) -> NamedLinear:
    """The product of any linear layer under a recipe's fprop.

    Args:
      recipe: by name, path or value.
      seed: of stochastic rounding; every layer draws bits of its own.

    Raises:
      ValueError: no recipe has that name.

    Example:
      >>> linear = recipe_linear("mxfp8")
      >>> linear("layers.0.mlp.up", jnp.ones((1, 3, 32)), jnp.ones((32, 2))).shape
      (1, 3, 2)
    """
    chosen = get_recipe(recipe)

    def linear(name: str, x: jax.Array, w: jax.Array) -> jax.Array:
        key = layer_key(chosen, name, seed)
        return by_rows(lambda x: _product(x, w, key, recipe=chosen), x)

    return linear


def layer_key(recipe: Recipe, name: str, seed: int) -> jax.Array | None:
    """What a linear layer draws from; None where the recipe draws nothing."""
    if not recipe.stochastic:
        return None
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def mixed_linear(recipes: Mapping[str, Recipe], *, seed: int = 0) -> NamedLinear:
    """The product of each linear layer under a recipe of its own, in bfloat16 where it has none.

    Args:
      recipes: by linear layer, such as `layers.0.mlp.up`.
      seed: as in `recipe_linear`.

    Example:
      >>> from lowprec.gemm.recipe import get_recipe
      >>> linear = mixed_linear({"head": get_recipe("mxfp8")})
      >>> linear("layers.0.mlp.up", jnp.full((1, 1), 1.01), jnp.ones((1, 1))).item()
      1.0078125
    """
    own = {name: recipe_linear(recipe, seed=seed) for name, recipe in recipes.items()}
    plain = recipe_linear("bf16")

    def linear(name: str, x: jax.Array, w: jax.Array) -> jax.Array:
        return own.get(name, plain)(name, x, w)

    return linear


@functools.partial(jax.jit, static_argnames=("recipe",))
def _product(x: jax.Array, w: jax.Array, key: jax.Array | None, *, recipe: Recipe) -> jax.Array:
    return gemm(x, w, recipe, key=key).astype(jnp.float32)


_bfloat16 = jax.jit(transformer.bfloat16_linear)
