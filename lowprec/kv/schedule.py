"""The order of attention's arithmetic, which is part of its numbers."""

import dataclasses
from typing import Literal

from lowprec.numerics.format import Format
from lowprec.numerics.spec import check_spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """How softmax(q k) v is cut into tiles and rounded; frozen and hashable.

    Scores s = (q . k) * dim**-0.5 are taken tile by tile. With m the running maximum, weights are
    p = exp(s - m); where m grows, what was summed is multiplied by exp(old - new).

    Attributes:
      tile: tokens of a tile.
      order: of the tiles, from the first token on or from the last.
      weight_format: weights, times `weight_scale`, are rounded to it to nearest even, saturating;
        None leaves them float32.
      weight_scale: see above; the product is divided by it again.
      row_sum: whether the denominator adds weights `before` or `after` their rounding.
      rescale_threshold: m is left as it is while s exceeds it by no more than this (a natural
        logarithm), so that weights up to exp(rescale_threshold) occur; 0 follows every maximum.
      accumulation: `tile`: each tile's product with v is summed from zero, then added to the output
        in float32 (two levels); `engine`: the engine adds to the output it is handed (one level).
      promote_every: with `tile`, so many of a tile's tokens are summed from zero before they are
        added to the output; None: all of the tile.
    """

    tile: int = 1024
    order: Literal["ascending", "descending"] = "ascending"
    weight_format: Format | None = None
    weight_scale: float = 1.0
    row_sum: Literal["before", "after"] = "before"
    rescale_threshold: float = 0.0
    accumulation: Literal["tile", "engine"] = "tile"
    promote_every: int | None = None

    def __post_init__(self) -> None:
        check_spec("schedule", self)
        for holds, message in (
            (self.tile >= 1, f"`tile` = {self.tile} must be at least 1"),
            (self.weight_scale > 0, f"`weight_scale` = {self.weight_scale} must be above 0"),
            (
                self.rescale_threshold >= 0,
                f"`rescale_threshold` = {self.rescale_threshold} must be at least 0",
            ),
            (
                self.promote_every is None or 1 <= self.promote_every <= self.tile,
                f"`promote_every` = {self.promote_every} must be from 1 to tile = {self.tile}",
            ),
            (
                self.promote_every is None or self.accumulation == "tile",
                f"`promote_every` = {self.promote_every} wants accumulation = 'tile': one level is "
                f"never promoted",
            ),
        ):
            if not holds:
                raise ValueError(f"schedule: {message}")
