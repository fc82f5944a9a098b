"""Which recipe keeps most for its bits, and on which operands? Parameters in gemm_recipes.toml.

Every recipe of the catalogue that needs no more than operands, on all that are captured, on such as
are drawn after their cards, and on known distributions. Writes `rows.csv`, `units.parquet`, figures
and `manifest.json` of the report's section into reports/gemm_recipes. A run that was cut off goes
on where it was: what it had finished is in a table there, named after a hash of all that products
depend on, parameters, recipes, model and code; the time it took is kept beside.
"""

import argparse
import datetime
from pathlib import Path

from lowprec.gemm.recipe import ROLES, get_recipe, list_recipes
from lowprec.models.checkpoint import default_checkpoint
from lowprec.report.gemm_recipes import write_recipes
from lowprec.study import gemm_recipes
from lowprec.study.gemm_recipes_budget import budget_rows
from lowprec.study.gemm_recipes_front import recipe_rows
from lowprec.study.gemm_recipes_operands import captured_group, read_config, synthetic_groups
from lowprec.study.gemm_recipes_units import Units, fingerprint
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
    config = read_config(CONFIG)
    catalogue = [get_recipe(name) for name in arguments.recipes or list_recipes()]
    omitted = {x.name: why for x in catalogue if (why := gemm_recipes.left_out(x))}
    recipes = [x for x in catalogue if x.name not in omitted]
    checkpoint = default_checkpoint()
    model = [checkpoint, checkpoint.with_name("held_out.jsonl")]
    key = fingerprint(recipes, [CONFIG, *model])
    units = Units(arguments.out / f"units-{key[:8]}.csv")
    layers = captured_operands(config.documents)
    groups = [captured_group(layers, role) for role in ROLES]
    for group in [*groups, *synthetic_groups(config, layers)]:
        count = len(layers) if not group.k else config.seeds
        count = config.card_seeds if group.family == "card" else count
        done = units.done(group, count)
        for found in gemm_recipes.measure_group(group, recipes, config.outputs, done):
            units.add(found)
        seconds = units.spent()["processor_seconds"]
        print(f"{group.family} {group.role} {group.k or ''}: {seconds:.0f} s", flush=True)
    settings = {
        "config": CONFIG.name,
        "config_sha256": sha256(CONFIG),
        "seed": config.seed,
        "left_out": omitted,
        "fingerprint": key,
    }
    record = manifest(recipes, model, settings) | {
        "command": f"python {Path(__file__).resolve().relative_to(ROOT)}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **{name: round(seconds) for name, seconds in units.spent().items()},
    }
    rows = recipe_rows(units.rows, recipes)
    section = write_recipes(rows, budget_rows(units.rows, rows), units.rows, record, arguments.out)
    units.discard()
    for finding in section.findings:
        print(finding.text)


if __name__ == "__main__":
    main()
