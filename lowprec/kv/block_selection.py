"""The family `block_selection`: every token is kept, and a query sees the blocks it chooses."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from lowprec.engines.engine import Engine
from lowprec.kv.attention import Operands
from lowprec.kv.checks import check_after_rope
from lowprec.kv.codes import Fitted
from lowprec.kv.method import Spec
from lowprec.kv.pair import PairSpec
from lowprec.kv.pair_cache import PairCache, checked_queries, query_places
from lowprec.kv.schedule import Schedule
from lowprec.numerics.spec import check_spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSelectionSpec(Spec):
    """NSA's selection branch (arXiv 2502.11089) over the cache of another method.

    Means of `pooled` keys, every `stride` tokens, stand for them: a query's attention to those that
    end at or before it, summed over the heads that share a key, says how much each block of tokens
    matters. Nothing is trained: NSA's own compression, its other two branches and their gates are
    weights of a model, and its means are of keys before RoPE, here of what the cache gives back.

    Attributes:
      name: the entry's name.
      family: `block_selection`.
      store: the method that keeps all tokens, its keys after RoPE.
      pooled, stride: see above; `pooled` is a multiple of `stride`.
      block: tokens of a block, a multiple of `stride`.
      chosen: how many blocks a query sees.
      first, newest: how many blocks among these are the first ones, and the last ones up to the
        query's own.

    Example:
      >>> from lowprec.kv import get_kv_method
      >>> method, x = get_kv_method("nsa"), jnp.ones((1, 1, 3, 2))
      >>> method.attend(method.append(method.init(1, 1, 2, 3), x, x), x[:, :, -1:])
      Array([[[[1., 1.]]]], dtype=float32)
    """

    name: str
    family: Literal["block_selection"] = "block_selection"
    store: PairSpec
    pooled: int
    stride: int
    block: int
    chosen: int
    first: int
    newest: int

    def __post_init__(self) -> None:
        what = f"method {self.name!r}"
        check_spec(what, self)
        if self.stride < 1 or self.pooled < 1 or self.block < 1:
            raise ValueError(f"{what}: `stride`, `pooled` and `block` must be at least 1")
        if self.pooled % self.stride or self.block % self.stride:
            raise ValueError(
                f"{what}: `pooled` = {self.pooled} and `block` = {self.block} must be multiples of "
                f"`stride` = {self.stride}"
            )
        if self.first < 0 or self.newest < 1 or self.chosen < self.first + self.newest:
            raise ValueError(
                f"{what}: `chosen` = {self.chosen} must be at least `first` = {self.first} (0 or "
                f"more) and `newest` = {self.newest} (1 or more) together"
            )
        check_after_rope(what, self.store.name, self.store.before_rope)

    @property
    def calibrated(self) -> bool:
        """See `Spec.calibrated`."""
        return self.store.calibrated

    def without_window(self) -> Self:
        """See `Spec.without_window`: the store's."""
        return dataclasses.replace(self, store=self.store.without_window())

    def fit(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Fitted:
        """The store's."""
        return self.store.fit(samples)

    def init(self, fitted: Fitted, *args: Any, **kwargs: Any) -> PairCache:
        """See `KVMethod.init`: the store's."""
        return self.store.init(fitted, *args, **kwargs)

    def append(self, fitted: Fitted, cache: PairCache, *args: Any, **kwargs: Any) -> PairCache:
        """See `KVMethod.append`: the store's."""
        return self.store.append(fitted, cache, *args, **kwargs)

    def read(self, fitted: Fitted, cache: PairCache) -> tuple[jax.Array, jax.Array]:
        """See `KVMethod.read`: all tokens."""
        return self.store.read(fitted, cache)

    def nbytes(self, fitted: Fitted, *, kv_heads: int, dim: int, length: int | None) -> float:
        """See `Spec.nbytes`: the store's; means are made anew for every query."""
        return self.store.nbytes(fitted, kv_heads=kv_heads, dim=dim, length=length)

    def attend(
        self,
        fitted: Fitted,
        cache: PairCache,
        q: ArrayLike,
        *,
        qk_engine: str | Engine | None = None,
        pv_engine: str | Engine | None = None,
        qk_formats: Operands | None = None,
        pv_formats: Operands | None = None,
        splits: int = 1,
        causal: bool = True,
        schedule: Schedule | None = None,
    ) -> jax.Array:
        """See `KVMethod.attend`; over the tokens of chosen blocks alone."""
        if not causal:
            raise ValueError(
                f"`causal` = False: the method {self.name} chooses blocks up to the query's own"
            )
        q = checked_queries(q, cache)
        own = query_places(q, cache, cache.length)
        seen = jnp.tile(self.blocks(fitted, cache, q), (1, 1, own.shape[0] // q.shape[2], 1))

        def allowed(places: jax.Array) -> jax.Array:
            in_block = jnp.take(seen, places // self.block, axis=3, mode="clip")
            return in_block & (places[None] <= own[:, None])[None, None]

        return self.store.attend_where(
            fitted,
            cache,
            q,
            allowed,
            qk_engine=qk_engine,
            pv_engine=pv_engine,
            qk_formats=qk_formats,
            pv_formats=pv_formats,
            splits=splits,
            schedule=schedule,
        )

    def blocks(self, fitted: Fitted, cache: PairCache, q: jax.Array) -> jax.Array:
        """Which blocks float32 queries see, (batch, heads, tokens, blocks) bool.

        Of equal scores the older block's is better; blocks after the query's own are not seen,
        though fewer than `chosen` be left.
        """
        scores = self._block_scores(self._means(self.store.read(fitted, cache)[0]), cache, q)
        blocks = jnp.arange(scores.shape[-1])[None]
        mine = (cache.length - q.shape[2] + jnp.arange(q.shape[2]))[:, None] // self.block
        forced = (blocks < self.first) | (blocks > mine - self.newest)
        scores = jnp.where(forced[None, None], jnp.inf, scores)
        scores = jnp.where((blocks <= mine)[None, None], scores, -jnp.inf)
        index = lax.top_k(scores, min(self.chosen, scores.shape[-1]))[1]
        seen = (index[..., None] == blocks[None, None, None]).any(axis=-2)
        return seen & (blocks <= mine)[None, None]

    def _means(self, keys: jax.Array) -> jax.Array:
        """(batch, heads, windows, dim): the means of windows that lie within the capacity."""
        batch, heads, capacity, dim = keys.shape
        strides = capacity // self.stride
        cut = keys[:, :, : strides * self.stride].reshape(batch, heads, strides, self.stride, dim)
        sums, each = jnp.sum(cut, axis=3), self.pooled // self.stride
        count = max(strides - each + 1, 0)
        total = jnp.zeros((batch, heads, count, dim), jnp.float32)
        for i in range(each):
            total = total + sums[:, :, i : i + count]
        return total / self.pooled

    def _block_scores(self, means: jax.Array, cache: PairCache, q: jax.Array) -> jax.Array:
        """(batch, heads, tokens, blocks): attention to means, each block its own and those it cuts.

        A window that reaches into a block counts once for every stride of it that lies there.
        """
        batch, heads, count, dim = means.shape
        tokens = q.shape[2]
        grouped = q.reshape(batch, heads, -1, tokens, dim)
        logits = jnp.einsum("bhgtd,bhnd->bhgtn", grouped, means, precision=lax.Precision.HIGHEST)
        ends = jnp.arange(count) * self.stride + self.pooled - 1
        own = cache.length - tokens + jnp.arange(tokens)
        seen = (ends[None] <= own[:, None])[None, None, None]
        weights = jax.nn.softmax(jnp.where(seen, logits * dim**-0.5, -jnp.inf), axis=-1, where=seen)
        # A query before the first window's end sees none.
        weights = jnp.sum(jnp.where(seen, weights, 0.0), axis=2)
        table = self._table(count, -(-cache.capacity // self.block))
        return jnp.einsum("bhtn,nm->bhtm", weights, table, precision=lax.Precision.HIGHEST)

    def _table(self, count: int, blocks: int) -> np.ndarray:
        """(windows, blocks) float32: how many strides of a window lie in a block."""
        strides = np.arange(count)[:, None, None] + np.arange(self.pooled // self.stride)[:, None]
        there = strides * self.stride // self.block == np.arange(blocks)
        return there.sum(axis=1).astype(np.float32)
