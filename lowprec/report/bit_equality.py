"""The results of experiments/bit_equality.py as files, and the report's section on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section
from lowprec.report.stored import frame, read_manifest, read_table, write_manifest, write_table
from lowprec.study.bit_equality import Row

CASES = "cases"
_SCRIPT = "experiments/bit_equality.py"
_DIFFERENCES = (("mismatches", "why", "bits"), ("zero_signs", "why_signs", "zeros' signs"))
"""What may differ: the count, its explanation, and what the page calls it."""


def write_cases(rows: Sequence[Row], record: Mapping[str, Any], out: Path) -> Section:
    """Writes `cases.csv` and `manifest.json` into a directory; returns the section."""
    write_table(rows, Row, out / f"{CASES}.csv")
    write_manifest(record, out)
    return bit_equality_section(frame(rows, Row), record)


def read_bit_equality(folder: Path) -> Section | None:
    """The section of what `write_cases` wrote; None where the folder has no table.

    Raises:
      ValueError: the table lacks a column, or has another type in it.
    """
    table = read_table(folder / f"{CASES}.csv", Row, _SCRIPT)
    return None if table is None else bit_equality_section(table, read_manifest(folder))


def bit_equality_section(cases: pl.DataFrame, record: Mapping[str, Any]) -> Section:
    """The section of a table of cases, and of a manifest that may be empty."""
    compared = by_comparison(cases)
    return Section(
        name="bit_equality",
        heading="Bit equality with the sources",
        note=(
            "Tiles of every sort, from ordinary numbers to zeros, subnormals, ties, Inf and NaN, "
            "under a block and under the code that its entry cites; scales and codes are compared "
            "as bits, or values where the source gives no more. Any NaN equals any NaN."
        ),
        command=str(record.get("command", "")),
        date=str(record.get("date", "")),
        seconds=int(record.get("seconds", 0)),
        findings=_findings(cases, compared),
        figures=[],
        tables=[_table(compared), _differences(cases)],
    )


def by_comparison(cases: pl.DataFrame) -> pl.DataFrame:
    """A row for each block and source, the counts of all sorts of tile summed."""
    counts = ("tiles", "elements", "mismatches", "scales", "elements_differing", "zero_signs")
    unexplained = [
        pl.col(count).filter(pl.col(why).str.len_chars() == 0).sum()
        for count, why, _ in _DIFFERENCES
    ]
    return cases.group_by("block", "source", "call", "file", "compared", maintain_order=True).agg(
        pl.col(counts).sum(),
        pl.col("sort").filter(pl.col("mismatches") > 0).alias("sorts"),
        pl.sum_horizontal(unexplained).alias("unexplained"),
    )


def _findings(cases: pl.DataFrame, compared: pl.DataFrame) -> list[Finding]:
    if cases.is_empty():
        return []
    equal = compared.filter(pl.col("mismatches") == 0)
    unexplained = compared["unexplained"].sum()
    sources = words.counted(compared["source"].n_unique(), "source")
    told = "NOT ALL EXPLAINED" if unexplained else "each explained below"
    return [
        Finding(
            text=(
                f"{len(equal)} of {len(compared)} comparisons find the source's bits on every "
                f"tile; the others differ on {words.percent(_share(cases), 1)} of all tiles, "
                f"{told}."
            ),
            evidence=(
                f"{cases['tiles'].sum():,} tiles, {cases['elements'].sum():,} elements, {sources}; "
                f"{compared['mismatches'].sum():,} tiles differ, "
                f"{compared['zero_signs'].sum():,} more in the sign of a zero alone; "
                f"{unexplained:,} are unexplained"
            ),
        )
    ]


def _share(cases: pl.DataFrame) -> float:
    return float(cases["mismatches"].sum()) / float(cases["tiles"].sum())


def _table(compared: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("block", False, lambda row: row["block"]),
        ("source", False, lambda row: row["source"]),
        ("function", False, lambda row: row["call"]),
        ("compared", False, lambda row: row["compared"]),
        ("tiles", True, lambda row: f"{row['tiles']:,}"),
        ("differ", True, lambda row: f"{row['mismatches']:,}"),
        ("in scale", True, lambda row: f"{row['scales']:,}"),
        ("zeros' signs", True, lambda row: f"{row['zero_signs']:,}"),
        ("on", False, lambda row: "; ".join(row["sorts"]) or words.DASH),
    ]
    return Table(
        name=CASES,
        title="Blocks and their sources",
        note=(
            "Tiles that differ in a scale, code or value, and on which sorts; tiles whose zeros "
            "alone differ in sign are counted apart."
        ),
        columns=[(heading, numeric) for heading, numeric, _ in columns],
        rows=[[cell(row) for _, _, cell in columns] for row in compared.iter_rows(named=True)],
    )


def _differences(cases: pl.DataFrame) -> Table:
    """One row for each explanation: whose, on what, why."""
    found = pl.concat(
        cases.filter(pl.col(count) > 0)
        .group_by("source", "call", pl.col(why).alias("why"), maintain_order=True)
        .agg(
            pl.col("block", "sort").unique(maintain_order=True),
            pl.col(count).sum().alias("differ"),
            pl.col("tiles").sum(),
        )
        .with_columns(pl.lit(what).alias("what"))
        for count, why, what in _DIFFERENCES
    )
    columns: list[Column] = [
        ("source", False, lambda row: row["source"]),
        ("function", False, lambda row: row["call"]),
        ("blocks", False, lambda row: ", ".join(row["block"])),
        ("sorts of tile", False, lambda row: "; ".join(row["sort"])),
        ("what", False, lambda row: row["what"]),
        ("differ", True, lambda row: f"{row['differ']:,} of {row['tiles']:,}"),
        ("why", False, lambda row: row["why"] or "unexplained"),
    ]
    return Table(
        name=CASES,
        title="Why bits differ",
        note="Every difference of the table above; the tests name the same sorts of tile.",
        columns=[(heading, numeric) for heading, numeric, _ in columns],
        rows=[[cell(row) for _, _, cell in columns] for row in found.iter_rows(named=True)],
    )
