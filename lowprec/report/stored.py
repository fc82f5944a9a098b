"""Rows of an experiment as CSV files in a folder beside the page, with their manifest."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

MANIFEST = "manifest.json"
_KINDS: dict[Any, pl.DataType] = {
    str: pl.String(),
    int: pl.Int64(),
    float: pl.Float64(),
    bool: pl.Boolean(),
}


def schema(row: type) -> dict[str, pl.DataType]:
    """The columns of a table whose rows are of a dataclass, and their types.

    Example:
      >>> from lowprec.study.rows import TimingRow
      >>> schema(TimingRow)
      {'step': String, 'seconds': Float64}
    """
    return {field.name: _KINDS[_plain(field.type)] for field in dataclasses.fields(row)}


def _plain(kind: Any) -> Any:
    """The type of a column's values: of `int | None` int, of words to choose from str."""
    if typing.get_origin(kind) is typing.Literal:
        return str
    if isinstance(kind, types.UnionType):
        return next(x for x in typing.get_args(kind) if x is not types.NoneType)
    return kind


def frame(rows: Sequence[Any], row: type) -> pl.DataFrame:
    """Rows of a dataclass as a table, which has its columns also where there are none."""
    return pl.DataFrame([dataclasses.asdict(x) for x in rows], schema(row))


def write_table(rows: Sequence[Any], row: type, path: Path) -> pl.DataFrame:
    """Writes rows as CSV, in one step: what is read meanwhile is the whole file that was."""
    table = frame(rows, row)
    write_frame(table, path)
    return table


def write_frame(table: pl.DataFrame, path: Path) -> None:
    """Writes a table as CSV, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    table.write_csv(partial)
    partial.replace(path)


def read_table(path: Path, row: type, script: str) -> pl.DataFrame | None:
    """The table that `write_table` wrote; None where there is no such file.

    Raises:
      ValueError: it lacks a column, or has another type in it; `script` writes it anew.
    """
    return read_frame(path, schema(row), script)


def read_frame(path: Path, columns: Mapping[str, Any], script: str) -> pl.DataFrame | None:
    """A table of which these columns are wanted, with their types; None where there is no file.

    Raises:
      ValueError: it lacks a column, or has another type in it; `script` writes it anew.
    """
    if not path.is_file():
        return None
    again = f"{script} writes it anew"
    try:
        table = pl.read_csv(path, schema_overrides=dict(columns))
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"cannot read {path}: {error}; {again}") from error
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; {again}")
    return table.select(list(columns))


def read_tables(
    folder: Path, rows: Mapping[str, type], script: str
) -> dict[str, pl.DataFrame] | None:
    """Several tables by name, `<name>.csv` each; None where the folder has no manifest.

    Raises:
      ValueError: one is missing, or lacks a column or a type of its rows.
    """
    if not (folder / MANIFEST).is_file():
        return None
    found = {}
    for name, row in rows.items():
        path = folder / f"{name}.csv"
        table = read_table(path, row, script)
        if table is None:
            raise ValueError(f"cannot read {path}: there is no such file; {script} writes it anew")
        found[name] = table
    return found


def read_rows(path: Path, row: type, script: str) -> list[Any]:
    """The rows of `read_table`; none where there is no such file."""
    table = read_table(path, row, script)
    return [] if table is None else [row(**found) for found in table.iter_rows(named=True)]


def write_manifest(record: Mapping[str, Any], folder: Path) -> None:
    """Writes `manifest.json` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, empty where it has none."""
    path = folder / MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
