"""Keys or values of a cache: packed units, and the exact tokens at its ends."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from lowprec.kv.codes import Code, Fitted, Parts, as_stored, from_stored
from lowprec.numerics.format import Format


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Store:
    """The arrays of keys or values.

    Attributes:
      parts: packed units, the third axis runs over them; unit i holds the tokens from i * group on.
      recent: (batch, heads, slots, dim) the newest tokens, oldest first, as uint16 bit patterns of
        the exact format; None where a token is coded as soon as it comes.
      sinks: (batch, heads, sinks, dim) the first tokens likewise, or None.
    """

    parts: Parts
    recent: jax.Array | None
    sinks: jax.Array | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How tokens are kept: coded, but for the newest and the first; frozen and hashable.

    After T tokens the first `boundary(T)` = step * floor(max(T - keep, 0) / step) are coded. KIVI's
    keys have step = R, keep = 1 (R tokens are coded together when the next one comes), its values
    step = 1, keep = R + 1; step = 1, keep = 0 codes at once.

    Attributes:
      code: of the coded tokens.
      exact: the 16-bit format of the others.
      keep, step: see above; `step` is a multiple of the code's group.
      sinks: how many first tokens are kept exactly for good; their codes are kept too, unread.
    """

    code: Code
    exact: Format
    keep: int = 0
    step: int = 1
    sinks: int = 0

    def __post_init__(self) -> None:
        if self.step % self.code.group:
            raise ValueError(
                f"`step` = {self.step} must be a multiple of the {self.code.group} tokens that are "
                f"coded together"
            )

    @property
    def slots(self) -> int:
        """The most tokens that wait to be coded."""
        return self.keep + self.step - 1

    def boundary(self, length: jax.Array) -> jax.Array:
        """How many of `length` tokens are coded."""
        return jnp.maximum(length - self.keep, 0) // self.step * self.step

    def init(self, batch: int, heads: int, dim: int, capacity: int, fitted: Fitted) -> Store:
        """An empty store for `capacity` tokens."""
        units = -(-capacity // self.code.group)
        kept = {
            name: jnp.zeros((batch, heads, size, dim), jnp.uint16) if size else None
            for name, size in (("recent", self.slots), ("sinks", self.sinks))
        }
        return Store(parts=self.code.empty(batch, heads, dim, units, fitted), **kept)

    def append(self, store: Store, x: jax.Array, length: jax.Array, fitted: Fitted) -> Store:
        """The store after the tokens of float32 `x` (batch, heads, tokens, dim).

        Tokens beyond the capacity overwrite others; `length` tells, and reading gives NaN.
        """
        sinks, tokens = store.sinks, x.shape[2]
        if sinks is not None:
            places = length + jnp.arange(tokens)
            sinks = sinks.at[:, :, places].set(as_stored(x, self.exact), mode="drop")
        if store.recent is None:
            parts = self._written(store.parts, self._coded(x, fitted), length)
            return Store(parts=parts, recent=None, sinks=sinks)
        parts, recent = self._through(store, store.recent, x, length, fitted)
        return Store(parts=parts, recent=recent, sinks=sinks)

    def _coded(self, x: jax.Array, fitted: Fitted) -> Parts:
        return self.code.code(x, fitted)

    def _through(
        self, store: Store, recent: jax.Array, x: jax.Array, length: jax.Array, fitted: Fitted
    ) -> tuple[Parts, jax.Array]:
        """Tokens that wait, then new ones: the oldest are coded, the newest wait."""
        tokens = x.shape[2]
        old, new = self.boundary(length), self.boundary(length + tokens)
        padding = jnp.zeros((*x.shape[:2], tokens + self.slots, x.shape[3]), recent.dtype)
        line = jnp.concatenate([recent, padding], axis=2)
        start = (0, 0, length - old, 0)
        line = lax.dynamic_update_slice(line, as_stored(x, self.exact), start)
        waiting = lax.dynamic_slice_in_dim(line, new - old, self.slots, axis=2)
        most = (self.slots + tokens - self.keep) // self.step * self.step
        if not most:
            return store.parts, waiting
        coded = self._coded(from_stored(line[:, :, :most], self.exact), fitted)
        units = old // self.code.group + jnp.arange(most // self.code.group)
        # Units past the boundary are not whole: they go nowhere.
        units = jnp.where(units < new // self.code.group, units, jnp.iinfo(jnp.int32).max)
        parts = {
            name: part.at[:, :, units].set(coded[name], mode="drop")
            for name, part in store.parts.items()
        }
        return parts, waiting

    def _written(self, parts: Parts, coded: Parts, length: jax.Array) -> Parts:
        return {
            name: lax.dynamic_update_slice_in_dim(part, coded[name], length, axis=2)
            for name, part in parts.items()
        }

    def slice(
        self, store: Store, start: jax.Array, size: int, length: jax.Array, dim: int, fitted: Fitted
    ) -> jax.Array:
        """The values of the tokens from `start` on, (batch, heads, size, dim) float32, turned.

        What lies beyond `length` is zero.

        Args:
          start: a multiple of the code's group, at most the capacity less `size`.
          size: a multiple of the code's group.
        """
        places = start + jnp.arange(size)
        x = self.code.decode(self._units(store, start, size), dim, fitted)
        recent, sinks = store.recent, store.sinks
        if recent is not None:
            x = self._overlaid(x, recent, places, self.boundary(length), fitted)
        if sinks is not None:
            x = self._overlaid(x, sinks, places, jnp.int32(0), fitted)
        return jnp.where((places < length)[:, None], x, 0.0)

    def elements(
        self, store: Store, start: jax.Array, size: int, length: jax.Array, dim: int, fitted: Fitted
    ) -> tuple[jax.Array, jax.Array]:
        """The same tokens as `Code.elements` has them, zero beyond `length`, and their scales.

        Raises:
          ValueError: some tokens are exact, or the code has no such elements.
        """
        if store.recent is not None or store.sinks is not None:
            raise ValueError(
                "the newest or the first tokens are kept in 16 bits; use an engine of 16-bit "
                "formats, to which what is read is rounded"
            )
        x, scales = self.code.elements(self._units(store, start, size), dim, fitted)
        seen = (start + jnp.arange(size) < length)[:, None]
        return jnp.where(seen, x, 0.0), scales

    def _units(self, store: Store, start: jax.Array, size: int) -> Parts:
        group = self.code.group
        return {
            name: lax.dynamic_slice_in_dim(part, start // group, size // group, axis=2)
            for name, part in store.parts.items()
        }

    def _overlaid(
        self,
        x: jax.Array,
        exact: jax.Array,
        places: jax.Array,
        first: jax.Array,
        fitted: Fitted,
    ) -> jax.Array:
        """`x` with the exact tokens, which lie at `first` and after, in their places."""
        count = exact.shape[2]
        inside = (places >= first) & (places < first + count)

        def overlay(x: jax.Array) -> jax.Array:
            values = self.code.turn(from_stored(exact, self.exact), fitted)
            taken = jnp.take(values, jnp.clip(places - first, 0, count - 1), axis=2)
            return jnp.where(inside[:, None], taken, x)

        return lax.cond(jnp.any(inside), overlay, lambda x: x, x)
