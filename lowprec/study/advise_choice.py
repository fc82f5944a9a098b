"""Which of several recipes is chosen: the cheapest that is good enough, the best in a budget."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from lowprec.study.advise_candidates import Candidate

TIE = 0.05
"""dB: what lies so close to the best counts as equally good; then the cheaper, or an entry."""
Scores = dict[Candidate, float]
"""SQNR in dB of candidates, in the order in which they are preferred."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """What is wanted.

    Attributes:
      budget_bits: at most so many bits per element, the mean over both operands.
      min_sqnr: at least so many dB.
    """

    budget_bits: float | None = None
    min_sqnr: float | None = None

    def __post_init__(self) -> None:
        if self.budget_bits is not None and not self.budget_bits > 0:
            raise ValueError(f"`budget_bits` = {self.budget_bits}; above 0, such as 4.5")
        if self.min_sqnr is not None and not math.isfinite(self.min_sqnr):
            raise ValueError(f"`min_sqnr` = {self.min_sqnr}; a number of dB, such as 30")

    @property
    def bits(self) -> float:
        """The most bits that are allowed."""
        return math.inf if self.budget_bits is None else self.budget_bits

    @property
    def free(self) -> bool:
        """Whether nothing is asked, so that the whole Pareto front is the answer."""
        return self.budget_bits is None and self.min_sqnr is None

    def __str__(self) -> str:
        within = "" if self.budget_bits is None else f"within {self.budget_bits:g} bits"
        above = "" if self.min_sqnr is None else f"at least {self.min_sqnr:g} dB"
        return " and ".join(x for x in (above, within) if x) or "the Pareto front"


def choose(scores: Mapping[Candidate, float], goal: Goal) -> list[Candidate]:
    """What the goal asks for: one candidate, none where nothing will do, or the Pareto front.

    With `min_sqnr` the one of fewest bits that reaches it, the best of those; else the best in the
    budget. What lies within `TIE` of the best counts as equal to it.
    """
    if goal.free:
        return front(scores)
    least = -math.inf if goal.min_sqnr is None else goal.min_sqnr
    fit = {x: y for x, y in scores.items() if x.bits <= goal.bits and y >= least and y > -math.inf}
    if not fit:
        return []
    if goal.min_sqnr is not None:
        fewest = min(x.bits for x in fit)
        fit = {x: y for x, y in fit.items() if x.bits == fewest}
    return [preferred(fit)]


def front(scores: Mapping[Candidate, float]) -> list[Candidate]:
    """The Pareto front, fewest bits first: each better than all cheaper ones by more than `TIE`."""
    found: list[Candidate] = []
    reached = -math.inf
    for bits in sorted({x.bits for x in scores}):
        best = preferred({x: y for x, y in scores.items() if x.bits == bits})
        if scores[best] > reached + TIE:
            found.append(best)
            reached = scores[best]
    return found


def preferred(scores: Mapping[Candidate, float]) -> Candidate:
    """The best; of what lies within `TIE` of it the cheapest, then entries, then the first."""
    top = max(scores.values())
    near = [x for x, y in scores.items() if y >= top - TIE]
    return min(near, key=lambda x: (x.bits, x.made))


def settle(
    scores: Scores, goal: Goal, run: Callable[[Candidate], float], ran: set[Candidate]
) -> list[Candidate]:
    """Chooses, runs what was chosen with its own engine, and chooses again until all of it has run.

    A score from the operands alone is taken for the most that an engine leaves of it.

    Args:
      scores: replaced by what `run` gives.
      goal: what is wanted.
      run: the SQNR of a candidate as it runs.
      ran: those whose score is that already; added to.
    """
    while True:
        picked = choose(scores, goal)
        left = [x for x in picked if x not in ran]
        if not left:
            return picked
        for candidate in left:
            scores[candidate] = run(candidate)
            ran.add(candidate)


def contenders(
    estimates: Mapping[Candidate, float],
    scores: Mapping[Candidate, float],
    goal: Goal,
    margin: float,
) -> list[Candidate]:
    """Candidates that would be chosen beside all others were they better than estimated.

    Args:
      estimates: what is expected of those that are not measured yet.
      scores: of those that are.
      goal: what is wanted.
      margin: by how many dB they may be better.

    Returns:
      The most promising first.
    """
    found = [x for x, y in estimates.items() if x in choose({**scores, x: y + margin}, goal)]
    return sorted(found, key=lambda x: estimates[x], reverse=True)


def around(
    scores: Mapping[Candidate, float], picked: Sequence[Candidate], goal: Goal
) -> list[Candidate]:
    """The best candidates to combine: what was chosen, and its neighbours on the front."""
    line = front({x: y for x, y in scores.items() if x.bits <= goal.bits})
    if goal.free or not line:
        return line
    if not picked:
        return line[-2:]
    place = sum(x.bits < picked[0].bits for x in line)
    near = [*line[max(0, place - 2) : place], *picked, *line[place : place + 2]]
    return list(dict.fromkeys(near))
