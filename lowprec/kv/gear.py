"""The family `gear`: KIVI-like integers, outliers apart, and a low-rank part of what they miss."""

import dataclasses
from typing import Literal, Self

from lowprec.kv.codes import BlockCode
from lowprec.kv.gear_code import GearCode
from lowprec.kv.pair import PairSpec
from lowprec.kv.store import Layout
from lowprec.numerics.format import get_format
from lowprec.numerics.spec import check_spec
from lowprec.scaling.block import Block


@dataclasses.dataclass(frozen=True, kw_only=True)
class GearSpec(PairSpec):
    """GEAR (arXiv 2403.05527): keys by channel, values by token, buffers of tokens at a time.

    A buffer is coded when the next token comes, and exact (float16) until then. A prompt is coded
    as buffers too, one after the other, so that prefill and decode store the same bits; the source
    gives a prompt one low-rank part of its own.

    Attributes:
      name: the entry's name.
      family: `gear`.
      block: integers between the ends of a group's range; its tile is replaced by the groups.
      keys_group: tokens of a channel that share scale and minimum; divides `buffer`.
      values_group: numbers of a head's token that do.
      outliers, buffer, rank, iterations, seed: see `GearCode`. Outliers of keys are those of a
        channel over the buffer, outliers of values those of a token over all heads.
      keep: tokens that stay exact whatever fills a buffer: the source's 1, or 0 for the variant
        that codes a buffer when its last token comes.

    Example:
      >>> from lowprec.kv import get_kv_method
      >>> get_kv_method("gear_2bit").bits_per_element()
      3.96875
    """

    name: str
    family: Literal["gear"] = "gear"
    block: Block
    keys_group: int
    values_group: int
    outliers: float
    buffer: int
    rank: int
    iterations: int
    seed: int = 0
    keep: int = 1

    def __post_init__(self) -> None:
        check_spec(f"method {self.name!r}", self)
        for name, least in (("keys_group", 1), ("values_group", 1), ("keep", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"method {self.name!r}: {name} = {getattr(self, name)} must be at least {least}"
                )
        self.layouts()

    def without_window(self) -> Self:
        """See `Spec.without_window`."""
        return dataclasses.replace(self, keep=0)

    def layouts(self) -> tuple[Layout, Layout]:
        """See `PairSpec.layouts`."""
        keys, values = (dataclasses.replace(self.block, tile=(1, x)) for x in self._groups)
        return (
            self._layout(BlockCode(block=keys, axis="tokens"), "channel"),
            self._layout(BlockCode(block=values), "token"),
        )

    @property
    def _groups(self) -> tuple[int, int]:
        return self.keys_group, self.values_group

    def _layout(self, backbone: BlockCode, per: Literal["channel", "token"]) -> Layout:
        code = GearCode(
            backbone=backbone,
            per=per,
            outliers=self.outliers,
            buffer=self.buffer,
            rank=self.rank,
            iterations=self.iterations,
            seed=self.seed,
        )
        return Layout(code=code, exact=get_format("float16"), keep=self.keep, step=self.buffer)
