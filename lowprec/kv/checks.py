"""Checks of arguments that several families make alike."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lowprec.numerics.arguments import float_array, whole_number


def check_sizes(**sizes: int) -> None:
    """TypeError for what is no integer, ValueError for one below 1, by the argument's name.

    Example:
      >>> check_sizes(batch=1, heads=8)
    """
    for name, size in sizes.items():
        if whole_number(name, size) < 1:
            raise ValueError(f"`{name}` = {size} must be at least 1")


def check_after_rope(what: str, store: str, before_rope: bool) -> None:
    """ValueError for a store that keeps keys before RoPE, under a method that chooses tokens.

    Args:
      what: how messages name the method that chooses.
      store: the name of the method that keeps tokens.
      before_rope: how that one keeps its keys.
    """
    if before_rope:
        raise ValueError(
            f"{what}: the store {store} keeps keys before RoPE, and turns them by their place in "
            f"the cache; use one that keeps them after it"
        )


def token_array(name: str, x: ArrayLike, shape: tuple[int | None, ...]) -> jax.Array:
    """Tokens of that shape as float32; None is the axis of tokens, of which there are some.

    Raises:
      TypeError: other numbers than float32, bfloat16 or float16.
      ValueError: another shape.

    Example:
      >>> token_array("k", jnp.ones((1, 2, 5, 4), jnp.bfloat16), (1, 2, None, 4)).shape
      (1, 2, 5, 4)
    """
    x = float_array(name, x)
    fits = x.ndim == len(shape) and all(
        size is None or size == given for size, given in zip(shape, x.shape, strict=True)
    )
    if not fits or not x.size:
        wanted = ", ".join("tokens" if size is None else str(size) for size in shape)
        raise ValueError(f"`{name}` of shape {x.shape} must be ({wanted})")
    return x.astype(jnp.float32)
