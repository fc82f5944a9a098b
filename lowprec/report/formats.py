"""The results of experiments/formats.py as files: tables, a manifest and figures in a folder."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.study.format_rows import (
    BoundRow,
    CrestRow,
    CrossingRow,
    EarlierRow,
    GaussianRow,
    PublishedRow,
    RoundingRow,
    RuleRow,
)

ROWS: dict[str, type] = {
    "gaussian": GaussianRow,
    "published": PublishedRow,
    "earlier": EarlierRow,
    "rules": RuleRow,
    "rounding": RoundingRow,
    "crest": CrestRow,
    "crossings": CrossingRow,
    "bound": BoundRow,
}
"""Every table by name, with the rows it holds."""
MANIFEST = "manifest.json"
_KINDS: dict[Any, pl.DataType] = {
    str: pl.String(),
    int: pl.Int64(),
    float: pl.Float64(),
    bool: pl.Boolean(),
    float | None: pl.Float64(),
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FormatResults:
    """The tables of a comparison of formats, one frame each, and its manifest.

    The columns are the fields of the rows in `lowprec.study.format_rows`.
    """

    gaussian: pl.DataFrame
    published: pl.DataFrame
    earlier: pl.DataFrame
    rules: pl.DataFrame
    rounding: pl.DataFrame
    crest: pl.DataFrame
    crossings: pl.DataFrame
    bound: pl.DataFrame
    manifest: dict[str, Any]

    @classmethod
    def from_rows(cls, *, manifest: dict[str, Any], **rows: Sequence[Any]) -> "FormatResults":
        """The frames of rows, by the names of the tables."""
        frames = {
            name: pl.DataFrame([dataclasses.asdict(row) for row in rows[name]], schema(name))
            for name in ROWS
        }
        return cls(manifest=manifest, **frames)

    def frames(self) -> dict[str, pl.DataFrame]:
        """The frames by name."""
        return {name: getattr(self, name) for name in ROWS}


def schema(name: str) -> dict[str, pl.DataType]:
    """The columns of a table and their types."""
    return {field.name: _KINDS[field.type] for field in dataclasses.fields(ROWS[name])}


def write_formats(results: FormatResults, out: Path) -> None:
    """Writes every table as `<name>.csv`, and `manifest.json`, into the directory `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in results.frames().items():
        frame.write_csv(out / f"{name}.csv")
    text = json.dumps(results.manifest, indent=2, sort_keys=True, ensure_ascii=False)
    (out / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_formats(folder: Path) -> FormatResults | None:
    """What `write_formats` wrote; None where the folder has no manifest.

    Raises:
      ValueError: a table is missing, or lacks a column or a type of its rows.
    """
    if not (folder / MANIFEST).is_file():
        return None
    frames = {}
    for name in ROWS:
        path = folder / f"{name}.csv"
        try:
            frame = pl.read_csv(path, schema_overrides=schema(name))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ValueError(
                f"cannot read {path}: {error}; experiments/formats.py writes it anew"
            ) from error
        missing = [column for column in schema(name) if column not in frame.columns]
        if missing:
            raise ValueError(
                f"{path} lacks the columns {', '.join(missing)}; experiments/formats.py writes it "
                f"anew"
            )
        frames[name] = frame
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return FormatResults(manifest=manifest, **frames)
