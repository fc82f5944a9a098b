"""A block whose numbers lie just below a power of two, and what each scale rule leaves of it.

Under OCP's floor rule the scale of E4M3 blocks is 2^(floor(log2 amax) - 8), so that an amax of
0.875 to 1 times a power of two is taken to 448 to 512, of which E4M3 has 448 alone: every number in
(0.875, 1) becomes 0.875. arXiv 2506.20752 found that gains of layer norms, close to 1 and alike,
fall into it block by block, and that the gradients' bias goes before MXFP8 runs that diverge.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.metrics import gain, relative_frobenius
from lowprec.scaling.block import Block, get_block
from lowprec.scaling.quantize import quantize


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollapseRow:
    """What a block scaling does to blocks of numbers evenly spread over an open interval.

    Attributes:
      block: the scaling; `rule` is its scale rule, `element` its element.
      low, high: the interval, of which the numbers are.
      exponent: the power of two that all numbers were multiplied by.
      values: how many different numbers went in.
      left: how many different ones came out.
      at_maximum: which part of the numbers became the largest element.
      gain: the least-squares slope of what came out on what went in, minus 1.
      error: relative, in the Frobenius norm.
      spread_kept: standard deviation of what came out over that of what went in.
    """

    block: str
    rule: str
    element: str
    low: float
    high: float
    exponent: int
    values: int
    left: int
    at_maximum: float
    gain: float
    error: float
    spread_kept: float


def between(low: float, high: float, tile: int, tiles: int) -> NDArray[np.float32]:
    """(tiles, tile) numbers inside the open interval, evenly spread, dealt to the tiles in turn.

    Every tile spans the interval.

    >>> between(0.5, 1.0, 3, 1)
    array([[0.625, 0.75 , 0.875]], dtype=float32)
    """
    count = tile * tiles
    places = (np.arange(count) + 1) / (count + 1)
    numbers = (low + (high - low) * places).astype(np.float32)
    return np.ascontiguousarray(numbers.reshape(tile, tiles).T)


def collapse_row(
    block: str | Block, low: float, high: float, *, exponent: int = 0, tiles: int = 32
) -> CollapseRow:
    """Quantizes blocks of numbers from an interval, and counts what is left.

    Args:
      block: with tiles of 1 x a number.
      low, high: the interval, of numbers above 0.
      exponent: of the power of two that they are multiplied by.
      tiles: how many blocks.

    Raises:
      ValueError: the block's tiles are no rows of so many numbers.

    >>> collapse_row("mxfp8_e4m3", 0.875, 1.0).left, collapse_row("mxfp8_e4m3_rceil", 0.875, 1).left
    (1, 3)
    """
    block = get_block(block)
    if block.tile[0] != 1 or not isinstance(block.tile[1], int):
        raise ValueError(
            f"block {block.name!r} has tiles of {block.tile}; use one such as mxfp8_e4m3"
        )
    numbers = np.ldexp(between(low, high, block.tile[1], tiles), exponent).astype(np.float32)
    q = quantize(jnp.asarray(numbers), block)
    got, want = np.asarray(q.dequantize(), np.float64), numbers.astype(np.float64)
    largest = np.abs(np.asarray(q.codes)) == _largest_code(block)
    return CollapseRow(
        block=block.name,
        rule=block.scale_rule,
        element=block.element.name,
        low=low,
        high=high,
        exponent=exponent,
        values=len(np.unique(want)),
        left=len(np.unique(got)),
        at_maximum=float(largest.mean()),
        gain=gain(got, want)[0],
        error=relative_frobenius(got, want),
        spread_kept=float(got.std() / want.std()),
    )


def _largest_code(block: Block) -> int:
    values = np.asarray(block.element.values)
    return int(np.nanargmax(np.where(np.isfinite(values), values, -np.inf)))


def collapse_rows(
    blocks: Sequence[str], intervals: Sequence[tuple[float, float]], exponents: Sequence[int] = (0,)
) -> list[CollapseRow]:
    """A row for every block, interval and power of two."""
    return [
        collapse_row(block, low, high, exponent=exponent)
        for block in blocks
        for low, high in intervals
        for exponent in exponents
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueRow:
    """What one number of one block became."""

    block: str
    rule: str
    value: float
    result: float


def value_rows(blocks: Sequence[str], low: float, high: float) -> list[ValueRow]:
    """One block of numbers evenly spread over an open interval, and what became of each.

    >>> [row.result for row in value_rows(["mxfp8_e4m3"], 0.875, 1.0)][::16]
    [0.875, 0.875]
    """
    found = []
    for name in blocks:
        block = get_block(name)
        assert isinstance(block.tile[1], int)
        numbers = between(low, high, block.tile[1], 1)[0]
        results = np.asarray(quantize(jnp.asarray(numbers), block).dequantize())
        found += [
            ValueRow(block=name, rule=block.scale_rule, value=float(x), result=float(y))
            for x, y in zip(numbers, results, strict=True)
        ]
    return found
