"""The report's section on the speed of recipes: what two of the benchmarks wrote."""

from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import stored, words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section
from lowprec.throughput.rows import GemmTime, TrainingTime

TABLES = {
    "gemm": (GemmTime, "python experiments/throughput_gemm.py"),
    "training_steps": (TrainingTime, "python experiments/throughput_linear.py"),
}
"""Every table with its rows and the command that makes it."""


def keep_manifest(name: str, record: dict[str, Any], folder: Path) -> None:
    """Writes when and where a table was made beside what is known of the other."""
    stored.write_manifest(stored.read_manifest(folder) | {name: record}, folder)


def read_recipe_speed(folder: Path) -> Section | None:
    """The section of the tables in a folder; None where it has none of them.

    Raises:
      ValueError: a table lacks a column, or has another type in it.
    """
    found = {
        name: stored.read_table(folder / f"{name}.csv", row, command)
        for name, (row, command) in TABLES.items()
    }
    tables = {name: table for name, table in found.items() if table is not None and len(table)}
    if not tables:
        return None
    record = stored.read_manifest(folder)
    made = [record.get(name, {}) for name in tables]
    dates = sorted({str(x["date"]) for x in made if "date" in x})
    return Section(
        name="recipe_speed",
        heading="Speed of the recipes",
        note=(
            "Times of emulation on one machine, which say nothing of the hardware that has the "
            "formats, and which no second run repeats."
        ),
        command="; ".join(TABLES[name][1] for name in tables),
        date=words.listed(dates) if dates else "",
        seconds=sum(int(x.get("seconds", 0)) for x in made),
        findings=[_goals(name, table) for name, table in tables.items()],
        figures=[],
        tables=[_table(name, table) for name, table in tables.items()],
    )


def _goals(name: str, table: pl.DataFrame) -> Finding:
    missed = [
        f"{_subject(row)}: {words.number(row[_ratio(name)])} times, "
        f"{words.number(row['wanted'], 0)} wanted"
        for row in table.filter(pl.col("met") != "met").to_dicts()
    ]
    of, beside = (
        ("a product under a recipe", "machine's own float32 product")
        if name == "gemm"
        else ("a layer or a training step under a recipe", "same under bf16")
    )
    return Finding(
        text=(
            f"{len(table) - len(missed)} of {len(table)} goals for the time of {of}, "
            f"as a multiple of the {beside}, are met."
        ),
        evidence=f"median over rounds; missed: {'; '.join(missed) or 'none'}",
    )


def _ratio(name: str) -> str:
    return "times_float32" if name == "gemm" else "times_bf16"


def _subject(row: dict[str, Any]) -> str:
    if "what" in row:
        return f"{row['what']} {row['recipe']}"
    return f"{row['recipe']} on {row['engine']}, {row['way']}"


def _table(name: str, table: pl.DataFrame) -> Table:
    own = name == "gemm"
    columns: list[Column] = [
        ("product" if own else "what", False, _subject),
        ("seconds", True, lambda row: words.significant(row["seconds"])),
        (f"times {'float32' if own else 'bf16'}", True,
         lambda row: words.number(row[_ratio(name)], 2)),
        ("quartiles", True, lambda row: " to ".join(
            words.number(row[end], 2) for end in ("low", "high"))),
        ("wanted", True, lambda row: words.number(row["wanted"], 0)),
        ("result", False, lambda row: row["met"]),
        ("compilation, s", True, lambda row: words.number(row["compile_seconds"])),
        ("temporaries, MB", True, lambda row: words.number(row["temporary_bytes"] / 1e6, 0)),
    ]  # fmt: skip
    device = words.label(table["device"][0])
    if own:
        title = "Products beside the machine's own"
        sizes = words.listed([str(x) for x in sorted(set(table["size"]))])
        note = (
            f"M = N = K = {sizes} on {device}; plain: inside a caller's jax.jit, options: with "
            "lowprec.compiler_options()."
        )
    else:
        title = "Training steps beside bfloat16's"
        note = (
            f"On {device}, every product on the native engine; a layer is three products with "
            "their quantizers, a step goes from tokens to parameters that have moved."
        )
    return Table.of(name, title, note, columns, table)
