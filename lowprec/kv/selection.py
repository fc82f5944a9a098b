"""The family `selection`: some tokens are kept, by another method, and the others are gone."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from lowprec.engines.engine import Engine
from lowprec.kv.attention import Operands
from lowprec.kv.checks import check_after_rope, check_sizes
from lowprec.kv.codes import Fitted
from lowprec.kv.expected_attention import ExpectedAttention
from lowprec.kv.heavy_hitters import HeavyHitters
from lowprec.kv.key_difference import KeyDifference
from lowprec.kv.key_norm import KeyNorm
from lowprec.kv.method import Spec
from lowprec.kv.pair import PairSpec
from lowprec.kv.pair_cache import (
    SIDES,
    PairCache,
    array_bytes,
    checked_queries,
    checked_tokens,
    query_places,
)
from lowprec.kv.rope import Rope
from lowprec.kv.rules import Candidates, choose, taken
from lowprec.kv.schedule import Schedule
from lowprec.kv.snapkv import SnapKV
from lowprec.kv.store import Layout, Store
from lowprec.kv.streaming import Streaming
from lowprec.kv.tova import Tova
from lowprec.numerics.arguments import whole_number
from lowprec.numerics.spec import check_spec

AnyRule = Streaming | HeavyHitters | SnapKV | ExpectedAttention | Tova | KeyNorm | KeyDifference


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionCache:
    """Kept tokens, each head its own, in their order.

    Attributes:
      pair: the method's cache that holds them; its length is how many they are.
      positions: (batch, heads, slots) int32, where each stood.
      memory: (batch, heads, slots) float32, what the rule noted of each, or None.
      length: the position after the last token's, kept or not, int32.
      budget: what `init` was given, or the method's.
      rope: by which queries and keys were turned, or None.
    """

    pair: PairCache
    positions: jax.Array
    memory: jax.Array | None
    length: jax.Array
    budget: int | None = dataclasses.field(metadata={"static": True})
    rope: Rope | None = dataclasses.field(metadata={"static": True})

    @property
    def kept(self) -> jax.Array:
        """How many tokens are kept, int32."""
        return self.pair.length

    @property
    def capacity(self) -> int:
        """How many tokens can be kept."""
        return self.pair.capacity

    @property
    def dim(self) -> int:
        """Numbers of a head."""
        return self.pair.dim

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays but the lengths."""
        return array_bytes((self.pair.keys, self.pair.values, self.positions, self.memory))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionSpec(Spec):
    """A rule chooses tokens, head by head, and another method keeps them: evicted, then quantized.

    A token whose score is NaN is kept before all others; what is kept is as the store has it. Keys
    stay turned by the positions at which their tokens stood. What is chosen rests on float32
    sums of this machine: scores that are almost equal may fall otherwise on another.

    Attributes:
      name: the entry's name.
      family: `selection`.
      rule: what is chosen.
      store: the method that keeps it.
      budget: how many tokens are kept; or
      removed: of T tokens, int(T * (1 - removed)) are kept, and at least one.
      decode: what happens after a prompt. `keep`: every `append` of several tokens chooses among
        these alone, and what comes one at a time is kept; `evict`: the budget holds at any time, of
        what is kept and what comes the best are kept. A store of the latter codes every token by
        itself.

    Example:
      >>> from lowprec.kv import get_kv_method
      >>> method, x = get_kv_method("streaming"), jnp.ones((1, 1, 9, 2))
      >>> cache = method.append(method.init(1, 1, 2, 9, budget=6), x, x)
      >>> cache.positions[0, 0].tolist()
      [0, 1, 2, 3, 7, 8]
    """

    name: str
    family: Literal["selection"] = "selection"
    rule: AnyRule
    store: PairSpec
    budget: int | None = None
    removed: float | None = None
    decode: Literal["keep", "evict"]

    def __post_init__(self) -> None:
        what = f"method {self.name!r}"
        check_spec(what, self)
        if (self.budget is None) == (self.removed is None):
            raise ValueError(
                f"{what}: `budget` = {self.budget} and `removed` = {self.removed}; give one of both"
            )
        if self.removed is not None and not 0 <= self.removed < 1:
            raise ValueError(f"{what}: `removed` = {self.removed} must be from 0 to below 1")
        if self.budget is not None:
            self._check_budget(what, self.budget)
        check_after_rope(what, self.store.name, self.store.before_rope)
        if self.decode == "evict":
            self._check_eviction(what)

    def rule_for(self, budget: int | None) -> AnyRule:
        """The rule where `init` is given a budget in place of the entry's: see `Rule.scaled`."""
        if budget is None or self.budget is None:
            return self.rule
        return self.rule.scaled(budget, self.budget)

    def raised(self, budget: int) -> int:
        """The budget, or what the rule keeps in any case where that is more.

        Example:
          >>> from lowprec.kv import get_kv_method
          >>> get_kv_method("streaming").spec.raised(2), get_kv_method("h2o").spec.raised(2)
          (4, 2)
        """
        return max(1, budget, self.rule_for(budget).always)

    def _check_budget(self, what: str, budget: int) -> None:
        least = max(1, self.rule_for(budget).always)
        if budget < least:
            raise ValueError(
                f"{what}: `budget` = {budget} must be at least {least}, which the rule "
                f"{self.rule.kind} keeps in any case"
            )

    def _check_eviction(self, what: str) -> None:
        if not self.rule.evicts:
            raise ValueError(
                f"{what}: decode = 'evict': the rule {self.rule.kind} chooses within a prompt "
                f"alone; use decode = 'keep'"
            )
        if any(x.code.group > 1 or x.slots or x.sinks for x in self.store.layouts()):
            raise ValueError(
                f"{what}: decode = 'evict' replaces single tokens, but the store "
                f"{self.store.name} codes several together or keeps some aside; use "
                f"decode = 'keep', or a store such as bf16"
            )

    keeps_all: ClassVar[bool] = False

    @property
    def calibrated(self) -> bool:
        """See `Spec.calibrated`."""
        return self.store.calibrated

    def without_window(self) -> Self:
        """See `Spec.without_window`: the store's; which tokens are kept stays as it is."""
        return dataclasses.replace(self, store=self.store.without_window())

    def fit(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Fitted:
        """The store's, over all tokens."""
        return {"store": self.store.fit(samples)}

    def init(
        self,
        fitted: Fitted,
        batch: int,
        heads: int,
        dim: int,
        length: int,
        *,
        rope: Rope | None = None,
        prompt: int | None = None,
        budget: int | None = None,
    ) -> SelectionCache:
        """See `KVMethod.init`; the arrays have room for the tokens that are kept.

        Args:
          rope: by which queries and keys were turned, for the rule `expected_attention`, which
            turns queries back; None: they were not.
          prompt: how many of `length` tokens are chosen from, where later ones are kept; by default
            all, which leaves no room for later ones.
          budget: instead of the entry's `budget` or `removed`; what a rule keeps in any case is
            scaled with it where the source has it as a share of the budget (H2O).
        """
        check_sizes(batch=batch, heads=heads, dim=dim, length=length)
        if rope is not None and not isinstance(self.rule, ExpectedAttention):
            raise ValueError(f"`rope` = {rope}: the method {self.name} looks at none; leave it out")
        if budget is not None:
            self._check_budget(f"method {self.name!r}", whole_number("budget", budget))
        budget = self.budget if budget is None else int(budget)
        slots = self._room(length, prompt, budget)
        noted = jnp.zeros((batch, heads, slots), jnp.float32) if self.rule.remembers else None
        return SelectionCache(
            pair=self.store.init(fitted.get("store", {}), batch, heads, dim, slots),
            positions=jnp.zeros((batch, heads, slots), jnp.int32),
            memory=noted if self.decode == "evict" else None,
            length=jnp.int32(0),
            budget=budget,
            rope=rope,
        )

    def _room(self, length: int, prompt: int | None, budget: int | None) -> int:
        if self.decode == "evict":
            if prompt is not None:
                raise ValueError(
                    f"`prompt` = {prompt}: the method {self.name} keeps its budget at any time; "
                    f"leave it out"
                )
            return self._kept(length, budget)
        prompt = length if prompt is None else whole_number("prompt", prompt)
        if not 0 <= prompt <= length:
            raise ValueError(f"`prompt` = {prompt} must be from 0 to `length` = {length}")
        return self._kept(prompt, budget) + length - prompt

    def _kept(self, tokens: int, budget: int | None) -> int:
        """How many of so many tokens are kept."""
        if budget is None:
            assert self.removed is not None
            # Python's float64 arithmetic, as in kvpress's compute_n_kept.
            budget = max(1, int(tokens * (1 - self.removed)))
        return min(tokens, self.raised(budget))

    def append(
        self,
        fitted: Fitted,
        cache: SelectionCache,
        k: ArrayLike,
        v: ArrayLike,
        *,
        q: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        extra: ArrayLike | None = None,
    ) -> SelectionCache:
        """See `KVMethod.append`; chooses, then has the store code what is kept.

        Args:
          q: the queries of the same tokens, after RoPE, where the rule looks at them.
          positions: ascending, none below the cache's length.
        """
        if extra is not None:
            raise ValueError(f"`extra` is not taken by the method {self.name}")
        k, v = checked_tokens("k", k, cache.pair), checked_tokens("v", v, cache.pair)
        if k.shape != v.shape:
            raise ValueError(f"`k` {k.shape} and `v` {v.shape} differ in shape")
        places = _places(cache, positions, k.shape[2])
        queries = None if q is None else self._queries(q, cache, k.shape[2])
        own = fitted.get("store", {})
        if self.decode == "evict":
            changed = self._evicted(own, cache, k, v, queries, places)
        else:
            changed = self._chosen(own, cache, k, v, queries, places)
        return dataclasses.replace(changed, length=places[-1] + 1)

    def _queries(self, q: ArrayLike, cache: SelectionCache, tokens: int) -> jax.Array:
        queries = checked_queries(q, cache.pair)
        if queries.shape[2] != tokens:
            raise ValueError(f"`q` has {queries.shape[2]} tokens, `k` {tokens}; give both the same")
        return queries

    def _chosen(
        self,
        fitted: Fitted,
        cache: SelectionCache,
        k: jax.Array,
        v: jax.Array,
        queries: jax.Array | None,
        places: jax.Array,
    ) -> SelectionCache:
        """Of several new tokens the best, or the one."""
        batch, heads, tokens, _ = k.shape
        positions = jnp.broadcast_to(places[None, None], (batch, heads, tokens))
        count = tokens if tokens == 1 else self._kept(tokens, cache.budget)
        self._check_room(cache, count)
        if count < tokens:
            found = Candidates(
                keys=k,
                values=v,
                valid=jnp.ones(tokens, bool),
                positions=positions,
                memory=jnp.zeros(positions.shape, jnp.float32),
                queries=self._asked(queries),
                query_positions=places,
                rope=cache.rope,
            )
            index = choose(self.rule_for(cache.budget), found, count)[0]
            k, v, positions = taken(k, index), taken(v, index), taken(positions, index)
        pair = self.store.append(fitted, cache.pair, k, v)
        slots = jnp.arange(count) + cache.kept
        placed = cache.positions.at[:, :, slots].set(positions, mode="drop")
        return dataclasses.replace(cache, pair=pair, positions=placed)

    def _check_room(self, cache: SelectionCache, count: int) -> None:
        held = cache.kept
        if count <= cache.capacity and isinstance(held, Tracer):
            return
        if isinstance(held, Tracer) or int(held) + count > cache.capacity:
            raise ValueError(
                f"{count} more tokens do not fit: the cache keeps "
                f"{'?' if isinstance(held, Tracer) else int(held)} of {cache.capacity}; those "
                f"after the prompt are all kept: init(..., length, prompt=...) makes room for "
                f"length - prompt of them"
            )

    def _asked(self, queries: jax.Array | None) -> jax.Array | None:
        if self.rule.asks and queries is None:
            raise ValueError(
                f"`q` is missing: the method {self.name} chooses tokens by queries; "
                f"append(cache, k, v, q=...)"
            )
        return queries

    def _evicted(
        self,
        fitted: Fitted,
        cache: SelectionCache,
        k: jax.Array,
        v: jax.Array,
        queries: jax.Array | None,
        places: jax.Array,
    ) -> SelectionCache:
        """Of kept and new tokens the best."""
        tokens, slots = k.shape[2], cache.capacity
        queries = self._asked(queries)
        positions = jnp.broadcast_to(places[None, None], k.shape[:3])
        memory = jnp.zeros(k.shape[:3], jnp.float32)
        old = jnp.zeros_like(cache.positions, jnp.float32) if cache.memory is None else cache.memory
        # Only a rule that looks at keys has the store decoded.
        seen = self.store.read(fitted, cache.pair)[0] if self.rule.reads else None
        found = Candidates(
            keys=None if seen is None else jnp.concatenate([seen, k], axis=2),
            values=None,
            valid=jnp.concatenate([jnp.arange(slots) < cache.kept, jnp.ones(tokens, bool)]),
            positions=jnp.concatenate([cache.positions, positions], axis=2),
            memory=jnp.concatenate([old, memory], axis=2),
            queries=queries,
            query_positions=places,
            rope=cache.rope,
        )
        index, noted = choose(self.rule_for(cache.budget), found, slots)
        kept = jnp.minimum(cache.kept + tokens, slots)
        stores = {
            side: _replaced(layout, getattr(cache.pair, side), x, index, fitted.get(side, {}))
            for side, layout, x in zip(SIDES, self.store.layouts(), (k, v), strict=True)
        }
        return dataclasses.replace(
            cache,
            pair=dataclasses.replace(cache.pair, length=kept, **stores),
            positions=taken(found.positions, index),
            memory=None if cache.memory is None else taken(noted, index),
        )

    def read(self, fitted: Fitted, cache: SelectionCache) -> tuple[jax.Array, jax.Array]:
        """See `KVMethod.read`: the kept tokens; `cache.positions` says where they stood."""
        return self.store.read(fitted.get("store", {}), cache.pair)

    def attend(
        self,
        fitted: Fitted,
        cache: SelectionCache,
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
        """See `KVMethod.attend`; over kept tokens alone, NaN where a query may see none.

        The sources attend to a prompt, and H2O and TOVA to each new token, before they evict; here
        what `append` evicted is gone before.
        """
        q = checked_queries(q, cache.pair)
        own = query_places(q, cache.pair, cache.length)

        def allowed(places: jax.Array) -> jax.Array:
            stood = jnp.take(cache.positions, places, axis=2, mode="clip")[:, :, None]
            return stood <= own[None, None, :, None] if causal else stood >= 0

        return self.store.attend_where(
            fitted.get("store", {}),
            cache.pair,
            q,
            allowed,
            qk_engine=qk_engine,
            pv_engine=pv_engine,
            qk_formats=qk_formats,
            pv_formats=pv_formats,
            splits=splits,
            schedule=schedule,
        )

    def nbytes(self, fitted: Fitted, *, kv_heads: int, dim: int, length: int | None) -> float:
        """See `Spec.nbytes`: of a kept token with its position, or of a prompt of `length`."""
        if length is not None:
            return float(
                array_bytes(
                    jax.eval_shape(
                        lambda: self._arrays(self.init(fitted, 1, kv_heads, dim, length))
                    )
                )
            )
        own = self.store.nbytes(fitted.get("store", {}), kv_heads=kv_heads, dim=dim, length=None)
        cache = jax.eval_shape(lambda: self.init(fitted, 1, kv_heads, dim, self.rule.always + 1))
        beside = array_bytes((cache.positions, cache.memory)) / cache.capacity
        return own + beside

    def _arrays(self, cache: SelectionCache) -> tuple[Store, Store, jax.Array, jax.Array | None]:
        return cache.pair.keys, cache.pair.values, cache.positions, cache.memory


def _replaced(layout: Layout, store: Store, x: jax.Array, index: jax.Array, own: Fitted) -> Store:
    """The codes of kept and new tokens at `choose`'s indices; old codes are only moved."""
    coded = layout.code.code(x, own)
    parts = {
        name: taken(jnp.concatenate([part, coded[name]], axis=2), index)
        for name, part in store.parts.items()
    }
    return dataclasses.replace(store, parts=parts)


def _places(cache: SelectionCache, positions: ArrayLike | None, tokens: int) -> jax.Array:
    """Where the new tokens stand, (tokens,) int32."""
    if positions is None:
        return cache.length + jnp.arange(tokens, dtype=jnp.int32)
    places = jnp.asarray(positions)
    if places.shape != (tokens,) or not jnp.issubdtype(places.dtype, jnp.integer):
        raise ValueError(
            f"`positions` of shape {places.shape}, {places.dtype} must be integers ({tokens},)"
        )
    if not isinstance(places, Tracer) and not isinstance(cache.length, Tracer):
        line = np.concatenate([[int(cache.length) - 1], np.asarray(places)])
        if (np.diff(line) < 1).any():
            raise ValueError(
                f"`positions` = {np.asarray(places)} must ascend, from the cache's length "
                f"{int(cache.length)} on"
            )
    return places.astype(jnp.int32)
