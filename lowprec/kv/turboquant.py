"""The family `turboquant`: keys as norm and turned direction, values likewise or by their range."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.kv.codes import BlockCode, Code, Fitted, Parts, PlainCode
from lowprec.kv.norm_split import NormSplitCode
from lowprec.kv.pair import PairSpec
from lowprec.kv.pair_cache import SIDES, PairCache
from lowprec.kv.rope import Rope
from lowprec.kv.samples import check_shape, whole_samples
from lowprec.kv.store import Layout
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.spec import check_spec
from lowprec.scaling.block import Block


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelSplitCode(Code):
    """Some channels of a head in one code, the others in another.

    `fitted["channels"]`, int32 (heads, dim), has a head's channels, first those of the first code.

    Attributes:
      first, second: the codes; units of one token.
      size: how many channels the first one has.
    """

    first: NormSplitCode
    second: NormSplitCode
    size: int

    def turn(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        """See `Code.turn`: each part by itself, the first code's channels first."""
        parts = zip(self._codes, self._cut(_sorted(x, fitted["channels"])), strict=True)
        return jnp.concatenate([code.turn(part, fitted) for code, part in parts], axis=-1)

    def turn_back(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        """See `Code.turn_back`."""
        parts = zip(self._codes, self._cut(x), strict=True)
        back = jnp.concatenate([code.turn_back(part, fitted) for code, part in parts], axis=-1)
        return _sorted(back, jnp.argsort(jnp.asarray(fitted["channels"]), axis=-1))

    def encode(self, x: jax.Array, fitted: Fitted) -> Parts:
        """See `Code.encode`."""
        return self.code(self.turn_back(x, fitted), fitted)

    def code(self, x: jax.Array, fitted: Fitted) -> Parts:
        """See `Code.code`."""
        cut = self._cut(_sorted(x, fitted["channels"]))
        coded = [code.code(part, fitted) for code, part in zip(self._codes, cut, strict=True)]
        return {
            f"{name}.{number}": part
            for number, parts in enumerate(coded)
            for name, part in parts.items()
        }

    def decode(self, parts: Parts, dim: int, fitted: Fitted) -> jax.Array:
        """See `Code.decode`."""
        found = []
        for number, (code, size) in enumerate(
            zip(self._codes, (self.size, dim - self.size), strict=True)
        ):
            ending = f".{number}"
            own = {k.removesuffix(ending): x for k, x in parts.items() if k.endswith(ending)}
            found.append(code.decode(own, size, fitted))
        return jnp.concatenate(found, axis=-1)

    def empty(self, batch: int, heads: int, dim: int, units: int, fitted: Fitted) -> Parts:
        """See `Code.empty`; of what is fitted nothing but its shape would matter."""
        del fitted
        channels = np.tile(np.arange(dim, dtype=np.int32), (heads, 1))
        return super().empty(batch, heads, dim, units, {"channels": channels})

    @property
    def _codes(self) -> tuple[NormSplitCode, NormSplitCode]:
        return self.first, self.second

    def _cut(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        if not 0 < self.size < x.shape[-1]:
            raise ValueError(
                f"`outlier_channels` = {self.size} leaves no other channel of a head's "
                f"{x.shape[-1]} numbers"
            )
        return x[..., : self.size], x[..., self.size :]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TurboQuantSpec(PairSpec):
    """TurboQuant (arXiv 2504.19874), and what vLLM makes of it; tokens are coded as they come.

    NaN, Inf or a norm above 65519 make NaN and Inf of all of a head's token in a norm-split code.
    Values in vLLM's integers read a NaN as a finite number, and beside Inf or 1e30 are NaN.

    Attributes:
      name: the entry's name.
      family: `turboquant`.
      keys, values: a `NormSplitCode`, or a format, or a block along a head's numbers.
      outlier_channels: so many channels of each head, those with the largest sum of squares in the
        samples of `fit`, are coded apart, with one more bit; 0: none.
      exact_layers: so many layers at either end of a dense model are to be kept in 16 bits instead,
        by whoever makes one cache a layer; nothing here looks at it.
    """

    name: str
    family: Literal["turboquant"] = "turboquant"
    keys: Format | Block | NormSplitCode
    values: Format | Block | NormSplitCode
    outlier_channels: int = 0
    exact_layers: int = 0

    def __post_init__(self) -> None:
        what = f"method {self.name!r}"
        check_spec(what, self)
        for name in ("outlier_channels", "exact_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{what}: {name} = {getattr(self, name)} must be at least 0")
        split = isinstance(self.keys, NormSplitCode) and isinstance(self.values, NormSplitCode)
        if self.outlier_channels and not split:
            raise ValueError(
                f"{what}: outlier_channels = {self.outlier_channels} needs keys and values that "
                f"are norm-split codes"
            )

    @property
    def calibrated(self) -> bool:
        """See `Spec.calibrated`."""
        return self.outlier_channels > 0

    def fit(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Fitted:
        """Each head's channels by falling sum of squares over all samples; of equal ones in order.

        Args:
          samples: with `k` and `v` (batch, heads, tokens, dim), of one size of heads and dim.

        Raises:
          ValueError: a sample lacks keys or values, has Inf or NaN or other heads than the first.
        """
        found = {}
        for side, name in zip(SIDES, ("k", "v"), strict=True):
            data = whole_samples(self.name, samples, name)
            squares = sum(np.sum(x.astype(np.float64) ** 2, axis=(0, 2)) for x in data)
            order = np.argsort(-np.asarray(squares), axis=-1, kind="stable")
            found[side] = {"channels": order.astype(np.int32)}
        return found

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
        """See `KVMethod.init`; heads and dim of a calibrated method are those of its samples."""
        if fitted:
            check_shape(self.name, fitted["keys"]["channels"].shape, (heads, dim))
        return super().init(fitted, batch, heads, dim, length, rope=rope)

    def nbytes(self, fitted: Fitted, *, kv_heads: int, dim: int, length: int | None) -> float:
        """See `Spec.nbytes`; the order of channels, one a layer, is not counted."""
        del fitted
        return super().nbytes({}, kv_heads=kv_heads, dim=dim, length=length)

    def layouts(self) -> tuple[Layout, Layout]:
        """See `PairSpec.layouts`."""
        return self._layout(self.keys), self._layout(self.values)

    def _layout(self, operand: Format | Block | NormSplitCode) -> Layout:
        return Layout(code=self._code(operand), exact=get_format("bfloat16"))

    def _code(self, operand: Format | Block | NormSplitCode) -> Code:
        if isinstance(operand, Format):
            return PlainCode(format=operand)
        if isinstance(operand, Block):
            return BlockCode(block=operand)
        if not self.outlier_channels:
            return operand
        # Another seed, so that the two instances are independent.
        first = dataclasses.replace(operand, bits=operand.bits + 1, seed=operand.seed + 1)
        return ChannelSplitCode(first=first, second=operand, size=self.outlier_channels)


def _sorted(x: jax.Array, channels: jax.Array) -> jax.Array:
    """`x` (batch, heads, tokens, dim) with each head's channels (heads, dim) in that order.

    `x` may also have several query heads for each.
    """
    channels = jnp.repeat(jnp.asarray(channels), x.shape[1] // channels.shape[0], axis=0)
    return jnp.take_along_axis(x, channels[None, :, None, :], axis=-1)
