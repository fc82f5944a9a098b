"""Cards of keys and values against arrays whose statistics are known in closed form."""

import math
from typing import Any

import numpy as np
import pytest

from lowprec.models import key_value_statistics as measures
from lowprec.models.key_value_cards import card
from lowprec.models.key_value_targets import (
    STRONG_OUTLIER_TARGETS,
    TARGETS,
    Statistic,
    Target,
)
from lowprec.models.key_values import KeyValueSample


def gaussian(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


def test_attention_is_the_causal_softmax_of_the_last_queries() -> None:
    k, q = gaussian(6, 4), gaussian(2, 4)
    found = measures.attention(q, k)
    assert found is not None
    scores = np.exp(q @ k.T / 2)
    scores[0, 5] = 0
    np.testing.assert_allclose(found.weights, scores / scores.sum(axis=1, keepdims=True))
    assert found.seen.tolist() == [[True] * 5 + [False], [True] * 6]
    assert measures.sink_mass(found) == pytest.approx(float(found.weights[:, 0].mean()))
    assert measures.attention(gaussian(1, 4), gaussian(1, 4)) is None


def test_at_most_256_rows_from_the_first_to_the_last() -> None:
    found = measures.attention(np.zeros((1000, 2)), np.zeros((1000, 2)))
    assert found is not None
    seen = found.seen.sum(axis=1)
    assert len(seen) == 256 and (seen[0], seen[-1]) == (2, 1000) and (np.diff(seen) > 0).all()


def with_logits(rows: list[list[float]]) -> measures.Attention:
    """Attention of queries after all keys."""
    logits = np.array(rows, float)
    weights = np.exp(logits)
    return measures.Attention(
        logits=logits,
        seen=np.ones(logits.shape, bool),
        weights=weights / weights.sum(axis=1, keepdims=True),
    )


def test_sparsity_counts_below_one_percent_of_the_rows_largest() -> None:
    found = with_logits([[9, 0, -4.7, -4.5], [0, 0, 0, 0]])
    # exp(-4.7) < 0.01 < exp(-4.5); beside the sink's exp(9) the others are all small.
    assert measures.sparsity(found, skip=1) == pytest.approx(1 / 6)
    assert measures.sparsity(found, skip=0) == pytest.approx(3 / 8)


def test_logit_std_leaves_the_sink_out() -> None:
    found = with_logits([[100, 1, -1, 1, -1], [-100, 3, -3, 3, -3]])
    assert measures.logit_std(found) == pytest.approx(math.sqrt((1 + 9) / 2))


def test_popularity_is_the_common_part_of_the_variance() -> None:
    same = with_logits([[0, 1, 5, 3, 0, 0, 0, 0, 0, 0]] * 2)
    opposite = with_logits([[0, 1, 5, 3, 0, 0, 0, 0, 0, 0], [0, -1, -5, -3, 0, 0, 0, 0, 0, 0]])
    assert measures.popularity(same) == pytest.approx(1)
    assert measures.popularity(opposite) == pytest.approx(0)


def test_channel_ratios_and_outlier_pairs() -> None:
    x = np.ones((10, 8)) * np.where(np.arange(10) % 2, 1, -1)[:, None]
    x[:, 3], x[:, 7] = 8.0, -6.0  # pair 3, the slowest of four
    assert measures.absmax_ratio(x) == 8
    assert measures.norm_ratio(x) == pytest.approx(8 * 8 / (6 + 8 + 6))
    assert measures.outlier_pairs(x).tolist() == [3] and measures.fastest_outlier(x) == 1
    assert measures.balance(x) == 0.75
    assert measures.steadiness(x) is None  # no spread at all
    x[0, [3, 7]] += 1
    x[1, [3, 7]] -= 1
    assert measures.steadiness(x) == pytest.approx(6 / math.sqrt(0.2))
    assert measures.fastest_outlier(x[:, [0, 1, 4, 5]]) is None


def test_ranges_norms_and_spreads() -> None:
    x = gaussian(50, 4)
    assert measures.widening(x, 3 * x) == pytest.approx(3)
    norms = np.exp(0.4 * gaussian(100_000))
    assert measures.log_spread(norms) == pytest.approx(0.4, rel=0.02)
    assert measures.largest_over_smallest(np.array([2.0, 8.0, 4.0])) == 4
    assert measures.largest_over_median(np.array([2.0, 8.0, 4.0])) == 2
    assert measures.largest_over_smallest(np.array([0.0, 1.0])) is None


def test_spectrum_and_correlation_of_a_known_process() -> None:
    basis = np.linalg.qr(gaussian(32, 32))[0].astype(np.float64)
    series = gaussian(20_000, 32)
    for row in range(1, len(series)):
        series[row] = 0.8 * series[row - 1] + 0.6 * series[row]
    x = series * np.arange(1, 33) ** -0.5 @ basis + 7
    assert measures.spectral_exponent(x) == pytest.approx(0.5, abs=0.03)
    assert measures.correlation(x) == pytest.approx(0.8, abs=0.02)


def test_without_queries_and_keys_before_rope_their_statistics_are_none() -> None:
    k = gaussian(2, 2, 16, 8).astype(np.float32)
    found = card(KeyValueSample(layer="mine", k=k, v=k))
    missing = {each.name for each in found.statistics if each.value is None}
    assert {"q_absmax_ratio", "sink_mass", "logit_std", "attention_sparsity"} < missing
    assert {"k_absmax_ratio", "k_spectral_exponent", "k_rope_widening"} < missing
    assert found["v_spectral_exponent"].value is not None
    assert (found.layer, found.shape, found.groups) == ("mine", (2, 2, 16, 8), None)
    with pytest.raises(KeyError):
        found["nothing"]


def test_values_are_means_over_sequences_and_heads() -> None:
    k = np.ones((1, 2, 9, 4), np.float32)
    k[0, 1, 1:, 2] = 3
    found = card(KeyValueSample(layer="a", k=k, v=k))["k_absmax_ratio_after_rope"]
    assert found.value == 2 and found.fits is False


def test_every_target_has_a_source_and_a_name_of_its_own() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS)
    assert all(target.source and target.meaning for target in TARGETS)
    statistic = Statistic(name="a", low=1, high=2, meaning="m", source="s", value=2.0)
    assert statistic.fits is True


def test_other_targets_change_bounds_alone() -> None:
    k = gaussian(1, 1, 16, 8).astype(np.float32)
    sample = KeyValueSample(layer="mine", k=k, v=k)
    plain, strong = card(sample), card(sample, targets=STRONG_OUTLIER_TARGETS)
    other = []
    for one, two in zip(plain.statistics, strong.statistics, strict=True):
        assert (one.name, one.value) == (two.name, two.value)
        other += [one.name] * ((one.low, one.high) != (two.low, two.high))
    assert other == ["k_absmax_ratio", "k_absmax_ratio_after_rope"]
    few = card(sample, targets=TARGETS[1:2])
    assert [each.name for each in few.statistics] == ["k_absmax_ratio_after_rope"]
    with pytest.raises(ValueError, match="nothing measures beauty; use the names of"):
        card(sample, targets=(Target(name="beauty", meaning="m", source="s"),))


@pytest.mark.parametrize(
    ("k", "kind", "expected"),
    [
        (np.ones((1, 1, 8, 4), np.int8), TypeError, "`k` is int8; a card needs float arrays"),
        (np.ones((1, 1, 7, 4), np.float32), ValueError, "layer `a` has 7 tokens of dim 4"),
        (np.ones((1, 1, 8, 3), np.float32), ValueError, "pairs of elements"),
        (np.full((1, 1, 8, 4), np.inf, np.float32), ValueError, "`a.k` holds 0 NaN and 32 Inf"),
    ],
)
def test_refused(k: Any, kind: type[Exception], expected: str) -> None:
    with pytest.raises(kind) as caught:
        card(KeyValueSample(layer="a", k=k, v=k))
    assert expected in str(caught.value)
