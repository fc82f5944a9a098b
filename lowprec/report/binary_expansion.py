"""The results of experiments/binary_expansion.py as files, and the report's section on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import binary_expansion_figure as drawing
from lowprec.report import shown, stored, words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section
from lowprec.study.binary_expansion import ExpansionRow

SCRIPT = "experiments/binary_expansion.py"
ROWS = "rows.csv"
TABLED = (1, 2, 3, 4, 6, 8, 12, 16)
"""The N of the page's table; the file has all."""


def write_expansion(rows: Sequence[ExpansionRow], record: dict[str, Any], out: Path) -> Section:
    """Writes `rows.csv`, `manifest.json` and the figure into a directory; returns the section."""
    frame = stored.write_table(rows, ExpansionRow, out / ROWS)
    stored.write_manifest(record, out)
    section = expansion_section(frame, record)
    shown.write_figures(section.figures, out)
    return section


def read_expansion(folder: Path) -> Section | None:
    """The section of what `write_expansion` wrote; None where the folder has no table.

    Raises:
      ValueError: the table lacks a column, or has another type in it.
    """
    frame = stored.read_table(folder / ROWS, ExpansionRow, SCRIPT)
    return None if frame is None else expansion_section(frame, stored.read_manifest(folder))


def expansion_section(frame: pl.DataFrame, record: Mapping[str, Any]) -> Section:
    """The section of a table of expansions and a manifest, which may be empty."""
    drawn = shown.show("binary_expansion", "Error by binary weights", "rows", drawing.errors, frame)
    return Section(
        name="binary_expansion",
        heading="N-fold binary weights",
        note=(
            "Weights as sums of N binary ones, each with a factor for every output channel, beside "
            "integers of N bits; activations are left as they are."
        ),
        command=str(record.get("command", "")),
        date=str(record.get("date", "")),
        seconds=int(record.get("seconds", 0)),
        findings=findings(frame),
        figures=[drawn] if drawn is not None else [],
        tables=[_table(frame)],
    )


def findings(frame: pl.DataFrame) -> list[Finding]:
    """The verdict on each source of weights, and what refitting factors and signs changes."""
    if frame.is_empty():
        return []
    found = []
    for source in frame["source"].unique(maintain_order=True):
        own = frame.filter(pl.col("source") == source)
        last = own.filter(pl.col("method") == drawing.GREEDY).sort("n").row(-1, named=True)
        cells = [
            f"{r['method']} at N = {r['n']} {words.number(r['sqnr_db'], 2)} dB "
            f"({words.number(r['sqnr_low'], 2)} to {words.number(r['sqnr_high'], 2)})"
            + (
                f", {words.signed(r['over_integer_db'], 2)} dB to the best-clipped integer "
                f"({words.signed(r['over_low'], 2)} to {words.signed(r['over_high'], 2)})"
                if r["over_integer_db"] is not None
                else ""
            )
            for r in own.filter(pl.col("n").is_in([4, 8])).sort("n").iter_rows(named=True)
        ]
        found.append(
            Finding(
                text=f"{drawing.verdict(own)}.",
                evidence=(
                    f"{source} weights, {words.counted(last['units'], _unit(source))}, SQNR of the "
                    f"weights, means and 95 % intervals, differences paired: {'; '.join(cells)}"
                ),
            )
        )
    return found


def _unit(source: str) -> str:
    return "layer" if source == "captured" else "seed"


def _table(frame: pl.DataFrame) -> Table:
    rows = frame.filter(pl.col("n").is_in(TABLED)).sort("source", "n", maintain_order=True)
    span = lambda row, stem: (
        words.DASH
        if row[f"{stem}_low"] is None
        else f"{words.number(row[f'{stem}_low'], 2)} to {words.number(row[f'{stem}_high'], 2)}"
    )
    columns: list[Column] = [
        ("weights", False, lambda row: row["source"]),
        ("N", True, lambda row: str(row["n"])),
        ("method", False, lambda row: row["method"]),
        ("bits/element", True, lambda row: words.number(row["bits_per_element"], 2)),
        ("additions an output", True, lambda row: words.number(row["additions"], 0)),
        ("multiplications", True, lambda row: words.number(row["multiplications"], 0)),
        ("SQNR, dB", True, lambda row: words.number(row["sqnr_db"], 2)),
        ("95 % interval", True, lambda row: span(row, "sqnr")),
        ("over INT-N, dB", True, lambda row: words.signed(row["over_integer_db"], 2)),
        ("interval, paired", True, lambda row: span(row, "over")),
        ("product, dB", True, lambda row: words.number(row["product_db"], 2)),
    ]
    return Table(
        name="rows",
        title="Binary weights, integers and fitted levels",
        note=(
            "An output with K inputs takes N K - 1 additions and N multiplications with binary "
            "weights, K - 1 and K with others; an N-bit integer multiplied bit by bit takes N K "
            "additions too. Over INT-N: over integers whose clip has least squared error. Bits "
            "count a float32 for every factor of a channel."
        ),
        columns=[(heading, numeric) for heading, numeric, _ in columns],
        rows=[[cell(row) for _, _, cell in columns] for row in rows.iter_rows(named=True)],
    )
