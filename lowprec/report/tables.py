"""The tables of a report as files: CSV and Parquet, the same bytes for the same data."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lowprec.report.results import Results


def write_tables(results: Results, out: Path) -> None:
    """Writes every frame as `<name>.csv` and `<name>.parquet`, and `manifest.json`, into `out`.

    Floats are written with the fewest digits that read back as the same float64; Inf and NaN as
    `inf` and `NaN`, a missing value as nothing. Measured times are in `timings` alone.
    """
    for name, frame in results.frames().items():
        frame.write_csv(out / f"{name}.csv")
        frame.write_parquet(out / f"{name}.parquet", compression="zstd")
    (out / "manifest.json").write_text(manifest_json(results), encoding="utf-8")


def manifest_json(results: Results) -> str:
    """The manifest and the command as JSON with sorted keys."""
    manifest = {"command": results.command, **results.manifest}
    return json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"`manifest` holds a {type(value).__name__}, which JSON does not: {value!r}")
