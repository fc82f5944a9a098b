"""What do KV-cache methods lose, and how many bytes does a token take?

    python experiments/kv_compare.py [--methods NAME ...] [--config FILE] [--out DIRECTORY]

Every method of formats/kv, and without its window of exact tokens each that has one, on keys and
values captured from the small model, on synthetic ones with published statistics, and through the
caches of the small models, as kv_compare.toml says: held-out loss, and planted keys asked for.
Writes tables, figures and `manifest.json` into reports/kv; a run that is interrupted writes what
has finished. Runs of some methods each are put together:

    python experiments/kv_compare.py --methods bf16 nvfp4 --out one
    python experiments/kv_compare.py --join one two
"""

import argparse
import datetime
import json
import shlex
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import polars as pl

from lowprec.kv import get_kv_method, list_kv_methods
from lowprec.models.checkpoint import default_checkpoint
from lowprec.report.kv import TABLES, Results, write_kv
from lowprec.report.section import Section
from lowprec.report.stored import read_manifest, read_table
from lowprec.study.kv_compare import KvCollected, Source, Text, compare_kv, with_window_0
from lowprec.study.kv_sources import (
    GQA,
    HELD_OUT,
    MLA,
    KeyQuestions,
    captured_source,
    small_model_text,
    synthetic_source,
)
from lowprec.study.manifest import manifest, sha256

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path(__file__).with_suffix(".toml")


def prepared(config: dict[str, Any]) -> tuple[Text, Text, list[Source]]:
    """What the small models read, and the samples that methods are compared on."""
    text, latent_text = (
        small_model_text(
            scored=config["model"]["windows"],
            calibration=config["captured"]["calibration_windows"],
            prompt=config["model"]["prompt"],
            model=model,
            keys=KeyQuestions(**config["keys"]),
        )
        for model in (GQA, MLA)
    )
    drawn = synthetic_source(config["synthetic"]["seeds"], config["synthetic"]["tokens"])
    return text, latent_text, [captured_source(text, config["captured"]["windows"]), drawn]


def say(line: str) -> None:
    """Tells of a method that is done."""
    print(line, flush=True)
    # Its programs are of no use to the next one, and there are many.
    jax.clear_caches()


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--methods", nargs="+", help="some of them, or paths to TOML files")
    parser.add_argument("--config", type=Path, default=CONFIG, help="sizes, such as smaller ones")
    parser.add_argument("--join", nargs="+", type=Path, help="directories of runs to put together")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "kv")
    arguments = parser.parse_args()
    command = shlex.join(["python", "experiments/kv_compare.py", *sys.argv[1:]])
    if arguments.join:
        print_findings(write_kv(joined(arguments.join, command), arguments.out))
        return
    begin, config = time.perf_counter(), tomllib.loads(arguments.config.read_text())
    names = arguments.methods or config["methods"] or list(list_kv_methods())
    methods = [get_kv_method(name) for name in names]
    text, latent_text, sources = prepared(config)
    settings = {key: value for key, value in config.items() if key != "methods"}
    settings |= {"config": arguments.config.name, "config_sha256": sha256(arguments.config)}
    checkpoints = [default_checkpoint(model) for model in (GQA, MLA)]
    found, finished = KvCollected(), False
    try:
        compare_kv(
            methods,
            sources,
            text,
            seed=config["seed"],
            latent_text=latent_text,
            kept=config["kept"],
            found=found,
            say=say,
        )
        finished = True
    finally:
        # What has finished is written whatever ended the run.
        settings |= {"part": "report", "complete": finished}
        files = [*checkpoints, checkpoints[0].with_name(HELD_OUT)]
        record = manifest(methods, files, settings) | {
            "methods": [method.name for method in methods],
            "left_out": [" | ".join(x) for x in found.left_out],
            "unanswered": [list(x) for x in found.unanswered],
            "command": command,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "seconds": round(time.perf_counter() - begin),
        }
        section = write_kv(Results.of(found, record), arguments.out)
    print_findings(section)


def joined(folders: Sequence[Path], command: str) -> Results:
    """The results of runs of some methods each, in the order of the catalogue.

    Methods that were taken without their window in one run and are entries of another stand once.

    Raises:
      ValueError: the runs had different settings, models or texts, or a method in common.
    """
    records = [read_manifest(folder) for folder in folders]
    for folder, record in zip(folders, records, strict=True):
        for name in ("settings", "files", "versions"):
            if record[name] != records[0][name]:
                raise ValueError(
                    f"{folder} and {folders[0]} differ in {name}; runs that are put together have "
                    f"the same"
                )
    every = [name for record in records for name in record["methods"]]
    named = sorted(set(every))
    if len(named) < len(every):
        twice = sorted({name for name in named if every.count(name) > 1})
        raise ValueError(f"{', '.join(twice)} were taken in two runs; put each method into one")
    pairs = with_window_0([get_kv_method(name) for name in named])
    order = {f"kv:{method.name}": place for place, (method, _) in enumerate(pairs)}
    frames = {}
    for name, row in TABLES.items():
        parts = [read_table(folder / f"{name}.csv", row, command) for folder in folders]
        frame = pl.concat([part for part in parts if part is not None])
        frame = frame.filter(pl.col("method").is_in(list(order)))
        place = pl.col("method").replace_strict(order, return_dtype=pl.Int32)
        frames[name] = frame.sort(place, maintain_order=True)
    origin = {f"kv:{method.name}": whole and f"kv:{whole}" for method, whole in pairs}
    caches = frames["caches"]
    whole = pl.Series("window_0_of", [origin[x] for x in caches["method"]], pl.String)
    frames["caches"] = caches.with_columns(whole)
    known = {"methods": named, "command": command, "parts": records}
    merged = {
        name: sorted({json.dumps(x) for record in records for x in record[name]})
        for name in ("left_out", "unanswered", "catalogue")
    }
    last = {name: records[-1][name] for name in ("settings", "files", "versions", "device", "date")}
    last["seconds"] = sum(record["seconds"] for record in records)
    lists = {name: [json.loads(x) for x in found] for name, found in merged.items()}
    return Results(frames=frames, manifest=last | lists | known)


def print_findings(section: Section) -> None:
    for finding in section.findings:
        print(finding.text, finding.evidence, sep="\n  ")


if __name__ == "__main__":
    main()
