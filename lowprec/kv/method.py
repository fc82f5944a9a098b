"""A KV-cache method: a specification, and what was fitted for it."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import numpy as np

from lowprec.kv.codes import Fitted
from lowprec.numerics import html


class Spec(abc.ABC):
    """What a file of `formats/kv` becomes: frozen, hashable, without arrays.

    A family is a subclass, its fields the keys of the files; `KVMethod` hands its calls on to it,
    with what was fitted. Arguments are those of `KVMethod`.
    """

    name: str
    latent: ClassVar[bool] = False
    """Whether it keeps latents (MLA) instead of keys and values."""

    keeps_all: ClassVar[bool] = True
    """Whether every token stays in the cache."""

    @property
    def usual_shape(self) -> tuple[int, int]:
        """kv_heads and dim of the figures where none are given."""
        return 8, 128

    def numbers(self, kv_heads: int, dim: int) -> int:
        """Numbers of a token that attention sees."""
        return 2 * kv_heads * dim

    @property
    def calibrated(self) -> bool:
        """Whether it has to be fitted before use."""
        return False

    def fit(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Fitted:
        """What `KVMethod.fit` keeps; nothing, where there is nothing to calibrate."""
        del samples
        return {}

    def without_window(self) -> Self:
        """The method with no exact tokens but those that wait to be coded together.

        Itself, where it has no others.

        Example:
          >>> from lowprec.kv import get_kv_method
          >>> get_kv_method("kivi_2bit").spec.without_window().residual
          0
        """
        return self

    @abc.abstractmethod
    def init(self, fitted: Fitted, *args: Any, **kwargs: Any) -> Any:
        """An empty cache."""

    @abc.abstractmethod
    def append(self, fitted: Fitted, cache: Any, *args: Any, **kwargs: Any) -> Any:
        """The cache after more tokens."""

    @abc.abstractmethod
    def read(self, fitted: Fitted, cache: Any) -> tuple[jax.Array, jax.Array]:
        """What attention would see."""

    @abc.abstractmethod
    def attend(self, fitted: Fitted, cache: Any, *args: Any, **kwargs: Any) -> jax.Array:
        """Attention over the cache."""

    @abc.abstractmethod
    def nbytes(self, fitted: Fitted, *, kv_heads: int, dim: int, length: int | None) -> float:
        """Bytes that one layer's cache of one sequence takes: of a token, where length is None."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVMethod:
    """One way to keep keys and values; a pytree, hashable while nothing is fitted.

    Attributes:
      spec: what the catalogue's entry says.
      fitted: arrays found by `fit`.
    """

    spec: Spec = dataclasses.field(metadata={"static": True})
    fitted: Fitted | None = None

    @property
    def name(self) -> str:
        """The entry's name."""
        return self.spec.name

    @property
    def latent(self) -> bool:
        """Whether it keeps latents (MLA): `append` then takes (latent, k_rope)."""
        return self.spec.latent

    @property
    def keeps_all(self) -> bool:
        """Whether every token stays in the cache; others choose."""
        return self.spec.keeps_all

    def fit(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Self:
        """The method calibrated on samples; itself, where there is nothing to calibrate.

        Args:
          samples: each a mapping with `k` and `v` (batch, kv_heads, tokens, dim), and `q` or
            `k_before_rope` for the families that look at them; a latent method takes `latent` and
            `k_rope`.

        Raises:
          ValueError: no samples, or one that lacks what the family needs.
        """
        if not self.spec.calibrated:
            return self
        if not samples:
            raise ValueError(
                f"`samples` is empty: the method {self.name} is fitted to keys and values"
            )
        return dataclasses.replace(self, fitted=dict(self.spec.fit(samples)))

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """An empty cache, for `init(batch, heads, dim, length)`; see the family's `init`.

        Args:
          batch: sequences, all of one length.
          heads: of keys and values; a latent method has (batch, latent_dim, rope_dim, length).
          dim: numbers of a head.
          length: the capacity in tokens.
          rope: for methods that keep keys as they are before RoPE, the `Rope` to apply on reading.

        Raises:
          ValueError: the method needs `fit` first; sizes below 1.
        """
        return self.spec.init(self.ready(), *args, **kwargs)

    def append(self, cache: Any, *args: Any, **kwargs: Any) -> Any:
        """The cache after the tokens of `k` and `v` (batch, heads, tokens, dim).

        Inside `jit` the cache is changed in place where the caller gives it away:

            step = jax.jit(lambda cache, k, v: method.append(cache, k, v), donate_argnums=0)

        Args:
          cache: of this method.
          k, v: float32, bfloat16 or float16; float32 numbers that a method keeps in 16 bits are
            rounded to nearest even.
          q: (batch, q_heads, tokens, dim), for methods that select tokens by queries.
          positions: (tokens,) where tokens stand, by default behind those of the cache.
          extra: of DSA-like methods, the indexer's keys.

        Raises:
          TypeError: `k` or `v` are not float32, bfloat16 or float16.
          ValueError: shapes that do not fit the cache; more tokens than it has room for, where
            lengths are known. Under `jit` they are not, and reading then gives NaN.
        """
        return self.spec.append(self.ready(), cache, *args, **kwargs)

    def read(self, cache: Any) -> tuple[jax.Array, jax.Array]:
        """The keys and values that attention would see, float32 (batch, heads, capacity, dim).

        Zero beyond the cache's length; NaN everywhere where it holds more than its capacity.
        """
        return self.spec.read(self.ready(), cache)

    def attend(self, cache: Any, *args: Any, **kwargs: Any) -> jax.Array:
        """Attention of the cache's newest tokens over all of it.

        Args:
          cache: of this method, the queries' own tokens in it.
          q: (batch, q_heads, tokens, dim), after RoPE; query i stands at the cache's length less
            tokens plus i. q_heads is a multiple of the cache's heads.
          qk_engine, pv_engine: engines by name, path or value for the products; by default this
            machine's own float32 product.
          qk_formats, pv_formats: of an engine that takes several formats, what queries and keys,
            weights and values are rounded to: two names, ("float8_e4m3fn", "float4_e2m1fn") say.
          splits: into how many parts the tokens are cut, combined at the end (split-K).
          causal: whether a query sees only tokens up to its own.
          schedule: a `Schedule`; by default tiles of 1024 tokens, float32 weights.

        Returns:
          (batch, q_heads, tokens, dim) float32, with the scale dim**-0.5; repeatable on one machine
          and version only (`same_backend`), as exp is the machine's.
        """
        return self.spec.attend(self.ready(), cache, *args, **kwargs)

    def bits_per_element(
        self, length: int | None = None, *, kv_heads: int | None = None, dim: int | None = None
    ) -> float:
        """Bits that a number of K or V takes, metadata included.

        Args:
          length: tokens in the cache: windows, sinks and padding count too; None: codes and their
            metadata alone.
          kv_heads, dim: what metadata is shared by, by default 8 and 128. A latent method has one
            head of latent_dim + rope_dim numbers, by default those of its source.

        Example:
          >>> from lowprec.kv import get_kv_method
          >>> get_kv_method("kivi_2bit").bits_per_element()
          3.0
        """
        usual = self.spec.usual_shape
        kv_heads = usual[0] if kv_heads is None else kv_heads
        dim = usual[1] if dim is None else dim
        one = self.spec.nbytes(self.fitted or {}, kv_heads=kv_heads, dim=dim, length=length)
        return 8 * one / (self.spec.numbers(kv_heads, dim) * (length or 1))

    def bytes_per_token(
        self, *, layers: int, kv_heads: int, dim: int, length: int | None = None
    ) -> float:
        """Bytes of a token in all layers; `length` tokens take length times as many.

        Args:
          layers, kv_heads, dim: of the model; for a latent method kv_heads is 1, and dim is
            latent_dim + rope_dim.
          length: as in `bits_per_element`.

        Example:
          >>> from lowprec.kv import get_kv_method
          >>> get_kv_method("nvfp4").bytes_per_token(layers=32, kv_heads=8, dim=128)
          36864.0
        """
        one = self.spec.nbytes(self.fitted or {}, kv_heads=kv_heads, dim=dim, length=length)
        return layers * one / (length or 1)

    @property
    def bytes_per_token_layer(self) -> float:
        """Bytes of a token in one layer of the usual shape, codes and metadata.

        That is 8 heads of 128 numbers; 512 numbers and 64 of a latent method.

        Example:
          >>> from lowprec.kv import get_kv_method
          >>> get_kv_method("mla_fp8_656").bytes_per_token_layer
          656.0
        """
        kv_heads, dim = self.spec.usual_shape
        return self.bytes_per_token(layers=1, kv_heads=kv_heads, dim=dim)

    def _repr_html_(self) -> str:
        figures = {"bits_per_element": f"{self.bits_per_element():.4g}"}
        if self.spec.calibrated:
            figures["fitted"] = "not yet" if self.fitted is None else "yes"
        return html.spec(self.spec, "kv", "kv", None, figures)

    def ready(self) -> Fitted:
        """What was fitted.

        Raises:
          ValueError: the method has to be fitted first, and was not.
        """
        if self.spec.calibrated and self.fitted is None:
            raise ValueError(f"the method {self.name} has to be fitted first: method.fit(samples)")
        return self.fitted or {}
