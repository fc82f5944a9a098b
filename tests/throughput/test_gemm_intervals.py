"""Intervals of misses: sources weigh alike, and what they are said to hold they hold."""

import math

import numpy as np
import pytest

from lowprec.throughput.gemm_intervals import HELD, Observed, intervals


def sources(seed: int, count: int, figures: int, between: float, within: float) -> list[Observed]:
    rng = np.random.default_rng(seed)
    return [
        Observed("memory", f"source {i}", math.exp(middle + within * rng.standard_normal()), True)
        for i, middle in enumerate(between * rng.standard_normal(count))
        for _ in range(figures)
    ]


def test_a_new_source_lies_inside_as_often_as_is_said() -> None:
    inside = []
    for seed in range(40):
        low, high = intervals(sources(seed, 8, 6, 0.2, 0.1)).ranges["memory"]
        fresh = sources(1000 + seed, 5, 6, 0.2, 0.1)
        inside += [low <= x.slower <= high for x in fresh]
    assert abs(float(np.mean(inside)) - HELD) < 0.05


def test_figures_of_one_source_are_not_mistaken_for_many_sources() -> None:
    few = sources(3, 6, 2, 0.2, 0.05)
    many = few + [x for x in few if x.source == "source 0"] * 50
    one, other = (intervals(x).ranges["memory"] for x in (few, many))
    assert one[0] == pytest.approx(other[0], rel=0.2) and one[1] == pytest.approx(other[1], rel=0.2)


def test_one_is_always_inside_and_ends_turn_with_the_misses() -> None:
    some = [x._replace(slower=2 * x.slower) for x in sources(1, 6, 4, 0.05, 0.05)]
    low, high = intervals(some).ranges["memory"]
    assert low == 1.0 and high > 2
    turned = intervals([x._replace(slower=1 / x.slower) for x in some]).ranges["memory"]
    assert turned == pytest.approx((1 / high, 1.0))


def test_what_an_interval_cannot_rest_on_is_refused() -> None:
    with pytest.raises(ValueError, match="`observed` holds no figure that was held out"):
        intervals(sources(0, 2, 3, 0.1, 0.1))
    alone = [Observed("link", "one", 1.1, True)]
    with pytest.raises(ValueError, match="`observed` has one source for 'link'"):
        intervals(sources(0, 5, 3, 0.1, 0.1) + alone)
