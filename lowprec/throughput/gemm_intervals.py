"""How far the model errs on what it has not seen: intervals that another source would keep to.

Figures of one source err alike, so a source counts as one, however many figures it has. An interval
is the middle of the sources' logarithmic misses, less and more so many spreads, of a figure of a
source not yet seen. How many is the least with which so many of the held-out figures lie inside
intervals that are made without their own source. 1 is always inside.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

Term = Literal["memory", "products", "passes", "link", "ratio"]
HELD = 0.9
"""The share of held-out figures that intervals made without their own source hold."""


class Observed(NamedTuple):
    """A miss: its term, its source, published over predicted time, and whether it was held out."""

    term: Term
    source: str
    slower: float
    held_out: bool


class Intervals(NamedTuple):
    """The ends by term, and how many held-out figures lie inside those without their source."""

    ranges: dict[Term, tuple[float, float]]
    inside: int
    figures: int


class _Spread(NamedTuple):
    """The middle of a term's logarithmic misses, and how far a new source's figure lies from it."""

    middle: float
    size: float


def intervals(observed: Sequence[Observed]) -> Intervals:
    """The interval of every term.

    Args:
      observed: misses, of two sources or more for each term.

    Raises:
      ValueError: a term of one source alone, or none that can be left out.

    Example:
      >>> some = [Observed("link", name, slower, True) for name, slower in
      ...         (("a", 0.9), ("b", 1.0), ("c", 1.1), ("d", 1.0))]
      >>> low, high = intervals(some).ranges["link"]
      >>> 0.7 < low < 0.9 and 1.1 < high < 1.3
      True
    """
    by_term = _grouped(observed)
    away = sorted(x for term in by_term.values() for x in _left_out(term))
    if not away:
        raise ValueError("`observed` holds no figure that was held out and whose term has three "
                         "sources; intervals rest on such figures")  # fmt: skip
    spreads = float(np.quantile(away, HELD, method="higher"))
    ranges = {}
    for term, found in by_term.items():
        if len(found) < 2:
            raise ValueError(f"`observed` has one source for {term!r}; an interval rests on two")
        middle, size = _spread(found)
        low, high = (math.exp(middle + sign * spreads * size) for sign in (-1, 1))
        ranges[term] = min(1.0, low), max(1.0, high)
    return Intervals(ranges, sum(x <= spreads for x in away), len(away))


def _grouped(observed: Sequence[Observed]) -> dict[Term, dict[str, list[Observed]]]:
    found: dict[Term, dict[str, list[Observed]]] = {}
    for x in observed:
        found.setdefault(x.term, {}).setdefault(x.source, []).append(x)
    return found


def _left_out(sources: Mapping[str, Sequence[Observed]]) -> list[float]:
    """How many spreads held-out figures lie from the middle of all other sources."""
    found: list[float] = []
    for name, some in sources.items():
        rest = {other: x for other, x in sources.items() if other != name}
        if len(rest) < 2:
            continue
        middle, size = _spread(rest)
        found += [abs(math.log(x.slower) - middle) / size for x in some if x.held_out]
    return found


def _spread(sources: Mapping[str, Sequence[Observed]]) -> _Spread:
    logarithms = [np.log([x.slower for x in some]) for some in sources.values()]
    count = len(logarithms)
    middle = float(np.mean([np.mean(x) for x in logarithms]))
    square = float(np.mean([np.mean((x - middle) ** 2) for x in logarithms]))
    # One more source than those that the middle rests on, and that took one of them.
    return _Spread(middle, math.sqrt(square * (count + 1) / (count - 1)))
