"""The rows of a comparison of formats: one dataclass a table, a field a column.

Intervals are 95 % ones. `seed` is that of the random numbers, `numbers` how many there were.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianRow:
    """A number format or block on independent numbers from N(0, 1).

    `sqnr_db` pools over all numbers, with an interval over tensors; `gain` is the least-squares
    slope minus 1 with White's standard error, and the residual is what is left without it.
    """

    target: str
    origin: str
    element: str
    scale_rule: str
    tile: str
    scale_format: str
    rounding: str
    bits_per_element: float
    mean_squared_error: float
    mean_squared_error_low: float
    mean_squared_error_high: float
    sqnr_db: float
    sqnr_low: float
    sqnr_high: float
    gain: float
    gain_standard_error: float
    residual_sqnr_db: float
    distribution: str
    tensors: int
    numbers: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """A published figure beside ours; `reproduced` allows for its last place and its sampling."""

    target: str
    measure: str
    published: float
    source: str
    ours: float
    low: float
    high: float
    difference: float
    allowed: float
    reproduced: bool
    numbers: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlierRow:
    """A signal-to-noise ratio that this project had before, beside today's, in dB."""

    target: str
    earlier: float
    ours: float
    low: float
    high: float
    difference: float
    allowed: float
    within: bool
    numbers: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuleRow:
    """How much more error a scale rule leaves than the scale of least squared error, paired, dB.

    `kind` is that of the element: floating or integer. `outcome` is `same` where the errors are
    equal, `worse` or `better` where the interval excludes zero, else `not resolved`.
    """

    base: str
    kind: str
    rule: str
    target: str
    baseline: str
    bits_per_element: float
    sqnr_db: float
    loss_db: float
    low: float
    high: float
    outcome: str
    tensors: int
    numbers: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundingRow:
    """NVFP4 under one rounding: its squared error, and paired with round-to-nearest in dB."""

    target: str
    mean_squared_error: float
    low: float
    high: float
    more_noise_db: float
    more_noise_low: float
    more_noise_high: float
    gain: float
    gain_standard_error: float
    published: float | None
    source: str
    tensors: int
    numbers: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundRow:
    """A product of two quantized Gaussian matrices against the least error at its bits.

    `product_error` is the squared Frobenius error over n a b; `rate` where the bound has that
    error, and `excess_bits` what the block spends beyond it.
    """

    target: str
    bits_per_element: float
    product_error: float
    product_error_low: float
    product_error_high: float
    rate: float
    rate_low: float
    rate_high: float
    excess_bits: float
    excess_low: float
    excess_high: float
    products: int
    n: int
    a: int
    b: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrestRow:
    """An integer block against a floating-point one on blocks of one distribution.

    `difference_db` is positive where the integer has less error: of the mean over blocks of
    squared error over energy, every block counting the same. `predicted_db` is the difference
    that equations 13 and 14 of arXiv 2510.25602 give at this crest factor.
    """

    pair: str
    integer: str
    floating: str
    family: str
    parameter: float
    crest: float
    integer_db: float
    float_db: float
    difference_db: float
    standard_error: float
    low: float
    high: float
    predicted_db: float
    blocks: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossingRow:
    """Where one curve of `CrestRow`s changes its sign, or that it does not.

    `predicted` is the crossing of equations 13 and 14 of arXiv 2510.25602 as printed,
    `predicted_exact` with the integer's true largest value, 2^(b - 1) - 1, in place of 2^(b - 1),
    `published` that of its figure 3, and `limit` the largest crest factor that a block of this size
    can have.
    """

    pair: str
    family: str
    outcome: str
    crest: float | None
    low: float | None
    high: float | None
    crest_from: float
    crest_to: float
    predicted: float
    predicted_exact: float
    published: float
    limit: float
    seed: int
