"""LogFMT-nBit: `lowprec.scaling.codings.Logarithmic` on integers.

An element's index is the nearest level in linear space, ties up: what lies at or above the
arithmetic mean of two neighbouring levels is the upper one's, also for the level below the lowest,
2^(L0 - s), which stands for zero. As a logarithm, that mean of 2^(L - s) and 2^L is
L - s / 2 + g(s) with g(s) = log2(cosh(s ln 2 / 2)), the committed polynomial; everything is
compared as integers in units of 2^-23 octave. Both ends of the ladder decode to the stored amax
and, where the ladder was not cut, amin themselves.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.numerics import float32
from lowprec.numerics.codec import decode_bits, encode_bits
from lowprec.scaling.block import Block
from lowprec.scaling.codings import Logarithmic
from lowprec.scaling.fixed_point import FRACTION_BITS, exp2, log2, multiply_high, polynomial
from lowprec.scaling.once import once
from lowprec.scaling.tiles import amax_bits, spread


class Ladder(NamedTuple):
    """The levels of a tile: int32, logarithms in units of 2^-23.

    Attributes:
      lowest: L0.
      span: L1 - L0.
      rise: (N - 2) g(s): how far a midpoint lies above its logarithmic centre, times N - 2.
      bottom: uint32, the bits of the lowest level where it is the stored amin, else 0.
    """

    lowest: jax.Array
    span: jax.Array
    rise: jax.Array
    bottom: jax.Array


def quantize(
    bits: jax.Array,
    block: Block,
    tiles: tuple[int, ...],
    mode: str,
    words: jax.Array | None,
    word_bits: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Codes, amax and amin (float32 bits of numbers of the scale format) of float32 bits.

    amax is rounded up and amin down, so that no element lies outside the ladder unless it is cut. A
    zero has the index 0 and keeps its sign; a tile of zeros has amax 0; a tile with Inf or NaN has
    amax and amin NaN, and decodes to NaN.
    """
    size = bits & float32.MAGNITUDE
    amax = amax_bits(size, tiles)
    # Complemented, the smallest is the largest; zeros count as the largest of all, or do not.
    included = _spec(block).zeros == "included"
    candidates = size if included else jnp.where(size == 0, float32.MAGNITUDE, size)
    amin = jnp.where(amax == 0, np.uint32(0), ~amax_bits(~candidates, tiles))
    amax, amin, ladder = once(functools.partial(_stored, block=block), amax, amin)
    index = _index(size, Ladder(*(spread(part, bits.shape, tiles) for part in ladder)), block)
    nan = spread(amax, bits.shape, tiles) > float32.INFINITY
    index = jnp.where(nan, np.uint32(_levels(block) - 1), index)
    sign = (bits >> 31) << (block.element.bits - 1)
    return (sign | index).astype(block.element.code_dtype), amax, amin


def dequantize(
    codes: jax.Array,
    scales: jax.Array,
    offsets: jax.Array | None,
    block: Block,
    tiles: tuple[int, ...],
) -> jax.Array:
    """float32 bits of the values of codes, with amax and amin as float32 bits."""
    assert offsets is not None
    spec, levels = _spec(block), _levels(block)
    ladder = once(functools.partial(_ladder, block=block), scales, offsets)
    lowest, span, amax, bottom = (
        spread(part, codes.shape, tiles)
        for part in (ladder.lowest, ladder.span, scales, ladder.bottom)
    )
    codes = codes.astype(jnp.uint32)
    index = (codes & np.uint32(levels - 1)).astype(jnp.int32)
    step, rest = span // (levels - 2), span % (levels - 2)
    place = jnp.maximum(index - 1, 0)
    logarithm = lowest + place * step + (place * rest + (levels - 2) // 2) // (levels - 2)
    level = exp2(logarithm, spec.exp2_coefficients)
    level = jnp.minimum(jnp.maximum(level, bottom), amax)
    level = jnp.where((index == 1) & (bottom != 0), bottom, level)
    level = jnp.where(index == levels - 1, amax, level)
    level = jnp.where(index == 0, np.uint32(0), level)
    sign = (codes >> (block.element.bits - 1)) << 31
    return jnp.where(amax > float32.INFINITY, float32.QUIET_NAN, sign | level)


def _spec(block: Block) -> Logarithmic:
    assert block.logarithmic is not None
    return block.logarithmic


def _levels(block: Block) -> int:
    """N: the number of indices."""
    return 1 << (block.element.bits - 1)


def _stored(amax: jax.Array, amin: jax.Array, block: Block) -> tuple[jax.Array, jax.Array, Ladder]:
    """amax and amin as the tile keeps them, and the ladder that they give."""
    fmt = block.scale_format
    if fmt.name != "float32":
        # Toward minus infinity, -amax is rounded away from zero and amin towards it.
        ends = jnp.stack([amax | float32.SIGN, amin])
        codes = encode_bits(ends, fmt, "toward_negative", "saturate").astype(jnp.uint32)
        stored = decode_bits(codes, fmt) & float32.MAGNITUDE
    else:
        stored = jnp.stack([amax, amin])
    stored = jnp.where(amax >= float32.INFINITY, float32.QUIET_NAN, stored)
    return stored[0], stored[1], _ladder(stored[0], stored[1], block)


def _ladder(amax: jax.Array, amin: jax.Array, block: Block) -> Ladder:
    """The ladder between a stored amin and amax; of zeros or NaN any."""
    spec, steps = _spec(block), np.uint32(_levels(block) - 2)
    ends = log2(jnp.stack([amax, amin]), spec.log2_coefficients)
    cut = ends[0] - np.int32(spec.octaves << FRACTION_BITS)
    reached = (amin != 0) & (ends[1] >= cut)
    lowest = jnp.where(reached, ends[1], cut)
    span = ends[0] - lowest
    # Half a step as a fraction of an octave in units of 2^-32: (span / steps) / 2 * 2^9.
    length = span.astype(jnp.uint32)
    half = ((length // steps) << 8) + ((length % steps) << 8) // steps
    square = lax.bitcast_convert_type(_square(half), jnp.uint32)
    rise = polynomial(square, spec.midpoint_coefficients).astype(jnp.uint32)
    bottom = jnp.where(reached, amin, np.uint32(0))
    return Ladder(lowest, span, ((rise * steps) >> 7).astype(jnp.int32), bottom)


def _square(half: jax.Array) -> jax.Array:
    """floor(half^2 / 2^32) of a uint32."""
    # Twice the product with half / 2, and with its last bit: the first factor must be an int32.
    whole = multiply_high((half >> 1).astype(jnp.int32), half)
    low = (half >> 1) * half
    odd = jnp.where((half & 1) == 1, half, np.uint32(0))
    doubled = (whole.astype(jnp.uint32) << 1) + (low >> 31)
    rest = low << 1
    return (doubled + ((rest + odd) < rest).astype(jnp.uint32)).astype(jnp.int32)


def _index(size: jax.Array, ladder: Ladder, block: Block) -> jax.Array:
    """K of magnitudes: 2 + floor((2 M - span - 2 rise) / (2 span)), M = (log2|x| - L0) (N - 2)."""
    steps = _levels(block) - 2
    above = log2(size, _spec(block).log2_coefficients) - ladder.lowest
    # What lies further off than the ladder is long has the index 0, however far it is.
    above = jnp.clip(above, -ladder.span, ladder.span)
    span = jnp.maximum(ladder.span, 1)
    # A float quotient is off by one at most, and the remainder, in 32 bits however long the
    # dividend is, puts it right.
    numerator = above.astype(jnp.float32) * np.float32(steps)
    centre = span.astype(jnp.float32) * np.float32(0.5) + ladder.rise.astype(jnp.float32)
    quotient = jnp.floor((numerator - centre) / span.astype(jnp.float32)).astype(jnp.int32)
    dividend = above * np.int32(2 * steps) - span - 2 * ladder.rise
    remainder = dividend - quotient * (2 * span)
    step = (remainder >= 2 * span).astype(jnp.int32) - (remainder < 0).astype(jnp.int32)
    index = jnp.clip(quotient + step + 2, 0, steps + 1)
    index = jnp.where(ladder.span == 0, np.int32(steps + 1), index)
    return jnp.where(size == 0, np.uint32(0), index.astype(jnp.uint32))
