"""The results of experiments/advise_elsewhere.py as files, and the report's section on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import advise_figure, shown, stored, words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section
from lowprec.study.advise_rows import AdviceRow

ADVICE = "advice"
SCRIPT = "experiments/advise_elsewhere.py"


def write_advice(rows: Sequence[AdviceRow], record: dict[str, Any], out: Path) -> Section:
    """Writes `advice.csv`, `manifest.json` and the figure into a directory; returns the section."""
    frame = stored.write_table(rows, AdviceRow, out / f"{ADVICE}.csv")
    stored.write_manifest(record, out)
    section = advice_section(frame, record)
    shown.write_figures(section.figures, out)
    return section


def read_advice(folder: Path) -> Section | None:
    """The section of what `write_advice` wrote; None where the folder has no table.

    Raises:
      ValueError: the table lacks a column, or has another type in it.
    """
    frame = stored.read_table(folder / f"{ADVICE}.csv", AdviceRow, SCRIPT)
    return None if frame is None else advice_section(frame, stored.read_manifest(folder))


def advice_section(frame: pl.DataFrame, record: dict[str, Any]) -> Section:
    """The section of a table of advice and a manifest, which may be empty."""
    drawn = shown.show("advice_choices", "What was chosen", ADVICE, advise_figure.choices, frame)
    return Section(
        name="advise",
        heading="Advice on operands from elsewhere",
        note=(
            "What `lowprec advise` chooses for the layers of a PyTorch network that learned to "
            "advance a flow: on every second group of tokens, reported on the others."
            + _contracted(frame)
        ),
        command=str(record.get("command", "")),
        date=str(record.get("date", "")),
        seconds=int(record.get("seconds", 0)),
        findings=_findings(frame),
        figures=[] if drawn is None else [drawn],
        tables=[] if frame.is_empty() else [_table(frame)],
    )


def _contracted(frame: pl.DataFrame) -> str:
    """Over how many tokens the products in wgrad go, and their bits."""
    rows = frame.filter(pl.col("role") == "wgrad")
    if rows.is_empty():
        return ""
    return (
        f" In wgrad products contract {advise_figure.span(rows['k'], 0)} tokens at a time, and "
        f"bits per element spread the scale of a row over {advise_figure.span(rows['depth'], 0)}."
    )


def _findings(frame: pl.DataFrame) -> list[Finding]:
    rows = advise_figure.chosen(frame)
    if rows.is_empty():
        return []
    layers, products = frame["layer"].n_unique(), frame.select("layer", "role").n_unique()
    scope = (
        f"{words.counted(layers, 'layer')}, {words.counted(products, 'product')}, "
        f"{advise_figure.span(frame['considered'], 0)} candidates each"
    )
    return [
        Finding(text=f"{advise_figure.choices_title(frame)}.", evidence=scope),
        _made(rows),
        _held_out(rows),
    ]


def _made(rows: pl.DataFrame) -> Finding:
    """How often a combination is better than every entry, and by how much than the next."""
    made = rows.filter(pl.col("made"))
    names = made.group_by("recipe", maintain_order=True).len().sort("len", descending=True)
    listed = [f"{row['recipe']} {row['len']}" for row in names.head(4).to_dicts()]
    return Finding(
        text=(
            f"A combination of blocks is chosen over every entry of the catalogue in {len(made)} "
            f"of {words.counted(len(rows), 'choice')}."
        ),
        evidence="; ".join(listed) or "entries alone",
    )


def _held_out(rows: pl.DataFrame) -> Finding:
    """How far the figures move from the tokens that were chosen on to the others."""
    moved = rows["sqnr_db"] - rows["select_db"]
    ends = [words.signed(float(x), 2) for x in (moved.min(), moved.max())]  # type: ignore[arg-type] - numbers
    outside = rows.filter(~pl.col("select_db").is_between(pl.col("low_db"), pl.col("high_db")))
    return Finding(
        text=(
            f"From the tokens that were chosen on to the others the SQNR moves by {ends[0]} to "
            f"{ends[1]} dB."
        ),
        evidence=(
            f"{len(outside)} of {len(rows)} figures on the former lie outside the 95 % interval "
            "of the latter, which allows for the error of one part alone"
        ),
    )


def _table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("goal", False, lambda row: row["goal"]),
        ("layer", False, lambda row: row["layer"]),
        ("role", False, lambda row: row["role"]),
        ("recipe", False, lambda row: row["recipe"] + (" *" if row["made"] else "") or "none"),
        ("bits", True, lambda row: words.number(row["bits_per_element"], 2)),
        ("SQNR, dB", True, lambda row: words.number(row["sqnr_db"], 1)),
        ("95 %", True, lambda row: " to ".join(
            words.number(row[end], 1) for end in ("low_db", "high_db"))),
        ("why", False, lambda row: row["reason"]),
    ]  # fmt: skip
    note = (
        "* a combination of blocks, summed by this machine's float32; no hardware is known to run "
        "it. Bits are means over both operands, scales included."
    )
    return Table.of(ADVICE, "Advice by product", note, columns, frame)
