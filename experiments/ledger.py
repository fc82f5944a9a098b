"""What is the error of a recipe made of? Every term, exactly, on captured operands of three roles.

Writes `terms.csv`, the figures and `manifest.json` of the report's section into reports/ledger.
"""

import argparse
import datetime
import time
from pathlib import Path

from lowprec.gemm.recipe import ROLES, get_recipe
from lowprec.models.checkpoint import default_checkpoint
from lowprec.report.ledger import write_ledger
from lowprec.study.ledger import ledger
from lowprec.study.ledger_rows import LedgerRow, captured_operands, ledger_rows
from lowprec.study.manifest import manifest

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ("deepseek_v3", "mxfp8", "mxfp4", "nvfp4")
KIND = "mlp.down"
"""One layer of every depth: their products share shapes, and so programs."""


def main() -> None:
    """Runs the study; about two minutes of one core, most of them compilation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "ledger")
    parser.add_argument("--outputs", type=int, default=1024, help="outputs of each product")
    parser.add_argument("--layers", type=int, help="fewer layers than all of their kind")
    arguments = parser.parse_args()
    start = time.perf_counter()
    layers = [x for x in captured_operands() if x.layer.endswith(KIND)][: arguments.layers]
    recipes = [get_recipe(name) for name in RECIPES]
    rows: list[LedgerRow] = []
    compared = 0
    for recipe in recipes:
        for role in ROLES:
            for layer in layers:
                a, b = layer.product(role)
                found = ledger(a, b, recipe, role=role, outputs=arguments.outputs)
                compared += found.check()
                rows += ledger_rows(found, source="captured", layer=layer.layer)
        print(f"{recipe.name}: {time.process_time():.0f} s of processor time", flush=True)
    checkpoint = default_checkpoint()
    files = [checkpoint, checkpoint.with_name("held_out.jsonl")]
    settings = {"outputs": arguments.outputs, "seed": 0, "layers": len(layers), "exact": compared}
    record = manifest(recipes, files, settings) | {
        "command": f"python {Path(__file__).resolve().relative_to(ROOT)}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - start),
        "processor_seconds": round(time.process_time()),
    }
    section = write_ledger(rows, record, arguments.out)
    print(f"the terms of {compared:,} outputs sum to their errors exactly; wrote {arguments.out}")
    for finding in section.findings:
        print(finding.text)


if __name__ == "__main__":
    main()
