"""The tables of the page: what the files hold in full, summed up and written for reading."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from lowprec.report import comparisons, words
from lowprec.report.figures import loss
from lowprec.report.results import Results

Row = dict[str, Any]
Column = tuple[str, bool, Callable[[Row], str]]
"""A heading, whether its cells are numbers, and what a cell says."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table as text.

    Attributes:
      name: the frame, whose files the table links to.
      title: the heading.
      note: what the rows are.
      columns: headings, and whether their cells are numbers.
      rows: the cells.
    """

    name: str
    title: str
    note: str
    columns: list[tuple[str, bool]]
    rows: list[list[str]]

    @classmethod
    def of(
        cls, name: str, title: str, note: str, columns: Sequence[Column], frame: pl.DataFrame
    ) -> "Table":
        """A frame's rows, each cell as its column writes it."""
        return cls(
            name=name,
            title=title,
            note=note,
            columns=[(heading, numeric) for heading, numeric, _ in columns],
            rows=[[cell(row) for _, _, cell in columns] for row in frame.iter_rows(named=True)],
        )


def page_tables(results: Results) -> list[Table]:
    """The tables that the results have rows for."""
    found = (
        _model(results.model),
        _products(results.products),
        _tensors(results.tensors),
        _cards(results.cards),
    )
    return [table for table in found if table is not None]


def timing_table(timings: pl.DataFrame) -> Table | None:
    """Measured wall time, which belongs to one run on one machine."""
    columns: list[Column] = [
        ("step", False, lambda row: row["step"]),
        ("seconds", True, lambda row: words.number(row["seconds"], 2)),
    ]
    note = "Wall time of this run on this machine; the only numbers that a second run may change."
    return _table("timings", "Measured times", note, columns, timings)


def _table(
    name: str, title: str, note: str, columns: Sequence[Column], frame: pl.DataFrame
) -> Table | None:
    return None if frame.is_empty() else Table.of(name, title, note, columns, frame)


def _model(model: pl.DataFrame) -> Table | None:
    base = model.filter(pl.col("recipe").is_in(comparisons.BASELINES))
    frame = pl.concat([base, loss.lossy_models(model)], how="vertical")
    columns: list[Column] = [
        ("recipe", False, lambda row: row["recipe"]),
        ("quantized", False, lambda row: row["quantized"] or words.DASH),
        ("bits per byte", True, lambda row: words.number(row["bits_per_byte"], 4)),
        ("increase", True, lambda row: words.signed(row["increase"], 5)),
        ("95 % interval", True, _interval),
        ("resolved", False, _resolved),
        ("rank", True, lambda row: row["rank"] or words.DASH),
        ("KL median, nats/byte", True, lambda row: words.significant(row["kl_median"])),
        ("KL 99 %, nats/byte", True, lambda row: words.significant(row["kl_percentile_99"])),
        ("top-1 flips", True, lambda row: words.percent(row["top1_flips"], 2)),
    ]
    note = (
        "Loss of the model with the recipe's products; the increase is over recipe:bf16, with a "
        "paired bootstrap interval over documents. Recipes whose intervals overlap share ranks. "
        f"recipe:bf16 itself: {_bf16(model)} bits per byte."
    )
    return _table("model", "Model", note, columns, frame)


def _bf16(model: pl.DataFrame) -> str:
    return words.number(comparisons.median(model["bits_per_byte"] - model["increase"]), 4)


def _interval(row: Row) -> str:
    if row["low"] is None or row["high"] is None:
        return words.DASH
    return f"{words.signed(row['low'], 5)} to {words.signed(row['high'], 5)}"


def _resolved(row: Row) -> str:
    if row["recipe"] in comparisons.BASELINES or row["low"] is None or row["high"] is None:
        return words.DASH
    return "yes" if loss.resolved(row) else "not resolved"


def _engine(row: Row) -> str:
    level = row["evidence"][:3]
    return f"{row['engine']} ({row['reproducibility']}{', ' if level else ''}{level})"


def _products(products: pl.DataFrame) -> Table | None:
    """Median, least and most by role and recipe, the best first."""
    rows = comparisons.with_series(products)
    sqnr, order = pl.col("sqnr_db"), {role: i for i, role in enumerate(comparisons.roles(rows))}
    frame = (
        rows.group_by("role", "series")
        .agg(
            pl.col("bits_per_element").median().alias("bits"),
            pl.len().alias("count"),
            sqnr.median().alias("middle"),
            sqnr.min().alias("low"),
            sqnr.max().alias("high"),
            pl.col("residual_sqnr_db", "gain", "relative_frobenius", "clipped", "flushed").median(),
            pl.col("backward_error").max(),
            pl.col("engine", "reproducibility", "evidence").first(),
        )
        .with_columns(order=pl.col("role").replace_strict(order, return_dtype=pl.Int64))
        .sort("order", "middle", "series", descending=[False, True, False])
    )
    columns: list[Column] = [
        ("role", False, lambda row: row["role"]),
        ("recipe", False, lambda row: row["series"]),
        ("bits/element", True, lambda row: words.number(row["bits"], 2)),
        ("SQNR median, dB", True, lambda row: words.number(row["middle"])),
        (
            "min to max, dB",
            True,
            lambda row: f"{words.number(row['low'])} to {words.number(row['high'])}",
        ),
        ("after gain, dB", True, lambda row: words.number(row["residual_sqnr_db"])),
        ("gain", True, lambda row: words.percent(row["gain"], 2)),
        ("rel. Frobenius", True, lambda row: words.significant(row["relative_frobenius"])),
        ("max backward", True, lambda row: words.significant(row["backward_error"])),
        ("clipped", True, lambda row: words.percent(row["clipped"], 2)),
        ("flushed", True, lambda row: words.percent(row["flushed"], 2)),
        ("products", True, lambda row: words.number(row["count"], 0)),
        ("engine", False, _engine),
    ]
    note = (
        "Medians over products by role and recipe, with the least and the most SQNR; backward "
        "error is the largest. Products without a finite SQNR are left out."
    )
    return _table("products", "Products", note, columns, frame)


def _tensors(tensors: pl.DataFrame) -> Table | None:
    frame = tensors.filter(pl.col("sqnr_db").is_not_null())
    frame = (
        frame.group_by("block")
        .agg(
            pl.col("bits_per_element", "gain", "relative_frobenius", "clipped", "flushed").median(),
            pl.col("sqnr_db").median(),
            pl.col("sqnr_db").min().alias("low"),
            pl.col("sqnr_db").max().alias("high"),
            pl.len().alias("count"),
        )
        .sort("sqnr_db", "block", descending=[True, False])
    )
    columns: list[Column] = [
        ("block", False, lambda row: row["block"]),
        ("bits/element", True, lambda row: words.number(row["bits_per_element"], 3)),
        ("SQNR median, dB", True, lambda row: words.number(row["sqnr_db"])),
        (
            "min to max, dB",
            True,
            lambda row: f"{words.number(row['low'])} to {words.number(row['high'])}",
        ),
        ("gain", True, lambda row: words.percent(row["gain"], 2)),
        ("rel. Frobenius", True, lambda row: words.significant(row["relative_frobenius"])),
        ("clipped", True, lambda row: words.percent(row["clipped"], 2)),
        ("flushed", True, lambda row: words.percent(row["flushed"], 2)),
        ("tensors", True, lambda row: words.number(row["count"], 0)),
    ]
    note = "Medians over tensors by block scaling, with the least and the most SQNR."
    return _table("tensors", "Tensors", note, columns, frame)


def _cards(cards: pl.DataFrame) -> Table | None:
    def figure(name: str) -> Callable[[Row], str]:
        return lambda row: words.significant(row[name])

    columns: list[Column] = [
        ("tensor", False, lambda row: row["tensor"]),
        ("shape", True, lambda row: f"{row['rows']} {words.TIMES} {row['columns']}"),
        ("amax", True, figure("amax")),
        ("rms", True, figure("rms")),
        ("crest, median", True, figure("crest_median")),
        ("crest, 99 %", True, figure("crest_percentile_99")),
        ("excess kurtosis", True, figure("excess_kurtosis")),
        ("outlier channel", True, figure("outlier_channel_ratio")),
        ("effective rank", True, figure("effective_rank")),
        ("top energy", True, lambda row: words.percent(row["top_energy"])),
        ("exponent spread", True, lambda row: words.number(row["exponent_spread"], 0)),
        ("zeros", True, lambda row: words.percent(row["zero_fraction"])),
    ]
    note = (
        "Statistics of each operand: crest is max / rms of blocks of 32, outlier channel the "
        "largest channel's rms over the median one, effective rank a share of the full rank, "
        "exponent spread the octaves between the 5th and 95th percentile."
    )
    if cards["source"].n_unique() > 1:
        columns.insert(0, ("source", False, lambda row: row["source"]))
    return _table("cards", "Operands", note, columns, cards)
