"""The gains of experiments/prepare.py as files, and the report's section on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import prepare_figure, shown, stored, words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section
from lowprec.study.prepared import GainRow

GAINS, SCRIPT = "gains", "experiments/prepare.py"
Row = dict[str, Any]


def write_prepare(rows: Sequence[GainRow], record: dict[str, Any], out: Path) -> Section:
    """Writes `gains.csv`, `manifest.json` and the figure into a directory; returns the section."""
    table = stored.write_table(rows, GainRow, out / f"{GAINS}.csv")
    stored.write_manifest(record, out)
    section = prepare_section(table, record)
    shown.write_figures(section.figures, out)
    return section


def read_prepare(folder: Path) -> Section | None:
    """The section of what `write_prepare` wrote; None where the folder has no table.

    Raises:
      ValueError: the table lacks a column, or has another type in it.
    """
    table = stored.read_table(folder / f"{GAINS}.csv", GainRow, SCRIPT)
    return None if table is None else prepare_section(table, stored.read_manifest(folder))


def prepare_section(frame: pl.DataFrame, record: dict[str, Any]) -> Section:
    """The section of a table of gains and a manifest, which may be empty."""
    figure = shown.show(
        "prepare_gains", "What preparations keep", GAINS, prepare_figure.gains, frame
    )
    return Section(
        name="prepare",
        heading="Preparing weights: what is kept over rounding to nearest",
        note=(
            "Smoothing, rotation, GPTQ and low-rank matrices of published recipes, put into "
            f"recipes that round to nearest; {_samples(record.get('settings', {}))}."
        ),
        command=str(record.get("command", "")),
        date=str(record.get("date", "")),
        seconds=int(record.get("seconds", 0)),
        findings=_findings(frame),
        figures=[] if figure is None else [figure],
        tables=[_table(frame)],
    )


def _samples(settings: Row) -> str:
    """What was fitted to, and what is reported."""
    if "report_tokens" not in settings:
        return "fitted to some documents and reported on others"
    fitted, reported = (
        f"{settings[f'{part}_tokens']:,} tokens of "
        f"{words.counted(len(settings[f'{part}_documents']), 'document')} of the part "
        f"`{settings[where]}`"
        for part, where in (("calibration", "fitted_on_part"), ("report", "reported_on_part"))
    )
    return f"fitted to {fitted}, reported on {reported}"


def _findings(frame: pl.DataFrame) -> list[Finding]:
    rows = frame.filter(pl.col("sample") == prepare_figure.HELD_OUT)
    if rows.is_empty():
        return []
    best = rows.sort("gain_db", descending=True).unique("baseline", maintain_order=True)
    worse = rows.filter(pl.col("high_db") < 0).sort("gain_db")
    open_ = rows.filter(pl.col("low_db") <= 0, pl.col("high_db") >= 0)
    found = [
        Finding(
            text=f"{prepare_figure.gains_title(frame)}.",
            evidence="dB, with 95 % intervals over layers, paired; the best of each recipe: "
            + "; ".join(_cell(row) for row in best.to_dicts()),
        ),
        Finding(
            text=(
                f"{words.counted(len(worse), 'pair')} lose against rounding to nearest, and "
                f"{words.counted(len(open_), 'pair')} are not told apart from it."
            ),
            evidence=f"lose: {_cells(worse)}; not resolved: {_cells(open_)}",
        ),
    ]
    return [*found, *(x for x in (_bits(rows), _in_sample(frame)) if x is not None)]


def _bits(rows: pl.DataFrame) -> Finding | None:
    """What is kept at the price of more bits: low-rank matrices beside the weight."""
    bits = pl.col("bits_per_element")
    more = rows.with_columns(more=bits - bits.min().over("baseline")).filter(pl.col("more") > 0.01)
    if more.is_empty():
        return None
    cells = [
        f"{_cell(row)} for {words.number(row['more'], 2)} bits more" for row in more.to_dicts()
    ]
    kept, price = (more[name].to_list() for name in ("gain_db", "more"))
    return Finding(
        text=(
            f"Low-rank matrices keep {words.signed(min(kept), 1)} to {words.signed(max(kept), 1)} "
            f"dB and take {words.number(min(price), 1)} to {words.number(max(price), 1)} bits a "
            "weight more, where a bit more of precision would keep 6 dB; the others take none."
        ),
        evidence="; ".join(cells),
    )


def _in_sample(frame: pl.DataFrame) -> Finding | None:
    """How much better the documents look that were fitted to."""
    keys = ["baseline", "recipe"]
    kinds = [frame.filter(pl.col("sample") == x) for x in ("in_sample", "held_out")]
    both = kinds[0].join(kinds[1], on=keys, suffix="_held_out")
    if both.is_empty():
        return None
    cells = [
        f"{prepare_figure.preparation(row)} {_gain(row)} dB in sample, "
        f"{words.signed(row['gain_db_held_out'], 2)} on other documents"
        for row in both.to_dicts()
    ]
    more = (both["gain_db"] - both["gain_db_held_out"]).to_list()
    return Finding(
        text=(
            "Reported on what they were fitted to, preparations would seem to keep "
            f"{words.signed(min(more), 2)} to {words.signed(max(more), 2)} dB more than they do."
        ),
        evidence="; ".join(cells),
    )


def _cells(rows: pl.DataFrame) -> str:
    return "; ".join(_cell(row) for row in rows.to_dicts()) or "none"


def _cell(row: Row) -> str:
    return f"{row['recipe']} {_gain(row)}"


def _gain(row: Row) -> str:
    low, high = (words.signed(row[end], 2) for end in ("low_db", "high_db"))
    return f"{words.signed(row['gain_db'], 2)} ({low} to {high})"


def _table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("recipe", False, lambda row: row["baseline"]),
        ("with the preparation of", False, prepare_figure.preparation),
        ("reported on", False, lambda row: row["sample"].replace("_", " ")),
        ("bits/weight", True, lambda row: words.number(row["bits_per_element"], 2)),
        ("to nearest, dB", True, lambda row: words.number(row["baseline_db"], 2)),
        ("prepared, dB", True, lambda row: words.number(row["recipe_db"], 2)),
        ("gain, dB (95 %)", True, _gain),
        ("worst layer, dB", True, lambda row: words.signed(row["worst_db"], 2)),
        ("layers", True, lambda row: str(row["layers"])),
        ("seeds", True, lambda row: str(row["seeds"])),
    ]
    note = (
        "SQNR of products of captured inputs and weights, means over layers; intervals are over "
        "layers, paired; seeds are of random rotations. Bits are the weight's, low-rank matrices "
        "included."
    )
    return Table.of(GAINS, "Gains over rounding to nearest", note, columns, frame)
