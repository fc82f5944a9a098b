"""A report written again from its own tables: nothing is computed but what the pages say."""

import json
from collections.abc import Collection
from pathlib import Path

import polars as pl

from lowprec.report.results import SCHEMAS, Results
from lowprec.report.site import experiments, write_site


def read_results(folder: Path) -> Results | None:
    """What `write_report` wrote, read from its Parquet files and manifest; None without one.

    Raises:
      ValueError: a file cannot be read, or a table lacks columns.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        command = str(record.pop("command"))
        frames = {name: _frame(folder / f"{name}.parquet") for name in SCHEMAS}
    except (KeyError, AttributeError, ValueError, pl.exceptions.PolarsError) as error:
        again = "`lowprec compare` writes it anew"
        raise ValueError(f"cannot read the report in {folder}: {error}; {again}") from error
    return Results(**frames, manifest=record, command=command)


def _frame(path: Path) -> pl.DataFrame:
    return pl.read_parquet(path) if path.is_file() else pl.DataFrame()


def rebuild(folder: Path, *, without: Collection[str] = ()) -> Path:
    """Writes the pages of a report again; returns the path of the first.

    Args:
      folder: the report's directory; the tables in it are read, none is written.
      without: folders of experiments that are passed over.

    Raises:
      ValueError: there is no such directory, or nothing in it that a report is made of.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no directory {folder}; `lowprec compare --out` makes reports")
    results, sections = read_results(folder), experiments(folder, without)
    if results is None and not any(sections.values()):
        raise ValueError(
            f"{folder} has nothing to report: neither a comparison's manifest.json, nor tables of "
            f"an experiment, nor a study's store (.sqlite)"
        )
    return write_site(results, folder, sections)
