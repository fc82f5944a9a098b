"""Stochastic rounding of whole blocks: its expectation over all words, in fractions."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from lowprec.numerics import decode
from lowprec.scaling import Block, QTensor, quantize
from tests.helpers import as_bits
from tests.scaling.helpers import changed

pytestmark = pytest.mark.slow

BITS = 4
LADDER = [Fraction(x) for x in ("0", "1/2", "1", "3/2", "2", "3", "4", "6")]
TILES = 24


def with_bits(name: str, **changes: object) -> Block:
    return changed(name, random_bit_count=BITS, **changes)


def tiles(seed: int = 0) -> NDArray[np.float32]:
    """Rows of one tile of 16, of many sizes."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(TILES, 16)) * 2.0 ** rng.integers(-4, 4, (TILES, 1))).astype(
        np.float32
    )


def on_the_grid() -> NDArray[np.float32]:
    """Tiles whose elements lie k / 2^r of the way between two levels of their rceil scale."""
    rng = np.random.default_rng(5)
    ladder = np.array([float(level) for level in LADDER])
    below = rng.integers(0, 7, (TILES, 16))
    below[:, 3] = 6  # between 4 and 6, so that the scale is what it is taken to be
    y = ladder[below] + (ladder[below + 1] - ladder[below]) * rng.integers(0, 16, below.shape) / 16
    signed = y * rng.choice([-1, 1], y.shape) * 2.0 ** rng.integers(-40, 40, (TILES, 1))
    return signed.astype(np.float32)


def over_all_words(x: NDArray[np.float32], block: Block) -> QTensor:
    """The tensor once for each word of `BITS` bits, along the first axis."""
    words = np.broadcast_to(np.arange(2**BITS, dtype=np.uint32)[:, None, None], (2**BITS, *x.shape))
    copies = jnp.asarray(np.broadcast_to(x, words.shape))
    return quantize(copies, block, random_bits=jnp.asarray(words))


def scaled(x: NDArray[np.float32], q: QTensor) -> NDArray[np.float32]:
    """What the block encodes: x * (1 / (X * T)), each operation a float32 one."""
    assert q.tensor_scale is not None
    scale = np.asarray(decode(q.scales[0], q.block.scale_format)) * q.tensor_scale.item()
    return x * np.repeat(np.float32(1) / scale, 16, axis=1)


def expected(y: float) -> Fraction:
    """The closed form of E over all words: down + gap * floor(fraction * 2^r) / 2^r, clipped."""
    size = min(abs(Fraction(y)), LADDER[-1])
    below = max(i for i, level in enumerate(LADDER) if level <= size)
    if below == len(LADDER) - 1:
        return LADDER[-1] * (1 if y > 0 else -1)
    gap = LADDER[below + 1] - LADDER[below]
    ups = (size - LADDER[below]) / gap * 2**BITS // 1
    return (LADDER[below] + gap * ups / 2**BITS) * (1 if y > 0 else -1)


def means(values: np.ndarray) -> list[Fraction]:
    """Exact means over the first axis."""
    return [
        sum(map(Fraction, column.tolist()), Fraction(0)) / len(column)
        for column in values.reshape(len(values), -1).T.astype(np.float64)
    ]


def test_mxfp4_is_unbiased_bit_for_bit() -> None:
    # Scales of rceil clip nothing, and r bits are enough for these fractions.
    x = on_the_grid()
    q = over_all_words(x, with_bits("mxfp4_stochastic", tile=(1, 16)))
    got = means(np.asarray(q.dequantize()))
    assert got == [Fraction(v) for v in x.ravel().tolist()]
    assert len({tuple(copy.ravel().tolist()) for copy in np.asarray(q.codes)}) > 10


@pytest.mark.parametrize("name", ["nvfp4_stochastic_guarded", "nvfp4_stochastic_round_up"])
def test_guarded_nvfp4_never_clips_and_has_the_closed_form_expectation(name: str) -> None:
    x = tiles(1)
    q = over_all_words(x, with_bits(name))
    y = scaled(x, q)
    assert 5.3 < np.abs(y).max() <= 6.0 and np.all(np.abs(y) <= 6)
    codes = means(np.asarray(decode(q.codes, q.block.element)))
    assert codes == [expected(v) for v in y.ravel().tolist()]
    # The bias left is that of r bits, towards zero, below 2^-r of a gap.
    bias = np.array(
        [float(e - Fraction(v)) for e, v in zip(codes, y.ravel().tolist(), strict=True)]
    )
    assert np.all(np.abs(bias) < 2.0 * 2**-BITS) and np.all(bias * np.sign(y.ravel()) <= 0)
    assert np.any(bias != 0)


def test_guarded_nvfp4_is_unbiased_for_whole_tensors() -> None:
    """E[dequantize(quantize(x))] = x up to 2^-r of a gap and the float32 operations."""
    x = tiles(2)
    for name in ("nvfp4_stochastic_guarded", "nvfp4_stochastic_round_up"):
        q = over_all_words(x, with_bits(name))
        got = np.array([float(m) for m in means(np.asarray(q.dequantize()))]).reshape(x.shape)
        assert q.tensor_scale is not None
        step = np.asarray(decode(q.scales[0], "float8_e4m3fn")) * q.tensor_scale.item()
        bound = np.repeat(step, 16, axis=1) * 2.0 * 2.0**-BITS + np.abs(x) * 2.0**-21
        assert np.all(np.abs(got - x) <= bound)


def test_unguarded_nvfp4_clips_the_largest_elements() -> None:
    x = tiles(2)
    q = over_all_words(x, with_bits("nvfp4_stochastic"))
    assert np.mean(np.abs(scaled(x, q)).max(axis=1) > 6.01) > 0.2


def test_scales_rounded_up_never_clip_where_scales_are_subnormal() -> None:
    # Tiles 2^-16 of the largest: E4M3 scales of a few units of 2^-9, where a guard is not enough.
    x = tiles(3) / np.float32(8)
    x[1:] *= 2.0 ** -np.linspace(12, 20, TILES - 1, dtype=np.float32)[:, None]
    clipped = {}
    for name in ("nvfp4_stochastic_guarded", "nvfp4_stochastic_round_up"):
        q = over_all_words(x, with_bits(name))
        assert np.any((np.asarray(q.scales[0]) < 8) & (np.asarray(q.scales[0]) > 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            clipped[name] = np.any(np.abs(scaled(x, q)) > 6)
    assert clipped == {"nvfp4_stochastic_guarded": True, "nvfp4_stochastic_round_up": False}


def test_the_largest_word_of_all_bits_rounds_up() -> None:
    # Without `random_bit_count` all bits of a word count: 2^32 words, of which the ends are tried.
    x = jnp.asarray(tiles(4))
    ends = [
        as_bits(
            quantize(
                x, "nvfp4_stochastic_guarded", random_bits=jnp.full(x.shape, word, jnp.uint32)
            ).dequantize()
        ).view(np.float32)
        for word in (0, 2**32 - 1)
    ]
    assert np.all(np.abs(ends[0]) <= np.abs(ends[1])) and np.any(ends[0] != ends[1])
