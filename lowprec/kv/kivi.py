"""The family `kivi`: keys by channel over groups of tokens, values by token."""

import dataclasses
from typing import Literal, Self

from lowprec.kv.codes import BlockCode
from lowprec.kv.pair import PairSpec
from lowprec.kv.store import Layout
from lowprec.numerics.format import get_format
from lowprec.numerics.spec import check_spec
from lowprec.scaling.block import Block


@dataclasses.dataclass(frozen=True, kw_only=True)
class KiviSpec(PairSpec):
    """KIVI (arXiv 2402.02750): every step rounded to float16, the newest tokens exact.

    NaN, Inf and what float16 does not hold make NaN of their group: of a channel's `group` tokens
    among keys, of `group` numbers of a token among values. In the window they are alone.

    Attributes:
      name: the entry's name.
      family: `kivi`.
      block: integers between the ends of a group's range, along a head's numbers for values and
        along tokens for keys; its tile is replaced by `group`.
      group: tokens of a channel, or numbers of a token, that share scale and minimum.
      residual: tokens that keys wait for until so many are coded together, and that stay exact
        among values; a multiple of `group`, or 0 for the variant without a window.
    """

    name: str
    family: Literal["kivi"] = "kivi"
    block: Block
    group: int
    residual: int

    def __post_init__(self) -> None:
        check_spec(f"method {self.name!r}", self)
        if self.group < 1 or self.residual < 0 or self.residual % self.group:
            raise ValueError(
                f"method {self.name!r}: residual = {self.residual} must be a multiple of group = "
                f"{self.group}, which must be at least 1"
            )

    def without_window(self) -> Self:
        """See `Spec.without_window`."""
        return dataclasses.replace(self, residual=0)

    def layouts(self) -> tuple[Layout, Layout]:
        """See `PairSpec.layouts`."""
        block = dataclasses.replace(self.block, tile=(1, self.group))
        exact = get_format("float16")
        keys = BlockCode(block=block, axis="tokens")
        values = BlockCode(block=block)
        if not self.residual:
            return (
                Layout(code=keys, exact=exact, step=self.group),
                Layout(code=values, exact=exact),
            )
        return (
            Layout(code=keys, exact=exact, keep=1, step=self.residual),
            Layout(code=values, exact=exact, keep=self.residual + 1),
        )
