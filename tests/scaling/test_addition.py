"""float32 sums on bits against exact fractions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.numerics import oracle
from lowprec.scaling.addition import add, subtract, tree_sum
from tests.helpers import NOT_FINITE, SIGN, SPECIALS, UInts, assert_bits_equal, random_words

pytestmark = pytest.mark.slow

ONE = 0x3F800000


def exact_sum(a: int, b: int) -> int:
    return oracle.fused_multiply_add(a, ONE, b)


def pairs() -> tuple[UInts, UInts]:
    """All pairs of special numbers, and numbers of near exponents, which cancel or get lost."""
    special = [x | sign for x in (*SPECIALS, *NOT_FINITE, 0x33800000) for sign in (0, SIGN)]
    left, right = np.array(list(itertools.product(special, special)), np.uint32).T
    a, b = random_words(400, 1), random_words(400, 2)
    distance = (random_words(400, 3) % 56).astype(np.int64) - 28
    exponent = np.clip((a >> 23 & 255).astype(np.int64) + distance, 0, 254).astype(np.uint32)
    near = (b & np.uint32(0x807FFFFF)) | exponent << 23
    tiny = a & np.uint32(0x81FFFFFF), b & np.uint32(0x81FFFFFF)
    return np.concatenate([left, a, a, tiny[0]]), np.concatenate([right, b, near, tiny[1]])


def test_sums_are_rounded_once() -> None:
    a, b = pairs()
    want = np.array([exact_sum(*pair) for pair in zip(a.tolist(), b.tolist(), strict=True)])
    got = jax.jit(add)(jnp.asarray(a), jnp.asarray(b))
    assert_bits_equal(got, want.astype(np.uint32))
    assert_bits_equal(jax.jit(subtract)(jnp.asarray(a), jnp.asarray(b ^ SIGN)), got)
    assert np.isfinite(np.asarray(got).view(np.float32)).mean() > 0.5


def test_neighbours_are_added_first() -> None:
    numbers = np.random.default_rng(0).normal(size=(3, 13)).astype(np.float32)
    want = []
    for row in numbers:
        sums = [*row.view(np.uint32).tolist(), 0, 0, 0]
        while len(sums) > 1:
            sums = [exact_sum(*sums[i : i + 2]) for i in range(0, len(sums), 2)]
        want.append(sums[0])
    bits = jnp.asarray(numbers.view(np.uint32))
    summed = jax.jit(tree_sum, static_argnums=1)
    assert_bits_equal(summed(bits, 1), np.array(want, np.uint32)[:, None])
    assert_bits_equal(summed(bits.T, 0), np.array(want, np.uint32)[None, :])
    # In another order the sum is another one: the test can fail.
    assert np.asarray(summed(bits[:, ::-1], 1)).ravel().tolist() != want
