"""Advice against exhaustive search: every candidate run by `gemm`, every pair of goals."""

import dataclasses
import math

import numpy as np
import pytest

import lowprec as lp
from lowprec.gemm.recipe import Recipe, Role
from lowprec.models.operands import Operands
from lowprec.study import advise_values
from lowprec.study.advise import Advice, advise, interval, ratio
from lowprec.study.advise_candidates import Candidate
from lowprec.study.advise_choice import Goal, choose
from lowprec.study.advise_parts import Limits
from lowprec.study.advise_rows import advice_rows, reason, table
from lowprec.study.ratios import Estimate

FEW = ("bf16", "mxfp4", "mxfp8", "ocp_e2m1_e4m3", "ocp_e4m3_e2m1")
MANY = (*FEW, "deepseek_v3", "fp8_tensor", "int8_dynamic", "mxfp6", "nvfp4", "te_current")
GOALS = (
    Goal(budget_bits=6.3),
    Goal(budget_bits=4),
    Goal(min_sqnr=17),
    Goal(min_sqnr=20, budget_bits=8.5),
    Goal(min_sqnr=45, budget_bits=8.5),
)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advise_values, "PIECE", (128, 128))


def layer(tokens: int = 128) -> Operands:
    """One whose x is harder than its w: two of its channels are ten times as large."""
    rng = np.random.default_rng(5)
    x, w, dy = (rng.standard_normal(s) for s in ((tokens, 128), (128, 48), (tokens, 48)))
    x[:, [3, 60]] *= 10
    return Operands("fc", *(array.astype(np.float32) for array in (x, w, dy)))


def recipes(names: tuple[str, ...] = FEW) -> list[Recipe]:
    return [lp.get_recipe(name) for name in names]


def exhaustive(found: Advice) -> dict[Candidate, float]:
    """The SQNR of every candidate that was looked at, as `gemm` has it on the part to choose on."""
    scores = {}
    for candidate in found.scores:
        noise, signal = 0.0, 0.0
        for (a, b), exact in zip(
            found.product.select.pairs, found.product.select.exact, strict=True
        ):
            y = lp.gemm(a, b, candidate.recipe, role=found.product.role)
            noise += float(np.sum((np.asarray(y, np.float64) - exact) ** 2))
            signal += float(np.sum(exact**2))
        scores[candidate] = 10 * math.log10(signal / noise)
    return scores


def agrees(found: Advice) -> None:
    """What was chosen is what exhaustive search over the same candidates chooses."""
    scores = exhaustive(found)
    assert list(found.picked) == choose(scores, found.goal)
    for candidate, value in scores.items():
        close = 1e-6 if candidate in found.ran else 0.05
        assert found.scores[candidate] == pytest.approx(value, abs=close)


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_the_choice_is_that_of_exhaustive_search(goal: Goal) -> None:
    [found] = advise([layer()], recipes(), goal, roles=["fprop"], combine=False)
    agrees(found)
    impossible = goal.bits == 4 or goal.min_sqnr == 45
    assert len(found.picked) == (not impossible)
    if goal == GOALS[3]:
        assert found.picked[0].recipe.name == "mxfp8"


@pytest.mark.slow
@pytest.mark.parametrize("role", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("goal", [Goal(), Goal(budget_bits=4.5), Goal(min_sqnr=25)], ids=str)
def test_so_are_combinations_and_the_front(goal: Goal, role: Role) -> None:
    limits = Limits(groups=4)
    [found] = advise([layer(256)], recipes(MANY), goal, roles=[role], limits=limits)
    agrees(found)
    assert any(x.made for x in found.scores)


def test_ties_and_equal_recipes_go_to_the_first() -> None:
    mxfp4 = lp.get_recipe("mxfp4")
    same = dataclasses.replace(mxfp4, name="same")
    [found] = advise([layer()], [mxfp4, same], Goal(budget_bits=5), roles=["fprop"], combine=False)
    [only] = found.picked
    assert only.recipe.name == "mxfp4" and only.alike == ("same",) and len(found.scores) == 1
    [row] = advice_rows(found, source="s")
    assert row.runner_up == "" and math.isnan(row.gap_db) and row.reason.endswith("same as same")


def test_figures_are_of_the_tokens_that_were_not_chosen_on() -> None:
    goal = Goal(budget_bits=6.3)
    [found] = advise([layer()], recipes(), goal, roles=["fprop"], combine=False)
    [row] = advice_rows(found, source="s")
    a, b = found.product.report.pairs[0]
    assert not np.shares_memory(a, found.product.select.pairs[0][0])
    y = np.asarray(lp.gemm(a, b, row.recipe.removeprefix("recipe:")), np.float64)
    assert row.sqnr_db == pytest.approx(lp.metrics.sqnr_db(y, found.product.report.exact[0]))
    assert row.low_db < row.sqnr_db < row.high_db and row.high_db - row.low_db < 2
    assert row.select_db != row.sqnr_db and abs(row.select_db - row.sqnr_db) < 1
    assert row.gap_low_db < row.gap_db < row.gap_high_db
    assert (row.m, row.k, row.n, row.tokens, row.groups) == (64, 128, 48, 64, 8)
    text = table([row])
    assert "best within 6.3 bits" in text and f"{row.sqnr_db:.1f}" in text


def test_a_goal_that_the_interval_does_not_hold_is_flagged() -> None:
    """Three goals: below the interval of what is chosen, inside it, and above its value."""
    [found] = advise([layer()], recipes(), Goal(min_sqnr=20), roles=["fprop"], combine=False)
    [only] = found.picked
    low, high = interval(found.sqnr[only], len(found.product.report.signal))
    assert 20 < low < found.sqnr[only].value < high
    for wanted, flag in (
        (low - 0.01, ""),
        (low + 0.01, f"but its 95 % interval reaches down to {low:.1f} dB"),
        (high, f"but {found.sqnr[only].value:.1f} dB on the tokens it was not chosen on"),
    ):
        goal = Goal(min_sqnr=wanted)
        said = reason(dataclasses.replace(found, goal=goal), only).split("; ")
        assert said[0] == f"cheapest of {goal}"
        assert [x for x in said if x.startswith("but ")] == ([flag] if flag else [])


def test_what_nothing_satisfies_says_what_comes_nearest() -> None:
    [found] = advise([layer()], recipes(), GOALS[4], roles=["fprop"], combine=False)
    [row] = advice_rows(found, source="s")
    assert row.recipe == "" and math.isnan(row.sqnr_db)
    assert row.reason.startswith(
        "no recipe has at least 45 dB and within 8.5 bits: the best is mxfp8"
    )
    [found] = advise([layer()], recipes(), Goal(budget_bits=4), roles=["fprop"], combine=False)
    [row] = advice_rows(found, source="s")
    assert row.reason == "no recipe is within 4 bits; all that were offered have more bits"


def test_what_cannot_be_advised_on() -> None:
    whole = layer()
    forward = Operands("fc", x=whole.x, w=whole.w)
    with pytest.raises(ValueError, match=r"no product wgrad in fc \(fprop\)"):
        next(advise([forward], recipes(), Goal(), roles=["wgrad"]))
    bad = layer()
    assert bad.w is not None
    bad.w[1, 2] = np.inf
    with pytest.raises(ValueError, match=r"`fc\.w` holds 0 NaN and 1 Inf"):
        next(advise([bad], recipes(), Goal()))
    with pytest.raises(ValueError, match=r"nvfp4_training.*rounds stochastically"):
        next(advise([forward], recipes(("nvfp4_training",)), Goal()))


def test_intervals_are_students() -> None:
    energies = np.array([90.0, 110.0, 100.0, 100.0])
    found = ratio(energies, np.ones(4))
    low, high = interval(found, 4)
    assert found.value == pytest.approx(20) and high - 20 == pytest.approx(20 - low)
    # t of 3 degrees of freedom, times the standard error of the mean of log-energies.
    error = 10 / math.log(10) * energies.std(ddof=1) / 100 / 2
    assert high - 20 == pytest.approx(3.18244630528 * error, rel=1e-9)
    # More groups than a printed table has, and too few for a spread.
    assert interval(Estimate(0.0, 1.0), 29) == pytest.approx((-2.04840714180, 2.04840714180))
    with pytest.raises(ValueError, match="degrees"):
        interval(found, 1)
    assert ratio(np.ones(2), np.zeros(2)) == Estimate(math.inf, 0.0)
    assert ratio(np.zeros(2), np.ones(2)).value == -math.inf
    assert math.isnan(ratio(np.ones(2), np.array([1.0, np.nan])).value)
