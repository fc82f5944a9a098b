"""`lowprec study` as a person meets it: run, killed, out of room, looked at, exported."""

import csv
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from lowprec.cli import run
from lowprec.report.study import COLUMNS
from lowprec.study.design import read_study
from lowprec.study.store import Store

TEXT = """
name = "two recipes"
[[grid]]
recipe = ["bf16", "mxfp8"]
shape = [4, 32, 4]
operands = ["gaussian", "laplace"]
seed = { count = 3 }
"""
COMMAND = "import sys; from lowprec.cli import run; sys.exit(run(sys.argv[1:]))"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study in the directory that the command is run in."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "two.toml"
    path.write_text(TEXT)
    return path


def count(store: Path) -> int:
    """How many points are stored, whoever writes meanwhile."""
    if not store.is_file():
        return 0
    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    try:
        return connection.execute("SELECT count(*) FROM points").fetchone()[0]
    except sqlite3.OperationalError:
        return 0  # not made yet
    finally:
        connection.close()


def export(study: Path, store: Path) -> bytes:
    out = study.with_name(f"{store.stem}.csv")
    assert run(["study", "export", str(study), "--store", str(store), "--out", str(out)]) == 0
    return out.read_bytes()


def test_a_study_is_run_looked_at_and_exported(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["study", "run", "two.toml"]) == 0
    said = capsys.readouterr()
    assert "12 of 12 points in two.sqlite" in said.out
    assert said.err.splitlines()[0] == "0 of 12 points"
    assert said.err.splitlines()[-1].startswith("12 of 12 points, ") and "a second" in said.err
    assert run(["study", "run", "two.toml"]) == 0
    assert "a second" not in capsys.readouterr().err  # nothing was left to do
    assert run(["study", "status", "two.toml"]) == 0
    assert "two recipes: 12 of 12 points in two.sqlite, 0 missing" in capsys.readouterr().out
    for out in ("points.csv", "points.parquet"):
        assert run(["study", "export", "two.toml", "--out", out]) == 0
    with Path("points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    keys = [row["key"] for row in rows]
    assert keys == sorted(read_study(study).points)
    frame = pl.read_parquet("points.parquet")
    assert frame["key"].to_list() == keys and frame.schema == pl.Schema(COLUMNS)
    assert frame["sqnr_db"].to_list() == [float(row["sqnr_db"]) for row in rows]
    assert run(["study", "report", "two.toml", "--out", "page"]) == 0
    means = pl.read_csv(tmp_path / "page" / "study" / "means.csv")
    assert means["points"].to_list() == [3] * 4
    row = means.filter(pl.col("recipe") == "mxfp8", pl.col("a") == "laplace").row(0, named=True)
    kept = frame.filter(pl.col("recipe") == "mxfp8", pl.col("a") == "laplace")["sqnr_db"]
    some = kept.to_list()
    assert row["sqnr_db"] == pytest.approx(statistics.mean(some))
    # Student's t with two degrees of freedom.
    half = 4.3027 * statistics.stdev(some) / 3**0.5
    assert row["high"] - row["sqnr_db"] == pytest.approx(half, rel=1e-4)
    page = (tmp_path / "page" / "index.html").read_text()
    assert "A study: two recipes" in page and "<svg" in page and "recipe:mxfp8" in page


def test_points_of_another_study_stay_apart(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = study.with_name("one.toml")
    other.write_text(TEXT.replace('["bf16", "mxfp8"]', '"bf16"').replace("count = 3", "count = 2"))
    store = ["--store", "both.sqlite"]
    assert run(["study", "run", "one.toml", *store]) == 0
    capsys.readouterr()
    # The first study's points are among those of the second.
    assert run(["study", "run", "two.toml", *store]) == 0
    assert capsys.readouterr().err.splitlines()[0] == "4 of 12 points"
    assert run(["study", "status", "one.toml", *store]) == 0
    said = capsys.readouterr().out
    assert "4 of 4 points" in said and "8 points of other studies or other versions" in said
    assert run(["study", "export", "one.toml", *store, "--out", "all.csv", "--all"]) == 0
    assert "12 points: all.csv" in capsys.readouterr().out


def test_failures_are_counted_and_named(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = "lowprec.study.point_rows.ordered_product"
    with monkeypatch.context() as patched:
        patched.setattr(real, lambda a, b: 1 / 0)
        assert run(["study", "run", "two.toml"]) == 1
    said = capsys.readouterr()
    assert "0 of 12 points in two.sqlite, 12 failed" in said.out
    assert "lowprec study run two.toml --retry-failed tries them again" in said.err
    assert run(["study", "status", "two.toml"]) == 0
    assert "failed, 12 times: ZeroDivisionError: division by zero" in capsys.readouterr().out
    assert run(["study", "run", "two.toml"]) == 1
    assert run(["study", "run", "two.toml", "--retry-failed"]) == 0
    assert "12 of 12 points in two.sqlite\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "absent.toml"], "No such file"),
        (["run", "two.toml", "--store", "absent/s.sqlite"], "is not a directory"),
        (
            ["run", "two.toml", "--workers", "2", "--dask", "tcp://x:1"],
            "either --workers or --dask",
        ),
        (["run", "two.toml", "--workers", "0"], "workers = 0; at least 1"),
        (["status", "two.toml"], "there is no store two.sqlite"),
        (["export", "two.toml", "--out", "points.txt"], "must end in .csv or .parquet"),
    ],
)
def test_refusals_are_one_line(
    study: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["study", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lowprec: ") and said in error and error.count("\n") == 1


def test_a_second_run_on_a_store_says_who_has_it(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.writing("two.sqlite"):
        assert run(["study", "run", "two.toml"]) == 1
        assert f"is being written by process {os.getpid()}" in capsys.readouterr().err
        assert run(["study", "status", "two.toml"]) == 0
    assert "0 of 12 points" in capsys.readouterr().out


def started(study: Path, store: Path, before: str = "") -> subprocess.Popen[str]:
    """A run in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", before + COMMAND, "study", "run", str(study), "--store", str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_run_killed_twice_goes_on_to_the_same_bytes(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(TEXT.replace("count = 3", "count = 150"))
    points, store, whole = 600, Path("killed.sqlite"), Path("whole.sqlite")
    stored = 0
    for _ in range(2):
        process = started(study, store)
        while count(store) < stored + 60 and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert stored + 60 <= count(store) < points
        stored = count(store)
    process = started(study, store)
    assert f"{points} of {points} points" in process.communicate()[0] and not process.returncode
    assert count(store) == points
    assert run(["study", "run", str(study), "--store", str(whole)]) == 0
    assert export(study, store) == export(study, whole)
    with sqlite3.connect(store) as connection:
        # None was run a second time.
        assert connection.execute("SELECT max(attempts) FROM points").fetchone() == (1,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


@pytest.mark.slow
@pytest.mark.thorough
def test_a_full_disk_keeps_what_was_stored(study: Path) -> None:
    study.write_text(TEXT.replace("count = 3", "count = 50"))
    store = Path("full.sqlite")
    # Beyond this a write fails, as on a full disk; Python ignores the signal.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); "
    process = started(study, store, limit)
    _, error = process.communicate()
    assert process.returncode == 1
    last = error.splitlines()[-1]
    assert last.startswith("lowprec: a point could not be stored in") and "make room" in last
    stored = count(store)
    assert 0 < stored < 200
    process = started(study, store)
    assert "200 of 200 points" in process.communicate()[0] and not process.returncode
    assert count(store) == 200
    with Store.reading(store) as opened:
        assert {row["status"] for row in opened.rows()} == {"done"}
