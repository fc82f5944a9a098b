"""`lowprec report`: the pages of a report again, from the tables or the store in a directory."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from lowprec.report.rebuild import rebuild
from lowprec.report.study_sections import write_store


@dataclass(frozen=True)
class ReportCommand:
    """Write a report's pages again, from the tables in its directory or from a study's store.

    Example: lowprec report reports, lowprec report study.sqlite --out study-report
    """

    directory: tyro.conf.Positional[Path]
    """A report's directory, which may hold a study's store (.sqlite); or such a store alone."""

    out: Path | None = None
    """Where the report of a store goes; by default the store's own directory."""

    without: tuple[str, ...] = ()
    """Folders of experiments that are passed over."""


def run_report(command: ReportCommand, line: str) -> None:
    """Writes the pages and prints the path of the first.

    Args:
      command: what was asked for.
      line: the command as it was typed, for the manifest of a study.
    """
    given, out = command.directory, command.out
    if given.is_file():
        store, folder = given, given.parent if out is None else out
        if not folder.parent.is_dir():
            raise ValueError(f"cannot write to {folder}: {folder.parent} is not a directory")
        write_store(store, folder, line)
    else:
        if out is not None:
            raise ValueError("`--out` goes with a store; a directory's report is written into it")
        folder = given
        stores = sorted(folder.glob("*.sqlite"))
        if len(stores) > 1:
            names = ", ".join(path.name for path in stores)
            raise ValueError(f"{folder} has several stores: {names}; name one of them, with --out")
        for store in stores:
            write_store(store, folder, line)
    print(rebuild(folder, without=command.without))
