"""Does a study lose or double a point: killed, on workers that are killed, on a cluster?

Runs study_example.toml four times with `lowprec study run`, each into a store of its own:
undisturbed; killed twice with SIGKILL and finished; in local worker processes, of which one is
killed and then the run itself; and the same with workers of a Dask scheduler beside it, which
nobody starts again. The last two need the extra `cluster`. Compares the counts of the stores and
the bytes of their exports; writes `runs.csv` and `manifest.json` into reports/study_killed. Linux
only: local workers are looked for in /proc.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lowprec.report.stored import write_manifest, write_table
from lowprec.study.design import read_study
from lowprec.study.manifest import manifest

ROOT = Path(__file__).resolve().parent.parent
STUDY = Path(__file__).with_name("study_example.toml")
Victim = Literal["run", "worker"]
Kills = Sequence[tuple[float, Victim]]
"""What is killed, at which share of the points stored."""
Processes = list[subprocess.Popen[bytes]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run.

    Attributes:
      run: which.
      workers: how many processes besides the one that writes.
      points: how many the study has.
      killed: what was killed with SIGKILL, and how many points the store held just after.
      stored, done: how many points the finished store holds, and how many of them did not fail.
      most_attempts: how often a point was stored, at most.
      sound: whether SQLite finds the file sound.
      seconds: from the first start to the end.
      export_sha256: of the bytes of `lowprec study export` as CSV.
    """

    run: str
    workers: int
    points: int
    killed: str
    stored: int
    done: int
    most_attempts: int
    sound: bool
    seconds: int
    export_sha256: str


def main() -> None:
    """Runs the study four times; minutes, most of them compilation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "study_killed")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    study, workers = arguments.study, arguments.workers
    points = len(read_study(study).points)
    both: Kills = ((0.3, "worker"), (0.6, "run"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        here = lambda run, count, more, kills: one(folder, study, points, run, count, more, kills)
        rows = [
            here("undisturbed", 0, [], ()),
            here("killed", 0, [], ((0.3, "run"), (0.6, "run"))),
            here("workers", workers, ["--workers", str(workers)], both),
        ]
        with scheduler(folder, workers) as (address, processes):
            more = ["--dask", address]
            rows.append(one(folder, study, points, "dask", workers, more, both, processes))
    same = {(x.points, x.stored, x.done, x.most_attempts, x.sound, x.export_sha256) for x in rows}
    equal = same == {(points, points, points, 1, True, rows[0].export_sha256)}
    write_table(rows, Row, arguments.out / "runs.csv")
    record = manifest([], [study], {"workers": workers, "equal": equal}) | {
        "command": f"python {Path(__file__).resolve().relative_to(ROOT)}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - begin),
    }
    write_manifest(record, arguments.out)
    print("equal counts and equal exports" if equal else "THE RUNS DIFFER")
    sys.exit(0 if equal else 1)


def one(
    folder: Path,
    study: Path,
    points: int,
    name: str,
    workers: int,
    more: Sequence[str],
    kills: Kills,
    processes: Processes | None = None,
) -> Row:
    """One run, with what is killed on the way; `processes` are workers that are not its own."""
    store, killed = folder / f"{name}.sqlite", []
    command = ["run", str(study), "--store", str(store), *more]
    begin = time.perf_counter()
    run = start(command)
    for share, victim in kills:
        wait(run, lambda share=share: count(store) >= share * points)
        if victim == "worker":
            kill_worker(run.pid, processes)
        else:
            run.kill()
            run.wait()
            run = start(command)
        killed.append(f"{victim} at {count(store)}")
    if run.wait():
        raise SystemExit(f"{name}: the run ended with {run.returncode}")
    seconds = time.perf_counter() - begin
    out = store.with_suffix(".csv")
    exporting = ["export", str(study), "--store", str(store), "--out", str(out)]
    if start(exporting).wait():
        raise SystemExit(f"{name}: the export failed")
    with contextlib.closing(sqlite3.connect(store)) as connection:
        query = "SELECT count(*), sum(status = 'done'), max(attempts) FROM points"
        stored, done, attempts = connection.execute(query).fetchone()
        sound = connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    row = Row(
        run=name,
        workers=workers,
        points=points,
        killed=", ".join(killed),
        stored=stored,
        done=done,
        most_attempts=attempts,
        sound=sound,
        seconds=round(seconds),
        export_sha256=hashlib.sha256(out.read_bytes()).hexdigest(),
    )
    print(row, flush=True)
    return row


def start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """`lowprec study` with these arguments."""
    return subprocess.Popen([sys.executable, "-m", "lowprec", "study", *arguments], cwd=ROOT)


@contextlib.contextmanager
def scheduler(folder: Path, workers: int) -> Iterator[tuple[str, Processes]]:
    """A Dask scheduler and so many workers, none of which is started again: address, workers."""
    told = folder / "scheduler.json"
    central = dask("scheduler", told, "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    alone = ("--no-nanny", "--nthreads", "1", "--no-dashboard", "--local-directory", str(folder))
    processes: Processes = []
    try:
        wait(central, told.is_file)
        processes += [dask("worker", told, *alone) for _ in range(workers)]
        yield json.loads(told.read_text(encoding="utf-8"))["address"], processes
    finally:
        for process in (*processes, central):
            process.terminate()
            process.wait()


def dask(what: str, told: Path, *more: str) -> subprocess.Popen[bytes]:
    """A process of Dask's; `told` is where the scheduler says its address."""
    module, file = f"distributed.cli.dask_{what}", ("--scheduler-file", str(told))
    return subprocess.Popen([sys.executable, "-m", module, *file, *more], cwd=ROOT)


def wait(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    """Until something holds; a process that ends before is an error."""
    while not ready():
        if process.poll() is not None:
            raise SystemExit("a process ended before its time")
        time.sleep(0.02)


def count(store: Path) -> int:
    """How many points are stored, whoever writes meanwhile."""
    if not store.is_file():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
        try:
            return connection.execute("SELECT count(*) FROM points").fetchone()[0]
        except sqlite3.OperationalError:
            return 0  # not made yet


def kill_worker(run: int, processes: Processes | None) -> None:
    """Kills one of the workers that a run has started, or of others."""
    if processes is not None:
        processes[0].kill()
        return
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            started = path.joinpath("cmdline").read_bytes()
        except OSError:
            continue  # it has ended
        if parent == run and b"spawn_main" in started:
            os.kill(int(path.name), signal.SIGKILL)
            return
    raise SystemExit("no worker was found")


if __name__ == "__main__":
    main()
