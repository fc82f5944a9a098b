"""The report's section on studies that were killed: what experiments/study_killed.py wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import stored, words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section

COMMAND = "python experiments/study_killed.py"
SCHEMA: dict[str, pl.DataType] = {
    **dict.fromkeys(("run", "killed", "export_sha256"), pl.String()),
    **dict.fromkeys(("workers", "points", "stored", "done", "most_attempts"), pl.Int64()),
    "seconds": pl.Int64(),
    "sound": pl.Boolean(),
}
"""The columns of runs.csv that the section is made of."""


def read_study_killed(folder: Path) -> Section | None:
    """The section of runs.csv in a folder; None where there is none.

    Raises:
      ValueError: it lacks a column, or has another type in it.
    """
    runs = stored.read_frame(folder / "runs.csv", SCHEMA, COMMAND)
    if runs is None or runs.is_empty():
        return None
    return study_killed_section(runs, stored.read_manifest(folder))


def study_killed_section(runs: pl.DataFrame, record: Mapping[str, Any]) -> Section:
    """The section of a table of runs, with the columns of `SCHEMA`, and a manifest or {}."""
    return Section(
        name="study_killed",
        heading="Studies: killed and finished",
        note="One study run several ways, each into a store of its own, and its exports compared.",
        command=str(record.get("command", COMMAND)),
        date=str(record.get("date", "")),
        seconds=int(record.get("seconds", 0)),
        findings=[_finding(runs)],
        figures=[],
        tables=[_table(runs)],
    )


def _finding(runs: pl.DataFrame) -> Finding:
    lost = runs.filter((pl.col("stored") != pl.col("points")) | ~pl.col("sound"))
    equal = runs["export_sha256"].n_unique() == 1
    killed = len(runs.filter(pl.col("killed") != ""))
    points = words.counted(int(runs["points"][0]), "point")
    kept = "loses or doubles points" if len(lost) else "neither loses nor doubles a point"
    text = (
        f"A study of {points} run {len(runs)} ways, killed in {killed}, {kept}, and its exports "
        f"{'are the same bytes' if equal else 'DIFFER'}."
    )
    cells = [f"{row['run']}: {row['stored']:,} stored, {row['killed'] or 'never'} killed"
             for row in runs.to_dicts()]  # fmt: skip
    return Finding(text=text, evidence="; ".join(cells))


def _table(runs: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("run", False, lambda row: row["run"]),
        ("workers", True, lambda row: str(row["workers"])),
        ("killed, at points stored", False, lambda row: row["killed"] or words.DASH),
        ("points", True, lambda row: f"{row['points']:,}"),
        ("stored", True, lambda row: f"{row['stored']:,}"),
        ("done", True, lambda row: f"{row['done']:,}"),
        ("most attempts", True, lambda row: str(row["most_attempts"])),
        ("store sound", False, lambda row: "yes" if row["sound"] else "NO"),
        ("seconds", True, lambda row: f"{row['seconds']:,}"),
        ("export, SHA-256", False, lambda row: row["export_sha256"][:16]),
    ]
    return Table.of("runs", "Runs of one study", "Seconds of the whole.", columns, runs)
