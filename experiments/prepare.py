"""What does preparing a weight keep of a product, over rounding it to nearest?

    python experiments/prepare.py [--resume] [--layers N] [--out DIRECTORY]

Every preparation of prepare.toml on the weights and inputs of the small model: fitted to documents
of the part `calibrate`, reported on documents of the part `report`. Writes a row a product into
`products.csv`, those that are reported on what they were fitted to into `in_sample.csv`, and the
gain over rounding to nearest with its interval over layers into `gains.csv`, all in
reports/prepare. Products are written recipe by recipe; `--resume` keeps those of a run that was
stopped, if it had the same settings, entries and versions.
"""

import argparse
import datetime
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowprec.gemm.recipe import Recipe, get_recipe
from lowprec.models.checkpoint import default_checkpoint
from lowprec.report import stored
from lowprec.report.prepare import write_prepare
from lowprec.study.manifest import manifest, sha256
from lowprec.study.prepared import GainRow, PreparedRow
from lowprec.study.prepared_layers import (
    FITTED_ON,
    REPORTED_ON,
    PreparedLayer,
    captured_layers,
    gain_rows,
    layer_rows,
    variants,
)

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = f"experiments/{Path(__file__).name}"
CONFIG = Path(__file__).with_suffix(".toml")
HELD_OUT = default_checkpoint().with_name("held_out.jsonl")
TABLES = {"family": "products.csv", "in_sample": "in_sample.csv"}


def rows_of(
    layers: Sequence[PreparedLayer], recipe: Recipe, known: Sequence[PreparedRow], in_sample: bool
) -> list[PreparedRow]:
    """A recipe on every layer, as known from before or anew."""
    seed = recipe.prepare and recipe.prepare.rotation and recipe.prepare.rotation.seed
    found = [x for x in known if (x.recipe, x.seed) == (f"recipe:{recipe.name}", seed)]
    if [x.layer for x in found] == [x.name for x in layers]:
        return found
    start = time.perf_counter()
    rows = layer_rows(layers, recipe, in_sample=in_sample)
    spent = time.perf_counter() - start
    print(f"{recipe.name}: {len(rows)} products in {spent:.0f} s", flush=True)
    return rows


def compared(
    layers: Sequence[PreparedLayer], config: dict[str, Any], kind: str, path: Path
) -> list[GainRow]:
    """The families of a kind on every layer; products are written as they come."""
    known = stored.read_rows(path, PreparedRow, SCRIPT)
    rows: list[PreparedRow] = []
    gained: list[GainRow] = []
    for family in config[kind]:
        own: list[PreparedRow] = []
        given = family["base"], family["prepare"], config["rotation_seeds"], config["engine"]
        for recipe in variants(*given):
            own += rows_of(layers, recipe, known, kind == "in_sample")
            stored.write_table([*rows, *own], PreparedRow, path)
        gained += gain_rows(own, family["base"], family["prepare"], seed=config["seed"])
        rows += own
    return gained


def record(layers: Sequence[PreparedLayer], config: dict[str, Any]) -> dict[str, Any]:
    """What the run depends on."""
    families = [family for kind in TABLES for family in config[kind]]
    used = {name for family in families for name in (family["base"], *family["prepare"])}
    first = layers[0]
    settings = {
        "config": CONFIG.name,
        "config_sha256": sha256(CONFIG),
        "fitted_on_part": FITTED_ON,
        "reported_on_part": REPORTED_ON,
        "calibration_documents": list(first.calibration.documents),
        "report_documents": list(first.report.documents),
        "calibration_tokens": len(first.calibration.x),
        "report_tokens": len(first.report.x),
        "layers": [layer.name for layer in layers],
    }
    recipes = [get_recipe(name) for name in sorted(used)]
    return manifest(recipes, [default_checkpoint(), HELD_OUT], settings)


def begin(out: Path, found: dict[str, Any], resume: bool) -> None:
    """Writes the manifest of a run that has begun, and removes products that are not its own."""
    before = stored.read_manifest(out)
    if not (resume and all(before.get(key) == value for key, value in found.items())):
        for name in TABLES.values():
            (out / name).unlink(missing_ok=True)
    stored.write_manifest(found, out)


def main() -> None:
    """Runs the study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "prepare")
    parser.add_argument("--layers", type=int, help="only so many layers")
    parser.add_argument("--resume", action="store_true", help="go on where a run was stopped")
    arguments = parser.parse_args()
    config = tomllib.loads(CONFIG.read_text())
    start = time.perf_counter()
    given = config["calibration_windows"], config["report_windows"], config["layers"]
    layers = captured_layers(*given)[: arguments.layers]
    print(f"captured {len(layers)} layers in {time.perf_counter() - start:.0f} s", flush=True)
    found = record(layers, config)
    begin(arguments.out, found, arguments.resume)
    gained = [
        row
        for kind, name in TABLES.items()
        for row in compared(layers, config, kind, arguments.out / name)
    ]
    found |= {
        "command": f"python {SCRIPT}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - start),
        "processor_seconds": round(time.process_time()),
    }
    section = write_prepare(gained, found, arguments.out)
    for finding in section.findings:
        print(finding.text, finding.evidence, sep="\n  ")


if __name__ == "__main__":
    main()
