"""Linear layers under recipes that prepare weights: smoothed, rotated, or rounded by GPTQ."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.gemm.prepare import prepare
from lowprec.gemm.prepared import Prepared
from lowprec.gemm.recipe import Recipe
from lowprec.models.checkpoints.architecture import Hooks, by_rows
from lowprec.models.checkpoints.entries import Checkpoint
from lowprec.models.checkpoints.products import bfloat16_linear, layer_key


def linear_inputs(
    checkpoint: Checkpoint, tokens: np.ndarray, wanted: Callable[[str], bool]
) -> dict[str, NDArray]:
    """What linear layers multiply when the model runs with `bfloat16_linear`.

    Args:
      checkpoint: the model.
      tokens: (batch, tokens) integers.
      wanted: whether a linear layer's input is kept.

    Returns:
      By linear layer, (rows, in) bfloat16: of experts the rows that chose them.
    """
    found: dict[str, NDArray] = {}

    def linear(name: str, x: jax.Array, w: jax.Array) -> jax.Array:
        if wanted(name):
            found[name] = np.asarray(x.astype(jnp.bfloat16)).reshape(-1, x.shape[-1])
        return bfloat16_linear(name, x, w)

    checkpoint.logits(tokens, Hooks(linear=linear))
    return found


class PreparedLinear:
    """The product of linear layers under a recipe with a table [prepare]; a hook.

    A layer's weight is prepared when it is multiplied first, and kept until another layer's is.

    Args:
      recipe: with a preparation.
      inputs: what each layer is fitted to, as `linear_inputs` gives it; looked at where the
        preparation is fitted alone.
      seed: of stochastic rounding.
    """

    def __init__(self, recipe: Recipe, inputs: Mapping[str, NDArray], *, seed: int = 0) -> None:
        self._recipe, self._inputs, self._seed = recipe, inputs, seed
        self._layer, self._held = "", dict[str, Prepared]()

    def linear(self, name: str, x: jax.Array, w: jax.Array) -> jax.Array:
        """The product; raises ValueError where no input is known that it could be fitted to."""
        layer = ".".join(name.split(".")[:2])
        if layer != self._layer:
            self._layer, self._held = layer, {}
        if name not in self._held:
            self._held[name] = self._prepared(name, w)
        key = layer_key(self._recipe, name, self._seed)
        return by_rows(lambda x: _product(self._held[name], x, key), x)

    def _prepared(self, name: str, w: jax.Array) -> Prepared:
        steps = self._recipe.prepare
        if steps is None or not steps.fitted:
            return prepare(w, self._recipe)
        if name not in self._inputs:
            raise ValueError(
                f"recipe {self._recipe.name!r} is fitted to a layer's inputs, and no token that "
                f"may be looked at reaches {name}: give longer windows"
            )
        return prepare(w, self._recipe, calibration=self._inputs[name])


@jax.jit
def _product(prepared: Prepared, x: jax.Array, key: jax.Array | None) -> jax.Array:
    return prepared.product(x, key=key).astype(jnp.float32)
