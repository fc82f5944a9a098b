"""Gaps between arms that were trained in pairs: their intervals, and what could have been seen."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lowprec.study.intervals import student_t
from lowprec.study.training_rows import FinalRow, LossRow

LEVEL, POWER = 0.95, 0.8
DIVERGED = 1.0
"""Bits per byte over the baseline, in one seed, from which on an arm is said to have diverged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gap:
    """A paired difference to the baseline, over seeds, in bits per byte.

    Attributes:
      arm: the one compared.
      measure: a column of `FinalRow`.
      seeds: how many pairs.
      mean, low, high: with the 95 % interval of Student's t over seeds; NaN where there are fewer
        than two pairs.
      spread: standard deviation over seeds.
      level: the baseline's mean loss in these pairs.
      verdict: `diverged`, `worse`, `better`, or `not resolved`: the interval contains zero, or the
        gap lies inside the null arm's interval, or either of the two has fewer than two pairs.
    """

    arm: str
    measure: str
    seeds: int
    mean: float
    low: float
    high: float
    spread: float
    level: float
    verdict: str


def paired(rows: Sequence[FinalRow], arm: str, baseline: str, measure: str) -> np.ndarray:
    """Differences to the baseline, (seeds,), of the seeds that both have, ascending."""
    own, other = _pairs(rows, arm, baseline, measure)
    return own - other


def _pairs(rows: Sequence[FinalRow], arm: str, baseline: str, measure: str) -> np.ndarray:
    """An arm's losses and the baseline's, (2, seeds), of the seeds that both have, ascending."""
    found = [
        {row.seed: getattr(row, measure) for row in rows if row.arm == name}
        for name in (arm, baseline)
    ]
    both = sorted(found[0].keys() & found[1].keys())
    return np.array([[one[seed] for seed in both] for one in found])


def interval(differences: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of their mean; NaN for fewer than two."""
    count = len(differences)
    if count < 2:
        return math.nan, math.nan
    half = student_t((1 + LEVEL) / 2, count - 1) * differences.std(ddof=1) / math.sqrt(count)
    return float(differences.mean() - half), float(differences.mean() + half)


def gaps(
    rows: Sequence[FinalRow], baseline: str, null: str, measure: str = "held_out"
) -> list[Gap]:
    """The gap of every arm but the baseline, in the order of the rows."""
    around = interval(paired(rows, null, baseline, measure))
    found = []
    for arm in dict.fromkeys(row.arm for row in rows if row.arm != baseline):
        own, other = _pairs(rows, arm, baseline, measure)
        if not len(own):
            continue
        differences = own - other
        low, high = interval(differences)
        found.append(
            Gap(
                arm=arm,
                measure=measure,
                seeds=len(differences),
                mean=float(differences.mean()),
                low=low,
                high=high,
                spread=float(differences.std(ddof=1)) if len(differences) > 1 else math.nan,
                level=float(other.mean()),
                verdict=_verdict(differences, (low, high), around),
            )
        )
    return found


def _verdict(differences: np.ndarray, own: tuple[float, float], null: tuple[float, float]) -> str:
    # A NaN is no loss at all.
    if not np.all(differences < DIVERGED):
        return "diverged"
    mean = differences.mean()
    # A comparison with NaN is false: where there is no interval, nothing is resolved.
    beyond = mean < null[0] or mean > null[1]
    if not beyond or not (own[0] > 0 or own[1] < 0):
        return "not resolved"
    return "worse" if mean > 0 else "better"


def smallest_effect(
    rows: Sequence[FinalRow], baseline: str, null: str, measure: str = "held_out"
) -> float:
    """The gap that a run of so many seeds would have found with a probability of 80 %.

    Of an arm whose gap varies over seeds as the null arm's does, in a paired two-sided t test at 5
    %: (t of 0.975 + t of 0.8) standard errors. NaN for fewer than two pairs.
    """
    differences = paired(rows, null, baseline, measure)
    count = len(differences)
    if count < 2:
        return math.nan
    width = sum(student_t(p, count - 1) for p in ((1 + LEVEL) / 2, POWER))
    return width * float(differences.std(ddof=1)) / math.sqrt(count)


def curves(rows: Sequence[LossRow], baseline: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Gaps of the training loss to the baseline's on the same windows, by arm.

    Returns:
      Steps (rows,), and gaps (seeds, rows), of the seeds that both have.
    """
    losses: dict[tuple[str, int], dict[int, float]] = {}
    for row in rows:
        losses.setdefault((row.arm, row.seed), {})[row.step] = row.bits_per_byte
    found: dict[str, list[np.ndarray]] = {}
    steps = np.array(sorted({row.step for row in rows}))
    for (arm, seed), own in losses.items():
        other = losses.get((baseline, seed))
        if arm != baseline and other is not None:
            found.setdefault(arm, []).append(np.array([own[s] - other[s] for s in steps.tolist()]))
    return {arm: (steps, np.stack(values)) for arm, values in found.items()}
