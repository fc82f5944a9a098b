"""A study on many processes or machines, by Dask: workers return records, this process stores them.

Dask starts the batch of a worker that was lost on another one. Of batches that lose worker after
worker the points are run one by one at the end, with nothing beside them that could be blamed for
what they do, so that only the one that does it fails. No batch is bound to a
worker, not even loosely: where all workers were lost at once, as jobs whose time is up are, Dask
let such a one wait for the address that was gone.
"""

import contextlib
import importlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lowprec.study.point_rows import Batch, Record, measure_batch
from lowprec.study.runner import Measure

AHEAD = 4
"""Batches that are handed out for each worker, so that none waits; the rest wait here."""
LEAST = 64
"""Batches that are handed out at least, so that a cluster that grows with its work does."""


@contextlib.contextmanager
def cluster(*, workers: int | None = None, address: str | None = None) -> Iterator[Measure]:
    """Workers for `run_study`: so many processes of this machine, or those of a scheduler.

    Raises:
      ImportError: the extra `cluster` is not installed.
      ValueError: fewer than one worker, or both or neither of the two.
      OSError: no scheduler answers at the address.
    """
    if (workers is None) == (address is None):
        raise ValueError("give either a number of workers or the address of a scheduler")
    if workers is not None and workers < 1:
        raise ValueError(f"workers = {workers}; at least 1")
    distributed = _distributed()
    with contextlib.ExitStack() as stack:
        target: Any = address
        if workers is not None:
            options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
            local = distributed.LocalCluster(silence_logs=logging.ERROR, **options)
            target = stack.enter_context(local)
        client = stack.enter_context(distributed.Client(target))
        yield lambda waiting: measure_on(client, waiting)


def _distributed() -> Any:
    # Half a second to import, and only those who ask for workers need it.
    try:
        return importlib.import_module("distributed")
    except ImportError as error:
        raise ImportError("workers need a package: pip install 'lowprec[cluster]'") from error


def measure_on(
    client: Any,
    waiting: Sequence[Batch],
    measure: Callable[[Batch], list[Record]] = measure_batch,
) -> Iterator[Record]:
    """The records of batches as workers return them.

    Args:
      client: a `distributed.Client`.
      waiting: in the order in which they are handed out.
      measure: what a worker does with one.
    """
    distributed = _distributed()
    queue, suspects = deque(waiting), deque[Batch]()
    suspected: set[str] = set()
    running: dict[Any, Batch] = {}
    finished = distributed.as_completed()

    def submit(batch: Batch) -> None:
        future = client.submit(measure, batch, pure=False)
        running[future] = batch
        finished.add(future)

    def hand_out() -> None:
        most = max(LEAST, AHEAD * sum(client.nthreads().values()))
        while queue and len(running) < most:
            submit(queue.popleft())
        if suspects and not running:
            submit(suspects.popleft())

    hand_out()
    for future in finished:
        batch = running.pop(future)
        known = batch.points[0][0] in suspected
        try:
            records = future.result()
        except distributed.KilledWorker as error:
            records = [_lost(batch, error)] if known else []
            for point in () if known else batch.points:
                suspects.append(Batch(points=(point,), code=batch.code))
                suspected.add(point[0])
        except distributed.CancelledError:
            # The scheduler forgot it.
            records = []
            (suspects if known else queue).append(batch)
        hand_out()
        yield from records


def _lost(batch: Batch, error: Exception) -> Record:
    text = f"every worker that ran this point was lost: {' '.join(str(error).split())}"
    return Record(key=batch.points[0][0], status="failed", error=text)
