"""Power-of-two scale rules: from the largest magnitude of a tile to its scale's code."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.numerics import float32
from lowprec.numerics.codec import encode_bits
from lowprec.numerics.format import Format, get_format
from lowprec.scaling.block import Block

_HIDDEN = np.uint32(1 << 23)


def power_codes(amax: jax.Array, block: Block) -> jax.Array:
    """Codes (int32) of the scales of tiles with the largest magnitudes `amax` (float32 bits).

    The smallest for zeros; what the rule asks for beyond the scale format's range is clamped.
    """
    scale_format = block.scale_format
    exponent = _exponent(amax, block)
    lowest = -scale_format.bias
    code = jnp.clip(exponent - lowest, 0, scale_format.max_code)
    return _specials(jnp.where(amax == 0, 0, code), amax, block)


def _specials(code: jax.Array, amax: jax.Array, block: Block) -> jax.Array:
    one, largest = block.scale_format.bias, block.scale_format.max_code
    not_a_number = -1 if block.scale_format.nan_code is None else block.scale_format.nan_code
    if block.unit_scale_amax is not None:
        unit = amax <= np.float32(block.unit_scale_amax).view(np.uint32)
        code = jnp.where(unit, one, code)
    match block.nonfinite:
        case "propagate":
            infinite, nan = not_a_number, not_a_number
        case "unit_scale":
            infinite, nan = one, one
        case "largest_scale":
            infinite, nan = largest, largest
        case "largest_scale_for_inf":
            infinite, nan = largest, not_a_number
    code = jnp.where(amax == float32.INFINITY, infinite, code)
    return jnp.where(amax > float32.INFINITY, nan, code)


def _exponent(amax: jax.Array, block: Block) -> jax.Array:
    """The exponent of the scale as the rule has it, without regard to the scale format's range."""
    largest, top = _significand(block.element)
    if block.scale_rule == "oas":
        return _overflow_aware(amax, block)
    _, exponent, significand = float32.unpack(amax)
    match block.scale_rule:
        case "floor" | "three_quarter":
            step = jnp.zeros_like(exponent)
        case "even":
            half = np.uint32(1 << (22 - fraction_bits(block.element)))
            step = (significand + half >= np.uint32(1 << 24)).astype(jnp.int32)
        case "ceil":
            step = (significand > _HIDDEN).astype(jnp.int32)
        case "nearest_log2":
            # With amax / MAX = 2^k * a / M, both significands: up where a / M > sqrt(2), down where
            # it is below 1 / sqrt(2). Equality is impossible: no integer's square is twice another.
            up = np.uint32(math.isqrt(2 * largest * largest))
            down = np.uint32(math.isqrt(largest * largest // 2))
            step = (significand > up).astype(jnp.int32) - (significand <= down).astype(jnp.int32)
        case _:
            step = (significand > np.uint32(largest)).astype(jnp.int32)
    return exponent + step - top


def _overflow_aware(amax: jax.Array, block: Block) -> jax.Array:
    """floor(log2 bf16((amax / MAX) * factor)), each operation rounded to nearest even."""
    largest = float32.constant(block.element.max)
    factor = np.float32(block.oas_factor).view(np.uint32)
    quotient = float32.divide(amax, jnp.full_like(amax, largest))
    wanted = float32.multiply(quotient, jnp.full_like(amax, factor))
    rounded = encode_bits(wanted, get_format("bfloat16"), "nearest_even", "saturate")
    return float32.unpack(rounded.astype(jnp.uint32) << 16)[1]


def _significand(element: Format) -> tuple[int, int]:
    """The 24-bit significand of the largest element and its exponent: M * 2^(exponent - 23)."""
    mantissa, exponent = math.frexp(element.max)
    return int(mantissa * 2**24), exponent - 1


def fraction_bits(element: Format) -> int:
    """Bits after the leading one of an element's largest numbers."""
    return element.mantissa_bits - (0 if element.exponent_bits else 1)
