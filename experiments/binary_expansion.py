"""Can a 16-bit weight be traded for N binary ones? Parameters in binary_expansion.toml.

Weights of the small model and Gaussian ones as sums of 1 to 16 binary weights with a factor a
channel, beside integers of as many bits. Writes `rows.csv`, the figure and `manifest.json` of the
report's section into reports/binary_expansion.
"""

import argparse
import datetime
import time
import tomllib
from pathlib import Path

import numpy as np

from lowprec.models.checkpoint import default_checkpoint
from lowprec.report.binary_expansion import write_expansion
from lowprec.study.binary_expansion import Unit, expansion_rows, gaussian_units
from lowprec.study.ledger_rows import captured_operands
from lowprec.study.manifest import manifest, sha256

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path(__file__).with_suffix(".toml")


def main() -> None:
    """Runs the comparison; about a minute of one core."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "binary_expansion")
    arguments = parser.parse_args()
    start = time.perf_counter()
    config = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
    captured = [
        Unit(
            layer.layer, w.astype(np.float64).T, x.astype(np.float64)[:: len(x) // config["tokens"]]
        )
        for layer in captured_operands(config["documents"])
        for x, w in [layer.product("fprop")]
    ]
    shape = config["channels"], config["depth"]
    rows = expansion_rows("captured", captured, config["most"])
    rows += expansion_rows(
        "gaussian", gaussian_units(config["gaussian_units"], shape, config["seed"]), config["most"]
    )
    checkpoint = default_checkpoint()
    settings = {"config": CONFIG.name, "config_sha256": sha256(CONFIG), **config}
    record = manifest([], [checkpoint, checkpoint.with_name("held_out.jsonl")], settings) | {
        "command": f"python {Path(__file__).resolve().relative_to(ROOT)}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - start),
        "processor_seconds": round(time.process_time()),
    }
    section = write_expansion(rows, record, arguments.out)
    for finding in section.findings:
        print(finding.text)


if __name__ == "__main__":
    main()
