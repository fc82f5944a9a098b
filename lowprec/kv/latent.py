"""The family `latent`: what multi-head latent attention (MLA) caches, one record a token.

A token is a latent c, which the keys and values of all heads come from, and one rotary key k_rope,
which they share. Queries are taken to the latent space first (`q_latent = q_nope @ k_up^T`, the
absorbed form of DeepSeek-V2, arXiv 2405.04434), so that attention reads these records alone.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lowprec.engines.engine import Engine
from lowprec.kv.attention import Operands, Products, Running, named_products, sum_tiles
from lowprec.kv.checks import check_sizes, token_array
from lowprec.kv.codes import Fitted
from lowprec.kv.latent_codes import Part, as_bfloat16, rounded
from lowprec.kv.method import Spec
from lowprec.kv.pair_cache import check_room
from lowprec.kv.record import Bytes, Record
from lowprec.kv.schedule import Schedule
from lowprec.numerics.arguments import float_array
from lowprec.numerics.format import Format
from lowprec.numerics.spec import check_spec
from lowprec.scaling.block import Block


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentCache:
    """Latents and rotary keys of a batch of sequences of one length.

    Attributes:
      pages: uint8 (batch, pages, bytes), a page being one token where the record says no other.
      length: tokens appended, int32.
      latent_dim, rope_dim, capacity: numbers of a latent and of a rotary key, and tokens there is
        room for.
    """

    pages: jax.Array
    length: jax.Array
    latent_dim: int = dataclasses.field(metadata={"static": True})
    rope_dim: int = dataclasses.field(metadata={"static": True})
    capacity: int = dataclasses.field(metadata={"static": True})

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays but the length."""
        return self.pages.nbytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentSpec(Spec):
    """One record a token, quantized as it comes; latents and rotary keys are bfloat16 before.

    NaN makes NaN of the numbers of a latent that share a scale (128 of `mla_fp8_656`), and so does
    Inf but in `mla_nvfp4`, where it is the largest number; 1e30 leaves zeros beside it. Rotary keys
    in bfloat16 are each for themselves.

    Attributes:
      name: the entry's name.
      family: `latent`.
      latents, rope_keys: a format, or a block whose tiles run along a token's numbers.
      latent_dim, rope_dim: of the models that the source serves; `init` takes others too.
      record: the order of bytes: of `latent`, `rope`, and, where these are blocks, `latent_scales`
        and `rope_scales`.
      operand: the 16-bit format that keys and values are rounded to before both products; None
        leaves them float32.
      values: what is mixed: `latent`, or `all` of latent and rotary key.
      amax, scales, scale_stride, zero_scale, scale_operand: of latents, see `Part`.

    Example:
      >>> from lowprec.kv import get_kv_method
      >>> method = get_kv_method("mla_fp8_656")
      >>> cache = method.init(1, 512, 64, 100)
      >>> cache.pages.shape, cache.pages.dtype
      ((1, 100, 656), dtype('uint8'))
    """

    latent: ClassVar[bool] = True
    name: str
    family: Literal["latent"] = "latent"
    latents: Format | Block
    rope_keys: Format | Block
    latent_dim: int
    rope_dim: int
    record: Record
    operand: Format | None = None
    values: Literal["latent", "all"] = "latent"
    amax: float | None = None
    scales: Literal["codes", "float32"] = "codes"
    scale_stride: int = 1
    zero_scale: Literal["kept", "zeros"] = "kept"
    scale_operand: Format | None = None

    def __post_init__(self) -> None:
        what = f"method {self.name!r}"
        check_spec(what, self)
        names = [name for part in self.parts for name in part.names]
        if sorted(names) != sorted(self.record.parts):
            raise ValueError(
                f"{what}: the record has {', '.join(self.record.parts)}; it needs each of "
                f"{', '.join(names)} once"
            )
        if min(self.latent_dim, self.rope_dim) < 1:
            raise ValueError(
                f"{what}: latent_dim = {self.latent_dim} and rope_dim = {self.rope_dim} must be at "
                f"least 1"
            )
        self.sizes(self.latent_dim, self.rope_dim)

    @property
    def parts(self) -> tuple[Part, Part]:
        """Latents and rotary keys as parts of a record."""
        latent = Part(
            name="latent",
            operand=self.latents,
            amax=self.amax,
            scales=self.scales,
            scale_stride=self.scale_stride,
            zero_scale=self.zero_scale,
            scale_operand=self.scale_operand,
        )
        return latent, Part(name="rope", operand=self.rope_keys)

    @property
    def usual_shape(self) -> tuple[int, int]:
        """See `Spec.usual_shape`: one head of a latent and a rotary key."""
        return 1, self.latent_dim + self.rope_dim

    def numbers(self, kv_heads: int, dim: int) -> int:
        """See `Spec.numbers`: keys and values are the same numbers, kept once."""
        return kv_heads * dim

    def sizes(self, latent_dim: int, rope_dim: int) -> dict[str, int]:
        """Bytes of a token's parts."""
        latent, rope = self.parts
        return latent.sizes(latent_dim) | rope.sizes(rope_dim)

    def init(
        self, fitted: Fitted, batch: int, latent_dim: int, rope_dim: int, length: int
    ) -> LatentCache:
        """See `KVMethod.init`; zeros."""
        del fitted
        check_sizes(batch=batch, latent_dim=latent_dim, rope_dim=rope_dim, length=length)
        return LatentCache(
            pages=self.record.empty(batch, length, self.sizes(latent_dim, rope_dim)),
            length=jnp.int32(0),
            latent_dim=latent_dim,
            rope_dim=rope_dim,
            capacity=length,
        )

    def append(
        self,
        fitted: Fitted,
        cache: LatentCache,
        latent: ArrayLike,
        k_rope: ArrayLike,
        *,
        q: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        extra: ArrayLike | None = None,
    ) -> LatentCache:
        """See `KVMethod.append`: latents (batch, tokens, latent_dim) and keys after RoPE.

        Other numbers than bfloat16 are rounded to it first, to nearest even. `q` is looked at by no
        method of this kind.
        """
        del fitted, q
        for name, given in (("positions", positions), ("extra", extra)):
            if given is not None:
                raise ValueError(f"`{name}` is not taken by the method {self.name}")
        batch, dims = cache.pages.shape[0], (cache.latent_dim, cache.rope_dim)
        tensors = [
            token_array(name, x, (batch, None, dim))
            for name, x, dim in zip(("latent", "k_rope"), (latent, k_rope), dims, strict=True)
        ]
        tokens = tensors[0].shape[1]
        if tensors[1].shape[1] != tokens:
            raise ValueError(
                f"`latent` has {tokens} tokens and `k_rope` {tensors[1].shape[1]}; give the same"
            )
        check_room(cache.length, tokens, cache.capacity)
        return _appended(cache, tensors[0], tensors[1], spec=self)

    def read(self, fitted: Fitted, cache: LatentCache) -> tuple[jax.Array, jax.Array]:
        """See `KVMethod.read`: (batch, capacity, latent_dim) and (batch, capacity, rope_dim)."""
        del fitted
        tokens = cache.pages.shape[1] * self.record.page
        x = _sliced(cache, jnp.int32(0), spec=self, tokens=tokens)[:, : cache.capacity]
        x = jnp.where(cache.length <= cache.capacity, x, jnp.nan)
        return x[..., : cache.latent_dim], x[..., cache.latent_dim :]

    def attend(
        self,
        fitted: Fitted,
        cache: LatentCache,
        q_latent: ArrayLike,
        q_rope: ArrayLike,
        *,
        scale: ArrayLike,
        qk_engine: str | Engine | None = None,
        pv_engine: str | Engine | None = None,
        qk_formats: Operands | None = None,
        pv_formats: Operands | None = None,
        splits: int = 1,
        causal: bool = True,
        schedule: Schedule | None = None,
        sink: ArrayLike | None = None,
    ) -> jax.Array:
        """Attention of the cache's newest tokens: `KVMethod.attend`, with softmax over

            (q_latent . latent + q_rope . k_rope) * scale.

        Args:
          q_latent: (batch, heads, tokens, latent_dim), taken to the latent space.
          q_rope: (batch, heads, tokens, rope_dim), after RoPE.
          scale: the model's, such as (nope_dim + rope_dim)**-0.5; scores are multiplied by it.
          sink: (heads,) or a number, natural logarithms: outputs are multiplied by
            1 / (1 + exp(sink - lse)), lse being the logarithm of the sum of exponentials.

        Returns:
          (batch, heads, tokens, latent_dim) float32, or latent_dim + rope_dim where the entry's
          `values` are `all`; zero where a query sees nothing. NaN from a cache that overflowed.
        """
        del fitted
        return self.attend_chosen(
            cache,
            (q_latent, q_rope),
            None,
            scale=scale,
            products=named_products(qk_engine, pv_engine, qk_formats, pv_formats),
            splits=splits,
            causal=causal,
            schedule=schedule,
            sink=sink,
        )

    def attend_chosen(
        self,
        cache: LatentCache,
        queries: tuple[ArrayLike, ArrayLike],
        chosen: jax.Array | None,
        *,
        scale: ArrayLike,
        products: Products,
        splits: int,
        causal: bool,
        schedule: Schedule | None,
        sink: ArrayLike | None,
    ) -> jax.Array:
        """`attend` to those tokens that `chosen`, a mask (batch, tokens, capacity), has."""
        q = self._queries(cache, queries)
        check_sizes(splits=splits)
        sinks = None if sink is None else jnp.asarray(sink, jnp.float32)
        if sinks is not None and sinks.shape not in ((), q.shape[1:2]):
            raise ValueError(
                f"`sink` of shape {sinks.shape} must be a number or ({q.shape[1]},), one a head"
            )
        return _attended(
            cache,
            q,
            chosen,
            jnp.asarray(scale, jnp.float32),
            sinks,
            spec=self,
            products=products,
            splits=splits,
            causal=causal,
            schedule=self._fitting(schedule or Schedule(), cache),
        )

    def nbytes(self, fitted: Fitted, *, kv_heads: int, dim: int, length: int | None) -> float:
        """See `Spec.nbytes`: `kv_heads` is 1, `dim` the latent's numbers and the rotary key's."""
        if kv_heads != 1:
            raise ValueError(
                f"`kv_heads` = {kv_heads}: all heads share one latent; use kv_heads=1 and dim = "
                f"latent_dim + rope_dim, such as {self.latent_dim + self.rope_dim}"
            )
        if dim <= self.rope_dim:
            raise ValueError(
                f"`dim` = {dim} must be latent_dim + rope_dim, and {self.name} has rope_dim = "
                f"{self.rope_dim}; the source's models have {self.latent_dim + self.rope_dim}"
            )
        sizes = self.sizes(dim - self.rope_dim, self.rope_dim)
        if length is None:
            return float(self.record.token_bytes(sizes))
        check_sizes(length=length)
        return float(-(-length // self.record.page) * self.record.page_bytes(sizes))

    def _queries(self, cache: LatentCache, queries: tuple[ArrayLike, ArrayLike]) -> jax.Array:
        """(batch, heads, tokens, latent_dim + rope_dim) float32."""
        named = zip(("q_latent", "q_rope"), queries, strict=True)
        q = [float_array(name, x).astype(jnp.float32) for name, x in named]
        batch, dims = cache.pages.shape[0], (cache.latent_dim, cache.rope_dim)
        fits = all(
            x.ndim == 4 and (x.shape[0], x.shape[3]) == (batch, dim)
            for x, dim in zip(q, dims, strict=True)
        )
        if not fits or q[0].shape[:3] != q[1].shape[:3] or not q[0].size:
            raise ValueError(
                f"`q_latent` {q[0].shape} and `q_rope` {q[1].shape} must be ({batch}, heads, "
                f"tokens, {dims[0]}) and ({batch}, heads, tokens, {dims[1]})"
            )
        return jnp.concatenate(q, axis=-1)

    def _fitting(self, schedule: Schedule, cache: LatentCache) -> Schedule:
        """The schedule with a tile no longer than the cache."""
        page = self.record.page
        if schedule.tile % page:
            raise ValueError(
                f"`schedule`: tile = {schedule.tile} must be a multiple of the {page} tokens of a "
                f"page"
            )
        return dataclasses.replace(schedule, tile=min(schedule.tile, cache.pages.shape[1] * page))


# Compiled as a whole also outside a caller's `jit`: one by one, the operations take seconds.
@functools.partial(jax.jit, static_argnames=("spec",))
def _appended(
    cache: LatentCache, latent: jax.Array, k_rope: jax.Array, *, spec: LatentSpec
) -> LatentCache:
    found: Bytes = {}
    for part, x in zip(spec.parts, (latent, k_rope), strict=True):
        found |= part.encode(as_bfloat16(x))
    sizes = spec.sizes(cache.latent_dim, cache.rope_dim)
    pages = spec.record.write(cache.pages, found, cache.length, sizes)
    return dataclasses.replace(cache, pages=pages, length=cache.length + latent.shape[1])


@functools.partial(jax.jit, static_argnames=("spec", "tokens"))
def _sliced(cache: LatentCache, start: jax.Array, *, spec: LatentSpec, tokens: int) -> jax.Array:
    """What attention sees of tokens, (batch, tokens, dim) float32; zero beyond the length."""
    dims = (cache.latent_dim, cache.rope_dim)
    found = spec.record.read(cache.pages, start, tokens, spec.sizes(*dims))
    values = [part.decode(found, dim) for part, dim in zip(spec.parts, dims, strict=True)]
    x = jnp.concatenate(values, axis=-1)
    if spec.operand is not None:
        x = rounded(x, spec.operand)
    return jnp.where((start + jnp.arange(tokens) < cache.length)[None, :, None], x, 0.0)


@functools.partial(jax.jit, static_argnames=("spec", "products", "splits", "causal", "schedule"))
def _attended(
    cache: LatentCache,
    q: jax.Array,
    chosen: jax.Array | None,
    scale: jax.Array,
    sinks: jax.Array | None,
    *,
    spec: LatentSpec,
    products: Products,
    splits: int,
    causal: bool,
    schedule: Schedule,
) -> jax.Array:
    """All heads' queries are rows over the one head of keys, which are the values too."""
    batch, heads, tokens, dim = q.shape
    own = cache.length - tokens + jnp.arange(tokens)

    def allowed(places: jax.Array) -> jax.Array:
        mask = (places < cache.length)[None]
        if causal:
            mask = mask & (places[None] <= own[:, None])
        mask = jnp.broadcast_to(mask, (tokens, places.shape[0]))[None]
        if chosen is not None:
            inside = jnp.minimum(places, chosen.shape[2] - 1)
            mask = mask & jnp.take(chosen, inside, axis=2)
        return jnp.tile(mask, (1, heads, 1))[:, None]

    read = _tile_reader(cache, spec, schedule.tile)
    width = cache.latent_dim if spec.values == "latent" else dim
    done = sum_tiles(
        q.reshape(batch, 1, heads * tokens, dim),
        read,
        lambda start: read(start)[..., :width],
        allowed,
        first=jnp.int32(0),
        last=jnp.minimum(cache.length, cache.capacity),
        products=products,
        schedule=schedule,
        splits=splits,
        scale=scale,
    )
    mixed = _finished(done, (batch, heads, tokens), sinks)
    return jnp.where(cache.length <= cache.capacity, mixed, jnp.nan)


def _tile_reader(
    cache: LatentCache, spec: LatentSpec, tile: int
) -> Callable[[jax.Array], jax.Array]:
    """What reads a tile from a token on, (batch, 1, tile, dim); the last is filled with zeros.

    Keys and values are the same numbers: a tile that was just read is not decoded again.
    """
    last = cache.pages.shape[1] * spec.record.page - tile
    newest: list[tuple[jax.Array, jax.Array]] = []

    def read(start: jax.Array) -> jax.Array:
        if newest and newest[-1][0] is start:
            return newest[-1][1]
        held = jnp.minimum(start, last)
        x = _sliced(cache, held, spec=spec, tokens=tile)[:, None]
        wide = jnp.concatenate([x, jnp.zeros_like(x)], axis=2)
        x = jax.lax.dynamic_slice_in_dim(wide, start - held, tile, axis=2)
        newest[:] = [(start, x)]
        return x

    return read


def _finished(done: Running, shape: tuple[int, int, int], sinks: jax.Array | None) -> jax.Array:
    """(batch, heads, tokens, dim): sums divided, and shrunk by what the sink takes."""
    total = done.total.reshape(shape)
    mixed = done.output.reshape(*shape, -1) / total[..., None]
    if sinks is not None:
        sums = done.maximum.reshape(shape) + jnp.log(total)
        mixed = mixed * (1 / (1 + jnp.exp(sinks.reshape(1, -1, 1) - sums)))[..., None]
    # Not `total > 0`, which would hide NaN.
    return jnp.where((total == 0)[..., None], jnp.float32(0), mixed)
