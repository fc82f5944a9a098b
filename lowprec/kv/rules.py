"""What rules that choose tokens have in common: what they look at, and how the best are kept."""

import abc
import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from jax import lax

from lowprec.kv.rope import Rope

ROWS = 256
"""Queries whose attention is held at one time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidates:
    """Tokens to choose from, oldest first, and the queries that came with the newest.

    Attributes:
      keys, values: (batch, heads, candidates, dim) float32; None where no rule looks at them. Those
        of kept tokens are what the cache gives back, those of new ones are exact.
      valid: (candidates,) whether there is a token; what is not lies between old and new ones.
      positions: (batch, heads, candidates) int32, where tokens stand.
      memory: (batch, heads, candidates) float32, what the rule noted of each token; new ones have
        zero.
      queries: (batch, q_heads, tokens, dim) float32 of the newest tokens, or None.
      query_positions: (tokens,) int32.
      rope: by which queries and keys were turned, or None.
    """

    keys: jax.Array | None
    values: jax.Array | None
    valid: jax.Array
    positions: jax.Array
    memory: jax.Array
    queries: jax.Array | None
    query_positions: jax.Array
    rope: Rope | None

    @property
    def length(self) -> jax.Array:
        """The position after the newest."""
        return self.query_positions[-1] + 1

    def from_first(self) -> jax.Array:
        """(1, 1, candidates): how many tokens are older."""
        return (jnp.cumsum(self.valid.astype(jnp.int32)) - 1)[None, None]

    def from_last(self) -> jax.Array:
        """(1, 1, candidates): how many tokens are newer."""
        order = self.from_first()
        return order[..., -1:] - order

    def grouped(self) -> jax.Array:
        """Queries as (batch, heads, q_heads / heads, tokens, dim)."""
        assert self.queries is not None
        batch, heads = self.positions.shape[:2]
        return self.queries.reshape(batch, heads, -1, *self.queries.shape[2:])


class Rule(abc.ABC):
    """How tokens are chosen; frozen and hashable.

    Attributes:
      asks: whether it looks at queries.
      reads: whether it looks at keys.
      evicts: whether it can go on choosing one token at a time.
      remembers: whether it notes a float32 number of each token.
    """

    asks: ClassVar[bool] = False
    reads: ClassVar[bool] = False
    evicts: ClassVar[bool] = True
    remembers: ClassVar[bool] = False

    @property
    def always(self) -> int:
        """How many tokens are kept in any case."""
        return 0

    def scaled(self, budget: int, usual: int) -> Self:
        """The rule for another budget than the `usual` one, that its numbers are made for."""
        del budget, usual
        return self

    def kept(self, found: Candidates) -> jax.Array:
        """Which are kept in any case, a mask that broadcasts to (batch, heads, candidates)."""
        return jnp.zeros_like(found.valid)[None, None]

    def noted(self, found: Candidates) -> jax.Array:
        """The new `Candidates.memory`."""
        return found.memory

    @abc.abstractmethod
    def scores(self, found: Candidates, noted: jax.Array) -> jax.Array:
        """(batch, heads, candidates) float32, or what broadcasts to it: the highest are kept."""


def choose(rule: Rule, found: Candidates, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` best tokens in their order, and what is noted of all candidates.

    Of equal scores the older token's is better. A score of NaN is the highest, so that what made it
    stays to be seen.

    Returns:
      Indices (batch, heads, count) int32, ascending; where there are fewer tokens than `count`, the
      last lie beyond the candidates. And (batch, heads, candidates) float32.
    """
    noted, size = rule.noted(found), found.valid.shape[0]
    shape = found.positions.shape
    scores = jnp.broadcast_to(rule.scores(found, noted), shape)
    scores = jnp.where(jnp.isnan(scores) | rule.kept(found), jnp.inf, scores)
    scores = jnp.where(found.valid[None, None], scores, -jnp.inf)
    index = lax.top_k(scores, count)[1]
    index = jnp.where(found.valid[index], index, size)
    return jnp.sort(index, axis=-1), noted


def taken(x: jax.Array, index: jax.Array) -> jax.Array:
    """The tokens of `x` (batch, heads, candidates, ...) at `choose`'s indices; zeros beyond."""
    index = index.reshape(*index.shape, *[1] * (x.ndim - 3))
    return jnp.take_along_axis(x, index, axis=2, mode="fill", fill_value=0)


def attention(found: Candidates, queries: jax.Array, positions: jax.Array) -> jax.Array:
    """What queries (batch, heads, group, rows, dim) at positions (rows,) see in each candidate.

    Returns:
      (batch, heads, group, rows, candidates) float32, each row's sum 1.
    """
    assert found.keys is not None
    products = jnp.einsum("bhgrd,bhnd->bhgrn", queries, found.keys, precision=lax.Precision.HIGHEST)
    seen = found.positions[:, :, None, None] <= positions[None, None, None, :, None]
    seen = seen & found.valid[None, None, None, None]
    scale = queries.shape[-1] ** -0.5
    return jax.nn.softmax(jnp.where(seen, products * scale, -jnp.inf), axis=-1)


def received(found: Candidates) -> jax.Array:
    """The attention that each candidate gets, (batch, heads, candidates) float32.

    Summed over queries, averaged over the heads that share a key.
    """
    queries, positions = found.grouped(), found.query_positions
    tokens = positions.shape[0]
    if tokens <= ROWS:
        return jnp.mean(jnp.sum(attention(found, queries, positions), axis=3), axis=2)
    blocks = -(-tokens // ROWS)
    missing = blocks * ROWS - tokens
    queries = jnp.pad(queries, [(0, 0)] * 3 + [(0, missing), (0, 0)])
    # A padded query sees as the last one does; its row is then left out.
    positions = jnp.pad(positions, (0, missing), mode="edge")

    def step(total: jax.Array, block: jax.Array) -> tuple[jax.Array, None]:
        start = block * ROWS
        rows = lax.dynamic_slice_in_dim(queries, start, ROWS, axis=3)
        weights = attention(found, rows, lax.dynamic_slice_in_dim(positions, start, ROWS))
        real = start + jnp.arange(ROWS) < tokens
        weights = jnp.where(real[None, None, None, :, None], weights, 0.0)
        return total + jnp.mean(jnp.sum(weights, axis=3), axis=2), None

    start = jnp.zeros(found.positions.shape, jnp.float32)
    return lax.scan(step, start, jnp.arange(blocks))[0]
