"""A run of a study: every point once, failures kept apart, and any order the same rows."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lowprec.study.design import read_study
from lowprec.study.point import Point
from lowprec.study.point_rows import Batch, Record
from lowprec.study.runner import Progress, measure_here, progress, run_study
from lowprec.study.store import Store

SILENT = lambda stored, points, failed: None


@pytest.fixture
def points(tmp_path: Path) -> dict[str, Point]:
    path = tmp_path / "study.toml"
    path.write_text(
        """
        [[grid]]
        recipe = ["bf16", "mxfp8"]
        shape = [4, 32, 4]
        operands = ["gaussian", "laplace"]
        seed = { count = 2 }
        """
    )
    return dict(read_study(path).points)


def rows(path: Path) -> list[dict]:
    with Store.reading(path) as store:
        return list(store.rows())


def test_every_point_is_run_once(points: dict[str, Point], tmp_path: Path) -> None:
    path, told = tmp_path / "s.sqlite", []
    with Store.writing(path) as store:
        found = run_study(points, store, lambda *x: told.append(x))
        assert found == Progress(points=8, done=8, failed=0) and found.missing == 0
        assert told == [(i, 8, 0) for i in range(9)]

        def none(waiting: Sequence[Batch]) -> Iterator[Record]:
            assert not waiting
            yield from ()

        assert run_study(points, store, SILENT, measure=none) == found
    assert [row["key"] for row in rows(path)] == sorted(points)


def test_an_interrupted_run_goes_on_to_the_same_rows(
    points: dict[str, Point], tmp_path: Path
) -> None:
    def stopping(waiting: Sequence[Batch]) -> Iterator[Record]:
        for count, record in enumerate(measure_here(waiting[::-1])):
            if count == 3:
                raise KeyboardInterrupt
            yield record

    path, whole = tmp_path / "s.sqlite", tmp_path / "whole.sqlite"
    for expected in (3, 6):
        with Store.writing(path) as store, pytest.raises(KeyboardInterrupt):
            run_study(points, store, SILENT, measure=stopping)
        assert len(rows(path)) == expected
    with Store.writing(path) as store:
        run_study(points, store, SILENT)
    with Store.writing(whole) as store:
        run_study(points, store, SILENT)
    assert rows(path) == rows(whole) and len(rows(path)) == 8


def test_points_that_failed_are_stored_and_retried_when_asked(
    points: dict[str, Point], tmp_path: Path
) -> None:
    bad = set(sorted(points)[:3])
    runs: list[int] = []

    def failing(waiting: Sequence[Batch]) -> Iterator[Record]:
        runs.append(sum(len(batch.points) for batch in waiting))
        for record in measure_here(waiting):
            if record.key in bad:
                record = dataclasses.replace(record, status="failed", row={}, error="a reason")
            yield record

    with Store.writing(tmp_path / "s.sqlite") as store:
        assert run_study(points, store, SILENT, measure=failing).failed == 3
        assert run_study(points, store, SILENT, measure=failing).failed == 3
        assert {x["key"] for x in store.rows() if x["error"] == "a reason"} == bad
        bad.clear()
        found = run_study(points, store, SILENT, measure=failing, retry_failed=True)
        assert found == progress(points, store) == Progress(points=8, done=8, failed=0)
    assert runs == [8, 0, 3]
