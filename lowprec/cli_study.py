"""`lowprec study`: thousands of products from one file, run, looked at and exported."""

import contextlib
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from lowprec.report import words
from lowprec.report.study import exported, write_export, write_study
from lowprec.study.cluster import cluster
from lowprec.study.design import Study, read_study
from lowprec.study.runner import Measure, Progress, Tell, measure_here, progress, run_study
from lowprec.study.store import Store

EVERY = 10.0
"""Seconds between two lines where there is no terminal."""


@dataclass(frozen=True)
class Run:
    """Run the points that the store lacks; a killed run goes on where it was.

    Example: lowprec study run experiments/study_example.toml --workers 2
    """

    file: tyro.conf.Positional[Path]
    """The study, a TOML file; experiments/study_example.toml explains the keys."""

    store: Path | None = None
    """The SQLite file that points are stored in, on a local disk; by default FILE's name here."""

    workers: int | None = None
    """Run in so many processes of this machine (needs the extra cluster)."""

    dask: str | None = None
    """Run on the cluster of the Dask scheduler at this address (needs the extra cluster)."""

    retry_failed: bool = False
    """Also run the points again that failed before."""


@dataclass(frozen=True)
class Status:
    """Say how much of a study is stored, and why points failed; also while it runs.

    Example: lowprec study status experiments/study_example.toml
    """

    file: tyro.conf.Positional[Path]
    """The study."""

    store: Path | None = None
    """Its store; by default FILE's name here."""


@dataclass(frozen=True)
class Export:
    """Write the stored points as a table, sorted by key: equal studies give equal bytes.

    Example: lowprec study export experiments/study_example.toml --out points.parquet
    """

    file: tyro.conf.Positional[Path]
    """The study."""

    out: Path
    """A .csv or .parquet file."""

    store: Path | None = None
    """Its store; by default FILE's name here."""

    all: bool = False
    """Every point of the store, those of other studies and other versions of lowprec too."""


@dataclass(frozen=True)
class Report:
    """Write tables, a figure and a page on what is stored.

    Example: lowprec study report experiments/study_example.toml --out study
    """

    file: tyro.conf.Positional[Path]
    """The study."""

    out: Path
    """The directory that the report is written to."""

    store: Path | None = None
    """Its store; by default FILE's name here."""


Action = Annotated[
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Status, tyro.conf.subcommand("status")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Report, tyro.conf.subcommand("report")],
    tyro.conf.OmitArgPrefixes,
]


@dataclass(frozen=True)
class StudyCommand:
    """Run thousands of products that one TOML file describes, and look at what is stored.

    Example: lowprec study run experiments/study_example.toml
    """

    action: Action


def run_study_command(command: StudyCommand, line: str) -> int:
    """Runs what was asked for; 1 where points of a run failed.

    Args:
      command: what was asked for.
      line: the command as it was typed, for the report.
    """
    action = command.action
    store = action.store or Path(f"{action.file.stem}.sqlite")
    if isinstance(action, Export) and action.out.suffix not in (".csv", ".parquet"):
        raise ValueError(f"`--out` {action.out}: its name must end in .csv or .parquet")
    study = read_study(action.file)
    if isinstance(action, Run):
        return _run(action, study, store)
    with Store.reading(store) as opened:
        match action:
            case Status():
                _status(study, opened, store)
            case Export(out=out):
                frame = exported(opened.rows(None if action.all else study.points))
                write_export(frame, out)
                print(f"{words.counted(len(frame), 'point')}: {out}")
            case Report(out=out):
                frame = exported(opened.rows(study.points))
                print(write_study(frame, study, line, out))
    return 0


def _run(action: Run, study: Study, path: Path) -> int:
    console = Console(stderr=True)
    if action.workers is not None and action.dask is not None:
        raise ValueError("give either --workers or --dask: the scheduler has its own workers")
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Store.writing(path))
        measure: Measure = measure_here
        if action.workers is not None or action.dask is not None:
            here = {"workers": action.workers, "address": action.dask}
            measure = stack.enter_context(cluster(**here))
        for reason, count in study.left_out.items():
            console.print(f"left out, {count} times: {reason}", soft_wrap=True, highlight=False)
        try:
            with _shown(console) as tell:
                options = {"measure": measure, "retry_failed": action.retry_failed}
                found = run_study(study.points, store, tell, **options)
        except KeyboardInterrupt:
            found = progress(study.points, store)
            console.print(f"{_said(found, path)}; run again to go on", soft_wrap=True)
            raise
    print(_said(found, path))
    if found.failed:
        again = f"lowprec study run {shlex.quote(str(study.path))} --retry-failed"
        console.print(f"`lowprec study status` says why; {again} tries them again", soft_wrap=True)
    return 1 if found.failed else 0


def _said(found: Progress, path: Path) -> str:
    failed = f", {found.failed:,} failed" if found.failed else ""
    return f"{found.done:,} of {words.counted(found.points, 'point')} in {path}{failed}"


def _status(study: Study, store: Store, path: Path) -> None:
    found = progress(study.points, store)
    print(f"{study.name}: {_said(found, path)}, {found.missing:,} missing")
    others = len(store.states()) - found.done - found.failed
    if others:
        print(f"{words.counted(others, 'point')} of other studies or other versions of the code")
    for reason, count in study.left_out.items():
        print(f"left out, {count} times: {reason}")
    errors: dict[str, int] = {}
    for row in store.rows(study.points) if found.failed else ():
        if row["status"] == "failed":
            errors[row["error"]] = errors.get(row["error"], 0) + 1
    for error, count in sorted(errors.items(), key=lambda pair: -pair[1]):
        print(f"failed, {count} times: {error}")


class _Rate(ProgressColumn):
    """Points a second, of late."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.1f} a second")


@contextlib.contextmanager
def _shown(console: Console) -> Iterator[Tell]:
    """A bar with rate and time left; without a terminal a line now and then."""
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=60,
        disable=not console.is_terminal,
    )
    begin = last = time.monotonic()
    first: int | None = None
    with bar:
        task = bar.add_task("starting", total=None)

        def tell(stored: int, points: int, failed: int) -> None:
            nonlocal first, last
            first = stored if first is None else first
            text = f"points, {failed:,} failed" if failed else "points"
            bar.update(task, description=text, completed=stored, total=points)
            now = time.monotonic()
            if not console.is_terminal and (now - last >= EVERY or stored in (first, points)):
                last = now
                line = _line(stored, points, failed, (stored - first) / max(now - begin, 1e-9))
                console.print(line, soft_wrap=True, highlight=False)

        yield tell


def _line(stored: int, points: int, failed: int, rate: float) -> str:
    """A line of progress.

    Example:
      >>> _line(500, 2560, 1, 20.0)
      '500 of 2,560 points, 1 failed, 20.0 a second, 103 s left'
    """
    parts = [f"{stored:,} of {points:,} points"]
    if failed:
        parts.append(f"{failed:,} failed")
    if rate:
        parts.append(f"{rate:,.1f} a second")
        if stored < points:
            parts.append(f"{(points - stored) / rate:,.0f} s left")
    return ", ".join(parts)
