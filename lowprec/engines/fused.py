"""Fused steps: products and accumulator aligned to one exponent, summed exactly, rounded once.

T-FDPA and ST-FDPA of arXiv 2511.10909: what NVIDIA's tensor cores do from Volta on.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.engines import wide
from lowprec.engines.aligned import (
    Aligned,
    Alignment,
    Partials,
    Record,
    collect,
    collect_wide,
    power_of_two,
    sum_products,
    to_integers,
)
from lowprec.engines.engine import Engine
from lowprec.engines.register import round_sum
from lowprec.engines.terms import (
    NONE,
    Reading,
    Terms,
    accumulator_terms,
    product_exponent,
    special_sum,
)
from lowprec.numerics import float32
from lowprec.numerics.codec import round_bits


def parts(engine: Engine, length: int) -> list[list[int]]:
    """Which k of an instruction each of its fused sums takes."""
    if engine.accumulation == "two_step" and engine.halves:
        return [list(range(0, length, 2)), list(range(1, length, 2))]
    turns = range(engine.interleave)
    return [[k for k in range(length) if k // 2 % engine.interleave == turn] for turn in turns]


def instruction(
    engine: Engine,
    how: Reading,
    a: Terms,
    b: Terms,
    tops: list[jax.Array],
    c: jax.Array,
    words: jax.Array | None,
    record: Record | None = None,
) -> jax.Array:
    """Products over (L, R) x (L, C) and c, float32 bits (R, C), to the bits of the result.

    `tops` are the largest exponents of the products of each part, (R, C). Every fused sum is put
    into `record`, if there is one.
    """
    length = a.value.shape[0]
    total = jnp.zeros_like(c) if engine.accumulator == "separate" else c
    for turn, chosen in enumerate(parts(engine, length)):
        left, right = (at(x, chosen, length) for x in (a, b))
        drawn = None if words is None else words[turn]
        total = step(engine, how, left, right, tops[turn], total, drawn, record)
    if engine.accumulator != "separate":
        return total
    total = float32.fused_multiply_add(jnp.full_like(c, float32.ONE), total, c)
    total = into_output(engine, total)
    nan = total & float32.MAGNITUDE > float32.INFINITY
    return jnp.where(nan, nan_bits(engine), total)


def at(x: Terms, chosen: list[int], length: int) -> Terms:
    """The terms of some of `length` k."""
    if len(chosen) == length:
        return x
    pick = np.array(chosen)
    special = None if x.special is None else x.special[pick]
    return x._replace(value=x.value[pick], exponent=x.exponent[pick], special=special)


def step(
    engine: Engine,
    how: Reading,
    a: Terms,
    b: Terms,
    top: jax.Array,
    c: jax.Array,
    words: jax.Array | None,
    record: Record | None = None,
) -> jax.Array:
    """One fused sum: its rounded bits, also where operands or c are not finite."""
    assert engine.fraction_bits is not None
    special = c if a.special is None else _with_specials(how, a, b, c)
    # What has no bits of its own does not disturb the arithmetic.
    c = jnp.where(c & float32.MAGNITUDE < float32.INFINITY, c, 0)
    rounded = _finite(engine, how, a, b, top, c, words, record)
    return finish_specials(engine, special, rounded)


def finish_specials(engine: Engine, special: jax.Array, rounded: jax.Array) -> jax.Array:
    """`rounded` but where `special` is Inf, or NaN, which becomes the engine's."""
    size = special & float32.MAGNITUDE
    rounded = jnp.where(size == float32.INFINITY, special, rounded)
    return jnp.where(size > float32.INFINITY, nan_bits(engine), rounded)


def _with_specials(how: Reading, a: Terms, b: Terms, c: jax.Array) -> jax.Array:
    """float32 bits: NaN or Inf where the sum is, else something finite."""
    assert a.special is not None and b.special is not None
    found = [jnp.any(~jnp.isfinite(x)) for x in (a.special, b.special)]
    total = lax.cond(
        found[0] | found[1],
        special_sum,
        lambda x, y: jnp.zeros(c.shape, jnp.float32),
        a.special,
        b.special,
    )
    infinite = (c & float32.MAGNITUDE) >= float32.INFINITY
    return float32.to_bits(total + float32.from_bits(jnp.where(infinite, c, 0)))


def _finite(
    engine: Engine,
    how: Reading,
    a: Terms,
    b: Terms,
    top: jax.Array,
    c: jax.Array,
    words: jax.Array | None,
    record: Record | None,
) -> jax.Array:
    bits, length = engine.fraction_bits, a.value.shape[0]
    assert bits is not None
    products = product_exponent(top, how)
    scale: jax.Array | int = 0
    if a.scale is not None and b.scale is not None:
        scale = a.scale[0][:, None] + b.scale[0][None, :]
        products = jnp.where(products == NONE, NONE, products + scale)
    early = engine.accumulator != "last"
    value, own = accumulator_terms(c, engine.output.min_exponent)
    exponent = jnp.maximum(products, own) if early else products
    if engine.min_exponent is not None:
        exponent = jnp.maximum(exponent, engine.min_exponent)
    align = Alignment(bits, engine.alignment_rounding)
    partials = sum_products(a, b, how, exponent - scale, align)
    if early:
        partials += align_accumulator(value, own, exponent, align)
    fmt, rounding = engine.register_format, engine.output_rounding
    if early:
        total = collect(partials, exponent - bits, bits + 2 + math.ceil(math.log2(length + 1)))
    else:
        total = wide.add_float32(collect_wide(partials), exponent - bits, c)
    rounded = round_sum(total, fmt, rounding, engine.zero_sign, words)
    if record is not None:
        whole, added = collect_wide(partials), jnp.zeros_like(c) if early else c
        record.append(Aligned(c, *whole, exponent - bits, added, rounded))
    return rounded


def align_accumulator(
    value: jax.Array, own: jax.Array, exponent: jax.Array, align: Alignment
) -> Partials:
    """c, an integer of 24 bits worth 2^(own - 23), cut to the same unit as the products."""
    below, more = jnp.maximum(exponent - own, 0), align.fraction_bits - 23
    if align.rounding == "toward_zero" and more <= 6:
        size = jnp.abs(value) << max(more, 0)
        cut = size >> jnp.minimum(below + max(-more, 0), 31)
        return [(jnp.where(value < 0, -cut, cut), 0)]
    distance = more - jnp.minimum(below, 80 + more)
    return to_integers(value.astype(jnp.float32) * power_of_two(distance), align)


def into_output(engine: Engine, bits: jax.Array) -> jax.Array:
    """float32 bits rounded to the output format, nearest even, overflow to Inf."""
    if engine.output.name == "float32":
        return bits
    return round_bits(bits, engine.output, "nearest_even", "nonsaturating")


def nan_bits(engine: Engine) -> np.uint32:
    """The NaN of an engine, as float32 bits; of float16 output, widened."""
    mantissa = engine.output.mantissa_bits
    ones = (1 << mantissa) - 1 << 23 - mantissa
    return float32.INFINITY | np.uint32(ones if engine.nan == "all_ones" else 1 << 22)
