"""The results of experiments/ledger.py as files, and the report's section on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import ledger_figure, shown, stored, words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section
from lowprec.study.ledger_rows import LedgerRow

TERMS = "terms"
SCRIPT = "experiments/ledger.py"
FIGURES: Mapping[str, tuple[str, shown.Draw]] = {
    "ledger_parts": ("What the error is made of", ledger_figure.parts),
    "ledger_energy": ("How large each term is", ledger_figure.energies),
}
"""Every figure by name: its heading, and its function."""


def write_ledger(rows: Sequence[LedgerRow], record: dict[str, Any], out: Path) -> Section:
    """Writes `terms.csv`, `manifest.json` and the figures into a directory; returns the section."""
    frame = stored.write_table(rows, LedgerRow, out / f"{TERMS}.csv")
    stored.write_manifest(record, out)
    section = ledger_section(frame, record)
    shown.write_figures(section.figures, out)
    return section


def read_ledger(folder: Path) -> Section | None:
    """The section of what `write_ledger` wrote; None where the folder has no table.

    Raises:
      ValueError: the table lacks a column, or has another type in it.
    """
    frame = stored.read_table(folder / f"{TERMS}.csv", LedgerRow, SCRIPT)
    return None if frame is None else ledger_section(frame, stored.read_manifest(folder))


def ledger_section(frame: pl.DataFrame, record: dict[str, Any]) -> Section:
    """The section of a table of terms and a manifest, which may be empty."""
    drawn = [
        shown.show(name, heading, TERMS, draw, frame) for name, (heading, draw) in FIGURES.items()
    ]
    return Section(
        name="ledger",
        heading="Error ledger: every part of the error",
        note=(
            "The error of captured products under each recipe, split into terms whose exact "
            "numbers sum to the error of every output to the last bit."
        ),
        command=str(record.get("command", "")),
        date=str(record.get("date", "")),
        seconds=int(record.get("seconds", 0)),
        findings=_findings(frame),
        figures=[figure for figure in drawn if figure is not None],
        tables=[_table(frame)],
    )


def _findings(frame: pl.DataFrame) -> list[Finding]:
    if frame.is_empty():
        return []
    total = frame.filter(pl.col("term") == "total")
    counts = (frame["layer"].n_unique(), "layer"), (len(total), "product")
    scope = (
        f"{', '.join(words.counted(*x) for x in counts)}, "
        f"{total['outputs'].sum():,} outputs; parts are means over layers"
    )
    parts = ledger_figure.grouped(frame)
    shapes = parts.filter(pl.col("group").is_in(["gain", "clipping", "dead zone"]))
    cells = [
        f"{row['recipe']} {row['role']} {row['group']} {words.percent(row['part'], 1)}"
        for row in shapes.sort("part", descending=True).head(6).to_dicts()
    ]
    return [
        Finding(
            text=f"{ledger_figure.parts_title(frame)}.",
            evidence=f"{scope}; the largest others: {'; '.join(cells)}",
        ),
        Finding(
            text=f"{ledger_figure.energies_title(frame)}.",
            evidence=f"{scope}; energies are medians over layers of their dB",
        ),
    ]


def _table(frame: pl.DataFrame) -> Table:
    means = (
        frame.group_by("recipe", "role", "term", maintain_order=True)
        .agg(
            pl.col("part").mean(),
            pl.col("part").min().alias("least"),
            pl.col("part").max().alias("most"),
            pl.col("share").mean(),
            pl.col("gain").mean(),
            pl.col("decibels").median(),
            pl.len().alias("layers"),
        )
        .filter(pl.col("decibels").is_finite())
    )
    columns: list[Column] = [
        ("recipe", False, lambda row: row["recipe"]),
        ("role", False, lambda row: row["role"]),
        ("term", False, lambda row: row["term"]),
        ("part of the error", True, lambda row: words.percent(row["part"], 2)),
        ("least to most", True, lambda row: " to ".join(
            words.percent(row[name], 2) for name in ("least", "most"))),
        ("energy over the error's", True, lambda row: words.percent(row["share"], 2)),
        ("gain", True, lambda row: words.percent(row["gain"], 3)),
        ("dB below the product", True, lambda row: words.number(-row["decibels"], 1)),
    ]  # fmt: skip
    note = (
        "Means over layers, of dB the median. Parts, <term, error> / <error, error>, add up to "
        "100 %; energies do not, since terms correlate. Terms that are zero are left out."
    )
    return Table.of(TERMS, "Terms by recipe and role", note, columns, means)
