"""What becomes of an operand's elements: how many saturate, vanish, and fall on which value."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.numerics import float32
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block
from lowprec.scaling.cast import cast
from lowprec.scaling.quantize import quantize


class Fate(NamedTuple):
    """Counts over an operand, int32 scalars.

    Attributes:
      clipped: elements that the largest value of the format cuts off.
      flushed: elements other than zero that become zero.
    """

    clipped: jax.Array
    flushed: jax.Array


def operand_fate(x: jax.Array, target: Format | Block, axis: int) -> Fate:
    """Counts what quantization along `axis` does to the elements of x; works under `jit`."""
    before = float32.to_bits(x) & float32.MAGNITUDE
    if isinstance(target, Format):
        after = float32.to_bits(cast(x, target)) & float32.MAGNITUDE
        clipped = before > float32.constant(target.max)
    else:
        q = quantize(x, target, axis=axis)
        after = float32.to_bits(q.dequantize()) & float32.MAGNITUDE
        element = q.codes.astype(jnp.uint32) & ~np.uint32(target.element.sign_mask)
        clipped = (element == np.uint32(target.element.max_code)) & (before > after)
        # At the largest code a value within half a step of it is rounded, not clipped.
        clipped &= before > float32.multiply(after, jnp.full_like(after, _half_step(target)))
    flushed = (before != 0) & (after == 0)
    return Fate(jnp.sum(clipped, dtype=jnp.int32), jnp.sum(flushed, dtype=jnp.int32))


def _half_step(block: Block) -> np.uint32:
    """(max + half a step) / max, as float32 bits."""
    element = block.element
    step = element.max - element.magnitude(element.max_code - 1)
    return np.float32((element.max + step / 2) / element.max).view(np.uint32)


def value_histogram(x: np.ndarray, block: Block, axis: int = -1) -> list[tuple[float, int]]:
    """How many elements of x fall on each finite value of the element format, ascending.

    Values are before scaling; -0 counts as 0.
    """
    codes = np.asarray(quantize(jnp.asarray(x), block, axis=axis).codes)
    values = block.element.values
    assert values is not None
    counts = np.bincount(codes.ravel(), minlength=values.size)
    total: dict[float, int] = {}
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if np.isfinite(value):
            total[value + 0.0] = total.get(value + 0.0, 0) + count
    return sorted(total.items())
