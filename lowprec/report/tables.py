"""The tables of a report as files: CSV and Parquet, the same bytes for the same data."""

import json
from collections.abc import Mapping
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


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested manifest as lines of dotted keys, sorted; members of lists by kind and name.

    Example:
      >>> flat({"b": 1, "a": {"c": [1, 2]}})
      [('a.c', '1, 2'), ('b', '1')]
    """
    if isinstance(value, list | tuple) and value and all(isinstance(x, Mapping) for x in value):
        value = {_member(item, index): item for index, item in enumerate(value)}
    if isinstance(value, Mapping):
        items = sorted(((str(key), item) for key, item in value.items()), key=lambda x: x[0])
        dot = f"{prefix}." if prefix else ""
        return [line for key, item in items for line in flat(item, f"{dot}{key}")]
    if isinstance(value, list | tuple):
        return [(prefix, ", ".join(map(str, value)))]
    return [(prefix, str(value))]


def _member(item: Mapping[str, Any], index: int) -> str:
    parts = [str(item[key]) for key in ("kind", "name") if key in item]
    return ".".join(parts) or str(index)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"`manifest` holds a {type(value).__name__}, which JSON does not: {value!r}")
