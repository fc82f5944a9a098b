"""Finished products of a comparison of recipes: kept as they come, with the time they took."""

import csv
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lowprec.gemm.recipe import ROLES, Recipe
from lowprec.study.gemm_recipes import UnitRow
from lowprec.study.gemm_recipes_operands import Group

_PACKAGE = Path(__file__).parents[1]
_SOURCES = (
    "metrics.py",
    "numerics/*.py",
    "scaling/*.py",
    "study/advise_values.py",
    "study/gemm_recipes.py",
    "study/gemm_recipes_operands.py",
)
"""What decides a product's figures, beside the operands of recipes and the files that are read."""


def fingerprint(recipes: Sequence[Recipe], files: Iterable[Path]) -> str:
    """A hash of all that products depend on: parameters, operands of recipes, and code.

    Args:
      recipes: every field of their operands counts, blocks and formats included.
      files: whose bytes count too.

    Example:
      >>> from lowprec.gemm.recipe import get_recipe
      >>> one, two = (fingerprint([get_recipe(x)], []) for x in ("mxfp4", "nvfp4"))
      >>> one != two, len(one)
      (True, 64)
    """
    # Not the values' repr: that gives a long table of levels by its length.
    pairs = [(x.name, *(dataclasses.asdict(getattr(x, role)) for role in ROLES)) for x in recipes]
    found = hashlib.sha256(repr(pairs).encode())
    code = [path for some in _SOURCES for path in sorted(_PACKAGE.glob(some))]
    for path in (*files, *code):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def read_units(path: Path) -> list[UnitRow]:
    """The rows that `Units` has written; none where there is no file. A line cut off is dropped."""
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    names = [field.name for field in dataclasses.fields(UnitRow)]
    kinds: dict[str, Any] = {"k": int, **dict.fromkeys(names[5:], float)}
    return [
        UnitRow(**{name: kinds.get(name, str)(line[name]) for name in names})
        for line in csv.DictReader(whole.splitlines())
    ]


class Units:
    """A table that grows as rows are finished, so that what was measured is kept, and its time.

    Attributes:
      rows: of earlier runs and of this one.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._times = path, path.with_suffix(".json")
        self.rows = read_units(path)
        self._before = {"seconds": 0.0, "processor_seconds": 0.0}
        if self._times.is_file():
            self._before = json.loads(self._times.read_text(encoding="utf-8"))
        self._start = time.perf_counter()
        if path.is_file():
            path.unlink()
            self._write(self.rows)

    def done(self, group: Group, units: int) -> set[str]:
        """The ways that a group has all its rows of."""
        counts: dict[str, int] = {}
        for row in self.rows:
            if (row.family, row.role) == (group.family, group.role) and group.k in (0, row.k):
                counts[row.pair] = counts.get(row.pair, 0) + 1
        return {name for name, count in counts.items() if count >= units}

    def add(self, rows: Sequence[UnitRow]) -> None:
        """Writes rows behind the others, and the time until now."""
        self._write(rows)
        self.rows += rows
        partial = self._times.with_suffix(".partial")
        partial.write_text(json.dumps(self.spent()), encoding="utf-8")
        partial.replace(self._times)

    def spent(self) -> dict[str, float]:
        """`seconds` and `processor_seconds` of all rows: of this process and of those before."""
        own = {
            "seconds": time.perf_counter() - self._start,
            "processor_seconds": time.process_time(),
        }
        return {name: self._before[name] + value for name, value in own.items()}

    def discard(self) -> None:
        """Deletes the table and its times."""
        self._path.unlink(missing_ok=True)
        self._times.unlink(missing_ok=True)

    def _write(self, rows: Sequence[UnitRow]) -> None:
        new = not self._path.is_file()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow([field.name for field in dataclasses.fields(UnitRow)])
            writer.writerows(dataclasses.astuple(row) for row in rows)
