"""Advice: the recipes that keep most of a layer's products for their bits, on a user's operands.

Chosen on one half of the tokens, reported on the other. Candidates are scored by their quantized
operands; what is chosen has run with its own engine, and so have the figures that are reported.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lowprec.gemm.gemm import gemm
from lowprec.gemm.recipe import ROLES, Recipe, Role
from lowprec.models.operands import Operands
from lowprec.study.advise_candidates import Candidate, candidates, combinations
from lowprec.study.advise_choice import (
    Goal,
    Scores,
    around,
    choose,
    contenders,
    front,
    preferred,
    settle,
)
from lowprec.study.advise_parts import Limits, Part, Product, cut
from lowprec.study.advise_screen import Progress, Screen, sqnr
from lowprec.study.intervals import student_t
from lowprec.study.ratios import Estimate, decibels

MARGIN = 0.5
"""dB by which a combination may be better than the errors of its operands, added, let expect."""
LEVEL = 16
"""Candidates that are scored before it is asked whether dearer ones are needed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice:
    """What was found for one product.

    Attributes:
      product: the operands, in two parts.
      goal: what was wanted.
      picked: what was chosen: one candidate, none, or the whole front, fewest bits first.
      scores: dB on the part to choose on: of what ran as it ran, else from the operands alone.
      ran: the candidates that ran.
      sqnr: of what was chosen and its runners-up, on the part to report.
      runner_up: of each that was chosen, what it is compared with, and by how many dB that is
        worse; None where there is nothing to compare with.
    """

    product: Product
    goal: Goal
    picked: tuple[Candidate, ...]
    scores: Scores
    ran: frozenset[Candidate]
    sqnr: dict[Candidate, Estimate]
    runner_up: dict[Candidate, tuple[Candidate, Estimate] | None]


def advise(
    operands: Sequence[Operands],
    recipes: Sequence[Recipe],
    goal: Goal,
    *,
    roles: Sequence[Role] = ROLES,
    limits: Limits | None = None,
    combine: bool = True,
    progress: Progress | None = None,
) -> Iterator[Advice]:
    """The best recipes for every layer and role, one `Advice` after the other.

    Args:
      operands: layers, each with two of x, w and dy, or all.
      recipes: what to choose from; `lowprec.study.advise_candidates.entries` for the catalogue.
      goal: a budget of bits, a least SQNR, both, or neither for the whole Pareto front.
      roles: which products, of those that a layer has.
      limits: how much of the operands is used.
      combine: whether blocks of the best recipes are combined and changed besides.
      progress: told what is under way.

    Raises:
      ValueError: no layer has a product in these roles; too few tokens; NaN or Inf; a recipe that
        needs more than operands.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> x, w = (rng.standard_normal(shape).astype("f4") for shape in ((64, 32), (32, 16)))
      >>> recipes = [lp.get_recipe(name) for name in ("mxfp4", "mxfp8")]
      >>> goal = Goal(budget_bits=5)
      >>> [found] = advise([Operands("fc", x=x, w=w)], recipes, goal, combine=False)
      >>> found.picked[0].recipe.name, 14 < found.sqnr[found.picked[0]].value < 20
      ('mxfp4', True)
    """
    wanted: list[tuple[Operands, Role]] = [
        (x, role) for x in operands for role in ROLES if role in roles and role in x.roles
    ]
    if not wanted:
        shown = ", ".join(f"{x.layer} ({', '.join(x.roles)})" for x in operands) or "no layers"
        raise ValueError(f"there is no product {' or '.join(roles)} in {shown}")
    tell: Progress = progress or (lambda *_: None)
    # Everything is checked before the first minute is spent.
    products = [cut(layer, role, limits or Limits()) for layer, role in wanted]
    # K decides what the scale of a row costs.
    sizes: set[tuple[Role, int]] = {(product.role, product.depth) for product in products}
    offered = {(role, depth): candidates(recipes, role, depth) for role, depth in sizes}
    for i, product in enumerate(products):
        where = f"{product.layer} {product.role} ({i + 1} of {len(products)})"
        yield _advise(
            product,
            offered[product.role, product.depth],
            goal,
            combine=combine,
            tell=lambda step, done, total, where=where: tell(f"{where}: {step}", done, total),
        )


def _advise(
    product: Product, offered: Sequence[Candidate], goal: Goal, *, combine: bool, tell: Progress
) -> Advice:
    screen, ran, scores = Screen(product.select), set[Candidate](), Scores()
    signal = float(product.select.signal.sum())

    def run_selected(candidate: Candidate) -> float:
        tell(f"running {candidate.recipe.name}", 0, 1)
        noise = run(candidate.recipe, product.role, product.select)
        return sqnr(signal, float(noise.sum()))

    picked: list[Candidate] = []
    for level in _levels(offered, goal):
        scores |= screen.scores(level, tell)
        picked = settle(scores, goal, run_selected, ran)
        if picked and not goal.free:
            break
    if combine:
        made = _combined(screen, scores, picked, offered, goal, tell)
        if made:
            scores |= screen.scores(made, tell)
            picked = settle(scores, goal, run_selected, ran)
    return _reported(product, goal, picked, scores, ran, tell)


def _levels(offered: Sequence[Candidate], goal: Goal) -> Iterator[list[Candidate]]:
    """Candidates within the budget: all at once, or cheapest first where the cheapest is wanted."""
    within = [x for x in offered if x.bits <= goal.bits]
    if goal.min_sqnr is None:
        yield within
        return
    level: list[Candidate] = []
    for bits in sorted({x.bits for x in within}):
        level += [x for x in within if x.bits == bits]
        if len(level) >= LEVEL:
            yield level
            level = []
    if level:
        yield level


def _combined(
    screen: Screen,
    scores: Scores,
    picked: Sequence[Candidate],
    offered: Sequence[Candidate],
    goal: Goal,
    tell: Progress,
) -> list[Candidate]:
    """The combinations that may be better than what was chosen."""
    most = picked[0].bits if picked and goal.min_sqnr is not None else goal.bits
    made = combinations(around(scores, picked, goal), offered, most, changed=not goal.free)
    if not made:
        return []
    return contenders(screen.estimates(made, tell), scores, goal, MARGIN)


def run(recipe: Recipe, role: Role, part: Part) -> NDArray[np.float64]:
    """The energy of the error of a recipe as it runs, in each group of a part."""
    return part.noise([np.asarray(gemm(a, b, recipe, role=role)) for a, b in part.pairs])


def _reported(
    product: Product,
    goal: Goal,
    picked: Sequence[Candidate],
    scores: Scores,
    ran: set[Candidate],
    tell: Progress,
) -> Advice:
    """The figures on the other part, of what was chosen and of what it is compared with."""
    others = {x: runner_up(x, picked, scores, goal) for x in picked}
    wanted = list(dict.fromkeys([*picked, *(x for x in others.values() if x is not None)]))
    noise: dict[Candidate, NDArray[np.float64]] = {}
    for i, candidate in enumerate(wanted):
        tell(f"reporting {candidate.recipe.name}", i, len(wanted))
        noise[candidate] = run(candidate.recipe, product.role, product.report)
    signal = product.report.signal
    return Advice(
        product=product,
        goal=goal,
        picked=tuple(picked),
        scores=scores,
        ran=frozenset(ran),
        sqnr={x: ratio(signal, noise[x]) for x in wanted},
        runner_up={
            x: None if y is None else (y, ratio(noise[y], noise[x])) for x, y in others.items()
        },
    )


def runner_up(
    chosen: Candidate, picked: Sequence[Candidate], scores: Scores, goal: Goal
) -> Candidate | None:
    """What a choice is compared with, of entries where there are any.

    The next cheaper on their Pareto front. Beside a combination, what the goal would have chosen
    without combinations, if that is not it. Else the best of the budget with other operands.
    """
    own = {x: y for x, y in scores.items() if x not in picked and y > -math.inf}
    known = {x: y for x, y in own.items() if not x.made} or own
    if chosen.made and (alone := choose(known, goal)) and not goal.free:
        return alone[0]
    cheaper = [x for x in front(known) if x.bits < chosen.bits]
    if cheaper:
        return cheaper[-1]
    others = {x: y for x, y in known.items() if x.bits <= goal.bits and x.pair != chosen.pair}
    return preferred(others) if others else None


def ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> Estimate:
    """Decibels of sums over groups; infinite, without an error, where one of them is zero."""
    if not (np.isfinite(numerator).all() and np.isfinite(denominator).all()):
        return Estimate(math.nan, math.nan)
    if not (numerator.sum() > 0 and denominator.sum() > 0):
        return Estimate(math.inf if numerator.sum() > 0 else -math.inf, 0.0)
    return decibels(numerator, denominator)


def interval(found: Estimate, groups: int) -> tuple[float, float]:
    """The 95 % interval of an estimate over so many groups of tokens, by Student's t.

    Raises:
      ValueError: fewer than two groups.

    Example:
      >>> low, high = interval(Estimate(20.0, 0.1), 8)
      >>> round(low, 2), round(high, 2)
      (19.76, 20.24)
    """
    wide = _student(groups - 1) * found.standard_error
    return found.value - wide, found.value + wide


@functools.cache
def _student(degrees: int) -> float:
    return student_t(0.975, degrees)


def chosen_recipes(found: Sequence[Advice]) -> dict[str, dict[Role, Recipe]]:
    """The recipes by layer and role, where one was chosen."""
    recipes: dict[str, dict[Role, Recipe]] = {}
    for advice in found:
        if len(advice.picked) == 1 and not advice.goal.free:
            own = recipes.setdefault(advice.product.layer, {})
            own[advice.product.role] = advice.picked[0].recipe
    return recipes
