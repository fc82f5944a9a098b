"""Asymmetric integer quantization: `lowprec.scaling.codings.Affine` on bit patterns.

Every float operation of a source is done on integers and rounded once to float32, or then to
float16. That second rounding is innocuous: float32 keeps 24 bits, at least twice float16's 11 plus
2, which settles normal results (Figueroa, "When is double rounding innocuous?", 1995); a sum or
product that is subnormal in float16 is exact in float32, and a quotient that is not a midpoint of
float16 subnormals lies further from every one of them than half a unit of float32.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.numerics import float32
from lowprec.numerics.codec import decode_bits, encode_bits
from lowprec.numerics.format import Format, get_format
from lowprec.scaling.addition import add, subtract
from lowprec.scaling.block import Block
from lowprec.scaling.codings import Affine
from lowprec.scaling.once import once
from lowprec.scaling.tiles import amax_bits, beside_tiles, spread

_INTEGER = Format(name="integer", exponent_bits=0, mantissa_bits=23, bias=-22)
"""Sign and magnitude below 2^23: larger float32 values are integers already."""
_BEYOND_INTEGER = np.uint32((127 + 23) << 23)
_LOW_BITS = np.uint32(0xF)
_FEW = 4
"""Codes are few where a tile has at least so many elements for each."""


class Tile(NamedTuple):
    """What a tile's elements are coded with, float32 bits, one a tile.

    Attributes:
      low: the smallest value.
      scale: what x is divided by; of `offset` multiplied by.
      zero: the zero point or offset, 0 where there is none.
      inverse: of `packed`, what x is multiplied by; else the scale again.
    """

    low: jax.Array
    scale: jax.Array
    zero: jax.Array
    inverse: jax.Array


def quantize(
    bits: jax.Array,
    block: Block,
    tiles: tuple[int, ...],
    mode: str,
    words: jax.Array | None,
    word_bits: int,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Codes, scales and offsets (float32 bits, offsets None where packed) of float32 bits.

    Inf makes an infinite range, and NaN of all values of its tile in decoding; for NaN see
    `Affine.nan`.
    """
    affine = _affine(block)
    x = _rounded(bits, affine.arithmetic)
    top = _constant(block.element.max)
    low, high = _ends(x, tiles, affine)
    tile = once(functools.partial(_tile, affine=affine, top=top), low, high)
    spread_tile = Tile(*(spread(part, x.shape, tiles) for part in tile))
    value = _scaled(x, spread_tile, affine, mode, words, word_bits)
    rounding = "toward_zero" if affine.add_half else mode
    if affine.zero_point == "integer":
        # Rounded already, before the zero point was added.
        rounding, words = "nearest_even", None
    codes = encode_bits(value, block.element, rounding, "saturate", words, word_bits)
    if affine.zero_point == "packed":
        zero = encode_bits(tile.zero, block.element, "nearest_even", "saturate").astype(jnp.uint32)
        return codes, (tile.scale & ~_LOW_BITS) | zero, None
    offset = tile.low if affine.zero_point == "minimum" else tile.zero
    stored = block.scale_format.name
    return codes, _rounded(tile.scale, stored), _rounded(offset, stored)


def dequantize(
    codes: jax.Array,
    scales: jax.Array,
    offsets: jax.Array | None,
    block: Block,
    tiles: tuple[int, ...],
) -> jax.Array:
    """float32 bits of the values of codes, scales and offsets, the latter two float32 bits."""
    kinds, tile = 1 << block.element.bits, math.prod(tiles)
    if block.element.table is not None or kinds * _FEW > tile:
        return _values(codes, *_spread(scales, offsets, codes.shape, tiles), block)
    # Less work than for every element: all values of a tile, of which codes then choose.
    ones = [jnp.full(scales.shape, code, codes.dtype) for code in range(kinds)]
    given = (scales,) if offsets is None else (scales, offsets)
    found = once(
        lambda *own: [
            _values(code, own[0], own[-1] if len(own) > 1 else None, block) for code in ones
        ],
        *given,
    )
    return beside_tiles(_chosen, [codes], found, tiles)


def _chosen(codes: jax.Array, *given: jax.Array) -> jax.Array:
    """Of 2^n values the one of each code."""
    values, bit = list(given), 1
    while len(values) > 1:
        set_ = (codes & np.asarray(bit, codes.dtype)) != 0
        pairs = zip(values[::2], values[1::2], strict=True)
        values, bit = [jnp.where(set_, one, zero) for zero, one in pairs], bit * 2
    return values[0]


def _spread(
    scales: jax.Array, offsets: jax.Array | None, shape: tuple[int, ...], tiles: tuple[int, ...]
) -> tuple[jax.Array, jax.Array | None]:
    each = None if offsets is None else spread(offsets, shape, tiles)
    return spread(scales, shape, tiles), each


def _values(
    codes: jax.Array, scale: jax.Array, offset: jax.Array | None, block: Block
) -> jax.Array:
    """float32 bits of the values of codes, each with its own scale and offset."""
    affine = _affine(block)
    q = decode_bits(codes.astype(jnp.uint32), block.element)
    if offset is None:
        zero = decode_bits(scale & _LOW_BITS, block.element)
        return float32.multiply(subtract(q, zero), scale & ~_LOW_BITS)
    rounded = functools.partial(_rounded, to=affine.arithmetic)
    if affine.zero_point == "minimum":
        value = _multiply_add(q, scale, offset, affine)
    elif affine.zero_point == "integer":
        value = rounded(float32.multiply(scale, rounded(subtract(q, offset))))
    else:
        value = rounded(float32.divide(rounded(add(q, offset)), scale))
    if affine.nan_value_zero:
        value = jnp.where((value & float32.MAGNITUDE) >= float32.INFINITY, np.uint32(0), value)
    return value


def _affine(block: Block) -> Affine:
    assert block.affine is not None
    return block.affine


def _ends(x: jax.Array, tiles: tuple[int, ...], affine: Affine) -> tuple[jax.Array, jax.Array]:
    """The smallest and largest value of each tile; -0 counts as below +0."""
    nan = (x & float32.MAGNITUDE) > float32.INFINITY
    largest = jnp.where(nan, _ordered(float32.SIGN | float32.INFINITY), _ordered(x))
    smallest = jnp.where(nan, _ordered(jnp.full_like(x, float32.INFINITY)), _ordered(x))
    # Complemented, the smallest is the largest, and what ragged tiles are filled with never wins.
    low = _unordered(~amax_bits(~smallest, tiles))
    high = _unordered(amax_bits(largest, tiles))
    if affine.nan == "propagate":
        any_nan = amax_bits(nan.astype(jnp.uint32), tiles) != 0
        low = jnp.where(any_nan, float32.QUIET_NAN, low)
        high = jnp.where(any_nan, float32.QUIET_NAN, high)
    return low, high


def _tile(low: jax.Array, high: jax.Array, affine: Affine, top: np.uint32) -> Tile:
    """Scale and zero point from the ends of the range."""
    rounded = functools.partial(_rounded, to=affine.arithmetic)
    if affine.with_zero:
        low = _smaller(low, jnp.zeros_like(low))
        high = _larger(high, jnp.zeros_like(high))
    if affine.clip_ratio != 1.0:
        ratio = np.float32(affine.clip_ratio).view(np.uint32)
        low, high = (
            rounded(float32.multiply(end, jnp.full_like(end, ratio))) for end in (low, high)
        )
    if affine.zero_range == "unit":
        empty = ((low | high) & float32.MAGNITUDE) == 0
        low = jnp.where(empty, float32.ONE | float32.SIGN, low)
        high = jnp.where(empty, float32.ONE, high)
    span = _at_least(rounded(subtract(high, low)), affine.min_range, affine)
    if affine.zero_point == "offset":
        inverse = rounded(_divide(jnp.full_like(span, float32.ONE), span))
        scale = rounded(float32.multiply(inverse, jnp.full_like(inverse, top)))
        zero = rounded(float32.multiply(low, scale))
        if affine.round_offset:
            zero = _smaller(_integer(zero, "nearest_even"), jnp.zeros_like(zero))
            zero = _larger(zero, jnp.full_like(zero, top | float32.SIGN))
        return Tile(low, scale, zero, scale)
    scale = rounded(_divide(span, jnp.full_like(span, top)))
    scale = _at_least(scale, affine.min_scale, affine)
    if affine.zero_point == "minimum":
        return Tile(low, scale, jnp.zeros_like(low), scale)
    zero = rounded(_divide(low ^ float32.SIGN, scale))
    zero = _integer(_add_half(zero), "toward_zero") if affine.add_half else _integer(zero)
    if affine.zero_point == "integer":
        return Tile(low, scale, zero, scale)
    nan = (zero & float32.MAGNITUDE) > float32.INFINITY
    zero = jnp.where(nan, np.uint32(0), zero)
    zero = _smaller(_larger(zero, jnp.zeros_like(zero)), jnp.full_like(zero, top))
    return Tile(low, scale, zero, _divide(jnp.full_like(scale, float32.ONE), scale))


def _scaled(
    x: jax.Array,
    tile: Tile,
    affine: Affine,
    mode: str,
    words: jax.Array | None,
    word_bits: int,
) -> jax.Array:
    """float32 bits of what is rounded to a code; of `integer` it is rounded already."""
    rounded = functools.partial(_rounded, to=affine.arithmetic)
    match affine.zero_point:
        case "minimum":
            value = rounded(float32.divide(rounded(subtract(x, tile.low)), tile.scale))
        case "offset":
            value = _multiply_add(x, tile.scale, tile.zero ^ float32.SIGN, affine)
        case "packed":
            value = _multiply_add(x, tile.inverse, tile.zero, affine)
        case _:
            quotient = rounded(float32.divide(x, tile.scale))
            return rounded(add(_integer(quotient, mode, words, word_bits), tile.zero))
    return rounded(_add_half(value)) if affine.add_half else value


def _multiply_add(a: jax.Array, b: jax.Array, c: jax.Array, affine: Affine) -> jax.Array:
    if affine.fused:
        return _rounded(float32.fused_multiply_add(a, b, c), affine.arithmetic)
    product = _rounded(float32.multiply(a, b), affine.arithmetic)
    return _rounded(add(product, c), affine.arithmetic)


def _add_half(value: jax.Array) -> jax.Array:
    return add(value, (value & float32.SIGN) | _constant(0.5))


def _integer(
    bits: jax.Array,
    mode: str = "nearest_even",
    words: jax.Array | None = None,
    word_bits: int = 0,
) -> jax.Array:
    """The integer, as float32 bits, that a value is rounded to; Inf and NaN stay."""
    codes = encode_bits(bits, _INTEGER, mode, "saturate", words, word_bits)
    rounded = decode_bits(codes.astype(jnp.uint32), _INTEGER)
    return jnp.where((bits & float32.MAGNITUDE) < _BEYOND_INTEGER, rounded, bits)


def _rounded(bits: jax.Array, to: str) -> jax.Array:
    """float32 bits rounded to nearest even to a narrower type, as float32 bits."""
    if to == "float32":
        return bits
    if to == "float16":
        return _float16(bits)
    fmt = get_format(to)
    codes = encode_bits(bits, fmt, "nearest_even", "nonsaturating").astype(jnp.uint32)
    return decode_bits(codes, fmt)


def _float16(bits: jax.Array) -> jax.Array:
    """The same for float16, in a third of the operations that any format takes."""
    size = bits & float32.MAGNITUDE
    # Below 2^-14 the last place is 2^-24: the significand as an integer, shifted there and rounded.
    shift = jnp.clip(126 - (size >> 23).astype(jnp.int32), 1, 31).astype(jnp.uint32)
    significand = (size & np.uint32(0x007FFFFF)) | np.uint32(0x00800000)
    places = _shift_to_even(significand, shift)
    tiny = lax.bitcast_convert_type(places.astype(jnp.int32).astype(jnp.float32), jnp.uint32)
    tiny = jnp.where(places == 0, np.uint32(0), tiny - np.uint32(24 << 23))
    normal = _shift_to_even(size, jnp.full_like(size, 13)) << 13
    normal = jnp.where(normal > np.uint32(0x477FE000), float32.INFINITY, normal)
    rounded = (bits & float32.SIGN) | jnp.where(size < np.uint32(0x38800000), tiny, normal)
    return jnp.where(size > float32.INFINITY, float32.QUIET_NAN, rounded)


def _shift_to_even(x: jax.Array, shift: jax.Array) -> jax.Array:
    """x / 2^shift rounded to nearest even, for x below 2^31 and a shift from 1 to 31."""
    half = (np.uint32(1) << (shift - 1)) - 1 + ((x >> shift) & 1)
    return (x + half) >> shift


def _constant(value: float) -> np.uint32:
    return float32.constant(value)


def _divide(a: jax.Array, b: jax.Array) -> jax.Array:
    # A barrier after each quotient: fused into one expression, a chain of them compiles slowly.
    return lax.optimization_barrier(float32.divide(a, b))


def _ordered(bits: jax.Array | np.uint32) -> jax.Array:
    """Bits whose order as unsigned integers is the order of the numbers, -0 below +0."""
    bits = jnp.asarray(bits, jnp.uint32)
    return jnp.where((bits & float32.SIGN) != 0, ~bits, bits | float32.SIGN)


def _unordered(ordered: jax.Array) -> jax.Array:
    return jnp.where((ordered & float32.SIGN) != 0, ordered & float32.MAGNITUDE, ~ordered)


def _smaller(a: jax.Array, b: jax.Array) -> jax.Array:
    """The smaller of two numbers; a where a is NaN."""
    nan = (a & float32.MAGNITUDE) > float32.INFINITY
    return jnp.where(nan | (_ordered(a) < _ordered(b)), a, b)


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """The larger of two numbers; a where a is NaN."""
    nan = (a & float32.MAGNITUDE) > float32.INFINITY
    return jnp.where(nan | (_ordered(a) > _ordered(b)), a, b)


def _at_least(bits: jax.Array, least: float, affine: Affine) -> jax.Array:
    """Raised to a constant of the arithmetic; NaN becomes it where NaN counts for nothing."""
    if least == 0.0:
        return bits
    limit = np.float16(least) if affine.arithmetic == "float16" else np.float32(least)
    wanted = np.float32(limit).view(np.uint32)
    raised = _larger(bits, jnp.full_like(bits, wanted))
    if affine.nan == "propagate":
        return raised
    return jnp.where((bits & float32.MAGNITUDE) > float32.INFINITY, wanted, raised)
