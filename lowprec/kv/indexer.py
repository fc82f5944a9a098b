"""The family `dsa`: attention to the tokens that a small FP8 indexer finds (DeepSeek-V3.2).

Beside a latent, every token keeps one key of the indexer. A query's indexer heads score all keys,
and attention sees the tokens of the largest scores alone.
"""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from lowprec.engines.engine import Engine, get_engine
from lowprec.engines.matmul import matmul
from lowprec.kv.attention import Operands, named_products
from lowprec.kv.checks import token_array
from lowprec.kv.codes import BlockCode, Fitted, Rotation
from lowprec.kv.latent import LatentCache, LatentSpec
from lowprec.kv.latent_codes import Part, as_bfloat16
from lowprec.kv.method import Spec
from lowprec.kv.record import Bytes, Record, from_bytes
from lowprec.kv.schedule import Schedule
from lowprec.numerics.arguments import float_array
from lowprec.numerics.codec import decode
from lowprec.numerics.packing import unpack
from lowprec.numerics.spec import check_spec
from lowprec.scaling.block import Block


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DsaCache:
    """Latents, and the indexer's keys: uint8 (batch, pages, bytes)."""

    latents: LatentCache
    keys: jax.Array

    @property
    def length(self) -> jax.Array:
        """Tokens appended, int32."""
        return self.latents.length

    @property
    def capacity(self) -> int:
        """Tokens there is room for."""
        return self.latents.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays but the length."""
        return self.latents.nbytes + self.keys.nbytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class DsaSpec(Spec):
    """DeepSeek sparse attention over a latent method's cache.

    Attributes:
      name: the entry's name.
      family: `dsa`.
      base: the latent method.
      key_dim: numbers of an indexer key, and of each indexer head's query.
      block: of keys and queries, one tile each.
      rotation: of keys and queries before they are quantized, and rounded to bfloat16 after it.
      record: the order of bytes: of `key` and `key_scales`, these as float32.
      top_k: how many tokens a query sees at most.

    Example:
      >>> from lowprec.kv import get_kv_method
      >>> get_kv_method("dsa").bytes_per_token(layers=61, kv_heads=1, dim=576)
      48068.0
    """

    latent: ClassVar[bool] = True
    name: str
    family: Literal["dsa"] = "dsa"
    base: LatentSpec
    key_dim: int
    block: Block
    rotation: Rotation
    record: Record
    top_k: int

    def __post_init__(self) -> None:
        what = f"method {self.name!r}"
        check_spec(what, self)
        if min(self.key_dim, self.top_k) < 1:
            raise ValueError(
                f"{what}: key_dim = {self.key_dim} and top_k = {self.top_k} must be at least 1"
            )
        sizes = self.part.sizes(self.key_dim)
        if sorted(sizes) != sorted(self.record.parts) or sizes["key_scales"] != 4:
            raise ValueError(
                f"{what}: the record has {', '.join(self.record.parts)}; it needs `key` and "
                f"`key_scales`, one tile of {self.block.name} for {self.key_dim} numbers"
            )

    @property
    def usual_shape(self) -> tuple[int, int]:
        """See `Spec.usual_shape`."""
        return self.base.usual_shape

    def numbers(self, kv_heads: int, dim: int) -> int:
        """See `Spec.numbers`: those of the latents; keys of the indexer are metadata."""
        return self.base.numbers(kv_heads, dim)

    def init(
        self, fitted: Fitted, batch: int, latent_dim: int, rope_dim: int, length: int
    ) -> DsaCache:
        """See `KVMethod.init`; zeros."""
        latents = self.base.init(fitted, batch, latent_dim, rope_dim, length)
        keys = self.record.empty(batch, length, self.part.sizes(self.key_dim))
        return DsaCache(latents=latents, keys=keys)

    def append(
        self,
        fitted: Fitted,
        cache: DsaCache,
        latent: ArrayLike,
        k_rope: ArrayLike,
        *,
        q: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        extra: ArrayLike | None = None,
    ) -> DsaCache:
        """See `LatentSpec.append`.

        Args:
          extra: the indexer's keys (batch, tokens, key_dim), after RoPE and before the rotation.
        """
        if extra is None:
            raise ValueError(f"`extra` is missing: the method {self.name} needs the indexer's keys")
        latents = self.base.append(fitted, cache.latents, latent, k_rope, q=q, positions=positions)
        keys = token_array("extra", extra, (cache.keys.shape[0], None, self.key_dim))
        tokens = int(np.shape(latent)[1])
        if keys.shape[1] != tokens:
            raise ValueError(f"`extra` has {keys.shape[1]} tokens and `latent` {tokens}")
        return DsaCache(latents=latents, keys=_appended(cache, keys, spec=self))

    def read(self, fitted: Fitted, cache: DsaCache) -> tuple[jax.Array, jax.Array]:
        """See `LatentSpec.read`: all tokens, selected or not."""
        return self.base.read(fitted, cache.latents)

    def attend(
        self,
        fitted: Fitted,
        cache: DsaCache,
        q_latent: ArrayLike,
        q_rope: ArrayLike,
        *,
        scale: ArrayLike,
        extra: tuple[ArrayLike, ArrayLike] | None = None,
        qk_engine: str | Engine | None = None,
        pv_engine: str | Engine | None = None,
        qk_formats: Operands | None = None,
        pv_formats: Operands | None = None,
        index_engine: str | Engine | None = None,
        splits: int = 1,
        causal: bool = True,
        schedule: Schedule | None = None,
        sink: ArrayLike | None = None,
    ) -> jax.Array:
        """See `LatentSpec.attend`; to the tokens that the indexer selects.

        Args:
          extra: the indexer's queries (batch, index_heads, tokens, key_dim), after RoPE and before
            the rotation, and its weights (batch, tokens, index_heads).
          index_engine: of the products of queries and keys, by default this machine's float32 one.
        """
        del fitted
        if extra is None:
            raise ValueError(
                f"`extra` is missing: the method {self.name} needs the indexer's (queries, weights)"
            )
        scores = self.scores(cache, *extra, index_engine=index_engine)
        if scores.shape[1] != np.shape(q_latent)[2]:
            raise ValueError(
                f"`extra` has {scores.shape[1]} tokens and `q_latent` {np.shape(q_latent)[2]}"
            )
        chosen = self.selected(cache, scores, causal=causal)
        return self.base.attend_chosen(
            cache.latents,
            (q_latent, q_rope),
            chosen,
            scale=scale,
            products=named_products(qk_engine, pv_engine, qk_formats, pv_formats),
            splits=splits,
            causal=causal,
            schedule=schedule,
            sink=sink,
        )

    def scores(
        self,
        cache: DsaCache,
        queries: ArrayLike,
        weights: ArrayLike,
        *,
        index_engine: str | Engine | None = None,
    ) -> jax.Array:
        """What the indexer makes of all keys, (batch, tokens, capacity) float32, unmasked:

            sum over heads of relu(q . k) * (weight * heads**-0.5 * q_scale * key_dim**-0.5)

        times k_scale, q and k being codes without scale. The sum over heads is the machine's.

        Args:
          queries, weights: see `attend`.
        """
        engine = None if index_engine is None else get_engine(index_engine)
        q = float_array("extra[0]", queries).astype(jnp.float32)
        w = float_array("extra[1]", weights).astype(jnp.float32)
        batch = cache.keys.shape[0]
        if q.ndim != 4 or (q.shape[0], q.shape[3]) != (batch, self.key_dim) or not q.size:
            raise ValueError(
                f"`extra`: queries of shape {q.shape} must be ({batch}, index_heads, tokens, "
                f"{self.key_dim})"
            )
        heads, tokens = q.shape[1:3]
        if w.shape != (batch, tokens, heads):
            raise ValueError(
                f"`extra`: weights of shape {w.shape} must be ({batch}, {tokens}, {heads})"
            )
        return _scores(cache, q, w, spec=self, engine=engine)

    def selected(self, cache: DsaCache, scores: jax.Array, *, causal: bool = True) -> jax.Array:
        """Which tokens attention sees: bool of the shape of `scores`.

        Among equal scores the first tokens are taken.
        """
        tokens, capacity = scores.shape[1:]
        places = jnp.arange(capacity)
        last = jnp.full((tokens,), cache.length - 1)
        if causal:
            last = cache.length - tokens + jnp.arange(tokens)
        visible = (places[None] <= last[:, None])[None]
        best = lax.top_k(jnp.where(visible, scores, -jnp.inf), min(self.top_k, capacity))[1]
        none = jnp.zeros(scores.shape, bool)
        return jnp.put_along_axis(none, best, True, axis=-1, inplace=False) & visible

    def nbytes(self, fitted: Fitted, *, kv_heads: int, dim: int, length: int | None) -> float:
        """See `LatentSpec.nbytes`; the indexer's keys too."""
        base = self.base.nbytes(fitted, kv_heads=kv_heads, dim=dim, length=length)
        sizes = self.part.sizes(self.key_dim)
        if length is None:
            return base + self.record.token_bytes(sizes)
        return base + -(-length // self.record.page) * self.record.page_bytes(sizes)

    def turned(self, x: jax.Array) -> jax.Array:
        """Keys or queries (..., key_dim) as they are quantized: rotated, and bfloat16."""
        code = BlockCode(block=self.block, rotation=self.rotation)
        return as_bfloat16(code.turn(as_bfloat16(x), {}))

    @property
    def part(self) -> Part:
        return Part(name="key", operand=self.block, scales="float32")


# Compiled as a whole also outside a caller's `jit`: one by one, the operations take seconds.
@functools.partial(jax.jit, static_argnames=("spec",))
def _appended(cache: DsaCache, keys: jax.Array, *, spec: DsaSpec) -> jax.Array:
    found = spec.part.encode(spec.turned(keys))
    return spec.record.write(cache.keys, found, cache.length, spec.part.sizes(spec.key_dim))


@functools.partial(jax.jit, static_argnames=("spec", "engine"))
def _scores(
    cache: DsaCache, q: jax.Array, w: jax.Array, *, spec: DsaSpec, engine: Engine | None
) -> jax.Array:
    batch, heads, tokens, dim = q.shape
    flat = spec.turned(q.reshape(batch, heads * tokens, dim))
    q_codes, q_scale = _split(spec.part.encode(flat), spec)
    pages = cache.keys.shape[1] * spec.record.page
    held = spec.record.read(cache.keys, jnp.int32(0), pages, spec.part.sizes(dim))
    k_codes, k_scale = (x[:, : cache.capacity] for x in _split(held, spec))
    dots = _dots(q_codes, k_codes, engine, spec.block).reshape(batch, heads, tokens, -1)
    # float32, in the source's order.
    share = w.swapaxes(1, 2) * np.float32(heads**-0.5)
    share = share * q_scale.reshape(batch, heads, tokens) * np.float32(dim**-0.5)
    return jnp.sum(jnp.maximum(dots, 0) * share[..., None], axis=1) * k_scale[:, None]


def _split(found: Bytes, spec: DsaSpec) -> tuple[jax.Array, jax.Array]:
    """Codes (batch, tokens, key_dim) as float32 numbers, and their scales (batch, tokens)."""
    codes = unpack(found["key"], spec.block.element, spec.key_dim)
    scales = from_bytes(found["key_scales"], np.dtype("float32"))
    return decode(codes, spec.block.element), scales[..., 0]


def _dots(q: jax.Array, k: jax.Array, engine: Engine | None, block: Block) -> jax.Array:
    """(batch, rows, tokens) float32."""
    if engine is None:
        return jnp.matmul(q, k.swapaxes(-1, -2), precision=lax.Precision.HIGHEST)
    kind = block.element if engine.inputs else None
    product = matmul(q, k.swapaxes(-1, -2), engine=engine, a_format=kind, b_format=kind)
    return product.astype(jnp.float32)
