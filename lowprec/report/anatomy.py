"""The results of experiments/recipe_anatomy.py as files, and the report's section on them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import anatomy_figure as drawing
from lowprec.report import shown, stored, words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section
from lowprec.study.anatomy import CAPTURED, SYNTHETIC, AnatomyRow

SCRIPT = "experiments/recipe_anatomy.py"
ROWS = "rows.csv"
_PLACES = (f"{CAPTURED} fprop", f"{CAPTURED} dgrad", f"{CAPTURED} wgrad", f"{SYNTHETIC} fprop")


def write_anatomy(rows: Sequence[AnatomyRow], record: dict[str, Any], out: Path) -> Section:
    """Writes `rows.csv`, `manifest.json` and figures into a directory; returns the section."""
    frame = stored.write_table(rows, AnatomyRow, out / ROWS)
    stored.write_manifest(record, out)
    section = anatomy_section(frame, record)
    shown.write_figures(section.figures, out)
    return section


def read_anatomy(folder: Path) -> Section | None:
    """The section of what `write_anatomy` wrote; None where the folder has no table.

    Raises:
      ValueError: the table lacks a column, or has another type in it.
    """
    frame = stored.read_table(folder / ROWS, AnatomyRow, SCRIPT)
    return None if frame is None else anatomy_section(frame, stored.read_manifest(folder))


def anatomy_section(frame: pl.DataFrame, record: Mapping[str, Any]) -> Section:
    """The section of a table of changes and a manifest, which may be empty."""
    bases = frame["base"].unique(maintain_order=True).to_list()
    drawn = [
        shown.show(f"anatomy_{base}", f"{base} taken apart", "rows", drawing.draw_of(base), frame)
        for base in bases
    ]
    return Section(
        name="anatomy",
        heading="Anatomy of recipes: one ingredient changed at a time",
        note=(
            "The error ledger of a recipe beside those of the same recipe with another tile, scale "
            "rule, scale format, second level, transform, rounding, engine, promotion interval or "
            "element format, on the same operands." + _by_chance(frame)
        ),
        command=str(record.get("command", "")),
        date=str(record.get("date", "")),
        seconds=int(record.get("seconds", 0)),
        findings=[found for base in bases if (found := _finding(frame, base)) is not None],
        figures=[figure for figure in drawn if figure is not None],
        tables=[_table(frame)],
    )


def _by_chance(frame: pl.DataFrame) -> str:
    """How many intervals exclude zero, beside how many would were nothing to move."""
    rows = drawing.moves(frame).drop_nulls("change_low")
    if rows.is_empty():
        return ""
    apart = rows.filter((pl.col("change_low") > 0) | (pl.col("change_high") < 0))
    return (
        f" Each 95 % interval stands alone: of {len(rows)}, {len(apart)} exclude zero, where about "
        f"{words.number(0.05 * len(rows), 0)} would by chance if no change moved anything; a "
        "small change that is resolved may be one of these."
    )


def _finding(frame: pl.DataFrame, base: str) -> Finding | None:
    rows = drawing.moves(frame.filter(pl.col("base") == base))
    own = rows.filter(pl.col("source") == CAPTURED, pl.col("role") == "fprop")
    if own.is_empty():
        return None
    unresolved = own.filter((pl.col("change_low") <= 0) & (pl.col("change_high") >= 0))
    cells = []
    for ingredient in own["ingredient"].unique(maintain_order=True):
        some = own.filter(pl.col("ingredient") == ingredient).sort("change_db")
        for row in {0: some.row(0, named=True), 1: some.row(-1, named=True)}.values():
            if (text := _cell(row)) not in cells:
                cells.append(text)
    return Finding(
        text=f"{drawing.changes_title(rows)}.",
        evidence=(
            f"captured fprop of {words.counted(own['units'][0], 'layer')}, change of the error's "
            f"energy with 95 % intervals over layers, and the term that moves most with its change "
            f"over the published recipe's error; {len(unresolved)} of {len(own)} changes are not "
            f"resolved. Least and most by ingredient: {'; '.join(cells)}"
        ),
    )


def _cell(row: Mapping[str, Any]) -> str:
    return (
        f"{drawing.name(row)} {words.signed(row['change_db'], 2)} dB "
        f"({words.signed(row['change_low'], 2)} to {words.signed(row['change_high'], 2)}), "
        f"{row['group']} {words.percent(row['group_moved'], 1)}"
    )


def _table(frame: pl.DataFrame) -> Table:
    rows = drawing.moves(frame)
    changes = rows.select("base", "ingredient", "value").unique(maintain_order=True).rows()
    found = {
        (r["base"], r["ingredient"], r["value"], f"{r['source']} {r['role']}"): r
        for r in rows.iter_rows(named=True)
    }
    columns: list[Column] = [
        ("recipe", False, lambda row: row["change"][0]),
        ("ingredient", False, lambda row: row["change"][1]),
        ("value", False, lambda row: row["change"][2]),
        ("bits/element", True, lambda row: words.number(row[_PLACES[0]]["bits_per_element"], 2)),
        *((f"{place}, dB", True, _column(place)) for place in _PLACES),
        ("moves most in fprop", False, lambda row: _moved(row[_PLACES[0]])),
        ("in wgrad", False, lambda row: _moved(row[_PLACES[2]])),
    ]
    cells = [
        {"change": change, **{place: found.get((*change, place)) for place in _PLACES}}
        for change in changes
    ]
    return Table(
        name="rows",
        title="Changes of the error's energy, dB",
        note=(
            "Means over layers or seeds with 95 % intervals, paired with the recipe as published; "
            "the group of terms that moves most, with its change as a part of the published "
            "recipe's error."
        ),
        columns=[(heading, numeric) for heading, numeric, _ in columns],
        rows=[
            [cell(row) for _, _, cell in columns] for row in cells if row[_PLACES[0]] is not None
        ],
    )


def _column(place: str) -> Callable[[dict[str, Any]], str]:
    def cell(row: dict[str, Any]) -> str:
        own = row[place]
        if own is None or own["change_db"] is None:
            return words.DASH
        ends = (words.signed(own[f"change_{end}"], 2) for end in ("low", "high"))
        return f"{words.signed(own['change_db'], 2)} ({' to '.join(ends)})"

    return cell


def _moved(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return words.DASH
    share = words.percent(row["group_moved"], 1)
    return f"{row['group']} {'+' if row['group_moved'] > 0 else ''}{share}"
