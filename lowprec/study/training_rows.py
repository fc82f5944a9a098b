"""The rows of a training study: a field a column."""

import dataclasses
from pathlib import Path

import numpy as np

from lowprec.study.training_config import TrainingConfig
from lowprec.study.training_state import Finished, load_finished


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossRow:
    """The mean training loss of the steps up to and with `step`, since the row before."""

    arm: str
    seed: int
    step: int
    bits_per_byte: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinalRow:
    """What a run ended with: bits per byte.

    `held_out` has the linear layers as in training, `held_out_bf16` in bfloat16; `training` is the
    mean of the last tenth of the steps.
    """

    arm: str
    recipe: str
    seed: int
    steps: int
    held_out: float
    held_out_bf16: float
    training: float
    step_seconds: float


def collect(config: TrainingConfig, folder: Path, text: bytes) -> list[Finished]:
    """What is finished, seed by seed, in the order of the arms.

    Raises:
      ValueError: a run was made under other settings, or on another text.
    """
    digests = {arm.name: config.digest(arm, text) for arm in config.arm}
    found = [
        load_finished(folder, name, seed, digest)
        for seed in range(config.seeds)
        for name, digest in digests.items()
    ]
    return [one for one in found if one is not None]


def loss_rows(done: Finished, every: int) -> list[LossRow]:
    """A row for every so many steps."""
    means = np.asarray(done.losses, np.float64).reshape(-1, every).mean(1)
    return [
        LossRow(arm=done.arm, seed=done.seed, step=(i + 1) * every, bits_per_byte=float(mean))
        for i, mean in enumerate(means)
    ]


def final_row(done: Finished) -> FinalRow:
    """The row of a run's end."""
    last = done.losses[-max(len(done.losses) // 10, 1) :]
    return FinalRow(
        arm=done.arm,
        recipe=done.recipe,
        seed=done.seed,
        steps=len(done.losses),
        held_out=done.held_out,
        held_out_bf16=done.held_out_bf16,
        training=float(np.mean(last)),
        step_seconds=round(done.step_seconds, 4),
    )
