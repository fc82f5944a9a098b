"""Which ingredient of a recipe moves which part of its error? Changes in recipe_anatomy.toml.

One ingredient of deepseek_v3, mxfp4 and nvfp4 is changed at a time, and the error taken apart by
the exact ledger, on captured operands of three roles and on heavy-tailed ones. Writes `rows.csv`,
the figure and `manifest.json` of the report's section into reports/anatomy. A run that was cut off
goes on where it was.
"""

import argparse
import datetime
import time
from pathlib import Path

from lowprec.gemm.recipe import get_recipe
from lowprec.models.checkpoint import default_checkpoint
from lowprec.report import stored
from lowprec.report.anatomy import ROWS, SCRIPT, write_anatomy
from lowprec.study import anatomy
from lowprec.study.ledger_rows import captured_operands
from lowprec.study.ledger_terms import Ledger
from lowprec.study.manifest import manifest, sha256

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path(__file__).with_suffix(".toml")


def main() -> None:
    """Runs the study; minutes of one core, most of them compilation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "anatomy")
    parser.add_argument("--again", action="store_true", help="keep nothing of an earlier run")
    arguments = parser.parse_args()
    start = time.perf_counter()
    config = anatomy.read_config(CONFIG)
    on = anatomy.products(config, captured_operands(config.documents))
    path = arguments.out / ROWS
    rows = [] if arguments.again else stored.read_rows(path, anatomy.AnatomyRow, SCRIPT)
    done = {(row.base, row.ingredient, row.value) for row in rows}
    bases = dict.fromkeys(change.base for change in config.change)
    for name in bases:
        whole: list[Ledger] | None = None
        own = [x for x in config.change if x.base == name]
        for change in (anatomy.base_of(own[0]), *own):
            if (change.base, change.ingredient, change.value) in done:
                continue
            whole = anatomy.ledgers(get_recipe(name), on, config) if whole is None else whole
            recipe = get_recipe(name) if change.ingredient == "none" else change.apply()
            found = whole if change.ingredient == "none" else anatomy.ledgers(recipe, on, config)
            rows += anatomy.anatomy_rows(change, recipe, found, whole, on)
            stored.write_table(rows, anatomy.AnatomyRow, path)
            print(f"{recipe.name}: {time.process_time():.0f} s of processor time", flush=True)
    checkpoint = default_checkpoint()
    settings = {
        "config": CONFIG.name,
        "config_sha256": sha256(CONFIG),
        "seed": config.seed,
        "resumed_rows": len(done),
    }
    recipes = [get_recipe(name) for name in bases]
    record = manifest(recipes, [checkpoint, checkpoint.with_name("held_out.jsonl")], settings) | {
        "command": f"python {Path(__file__).resolve().relative_to(ROOT)}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - start),
        "processor_seconds": round(time.process_time()),
    }
    section = write_anatomy(rows, record, arguments.out)
    for finding in section.findings:
        print(finding.text)


if __name__ == "__main__":
    main()
