"""Methods that keep every token: keys in one layout, values in another."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lowprec.engines.engine import Engine
from lowprec.kv.attention import Operands, attend_tiles, named_products
from lowprec.kv.codes import Fitted
from lowprec.kv.method import Spec
from lowprec.kv.pair_cache import (
    SIDES,
    PairCache,
    array_bytes,
    cache_shape,
    check_owner,
    check_room,
    checked_queries,
    checked_tokens,
    query_places,
)
from lowprec.kv.rope import Rope
from lowprec.kv.schedule import Schedule
from lowprec.kv.store import Layout
from lowprec.kv.tiles import common_group, fitting, operand_readers
from lowprec.numerics.arguments import whole_number


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
            keys=keys,
            values=values,
            length=jnp.int32(0),
            dim=dim,
            capacity=length,
            spec=self,
            rope=rope,
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
        check_owner(cache.spec, self)
        for name, given in (("positions", positions), ("extra", extra)):
            if given is not None:
                raise ValueError(f"`{name}` is not taken by the method {self.name}")
        tensors = [checked_tokens(name, x, cache) for name, x in (("k", k), ("v", v))]
        if tensors[0].shape != tensors[1].shape:
            raise ValueError(f"`k` {tensors[0].shape} and `v` {tensors[1].shape} differ in shape")
        check_room(cache.length, tensors[0].shape[2], cache.capacity)
        stores = [
            layout.append(getattr(cache, side), x, cache.length, fitted.get(side, {}))
            for side, layout, x in zip(SIDES, self.layouts(), tensors, strict=True)
        ]
        length = cache.length + tensors[0].shape[2]
        return dataclasses.replace(cache, keys=stores[0], values=stores[1], length=length)

    def read(self, fitted: Fitted, cache: PairCache) -> tuple[jax.Array, jax.Array]:
        """See `KVMethod.read`."""
        check_owner(cache.spec, self)
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
        check_owner(cache.spec, self)
        if whole_number("splits", splits) < 1:
            raise ValueError(f"`splits` = {splits} must be at least 1")
        batch, heads, _, dim = cache_shape(cache)
        keys, values = self.layouts()
        schedule = fitting(schedule or Schedule(), (keys, values), cache)
        products = named_products(qk_engine, pv_engine, qk_formats, pv_formats)
        # Engines multiply queries as they are, as in the sources: scores are scaled after.
        scale = np.float32(dim**-0.5)
        turned = q * scale if products.qk is None else q
        if cache.rope is None:
            turned = keys.code.turn(turned, fitted.get("keys", {}))
        read_keys, read_values, scales, factor = operand_readers(
            cache, (keys, values), schedule, fitted, products
        )
        mixed = attend_tiles(
            turned.reshape(batch, heads, -1, dim),
            self._keys(read_keys, cache, schedule.tile, fitted.get("keys", {})),
            read_values,
            lambda places: allowed(places) & (places < cache.length)[None, None, None],
            first=jnp.int32(0),
            last=jnp.minimum(cache.length, cache.capacity),
            products=products,
            schedule=schedule,
            splits=splits,
            scale=None if products.qk is None else jnp.asarray(scale),
            scales=scales,
        )
        mixed = mixed if factor is None else mixed * factor
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
