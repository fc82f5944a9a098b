"""Choosing among scores: against enumeration, with ties, budgets that nothing fits, and runs."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

import lowprec as lp
from lowprec.scaling.block import get_format_or_block
from lowprec.study.advise_candidates import (
    Candidate,
    candidates,
    combinations,
    combined,
    entries,
    stored_bits,
)
from lowprec.study.advise_choice import TIE, Goal, around, choose, contenders, front, settle

OPERANDS = ("mxfp4", "nvfp4", "mxfp6_e2m3", "mxfp8_e4m3")
"""Of 4.25, 4.5, 6.25 and 8.25 bits."""
SEEDS = range(8)


def some(made: bool = False) -> list[Candidate]:
    pairs = [(get_format_or_block(a), get_format_or_block(b)) for a in OPERANDS for b in OPERANDS]
    return [Candidate(recipe=combined(a, b), depth=64, made=made) for a, b in pairs]


def scored(seed: int) -> dict[Candidate, float]:
    """Scores that rise with bits, some of them equal and some not numbers."""
    rng = np.random.default_rng(seed)
    found = some() + some(made=True)
    values = [round(4 * x.bits + rng.normal(scale=3), 1) for x in found]
    return {x: -math.inf if rng.random() < 0.05 else y for x, y in zip(found, values, strict=True)}


def enumerated(scores: dict[Candidate, float], goal: Goal) -> Candidate | None:
    """The same rule as a comparison of every two."""
    fit = [
        x
        for x, y in scores.items()
        if x.bits <= goal.bits and y > -math.inf and y >= (goal.min_sqnr or -math.inf)
    ]
    if goal.min_sqnr is not None:
        fit = [x for x in fit if not any(y.bits < x.bits for y in fit)]
    near = [x for x in fit if not any(scores[y] > scores[x] + TIE for y in fit)]
    order = {x: (x.bits, x.made, i) for i, x in enumerate(scores)}
    return min(near, key=lambda x: order[x]) if near else None


GOALS = [
    Goal(budget_bits=4.5),
    Goal(budget_bits=6.3),
    Goal(min_sqnr=30),
    Goal(min_sqnr=24, budget_bits=6.3),
    Goal(min_sqnr=40, budget_bits=5),
    Goal(budget_bits=4),
]


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_the_choice_is_that_of_enumeration(goal: Goal) -> None:
    found = []
    for seed in SEEDS:
        scores = scored(seed)
        [*picked] = choose(scores, goal)
        wanted = enumerated(scores, goal)
        assert picked == ([] if wanted is None else [wanted])
        found.append(wanted)
    impossible = goal.bits == 4 or goal.min_sqnr == 40
    assert all(x is None for x in found) if impossible else len({*found}) > 1


def test_the_front_is_what_nothing_dominates() -> None:
    for seed in SEEDS:
        scores = scored(seed)
        line = front(scores)
        assert len(line) > 2
        for x, y in itertools.pairwise(line):
            assert x.bits < y.bits and scores[y] > scores[x] + TIE
        # Whatever is not on it is no better than a cheaper or equal one that is, but for a tie.
        for x, value in scores.items():
            if value > -math.inf:
                assert any(y.bits <= x.bits and scores[y] >= value - TIE for y in line)


def test_ties_prefer_the_cheaper_then_entries_then_the_first() -> None:
    cheap, entry, made = (
        Candidate(
            recipe=combined(get_format_or_block(n), get_format_or_block(n)), depth=64, made=made
        )
        for n, made in (("mxfp4", True), ("nvfp4", False), ("nvfp4", True))
    )
    goal = Goal(budget_bits=5)
    assert choose({made: 20.0, entry: 20.0 - TIE / 2}, goal) == [entry]
    assert choose({made: 20.0, entry: 20.0 - 2 * TIE}, goal) == [made]
    assert choose({made: 20.0, entry: 20.0, cheap: 20.0 - TIE / 2}, goal) == [cheap]
    assert choose({entry: 20.0, cheap: 19.0}, Goal(min_sqnr=15)) == [cheap]
    assert choose({}, goal) == []


def test_what_is_chosen_has_run_and_what_its_engine_loses_counts() -> None:
    found = {x.recipe.name: x for x in some()}
    best, next_best, worst = (found[f"both_{n}"] for n in ("nvfp4", "mxfp4", "mxfp6_e2m3"))
    scores, ran = {best: 20.0, next_best: 19.0, worst: 10.0}, set[Candidate]()
    losses = {best: 5.0, next_best: 0.5, worst: 0.0}
    picked = settle(scores, Goal(budget_bits=8), lambda x: scores[x] - losses[x], ran)
    assert picked == [next_best] and ran == {best, next_best}
    assert scores == {best: 15.0, next_best: 18.5, worst: 10.0}


def test_contenders_are_those_that_a_margin_would_have_chosen() -> None:
    found = {x.recipe.name: x for x in some()}
    chosen, near, far, dear = (
        found[n] for n in ("both_nvfp4", "a_mxfp4_b_nvfp4", "both_mxfp4", "both_mxfp8_e4m3")
    )
    estimates = {near: 19.8, far: 18.0, dear: 30.0}
    assert contenders(estimates, {chosen: 20.0}, Goal(budget_bits=4.5), 0.5) == [near]
    assert contenders(estimates, {chosen: 20.0}, Goal(min_sqnr=18.2), 0.5) == [near, far]
    assert around({chosen: 20.0, dear: 30.0, far: 18.0}, [chosen], Goal(min_sqnr=19)) == [
        far,
        chosen,
        dear,
    ]


def test_the_scale_of_a_row_is_spread_over_it() -> None:
    """A float32 scale and 64 codes of 8 bits; a float32 scale on top of 4.5 bits."""
    assert stored_bits(lp.get_block("int8_token"), 64) == 8.5
    assert stored_bits(lp.get_block("nvfp4_row"), 64) == 5
    assert stored_bits(lp.get_block("fp8_tensor"), 64) == 8
    assert stored_bits(lp.get_format("bfloat16"), 64) == 16


def test_recipes_that_compute_the_same_are_one_candidate() -> None:
    found = candidates(entries(), "fprop", 64)
    names = [x.recipe.name for x in found] + [n for x in found for n in x.alike]
    assert sorted(names) == sorted(recipe.name for recipe in entries())
    assert len(found) < len(names) and not any(n.endswith("_exact") for n in names)
    # One recipe twice under another name is one.
    mxfp4 = lp.get_recipe("mxfp4")
    [only] = candidates([mxfp4, dataclasses.replace(mxfp4, name="other")], "wgrad", 64)
    assert only.recipe.name == "mxfp4" and only.alike == ("other",)


@pytest.mark.parametrize("name", ["nvfp4_training", "gptq_mxfp4", "te_delayed"])
def test_recipes_that_need_more_than_operands_are_refused(name: str) -> None:
    assert name not in [recipe.name for recipe in entries()]
    with pytest.raises(ValueError, match=f"recipe '{name}'"):
        candidates([lp.get_recipe(name)], "fprop", 64)


def test_combinations_change_one_thing_and_are_new() -> None:
    known = candidates(entries(), "fprop", 64)
    best = [x for x in known if x.recipe.name in ("mxfp4", "nvfp4")]
    assert len(best) == 2
    made = combinations(best, known, 4.5)
    names = {x.recipe.name for x in made}
    assert len(names) == len(made) > 20 and all(x.made and x.bits <= 4.5 for x in made)
    assert "a_mxfp4_b_nvfp4" in names and "both_mxfp4" not in names
    # The catalogue's own block stands in for one that equals it.
    assert "a_mxfp4_even_b_nvfp4" in names and "a_mxfp4_scale_rule_even_b_nvfp4" not in names
    assert any("tile_1x64" in name for name in names)
    plain = combinations(best, known, 8.0, changed=False)
    assert {x.recipe.name for x in plain} == {"a_mxfp4_b_nvfp4", "a_nvfp4_b_mxfp4"}


@pytest.mark.parametrize(
    ("given", "message"),
    [({"budget_bits": 0.0}, "budget_bits.*above 0"), ({"min_sqnr": math.nan}, "min_sqnr.*dB")],
)
def test_goals_that_mean_nothing(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Goal(**given)
