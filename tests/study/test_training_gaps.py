"""Paired gaps: Student's t, verdicts, and the smallest effect."""

import math

import numpy as np

from lowprec.study.training_gaps import curves, gaps, interval, paired, smallest_effect
from lowprec.study.training_rows import FinalRow, LossRow

NULL = (0.002, -0.001, 0.001, -0.002, 0.001)


def rows(**arms: tuple[float, ...]) -> list[FinalRow]:
    """The baseline at 3 and more, and arms whose gaps are given by seed."""
    found = []
    for arm, values in {"bf16": (0.0,) * 5, "bf16_null": NULL, **arms}.items():
        for seed, value in enumerate(values):
            level = 3 + 0.1 * seed + value
            found.append(
                FinalRow(
                    arm=arm, recipe=arm, seed=seed, steps=400, held_out=level,
                    held_out_bf16=level - value, training=level, step_seconds=0.1,
                )
            )  # fmt: skip
    return found


def test_pairs_are_of_the_seeds_that_both_have() -> None:
    found = [row for row in rows(mxfp8=(0.1, 0.2, 0.3)) if (row.arm, row.seed) != ("bf16", 1)]
    np.testing.assert_allclose(paired(found, "mxfp8", "bf16", "held_out"), [0.1, 0.3])
    assert all(map(math.isnan, interval(np.array([1.0]))))
    low, high = interval(np.array([1.0, 3.0]))
    np.testing.assert_allclose([low, high], [2 - 12.7062, 2 + 12.7062], rtol=1e-5)


def test_verdicts() -> None:
    arms = {
        "far": (0.1, 0.11, 0.12, 0.1, 0.11),
        "good": (-0.1, -0.11, -0.12, -0.1, -0.11),
        "spread": (0.1, -0.1, 0.05, -0.05, 0.02),
        "tiny": (0.0005, 0.00051, 0.00052, 0.0005, 0.00051),
        "edge": (0.0005, 0.0025, 0.003, 0.0025, 0.0005),
        "gone": (0.1, 0.1, math.nan, 0.1, 0.1),
        "high": (0.1, 0.1, 2.0, 0.1, 0.1),
    }
    found = {gap.arm: gap for gap in gaps(rows(**arms), "bf16", "bf16_null")}
    verdicts = {name: gap.verdict for name, gap in found.items()}
    assert verdicts == {
        "bf16_null": "not resolved", "far": "worse", "good": "better", "spread": "not resolved",
        "tiny": "not resolved", "edge": "not resolved", "gone": "diverged", "high": "diverged",
    }  # fmt: skip
    # Intervals that exclude zero, of gaps inside the null arm's interval.
    null = found["bf16_null"]
    assert found["tiny"].low > 0 and null.high > found["tiny"].high
    assert found["edge"].low > 0 and found["edge"].high > null.high > found["edge"].mean
    np.testing.assert_allclose(found["far"].mean, 0.108)
    np.testing.assert_allclose(found["far"].level, 3.2)
    np.testing.assert_allclose(found["far"].spread, np.std(arms["far"], ddof=1))
    own = {gap.arm: gap for gap in gaps(rows(**arms), "bf16", "bf16_null", "held_out_bf16")}
    assert own["far"].mean == 0 and own["far"].measure == "held_out_bf16"


def test_without_the_null_arms_interval_nothing_is_resolved() -> None:
    found = [
        row for row in rows(far=(0.1, 0.11, 0.1)) if (row.arm, row.seed < 1) != ("bf16_null", False)
    ]
    gap = gaps(found, "bf16", "bf16_null")[-1]
    assert gap.low > 0 and gap.seeds == 3 and gap.verdict == "not resolved"
    # Gap and level are of the seeds that both have.
    np.testing.assert_allclose(gap.level, 3.1)


def test_one_seed_has_a_gap_and_no_verdict() -> None:
    found = [row for row in rows(far=(0.1,)) if row.seed == 0]
    gap = gaps(found, "bf16", "bf16_null")[-1]
    assert gap.seeds == 1 and math.isnan(gap.low) and gap.verdict == "not resolved"
    assert math.isnan(smallest_effect(found, "bf16", "bf16_null"))
    assert gaps([], "bf16", "bf16_null") == []


def test_the_smallest_effect_is_found_four_times_in_five() -> None:
    effect = smallest_effect(rows(), "bf16", "bf16_null")
    spread = np.std(NULL, ddof=1)
    np.testing.assert_allclose(effect, (2.7764 + 0.9410) * spread / math.sqrt(5), rtol=1e-4)
    rng = np.random.default_rng(0)
    trials = effect + spread * rng.standard_normal((20000, 5))
    half = 2.7764 * trials.std(1, ddof=1) / math.sqrt(5)
    # The sum of two quantiles is the usual approximation to the noncentral distribution.
    assert 0.77 < (trials.mean(1) > half).mean() < 0.83


def test_curves_are_differences_on_the_same_windows() -> None:
    losses = [
        LossRow(arm=arm, seed=seed, step=step, bits_per_byte=5 - step / 10 + extra * step)
        for arm, extra in (("bf16", 0.0), ("mxfp4", 0.5))
        for seed in (0, 1)
        for step in (10, 20)
        if (arm, seed) != ("bf16", 1)
    ]
    found = curves(losses, "bf16")
    assert list(found) == ["mxfp4"]
    steps, each = found["mxfp4"]
    assert steps.tolist() == [10, 20]
    np.testing.assert_allclose(each, [[5.0, 10.0]])
