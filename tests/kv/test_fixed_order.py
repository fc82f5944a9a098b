"""Sums of one order: roots, norms, products and random matrices, and levels for normal numbers."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.kv.fixed_order import norm, orthogonal, product, square_root
from lowprec.kv.gaussian_levels import LloydMax, gaussian_levels
from lowprec.kv.norm_split import sketch_matrix
from tests.helpers import NOT_FINITE, SIGN, SPECIALS, as_bits, assert_bits_equal, random_words
from tests.kv.slow_norm_split import half_products, tree_norm

EXACT = LloydMax(start=3.5, iterations=20000, tolerance=1e-14)
VLLM = LloydMax(start=3.5, iterations=200, tolerance=1e-10, points=200, reach=10.5)
PUBLISHED = {
    1: ([0.7979], 0.3634),
    2: ([0.4528, 1.5104], 0.1175),
    3: ([0.2451, 0.7560, 1.3439, 2.1519], 0.0345),
    4: ([0.1284, 0.3880, 0.6568, 0.9423, 1.2562, 1.6180, 2.0690, 2.7326], 0.0095),
    5: (None, 0.0025),
}
"""Max (1960): levels of a normal number of deviation 1, and their squared error."""


def test_square_roots_are_rounded_once() -> None:
    bits = np.concatenate(
        [random_words(1 << 18) & ~np.uint32(SIGN), np.arange(1 << 12, dtype=np.uint32)]
    )
    near_squares = (np.arange(4096, 4352, dtype=np.float32) ** 2).view(np.uint32)
    bits = np.concatenate([bits, near_squares - 1, near_squares, near_squares + 1, SPECIALS])
    finite = bits[bits < 0x7F800000].astype(np.uint32)
    got = jax.jit(square_root)(jnp.asarray(finite))
    assert_bits_equal(got, np.sqrt(finite.view(np.float32)).view(np.uint32), inputs=finite)


def test_square_roots_of_what_has_none() -> None:
    below = [x | SIGN for x in (*SPECIALS[1:], 0x7F800000)]
    got = square_root(jnp.asarray([0, SIGN, 0x7F800000, *NOT_FINITE[1:], *below], jnp.uint32))
    assert np.asarray(got)[:3].tolist() == [0, 0, 0x7F800000]
    assert set(np.asarray(got)[3:].tolist()) == {0x7FC00000}


def test_norms_add_neighbours_first() -> None:
    x = np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32)
    got = jax.jit(norm)(jnp.asarray(as_bits(x)))
    assert_bits_equal(got, as_bits(tree_norm(x)))
    assert_bits_equal(norm(jnp.asarray(as_bits(x[:1]))), as_bits(tree_norm(x[:1])))
    assert (tree_norm(x) != tree_norm(x[:, ::-1])).any()


@pytest.mark.parametrize("rows", [1, 7])
def test_products_have_one_order(rows: int) -> None:
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(rows, 20)) * 2.0 ** rng.integers(-45, 20, (rows, 20))).astype(np.float32)
    matrix = rng.normal(size=(20, 5)).astype(np.float32)
    got = jax.jit(lambda x: product(x, matrix))(x)
    assert_bits_equal(got, half_products(x, matrix))
    assert_bits_equal(product(jnp.asarray(x), matrix), got)
    close = np.abs(np.asarray(got) - x.astype(np.float64) @ matrix)
    assert (close <= 1e-5 * (np.abs(x).astype(np.float64) @ np.abs(matrix))).all()


def test_random_matrices_are_orthogonal() -> None:
    q = orthogonal(24, 3).astype(np.float64)
    assert np.abs(q @ q.T - np.eye(24)).max() < 2e-7
    assert not np.array_equal(orthogonal(24, 3), orthogonal(24, 4))
    s = sketch_matrix(40, 16, "orthogonal", 0).astype(np.float64)
    assert s.shape == (40, 16)
    # Two sets and a half, each of rows of length 4, orthogonal within a set.
    for first in (0, 16, 32):
        part = s[first : first + 16]
        assert np.abs(part @ part.T / 16 - np.eye(len(part))).max() < 1e-6
    normal = sketch_matrix(4000, 2, "gaussian", 0)
    assert abs(np.mean(normal**2) - 1) < 5 * math.sqrt(2 / 8000)


def test_matrices_are_not_the_numbers_of_a_users_seed() -> None:
    drawn = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    assert not np.array_equal(sketch_matrix(16, 16, "gaussian", 0), drawn)


@pytest.mark.parametrize("bits", PUBLISHED)
def test_levels_of_normal_numbers_are_the_published_ones(bits: int) -> None:
    levels, error = PUBLISHED[bits]
    found = np.array(gaussian_levels(bits, 1, EXACT).table)
    assert np.array_equal(found, -found[::-1])
    if levels is not None:
        assert np.round(found[len(found) // 2 :], 4).tolist() == levels
    assert round(_normal_error(found), 4) == error
    scaled = np.array(gaussian_levels(bits, 64, EXACT).table)
    assert np.abs(scaled * 8 - found).max() < 1e-5


@pytest.mark.parametrize(
    ("bits", "factor", "kept"),
    [(1, 1.45, 0.637), (2, 1.88, 0.883), (3, 2.21, 0.965), (4, 2.43, 0.99), (5, 2.56, 0.997)],
)
def test_errors_fall_by_a_quarter_a_bit_and_shrink_products(
    bits: int, factor: float, kept: float
) -> None:
    """TurboQuant, theorems 1 and 3: between 1 and sqrt(3) pi / 2 times 4^-bits."""
    levels = np.array(gaussian_levels(bits, 1, EXACT).table)
    error = _normal_error(levels)
    assert round(error * 4**bits, 2) == factor and 1 < factor < math.sqrt(3) * math.pi / 2
    # E x q(x): as each level is its cell's mean, E q(x)^2 is the same, and both are 1 - error.
    ends = [-math.inf, *(levels[1:] + levels[:-1]) / 2, math.inf]
    density = [math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in ends]
    product = sum(level * (density[i] - density[i + 1]) for i, level in enumerate(levels))
    assert round(product, 3) == kept and abs(product - (1 - error)) < 1e-6


@pytest.mark.parametrize("bits", [3, 4])
def test_levels_of_the_source_are_those_of_its_sums(bits: int) -> None:
    got = np.array(gaussian_levels(bits, 128, VLLM).table, np.float32)
    assert_bits_equal(got, np.array(_by_points(bits, 128), np.float32))
    # They are not the best ones, and the difference shows in float32.
    best = np.array(gaussian_levels(bits, 128, EXACT).table, np.float32)
    apart = np.abs(got - best).max() * math.sqrt(128)
    assert 1e-4 < apart < 3e-3


def test_levels_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="`points` = 200 and `reach` = None go together"):
        LloydMax(start=3.5, iterations=1, tolerance=0.0, points=200)
    with pytest.raises(ValueError, match=r"`start` = 0\.0 must be above 0"):
        LloydMax(start=0.0, iterations=1, tolerance=0.0)


def _normal_error(levels: np.ndarray) -> float:
    """E (x - nearest level)^2 of a normal x, by the error function."""
    ends = [-math.inf, *(levels[1:] + levels[:-1]) / 2, math.inf]
    below = [math.erfc(-x / math.sqrt(2)) / 2 for x in ends]
    density = [math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in ends]
    error = 1.0
    for i, level in enumerate(levels):
        error += level**2 * (below[i + 1] - below[i]) - 2 * level * (density[i] - density[i + 1])
    return error


def _by_points(bits: int, dim: int) -> list[float]:
    """vLLM's Lloyd-Max iteration, number by number."""
    variance = 1.0 / dim
    reach = 3.5 * math.sqrt(variance)
    size = 2**bits
    density = lambda x: math.exp(-x * x / (2 * variance)) / math.sqrt(2 * math.pi * variance)

    def integral(f, low: float, high: float) -> float:
        step = (high - low) / 200
        return step * sum((f(low + i * step) for i in range(1, 200)), 0.5 * (f(low) + f(high)))

    levels = [-reach + 2 * reach * (i + 0.5) / size for i in range(size)]
    for _ in range(200):
        ends = [
            -3 * reach,
            *((a + b) / 2 for a, b in itertools.pairwise(levels)),
            3 * reach,
        ]
        following = [
            integral(lambda x: x * density(x), a, b) / integral(density, a, b)
            for a, b in itertools.pairwise(ends)
        ]
        if max(abs(a - b) for a, b in zip(following, levels, strict=True)) < 1e-10:
            break
        levels = following
    return levels


def test_exact_sums_back_the_slow_product() -> None:
    """The oracle itself: its error is that of four roundings a term."""
    x, matrix = (
        np.array([[1.5, -2.25, 3.0]], np.float32),
        np.array([[1.0], [0.125], [-7.0]], np.float32),
    )
    want = sum(
        Fraction(float(a)) * Fraction(float(b)) for a, b in zip(x[0], matrix[:, 0], strict=True)
    )
    assert half_products(x, matrix)[0, 0] == float(want)
