"""A study on workers: the same rows as here, whichever of them is lost on the way."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lowprec.study.cluster import cluster, measure_on
from lowprec.study.design import read_study
from lowprec.study.point import Point
from lowprec.study.point_rows import Batch, Record, batches, measure_batch
from lowprec.study.runner import Progress, run_study
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
        seed = { count = 40 }
        """
    )
    return dict(read_study(path).points)


@pytest.fixture
def client() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="Dask is an extra")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as local, distributed.Client(local) as found:
        yield found


def lethal(batch: Batch) -> list[Record]:
    """Ends the worker at a point that the environment names."""
    if any(key == os.environ.get("LETHAL_POINT") for key, _ in batch.points):
        os._exit(1)
    return measure_batch(batch)


def name_lethal(key: str) -> None:
    os.environ["LETHAL_POINT"] = key


@pytest.mark.slow
def test_workers_that_are_killed_lose_and_double_nothing(
    client: Any, points: dict[str, Point], tmp_path: Path
) -> None:
    given: list[str] = []

    def killing(waiting: Any) -> Iterator[Record]:
        # Batches of a few, so that the one that is killed has some under way.
        small = batches([x for batch in waiting for x in batch.points], 4)
        for record in measure_on(client, small):
            given.append(record.key)
            if len(given) in (40, 100):
                # First one, then all at once.
                workers = list(client.run(os.getpid).values())
                for process in workers[: 1 if len(given) == 40 else None]:
                    os.kill(process, signal.SIGKILL)
            yield record

    with Store.writing(tmp_path / "here.sqlite") as store:
        whole = run_study(points, store, SILENT)
        here = list(store.rows())
    with Store.writing(tmp_path / "there.sqlite") as store:
        assert run_study(points, store, SILENT, measure=killing) == whole
        assert list(store.rows()) == here
    assert whole == Progress(points=160, done=160, failed=0)
    assert sorted(given) == sorted(points)


@pytest.mark.slow
@pytest.mark.thorough
def test_a_point_that_ends_every_worker_fails_alone(client: Any, points: dict[str, Point]) -> None:
    some = list(points.items())[:48]
    key = some[5][0]
    client.register_worker_callbacks(lambda: name_lethal(key))
    client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
    found = list(measure_on(client, batches(some, 8), lethal))
    assert sorted(x.key for x in found) == sorted(key for key, _ in some)
    assert [x.key for x in found if x.status == "failed"] == [key]
    assert all("every worker that ran this point was lost" in x.error for x in found if x.error)


def test_workers_or_a_scheduler_are_named() -> None:
    for given in ({}, {"workers": 1, "address": "tcp://x"}):
        with pytest.raises(ValueError, match="either a number of workers or the address"):
            cluster(**given).__enter__()
    with pytest.raises(ValueError, match="workers = 0; at least 1"):
        cluster(workers=0).__enter__()


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("lowprec.study.cluster.importlib.import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'lowprec\[cluster\]'"):
        cluster(workers=1).__enter__()
