"""Identities of attention over a cache, bit for bit, where nothing is rounded.

Keys, queries and values are small integers, over powers of two after a rotation or without a mean,
so that float16 keeps them and scores are exact sums. What is done to keys and queries then leaves
every bit of the output, whatever the weights. What is done to values or to the order of tokens
changes the order of sums: weights are 0 or 1 there, as scores are multiples of 128 and exp(-128) is
0 in float32, and 2^n of them are 1, so that means are exact as well. The same identities over any
numbers, within bounds of their rounding, are in `tests/kv/test_attention.py`.
"""

import functools
from fractions import Fraction
from typing import NamedTuple

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lowprec.kv import KVMethod
from lowprec.kv.blocks import BlocksSpec
from lowprec.kv.schedule import Schedule
from lowprec.numerics.format import get_format
from tests.helpers import assert_bits_equal

Array = NDArray[np.float32]
HALF = get_format("float16")
METHOD = KVMethod(spec=BlocksSpec(name="half", keys=HALF, values=HALF))
HEADS, QUERY_HEADS, ROWS, TOKENS, DIM = 2, 4, 3, 32, 16
SHARP = 512.0
"""Times DIM**-0.5 it makes scores of whole numbers multiples of 128."""

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=15)


class Case(NamedTuple):
    """q (1, query heads, rows, dim), k and v (1, heads, tokens, dim)."""

    q: Array
    k: Array
    v: Array


@functools.partial(jax.jit, static_argnames=("splits", "tile"))
def _attend(case: Case, splits: int, tile: int) -> jax.Array:
    cache = METHOD.append(METHOD.init(1, HEADS, DIM, TOKENS), case.k, case.v)
    how = Schedule(tile=tile)
    return METHOD.attend(cache, case.q, splits=splits, causal=False, schedule=how)


def attend(case: Case, *, splits: int = 1) -> Array:
    for x in case:
        assert np.array_equal(x, x.astype(np.float16)), "float16 must keep what is drawn"
    return np.asarray(_attend(case, splits, 8))


def soft(seed: int) -> Case:
    """Whole numbers; scores of a few units, so that all tokens weigh something."""
    rng = np.random.default_rng(seed)
    shapes = ((QUERY_HEADS, ROWS), (HEADS, TOKENS), (HEADS, TOKENS))
    return Case(*(whole(rng, 2, 1, *shape, DIM) for shape in shapes))


def whole(rng: np.random.Generator, most: int, *shape: int) -> Array:
    return rng.integers(-most, most, shape, endpoint=True).astype(np.float32)


def hard(seed: int) -> Case:
    """Each row looks at one channel, whose largest value 2^n tokens share, n at random."""
    rng = np.random.default_rng(seed)
    k = np.minimum(whole(rng, 2, 1, HEADS, TOKENS, DIM), 1)
    for head in range(HEADS):
        for channel in range(DIM):
            first = rng.permutation(TOKENS)[: 2 ** rng.integers(0, 5)]
            k[0, head, first, channel] = 2
    q = np.zeros((1, QUERY_HEADS, ROWS, DIM), np.float32)
    chosen = rng.integers(0, DIM, (QUERY_HEADS, ROWS))
    np.put_along_axis(q[0], chosen[..., None], SHARP, axis=-1)
    return Case(q, k, whole(rng, 7, 1, HEADS, TOKENS, DIM))


def means(case: Case) -> Array:
    """What `hard` attends to, by rational numbers."""
    out = np.zeros(case.q.shape, np.float32)
    for head in range(QUERY_HEADS):
        keys, values = (x[0, head // (QUERY_HEADS // HEADS)] for x in (case.k, case.v))
        for row in range(ROWS):
            scores = [
                sum(map(Fraction, (q * k).tolist())) for q, k in rows(case.q[0, head, row], keys)
            ]
            top = [i for i, score in enumerate(scores) if score == max(scores)]
            for channel in range(DIM):
                total = sum(Fraction(float(values[i, channel])) for i in top)
                out[0, head, row, channel] = float(total / len(top))
    return out


def rows(q: Array, keys: Array) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    return [(q.astype(np.float64), key.astype(np.float64)) for key in keys]


def rotation(seed: int) -> NDArray[np.float64]:
    """An orthogonal matrix of multiples of 1/4: Sylvester's, its rows shuffled, with signs."""
    rng = np.random.default_rng(seed)
    pair = np.array([[1, 1], [1, -1]])
    matrix = functools.reduce(np.kron, [pair] * 4)[rng.permutation(DIM)] / 4
    return matrix * rng.choice([-1, 1], DIM)


def turned(x: Array, matrix: NDArray[np.float64]) -> Array:
    """Exact: multiples of 1/4, and of 1/16 on the way back."""
    out = x.astype(np.float64) @ matrix
    assert np.array_equal(out, out.astype(np.float32))
    return out.astype(np.float32)


def softmax(case: Case) -> NDArray[np.float64]:
    q, k, v = (x.astype(np.float64) for x in case)
    k, v = (np.repeat(x, QUERY_HEADS // HEADS, axis=1) for x in (k, v))
    weights = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(DIM))
    return weights / weights.sum(axis=-1, keepdims=True) @ v


@FEW
@given(SEEDS)
def test_without_the_mean_of_keys_the_bits_are_the_same(seed: int) -> None:
    case = soft(seed)
    shifted = case._replace(k=case.k - case.k.mean(axis=2, keepdims=True))
    assert not np.array_equal(shifted.k, case.k)
    out = attend(case)
    np.testing.assert_allclose(out, softmax(case), atol=1e-5)
    assert_bits_equal(attend(shifted), out)


@FEW
@given(SEEDS)
def test_with_queries_and_keys_turned_the_bits_are_the_same(seed: int) -> None:
    case, matrix = soft(seed), rotation(seed)
    np.testing.assert_array_equal(matrix @ matrix.T, np.eye(DIM))
    both = case._replace(q=turned(case.q, matrix), k=turned(case.k, matrix))
    out = attend(case)
    assert len(np.unique(out)) > out.size // 2
    assert_bits_equal(attend(both), out)
    one = case._replace(k=both.k)
    assert not np.array_equal(attend(one), out)


@FEW
@given(SEEDS)
def test_sharp_attention_is_a_mean_of_values(seed: int) -> None:
    case = hard(seed)
    out = attend(case)
    assert_bits_equal(out, means(case))
    assert len(np.unique(out)) > 20


@FEW
@given(SEEDS)
def test_the_mean_of_values_added_afterwards_gives_the_same_bits(seed: int) -> None:
    case = hard(seed)
    mean = case.v.mean(axis=2, keepdims=True)
    of_rows = np.repeat(mean, QUERY_HEADS // HEADS, axis=1)
    centred = case._replace(v=case.v - mean)
    assert_bits_equal(attend(centred) + of_rows, attend(case) + 0 * of_rows)


@FEW
@given(SEEDS)
def test_a_rotation_of_values_undone_afterwards_gives_the_same_bits(seed: int) -> None:
    case, matrix = hard(seed), rotation(seed)
    out = attend(case._replace(v=turned(case.v, matrix)))
    assert not np.array_equal(out, attend(case))
    assert_bits_equal(turned(out, matrix.T) + 0, attend(case) + 0)


@FEW
@given(SEEDS)
def test_parts_of_the_tokens_combine_to_the_same_bits(seed: int) -> None:
    case = hard(seed)
    assert_bits_equal(attend(case, splits=3), attend(case))


@FEW
@given(SEEDS)
def test_tokens_in_another_order_give_the_same_bits(seed: int) -> None:
    case = hard(seed)
    order = np.random.default_rng(seed).permutation(TOKENS)
    shuffled = case._replace(k=case.k[:, :, order], v=case.v[:, :, order])
    assert_bits_equal(attend(shuffled), attend(case))
    assert not np.array_equal(attend(shuffled._replace(v=case.v)), attend(case))
