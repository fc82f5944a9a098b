"""MS-EDEN: exact, and unbiased as a whole block quantizer."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.scaling import Block, eden_oracle, get_block, quantize, transforms
from tests.helpers import STRICT_SLOW, as_bits, assert_bits_equal, floats, random_words

pytestmark = pytest.mark.slow

BLOCK = get_block("nvfp4_ms_eden_weighted")
RELEASED = get_block("nvfp4_ms_eden")
ROWS, COLUMNS = 2, 256
SAMPLES = 4096
BIASED = dataclasses.replace(get_block("nvfp4"), name="nvfp4_rotated", transform=BLOCK.transform)
"""The same rotation, elements rounded to nearest, and scales that nothing corrects."""


APPLY = jax.jit(transforms.apply, static_argnums=(1, 2))
UNDO = jax.jit(transforms.undo, static_argnums=(1, 2))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def some_signs(seed: int) -> jax.Array:
    return jnp.where(jax.random.bernoulli(jax.random.key(seed), 0.5, (128,)), -1.0, 1.0)


@functools.cache
def program(block: Block) -> Any:
    """Quantizes SAMPLES tensors of one row, each with its own signs and words: one compilation."""

    def one(x: jax.Array, signs: jax.Array, words: jax.Array) -> tuple[jax.Array, ...]:
        options: dict[str, Any] = {"random_bits": words} if block.eden else {}
        q = quantize(x, block, signs=signs, **options)
        assert q.tensor_scale is not None
        return q.codes, q.scales, q.tensor_scale, q.dequantize()

    return jax.jit(jax.vmap(one))


def draws(seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Signs and words of every sample."""
    signs_key, words_key = jax.random.split(jax.random.key(seed))
    signs = jnp.where(jax.random.bernoulli(signs_key, 0.5, (SAMPLES, 128)), -1.0, 1.0)
    return signs, jax.random.bits(words_key, (SAMPLES, 1, COLUMNS // 16), jnp.uint32)


def tensors() -> np.ndarray:
    """Rows of every kind: normal, over many binades, with a block of zeros, tiny, zero."""
    x = normal(5, COLUMNS)
    x[1:3] *= np.exp2(np.arange(COLUMNS) // 16 * 2.0).astype(np.float32)
    x[2, :128] = 0
    x[3] = floats(random_words(COLUMNS, 3) & np.uint32(0x81FFFFFF))
    x[4] = 0
    return x


@pytest.mark.parametrize(
    "block", [BLOCK, pytest.param(RELEASED, marks=pytest.mark.slow)], ids=lambda b: b.name
)
def test_exact(block: Block) -> None:
    rows = tensors()
    filled = np.resize(rows, (SAMPLES, 1, COLUMNS))
    signs, words = draws()
    codes, scales, tensor, values = map(np.asarray, program(block)(filled, signs, words))
    transform = block.transform
    assert transform is not None
    for i, row in enumerate(rows):
        bits = jnp.asarray(row[None].view(np.uint32))
        rotated = floats(np.asarray(APPLY(bits, transform, -1, signs[i])[0]))
        want = eden_oracle.code_rows([[float(x) for x in rotated[0]]], block, words[i].tolist())
        assert tensor[i].item() == want.tensor
        np.testing.assert_array_equal(scales[i], want.scales)
        np.testing.assert_array_equal(codes[i], want.codes)
        inside = jnp.asarray(np.array(want.values, np.float32).view(np.uint32))
        turned = UNDO(inside, transform, -1, signs[i])
        assert_bits_equal(values[i], floats(np.asarray(turned)))
        assert i == 4 or len(np.unique(codes[i])) > 8


def estimates(block: Block, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A tensor, and what it decodes to for fresh signs and words each time."""
    x = normal(1, COLUMNS, seed=5)
    values = program(block)(np.broadcast_to(x, (SAMPLES, 1, COLUMNS)), *draws(seed))[3]
    return x[0].astype(np.float64), np.asarray(values, np.float64)[:, 0]


def standard_scores(block: Block) -> tuple[np.ndarray, float]:
    """By how many standard errors the mean is off: of each element, and of its part along x."""
    x, samples = estimates(block)
    error = samples - x
    each = error.mean(0) / (error.std(0) / np.sqrt(SAMPLES))
    along = error @ x / (x @ x)
    return each, along.mean() / (along.std() / np.sqrt(SAMPLES))


def is_unbiased(block: Block) -> bool:
    """Whether zero lies within 4.5 standard errors of every element's mean error, and of x's.

    For 257 numbers that is an interval of more than 99.8 %. Were the scores of an unbiased
    quantizer not of size one, the interval would mean nothing: that is checked as well.
    """
    each, along = standard_scores(block)
    return bool(np.abs(each).max() < 4.5 and abs(along) < 4.5 and 0.6 < np.mean(each**2) < 1.6)


def test_the_block_quantizer_is_unbiased() -> None:
    assert is_unbiased(BLOCK)


@pytest.mark.slow
def test_the_test_of_bias_has_power() -> None:
    """Without the correction values shrink by a percent, and the same test says so."""
    assert not is_unbiased(BIASED)
    each, along = standard_scores(BIASED)
    assert along < -20 and np.mean(each**2) > 1.6


def bias_along(block: Block, batches: int) -> tuple[float, float]:
    """The mean error's part along x as a share of x, and its standard error."""
    shares = []
    for seed in range(batches):
        x, samples = estimates(block, seed)
        shares.append((samples - x) @ x / (x @ x))
    share = np.concatenate(shares)
    return float(share.mean()), float(share.std() / np.sqrt(share.size))


@pytest.mark.slow
def test_the_released_kernels_shrink_values_a_little() -> None:
    """Sums of scaled values: 5e-4 too small, which 12 times the samples tell from 0."""
    share, error = bias_along(RELEASED, 12)
    assert share < -8 * error and -1e-3 < share < -2e-4
    share, error = bias_along(BLOCK, 12)
    assert abs(share) < 3.5 * error


@pytest.mark.slow
def test_error_on_normal_numbers() -> None:
    """Squared error: near round to nearest (9.0e-3), far below stochastic rounding of elements."""
    x = normal(64, COLUMNS, seed=7)
    words = random_words(64 * COLUMNS // 16, 8).reshape(64, -1)
    y = quantize(jnp.asarray(x), BLOCK, signs=some_signs(3), random_bits=words).dequantize()
    error = float(np.mean((np.asarray(y) - x) ** 2))
    stochastic = quantize(
        jnp.asarray(x),
        "nvfp4",
        rounding="stochastic",
        random_bits=random_words(x.size, 9).reshape(x.shape),
    ).dequantize()
    assert 8.5e-3 < error < 11e-3
    assert error < 0.6 * float(np.mean((np.asarray(stochastic) - x) ** 2))


@pytest.mark.slow
def test_nan_and_inf_anywhere_are_everywhere() -> None:
    words = random_words(ROWS * COLUMNS // 16, 4).reshape(ROWS, -1)
    for special in (np.nan, np.inf):
        x = normal(ROWS, COLUMNS)
        x[0, 3] = special
        q = quantize(jnp.asarray(x), BLOCK, signs=some_signs(1), random_bits=words)
        assert np.isnan(np.asarray(q.dequantize())).all()


@pytest.mark.slow
def test_static_largest_magnitude() -> None:
    x = jnp.asarray(normal(ROWS, COLUMNS))
    words = random_words(ROWS * COLUMNS // 16, 4).reshape(ROWS, -1)
    q = quantize(x, BLOCK, signs=some_signs(1), random_bits=words, amax=8.0)
    clip = np.float32(6 / 0.988125)
    assert q.tensor_scale is not None
    assert q.tensor_scale.item() == np.float32(8) / np.float32(255.99) / clip


@pytest.mark.slow
def test_the_same_bits_under_every_transformation() -> None:
    x = jnp.asarray(normal(ROWS, COLUMNS))
    words = jnp.asarray(random_words(ROWS * COLUMNS // 16, 4).reshape(ROWS, -1))
    signs = some_signs(1)

    def parts(x: jax.Array) -> tuple[jax.Array, ...]:
        q = quantize(x, BLOCK, signs=signs, random_bits=words)
        return q.codes, q.scales, q.dequantize()

    want = parts(x)
    stacked = jax.vmap(parts)(jnp.stack([x, x]))
    strict = jax.jit(parts, compiler_options=STRICT_SLOW)(x)
    columns = quantize(x.T, BLOCK, axis=-2, signs=signs, random_bits=words.T)
    for index, expected in enumerate(want):
        assert_bits_equal(strict[index], expected)
        assert_bits_equal(np.asarray(stacked[index])[1], expected)
    assert_bits_equal(columns.dequantize().T, want[2])
    assert len(np.unique(as_bits(want[1]))) > 8


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("scales' shape \\(1, 2\\); got none", {"signs": np.ones(128)}),
        ("got shape \\(1, 3\\)", {"signs": np.ones(128), "random_bits": np.ones((1, 3), "u4")}),
        (
            "`rounding` = 'stochastic'",
            {
                "signs": np.ones(128),
                "random_bits": np.ones((1, 2), "u4"),
                "rounding": "stochastic",
            },
        ),
    ],
)
def test_errors(message: str, options: dict[str, Any]) -> None:
    block = dataclasses.replace(BLOCK, tile=(1, 64))
    with pytest.raises(ValueError, match=message):
        quantize(jnp.ones((1, 128)), block, **options)


def test_groups_are_whole_tiles() -> None:
    with pytest.raises(ValueError, match="group of whole tiles"):
        dataclasses.replace(BLOCK, tile=(1, 24))
    with pytest.raises(ValueError, match="group of whole tiles"):
        dataclasses.replace(BLOCK, tile=(2, 16))


@pytest.mark.parametrize("tile", [(2, 16), (1, "all"), (1, 24), ("all", 16)])
def test_groups_are_whole_tiles_of_one_row(tile: tuple[int | str, int | str]) -> None:
    with pytest.raises(ValueError, match="a group of whole tiles of one row"):
        dataclasses.replace(BLOCK, tile=tile)
