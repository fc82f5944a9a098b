"""The report's section on the speed of casts: what experiments/throughput_casts.py wrote."""

from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import stored, words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section

COMMAND = "python experiments/throughput_casts.py"
SCHEMA: dict[str, pl.DataType] = {
    **dict.fromkeys(("operation", "ours", "other", "verdict"), pl.String()),
    **dict.fromkeys(("at_least", "ratio", "low", "high"), pl.Float64()),
}
"""The columns of goals.csv that the section is made of."""


def read_cast_speed(folder: Path) -> Section | None:
    """The section of goals.csv in a folder; None where there is none.

    Raises:
      ValueError: it lacks a column, or has another type in it.
    """
    goals = stored.read_frame(folder / "goals.csv", SCHEMA, COMMAND)
    return None if goals is None or goals.is_empty() else cast_speed_section(goals)


def cast_speed_section(goals: pl.DataFrame) -> Section:
    """The section of a table of goals, with the columns of `SCHEMA`."""
    missed = goals.filter(pl.col("verdict") != "met").to_dicts()
    cells = [f"{row['operation']} beside {row['other']}: {_ratio(row)}" for row in missed]
    return Section(
        name="cast_speed",
        heading="Speed of casts and block quantizers",
        note="Elements a second on one machine, over those of something else in the same rounds.",
        command=COMMAND,
        date="",
        seconds=0,
        findings=[
            Finding(
                text=f"{len(goals) - len(missed)} of {len(goals)} goals for the speed of casts and "
                "block quantizers are met.",
                evidence=f"missed: {'; '.join(cells)}" if cells else "none missed",
            )
        ],
        figures=[],
        tables=[_table(goals)],
    )


def _ratio(row: dict[str, Any]) -> str:
    ends = f"{words.significant(row['low'])} to {words.significant(row['high'])}"
    return (
        f"{words.significant(row['ratio'])} ({ends}), {words.significant(row['at_least'])} wanted"
    )


def _table(goals: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("operation", False, lambda row: row["operation"]),
        ("ours", False, lambda row: row["ours"]),
        ("beside", False, lambda row: row["other"]),
        ("times as fast", True, lambda row: words.significant(row["ratio"])),
        ("quartiles", True, lambda row: " to ".join(
            words.significant(row[end]) for end in ("low", "high"))),
        ("wanted", True, lambda row: words.significant(row["at_least"])),
        ("verdict", False, lambda row: row["verdict"]),
    ]  # fmt: skip
    note = "Medians of ratios, with quartiles; casts.csv beside it has every size."
    return Table.of("goals", "Goals for casts", note, columns, goals)
