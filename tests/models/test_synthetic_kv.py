"""The synthetic keys and values: every statistic in its range, the same bits, and errors."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.models.key_value_cards import card
from lowprec.models.key_value_targets import STRONG_OUTLIER_TARGETS, TARGETS, Target
from lowprec.models.key_values import MEMBERS, KeyValueSample
from lowprec.models.parameters import TransformerConfig
from lowprec.models.synthetic_kv import STRONG_OUTLIERS, SyntheticKV, generate
from lowprec.models.transformer import rotate

SEEDS = [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4, 5))]
SMALL = SyntheticKV(tokens=96, dim=32, heads=4, batch=2)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attention(sample: KeyValueSample, k: np.ndarray) -> np.ndarray:
    """Weights of every query of the first sequence, (heads, tokens, tokens), on the keys `k`."""
    assert sample.q is not None and sample.groups is not None
    q = sample.q[0].astype(np.float64)
    keys = np.repeat(k.astype(np.float64), sample.groups, axis=0)
    logits = q @ keys.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    return softmax(np.where(np.tri(q.shape[1], dtype=bool), logits, -np.inf))


def min_max_2_bits(x: np.ndarray, axis: int) -> np.ndarray:
    """2-bit integers between the least and the largest of 32 neighbours along an axis."""
    moved = np.moveaxis(x.astype(np.float64), axis, -1)
    grouped = moved.reshape(*moved.shape[:-1], -1, 32)
    low = grouped.min(axis=-1, keepdims=True)
    step = (grouped.max(axis=-1, keepdims=True) - low) / 3
    rounded = np.rint((grouped - low) / step) * step + low
    return np.moveaxis(rounded.reshape(moved.shape), -1, axis)


def divergence(exact: np.ndarray, other: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of rows, in nats."""
    logs = np.log(np.maximum(exact, 1e-300)) - np.log(np.maximum(other, 1e-300))
    return float(np.mean(np.sum(exact * logs, axis=-1)))


@pytest.mark.parametrize(
    ("spec", "targets"),
    [
        (SyntheticKV(heads=4), TARGETS),
        (dataclasses.replace(STRONG_OUTLIERS, heads=4), STRONG_OUTLIER_TARGETS),
    ],
    ids=["default", "strong_outliers"],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_statistic_is_in_its_range(
    spec: SyntheticKV, targets: tuple[Target, ...], seed: int
) -> None:
    found = card(generate(spec, seed), targets=targets)
    measured = {each.name: (each.low, each.value, each.high) for each in found.statistics}
    misfits = {each.name: measured[each.name] for each in found.statistics if each.fits is False}
    assert misfits == {}
    without_value = [each.name for each in found.statistics if each.value is None]
    assert without_value == []
    # Each is held to its own range: the other's outliers would not do.
    ratio = found["k_absmax_ratio"].value
    assert ratio is not None and (ratio > 15) == (spec.outlier_channels == 8)
    # What was asked for, measured on the float32 result.
    assert found["sink_mass"].value == pytest.approx(spec.sink_mass, abs=0.01)
    assert found["logit_std"].value == pytest.approx(spec.logit_std, abs=0.05)
    assert json.loads(json.dumps(found.to_dict()))["layer"] == f"synthetic {seed}"


@pytest.mark.parametrize("seed", SEEDS)
def test_published_orderings_of_2_bit_caches(seed: int) -> None:
    """KIVI (2402.02750) table 2: keys per channel, values per token, for attention's sake."""
    sample = generate(SyntheticKV(heads=4, tokens=512), seed)
    k, v = sample.k[0], sample.v[0].astype(np.float64)
    exact = attention(sample, k)
    per_token, per_channel = (
        divergence(exact, attention(sample, min_max_2_bits(k, axis))) for axis in (-1, -2)
    )
    assert per_token > 2 * per_channel > 0

    def output_error(axis: int) -> float:
        difference = np.repeat(min_max_2_bits(v, axis) - v, 2, axis=0)
        return float(np.linalg.norm(exact @ difference))

    assert output_error(-2) > 1.3 * output_error(-1)


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    first, again, other = generate(SMALL, 7), generate(SMALL, 7), generate(SMALL, 8)
    for name in MEMBERS:
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
        assert not np.array_equal(getattr(first, name), getattr(other, name))
    assert first.layer == "synthetic 7"


def test_shapes_dtypes_and_finite_distinct_values() -> None:
    sample = generate(SMALL, 0)
    assert sample.q is not None and sample.k_before_rope is not None
    assert sample.k.shape == sample.v.shape == sample.k_before_rope.shape == (2, 2, 96, 32)
    assert sample.q.shape == (2, 4, 96, 32) and sample.groups == 2
    assert sample.positions.tolist() == list(range(96))
    for name in MEMBERS:
        array = getattr(sample, name)
        assert array.dtype == np.float32 and np.isfinite(array).all()
        heads = array.reshape(-1, *array.shape[-2:])
        assert len({head.tobytes() for head in heads}) == len(heads)
        # Neither constant nor of low rank: all directions carry something.
        assert all(np.linalg.matrix_rank(head[1:]) == 32 for head in heads)


def test_outlier_channels_belong_to_the_layer_and_not_to_the_sequence() -> None:
    before = generate(dataclasses.replace(SMALL, batch=3), 1).k_before_rope
    assert before is not None
    means = before[:, :, 1:].mean(axis=2)
    largest = np.argsort(-np.abs(means), axis=-1)[..., :4]
    assert (np.sort(largest, axis=-1) == np.sort(largest[:1], axis=-1)).all()
    for head in largest[0]:
        pairs = sorted({int(channel) % 16 for channel in head})
        assert len(pairs) == 2 and pairs[1] - pairs[0] == 1


def test_rope_is_that_of_the_transformer() -> None:
    sample = generate(SMALL, 0)
    config = TransformerConfig(
        vocabulary=8, layers=1, width=128, heads=4, kv_heads=2, head_dim=32, hidden=8
    )
    for turned, plain in ((sample.k, sample.k_before_rope), (sample.q, sample.q_before_rope)):
        assert turned is not None
        expected = np.asarray(jax.device_get(rotate(jnp.asarray(plain), config)))
        # A fused multiply-add may round one of the two products less: an ulp of the larger half.
        np.testing.assert_allclose(turned, expected, rtol=0, atol=2e-7 * np.abs(expected).max())


def test_one_stream_does_not_move_with_anothers_parameters() -> None:
    plain = generate(SMALL, 3)
    changed = generate(dataclasses.replace(SMALL, value_token_spread=1.0), 3)
    assert plain.k.tobytes() == changed.k.tobytes() and plain.v.tobytes() != changed.v.tobytes()
    no_sink = generate(dataclasses.replace(SMALL, sink_mass=0.0), 3)
    assert plain.k[:, :, 1:].tobytes() == no_sink.k[:, :, 1:].tobytes()
    assert plain.v[:, :, 1:].tobytes() == no_sink.v[:, :, 1:].tobytes()
    assert not np.array_equal(plain.k[:, :, 0], no_sink.k[:, :, 0])


@pytest.mark.parametrize("mass", [0.0, 0.2, 0.7])
def test_the_sink_draws_what_is_asked_for(mass: float) -> None:
    sample = generate(dataclasses.replace(SMALL, sink_mass=mass, batch=1), 5)
    drawn = attention(sample, sample.k[0])[:, 1:, 0].mean()
    # Without a sink the first key is one of many.
    assert drawn == pytest.approx(mass, abs=0.12 if mass == 0 else 0.005)


def test_statistics_follow_their_parameters() -> None:
    spec = SyntheticKV(tokens=512, dim=64, heads=2, kv_heads=1)
    varied: dict[str, Any] = {
        "outlier_channels": 0,
        "sink_mass": 0.0,
        "spectral_exponent": 0.2,
        "correlation": 0.0,
        "value_outlier_share": 0.0,
        "channel_mean": 0.0,
    }
    plain, other = (card(generate(each, 0)) for each in (spec, dataclasses.replace(spec, **varied)))
    for name, below in (
        ("k_norm_ratio", 2.0),
        ("k_absmax_ratio", 3.0),
        ("k_spectral_exponent", 0.4),
        ("k_correlation", 0.1),
        ("v_correlation", 0.1),
        ("v_largest_token", 3.0),
        ("sink_mass", 0.1),
    ):
        before, after = plain[name].value, other[name].value
        assert before is not None and after is not None and after < below < before
    assert other["k_outlier_pairs"].value == 0 and other["k_outlier_steadiness"].value is None
    assert other["k_outlier_pairs"].fits is False and other["k_outlier_steadiness"].fits is None


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"tokens": 31}, "`tokens` must be at least 32, got 31"),
        ({"heads": 3}, "`heads` must be a multiple of `kv_heads` = 2, got 3"),
        ({"heads": 0}, "`heads` must be a multiple of `kv_heads` = 2, got 0"),
        ({"kv_heads": 0}, "`kv_heads` must be at least 1, got 0"),
        ({"dim": 33}, "`dim` must be even and at least 4, got 33"),
        ({"batch": 0}, "`batch` must be at least 1, got 0"),
        ({"outlier_channels": 6}, "`outlier_channels` must be a multiple of 4, got 6"),
        ({"rope_theta": 1.0}, "`rope_theta` must be above 1, got 1.0"),
        ({"logit_std": 0.0}, "`logit_std` must be above 0, got 0.0"),
        ({"sink_mass": 1.0}, "`sink_mass` must be below 1, got 1.0"),
        ({"correlation": 1.0}, "`correlation` must be below 1, got 1.0"),
        ({"correlation": -0.5}, "`correlation` must be finite and not negative, got -0.5"),
        ({"key_outlier": float("nan")}, "`key_outlier` must be finite and not negative, got nan"),
        ({"weak_key_share": 1.5}, "`weak_key_share` must be at most 1, got 1.5"),
        ({"value_outlier_share": 1.5}, "`value_outlier_share` must be at most 1, got 1.5"),
        ({"outlier_channels": 0}, "without these pass `sink_mass=0`"),
        ({"query_outlier": 0.0}, "needs a mean that the queries share"),
        ({"tokens": 1 << 16}, "0 of 64 RoPE pairs turn by less than a quarter"),
    ],
)
def test_refused(wrong: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        SyntheticKV(**wrong)
    assert expected in str(caught.value)


def test_counts_are_integers() -> None:
    with pytest.raises(TypeError, match=r"`tokens` must be an integer, got 64\.0"):
        SyntheticKV(tokens=64.0)  # pyright: ignore[reportArgumentType] - on purpose


def test_a_sink_that_no_key_can_draw() -> None:
    spec = dataclasses.replace(SMALL, query_outlier=1e-9, sink_mass=0.9)
    with pytest.raises(ValueError, match=r"no key draws `sink_mass` = 0\.9; raise `query_outlier`"):
        generate(spec, 0)
