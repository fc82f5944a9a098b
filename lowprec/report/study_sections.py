"""The section of a study in a report: of its tables, or of the store that keeps its points."""

from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import shown, stored
from lowprec.report.section import Section
from lowprec.report.study import MEANS, POINTS, exported, means, study_section, write_export
from lowprec.study.store import Store

FOLDER = "study"
"""Where a report has the tables of its study."""


def read_study(folder: Path) -> Section | None:
    """The section of the tables in a folder; None where it has none.

    Raises:
      ValueError: a table cannot be read.
    """
    path, record = folder / f"{POINTS}.parquet", stored.read_manifest(folder)
    if not path.is_file() or "study" not in record:
        return None
    try:
        points = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise ValueError(
            f"cannot read {path}: {error}; `lowprec study report` writes it"
        ) from error
    return study_section(means(points), record)


def write_store(store: Path, out: Path, command: str) -> None:
    """Writes the points of a store as tables, means, a manifest and figures into a folder of `out`.

    Of several versions of the code the one with the most points counts; which of them came last the
    store does not say.

    Args:
      store: the SQLite file of `lowprec study run`.
      out: the directory of the report.
      command: the command line, for the manifest.

    Raises:
      ValueError: the file is no store, or has no point.
    """
    with Store.reading(store) as opened:
        every = exported(opened.rows())
    if every.is_empty():
        raise ValueError(f"the store {store} has no point yet; `lowprec study run` adds them")
    counts = every.group_by("code").len().sort("len", "code", descending=True)
    code = counts["code"][0]
    points = every.filter(pl.col("code") == code)
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    table = means(points)
    for name, frame in ((POINTS, points), (MEANS, table)):
        write_export(frame, folder / f"{name}.csv")
        write_export(frame, folder / f"{name}.parquet")
    record: dict[str, Any] = {
        "command": command,
        "study": store.stem,
        "points": len(points),
        "done": len(points.filter(pl.col("status") == "done")),
        "failed": len(points.filter(pl.col("status") == "failed")),
        "points_of_other_code": len(every) - len(points),
        "code": code,
    }
    stored.write_manifest(record, folder)
    shown.write_figures(study_section(table, record).figures, folder)
