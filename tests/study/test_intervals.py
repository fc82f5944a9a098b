"""A paired bootstrap covers what it should, t is the published one, and ranks own up to ties."""

import numpy as np
import pytest

from lowprec.study.intervals import paired_interval, student_t, tied_ranks


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    runs = 200
    for run in range(runs):
        weight = rng.uniform(1, 3, 40)
        difference = weight * (0.5 + rng.standard_normal(40))
        _, low, high = paired_interval(difference, weight, seed=run)
        covered += low <= 0.5 <= high
    # Binomial(200, 0.95) has standard deviation 3.1; a percentile bootstrap falls a little short.
    assert 200 * 0.95 - 5 * 3.1 <= covered < runs


def test_the_mean_is_weighted() -> None:
    mean, low, high = paired_interval(np.array([2.0, 0.0]), np.array([1.0, 3.0]), seed=0)
    assert mean == 0.5 and low == 0.0 and high == 2.0


def test_the_same_seed_gives_the_same_interval() -> None:
    x, w = np.arange(9.0), np.ones(9)
    assert paired_interval(x, w, seed=3) == paired_interval(x, w, seed=3)
    assert paired_interval(x, w, seed=3) != paired_interval(x, w, seed=4)


def test_one_unit_has_no_interval() -> None:
    with pytest.raises(ValueError, match="2 units"):
        paired_interval(np.ones(1), np.ones(1), seed=0)


def test_ranks() -> None:
    assert tied_ranks([(5, 6), (1, 2), (1.5, 3)]) == ["3", "1-2", "1-2"]
    assert tied_ranks([(0, 0), (0, 0)]) == ["1-2", "1-2"]


@pytest.mark.parametrize(
    ("probability", "degrees", "quantile"),
    [
        (0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 3, 3.1824), (0.975, 4, 2.7764),
        (0.975, 5, 2.5706), (0.975, 60, 2.0003), (0.8, 1, 1.3764), (0.8, 4, 0.9410),
        (0.8, 7, 0.8960), (0.995, 9, 3.2498),
    ],
)  # fmt: skip
def test_quantiles_are_those_of_published_tables(
    probability: float, degrees: int, quantile: float
) -> None:
    assert round(student_t(probability, degrees), 4) == quantile


def test_quantiles_that_there_are_none_of_are_refused() -> None:
    for probability, degrees in ((0.5, 3), (1.0, 3), (0.9, 0)):
        with pytest.raises(ValueError, match="use one in"):
            student_t(probability, degrees)
