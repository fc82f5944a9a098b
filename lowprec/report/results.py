"""What a report is made of: frames of fixed columns, a manifest, and the command that made them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import polars as pl

from lowprec.numerics import html

_TEXT, _COUNT, _REAL = pl.String(), pl.Int64(), pl.Float64()
Schema = Mapping[str, pl.DataType]


def _schema(text: str, counts: str, reals: str, order: str = "") -> dict[str, pl.DataType]:
    kinds = ((text, _TEXT), (counts, _COUNT), (reals, _REAL))
    columns = {name: kind for names, kind in kinds for name in names.split()}
    return {name: columns[name] for name in order.split() or columns}


_ERRORS = "sqnr_db gain gain_standard_error residual_sqnr_db relative_frobenius"
SCHEMAS: Mapping[str, Schema] = {
    "products": _schema(
        "source layer role recipe block_a block_b engine reproducibility evidence",
        "m k n",
        f"bits_per_element {_ERRORS} backward_error clipped flushed",
    ),
    "tensors": _schema(
        "source name block", "rows columns", f"bits_per_element {_ERRORS} clipped flushed"
    ),
    "cards": _schema(
        "source tensor",
        "rows columns",
        "amax rms crest_median crest_percentile_99 excess_kurtosis outlier_channel_ratio "
        "effective_rank top_energy exponent_spread zero_fraction",
        order="source tensor amax rms crest_median crest_percentile_99 excess_kurtosis "
        "outlier_channel_ratio effective_rank top_energy exponent_spread zero_fraction "
        "rows columns",
    ),
    "model": _schema(
        "recipe quantized rank",
        "documents bytes",
        "bits_per_byte increase low high kl_median kl_percentile_99 top1_flips",
        order="recipe quantized bits_per_byte increase low high kl_median kl_percentile_99 "
        "top1_flips documents bytes rank",
    ),
    "histogram": _schema(
        "layer operand block", "count", "value", "layer operand block value count"
    ),
    "timings": _schema("step", "", "seconds"),
}
"""The columns that each frame of `Results` has at least, and their types."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Results:
    """Everything that a report shows. Any frame may be empty; further columns are kept.

    Attributes:
      products: one row for each product of a layer, role and recipe, with its errors. The rows of
        `recipe:float32` and `recipe:bf16` are the floors that others are seen against.
      tensors: one row for each tensor and block scaling, with the errors of quantizing it.
      cards: one row of statistics for each operand.
      model: one row for each recipe and each choice of what is quantized: the loss of the model.
      histogram: how often the scaled elements of an operand take each value of a format.
      timings: measured wall time of each step; the only thing that a second run may change.
      manifest: versions, seeds, device and hashes; anything that JSON holds.
      command: the command line that made these results.

    Raises:
      ValueError: a frame that has rows lacks columns, or holds a column of another type.
    """

    products: pl.DataFrame
    tensors: pl.DataFrame
    cards: pl.DataFrame
    model: pl.DataFrame
    histogram: pl.DataFrame
    timings: pl.DataFrame
    manifest: dict[str, Any]
    command: str

    def __post_init__(self) -> None:
        for name, schema in SCHEMAS.items():
            object.__setattr__(self, name, _conform(name, getattr(self, name), schema))

    def frames(self) -> dict[str, pl.DataFrame]:
        """The frames by name."""
        return {name: getattr(self, name) for name in SCHEMAS}

    def _repr_html_(self) -> str:
        return frames_html("Results", self.frames(), self.command)


def frames_html(title: str, frames: Mapping[str, pl.DataFrame], note: str = "") -> str:
    """Frames by name with their sizes, for notebooks."""
    rows = [[name, f"{len(frame):,}", frame.width] for name, frame in frames.items()]
    return html.grid(title, ["table", "rows", "columns"], rows, note)


def _conform(name: str, frame: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """The frame with the columns of the contract in their types; further columns follow."""
    if frame.is_empty():
        return pl.DataFrame(schema=dict(schema))
    missing = [column for column in schema if column not in frame.columns]
    if missing:
        raise ValueError(f"`{name}` lacks the columns {', '.join(missing)}")
    further = [column for column in frame.columns if column not in schema]
    try:
        typed = frame.with_columns(pl.col(column).cast(kind) for column, kind in schema.items())
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"`{name}` holds a column of another type: {error}") from error
    return typed.select(*schema, *further)
