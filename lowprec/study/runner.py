"""Runs what a study lacks: every point once, stored as soon as it is done."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

from lowprec.study.point import Point
from lowprec.study.point_rows import Batch, Record, batches, measure_points
from lowprec.study.store import Store

BATCH = 32
"""Points that go to a worker together, at most: what a lost worker loses."""
Measure = Callable[[Sequence[Batch]], Iterator[Record]]
"""Gives the records of batches, in any order; raises only where the study cannot go on."""
Tell = Callable[[int, int, int], None]
"""Is told how many points are stored, of how many, and how many of them failed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How much of a study a store holds.

    Attributes:
      points: how many the study has.
      done: how many are stored with a result.
      failed: how many are stored with an error.
    """

    points: int
    done: int
    failed: int

    @property
    def missing(self) -> int:
        """How many are not stored."""
        return self.points - self.done - self.failed


def progress(points: Mapping[str, Point], store: Store) -> Progress:
    """What a store holds of a study."""
    states = list(store.states(points).values())
    return Progress(points=len(points), done=states.count("done"), failed=states.count("failed"))


def measure_here(waiting: Sequence[Batch]) -> Iterator[Record]:
    """The records of batches, one after the other in this process."""
    for batch in waiting:
        yield from measure_points(batch)


def run_study(
    points: Mapping[str, Point],
    store: Store,
    tell: Tell,
    *,
    measure: Measure = measure_here,
    retry_failed: bool = False,
) -> Progress:
    """Runs the points that the store lacks, those that share programs together.

    Args:
      points: by key, as `read_study` gives them.
      store: open for writing.
      tell: is called at the beginning and after every point.
      measure: where points are run.
      retry_failed: also run those that failed before.

    Returns:
      What the store holds in the end. Points that failed are stored with their error.

    Raises:
      OSError: a point could not be stored; those before it are.

    Example:
      >>> import pathlib, tempfile
      >>> from lowprec.study.design import read_study
      >>> grid = '[[grid]]\\nrecipe = ["bf16", "mxfp8"]\\nshape = [4, 32, 4]\\n'
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = pathlib.Path(folder, "study.toml")
      ...     _ = file.write_text(grid)
      ...     with Store.writing(file.with_suffix(".sqlite")) as store:
      ...         run_study(read_study(file).points, store, lambda done, of, failed: None)
      Progress(points=2, done=2, failed=0)
    """
    found = progress(points, store)
    states = store.states(points)
    again = ("done",) if retry_failed else ("done", "failed")
    waiting = [(key, point) for key, point in points.items() if states.get(key) not in again]
    done, failed = found.done, 0 if retry_failed else found.failed
    tell(done + failed, len(points), failed)
    for record in measure(batches(waiting, BATCH)):
        point = points[record.key]
        store.add(record, {"spec": point.spec, "inputs": point.inputs, "code": point.code})
        done, failed = done + (record.status == "done"), failed + (record.status == "failed")
        tell(done + failed, len(points), failed)
    return progress(points, store)
