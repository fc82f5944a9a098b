"""Rows of an experiment in a folder: there and back, columns that are missing, empty tables."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

import polars as pl
import pytest

from lowprec.report import stored


@dataclasses.dataclass(frozen=True)
class Measured:
    name: str
    seed: int | None
    sample: Literal["one", "two"]
    value: float
    right: bool


ROWS = [Measured("a, b", None, "one", 0.1, True), Measured("c", 3, "two", math.inf, False)]


def test_rows_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.csv"
    assert stored.read_table(path, Measured, "x.py") is None
    assert stored.read_rows(path, Measured, "x.py") == []
    stored.write_table(ROWS, Measured, path)
    assert stored.read_rows(path, Measured, "x.py") == ROWS
    assert [x.name for x in path.parent.iterdir()] == ["rows.csv"]


def test_empty_tables_have_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    stored.write_table([], Measured, path)
    found = stored.read_table(path, Measured, "x.py")
    assert found is not None and found.schema == pl.Schema(stored.schema(Measured))


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("name,seed,sample,value\na,1,one,0.5\n")
    with pytest.raises(ValueError, match=r"lacks the columns right; x\.py writes it anew"):
        stored.read_table(path, Measured, "x.py")
    path.write_text("name,seed,sample,value,right\na,1,one,much,true\n")
    with pytest.raises(ValueError, match=r"(?s)cannot read .*x\.py writes it anew"):
        stored.read_table(path, Measured, "x.py")


def test_a_folder_without_manifest_has_an_empty_one(tmp_path: Path) -> None:
    assert stored.read_manifest(tmp_path) == {}
    stored.write_manifest({"b": [1], "a": "é"}, tmp_path)
    assert stored.read_manifest(tmp_path) == {"a": "é", "b": [1]}
