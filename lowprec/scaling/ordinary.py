"""The short way for ordinary tensors: float products and quotients where float arithmetic is exact.

XLA flushes subnormals to zero, and what lies beyond float32's range is lost; all else it multiplies
as IEEE 754 says, and divides so on a CPU where it is kept from multiplying by a reciprocal. Whether
all scales and numbers of a tensor are far from both ends is looked up when it runs, and the integer
arithmetic of `lowprec.numerics.float32` taken where they are not: the bits are the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.numerics import float32, magnitudes
from lowprec.numerics.codec import decode_bits, encode_bits, encode_number, magnitude_code
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block
from lowprec.scaling.rules import Scales, scaled_elements
from lowprec.scaling.tiles import amax_bits, beside_tiles, spread

# Between 2^-48 and 2^48 no product of an element with both of its scales comes near float32's ends.
_RANGE = 48
_LOW, _HIGH = ((np.uint32(127 + side * _RANGE) << 23) for side in (-1, 1))
# Smaller tensors take less time in the general way than a second way takes to compile.
_WORTHWHILE = 1 << 19
# In these modes a number below half of the smallest element is zero, as is one that was flushed:
# times 2^48 it is far below that of a moderate format.
_MODES = ("nearest_even", "nearest_away", "nearest_toward_zero", "toward_zero")


def encode_scaled(
    bits: jax.Array,
    found: Scales,
    amax: jax.Array | None,
    block: Block,
    tiles: tuple[int, ...],
    mode: str,
    words: jax.Array | None,
    word_bits: int,
) -> jax.Array:
    """Codes of elements (float32 bits) divided by the scales that were found for their tiles.

    `amax` has the bits of the largest magnitude in each tile where they were measured, or is None.
    """

    # As floats they are what the caller has: as bits they would be copied for the two ways.
    values = float32.from_bits(bits)

    def general() -> jax.Array:
        x = float32.to_bits(values)
        scaled = scaled_elements(x, found, block, lambda t: spread(t, x.shape, tiles))
        return encode_number(scaled, block.element, mode, block.overflow, words, word_bits)

    served = mode in _MODES and magnitudes.serves(block.element, mode)
    if bits.size < _WORTHWHILE or not (served and _is_moderate(block.element)):
        return general()
    amax = amax_bits(bits & float32.MAGNITUDE, tiles) if amax is None else amax
    factor = _factor(found)
    empty = amax == 0
    fits = jnp.all(empty | _within(factor)) & (jnp.max(amax) < _HIGH)
    factor = jnp.where(empty, float32.ONE, factor)

    def short() -> jax.Array:
        x = float32.to_bits(values)
        scaled = _scaled(x, factor, found.divisor is not None, tiles)
        return encode_bits(scaled, block.element, mode, block.overflow)

    quick = lambda: lax.cond(fits, short, general)
    return quick() if found.divisor is None else lax.platform_dependent(cpu=quick, default=general)


def decode_scaled(
    codes: jax.Array,
    scales: jax.Array,
    tensor: jax.Array | None,
    block: Block,
    tiles: tuple[int, ...],
) -> jax.Array:
    """float32 bits of element * scale, and of that * `tensor` where there is one.

    Args:
      scales: float32 bits, one a tile.
      tensor: float32 bits, broadcastable to the codes, or None.
    """
    element = block.element

    def general() -> jax.Array:
        short = _is_short(element)
        multiply = float32.multiply_short if short else float32.multiply
        value = multiply(
            decode_bits(codes.astype(jnp.uint32), element), _each(scales, codes, tiles)
        )
        if tensor is not None:
            value = float32.multiply(value, jnp.broadcast_to(tensor, codes.shape))
        return float32.from_bits(value)

    if codes.size < _WORTHWHILE or not _is_moderate(element):
        return float32.to_bits(general())
    fits = _within(scales) | (scales == 0)
    ordinary = jnp.all(fits)
    if block.power_of_two and element.table is None and element.subnormals:
        # A tile of zeros has the smallest scale there is: only then are the codes looked at.
        empty = lambda: amax_bits(magnitude_code(codes, element), tiles) == 0
        ordinary = lax.cond(ordinary, lambda: True, lambda: jnp.all(fits | empty()))
    if tensor is not None:
        ordinary &= jnp.all(_within(tensor))

    nothing = _nothing(scales)

    def product(codes: jax.Array, *factors: jax.Array) -> jax.Array:
        value = float32.from_bits(decode_bits(codes.astype(jnp.uint32), element))
        value = value * float32.from_bits(factors[-1])
        for own in factors[:-1]:
            # Products of products are put in another order where the compiler sees both.
            opaque = float32.to_bits(value) | (codes.astype(jnp.uint32) & nothing)
            value = float32.from_bits(opaque) * float32.from_bits(own)
        if not element.has_nan:
            return value
        # Of a NaN's sign and payload IEEE 754 leaves the choice.
        nan = (float32.to_bits(value) & float32.MAGNITUDE) > float32.INFINITY
        return jnp.where(
            nan, float32.from_bits(jnp.full_like(nan, float32.QUIET_NAN, jnp.uint32)), value
        )

    whole = (
        []
        if tensor is None
        else [jnp.reshape(tensor, (1,) * (codes.ndim - tensor.ndim) + tensor.shape)]
    )
    quick = lambda: beside_tiles(product, [codes, *whole], [scales], tiles)
    return float32.to_bits(lax.cond(ordinary, quick, general))


def _factor(found: Scales) -> jax.Array:
    """float32 bits of what elements are multiplied or divided by; 0 where it is no such number."""
    if found.divisor is not None:
        return found.divisor
    if found.multiplier is not None:
        return found.multiplier
    assert found.exponent is not None
    power = jnp.where(jnp.abs(found.exponent) <= _RANGE, found.exponent + 127, 0)
    return power.astype(jnp.uint32) << 23


def _within(bits: jax.Array) -> jax.Array:
    return (bits >= _LOW) & (bits <= _HIGH)


def _scaled(bits: jax.Array, factor: jax.Array, divide: bool, tiles: tuple[int, ...]) -> jax.Array:
    """float32 bits of elements times, or divided by, their tile's factor."""
    each = spread(factor, bits.shape, tiles)
    if not divide:
        product = float32.from_bits(bits) * float32.from_bits(each)
        return lax.bitcast_convert_type(product, jnp.uint32)
    # A quotient by what is visibly the same for many is rewritten as a product with its reciprocal:
    # each divisor is mixed with its own dividend, of whose bits none is let through.
    quotient = float32.from_bits(bits) / float32.from_bits(each | (bits & _nothing(factor)))
    return lax.bitcast_convert_type(quotient, jnp.uint32)


def _nothing(magnitudes: jax.Array) -> jax.Array:
    """A zero (uint32) that the compiler does not see to be one: the sign of some magnitude."""
    return lax.optimization_barrier(jnp.max(magnitudes) & float32.SIGN)


def _each(per_tile: jax.Array, codes: jax.Array, tiles: tuple[int, ...]) -> jax.Array:
    return spread(per_tile, codes.shape, tiles)


def _is_short(element: Format) -> bool:
    """Whether `multiply_short` is right for a format's values."""
    if element.table is not None:
        return False
    return element.mantissa_bits < 8 and element.min_exponent - element.mantissa_bits >= -126


def _is_moderate(element: Format) -> bool:
    """Whether a format's values times two scales within range stay normal float32s."""
    values = element.values
    if values is None:
        return False
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    return bool(sizes.min() >= 2.0**-26 and sizes.max() <= 2.0**26)
