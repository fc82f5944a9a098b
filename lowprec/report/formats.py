"""The results of experiments/formats.py as files: tables, a manifest and figures in a folder."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import stored
from lowprec.report.results import frames_html
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
SCRIPT = "experiments/formats.py"


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
        frames = {name: stored.frame(rows[name], row) for name, row in ROWS.items()}
        return cls(manifest=manifest, **frames)

    def frames(self) -> dict[str, pl.DataFrame]:
        """The frames by name."""
        return {name: getattr(self, name) for name in ROWS}

    def _repr_html_(self) -> str:
        command = str(self.manifest.get("command", ""))
        return frames_html("Formats and scale rules", self.frames(), command)


def write_formats(results: FormatResults, out: Path) -> None:
    """Writes every table as `<name>.csv`, and `manifest.json`, into the directory `out`."""
    for name, frame in results.frames().items():
        stored.write_frame(frame, out / f"{name}.csv")
    stored.write_manifest(results.manifest, out)


def read_formats(folder: Path) -> FormatResults | None:
    """What `write_formats` wrote; None where the folder has no manifest.

    Raises:
      ValueError: a table is missing, or lacks a column or a type of its rows.
    """
    frames = stored.read_tables(folder, ROWS, SCRIPT)
    if frames is None:
        return None
    return FormatResults(manifest=stored.read_manifest(folder), **frames)
