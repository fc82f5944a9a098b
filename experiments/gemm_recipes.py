"""Which recipe keeps most for its bits, and on which operands? Parameters in gemm_recipes.toml.

Every recipe of the catalogue that needs no more than operands, on all that are captured, on such as
are drawn after their cards, and on known distributions. Writes `rows.csv`, `units.parquet`, figures
and `manifest.json` of the report's section into reports/gemm_recipes. A run that was cut off goes
on where it was: what it had finished is in a table there, named after the parameters' hash.
"""

import argparse
import datetime
import time
from pathlib import Path

from lowprec.gemm.recipe import ROLES, get_recipe, list_recipes
from lowprec.models.checkpoint import default_checkpoint
from lowprec.report.gemm_recipes import write_recipes
from lowprec.study import gemm_recipes
from lowprec.study.gemm_recipes_front import recipe_rows
from lowprec.study.gemm_recipes_operands import captured_group, read_config, synthetic_groups
from lowprec.study.ledger_rows import captured_operands
from lowprec.study.manifest import manifest, sha256

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path(__file__).with_suffix(".toml")


def main() -> None:
    """Runs the comparison; minutes of one core, most of them compilation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "gemm_recipes")
    parser.add_argument("--recipes", nargs="*", help="some of the catalogue")
    arguments = parser.parse_args()
    start = time.perf_counter()
    config = read_config(CONFIG)
    catalogue = [get_recipe(name) for name in arguments.recipes or list_recipes()]
    omitted = {x.name: why for x in catalogue if (why := gemm_recipes.left_out(x))}
    recipes = [x for x in catalogue if x.name not in omitted]
    layers = captured_operands(config.documents)
    finished = arguments.out / f"units-{sha256(CONFIG)[:8]}.csv"
    units = gemm_recipes.Units(finished)
    resumed = len(units.rows)
    groups = [captured_group(layers, role) for role in ROLES]
    for group in [*groups, *synthetic_groups(config, layers)]:
        count = len(layers) if not group.k else config.seeds
        count = config.card_seeds if group.family == "card" else count
        done = units.done(group, count)
        for rows in gemm_recipes.measure_group(group, recipes, config.outputs, done):
            units.add(rows)
        seconds = time.process_time()
        print(f"{group.family} {group.role} {group.k or ''}: {seconds:.0f} s", flush=True)
    checkpoint = default_checkpoint()
    settings = {
        "config": CONFIG.name,
        "config_sha256": sha256(CONFIG),
        "seed": config.seed,
        "left_out": omitted,
        "resumed_rows": resumed,
    }
    record = manifest(recipes, [checkpoint, checkpoint.with_name("held_out.jsonl")], settings) | {
        "command": f"python {Path(__file__).resolve().relative_to(ROOT)}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - start),
        "processor_seconds": round(time.process_time()),
    }
    section = write_recipes(recipe_rows(units.rows, recipes), units.rows, record, arguments.out)
    finished.unlink()
    for finding in section.findings:
        print(finding.text)


if __name__ == "__main__":
    main()
