"""Methods that keep every token: keys in one layout, values in another."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from lowprec.engines.engine import Engine
from lowprec.kv.attention import Operands, attend_tiles, named_products
from lowprec.kv.codes import Fitted
from lowprec.kv.method import Spec
from lowprec.kv.rope import Rope
from lowprec.kv.schedule import Schedule
from lowprec.kv.store import Layout, Store
from lowprec.numerics.arguments import float_array, whole_number

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
      rope: what keys are turned by on reading, or None.
    """

    keys: Store
    values: Store
    length: jax.Array
    dim: int = dataclasses.field(metadata={"static": True})
    capacity: int = dataclasses.field(metadata={"static": True})
    rope: Rope | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays but the length."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.keys, self.values)))


class PairSpec(Spec):
    """A method whose keys and values are two layouts."""

    before_rope: ClassVar[bool] = False
    """Whether keys are kept as they are before RoPE."""

    @abc.abstractmethod
    def layouts(self) -> tuple[Layout, Layout]:
        """Of keys and of values."""

    def init(
        self,
        fitted: Fitted,
        batch: int,
        heads: int,
        dim: int,
        length: int,
        *,
        rope: Rope | None = None,
    ) -> PairCache:
        """See `KVMethod.init`."""
        for name, size in (("batch", batch), ("heads", heads), ("dim", dim), ("length", length)):
            if whole_number(name, size) < 1:
                raise ValueError(f"`{name}` = {size} must be at least 1")
        if rope is not None and not self.before_rope:
            raise ValueError(
                f"`rope` = {rope}: the method {self.name} keeps keys after RoPE; leave it out"
            )
        # Whole units of both, so that a tile of one is a tile of the other.
        group = common_group(self.layouts())
        room = -(-length // group) * group
        keys, values = (
            x.init(batch, heads, dim, room, fitted.get(side, {}))
            for side, x in zip(SIDES, self.layouts(), strict=True)
        )
        return PairCache(
            keys=keys, values=values, length=jnp.int32(0), dim=dim, capacity=length, rope=rope
        )

    def append(
        self,
        fitted: Fitted,
        cache: PairCache,
        k: ArrayLike,
        v: ArrayLike,
        *,
        q: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        extra: ArrayLike | None = None,
    ) -> PairCache:
        """See `KVMethod.append`; `q` is looked at by no method of this kind."""
        del q
        for name, given in (("positions", positions), ("extra", extra)):
            if given is not None:
                raise ValueError(f"`{name}` is not taken by the method {self.name}")
        tensors = [checked_tokens(name, x, cache) for name, x in (("k", k), ("v", v))]
        if tensors[0].shape != tensors[1].shape:
            raise ValueError(f"`k` {tensors[0].shape} and `v` {tensors[1].shape} differ in shape")
        _check_room(cache.length, tensors[0].shape[2], cache.capacity)
        stores = [
            layout.append(getattr(cache, side), x, cache.length, fitted.get(side, {}))
            for side, layout, x in zip(SIDES, self.layouts(), tensors, strict=True)
        ]
        length = cache.length + tensors[0].shape[2]
        return dataclasses.replace(cache, keys=stores[0], values=stores[1], length=length)

    def read(self, fitted: Fitted, cache: PairCache) -> tuple[jax.Array, jax.Array]:
        """See `KVMethod.read`."""
        found = []
        for side, layout in zip(SIDES, self.layouts(), strict=True):
            store, own = getattr(cache, side), fitted.get(side, {})
            size = jax.tree.leaves(store.parts)[0].shape[2] * layout.code.group
            x = layout.slice(store, jnp.int32(0), size, cache.length, cache.dim, own)
            found.append(layout.code.turn_back(x, own)[:, :, : cache.capacity])
        if cache.rope is not None:
            found[0] = cache.rope.turn(found[0], jnp.arange(cache.capacity))
        fits = cache.length <= cache.capacity
        return jnp.where(fits, found[0], jnp.nan), jnp.where(fits, found[1], jnp.nan)

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
        """See `KVMethod.attend`."""
        q = checked_queries(q, cache)
        own = query_places(q, cache, cache.length)

        def allowed(places: jax.Array) -> jax.Array:
            return (places[None] <= own[:, None] if causal else places[None] >= 0)[None, None]

        return self.attend_where(
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

    def attend_where(
        self,
        fitted: Fitted,
        cache: PairCache,
        q: jax.Array,
        allowed: Callable[[jax.Array], jax.Array],
        *,
        qk_engine: str | Engine | None = None,
        pv_engine: str | Engine | None = None,
        qk_formats: Operands | None = None,
        pv_formats: Operands | None = None,
        splits: int = 1,
        schedule: Schedule | None = None,
    ) -> jax.Array:
        """Attention of float32 `q`, where the caller says which row sees which place.

        Args:
          allowed: as `attend_tiles` has it, of four axes; what lies at the cache's length or beyond
            is hidden in any case.
        """
        if whole_number("splits", splits) < 1:
            raise ValueError(f"`splits` = {splits} must be at least 1")
        batch, heads, _, dim = cache_shape(cache)
        keys, values = self.layouts()
        schedule = fitting(schedule or Schedule(), (keys, values), cache)
        turned = q * np.float32(dim**-0.5)
        if cache.rope is None:
            turned = keys.code.turn(turned, fitted.get("keys", {}))
        grouped = turned.reshape(batch, heads, -1, dim)
        readers = tile_readers(cache, (keys, values), schedule.tile, fitted)
        mixed = attend_tiles(
            grouped,
            self._keys(readers[0], cache, schedule.tile, fitted.get("keys", {})),
            readers[1],
            lambda places: allowed(places) & (places < cache.length)[None, None, None],
            first=jnp.int32(0),
            last=jnp.minimum(cache.length, cache.capacity),
            products=named_products(qk_engine, pv_engine, qk_formats, pv_formats),
            schedule=schedule,
            splits=splits,
        )
        mixed = values.code.turn_back(mixed, fitted.get("values", {})).reshape(q.shape)
        return jnp.where(cache.length <= cache.capacity, mixed, jnp.nan)

    def _keys(
        self,
        read: Callable[[jax.Array], jax.Array],
        cache: PairCache,
        tile: int,
        fitted: Fitted,
    ) -> Callable[[jax.Array], jax.Array]:
        """Keys as queries meet them: turned back and rotated by position where RoPE is to come."""
        rope = cache.rope
        if rope is None:
            return read
        code = self.layouts()[0].code
        return lambda start: rope.turn(
            code.turn_back(read(start), fitted), start + jnp.arange(tile)
        )

    def nbytes(self, fitted: Fitted, *, kv_heads: int, dim: int, length: int | None) -> float:
        """See `Spec.nbytes`: the sizes of the arrays that `init` makes."""
        if length is not None:
            cache = jax.eval_shape(lambda: self.init(fitted, 1, kv_heads, dim, length))
            return float(array_bytes((cache.keys, cache.values)))
        total = 0.0
        for side, x in zip(SIDES, self.layouts(), strict=True):
            own = fitted.get(side, {})
            unit = jax.eval_shape(functools.partial(x.code.empty, 1, kv_heads, dim, 1, own))
            total += array_bytes(unit) / x.code.group
        return total


def cache_shape(cache: PairCache) -> tuple[int, int, int, int]:
    """(batch, heads, capacity, dim)."""
    batch, heads = jax.tree.leaves(cache.keys.parts)[0].shape[:2]
    return batch, heads, cache.capacity, cache.dim


def common_group(layouts: tuple[Layout, ...]) -> int:
    """The fewest tokens that are whole units of every layout."""
    return int(np.lcm.reduce([x.code.group for x in layouts]))


def fitting(schedule: Schedule, layouts: tuple[Layout, ...], cache: PairCache) -> Schedule:
    """The schedule with a tile no longer than the cache.

    Raises:
      ValueError: the tile is no whole number of the tokens that are coded together.
    """
    group = common_group(layouts)
    if schedule.tile % group:
        raise ValueError(
            f"`schedule`: tile = {schedule.tile} must be a multiple of the {group} tokens that are "
            f"coded together"
        )
    return dataclasses.replace(
        schedule, tile=min(schedule.tile, -(-cache.capacity // group) * group)
    )


def tile_readers(
    cache: PairCache, layouts: tuple[Layout, Layout], tile: int, fitted: Fitted
) -> list[Callable[[jax.Array], jax.Array]]:
    """What reads a tile of keys, and of values, from a token on; the last is filled with zeros."""

    def reader(layout: Layout, store: Store, own: Fitted) -> Callable[[jax.Array], jax.Array]:
        units = jax.tree.leaves(store.parts)[0].shape[2]
        last = units * layout.code.group - tile

        def read(start: jax.Array) -> jax.Array:
            held = jnp.minimum(start, last)
            x = layout.slice(store, held, tile, cache.length, cache.dim, own)

            def moved(x: jax.Array) -> jax.Array:
                wide = jnp.concatenate([x, jnp.zeros_like(x)], axis=2)
                return jax.lax.dynamic_slice_in_dim(wide, start - held, tile, axis=2)

            return jax.lax.cond(start > last, moved, lambda x: x, x)

        return read

    return [
        reader(layout, getattr(cache, side), fitted.get(side, {}))
        for side, layout in zip(SIDES, layouts, strict=True)
    ]


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


def _check_room(length: jax.Array, tokens: int, capacity: int) -> None:
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
