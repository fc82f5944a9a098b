"""Formats and scale rules on numbers of a known distribution; parameters in formats.toml.

Writes the tables and figures of the report's section on formats into reports/formats, and
`manifest.json` with the date, the command, versions and the sources of every entry.
"""

import argparse
import datetime
import time
from pathlib import Path
from typing import Any

from lowprec import catalogue
from lowprec.numerics import families
from lowprec.report.formats import FormatResults, write_formats
from lowprec.report.formats_section import format_section
from lowprec.report.shown import standalone
from lowprec.study import crest_sweep, formats
from lowprec.study.format_config import read_config
from lowprec.study.manifest import manifest, sha256

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path(__file__).with_suffix(".toml")


def entry(qualified: str) -> dict[str, Any]:
    """The citation and the hash of a catalogue entry, by its qualified name."""
    kind, name = qualified.split(":")
    folder: catalogue.Kind = "blocks" if kind == "block" else "elements"
    found = catalogue.lookup(folder, families.entry_name(name) if kind == "format" else name)
    return {
        "kind": folder,
        "name": name,
        "citation": str(found.citation),
        "sha256": found.digest,
    }


def main() -> None:
    """Runs the comparison; a few minutes on two cores, most of them compilation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "formats")
    parser.add_argument("--tensors", type=int, help="fewer tensors than formats.toml says")
    arguments = parser.parse_args()
    start = time.perf_counter()
    config = read_config(CONFIG)
    tensors = arguments.tensors or config.tensors
    samples = formats.normal_samples(tensors, config.rows, config.columns, config.seed)
    targets = formats.gaussian_targets(config)
    measured = formats.measure_all(targets, samples, lambda name: print(name, flush=True))
    gaussian = [
        formats.gaussian_row(name, *targets[name], measured[name], samples) for name in targets
    ]
    points = list(crest_sweep.crest_rows(config))
    settings = {
        "config": CONFIG.name,
        "config_sha256": sha256(CONFIG),
        "tensors": tensors,
        "shape": f"{config.rows} x {config.columns}",
        "seed": config.seed,
    }
    record = manifest([], [], settings) | {
        "catalogue": [
            entry(name) for name, (_, origin) in targets.items() if origin == "catalogue"
        ],
        "command": f"python {Path(__file__).resolve().relative_to(ROOT)}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - start),
    }
    results = FormatResults.from_rows(
        gaussian=gaussian,
        published=list(formats.published_rows(config, gaussian, samples)),
        earlier=list(formats.earlier_rows(config, gaussian)),
        rounding=list(formats.rounding_rows(config, gaussian, measured, samples)),
        crest=points,
        crossings=list(crest_sweep.crossing_rows(config, points)),
        bound=[formats.bound_row(name, measured[name], samples) for name in targets],
        rules=list(formats.rule_rows(config, measured, samples)),
        manifest=record,
    )
    write_formats(results, arguments.out)
    drawn = arguments.out / "figures"
    drawn.mkdir(exist_ok=True)
    for figure in format_section(results).figures:
        (drawn / f"{figure.name}.svg").write_text(standalone(figure.wide), encoding="utf-8")
    print(f"wrote {arguments.out} in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
