"""Two-step sums of AMD CDNA3: products aligned among themselves, then to c, cut off downwards.

TR-FDPA and GTR-FDPA of arXiv 2511.10909, as PyPI mmasim 2.1.1 has them.
"""

import jax
import jax.numpy as jnp
from jax import lax

from lowprec.engines import wide
from lowprec.engines.aligned import Aligned, Alignment, Record, sum_of, sum_products
from lowprec.engines.engine import Engine
from lowprec.engines.fused import at, finish_specials
from lowprec.engines.fused import parts as fused_parts
from lowprec.engines.register import Sum, round_sum
from lowprec.engines.terms import Reading, Terms, product_exponent
from lowprec.numerics import float32


def step(
    engine: Engine,
    how: Reading,
    a: Terms,
    b: Terms,
    tops: list[jax.Array],
    c: jax.Array,
    record: Record | None = None,
) -> jax.Array:
    """Products over (L, R) x (L, C) and c, float32 bits (R, C), to the bits of the result.

    The sum, cut downwards for the last time, is put into `record`, if there is one. `special` of
    the operands holds their values: a product beyond float32's range counts as Inf.
    """
    assert a.special is not None and b.special is not None
    products = [a.special[k][:, None] * b.special[k][None, :] for k in range(a.special.shape[0])]
    terms = [float32.from_bits(c), *products]
    special = sum_of([jnp.where(jnp.isfinite(x), 0, x) for x in terms])
    finite = jnp.where(c & float32.MAGNITUDE < float32.INFINITY, c, 0)
    cut, unit, rounded = _finite(engine, how, a, b, tops, finite)
    if record is not None:
        record.append(Aligned(finite, *cut, unit, jnp.zeros_like(c), rounded))
    return finish_specials(engine, float32.to_bits(special), rounded)


def _finite(
    engine: Engine, how: Reading, a: Terms, b: Terms, tops: list[jax.Array], c: jax.Array
) -> tuple[wide.Wide, jax.Array, jax.Array]:
    """The sum as cut, in units of 2^unit, that unit, and its rounded bits."""
    bits, more = engine.fraction_bits, engine.second_fraction_bits
    assert bits is not None and more is not None
    products, top = _products(engine, how, a, b, tops)
    sign, own, significand = float32.unpack(c)
    lowest = engine.output.min_exponent
    read = jnp.where(significand == 0, lowest, jnp.maximum(own, lowest))
    exponent = jnp.maximum(top, read)
    if engine.drop_accumulator_below is not None:
        significand = jnp.where(read < exponent - engine.drop_accumulator_below, 0, significand)
    # Products are in units of 2^(top - bits), c in those of 2^(exponent - bits), cut downwards.
    size = lax.bitcast_convert_type(significand << max(bits - 23, 0), jnp.int32)
    below = jnp.clip(exponent - own + max(23 - bits, 0), 0, 31)
    whole = jnp.where(sign == 0, size, -size) >> below
    guard = more + 1 - bits
    moved = wide.shift_right(wide.shift_left(wide.widen(products), guard), exponent - top)
    total = wide.add(moved, wide.shift_left(wide.widen(whole), guard))
    return _rounded_down(engine, total, exponent - more - 1)


def _products(
    engine: Engine, how: Reading, a: Terms, b: Terms, tops: list[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Their sum as an int32 in units of 2^(exponent - fraction_bits), and that exponent."""
    assert engine.fraction_bits is not None
    align = Alignment(engine.fraction_bits, engine.alignment_rounding)
    length = a.value.shape[0]
    parts = []
    for index, chosen in enumerate(fused_parts(engine, length)):
        left, right = (at(x, chosen, length) for x in (a, b))
        top = product_exponent(tops[index], how)
        partials = sum_products(left, right, how, top, align)
        parts.append((sum_of([x for x, _ in partials]), top))
    if len(parts) == 1:
        return parts[0]
    top = jnp.maximum(parts[0][1], parts[1][1])
    return sum_of([x >> jnp.clip(top - own, 0, 31) for x, own in parts]), top


def _rounded_down(
    engine: Engine, total: wide.Wide, unit: jax.Array
) -> tuple[wide.Wide, jax.Array, jax.Array]:
    """total * 2^unit cut downwards to second_fraction_bits, its unit, and rounded."""
    assert engine.second_fraction_bits is not None
    _, high, low = wide.sign_and_size(total)
    leading = unit + 63 - wide.leading_zeros(high, low)
    leading = jnp.maximum(leading, engine.output.min_exponent)
    drop = jnp.maximum(leading - engine.second_fraction_bits - unit, 0)
    cut, unit = wide.shift_right(total, drop), unit + drop
    read: Sum = wide.to_sum(cut, unit)
    fmt, rounding = engine.register_format, engine.output_rounding
    return cut, unit, round_sum(read, fmt, rounding, engine.zero_sign)
