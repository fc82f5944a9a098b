"""Does training notice the recipe? Eight recipes and a null arm, paired: train_recipes.toml.

    python experiments/train_recipes.py --state DIRECTORY             # measure, plan, train
    python experiments/train_recipes.py --state DIRECTORY --plan      # measure, print the plan
    python experiments/train_recipes.py --state DIRECTORY --core 0 --arms bf16 mxfp8

Every arm is measured first; a run that would exceed the budget is refused. It goes seed by seed
over all arms, so that whatever is finished is paired. Killed at any step, the same command goes on
to the same bits. Processes that share a directory may train arms of their own, each on a core of
its own: bits are those of one core, whichever, where `--core` is given, else those of all cores.
train_recipes_report.py writes the tables and figures, also of what is finished so far.
"""

import argparse
import dataclasses
import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lowprec.models import corpus
from lowprec.study.training import Measured, Program, steps_left, train
from lowprec.study.training_config import TrainingConfig, read_training_config
from lowprec.study.training_plan import plan_of

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path(__file__).with_suffix(".toml")
HELD_OUT = ROOT / "experiments" / "checkpoints" / "held_out.jsonl"


def say(line: str) -> None:
    print(f"{datetime.datetime.now(datetime.UTC):%H:%M:%S} {line}", flush=True)


def texts(config: TrainingConfig) -> tuple[np.ndarray, corpus.Windows]:
    """What is trained on, and evenly spread windows of the held-out slice's report part."""
    held_out = corpus.load_held_out(HELD_OUT, "report")
    names = {name for name, _ in corpus.load_held_out(HELD_OUT)}
    training = [x for x in corpus.split(corpus.standard_library())[0] if x[0] not in names]
    # A zero byte, which no source file contains, tells where one file ends.
    text = np.frombuffer(b"\0".join(content for _, content in training), np.uint8)
    windows = corpus.windows(held_out, config.model.context)
    count = min(config.held_out_windows, len(windows.tokens))
    chosen = np.linspace(0, len(windows.tokens) - 1, count).round().astype(int)
    return text, dataclasses.replace(
        windows,
        tokens=windows.tokens[chosen],
        mask=windows.mask[chosen],
        document=windows.document[chosen],
    )


def measured(programs: Sequence[Program]) -> dict[str, Measured]:
    """Each arm's times, by name."""
    found = {}
    for program in programs:
        found[program.arm.name] = one = program.measure()
        say(
            f"{program.arm.name}: compiled in {one.compile:.0f} s, {one.step:.3f} s a step, "
            f"{one.score:.1f} s to score"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--state", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--seeds", type=int, help="fewer or more than the file says")
    parser.add_argument("--arms", nargs="+", help="train some of the file's")
    parser.add_argument("--core", type=int, help="compute on one processor core, this one")
    parser.add_argument("--budget-minutes", type=float, help="in place of the file's")
    parser.add_argument("--plan", action="store_true", help="measure, print the plan and stop")
    arguments = parser.parse_args()
    config = read_training_config(arguments.config)
    changes = {"seeds": arguments.seeds, "budget_minutes": arguments.budget_minutes}
    config = dataclasses.replace(config, **{k: v for k, v in changes.items() if v is not None})
    chosen = [config.named(name) for name in arguments.arms or config.arm_names]
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    text, held_out = texts(config)
    left = {
        (arm.name, seed): steps_left(config, arm, seed, arguments.state, text)
        for seed in range(config.seeds)
        for arm in chosen
    }
    wanted = {name for (name, _), steps in left.items() if steps}
    programs = [Program(config, arm, text, held_out) for arm in chosen if arm.name in wanted]
    costs = measured(programs)
    left = {key: steps for key, steps in left.items() if key[0] in wanted}
    plan = plan_of(config, costs, left)
    print("\n".join(plan.lines()), flush=True)
    if plan.refusal is not None:
        sys.exit(plan.refusal)
    if arguments.plan:
        return
    for seed in range(config.seeds):
        for program in programs:
            done = train(program, seed, arguments.state, say)
            say(f"{done.arm} seed {seed}: held out {done.held_out:.4f} bits per byte")


if __name__ == "__main__":
    main()
