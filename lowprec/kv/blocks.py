"""The family `blocks`: keys and values under block scalings, or plainly in 16 bits."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from lowprec.kv.codes import BlockCode, Code, Fitted, PlainCode, Rotation
from lowprec.kv.pair import PairSpec
from lowprec.kv.pair_cache import SIDES, PairCache
from lowprec.kv.rope import Rope
from lowprec.kv.samples import check_shape, whole_samples
from lowprec.kv.store import Layout
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.spec import check_spec
from lowprec.scaling.block import Block


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlocksSpec(PairSpec):
    """Tokens are coded as they come.

    What is not finite is as the block has it. In 16 bits every number stands for itself, and so it
    does under a scale that is known before (`fp8_tensor`, `fp8_head`): NaN stays NaN, while Inf and
    what is too large become the largest number. Where a token has its own scale, NaN or Inf makes
    NaN of all of it, and 1e30 leaves zeros beside it (`fp8_token`, `int8_token`); so it is of
    `int4_token`, but that a NaN there is read as a finite number, and of `int4_token_rht`, whose
    rotation spreads a NaN, which then makes the token zeros, and 1e30, which drowns its numbers.
    Of smaller tiles (`mxfp4`, `nvfp4`) only the tile's numbers go: NaN makes them NaN, Inf too but
    in `nvfp4`, where it is the largest number. Under float16 scales (`quarot_4bit`) 1e30 is as Inf.

    Attributes:
      name: the entry's name.
      family: `blocks`.
      keys, values: a 16-bit format or a block whose tiles run along a head's numbers.
      values_axis: `tokens` where the tiles of values run along tokens instead: those of a tile are
        coded together when the last of them comes, and are bfloat16 until then.
      amax: where the block's scale is for the whole cache, the largest magnitude that it is made
        for; what `calibrate` finds goes before it.
      calibrate: whether `fit` measures that magnitude, of the tensor or of each head.
      rotation: of keys and values, and so of queries and the output: see `BlockCode`.
      seed: of the rotation's signs.
    """

    name: str
    family: Literal["blocks"] = "blocks"
    keys: Format | Block
    values: Format | Block
    values_axis: Literal["dim", "tokens"] = "dim"
    amax: float | None = None
    calibrate: Literal["none", "tensor", "head"] = "none"
    rotation: Rotation = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        check_spec(f"method {self.name!r}", self)
        if self.values_axis == "tokens" and isinstance(self.values, Format):
            raise ValueError(
                f"method {self.name!r}: values_axis = 'tokens' needs a block, and values = "
                f"{self.values.name} is a format"
            )
        self.layouts()

    @property
    def calibrated(self) -> bool:
        """See `Spec.calibrated`."""
        return self.calibrate != "none"

    def fit(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Fitted:
        """The largest magnitudes of keys and of values over all samples, float32.

        Args:
          samples: with `k` and `v` (batch, heads, tokens, dim), of one size of heads and dim.

        Raises:
          ValueError: a sample lacks keys or values, has Inf or NaN or other heads than the first;
            a head, or the whole tensor where that is what is calibrated, is zero.
        """
        found = {}
        for side, name in zip(SIDES, ("k", "v"), strict=True):
            data = whole_samples(self.name, samples, name)
            heads = np.maximum.reduce([np.abs(x).max(axis=(0, 2, 3)) for x in data])
            amax = heads if self.calibrate == "head" else heads.max()
            if not np.all(amax):
                raise ValueError(
                    f"`samples`: {name} is zero throughout in the heads "
                    f"{np.flatnonzero(heads == 0).tolist()} of {len(heads)}, to which the method "
                    f"{self.name} has no scale to fit; give samples with other numbers there"
                )
            found[side] = {"amax": amax}
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
        """See `KVMethod.init`; where scales of heads were fitted, as many heads as they are of."""
        if fitted:
            check_shape(self.name, np.shape(fitted["keys"]["amax"]), (heads, dim))
        return super().init(fitted, batch, heads, dim, length, rope=rope)

    def layouts(self) -> tuple[Layout, Layout]:
        """See `PairSpec.layouts`."""
        return self._layout(self.keys, "dim"), self._layout(self.values, self.values_axis)

    def nbytes(self, fitted: Fitted, *, kv_heads: int, dim: int, length: int | None) -> float:
        """See `Spec.nbytes`; scales that are known beforehand are not counted."""
        del fitted
        return super().nbytes({}, kv_heads=kv_heads, dim=dim, length=length)

    def _layout(self, operand: Format | Block, axis: Literal["dim", "tokens"]) -> Layout:
        code = self._code(operand, axis)
        return Layout(code=code, exact=get_format("bfloat16"), step=code.group)

    def _code(self, operand: Format | Block, axis: Literal["dim", "tokens"]) -> Code:
        if isinstance(operand, Format):
            return PlainCode(format=operand)
        return BlockCode(
            block=operand, axis=axis, amax=self.amax, rotation=self.rotation, seed=self.seed
        )
