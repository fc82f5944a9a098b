"""`lowprec report` as a person meets it: a report's directory, a study's store, and mistakes."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lowprec.cli import run
from lowprec.report import write_report
from lowprec.report.study import COLUMNS
from lowprec.study.point_rows import Record
from lowprec.study.store import Store
from tests.report import synthetic


def row(recipe: str, seed: int) -> tuple[Record, dict[str, Any]]:
    """A stored point, its numbers made up."""
    spec = {"recipe": recipe, "engine": "native", "role": "fprop", "scales": "recipe"}
    spec |= {"order": "sequential", "output": "float32", "a": "gaussian", "b": "gaussian"}
    spec |= {"m": 4, "k": 32, "n": 4, "seed": seed, "promote_every": None, "promotion": None}
    texts = dict.fromkeys((name for name, kind in COLUMNS.items() if kind == pl.String()), "x")
    reals = {name: 20.0 + seed for name, kind in COLUMNS.items() if kind == pl.Float64()}
    found = {name: x for name, x in (texts | reals).items() if name not in spec}
    for name in ("key", "status", "error", "code"):
        del found[name]
    record = Record(key=f"{recipe}{seed}", status="done", row=found)
    return record, {"spec": spec, "inputs": {}, "code": {"lowprec": "abc"}}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "two.sqlite"
    with Store.writing(path) as opened:
        for recipe in ("mxfp8", "nvfp4"):
            for seed in range(3):
                opened.add(*row(recipe, seed))
    return path


def test_a_report_is_built_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = write_report(synthetic.lone_tensor(), tmp_path / "out")
    before = page.read_bytes()
    page.write_text("stale")
    assert run(["report", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{page}\n" and page.read_bytes() == before


def test_a_store_becomes_a_report(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(store), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'index.html'}\n"
    page = (tmp_path / "out" / "studies.html").read_text()
    assert "A study: two" in page and "recipe:mxfp8" in page and "<svg" in page
    means = pl.read_csv(tmp_path / "out" / "study" / "means.csv")
    assert means["points"].to_list() == [3, 3] and means["sqnr_db"].to_list() == [21.0, 21.0]
    record = json.loads((tmp_path / "out" / "study" / "manifest.json").read_text())
    assert record["done"] == 6 and record["points_of_other_code"] == 0
    # The tables alone give the same pages, and so does a store within the directory.
    pages = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.html")}
    assert run(["report", str(tmp_path / "out")]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.html")} == pages
    within = tmp_path / "within"
    within.mkdir()
    shutil.copy(store, within)
    assert run(["report", str(within)]) == 0
    assert (within / "studies.html").is_file()


def test_mistakes_are_said_in_a_line(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert run(["report", *arguments]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    assert "there is no directory" in refused(str(tmp_path / "missing"))
    assert "is no store of a study" in refused(__file__, "--out", str(tmp_path / "out"))
    assert "goes with a store" in refused(str(tmp_path), "--out", str(tmp_path / "out"))
    assert "is not a directory" in refused(str(store), "--out", str(tmp_path / "a" / "b"))
    shutil.copy(store, tmp_path / "other.sqlite")
    assert "has several stores: other.sqlite, two.sqlite" in refused(str(tmp_path))
    empty = tmp_path / "empty.sqlite"
    Store.writing(empty).close()
    assert "has no point yet" in refused(str(empty), "--out", str(tmp_path / "out"))
