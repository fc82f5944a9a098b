"""Tiles of any size along any axis, ragged at both ends, against exact arithmetic."""

from typing import Any

import numpy as np
import pytest

from lowprec.scaling import Block
from tests.helpers import UInts, random_words
from tests.scaling.helpers import assert_exact, changed

pytestmark = pytest.mark.slow


def tensor(*shape: int) -> UInts:
    """Normal numbers of many sizes, with zeros, a subnormal, an Inf and a NaN among them."""
    rng = np.random.default_rng(len(shape))
    x = rng.normal(size=shape) * np.exp(3 * rng.normal(size=shape))
    bits = x.astype(np.float32).view(np.uint32)
    bits.ravel()[:: max(bits.size // 7, 1)] = 0
    bits.ravel()[[3, 5, 11]] = 1, 0x7F800000, 0x7FC00000
    return bits


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("tile", [(3, 5), ("all", 7), (2, "all")])
def test_three_axes(tile: Any, axis: int) -> None:
    block = changed("mxfp4", tile=tile)
    bits = tensor(4, 8, 9)
    # `assert_exact` compares the axis as counted from the end.
    assert_exact(bits, block, axis=axis - 3 if axis >= 0 else axis)


@pytest.mark.parametrize("axis", [-1, -2, -3, -4])
def test_four_axes(axis: int) -> None:
    assert_exact(tensor(2, 3, 4, 7), changed("mxfp8_e4m3", tile=(3, 5)), axis=axis)


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize(
    "block",
    [
        changed("fp8_1x128", tile=(3, 5)),
        changed("nvfp4_modelopt", tile=("all", 3)),
        changed("nvfp4_row", tile=(1, 4)),
    ],
    ids=lambda block: block.name,
)
def test_float_scales(block: Block, axis: int) -> None:
    bits = tensor(2, 4, 7)
    bits.ravel()[[5, 11]] = 0x3F800000
    assert_exact(bits, block, axis=axis)


def test_tiles_of_two_axes_with_tried_scales() -> None:
    # Rows of the tile are summed by halves: five of them, and a ragged tile of two.
    block = changed("nvfp4_4over6", tile=(5, 3))
    bits = (random_words(49) & np.uint32(0x83FFFFFF) | np.uint32(0x3C000000)).reshape(7, 7)
    assert_exact(bits, block)
    assert_exact(bits, block, axis=-2)
