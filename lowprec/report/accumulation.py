"""The results of experiments/accumulation.py as files: tables and a manifest in a folder."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.study.accumulation_rows import (
    ErrorRow,
    FrontRow,
    PromotionRow,
    PublishedRow,
    SwampingRow,
    SyntheticRow,
)

ROWS: dict[str, type] = {
    "errors": ErrorRow,
    "promotion": PromotionRow,
    "front": FrontRow,
    "published": PublishedRow,
    "swamping": SwampingRow,
    "synthetic": SyntheticRow,
}
"""Every table by name, with the rows it holds."""
MANIFEST = "manifest.json"
_KINDS: dict[Any, pl.DataType] = {
    str: pl.String(),
    int: pl.Int64(),
    float: pl.Float64(),
    bool: pl.Boolean(),
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AccumulationResults:
    """The tables of a study of accumulation by name, one frame each, and its manifest.

    The columns are the fields of the rows in `lowprec.study.accumulation_rows`.
    """

    frames: Mapping[str, pl.DataFrame]
    manifest: dict[str, Any]

    @classmethod
    def from_rows(cls, manifest: dict[str, Any], **rows: Sequence[Any]) -> "AccumulationResults":
        """The frames of rows, by the names of the tables."""
        frames = {
            name: pl.DataFrame([dataclasses.asdict(row) for row in rows[name]], schema(name))
            for name in ROWS
        }
        return cls(frames=frames, manifest=manifest)


def schema(name: str) -> dict[str, pl.DataType]:
    """The columns of a table and their types."""
    return {field.name: _KINDS[field.type] for field in dataclasses.fields(ROWS[name])}


def write_accumulation(results: AccumulationResults, out: Path) -> None:
    """Writes every table as `<name>.csv`, and `manifest.json`, into the directory `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in results.frames.items():
        frame.write_csv(out / f"{name}.csv")
    text = json.dumps(results.manifest, indent=2, sort_keys=True, ensure_ascii=False)
    (out / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_accumulation(folder: Path) -> AccumulationResults | None:
    """What `write_accumulation` wrote; None where the folder has no manifest.

    Raises:
      ValueError: a table is missing, or lacks a column or a type of its rows.
    """
    if not (folder / MANIFEST).is_file():
        return None
    again = "experiments/accumulation.py writes it anew"
    frames = {}
    for name in ROWS:
        path = folder / f"{name}.csv"
        try:
            frame = pl.read_csv(path, schema_overrides=schema(name))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ValueError(f"cannot read {path}: {error}; {again}") from error
        missing = [column for column in schema(name) if column not in frame.columns]
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}; {again}")
        frames[name] = frame
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return AccumulationResults(frames=frames, manifest=manifest)
