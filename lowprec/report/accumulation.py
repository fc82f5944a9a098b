"""The results of experiments/accumulation.py as files: tables and a manifest in a folder."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import stored
from lowprec.report.results import frames_html
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
SCRIPT = "experiments/accumulation.py"


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
        frames = {name: stored.frame(rows[name], row) for name, row in ROWS.items()}
        return cls(frames=frames, manifest=manifest)

    def _repr_html_(self) -> str:
        return frames_html("Accumulation", self.frames, str(self.manifest.get("command", "")))


def write_accumulation(results: AccumulationResults, out: Path) -> None:
    """Writes every table as `<name>.csv`, and `manifest.json`, into the directory `out`."""
    for name, frame in results.frames.items():
        stored.write_frame(frame, out / f"{name}.csv")
    stored.write_manifest(results.manifest, out)


def read_accumulation(folder: Path) -> AccumulationResults | None:
    """What `write_accumulation` wrote; None where the folder has no manifest.

    Raises:
      ValueError: a table is missing, or lacks a column or a type of its rows.
    """
    frames = stored.read_tables(folder, ROWS, SCRIPT)
    if frames is None:
        return None
    return AccumulationResults(frames=frames, manifest=stored.read_manifest(folder))
