"""The rule `heavy_hitters`: tokens that got most attention, and the newest."""

import dataclasses
from typing import ClassVar, Literal, Self

import jax
import jax.numpy as jnp

from lowprec.kv.rules import Candidates, Rule, received
from lowprec.numerics.spec import check_spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeavyHitters(Rule):
    """H2O (arXiv 2306.14048): the attention that a token got from all queries since it came.

    Heads that share a key are averaged. Queries attend to what is kept and to their own tokens; a
    token that went is gone for good.

    Attributes:
      kind: `heavy_hitters`.
      recent: how many newest tokens are kept in any case; of another budget than the entry's the
        same share, as in H2O's code, whose `--heavy_ratio` and `--recent_ratio` are equal.
      over_queries: whether a token's score is the `sum` over queries, as in H2O's code, or the
        `mean` over those that saw it, as in kvpress's ObservedAttentionPress.
    """

    asks: ClassVar[bool] = True
    reads: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    kind: Literal["heavy_hitters"] = "heavy_hitters"
    recent: int
    over_queries: Literal["sum", "mean"]

    def __post_init__(self) -> None:
        check_spec("rule 'heavy_hitters'", self)
        if self.recent < 0:
            raise ValueError(f"rule 'heavy_hitters': `recent` = {self.recent} must be at least 0")

    @property
    def always(self) -> int:
        """See `Rule.always`."""
        return self.recent

    def scaled(self, budget: int, usual: int) -> Self:
        """See `Rule.scaled`: `recent` is the same share of the budget, rounded down.

        Example:
          >>> HeavyHitters(recent=1024, over_queries="sum").scaled(128, 2048).recent
          64
        """
        return dataclasses.replace(self, recent=self.recent * budget // usual)

    def kept(self, found: Candidates) -> jax.Array:
        """See `Rule.kept`."""
        return found.from_last() < self.recent

    def noted(self, found: Candidates) -> jax.Array:
        """See `Rule.noted`: the sum of attention so far."""
        return found.memory + received(found)

    def scores(self, found: Candidates, noted: jax.Array) -> jax.Array:
        """See `Rule.scores`."""
        if self.over_queries == "sum":
            return noted
        return noted / (found.length - found.positions).astype(jnp.float32)
