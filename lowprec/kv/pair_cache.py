"""Caches of keys and values, and the checks of what is put into them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from lowprec.kv.method import Spec
from lowprec.kv.rope import Rope
from lowprec.kv.store import Store
from lowprec.numerics.arguments import float_array

SIDES = ("keys", "values")
"""Of a `PairCache`, and the keys of what is fitted for each."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PairCache:
    """Keys and values of a batch of sequences of one length.

    Attributes:
      keys, values: the packed arrays.
      length: tokens appended, int32.
      dim, capacity: numbers of a head, and tokens there is room for.
      spec: of the method that made it, which alone can read it.
      rope: what keys are turned by on reading, or None.
    """

    keys: Store
    values: Store
    length: jax.Array
    dim: int = dataclasses.field(metadata={"static": True})
    capacity: int = dataclasses.field(metadata={"static": True})
    spec: Spec = dataclasses.field(metadata={"static": True})
    rope: Rope | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays but the length."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.keys, self.values)))


def check_owner(spec: Spec, own: Spec) -> None:
    """Raises ValueError where a cache is another method's."""
    if spec != own:
        same = " with other settings" if spec.name == own.name else ""
        raise ValueError(
            f"`cache` was made by the method {spec.name}{same}, not by {own.name}: only the method "
            f"whose `init` made it can read it"
        )


def cache_shape(cache: PairCache) -> tuple[int, int, int, int]:
    """(batch, heads, capacity, dim)."""
    batch, heads = jax.tree.leaves(cache.keys.parts)[0].shape[:2]
    return batch, heads, cache.capacity, cache.dim


def checked_queries(q: ArrayLike, cache: PairCache) -> jax.Array:
    """Queries (batch, a multiple of the cache's heads, tokens, dim) as float32."""
    q = float_array("q", q).astype(jnp.float32)
    batch, heads, _, dim = cache_shape(cache)
    if q.ndim != 4 or (q.shape[0], q.shape[3]) != (batch, dim) or q.shape[1] % heads:
        raise ValueError(
            f"`q` of shape {q.shape} must be ({batch}, a multiple of {heads}, tokens, {dim})"
        )
    return q


def query_places(q: jax.Array, cache: PairCache, length: jax.Array) -> jax.Array:
    """Where the query of each row of `attend` stands, the last at length - 1; (rows,) int32."""
    tokens = q.shape[2]
    return length - tokens + jnp.tile(jnp.arange(tokens), q.shape[1] // cache_shape(cache)[1])


def checked_tokens(name: str, x: ArrayLike, cache: PairCache) -> jax.Array:
    """Tokens (batch, heads, one or more, dim) that fit the cache, as float32."""
    x = float_array(name, x)
    batch, heads, _, dim = cache_shape(cache)
    if x.ndim != 4 or (x.shape[0], x.shape[1], x.shape[3]) != (batch, heads, dim) or not x.size:
        raise ValueError(f"`{name}` of shape {x.shape} must be ({batch}, {heads}, tokens, {dim})")
    return x.astype(jnp.float32)


def check_room(length: jax.Array, tokens: int, capacity: int) -> None:
    """Raises ValueError where more tokens come than there is room for, if that is known."""
    traced = isinstance(length, Tracer)
    if tokens + (0 if traced else int(length)) > capacity:
        held = "?" if traced else int(length)
        raise ValueError(
            f"{tokens} more tokens do not fit: the cache holds {held} of {capacity}; make it with "
            f"a larger `length`"
        )


def array_bytes(tree: object) -> int:
    """Bytes of all arrays of a tree, or of what `jax.eval_shape` says of them."""
    return sum(
        int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )
