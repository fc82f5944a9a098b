"""The rows of a comparison: one dataclass a table, a field a column."""

import dataclasses

from lowprec.metrics import ErrorMeasures


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductRow:
    """One product under one recipe, against the float64 product of the operands as stored.

    `clipped` and `flushed` are the fractions of both operands' elements that saturate and that
    become zero; `reproducibility` is the class of the engine that summed, `evidence` the level and
    the domain of what its entry rests on.
    """

    source: str
    layer: str
    role: str
    recipe: str
    block_a: str
    block_b: str
    engine: str
    reproducibility: str
    evidence: str
    m: int
    k: int
    n: int
    bits_per_element: float
    sqnr_db: float
    gain: float
    gain_standard_error: float
    residual_sqnr_db: float
    relative_frobenius: float
    backward_error: float
    clipped: float
    flushed: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorRow:
    """One tensor under one block scaling along its last axis, against itself."""

    source: str
    name: str
    block: str
    rows: int
    columns: int
    bits_per_element: float
    sqnr_db: float
    gain: float
    gain_standard_error: float
    residual_sqnr_db: float
    relative_frobenius: float
    clipped: float
    flushed: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelRow:
    """The held-out loss of the model under one recipe, paired with the bf16 recipe by document.

    `increase` and its 95 % interval [`low`, `high`] are bits per byte over bf16; KL is in nats a
    byte; `rank` counts from the smallest increase, a range where intervals overlap.
    """

    recipe: str
    quantized: str
    bits_per_byte: float
    increase: float
    low: float
    high: float
    kl_median: float
    kl_percentile_99: float
    top1_flips: float
    documents: int
    bytes: int
    rank: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistogramRow:
    """How many elements of an operand fall on one value of the element format."""

    layer: str
    operand: str
    block: str
    value: float
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimingRow:
    """A measured wall time; it varies from run to run."""

    step: str
    seconds: float


def error_columns(measures: ErrorMeasures) -> dict[str, float]:
    """The columns that every error table shares."""
    columns = dataclasses.asdict(measures)
    del columns["backward_error"]
    return columns
