"""The tables of a difference between two sides: one dataclass a table, a field a column."""

import dataclasses
from typing import Literal

Drawn = Literal["text", "drawn"]
"""Tokens as they stand in the text, or drawn from what B predicts after the text before them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffRow:
    """A pair of sides over all tokens that are scored.

    Divergences are in nats over the whole vocabulary; `kl` is of A's distribution to B's, that is
    the mean of log(p_A / p_B) under A, and `reverse_kl_mean` the other way. `delta` is
    log p_A - log p_B of the tokens that stand in the text, in nats. `flips` are tokens after which
    the most probable next token is another. Intervals are 95 %, a bootstrap over `units`.

    `first_layer` is the first whose output differs in any bit, counted from 0, and `first_product`
    the first product that differs though its input does not, or whose input was the first to;
    None where no layer differs. `identical` says that all logits are the same bits.
    """

    pair: str
    model: str
    a: str
    b: str
    windows: int
    length: int
    tokens: int
    units: int
    unit: Literal["documents", "windows"]
    kl_mean: float
    kl_low: float
    kl_high: float
    kl_median: float
    kl_percentile_99: float
    kl_largest: float
    reverse_kl_mean: float
    delta_mean: float
    delta_low: float
    delta_high: float
    delta_magnitude: float
    delta_percentile_1: float
    delta_percentile_5: float
    delta_median: float
    delta_percentile_95: float
    delta_percentile_99: float
    delta_largest: float
    flips: int
    flip_share: float
    flip_low: float
    flip_high: float
    first_layer: int | None
    first_product: str | None
    identical: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceRow:
    """Importance ratios p_A / p_B of runs of so many tokens: A is trained, B has drawn them.

    `ess` is (sum of ratios)^2 / sum of their squares over the runs, as a share of their count: at
    least 1 / sequences, which an estimate from few runs cannot fall below. Ratios are those of the
    runs' tokens together, Inf where that overflows; `outside` is the share of ratios that are more
    than `CLIP` away from 1.
    """

    pair: str
    tokens: Drawn
    length: int
    sequences: int
    ess: float
    ess_low: float
    ess_high: float
    smallest: float
    percentile_1: float
    median: float
    percentile_99: float
    percentile_999: float
    largest: float
    outside: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRow:
    """The residual stream behind a layer, or the `logits`, of all tokens.

    `differing` is the share of numbers that differ in any bit, `relative` the Frobenius norm of
    A - B over that of A, `largest` the largest magnitude of A - B.
    """

    pair: str
    layer: str
    differing: float
    relative: float
    largest: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TailRow:
    """Of single tokens, the magnitude of the log ratio that a share of them exceeds, in nats."""

    pair: str
    tokens: Drawn
    share: float
    magnitude: float
