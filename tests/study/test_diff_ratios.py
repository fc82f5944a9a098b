"""Divergences, ratios and effective samples against sums done by hand."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from lowprec.study.diff_ratios import (
    CLIP,
    Compared,
    compare_window,
    effective_share,
    joined,
    lengths,
    sequence_rows,
    tail_rows,
)

LEAST = -1e4
"""The logarithm of a ratio that is 0."""


@pytest.mark.parametrize(
    ("logarithms", "share"),
    [
        ([0.0, 0.0, 0.0, 0.0], 1.0),
        ([0.0, LEAST, LEAST, LEAST], 0.25),
        ([0.0, 0.0, LEAST, LEAST], 0.5),
        (np.log([1.0, 2.0, 3.0]).tolist(), 36 / 42),
        # What overflows alone, and a factor that all have in common.
        ([800.0, 800.0], 1.0),
        ((np.log([1.0, 2.0, 3.0]) - 5000).tolist(), 36 / 42),
    ],
)
def test_effective_samples_by_hand(logarithms: list[float], share: float) -> None:
    unit = np.arange(len(logarithms))
    found, low, high = effective_share(np.array(logarithms), unit, seed=0)
    assert found == pytest.approx(share, rel=1e-12)
    assert 1 / len(logarithms) <= low <= high <= 1
    if share == 1.0:
        assert (found, low, high) == (1.0, 1.0, 1.0)


def test_intervals_are_over_units() -> None:
    # Within a unit ratios differ, and units are alike: any draw of units has the same share.
    logarithms, unit = np.log([1.0, 3.0] * 4), np.repeat(np.arange(4), 2)
    share, low, high = effective_share(logarithms, unit, seed=0)
    assert low == pytest.approx(share) == pytest.approx(high) == pytest.approx(16 / 20)
    _, low, high = effective_share(logarithms, np.arange(8), seed=0)
    assert low < 0.75 and high > 0.85


def logits(seed: int = 0, tokens: int = 6, vocabulary: int = 5) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(tokens, vocabulary)).astype(np.float32)


CAME = np.array([0, 4, 2, 1, 3, 0])


def test_equal_logits_are_exactly_as_far_apart_as_nothing() -> None:
    found = compare_window(logits(), logits(), CAME, seed=0, window=0)
    for x in (found.divergence, found.reverse, found.text, found.drawn):
        assert x.shape == (1, 6) and (x == 0).all()
    assert not found.flipped.any()


def test_divergences_and_ratios_are_those_of_the_definition() -> None:
    a, b = logits(), logits(1)
    # Far apart too: more than expm1 holds.
    a[0, 0], b[0, 0] = -900.0, 5.0
    found = compare_window(a, b, CAME, seed=0, window=0)
    wide_a, wide_b = a.astype(np.longdouble), b.astype(np.longdouble)
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (wide_a, wide_b))
    p, q = np.exp(log_p), np.exp(log_q)
    np.testing.assert_allclose(found.divergence[0], (p * (log_p - log_q)).sum(-1), rtol=1e-13)
    np.testing.assert_allclose(found.reverse[0], (q * (log_q - log_p)).sum(-1), rtol=1e-13)
    expected = (log_p - log_q)[np.arange(6), CAME]
    np.testing.assert_allclose(found.text[0], expected, rtol=1e-13)
    assert found.flipped[0].tolist() == (a.argmax(-1) != b.argmax(-1)).tolist()


def test_small_divergences_keep_their_digits() -> None:
    a, b = logits(), logits()
    b[:, 2] = np.nextafter(b[:, 2], np.float32(9))
    found = compare_window(a, b, CAME, seed=0, window=0)
    p = np.exp(a.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    moved = b[:, 2].astype(np.float64) - a[:, 2]
    # To second order the variance of what moved, which is one logit, over two.
    expected = p[:, 2] * (1 - p[:, 2]) * moved**2 / 2
    assert (expected < 1e-14).all()
    np.testing.assert_allclose(found.divergence[0], expected, rtol=1e-6)


def test_drawn_tokens_are_of_b_and_their_ratios_are_1_on_average() -> None:
    count = 40_000
    a, b = (np.tile(logits(seed, tokens=1), (count, 1)) for seed in (0, 1))
    found = compare_window(a, b, np.zeros(count, int), seed=0, window=0)
    ratios = np.exp(found.drawn[0])
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / math.sqrt(count) < 0.03
    q = np.exp(b[0].astype(np.float64))
    q /= q.sum()
    values, counts = np.unique(found.drawn[0], return_counts=True)
    p = np.exp(a[0].astype(np.float64))
    order = np.argsort(np.log(p / p.sum()) - np.log(q))
    assert len(values) == 5
    np.testing.assert_allclose(counts / count, q[order], atol=0.01)


def compared(text: NDArray[np.float64]) -> Compared:
    zeros = np.zeros_like(text)
    return Compared(divergence=zeros, reverse=zeros, text=text, drawn=zeros, flipped=zeros > 0)


def test_runs_are_of_whole_lengths_within_a_window() -> None:
    assert lengths(1) == [1] and lengths(4) == [1, 4] and lengths(256) == [1, 4, 16, 64, 256]
    text = np.log(np.array([[1.0, 2.0, 1.0, 1.0, 8.0], [0.5, 1.0, 1.0, 1.0, 1.0]]))
    rows = list(sequence_rows("p", compared(text), np.arange(2), seed=0))
    assert [(row.tokens, row.length, row.sequences) for row in rows] == [
        ("text", 1, 10),
        ("text", 4, 2),
        ("text", 5, 2),
        ("drawn", 1, 10),
        ("drawn", 4, 2),
        ("drawn", 5, 2),
    ]
    single, four, whole = rows[:3]
    assert single.outside == 0.3 and single.largest == pytest.approx(8) and CLIP == 0.2
    assert single.ess == pytest.approx(17.5**2 / (10 * 75.25))
    assert (four.smallest, four.largest) == (pytest.approx(0.5), pytest.approx(2.0))
    assert four.ess == pytest.approx(2.5**2 / (2 * 4.25))
    assert whole.largest == pytest.approx(16) and whole.ess == pytest.approx(16.5**2 / (2 * 256.25))
    for row in rows[3:]:
        assert (row.ess, row.ess_low, row.ess_high, row.smallest, row.largest) == (1,) * 5


def test_the_tail_counts_tokens() -> None:
    text = np.array([[0.1, -0.4], [0.3, 0.2]])
    rows = [row for row in tail_rows("p", compared(text)) if row.tokens == "text"]
    assert [(row.share, row.magnitude) for row in rows] == [
        (1.0, 0.1),
        (0.75, 0.2),
        (0.5, 0.3),
        (0.25, 0.4),
    ]


def test_windows_are_joined_in_order() -> None:
    parts = [compare_window(logits(n), logits(9), CAME, seed=0, window=n) for n in range(2)]
    both = joined(parts)
    assert both.text.shape == (2, 6)
    np.testing.assert_array_equal(both.text[1], parts[1].text[0])
