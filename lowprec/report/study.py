"""What the store of a study holds: as one table, and as a page with means over seeds."""

import datetime
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import page, shown, stored, words
from lowprec.report import study_figure as drawing
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.results import SCHEMAS, Results
from lowprec.report.section import Section
from lowprec.study.design import Study
from lowprec.study.intervals import student_t
from lowprec.study.point_rows import PointRow

POINTS, MEANS = "points", "means"
_TEXT, _COUNT = pl.String(), pl.Int64()
_FIRST = ("key", "status", "error")
_SPEC: Mapping[str, pl.DataType] = {
    "recipe": _TEXT,
    "engine": _TEXT,
    "role": _TEXT,
    "promote_every": _COUNT,
    "promotion": _TEXT,
    "scales": _TEXT,
    "order": _TEXT,
    "output": _TEXT,
    "a": _TEXT,
    "b": _TEXT,
    "m": _COUNT,
    "k": _COUNT,
    "n": _COUNT,
    "seed": _COUNT,
}
COLUMNS: Mapping[str, pl.DataType] = {
    **dict.fromkeys(_FIRST, _TEXT),
    **_SPEC,
    **stored.schema(PointRow),
    "code": _TEXT,
}
"""The columns of an export, and their types."""


def exported(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Stored points as a table with `COLUMNS`, in their order; a failed point lacks its row."""
    found = [{name: row.get(name) for name in COLUMNS} for row in rows]
    return pl.DataFrame(found, schema=dict(COLUMNS))


def write_export(frame: pl.DataFrame, out: Path) -> None:
    """Writes a table as CSV or Parquet, by the name's ending, in one step.

    Raises:
      ValueError: another ending, or a directory that is not there.
    """
    if not out.parent.is_dir():
        raise ValueError(f"cannot write {out}: {out.parent} is not a directory")
    partial = out.with_name(f"{out.name}.partial")
    if out.suffix == ".csv":
        frame.write_csv(partial)
    elif out.suffix == ".parquet":
        frame.write_parquet(partial, compression="zstd")
    else:
        raise ValueError(f"{out}: its name must end in .csv or .parquet")
    partial.replace(out)


def means(frame: pl.DataFrame) -> pl.DataFrame:
    """Means of the SQNR over seeds, by all else that a point is, with 95 % intervals.

    The interval is Student's t; it is NaN for a single seed. Points that failed, and products
    without a finite SQNR, are left out; `points` counts those that stand.
    """
    keys = [name for name in _SPEC if name != "seed"]
    rows = frame.filter(pl.col("status") == "done", pl.col("sqnr_db").is_finite())
    found = (
        rows.group_by(*keys)
        .agg(
            pl.col("reproducibility", "bits_per_element").first(),
            pl.len().alias("points"),
            pl.col("sqnr_db").mean(),
            pl.col("sqnr_db").std().alias("spread"),
            pl.col("gain", "clipped", "flushed").mean(),
            pl.col("backward_error").max(),
        )
        .sort("role", "a", "b", "m", "k", "n", "sqnr_db", *keys, descending=False)
    )
    halves = [
        student_t(0.975, row["points"] - 1) * row["spread"] / math.sqrt(row["points"])
        if row["points"] > 1
        else math.nan
        for row in found.iter_rows(named=True)
    ]
    half = pl.Series("half", halves, pl.Float64())
    return found.drop("spread").with_columns(
        low=pl.col("sqnr_db") - half, high=pl.col("sqnr_db") + half
    )


def write_study(frame: pl.DataFrame, study: Study, command: str, out: Path) -> Path:
    """Writes points, means, a manifest, a figure and `index.html` into a directory; returns it."""
    if not out.parent.is_dir():
        raise ValueError(f"cannot write a report to {out}: {out.parent} is not a directory")
    folder = out / "study"
    folder.mkdir(parents=True, exist_ok=True)
    table = means(frame)
    for name, some in ((POINTS, frame), (MEANS, table)):
        write_export(some, folder / f"{name}.csv")
        write_export(some, folder / f"{name}.parquet")
    record = {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "study": study.name,
        "points": len(study.points),
        "done": len(frame.filter(pl.col("status") == "done")),
        "failed": len(frame.filter(pl.col("status") == "failed")),
        "left_out": dict(study.left_out),
        "code": next(iter(study.points.values())).code,
    }
    stored.write_manifest(record, folder)
    section = study_section(table, record)
    shown.write_figures(section.figures, folder)
    empty = {name: pl.DataFrame(schema=dict(columns)) for name, columns in SCHEMAS.items()}
    results = Results(**empty, manifest=record, command=command)
    path = out / "index.html"
    path.write_text(page.render(results, [], [section]), encoding="utf-8")
    return path


def study_section(table: pl.DataFrame, record: Mapping[str, Any]) -> Section:
    """The section on a study, of its means and its manifest."""
    figure = shown.show("study_means", "Error by recipe", MEANS, drawing.sqnr, table)
    return Section(
        name="study",
        heading=f"A study: {record['study']}",
        note=(
            f"{words.counted(record['done'], 'point')} of {record['points']:,} are stored, "
            f"{record['failed']:,} failed; means over seeds with 95 % intervals."
        ),
        command=str(record["command"]),
        date="",
        seconds=0,
        findings=_findings(table),
        figures=[] if figure is None else [figure],
        tables=[_table(table)],
    )


def _findings(table: pl.DataFrame) -> list[Finding]:
    """How far apart recipes lie on each kind of operands, the widest three."""
    found = []
    for (a, b), rows in table.group_by("a", "b", maintain_order=True):
        some = rows.sort("sqnr_db")
        if some["recipe"].n_unique() < 2:
            continue
        least, most = some.row(0, named=True), some.row(-1, named=True)
        text = (
            f"On {a} by {b}, {drawing.series(most)} keeps {words.number(most['sqnr_db'])} dB and "
            f"{drawing.series(least)} {words.number(least['sqnr_db'])} dB."
        )
        counts = f"{most['points']} and {least['points']} seeds"
        found.append((most["sqnr_db"] - least["sqnr_db"], Finding(text=text, evidence=counts)))
    return [finding for _, finding in sorted(found, key=lambda pair: -pair[0])[:3]]


def _table(table: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("recipe", False, drawing.series),
        ("role", False, lambda row: row["role"]),
        ("a", False, lambda row: row["a"]),
        ("b", False, lambda row: row["b"]),
        ("M, K, N", True, lambda row: f"{row['m']}, {row['k']}, {row['n']}"),
        ("bits/element", True, lambda row: words.number(row["bits_per_element"], 2)),
        ("SQNR, dB", True, lambda row: words.number(row["sqnr_db"], 2)),
        ("95 % interval", True, _interval),
        ("gain", True, lambda row: words.percent(row["gain"], 2)),
        ("max backward", True, lambda row: words.significant(row["backward_error"])),
        ("class", False, lambda row: row["reproducibility"]),
        ("seeds", True, lambda row: words.number(row["points"], 0)),
    ]
    note = "Means over seeds, by all else that a point is; backward error is the largest."
    return Table.of(MEANS, "Means", note, columns, table)


def _interval(row: dict[str, Any]) -> str:
    if math.isnan(row["low"]):
        return words.DASH
    return f"{words.number(row['low'], 2)} to {words.number(row['high'], 2)}"
