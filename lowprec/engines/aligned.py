"""Sums of products cut off at a common last bit, exactly, in whichever arithmetic is fastest.

Products are aligned to 2^(exponent - fraction_bits), rounded there one by one and summed exactly.
Floats do what integers would: a product of short significands is exact in float32, its scaling by a
power of two too, so only one rounding to an integer is left.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.engines import wide
from lowprec.engines.register import Sum, from_integer
from lowprec.engines.terms import Reading, Terms
from lowprec.numerics import float32

Partials = list[tuple[jax.Array, int]]
"""int32 numbers and the power of two that each is worth: what an exact sum is kept in."""


class Aligned(NamedTuple):
    """A sum as aligned, before it is rounded: (high, low) * 2^unit, and `added`.

    Attributes:
      start: float32 bits, what the sum started from.
      high, low: uint32 words of a signed 64-bit integer.
      unit: int32.
      added: float32 bits of an accumulator that joins exactly; 0 where the integer has it.
      end: float32 bits of the rounded sum.
    """

    start: jax.Array
    high: jax.Array
    low: jax.Array
    unit: jax.Array
    added: jax.Array
    end: jax.Array


Record = list[Aligned]
"""What steps put their sums into where someone asks for them; nothing is computed with it."""

_WHOLE = 28
"""With so many fraction bits at most, an aligned term fits one int32."""


@dataclasses.dataclass(frozen=True)
class Alignment:
    """To how many bits terms are cut, and how."""

    fraction_bits: int
    rounding: str


def sum_products(
    a: Terms, b: Terms, how: Reading, exponent: jax.Array, align: Alignment
) -> Partials:
    """The sum over (L, R) x (L, C), aligned to int32 exponents (R, C), as integers."""
    if _in_float32(how, align, a.value.shape[0]):
        return [(_float_sum(a, b, how, exponent, align.fraction_bits), 0)]
    exponent = jnp.maximum(exponent, how.lowest)
    # So many terms below 2^(fraction_bits + 2) fit 32 bits; of split ones each half does.
    together = 16 if align.fraction_bits > _WHOLE else 1 << (29 - align.fraction_bits)
    partials: Partials = []
    for start in range(0, a.value.shape[0], together):
        stop = min(start + together, a.value.shape[0])
        terms = [_aligned(a, b, k, how, exponent, align) for k in range(start, stop)]
        for halves in zip(*terms, strict=True):
            partials.append((sum_of([value for value, _ in halves]), halves[0][1]))
    return partials


def sum_of(terms: list[jax.Array]) -> jax.Array:
    """Their sum, first to last."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _aligned(
    a: Terms, b: Terms, k: int, how: Reading, exponent: jax.Array, align: Alignment
) -> Partials:
    product = a.value[k][:, None] * b.value[k][None, :]
    if how.direct:
        # Beyond the last clip, products are below one unit all the same.
        distance = align.fraction_bits - jnp.minimum(exponent, align.fraction_bits + 70)
    else:
        own = a.exponent[k].astype(jnp.int32)[:, None] + b.exponent[k].astype(jnp.int32)[None, :]
        distance = jnp.maximum(own - exponent + align.fraction_bits, -100)
    return to_integers(product * power_of_two(distance), align)


def power_of_two(exponent: jax.Array) -> jax.Array:
    """2^exponent in float32, of int32 exponents from -126 to 127."""
    return float32.from_bits((exponent + 127).astype(jnp.uint32) << 23)


def to_integers(x: jax.Array, align: Alignment) -> Partials:
    """float32 numbers below 2^(fraction_bits + 2), rounded to integers."""
    rounded = _round(x, align.rounding)
    if align.fraction_bits <= _WHOLE:
        return [(rounded.astype(jnp.int32), 0)]
    high = (rounded * np.float32(2.0**-24)).astype(jnp.int32)
    low = rounded - high.astype(jnp.float32) * np.float32(2.0**24)
    return [(high, 24), (low.astype(jnp.int32), 0)]


def _round(x: jax.Array, rounding: str) -> jax.Array:
    """To an integer in float32; `toward_zero` is left to the conversion that follows."""
    match rounding:
        case "toward_zero":
            return x
        case "toward_negative":
            return jnp.floor(x)
        case "toward_positive":
            return jnp.ceil(x)
        case "nearest_even":
            return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)
        case "nearest_away":
            return lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO)
    # What is left needs to know whether something was cut off; above 2^24 nothing is.
    size = jnp.abs(x)
    whole = jnp.floor(size)
    if rounding == "nearest_toward_zero":
        up = size - whole > 0.5
    else:
        half = whole * np.float32(0.5)
        up = (size != whole) & (half == jnp.floor(half))
    rounded = whole + up.astype(jnp.float32)
    return jnp.where(x < 0, -rounded, rounded)


def _in_float32(how: Reading, align: Alignment, length: int) -> bool:
    """Whether `_float_sum` is exact for these operands."""
    bits, fraction = how.product_bits, align.fraction_bits
    return (
        how.direct
        and align.rounding == "toward_zero"
        and bits + fraction <= 21
        and fraction + 2 + math.ceil(math.log2(length)) < 22
    )


def _float_sum(
    a: Terms, b: Terms, how: Reading, exponent: jax.Array, fraction_bits: int
) -> jax.Array:
    """The sum of truncated products, as int32, without a conversion for each.

    The total starts at 1.5 * 2^23 units, so that adding to it rounds to whole units; a little less
    than half a unit is first taken off each magnitude, which turns nearest into toward zero. That
    is exact while a product has so few bits that it is never within that little of the next unit.
    """
    unit = jnp.clip(exponent, how.lowest, 70) - fraction_bits + 127
    start = (unit + 23).astype(jnp.uint32) << 23 | np.uint32(1 << 22)
    ones = (1 << how.product_bits - 1) - 1 << 24 - how.product_bits
    almost_half = (unit - 2).astype(jnp.uint32) << 23 | np.uint32(ones)
    total = float32.from_bits(start)
    for k in range(a.value.shape[0]):
        product = a.value[k][:, None] * b.value[k][None, :]
        signed = almost_half | (float32.to_bits(product) & float32.SIGN)
        total = total + (product - float32.from_bits(signed))
    bits = lax.bitcast_convert_type(total, jnp.int32)
    return bits - lax.bitcast_convert_type(start, jnp.int32)


def collect(partials: Partials, exponent: jax.Array, bits: int) -> Sum:
    """The total times 2^exponent, exactly; its magnitude is below 2^bits."""
    if bits < 32 and not any(power for _, power in partials):
        return from_integer(sum_of([term for term, _ in partials]), exponent)
    return wide.to_sum(collect_wide(partials), exponent)


def collect_wide(partials: Partials) -> wide.Wide:
    """The total as a 64-bit integer."""
    terms = [
        wide.shift_left(wide.widen(term), power) if power else wide.widen(term)
        for term, power in partials
    ]
    total = terms[0]
    for term in terms[1:]:
        total = wide.add(total, term)
    return total
