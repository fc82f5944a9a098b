"""Planted keys: who finds them, who is judged, and against what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.models.copy_spans import PlantedKeys
from lowprec.study.kv_keys import Found, Size, answered, find_keys, key_rows, unanswered, wilson

DIGITS, LENGTH, CASES = 4, 24, 10


def asked() -> PlantedKeys:
    rng = np.random.default_rng(0)
    tokens = rng.integers(48, 58, (3 * CASES, LENGTH)).astype(np.uint8)
    tokens[:, 0] = np.arange(3 * CASES)
    return PlantedKeys(
        tokens=tokens,
        distance=np.repeat(np.array([8, 16, 18], np.int32), CASES),
        case=np.tile(np.arange(CASES, dtype=np.int32), 3),
        digits=DIGITS,
    )


def knowing(count: int, keys: PlantedKeys) -> Found:
    """Who is sure of the first `count` keys of each distance, and guesses digits of the others."""

    def score(tokens: jax.Array) -> jax.Array:
        right = jax.nn.one_hot(jnp.roll(tokens, -1, axis=1), 256)
        sure = jnp.log(jnp.float32(0.75) * right + jnp.float32(0.25 / 255) * (1 - right))
        guess = jnp.full(sure.shape, -np.inf, jnp.float32).at[..., :16].set(-np.log(16.0))
        # Digits are bytes from 48 on: a guess among 16 that has them, and likelier ones first.
        guess = jnp.roll(guess, 43, axis=-1)
        return jnp.where(jnp.isin(tokens[:, 0], knows)[:, None, None], sure, guess)

    knows = jnp.asarray(np.flatnonzero(keys.case < count), jnp.uint8)
    return find_keys(score, keys)


def test_keys_are_found_whole_or_not_at_all() -> None:
    keys = asked()
    found = knowing(6, keys)
    np.testing.assert_allclose(found.bits[keys.case < 6], -np.log2(0.75), rtol=1e-5)
    np.testing.assert_allclose(found.bits[keys.case >= 6], 4.0, rtol=1e-6)
    assert (found.exact == (keys.case < 6)).all()


def test_methods_are_judged_where_bfloat16_finds_half() -> None:
    keys = asked()
    whole = knowing(CASES, keys)
    exact = whole.exact.copy()
    exact[(keys.distance == 18) & (keys.case >= 4)] = False
    exact[(keys.distance == 16) & (keys.case >= 5)] = False
    baseline = Found(whole.bits, exact)
    assert answered(keys, baseline) == [8, 16]
    assert unanswered(keys, baseline) == [(18, 0.4)]
    rows = key_rows("int4", "gqa", Size(4.5, 100.0), keys, baseline, knowing(3, keys), seed=0)
    assert [(row.distance, row.exact, row.exact_bf16) for row in rows] == [
        (8, 0.3, 1.0),
        (16, 0.3, 0.5),
    ]
    row = rows[0]
    assert (row.method, row.bits, row.bytes_per_token, row.cases) == ("kv:int4", 4.5, 100.0, CASES)
    assert (row.chance_bits, row.chance_exact) == (4.0, 16.0**-DIGITS)
    assert (row.low, row.high) == wilson(0.3, CASES)
    # Seven of ten keys cost 4 bits a digit in place of what the sure ones have.
    assert row.increase == pytest.approx(0.7 * (4 + np.log2(0.75)), rel=1e-5)
    assert 0 < row.increase_low < row.increase < row.increase_high


@pytest.mark.parametrize(
    ("share", "count", "ends"), [(0.0, 10, (0.0, 0.2775)), (1.0, 10, (0.7225, 1.0))]
)
def test_wilsons_interval_at_the_ends(share: float, count: int, ends: tuple[float, float]) -> None:
    # E. B. Wilson 1927; at 0 of n the upper end is z^2 / (n + z^2).
    assert wilson(share, count) == pytest.approx(ends, abs=1e-4)
