"""Do quantizers give the bits of the sources that their entries cite?

Asks every source of bit_equality.toml that is here: packages that are installed in the version
that it names, and folders that `--source` points to (a checkout at the commit that it names, or an
unpacked wheel); of the others it takes the answers that the fixture holds. Writes `cases.csv` and
`manifest.json` of the report's section into reports/bit_equality.

`--write` stores the answers to the tensors of seed 0 in tests/interop/fixtures/bit_equality.npz,
which tests/interop/test_bit_equality.py compares without any source.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bit_equality_sources import INSTALLED, ask

from lowprec.report.bit_equality import write_cases
from lowprec.study.bit_equality import (
    Answer,
    Comparison,
    Row,
    answer_of,
    compare,
    inputs_of,
    read_comparisons,
    store_answers,
    stored_answers,
)
from lowprec.study.manifest import manifest

ROOT = Path(__file__).resolve().parent.parent
COMPARISONS = Path(__file__).with_suffix(".toml")
FIXTURE = ROOT / "tests" / "interop" / "fixtures" / "bit_equality.npz"


def is_here(comparison: Comparison, folders: dict[str, Path]) -> bool:
    """Whether the source can be asked: installed in the version that is named, or in a folder."""
    source = comparison.source
    if source.name not in INSTALLED:
        return source.name in folders
    try:
        return importlib.metadata.version(source.package) == source.version
    except importlib.metadata.PackageNotFoundError:
        return source.name in folders


def rows_of(
    comparison: Comparison,
    folders: dict[str, Path],
    seeds: int,
    stored: dict[str, Answer],
    new: list[tuple[Comparison, Answer]],
) -> Iterator[list[Row]]:
    """The rows of every seed where the source is here, else of what is stored."""
    if not is_here(comparison, folders):
        inputs = inputs_of(comparison.subject)
        ours = answer_of(comparison.subject, inputs.x)
        yield list(compare(comparison, inputs, ours, stored[comparison.key]))
        return
    for seed in range(seeds):
        inputs = inputs_of(comparison.subject, seed)
        theirs = ask(comparison, inputs.x, folders.get(comparison.source.name))
        if seed == 0:
            new.append((comparison, theirs))
        ours = answer_of(comparison.subject, inputs.x)
        yield list(compare(comparison, inputs, ours, theirs))


def summed(rounds: list[list[Row]]) -> list[Row]:
    """One row a sort, of all rounds."""
    counts = [field.name for field in dataclasses.fields(Row) if field.type is int]
    return [
        dataclasses.replace(
            same[0],
            **{name: sum(getattr(row, name) for row in same) for name in counts},
            **{why: max(getattr(row, why) for row in same) for why in ("why", "why_signs")},
        )
        for same in zip(*rounds, strict=True)
    ]


def main() -> None:
    """Compares, prints what differs, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--seeds", type=int, default=8, help="tensors of so many seeds")
    parser.add_argument("--only", default="", help="comparisons whose key contains this")
    parser.add_argument("--write", action="store_true", help="store answers in the fixture")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "bit_equality")
    arguments = parser.parse_args()
    start = time.perf_counter()
    folders = {name: Path(folder) for name, folder in (x.split("=", 1) for x in arguments.source)}
    comparisons = [x for x in read_comparisons(COMPARISONS) if arguments.only in x.key]
    stored = stored_answers(FIXTURE, comparisons) if FIXTURE.exists() else {}
    rows: list[Row] = []
    new: list[tuple[Comparison, Answer]] = []
    for comparison in comparisons:
        if not is_here(comparison, folders) and comparison.key not in stored:
            print(f"{comparison.key}: not here, and not stored")
            continue
        found = summed(list(rows_of(comparison, folders, arguments.seeds, stored, new)))
        rows += found
        report(comparison, found)
    if arguments.write:
        store_answers(FIXTURE, new)
        print(f"wrote {FIXTURE}, {FIXTURE.stat().st_size} bytes")
    if not arguments.only:
        torch = importlib.metadata.version("torch") if "torch" in sys.modules else ""
        settings = {"seeds": arguments.seeds, "asked": len(new), "torch": torch}
        given = "".join(f" --source {name}=FOLDER" for name in folders)
        record = manifest([], [COMPARISONS, FIXTURE], settings) | {
            "command": f"python {Path(__file__).resolve().relative_to(ROOT)}{given}",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "seconds": round(time.perf_counter() - start),
        }
        for finding in write_cases(rows, record, arguments.out).findings:
            print(finding.text)


def report(comparison: Comparison, rows: list[Row]) -> None:
    """Prints the counts of a comparison, and every sort of tile on which bits differ."""
    tiles, wrong = sum(row.tiles for row in rows), sum(row.mismatches for row in rows)
    print(f"{comparison.key}: {wrong} of {tiles} tiles differ ({rows[0].compared})", flush=True)
    for row in rows:
        if row.mismatches or row.zero_signs or row.nan_codes:
            known = (row.why or not row.mismatches) and (row.why_signs or not row.zero_signs)
            unexplained = "" if known else "  UNEXPLAINED"
            print(
                f"    {row.sort}: {row.mismatches} of {row.tiles}, {row.scales} in scale, "
                f"{row.elements_differing} elements; zero signs {row.zero_signs}, "
                f"under NaN {row.nan_codes}{unexplained}"
            )


if __name__ == "__main__":
    main()
