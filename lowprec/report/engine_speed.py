"""The report's section on the speed of engines: what experiments/throughput_engines.py wrote."""

from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import shown, stored, words
from lowprec.report.digest import Column, Table
from lowprec.report.figures import engine_speed
from lowprec.report.findings import Finding
from lowprec.report.section import Section

COMMAND = "python experiments/throughput_engines.py"
SCHEMA: dict[str, Any] = {
    "size": pl.Int64(),
    "engine": pl.String(),
    "way": pl.String(),
    "seconds": pl.Float64(),
    "multiply_adds_per_second": pl.Float64(),
    "times_float32": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "wanted": pl.Float64(),
    "met": pl.String(),
    "compile_seconds": pl.Float64(),
    "temporary_bytes": pl.Int64(),
    "device": pl.String(),
}
"""The columns of both tables, engines.csv and linear.csv."""


def read_speed(folder: Path) -> Section | None:
    """The section of the tables in a folder; None where it has none of them.

    Raises:
      ValueError: a table lacks a column, or has another type in it.
    """
    tables = {name: _read(folder / f"{name}.csv") for name in ("engines", "linear")}
    if all(table.is_empty() for table in tables.values()):
        return None
    return speed_section(tables["engines"], tables["linear"], stored.read_manifest(folder))


def _read(path: Path) -> pl.DataFrame:
    found = stored.read_frame(path, SCHEMA, COMMAND)
    return pl.DataFrame(schema=SCHEMA) if found is None else found


def speed_section(engines: pl.DataFrame, linear: pl.DataFrame, record: dict[str, Any]) -> Section:
    """The section of the table of engines and of one engine's times by size.

    Args:
      engines, linear: with the columns of `SCHEMA`.
      record: the manifest by table, empty where there is none.
    """
    tables = {"engines": engines, "linear": linear}
    made = [record.get(name, {}) for name, table in tables.items() if len(table)]
    dated = bool(made) and all(x.get("date") for x in made)
    figure = shown.show(
        "engine_linear_cost", "Cost by size", "linear", engine_speed.linear_cost, linear
    )
    return Section(
        name="throughput",
        heading="Speed of the engines",
        note=(
            "Times of emulation on one machine, which say nothing of the hardware that has the "
            "engines, and which no second run repeats."
        ),
        command=COMMAND,
        date=words.listed(sorted({str(x["date"]) for x in made})) if dated else "",
        seconds=sum(int(x.get("seconds", 0)) for x in made),
        findings=[x for x in (_goals(engines), _linear(linear)) if x is not None],
        figures=[] if figure is None else [figure],
        tables=[_table(engines)],
    )


def _goals(engines: pl.DataFrame) -> Finding | None:
    wanted = engines.filter(pl.col("wanted").is_not_null())
    if wanted.is_empty():
        return None
    missed = [
        f"{row['engine']} at {row['size']}, {row['way']}: {_times(row)}, "
        f"{words.number(row['wanted'], 0)} wanted"
        for row in wanted.filter(pl.col("met") != "met").to_dicts()
    ]
    return Finding(
        text=(
            f"{len(wanted) - len(missed)} of {len(wanted)} goals for the time of an emulated "
            "engine, as a multiple of the machine's own float32 product, are met."
        ),
        evidence=f"median and quartiles over rounds; missed: {'; '.join(missed) or 'none'}",
    )


def _linear(linear: pl.DataFrame) -> Finding | None:
    if linear.is_empty():
        return None
    cells = [
        f"{row['size']}: {words.significant(row['seconds'])} s"
        for row in linear.sort("size").to_dicts()
    ]
    return Finding(text=f"{engine_speed.linear_title(linear)}.", evidence="; ".join(cells))


def _times(row: dict[str, Any]) -> str:
    low, high = (words.number(row[end]) for end in ("low", "high"))
    return f"{words.number(row['times_float32'])} times ({low} to {high})"


def _table(engines: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("M = N = K", True, lambda row: str(row["size"])),
        ("engine", False, lambda row: row["engine"]),
        ("compiled", False, lambda row: row["way"]),
        ("multiply-adds/s", True, lambda row: words.significant(row["multiply_adds_per_second"])),
        ("times float32", True, lambda row: words.number(row["times_float32"])),
        ("quartiles", True, lambda row: " to ".join(
            words.number(row[end]) for end in ("low", "high"))),
        ("wanted", True, lambda row: words.number(row["wanted"], 0)),
        ("result", False, lambda row: row["met"] or words.DASH),
        ("compilation, s", True, lambda row: words.number(row["compile_seconds"])),
        ("temporaries, MB", True, lambda row: words.number(row["temporary_bytes"] / 1e6, 0)),
    ]  # fmt: skip
    device = f" on {words.label(engines['device'][0])}" if len(engines) else ""
    note = (
        f"Square products{device}, each beside the machine's float32 product in the same round; "
        "plain: inside a caller's jax.jit, options: with lowprec.compiler_options(). Compilation "
        "with other work beside it."
    )
    return Table.of("engines", "Engines beside the machine's own product", note, columns, engines)
