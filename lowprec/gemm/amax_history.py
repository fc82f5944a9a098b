"""Delayed scaling: the largest magnitudes of earlier steps, and what the next one is scaled by.

A history is a float32 array of shape (3, length), one row for each tensor of a linear layer: x, w
and the output's gradient dy. A row's first number is what the tensor is scaled by next, 0 standing
for the scale 1; the others are its largest magnitudes in the last length - 1 steps, the oldest
first. Zeros are how it starts. TransformerEngine keeps the scale apart and a zero in the first
place, in which the step's magnitude is collected: the other numbers are the same as its.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lowprec.gemm.recipe import Delayed, Recipe, Role
from lowprec.numerics import float32

TENSORS = ("x", "w", "dy")
_ROWS: dict[Role, tuple[int, int]] = {"fprop": (0, 1), "dgrad": (2, 1), "wgrad": (0, 2)}
_LARGEST = np.uint32(float32.INFINITY - 1)


def checked_history(recipe: Recipe, amax_history: ArrayLike | None) -> jax.Array | None:
    """The history as an array, or None for a recipe that has none.

    Raises:
      TypeError: it is not float32.
      ValueError: it is missing, misshapen or not wanted.
    """
    if not recipe.takes_history:
        if amax_history is not None:
            raise ValueError(
                f"`amax_history` is for delayed scaling; recipe {recipe.name!r} takes none: leave "
                f"it out"
            )
        return None
    start = "jnp.zeros((3, 1024), jnp.float32) to begin with"
    if amax_history is None:
        raise ValueError(
            f"recipe {recipe.name!r} scales by magnitudes of earlier steps: pass `amax_history`, "
            f"{start}"
        )
    given = jnp.asarray(amax_history)
    if given.dtype != jnp.float32:
        raise TypeError(f"`amax_history` must be float32, got {given.dtype}; {start}")
    if given.ndim != 2 or given.shape[0] != len(TENSORS) or not given.shape[1]:
        raise ValueError(
            f"`amax_history` has shape {given.shape}; it is (3, length): a row for each of x, w "
            f"and dy, {start}"
        )
    return given


def amaxes_in(role: Role, history: jax.Array, delayed: Delayed) -> tuple[jax.Array, jax.Array]:
    """What both operands of a product are scaled by: float32 scalars, the margin included.

    A margin beyond float32's range leaves its largest number.
    """
    bits = float32.to_bits(history[:, 0]) & float32.MAGNITUDE
    if delayed.margin:
        power = jnp.full_like(bits, float32.constant(2.0**delayed.margin))
        bits = jnp.minimum(float32.multiply(bits, power), _LARGEST)
    amaxes = float32.from_bits(bits)
    a, b = _ROWS[role]
    return amaxes[a], amaxes[b]


def largest(x: jax.Array) -> jax.Array:
    """float32 bits of a tensor's largest magnitude; NaN where there is one, subnormals kept."""
    return jnp.max(float32.to_bits(x) & float32.MAGNITUDE)


def rolled(history: jax.Array, newest: jax.Array, delayed: Delayed) -> jax.Array:
    """The history after a step, whose largest magnitudes are `newest`, float32 bits (3,).

    As TransformerEngine's fused update: a row whose newest is 0 stays as it was; else the oldest
    makes room for the newest, and the row is scaled by the history's largest or last number, unless
    that is 0, Inf or NaN, which leaves the scale. The largest is looked for beside NaNs.

    Example:
      >>> history = jnp.array([[4.0, 4.0, 3.0]])
      >>> rolled(history, float32.to_bits(jnp.array([5.0])), Delayed())
      Array([[5., 3., 5.]], dtype=float32)
    """
    bits = float32.to_bits(history) & float32.MAGNITUDE
    window = jnp.concatenate([bits[:, 1:], newest[:, None]], axis=1)
    if delayed.algorithm == "max":
        numbers = jnp.where(window > float32.INFINITY, jnp.uint32(0), window)
        found = jnp.max(numbers, axis=1)
    else:
        found = newest
    usable = (found > 0) & (found < float32.INFINITY)
    scaled_by = jnp.where(usable, found, bits[:, 0])
    after = jnp.concatenate([scaled_by[:, None], window[:, 1:]], axis=1)
    return float32.from_bits(jnp.where((newest == 0)[:, None], bits, after))
