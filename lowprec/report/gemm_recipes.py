"""The results of experiments/gemm_recipes.py as files, and the report's section on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import comparisons, shown, stored, words
from lowprec.report import gemm_recipes_figure as drawing
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section
from lowprec.study.gemm_recipes import UnitRow
from lowprec.study.gemm_recipes_budget import BUDGETS, BudgetRow
from lowprec.study.gemm_recipes_front import RecipeRow

SCRIPT = "experiments/gemm_recipes.py"
ROWS, BEST, UNITS = "rows.csv", "budgets.csv", "units.parquet"
Row = dict[str, Any]


def write_recipes(
    rows: Sequence[RecipeRow],
    best: Sequence[BudgetRow],
    units: Sequence[UnitRow],
    record: dict[str, Any],
    out: Path,
) -> Section:
    """Writes tables, `manifest.json` and figures into a directory; returns the section."""
    frame = stored.write_table(rows, RecipeRow, out / ROWS)
    leads = stored.write_table(best, BudgetRow, out / BEST)
    stored.frame(units, UnitRow).cast({pl.Float64: pl.Float32}).write_parquet(out / UNITS)
    stored.write_manifest(record, out)
    section = recipes_section(frame, leads, record)
    shown.write_figures(section.figures, out)
    return section


def read_recipes(folder: Path) -> Section | None:
    """The section of what `write_recipes` wrote; None where the folder has no manifest.

    Raises:
      ValueError: a table is missing, lacks a column, or has another type in it.
    """
    tables = {"rows": RecipeRow, "budgets": BudgetRow}
    found = stored.read_tables(folder, tables, SCRIPT)
    if found is None:
        return None
    return recipes_section(found["rows"], found["budgets"], stored.read_manifest(folder))


def recipes_section(frame: pl.DataFrame, leads: pl.DataFrame, record: Mapping[str, Any]) -> Section:
    """The section of the tables of recipes and of the best, and of a manifest; all may be empty."""
    best = drawing.best(frame, leads)
    drawn = [
        shown.show("gemm_recipes_front", "Error against bits", "rows", drawing.fronts, frame),
        shown.show("gemm_recipes_budget", "The best by budget", "rows", drawing.budgets, best),
    ]
    omitted = record.get("settings", {}).get("left_out", {})
    tail = (
        f" Left out, since they need more than operands: {words.counted(len(omitted), 'recipe')} "
        "with prepared weights or delayed scales."
        if omitted
        else ""
    )
    return Section(
        name="gemm_recipes",
        heading="All recipes compared: error against bits",
        note=(
            "Operands quantized as each recipe of the catalogue says and multiplied exactly: what "
            "engines and the output's type add is left out, and in the error ledger." + tail
        ),
        command=str(record.get("command", "")),
        date=str(record.get("date", "")),
        seconds=int(record.get("seconds", 0)),
        findings=findings(frame, best),
        figures=[figure for figure in drawn if figure is not None],
        tables=[_fronts(frame)],
    )


def findings(frame: pl.DataFrame, best: pl.DataFrame) -> list[Finding]:
    """What the rows and the best of them say, each with what it rests on."""
    if frame.is_empty():
        return []
    made = (_front(frame), _budgets(best), _bound(frame), _depth(frame))
    return [found for found in made if found is not None]


def _scope(frame: pl.DataFrame) -> str:
    recipes, ways = frame["recipe"].n_unique(), frame.select("role", "alike").n_unique()
    return (
        f"{words.counted(recipes, 'recipe')}, {ways} ways to quantize over the roles; 95 % "
        "intervals over layers or seeds"
    )


def _front(frame: pl.DataFrame) -> Finding | None:
    fronts = {
        key: set(rows.filter(pl.col("front") == "on")["recipe"])
        for key, rows in drawing.lossy(frame).group_by("family", "role", "k", maintain_order=True)
        if key[1] == "fprop"
    }
    if not fronts:
        return None
    always = sorted(set.intersection(*fronts.values()), key=lambda name: (len(name), name))
    names = [name.removeprefix("recipe:") for name in always]
    said = words.listed(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    cells = [f"{drawing.operands(*key)} {len(found)}" for key, found in fronts.items()]
    return Finding(
        text=(
            f"On the front of SQNR over bits on all {len(fronts)} kinds of fprop operands: "
            f"{said if names else 'no recipe'}."
        ),
        evidence=f"{_scope(frame)}; recipes on the front: {', '.join(cells)}",
    )


def _budgets(best: pl.DataFrame) -> Finding | None:
    low = best.filter(pl.col("budget") == BUDGETS[0])
    if low.is_empty():
        return None
    counts = low.group_by("label").len().sort("len", "label", descending=[True, False])
    winners = [f"{row['label']} on {row['len']}" for row in counts.to_dicts()]
    alone = low.filter(pl.col("unresolved") == 0, pl.col("rival").is_not_null())
    cells = [
        f"{drawing.operands(row['family'], row['role'], row['k'])}: {row['label']} "
        f"{words.number(row['sqnr_db'], 1)} dB ({words.number(row['sqnr_low'], 1)} to "
        f"{words.number(row['sqnr_high'], 1)}){_lead(row)}"
        for row in low.iter_rows(named=True)
    ]
    return Finding(
        text=(
            f"Within {BUDGETS[0]:g} bits the most SQNR is kept, of {len(low)} kinds of operands, "
            f"by {words.listed(winners)}; the lead over all others is resolved on {len(alone)}."
        ),
        evidence=f"chosen and reported on the same units, paired by unit: {'; '.join(cells)}",
    )


def _lead(row: Row) -> str:
    """How far a winner is ahead of the next, and from how many its lead is not resolved."""
    if row["rival"] is None:
        return ""
    if row["lead_low"] <= 0:
        more = row["unresolved"] - 1
        return f", not resolved from {row['rival']}" + (f" and {more} more" if more else "")
    ends = " to ".join(words.number(row[f"lead_{end}"], 2) for end in ("low", "high"))
    ahead = f", {words.number(row['lead_db'], 2)} dB ({ends}) ahead of {row['rival']}"
    others = row["unresolved"]
    return ahead + (f", but not resolved from {words.counted(others, 'other')}" if others else "")


def _bound(frame: pl.DataFrame) -> Finding | None:
    rows = drawing.distinct(frame).filter(pl.col("excess_bits").is_finite()).sort("excess_bits")
    if rows.is_empty():
        return None
    least = rows.row(0, named=True)
    cells = [
        f"{r['label']} {words.number(r['excess_bits'], 2)} "
        f"({words.number(r['excess_low'], 2)} to {words.number(r['excess_high'], 2)}) of "
        f"{words.number(r['bits_per_element'], 2)}"
        for r in rows.head(6).iter_rows(named=True)
    ]
    return Finding(
        text=(
            f"On Gaussian operands {least['label']} spends least beyond the bound for products: "
            f"{words.number(least['excess_bits'], 2)} of its "
            f"{words.number(least['bits_per_element'], 2)} bits."
        ),
        evidence=f"bound of arXiv 2410.13780 at each recipe's error: {'; '.join(cells)}",
    )


def _depth(frame: pl.DataFrame) -> Finding | None:
    rows = drawing.lossy(frame).filter(pl.col("family") == "card", pl.col("role") == "fprop")
    depths = sorted(set(rows["k"]))
    if len(depths) < 2:
        return None
    ends = [rows.filter(pl.col("k") == k) for k in (depths[0], depths[-1])]
    both = (
        ends[0]
        .join(ends[1], on="recipe", suffix="_deep")
        .with_columns(
            change=pl.col("sqnr_db_deep") - pl.col("sqnr_db"),
            apart=(pl.col("sqnr_low_deep") > pl.col("sqnr_high"))
            | (pl.col("sqnr_high_deep") < pl.col("sqnr_low")),
        )
    )
    most = both.sort(pl.col("change").abs(), descending=True).row(0, named=True)
    return Finding(
        text=(
            f"From K = {depths[0]} to {depths[-1]} the SQNR of a recipe's fprop changes by "
            f"{words.number(comparisons.median(both['change'].abs()), 2)} dB in the median of "
            f"recipes, at most {words.signed(most['change'], 2)} "
            f"({most['recipe'].removeprefix('recipe:')})."
        ),
        evidence=(
            f"operands drawn after a captured layer's cards, {rows['units'][0]} seeds; the "
            f"intervals at both depths are apart for {both['apart'].sum()} of {len(both)} recipes"
        ),
    )


def _fronts(frame: pl.DataFrame) -> Table:
    rows = drawing.distinct(frame).filter(pl.col("front") == "on")
    span = lambda row, stem, digits: (
        f"{words.number(row[f'{stem}_low'], digits)} to {words.number(row[f'{stem}_high'], digits)}"
    )
    columns: list[Column] = [
        ("operands", False, lambda row: drawing.operands(row["family"], row["role"], row["k"])),
        ("recipe", False, lambda row: row["label"]),
        ("bits/element", True, lambda row: words.number(row["bits_per_element"], 2)),
        ("a, b", True, lambda row: ", ".join(
            words.number(row[f"bits_{side}"], 2) for side in "ab")),
        ("SQNR, dB", True, lambda row: words.number(row["sqnr_db"], 2)),
        ("95 % interval", True, lambda row: span(row, "sqnr", 2)),
        ("gain", True, lambda row: words.percent(row["gain"], 2)),
        ("after gain, dB", True, lambda row: words.number(row["residual_sqnr_db"], 2)),
        ("bits above the bound", True, lambda row: words.number(row["excess_bits"], 2)),
    ]  # fmt: skip
    return Table(
        name="rows",
        title="The fronts of SQNR over bits",
        note=(
            "Recipes that none of as many bits or fewer beats, by kind of operands; (+n): as many "
            "others quantize alike. Means over layers or seeds. Operands are bfloat16 numbers, so "
            "that 16-bit recipes lose nothing and are left out. Bits count the scales of rows at "
            "the product's K, the mean over layers where that differs, and none for a scale of a "
            "whole matrix."
        ),
        columns=[(heading, numeric) for heading, numeric, _ in columns],
        rows=[[cell(row) for _, _, cell in columns] for row in rows.iter_rows(named=True)],
    )
