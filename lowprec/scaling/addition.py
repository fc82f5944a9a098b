"""float32 addition on bit patterns, and a sum whose order is fixed.

XLA's CPU backend flushes subnormal operands and results, and is free to order a reduction as it
likes; these sums are the same bits on every backend, in every shape and under every transformation.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.numerics.float32 import INFINITY, MAGNITUDE, QUIET_NAN, SIGN

_FRACTION, _HIDDEN = np.uint32(0x007FFFFF), np.uint32(0x00800000)
_GUARD = 6
"""Bits kept below the significand: with the last one sticky, two would round correctly."""


def add(a: jax.Array, b: jax.Array) -> jax.Array:
    """The float32 sum of two bit patterns (uint32), to nearest even, as bits.

    Subnormals are kept, an exact zero from operands of opposite sign is +0, NaN is 0x7FC00000.
    """
    swap = (a & MAGNITUDE) < (b & MAGNITUDE)
    large, small = jnp.where(swap, b, a), jnp.where(swap, a, b)
    large_size, small_size = large & MAGNITUDE, small & MAGNITUDE
    exponent, large_significand = _split(large_size)
    small_exponent, small_significand = _split(small_size)
    distance = jnp.minimum(exponent - small_exponent, 31).astype(jnp.uint32)
    aligned = small_significand >> distance
    aligned |= ((aligned << distance) != small_significand).astype(jnp.uint32)
    opposite = ((a ^ b) & SIGN) != 0
    total = large_significand + jnp.where(opposite, np.uint32(0) - aligned, aligned)
    magnitude = _rounded(exponent, total)
    sign = jnp.where(total == 0, a & b & SIGN, large & SIGN)
    result = sign | magnitude
    result = jnp.where(large_size == INFINITY, large, result)
    invalid = (large_size > INFINITY) | (opposite & (small_size == INFINITY))
    return jnp.where(invalid, QUIET_NAN, result)


def subtract(a: jax.Array, b: jax.Array) -> jax.Array:
    """The float32 difference a - b of two bit patterns, as `add`."""
    return add(a, b ^ SIGN)


def tree_sum(terms: jax.Array, axis: int) -> jax.Array:
    """Sums bit patterns along an axis of 2^k entries: neighbours first, then their sums, etc.

    Another length is filled with +0 at its end, which changes no sum but one of -0 alone.
    """
    # Side by side, so that every step adds long rows, and so many that half of them are zeros after
    # the first one: every step is then the same, and is compiled once.
    rows = jnp.moveaxis(terms, axis, 0)
    shape, size = rows.shape, rows.shape[0]
    width = 1 << max(size - 1, 0).bit_length()
    rows = jnp.pad(rows.reshape(size, -1), ((0, width - size), (0, 0)))

    def step(_: int, rows: jax.Array) -> jax.Array:
        pairs = rows.reshape(-1, 2, rows.shape[1])
        return jnp.pad(add(pairs[:, 0], pairs[:, 1]), ((0, width // 2), (0, 0)))

    rows = lax.fori_loop(0, width.bit_length() - 1, step, rows) if width > 1 else rows
    return jnp.moveaxis(rows[:1].reshape(1, *shape[1:]), 0, axis)


def _split(size: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The exponent field, 1 for subnormals, and the significand with its guard bits."""
    field = size >> 23
    significand = (size & _FRACTION) | jnp.where(field == 0, np.uint32(0), _HIDDEN)
    return jnp.maximum(field, 1).astype(jnp.int32), significand << _GUARD


def _rounded(exponent: jax.Array, total: jax.Array) -> jax.Array:
    """The magnitude bits of total * 2^(exponent - 150 - guard), total below 2^31."""
    # The conversion of a positive int32 to float32 rounds to nearest even: it is the rounding.
    normal = lax.bitcast_convert_type(total.astype(jnp.int32).astype(jnp.float32), jnp.uint32)
    field = (normal >> 23).astype(jnp.int32) + exponent - (150 + _GUARD)
    shifted = (normal & _FRACTION) | (jnp.maximum(field, 0).astype(jnp.uint32) << 23)
    # A sum below 2^-126 is a multiple of 2^-149, so that its bits are the whole of it.
    tiny = (total << jnp.minimum(exponent - 1, 31).astype(jnp.uint32)) >> _GUARD
    magnitude = jnp.where(field <= 0, tiny, jnp.minimum(shifted, INFINITY))
    magnitude = jnp.where(field >= 255, INFINITY, magnitude)
    return jnp.where(total == 0, np.uint32(0), magnitude)
