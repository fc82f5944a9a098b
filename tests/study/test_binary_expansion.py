"""Sums of binary weights: the greedy one, what refitting adds, and integers beside them."""

from fractions import Fraction

import numpy as np
import pytest

from lowprec.metrics import sqnr_db
from lowprec.study import binary_expansion
from lowprec.study.binary_expansion import METHODS, Unit, expansion_rows, gaussian_units


def weights(channels: int = 6, depth: int = 64) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((channels, depth))


def test_greedy_is_the_recursion_in_rationals() -> None:
    w = np.array([[3, -1, 0, 2, 7, -5, 1, 1], [1, 1, 1, 1, 1, 1, 1, -9]], np.float64)
    found = [x.copy() for x in binary_expansion.greedy(w, 4)]
    for channel, row in enumerate(w):
        rest = [Fraction(x) for x in row]
        for total in found:
            alpha = sum(abs(x) for x in rest) / len(rest)
            rest = [x - (alpha if x >= 0 else -alpha) for x in rest]
            expected = [float(Fraction(x) - r) for x, r in zip(row, rest, strict=True)]
            assert total[channel].tolist() == pytest.approx(expected, rel=1e-6)


def test_least_squares_never_loses_to_greedy_and_alternating_not_to_it() -> None:
    w = weights()
    greedy, refitted, alternating = (
        [sqnr_db(x, w) for x in METHODS[f"binary, {name}"](w, 6)]
        for name in ("greedy", "refitted", "alternating")
    )
    assert greedy[0] == pytest.approx(10 * np.log10(np.pi / (np.pi - 2)), abs=0.4)
    assert np.all(np.diff(greedy) > 0) and greedy[5] < 30
    assert np.all(np.array(refitted) >= np.array(greedy) - 1e-6)
    assert np.all(np.array(alternating) >= np.array(refitted) - 1e-6)
    assert alternating[3] > greedy[3] + 0.5


def test_integers_used_equally_often_are_a_sum_with_halved_factors() -> None:
    # Odd multiples of a step, up to 2^N - 1: N binary weights of factors 2^i, which greedy finds.
    w = np.random.default_rng(0).permuted(np.tile((2.0 * np.arange(-8, 8) + 1) / 4, (3, 2)), axis=1)
    found = list(binary_expansion.greedy(w, 4))
    assert np.array_equal(found[3], w)
    assert [float(np.abs(w - x).max()) for x in found[:3]] == [1.75, 0.75, 0.25]
    assert np.array_equal(list(binary_expansion.refitted(w, 4))[3], w)


def test_the_best_clip_is_no_worse_and_channels_of_zeros_stay() -> None:
    w = weights()
    w[2] = 0
    for name, method in METHODS.items():
        assert np.all(list(method(w, 4))[-1][2] == 0), name
    plain, clipped = (
        [sqnr_db(x, w) for x in METHODS[name](w, 6)] for name in ("INT-N", "INT-N, best clip")
    )
    assert np.all(np.array(clipped) >= np.array(plain)) and clipped[2] > plain[2] + 1
    assert 15 < clipped[3] < 25


def test_rows_count_bits_and_additions_and_pair_differences() -> None:
    rng = np.random.default_rng(2)
    units = [Unit(str(i), weights() * (i + 1), rng.standard_normal((8, 64))) for i in range(2)]
    rows = {(row.method, row.n): row for row in expansion_rows("captured", units, 3)}
    assert len(rows) == 3 * len(METHODS)
    two = rows["binary, greedy", 2]
    assert (two.additions, two.multiplications, two.bits_per_element) == (127, 2, 3)
    three = rows["INT-N", 3]
    assert (three.additions, three.multiplications, three.bits_per_element) == (63, 64, 3.5)
    assert rows["INT-N, best clip", 3].over_integer_db is None
    assert rows["Lloyd-Max", 3].over_integer_db is not None
    for row in rows.values():
        assert row.product_db is not None and row.product_db == pytest.approx(row.sqnr_db, abs=4)
        assert 2 < row.sqnr_db < 20
    (first, *_) = expansion_rows("gaussian", gaussian_units(2, (4, 32), 0), 1)
    assert first.product_db is None and first.source == "gaussian" and first.units == 2
