"""Grouped steps: short sums of FP4 products made exactly, scaled, then aligned and rounded once.

GST-FDPA of arXiv 2511.10909: the MXFP4 and NVFP4 instructions of Blackwell.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.engines.aligned import (
    Aligned,
    Alignment,
    Partials,
    Record,
    collect,
    collect_wide,
    power_of_two,
    to_integers,
)
from lowprec.engines.engine import Engine
from lowprec.engines.fused import align_accumulator, finish_specials
from lowprec.engines.register import round_sum
from lowprec.engines.terms import NONE, accumulator_terms
from lowprec.numerics import float32


class Groups(NamedTuple):
    """One operand of a step, in groups along K.

    Attributes:
      value: float32 (K, n).
      nonzero: uint32 (K / group, n): bit k is set where the k-th value of the group is not 0.
      scale: float32 (K / group, n): significands of scales, below 2.
      exponent: int32 (K / group, n): exponents of scales, NONE of a zero.
    """

    value: jax.Array
    nonzero: jax.Array
    scale: jax.Array
    exponent: jax.Array


def take_apart_groups(bits: jax.Array, group: int, scale: jax.Array, exponent: jax.Array) -> Groups:
    """Groups of float32 bits (K, n) with the scale of each group, already taken apart."""
    marks = (bits & float32.MAGNITUDE != 0).reshape(-1, group, bits.shape[1])
    places = np.left_shift(np.uint32(1), np.arange(group, dtype=np.uint32))[None, :, None]
    nonzero = (marks.astype(jnp.uint32) * places).sum(1, dtype=jnp.uint32)
    return Groups(float32.from_bits(bits), nonzero, scale, exponent)


def step(
    engine: Engine, a: Groups, b: Groups, c: jax.Array, record: Record | None = None
) -> jax.Array:
    """Products over (L, R) x (L, C) and c, float32 bits (R, C), to the bits of the result.

    The sum is put into `record`, if there is one.
    """
    assert engine.fraction_bits is not None and engine.group is not None
    finite = jnp.where(c & float32.MAGNITUDE < float32.INFINITY, c, 0)
    sums, exponents = zip(
        *(_group(engine.group, a, b, index) for index in range(a.nonzero.shape[0])), strict=True
    )
    value, own = accumulator_terms(finite, engine.output.min_exponent)
    exponent = own
    for other in exponents:
        exponent = jnp.maximum(exponent, other)
    if engine.min_exponent is not None:
        exponent = jnp.maximum(exponent, engine.min_exponent)
    align = Alignment(engine.fraction_bits, engine.alignment_rounding)
    partials: Partials = []
    for total, group_exponent in zip(sums, exponents, strict=True):
        distance = jnp.clip(group_exponent - exponent, -80 - align.fraction_bits, 0)
        scaled = total * power_of_two(distance + align.fraction_bits)
        partials += to_integers(scaled, align)
    partials += align_accumulator(value, own, exponent, align)
    total = collect(partials, exponent - engine.fraction_bits, 63)
    rounded = round_sum(total, engine.register_format, engine.output_rounding, engine.zero_sign)
    if record is not None:
        whole, unit = collect_wide(partials), exponent - engine.fraction_bits
        record.append(Aligned(finite, *whole, unit, jnp.zeros_like(c), rounded))
    return finish_specials(engine, c, rounded)


def _group(group: int, a: Groups, b: Groups, index: int) -> tuple[jax.Array, jax.Array]:
    """The exact sum of a group, times its scales' significands, and the exponent of its scales."""
    total = None
    for k in range(group * index, group * (index + 1)):
        product = a.value[k][:, None] * b.value[k][None, :]
        total = product if total is None else total + product
    assert total is not None
    scale = a.scale[index][:, None] * b.scale[index][None, :]
    exponent = a.exponent[index][:, None] + b.exponent[index][None, :]
    some = (a.nonzero[index][:, None] & b.nonzero[index][None, :]) != 0
    return total * scale, jnp.where(some & (exponent > NONE // 2), exponent, NONE)
