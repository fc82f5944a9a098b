"""Tables and figures of what experiments/train_recipes.py has finished so far, wholly or in part.

    python experiments/train_recipes_report.py --state DIRECTORY [--out reports/training]

Gradients of the baseline's first seed are summed again on Hopper's engine, at the steps whose
parameters lie in the directory: some minutes, once, for what is in the table is kept. Blocks just
below a power of two are quantized under every scale rule.
"""

import argparse
import datetime
import time
from pathlib import Path

import numpy as np
from train_recipes import CONFIG, HELD_OUT, ROOT, say, texts

from lowprec.engines.engine import get_engine
from lowprec.report import stored
from lowprec.report.training import SCRIPT, write_training
from lowprec.report.training_replay_figure import product_name, series
from lowprec.study.collapse import collapse_rows, value_rows
from lowprec.study.manifest import manifest, sha256
from lowprec.study.training import captured_path, load_params
from lowprec.study.training_config import TrainingConfig, read_training_config
from lowprec.study.training_replay import ReplayRow, captured, replay_rows
from lowprec.study.training_rows import collect, final_row, loss_rows

RULES = ("mxfp8_e4m3", "mxfp8_e4m3_even", "mxfp8_e4m3_rceil", "mxfp8_e4m3_ceil", "mxfp8_e5m2")
INTERVALS = ((0.875, 1.0), (0.75, 1.0), (0.5, 1.0))


def replay(config: TrainingConfig, state: Path, text: np.ndarray, table: Path) -> None:
    """Writes products of the wide layers, of each step that was kept and is not in the table."""
    rows = stored.read_rows(table, ReplayRow, SCRIPT)
    for step in config.capture_steps:
        path = captured_path(state, config, step)
        if not path.is_file() or any(row.step == step for row in rows):
            continue
        params, _ = load_params(path, config)
        for row in replay_rows(captured(params, text, config, step), step):
            say(f"step {step} {product_name(row)} {series(row)}: {row.added:.3g} added")
            rows.append(row)
        stored.write_table(rows, ReplayRow, table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--state", type=Path, required=True, help="where runs were kept")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "training")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--again", action="store_true", help="replay steps that are there anew")
    arguments = parser.parse_args()
    begin, config = time.perf_counter(), read_training_config(arguments.config)
    text, _ = texts(config)
    done = collect(config, arguments.state, text.tobytes())
    rows = {
        "losses": [row for one in done for row in loss_rows(one, config.record_every)],
        "final": [final_row(one) for one in done],
        "collapse": collapse_rows(RULES, INTERVALS),
        "collapse_values": value_rows(RULES, *INTERVALS[0]),
    }
    table = arguments.out / "replay.csv"
    if arguments.again:
        table.unlink(missing_ok=True)
    replay(config, arguments.state, text, table)
    model = config.model
    settings = {
        "arms": len(config.arm),
        "config": arguments.config.name,
        "config_sha256": sha256(arguments.config),
        "engine": f"native, tiles of {config.arm[0].tile or get_engine('native').tile}",
        "finished": len(done),
        "model": f"{model.layers} layer of width {model.width} with {model.heads} heads of "
        f"{model.head_dim}",
        "seeds": config.seeds,
        "steps": config.steps,
        "tokens_a_step": config.batch * model.context,
        "versions_of_runs": [
            dict(x) for x in sorted({tuple(one.versions.items()) for one in done})
        ],
    }
    trained = sum(one.step_seconds * len(one.losses) for one in done)
    record = manifest([arm.on_native() for arm in config.arm], [HELD_OUT], settings) | {
        "command": "python experiments/train_recipes.py --state DIRECTORY; "
        f"python {Path(__file__).resolve().relative_to(ROOT)} --state DIRECTORY",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(trained + time.perf_counter() - begin),
    }
    section = write_training(rows, record, arguments.out)
    say(f"{len(done)} of {config.seeds * len(config.arm)} runs are done; wrote {arguments.out}")
    for finding in section.findings:
        print(finding.text)


if __name__ == "__main__":
    main()
