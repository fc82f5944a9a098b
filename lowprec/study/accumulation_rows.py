"""The rows of a study of accumulation: one dataclass a table, a field a column.

Intervals are 95 % ones over `seeds` independent pairs of matrices, `seed` that of the random
numbers, and `promote_every` 0 where nothing is promoted. Errors are of the sum alone: the reference
is the exact product of the operands as the engine gets them.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorRow:
    """Sums over `k` products in one engine, promoted at one interval.

    With y the sums and x the exact ones, over all outputs of all seeds: `gain` is
    <y, x> / <x, x> - 1, `residual` |y - (1 + gain) x| / |x| and `relative_error` |y - x| / |x|,
    with |.| the root of the sum of squares. `deterministic_bound` and `probabilistic_bound` are
    bounds on `relative_error` (`lowprec.study.accumulation_bounds`); `worst_share` is the largest
    part that an error is of its own deterministic bound, `within_probabilistic` the share of errors
    within their probabilistic one, which its proof wants at `coverage` at least.
    `backward_error` is the largest |y - x| / (|a| |b|).
    """

    distribution: str
    fused_length: int
    fraction_bits: int
    register_bits: int
    promote_every: int
    k: int
    gain: float
    gain_low: float
    gain_high: float
    residual: float
    residual_low: float
    residual_high: float
    relative_error: float
    relative_low: float
    relative_high: float
    median_relative: float
    max_relative: float
    backward_error: float
    deterministic_bound: float
    probabilistic_bound: float
    worst_share: float
    within_probabilistic: float
    coverage: float
    outputs: int
    seeds: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromotionRow:
    """Noise with promotion over noise without it, dB, paired on the same operands.

    `noise_db` compares |y - x|^2 summed over outputs; `outcome` is `less` or `more` where the
    interval excludes zero, else `not resolved`.
    """

    distribution: str
    fused_length: int
    fraction_bits: int
    promote_every: int
    k: int
    noise_db: float
    low: float
    high: float
    outcome: str
    seeds: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontRow:
    """An engine's cost proxy a product beside its error; `on_front` where none is better in both.

    Errors and bounds are those of its `ErrorRow`. The proxy (`lowprec.study.accumulation_cost`)
    counts bits, and is no area.
    """

    distribution: str
    k: int
    fused_length: int
    fraction_bits: int
    register_bits: int
    promote_every: int
    shifter_bits: int
    adder_bits: int
    held_bits: int
    promotion_bits: float
    cost: float
    relative_error: float
    relative_low: float
    relative_high: float
    deterministic_bound: float
    probabilistic_bound: float
    outputs: int
    seeds: int
    seed: int
    on_front: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One reading of a published error: a distribution, a norm and a width, and whether it fits."""

    source: str
    distribution: str
    fraction_bits: int
    promote_every: int
    k: int
    norm: str
    value: float
    least: float
    most: float
    fits: bool
    outputs: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwampingRow:
    """Sums of k uniform numbers in a narrow accumulator over the exact sums: mean and interval.

    The numbers have the `mean` and `standard_deviation`. `grows` is by how much the sum grew since
    half as many numbers, over what it should have. `relative_error` is the root of the mean square
    of 1 - ratio over `sums`, and both bounds are of that norm
    (`lowprec.study.accumulation_swamping`); `worst_share` and `within_probabilistic` are as in
    `ErrorRow`.
    """

    engine: str
    source: str
    mean: float
    standard_deviation: float
    k: int
    ratio: float
    ratio_low: float
    ratio_high: float
    grows: float
    relative_error: float
    relative_low: float
    relative_high: float
    deterministic_bound: float
    probabilistic_bound: float
    worst_share: float
    within_probabilistic: float
    coverage: float
    sums: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticRow:
    """A statistic of a captured operand's card beside that of numbers drawn after it."""

    tensor: str
    statistic: str
    captured: float
    synthetic: float
    seed: int
