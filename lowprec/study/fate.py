"""What becomes of an operand's elements: how many saturate, vanish, and fall on which value."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.numerics import float32
from lowprec.numerics.codec import at_limit
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block
from lowprec.scaling.cast import cast
from lowprec.scaling.qtensor import QTensor
from lowprec.scaling.quantize import quantize
from lowprec.scaling.tiles import spread, tiles_of
from lowprec.scaling.transforms import apply


class Fate(NamedTuple):
    """Counts over an operand, int32 scalars.

    Attributes:
      clipped: elements that the largest value of the format cuts off.
      flushed: elements other than zero that become zero.
    """

    clipped: jax.Array
    flushed: jax.Array


def operand_fate(x: jax.Array, became: Format | QTensor) -> Fate:
    """Counts what quantization did to the elements of x; works under `jit`.

    `became` is what x was quantized to, or the plain format that it was cast to. Elements of a
    block with a transform are those of the turned tensor.
    """
    before = float32.to_bits(x) & float32.MAGNITUDE
    if isinstance(became, Format) and became.name in ("float32", x.dtype.name):
        return Fate(jnp.int32(0), jnp.int32(0))
    if isinstance(became, Format):
        after = float32.to_bits(cast(x, became)) & float32.MAGNITUDE
        clipped = before > float32.constant(became.max)
    else:
        element, transform = became.block.element, became.block.transform
        turned = float32.to_bits(x)
        if transform is not None:
            turned = apply(turned, transform, became.axis, became.transform_state)[0]
            before = turned & float32.MAGNITUDE
            became = dataclasses.replace(
                became, block=dataclasses.replace(became.block, transform=None)
            )
        if became.block.coding == "scaled":
            after = became.element_bits() & float32.MAGNITUDE
            clipped = at_limit(became.codes, element) & (before > _limits(became))
        else:
            after = became.scaled_bits() & float32.MAGNITUDE
            clipped = _beyond_range(turned, became)
    flushed = (before != 0) & (after == 0)
    return Fate(jnp.sum(clipped, dtype=jnp.int32), jnp.sum(flushed, dtype=jnp.int32))


def _limits(q: QTensor) -> jax.Array:
    """float32 bits, for each element, of what rounds to the largest value without being cut off.

    That is half a step above the largest value: within it a value is rounded, not clipped.
    """
    element = q.block.element
    values = element.values
    assert values is not None, "blocks have elements of 16 bits or fewer"
    step = element.max - np.max(values[values < element.max])
    limit = np.float32(element.max + step / 2).view(np.uint32)
    scales = q.scale_bits()
    if q.tensor_scale is not None:
        tensor = jnp.broadcast_to(float32.to_bits(q.tensor_scale), scales.shape)
        scales = float32.multiply(scales, tensor)
    per_tile = float32.multiply(scales, jnp.full_like(scales, limit))
    return spread(per_tile, q.shape, tiles_of(q.shape, scales.shape, q.block, q.axis))


def _beyond_range(bits: jax.Array, q: QTensor) -> jax.Array:
    """Whether numbers lie more than half a step outside what the codes of their tile reach.

    A logarithmic code reaches from zero to a tile's largest magnitude.
    """
    if q.block.coding == "logarithmic":
        return jnp.zeros(q.shape, bool)
    element = q.block.element
    codes = q.codes & np.asarray(element.code_mask, q.codes.dtype)
    ends = [np.argmin(element.values), np.argmax(element.values)]  # type: ignore[arg-type] - small formats have values
    at_end = (codes == ends[0].astype(codes.dtype)) | (codes == ends[1].astype(codes.dtype))
    distance = jnp.abs(float32.from_bits(bits) - float32.from_bits(q.scaled_bits()))
    step = spread(q.scales, q.shape, tiles_of(q.shape, q.scales.shape, q.block, q.axis))
    # A hundredth of a step more than half: what is rounded to the end is none of these.
    return at_end & (distance > np.float32(0.51) * step)


def value_histogram(x: np.ndarray, block: Block, axis: int = -1) -> list[tuple[float, int]]:
    """How many elements of x fall on each finite value of the element format, ascending.

    Values are before scaling; -0 counts as 0. Of affine blocks they are the integers that codes
    stand for, of logarithmic ones the codes.
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
