"""Work that is done once a tile, also where the compiler would repeat it for every element."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

T = TypeVar("T")


def once(function: Callable[..., T], *operands: jax.Array) -> T:
    """`function(*operands)` in a loop of one turn, whose count the compiler does not see.

    Otherwise it would fuse what a tile needs into what its elements do, and do it again for each.
    """
    shapes = jax.eval_shape(function, *operands)
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    turns = lax.optimization_barrier(jnp.int32(1))
    return lax.fori_loop(0, turns, lambda *_: function(*operands), start)
