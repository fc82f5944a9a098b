"""`quantize` and `dequantize` against exact arithmetic: every block, every bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowprec.scaling import Block, get_block, oracle
from tests.helpers import UInts, graded, random_words
from tests.scaling.helpers import (
    BLOCK_NAMES,
    BLOCKS,
    SCALED,
    SLOW,
    USER_BLOCKS,
    assert_exact,
    changed,
    narrowed,
    slow_if,
    tensors,
    width,
)

TWO_CHANGES = {
    block.name
    for block in USER_BLOCKS
    if block.overflow != "nonsaturating" and block.min_amax != 0.25
}
"""Users' blocks that differ from a catalogued one only in what other fast blocks have."""
LONG = (
    "fp8_128x128_deepgemm",
    "int4_g128",
    "mxfp4_nearest_log2",
    "mxfp4_three_quarter",
    "nvfp4_modelopt",
    "nvfp4_row",
    "nvfp4_stochastic_round_up",
    "nvfp4_torchao",
    "nvfp4_torchao_single_level",
)
"""Blocks like fast ones that take long to compile; columns of some are fast."""
COLUMNS = ("mxfp4", "fp8_128x128_deepgemm", "fp8_channel")
"""Blocks whose tiles are tried along both axes in the fast suite."""


def some(data: st.DataObject, block: Block, shape: tuple[int, ...]) -> UInts:
    return data.draw(tensors(shape, block.element.mantissa_bits or 3))


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(
            block, marks=[pytest.mark.slow] * (name in {*SLOW, *TWO_CHANGES, *LONG}), id=name
        )
        for block, name in zip(BLOCKS, BLOCK_NAMES, strict=True)
    ],
)
@settings(max_examples=10)
@given(data=st.data())
def test_rows_with_a_ragged_tile(block: Block, data: st.DataObject) -> None:
    block = narrowed(block)
    assert_exact(some(data, block, (2, width(block))), block)


@pytest.mark.parametrize("name", graded(SCALED))
@settings(max_examples=3)
@given(data=st.data())
def test_rows_with_a_ragged_tile_of_the_block_itself(name: str, data: st.DataObject) -> None:
    block = get_block(name)
    assert_exact(some(data, block, (2, width(block))), block)


@pytest.mark.parametrize("name", graded(SCALED, fast=COLUMNS))
@settings(max_examples=3)
@given(data=st.data())
def test_columns_with_a_ragged_tile(name: str, data: st.DataObject) -> None:
    block = narrowed(get_block(name))
    assert_exact(some(data, block, (width(block), 2)), block, axis=-2)


@pytest.mark.parametrize("axis", [-1, -2, -3])
@settings(max_examples=4)
@given(data=st.data())
def test_tiles_of_two_axes_among_three(axis: int, data: st.DataObject) -> None:
    block = changed("mxfp4", tile=(2, 5))
    assert_exact(some(data, block, (3, 5, 6)), block, axis=axis)


@pytest.mark.parametrize(
    "name", slow_if(["mxfp4", "fp8_128x128", "fp8_tensor"], ["fp8_128x128", "fp8_tensor"])
)
@settings(max_examples=3)
@given(data=st.data())
def test_a_vector_is_one_row(name: str, data: st.DataObject) -> None:
    block = get_block(name)
    assert_exact(some(data, block, (width(block),)), block)


@pytest.mark.parametrize(
    "name", slow_if(["mxfp4_rceil", "fp8_1x128", "fp8_tensor", "nvfp4"], ["fp8_1x128", "nvfp4"])
)
@settings(max_examples=8)
@given(data=st.data(), amax_bits=st.integers(0, 0x7F7FFFFF))
def test_static_amax(name: str, data: st.DataObject, amax_bits: int) -> None:
    block, amax = get_block(name), float(np.uint32(amax_bits).view(np.float32))
    assert_exact(some(data, block, (2, width(block))), block, amax=amax)


@pytest.mark.parametrize(
    ("name", "rounding"),
    [("mxfp4", "nearest_away"), ("fp8_channel", "to_odd")]
    + [(name, "stochastic") for name in ("mxfp4", "fp8_tensor")],
)
@settings(max_examples=4)
@given(data=st.data())
def test_roundings(name: str, rounding: str, data: st.DataObject) -> None:
    block = get_block(name)
    shape = (2, width(block))
    words = random_words(2 * shape[1], 3).reshape(shape)
    options: dict[str, Any] = {"random_bits": words} if rounding == "stochastic" else {}
    assert_exact(some(data, block, shape), block, rounding=rounding, **options)


@pytest.mark.parametrize("name", ["fp8_tensor", "fp8_1x128"])
def test_a_quotient_below_float32_is_zero_before_it_is_rounded(name: str) -> None:
    # 1e-20 scaled by some 1e-28 is zero in float32, and rounding away from zero leaves it there.
    row = np.full(width(get_block(name)), 1e-20, np.float32)
    row[0] = 1e30
    bits = np.stack([row, row]).view(np.uint32)
    assert_exact(bits, get_block(name), rounding="toward_positive")


@pytest.mark.slow
def test_whole_tiles_of_128_by_128() -> None:
    bits = random_words(130 * 257).reshape(130, 257)
    tame = bits & np.uint32(0xBFFFFFFF)
    assert_exact(tame, get_block("fp8_128x128"))
    assert_exact(bits, get_block("fp8_128x128"))


def test_the_oracle_on_a_tile_computed_by_hand() -> None:
    # amax = 7 = 1.75 * 2^2 and MAX = 1.5 * 2^2: X = 2^0, and 7 / 1 saturates at 6.
    q = oracle.quantize(np.array([7.0, 5.0, -0.25, 0.0], np.float32).view(np.uint32), "mxfp4")
    assert q.codes.tolist() == [7, 6, 8, 0] and q.scales.tolist() == [127]
    assert q.values.view(np.float32).tolist() == [6.0, 4.0, -0.0, 0.0]
    # The smallest power of two above 7 / 6 is 2: 3.5 and 2.5 are ties, -0.125 rounds to -0.
    q = oracle.quantize(np.array([7.0, 5.0, -0.25, 0.0], np.float32).view(np.uint32), "mxfp4_rceil")
    assert q.codes.tolist() == [6, 4, 8, 0] and q.scales.tolist() == [128]
    # S = 2688 / 7 = 384, a tile's scale is e4m3(7 * 384 / 6) = 448, and 7 * 384 / 448 = 6.
    q = oracle.quantize(np.array([7.0, 3.5, -7.0], np.float32).view(np.uint32), "nvfp4")
    assert q.codes.tolist() == [7, 5, 15] and q.scales.tolist() == [0x7E]
    assert q.tensor_scale == np.float32(1 / 384).view(np.uint32)
