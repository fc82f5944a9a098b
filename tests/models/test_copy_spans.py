"""Copies and planted keys: what is where, at which distance, and what a score says of it."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.models.copy_spans import (
    PROMPT,
    CopyMix,
    PlantedKeys,
    mix_copies,
    planted_keys,
    score_keys,
)

MIX = CopyMix(
    share=1.0, spans=0, shortest_span=8, longest_span=12, asks=0, fewest_digits=3, most_digits=5
)
LENGTH = 200
# Every byte differs from its neighbours at all distances up to 200: a repeat is a copy.
DISTINCT = np.arange(LENGTH, dtype=np.uint8)[None]


def many(mix: CopyMix, count: int, windows: np.ndarray = DISTINCT) -> np.ndarray:
    return mix_copies(np.repeat(windows, count, axis=0), mix, np.random.default_rng(0))


def repeats(window: np.ndarray) -> tuple[int, int, int]:
    """Where the one copied span of distinct bytes lies: its first byte, distance and size."""
    changed = np.flatnonzero(window != DISTINCT[0])
    start, size = int(changed[0]), len(changed)
    assert changed.tolist() == list(range(start, start + size))
    return start, start - int(window[start]), size


def test_a_span_comes_again_whole_at_every_distance_that_fits() -> None:
    mixed = many(dataclasses.replace(MIX, spans=1), 400)
    found = np.array([repeats(window) for window in mixed])
    for window, (start, distance, size) in zip(mixed, found, strict=True):
        source = window[start - distance : start - distance + size]
        np.testing.assert_array_equal(window[start : start + size], source)
        np.testing.assert_array_equal(source, DISTINCT[0, start - distance :][:size])
    _, distances, sizes = found.T
    assert set(sizes) == set(range(8, 13))
    assert (distances >= sizes).all() and (distances <= LENGTH - sizes).all()
    # The logarithm is uniform from 8..12 to 188..192: half of the copies lie below its middle,
    # 39 +- 3.3 times the standard error of a share, and the ends are reached.
    assert abs(np.mean(distances < math.sqrt(10 * 190)) - 0.5) < 3.3 * 0.5 / math.sqrt(400)
    assert distances.min() < 14 and distances.max() > 150


def test_a_key_is_planted_once_and_asked_again() -> None:
    mix = dataclasses.replace(MIX, asks=2)
    plain = np.full((1, LENGTH), ord("."), np.uint8)
    mixed = many(mix, 200, plain)
    keys, gaps = [], []
    for window in mixed:
        lines = list(re.finditer(re.escape(PROMPT) + rb"([0-9a-f]+)\n", window.tobytes()))
        assert len(lines) == 3 and len({line[1] for line in lines}) == 1
        rest = re.sub(re.escape(lines[0][0]), b"", window.tobytes())
        assert set(rest) == {ord(".")}
        keys.append(lines[0][1])
        gaps.append(lines[1].start() - lines[0].start())
    assert {len(key) for key in keys} == {3, 4, 5}
    assert len(set(keys)) > 190
    digits = np.frombuffer(b"".join(keys), np.uint8)
    assert set(digits.tobytes()) == set(b"0123456789abcdef")
    assert min(gaps) < 20 and max(gaps) > 100


def test_a_share_of_the_windows_stays_as_it_was() -> None:
    mixed = many(dataclasses.replace(MIX, share=0.25, spans=1), 400)
    changed = (mixed != DISTINCT).any(axis=1)
    # 3.3 standard errors of a share of 400.
    assert abs(changed.mean() - 0.25) < 3.3 * math.sqrt(0.25 * 0.75 / 400)
    assert (many(dataclasses.replace(MIX, share=0.0, spans=1, asks=2), 9) == DISTINCT).all()


def test_a_share_of_the_others_is_one_stretch_over_and_over() -> None:
    mix = dataclasses.replace(MIX, share=0.2, spans=1, periodic=0.5, shortest_period=5)
    found, own = [], 0
    for window in many(mix, 400):
        periods = [n for n in range(1, LENGTH // 2 + 1) if (window[n:] == window[:-n]).all()]
        if periods:
            found.append(periods[0])
            digits = set(window.tobytes()) <= set(b"0123456789abcdef")
            own += not digits
            assert digits or (window[: periods[0]] == DISTINCT[0, : periods[0]]).all()
    # Shares of 400, and of those found, within 3.3 standard errors.
    assert abs(len(found) / 400 - 0.4) < 3.3 * math.sqrt(0.4 * 0.6 / 400)
    assert abs(own / len(found) - 0.5) < 3.3 * 0.5 / math.sqrt(len(found))
    # The logarithm is uniform from 5 to 100: half lie below the middle.
    assert min(found) < 8 and max(found) > 80
    assert abs(np.mean(np.array(found) < math.sqrt(500)) - 0.5) < 3.3 * 0.5 / math.sqrt(len(found))


def test_the_same_state_gives_the_same_bytes_and_the_argument_is_left_alone() -> None:
    mix = dataclasses.replace(MIX, spans=3, asks=2)
    text = np.repeat(DISTINCT, 4, axis=0)
    first, again, other = (mix_copies(text, mix, np.random.default_rng(n)) for n in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (text == DISTINCT).all()


def test_the_smallest_window_is_enough_and_one_byte_less_is_refused() -> None:
    for mix in (
        dataclasses.replace(MIX, spans=2, fewest_digits=1, most_digits=1),
        dataclasses.replace(MIX, asks=3, shortest_span=1, longest_span=1),
    ):
        text = np.zeros((50, mix.smallest_window), np.uint8)
        assert mix_copies(text, mix, np.random.default_rng(0)).shape == text.shape
        with pytest.raises(ValueError, match=f"at least {mix.smallest_window} bytes"):
            mix_copies(text[:, 1:], mix, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"uint8 \(count, length\), got int64 \(2, 200\)"):
        mix_copies(np.zeros((2, 200), np.int64), MIX, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"share": 1.5}, "`share` must be from 0 to 1, got 1.5"),
        ({"periodic": -0.5}, "`periodic` must be from 0 to 1, got -0.5"),
        ({"shortest_period": 0}, "`shortest_period` must be 1 or more, got 0"),
        ({"spans": -1}, "`spans` and `asks` must be 0 or more, got -1, 0"),
        ({"shortest_span": 0}, "`shortest_span` must be from 1 to `longest_span`, got 0 and 12"),
        ({"fewest_digits": 9}, "`fewest_digits` must be from 1 to `most_digits`, got 9 and 5"),
    ],
)
def test_a_mix_refuses(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        dataclasses.replace(MIX, **changes)
    assert text in str(caught.value)


DOCUMENTS = [
    ("short.py", b"x" * 50),
    ("one.py", bytes(range(65, 91)) * 10),
    ("other.py", bytes(range(32, 64)) * 10),
]
OPTIONS: dict[str, Any] = {"length": 120, "distances": [60, 20], "cases": 12, "digits": 6}


def plant(seed: int = 0, **changes: Any) -> PlantedKeys:
    options: dict[str, Any] = OPTIONS | changes
    return planted_keys(DOCUMENTS, seed=seed, **options)


def test_a_key_lies_at_its_distance_in_text_that_all_distances_share() -> None:
    asked = plant(3)
    assert asked.tokens.shape == (24, 120) and asked.tokens.dtype == np.uint8
    assert asked.distance.tolist() == [20] * 12 + [60] * 12
    assert asked.case.tolist() == list(range(12)) * 2
    for row, distance in zip(asked.tokens, asked.distance, strict=True):
        text = row.tobytes()
        key = text[-6:]
        assert text[:-6].endswith(PROMPT)
        assert text.count(PROMPT) == 2 and text.count(key) == 2
        assert text.index(PROMPT + key + b"\n") + len(PROMPT) == 120 - 6 - distance
    # Elsewhere the two distances of a case have the same bytes, and those are a document's.
    near, far = asked.tokens[:12], asked.tokens[12:]
    untouched = np.ones(120, bool)
    for distance in (20, 60):
        start = 120 - 6 - len(PROMPT) - distance
        untouched[start : start + len(PROMPT) + 6 + 1] = False
    np.testing.assert_array_equal(near[:, untouched], far[:, untouched])
    np.testing.assert_array_equal(near[:, -6:], far[:, -6:])
    for row in near:
        assert any(row[:30].tobytes() in text for _, text in DOCUMENTS[1:])
    assert len({row[-6:].tobytes() for row in near}) == 12
    assert {row[0] < 64 for row in near} == {False, True}


def test_planted_keys_follow_their_seed_and_state_their_chance() -> None:
    first, again, other = (plant(seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.tokens != other.tokens).any()
    assert first.chance_bits == 4.0
    assert first.chance_exact == 1 / 16**6


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"distances": [15]}, "`distances` must be from 16 to 105 for windows of 120 bytes"),
        ({"distances": [20, 106]}, "keys of 6 digits, got 106"),
        ({"distances": []}, "must be at least 1, got 12, 6 and 0"),
        ({"cases": 0}, "must be at least 1, got 0, 6 and 2"),
        ({"length": 400}, "`documents` must hold one of at least 400 bytes"),
    ],
)
def test_planted_keys_refuse(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        plant(**changes)
    assert text in str(caught.value)


def test_the_nearest_and_farthest_distance_fit() -> None:
    asked = plant(distances=[16, 105])
    assert asked.tokens[-1].tobytes().startswith(PROMPT)
    assert asked.tokens[0].tobytes().count(asked.tokens[0, -6:].tobytes() + PROMPT) == 0
    assert asked.tokens[0].tobytes().endswith(asked.tokens[0, -6:].tobytes())


def test_a_score_counts_the_keys_digits_alone() -> None:
    asked = plant(3)
    tokens = jnp.asarray(asked.tokens[:3])
    # Whatever is said of other bytes: of the digits, p = 1/2, the rest spread.
    random = np.random.default_rng(0)
    logits = random.normal(size=(3, 120, 256)).astype(np.float32)
    logits[:, -7:-1] = 0.0
    digits = np.asarray(tokens)[:, -6:]
    np.put_along_axis(logits[:, -7:-1], digits[..., None].astype(int), math.log(255.0), axis=-1)
    # The second window's third digit is less likely than another byte.
    logits[1, -5, 0] = 9.0
    bits, exact = jax.jit(score_keys, static_argnums=2)(jnp.asarray(logits), tokens, 6)
    np.testing.assert_allclose(np.asarray(bits)[[0, 2]], 1.0, rtol=1e-5)
    expected = (5 + math.log2((254 + 255 + math.exp(9.0)) / 255)) / 6
    np.testing.assert_allclose(bits[1], expected, rtol=1e-5)
    assert exact.tolist() == [True, False, True]
    with pytest.raises(ValueError, match="`digits` must be from 1 to 119, got 120"):
        score_keys(jnp.asarray(logits), tokens, 120)


def test_the_bound_that_chance_states_holds_for_a_model_that_does_not_look_back() -> None:
    asked = plant(cases=200)
    logits = np.full((400, 120, 256), -100.0, np.float32)
    logits[..., list(b"0123456789abcdef")] = 0.0
    bits, exact = score_keys(jnp.asarray(logits), jnp.asarray(asked.tokens), 6)
    np.testing.assert_allclose(bits, asked.chance_bits, rtol=1e-5)
    assert not exact.any()
