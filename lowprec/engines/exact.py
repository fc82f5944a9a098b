"""Exact sums: Kulisch's accumulator, one wide fixed-point number for the whole range.

A sum is kept in digits of 16 bits, each in an int32 that has room for thousands of carries; c and
all products are added exactly, and the total is rounded once.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.engines.register import Sum
from lowprec.numerics import float32
from lowprec.numerics.format import Format

_DIGIT = 16
_MASK = np.uint32(0xFFFF)


@dataclasses.dataclass(frozen=True)
class Span:
    """Which powers of two an accumulator covers: digit j is worth 2^(lowest + 16 j)."""

    lowest: int
    digits: int


def span_of(a: Format, b: Format, terms: int) -> Span:
    """An accumulator for so many products of two formats, and a float32."""
    ends = [fmt.min_exponent - fmt.mantissa_bits for fmt in (a, b)]
    tops = [fmt.bias + 2 for fmt in (a, b)]
    lowest = min(sum(ends), -149)
    highest = max(sum(tops), 128) + terms.bit_length() + 2
    return Span(lowest, -(-(highest - lowest) // _DIGIT) + 1)


def zero(span: Span, shape: tuple[int, ...]) -> jax.Array:
    """The accumulator (digits, R, C) of nothing."""
    return jnp.zeros((span.digits, *shape), jnp.int32)


def add_number(total: jax.Array, span: Span, bits: jax.Array) -> jax.Array:
    """Adds finite float32 bits (R, C)."""
    sign, exponent, significand = float32.unpack(bits)
    return _add(total, span, sign, exponent - 23, significand)


def add_product(total: jax.Array, span: Span, a: jax.Array, b: jax.Array) -> jax.Array:
    """Adds the product of finite float32 bits of shapes (R, 1) and (1, C)."""
    (a_sign, a_exponent, x), (b_sign, b_exponent, y) = float32.unpack(a), float32.unpack(b)
    high, low = float32.product(x, y)
    unit, sign = a_exponent + b_exponent - 46, a_sign ^ b_sign
    total = _add(total, span, sign, unit, low & 0xFFFFFF)
    return _add(total, span, sign, unit + 24, (high << 8) | (low >> 24))


def _add(
    total: jax.Array, span: Span, sign: jax.Array, unit: jax.Array, size: jax.Array
) -> jax.Array:
    """Adds an integer below 2^24, worth 2^unit."""
    place = unit - span.lowest
    first = place // _DIGIT
    inside = (place - first * _DIGIT).astype(jnp.uint32)
    # An integer of 24 bits moved by up to 15 places touches three digits.
    low = size << inside
    top = jnp.where(inside == 0, 0, size >> ((32 - inside) & 31))
    digits = [(low & _MASK), low >> _DIGIT, top]
    signed = [jnp.where(sign == 0, x.astype(jnp.int32), -x.astype(jnp.int32)) for x in digits]
    index = jnp.arange(span.digits).reshape(-1, *([1] * size.ndim))
    for offset, digit in enumerate(signed):
        total = total + jnp.where(index == (first + offset)[None], digit[None], 0)
    return total


def carried(total: jax.Array) -> jax.Array:
    """The same number with digits from 0 to 65535, but the last, which has the sign."""
    digits, carry = [], jnp.zeros(total.shape[1:], jnp.int32)
    for index in range(total.shape[0]):
        digit = total[index] + carry
        last = index == total.shape[0] - 1
        digits.append(digit if last else digit & 0xFFFF)
        carry = digit >> _DIGIT
    return jnp.stack(digits)


def to_sum(total: jax.Array, span: Span) -> Sum:
    """The accumulator's value, its last bit standing for all that lies below."""
    total = carried(total)
    negative = total[-1] < 0
    total = carried(jnp.where(negative[None], -total, total))
    high = low = sticky = jnp.zeros(total.shape[1:], jnp.uint32)
    exponent = jnp.zeros(total.shape[1:], jnp.int32)
    for index in range(span.digits - 1, -1, -1):
        digit = lax.bitcast_convert_type(total[index], jnp.uint32)
        room = high < (1 << _DIGIT)
        moved = (high << _DIGIT) | (low >> _DIGIT), (low << _DIGIT) | digit
        sticky = jnp.where(room, sticky, sticky | digit)
        high, low = jnp.where(room, moved[0], high), jnp.where(room, moved[1], low)
        exponent = jnp.where(room, span.lowest + _DIGIT * index, exponent)
    low = low | (sticky != 0).astype(jnp.uint32)
    sign = jnp.where(negative, float32.SIGN, jnp.uint32(0))
    return Sum(sign, *float32.normalise(exponent + 63, high, low))
