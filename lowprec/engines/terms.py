"""Operands taken apart: significands, and exponents as a matrix engine reads them.

An engine aligns products by the sum of their factors' exponent fields, where a subnormal reads the
smallest normal exponent; a product is not normalised first.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.numerics import float32
from lowprec.numerics.format import Format

NONE = -(1 << 14)
"""The exponent of a zero: below any other, and the sum of two still fits 16 bits."""


class Terms(NamedTuple):
    """One operand, (K, n): Inf and NaN read 0 here.

    Attributes:
      value: float32: the number, or its significand below 2 in magnitude.
      exponent: int8 or int16, of zero a number below all others.
      special: float32: NaN and Inf as they are, else the sign, or 0 of a zero; None where neither
        format has Inf, and a NaN is seen to elsewhere.
      scale: int32 (K / steps, n): the exponent of the scale of each step; None without.
    """

    value: jax.Array
    exponent: jax.Array
    special: jax.Array | None = None
    scale: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a pair of operands is taken apart: static, decided by their formats.

    Attributes:
      a, b: their smallest exponents and precisions, hidden bit counted, in (exponent, bits).
      direct: whether `value` is the number itself, all products being normal float32 numbers.
      infinite: whether either has Inf.
    """

    a: tuple[int, int]
    b: tuple[int, int]
    top: tuple[int, int]
    direct: bool
    infinite: bool

    @property
    def lowest(self) -> int:
        """The smallest exponent of a product."""
        return self.a[0] + self.b[0]

    @property
    def product_bits(self) -> int:
        """Significant bits of a product."""
        return self.a[1] + self.b[1]

    @property
    def dtype(self) -> np.dtype:
        """The narrowest integers that hold the exponents: comparing them is half of the work."""
        return np.dtype(np.int8 if 2 * self.zero >= -128 else np.int16)

    @property
    def zero(self) -> int:
        """What zero reads: its sum with any exponent lies below `lowest`."""
        return min(self.lowest - max(self.top) - 1, self.lowest // 2 - 1)


def reading(a: Format, b: Format, scaled: bool) -> Reading:
    """How operands of two formats are taken apart; `scaled`: scales are folded into exponents."""
    spread = 254 if scaled else 0
    ends = [(fmt.min_exponent - spread, fmt.mantissa_bits + 1) for fmt in (a, b)]
    tops = tuple(math.frexp(fmt.max)[1] - 1 + spread for fmt in (a, b))
    smallest = sum(low - bits + 1 for low, bits in ends)
    direct = smallest >= -56 and sum(tops) + 2 <= 40
    return Reading(
        a=ends[0],
        b=ends[1],
        top=(tops[0], tops[1]),
        direct=direct,
        infinite=any(fmt.has_inf for fmt in (a, b)),
    )


def take_apart(
    bits: jax.Array,
    how: Reading,
    lowest: int,
    scale: jax.Array | None = None,
    whole: bool = False,
) -> Terms:
    """Terms of float32 bits (K, n).

    `scale`: int32 exponents to be folded in, of the same shape. `whole`: `special` holds the
    numbers themselves.
    """
    size = bits & float32.MAGNITUDE
    finite = jnp.where(size < float32.INFINITY, bits, 0)
    sign, exponent, significand = float32.unpack(finite)
    read = jnp.maximum(exponent, lowest)
    if how.direct:
        value = float32.from_bits(finite)
    else:
        field = (127 + exponent - read).astype(jnp.uint32) << 23
        value = float32.from_bits(
            jnp.where(significand == 0, 0, field | significand & 0x7FFFFF) | sign
        )
    if scale is not None:
        read = read + scale
    read = jnp.where(significand == 0, how.zero, read).astype(how.dtype)
    special = None
    if whole:
        # A subnormal would be flushed by a product with it: as a normal number it leaves Inf Inf.
        raised = (bits & float32.SIGN) | np.uint32(0x800000)
        subnormal = (significand != 0) & (size < np.uint32(0x800000))
        special = float32.from_bits(jnp.where(subnormal, raised, bits))
    elif how.infinite:
        one = jnp.where(significand == 0, 0, float32.ONE | sign)
        special = float32.from_bits(jnp.where(size < float32.INFINITY, one, bits))
    return Terms(value, read, special)


def largest_exponent(a: jax.Array, b: jax.Array, chosen: list[int]) -> jax.Array:
    """The largest sum of exponents over some k of (steps, L, R) and (steps, L, C)."""
    largest = None
    for k in chosen:
        total = a[:, k, :, None] + b[:, k, None, :]
        largest = total if largest is None else jnp.maximum(largest, total)
    assert largest is not None
    return largest


def product_exponent(largest: jax.Array, how: Reading) -> jax.Array:
    """`largest_exponent` as int32, NONE where all products are zero."""
    wide = largest.astype(jnp.int32)
    return jnp.where(wide < how.lowest, NONE, wide)


def accumulator_terms(bits: jax.Array, lowest: int) -> tuple[jax.Array, jax.Array]:
    """Integer of 24 bits, signed, and exponent of a finite float32; NONE of zero.

    The number is integer * 2^(exponent - 23), its exponent read as a format does whose smallest
    normal number is 2^lowest.
    """
    if lowest == -126:
        field = ((bits >> 23) & 0xFF).astype(jnp.int32)
        read = jnp.maximum(field, 1) - 127
        size = (bits & 0x7FFFFF).astype(jnp.int32) | jnp.where(field > 0, 1 << 23, 0)
    else:
        # float32 is normal there: its exponent raises what the narrower format has as subnormal.
        field = ((bits >> 23) & 0xFF).astype(jnp.int32) - 127
        read = jnp.maximum(field, lowest)
        size = ((bits & 0x7FFFFF) | 0x800000).astype(jnp.int32) >> jnp.minimum(read - field, 31)
        size = jnp.where(field == -127, 0, size)
    nothing = bits & float32.MAGNITUDE == 0
    signed = jnp.where(bits >> 31 == 1, -size, size)
    return signed, jnp.where(nothing, NONE, read)


def special_sum(a: jax.Array, b: jax.Array) -> jax.Array:
    """float32 (R, C) that is NaN or Inf where a sum of the products of (L, R), (L, C) is."""
    return lax.dot_general(
        a,
        b,
        (((0,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
