"""How far apart are a trainer and a server that compute one model in two ways?

    python experiments/diff.py [--pairs NAME ...] [--windows N] [--out DIRECTORY]
    python experiments/diff.py --join DIRECTORY ...

The pairs of diff.toml, as `lowprec diff` tells them apart: with and without promotion, in two
orders of summation, with two batch sizes, in two precisions, with two KV caches. Writes
`pairs.csv`, `sequences.csv` (importance ratios), `layers.csv`, `tail.csv`, the figure and
`manifest.json` into reports/diff, again with every pair that is done; runs of some pairs each are
put together by `--join`.
"""

import argparse
import contextlib
import datetime
import json
import shlex
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report.diff import TABLES, Results, write_diff
from lowprec.report.section import Section
from lowprec.report.stored import read_manifest, read_tables
from lowprec.study.diff import compare_sides
from lowprec.study.diff_sides import Side, read_side
from lowprec.study.diff_subjects import Subject, small_subject
from lowprec.study.manifest import manifest, sha256

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path(__file__).with_suffix(".toml")
MODEL = "byte_lm"


def main() -> None:
    """Runs the pairs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", nargs="+", help="some of them, by name")
    parser.add_argument("--windows", type=int, help="in place of those of diff.toml")
    parser.add_argument("--join", nargs="+", type=Path, help="directories of runs to put together")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "diff")
    arguments = parser.parse_args()
    config = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
    command = shlex.join(["python", "experiments/diff.py", *sys.argv[1:]])
    if arguments.join:
        order = [pair["name"] for pair in config["pair"]]
        tell(write_diff(joined(arguments.join, order, command), arguments.out))
        return
    pairs, count = chosen(config["pair"], arguments.pairs), arguments.windows or config["windows"]
    begin, found, section = time.perf_counter(), [], None
    subjects = {name: small_subject(name, count=count) for name in {model(x) for x in pairs}}
    with contextlib.chdir(ROOT):
        # All of them before any work is done.
        sides = [(read_side(x["a"], "A"), read_side(x["b"], "B")) for x in pairs]
    for pair, (a, b) in zip(pairs, sides, strict=True):
        start = time.perf_counter()
        own = {"pair": pair["name"], "seed": config["seed"]}
        found.append(compare_sides(subjects[model(pair)], a, b, **own))
        print(f"{pair['name']}: {time.perf_counter() - start:.0f} s", flush=True)
        record = recorded(config, sides, subjects, len(found) == len(pairs)) | {
            "command": command,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "seconds": round(time.perf_counter() - begin),
        }
        # At once, whatever ends the run.
        section = write_diff(Results.of(found, record), arguments.out)
    if section is not None:
        tell(section)


def joined(folders: Sequence[Path], order: Sequence[str], command: str) -> Results:
    """The results of runs of some pairs each, in the order of diff.toml.

    Raises:
      ValueError: a folder has no results, or the runs differ in settings, or have a pair in common.
    """
    records = [read_manifest(folder) for folder in folders]
    parts = [read_tables(folder, TABLES, "experiments/diff.py") for folder in folders]
    windows: dict[str, int] = {}
    for folder, record, part in zip(folders, records, parts, strict=True):
        if part is None:
            raise ValueError(f"{folder} has no results of experiments/diff.py")
        own, first = record["settings"], records[0]["settings"]
        windows = own["windows"] | windows
        same = all(own[name] == first[name] for name in ("config_sha256", "seed", "part"))
        if not same or any(windows[name] != x for name, x in own["windows"].items()):
            raise ValueError(f"{folder} has other settings than {folders[0]}; run one of them anew")
    found = {name: pl.concat([x[name] for x in parts if x is not None]) for name in TABLES}
    names = found["pairs"]["pair"].to_list()
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{', '.join(twice)} is in two runs; put each pair into one")
    place = pl.col("pair").replace_strict(order, list(range(len(order))))
    frames = {name: x.sort(place, maintain_order=True) for name, x in found.items()}
    entries = {json.dumps(x, sort_keys=True) for record in records for x in record["catalogue"]}
    complete = set(names) == set(order) and all(x["settings"]["complete"] for x in records)
    return Results(
        frames=frames,
        manifest=records[-1]
        | {
            "command": command,
            "seconds": sum(record["seconds"] for record in records),
            "settings": records[0]["settings"] | {"windows": windows, "complete": complete},
            "catalogue": [json.loads(x) for x in sorted(entries)],
            "files": {k: v for record in records for k, v in record["files"].items()},
            "parts": [record["command"] for record in records],
        },
    )


def tell(section: Section) -> None:
    """Prints what was found."""
    for finding in section.findings:
        print(finding.text, finding.evidence, sep="\n  ")


def chosen(pairs: list[dict[str, str]], names: list[str] | None) -> list[dict[str, str]]:
    """The pairs of these names, or all.

    Raises:
      ValueError: no pair has a name.
    """
    known = [pair["name"] for pair in pairs]
    for name in names or []:
        if name not in known:
            raise ValueError(f"`--pairs` {name!r}: diff.toml has {', '.join(known)}")
    return [pair for pair in pairs if names is None or pair["name"] in names]


def model(pair: dict[str, str]) -> str:
    """The model that a pair is told apart on."""
    return pair.get("model", MODEL)


def recorded(
    config: dict[str, Any],
    sides: list[tuple[Side, Side]],
    subjects: dict[str, Subject],
    finished: bool,
) -> dict[str, Any]:
    """What the results depend on."""
    both = [side for pair in sides for side in pair]
    methods = [side.method for side in both if side.method is not None]
    settings = {
        "config": CONFIG.name,
        "config_sha256": sha256(CONFIG),
        "seed": config["seed"],
        "windows": {name: len(x.tokens) for name, x in subjects.items()},
        "part": "report",
        "complete": finished,
    }
    files = sorted({path for subject in subjects.values() for path in subject.files})
    return manifest([*(side.recipe for side in both), *methods], files, settings)


if __name__ == "__main__":
    main()
