"""Encoding float values to codes of a format and back, on integers alone.

No float operation decides a code, so XLA's flushing of subnormals, its rewritten divisions and its
fused products cannot change one. `lowprec.numerics.oracle` says the same in exact arithmetic.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from lowprec.numerics import float32, float64, magnitudes, table
from lowprec.numerics.arguments import (
    FLOATS,
    check_random,
    float_array,
    refuse_gradient,
    whole_number,
    x64,
)
from lowprec.numerics.decoding import at_limit as at_limit
from lowprec.numerics.decoding import decode_bits, decode_number
from lowprec.numerics.decoding import magnitude_code as magnitude_code
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.rounding import OVERFLOWS, Overflow, Rounding, check_choice
from lowprec.numerics.stochastic import carries


def encode(
    x: ArrayLike,
    fmt: str | Format,
    *,
    rounding: Rounding = "nearest_even",
    overflow: Overflow = "saturate",
    random_bits: ArrayLike | None = None,
    random_bit_count: int | None = None,
    nan_code: int | None = None,
) -> jax.Array:
    """Rounds values to a format and returns their codes.

    NaN stays NaN, with its sign, where the format has one; else it becomes `nan_code`. Inf and
    overflow follow `overflow`. -0 keeps its sign where the format has a signed zero. Subnormals, of
    the input and of the format, are exact. An unsigned format maps negative values to NaN, else to
    zero; a format without zero maps what lies below its smallest value to that value.

    Args:
      x: float32, bfloat16 or float16, any shape; float64 too where JAX has x64 switched on. Python
        numbers and lists are float64 there; elsewhere they are rounded to float32 first.
      fmt: a format by name, path or value.
      rounding: see `lowprec.numerics.rounding.Rounding`.
      overflow: see `lowprec.numerics.rounding.Overflow`.
      random_bits: for the stochastic modes, an unsigned array of x's shape.
      random_bit_count: how many low bits r of a word count, by default all (at most 32). With
        `stochastic` a value is rounded away from zero iff `word + floor(fraction * 2^r) >= 2^r`.
      nan_code: the code of NaN in a format without NaN; by default what ml_dtypes returns, which is
        -0 for NaN and +0 for -NaN, and 0 in a format without -0.

    Returns:
      Codes of x's shape: uint8, uint16 or uint32, the narrowest that holds them.

    Raises:
      TypeError: x is none of these types, `random_bits` is not unsigned, or `random_bit_count` or
        `nan_code` is no integer.
      ValueError: an unknown format or mode, or random bits missing, superfluous or misshapen.

    Under `jax.grad` it raises: codes have no gradient. See `lowprec.cast`.

    Source: the formats' own documents for values; IEEE 754-2019 sections 4.3 and 7.4 for rounding.

    Example:
      >>> encode(jnp.array([1.0, 0.3, -1000.0]), "float8_e4m3fn")
      Array([ 56,  42, 254], dtype=uint8)
    """
    fmt = get_format(fmt)
    x = float_array("x", x, float64=True)
    words, count = _checked(x, fmt, rounding, overflow, random_bits, random_bit_count, nan_code)
    x = refuse_gradient("encode", x)
    return _encode(x, words, fmt, rounding, overflow, count, nan_code)


def round_to_format(
    x: jax.Array,
    fmt: Format,
    rounding: str,
    overflow: str,
    random_bits: ArrayLike | None,
    random_bit_count: int | None,
    nan_code: int | None,
) -> jax.Array:
    """`decode(encode(x))` in x's dtype, in one step where there is one."""
    words, count = _checked(x, fmt, rounding, overflow, random_bits, random_bit_count, nan_code)
    return _round_to_format(x, words, fmt, rounding, overflow, count, nan_code)


def _checked(
    x: jax.Array,
    fmt: Format,
    rounding: str,
    overflow: str,
    random_bits: ArrayLike | None,
    random_bit_count: int | None,
    nan_code: int | None,
) -> tuple[jax.Array | None, int]:
    check_choice("overflow", overflow, OVERFLOWS)
    if nan_code is not None and not 0 <= whole_number("nan_code", nan_code) <= fmt.code_mask:
        raise ValueError(f"`nan_code` = {nan_code}; {fmt.name} has the codes 0 to {fmt.code_mask}")
    return check_random(x.shape, rounding, random_bits, random_bit_count)


def decode(codes: ArrayLike, fmt: str | Format, *, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """The values of codes, exact in float32; in a narrower `dtype` rounded once, to nearest even.

    NaN codes give a quiet NaN, Inf codes Inf, subnormals their exact value. Bits above the format's
    are ignored. Of a format whose values go beyond float32's range (an exponent field above 8 bits,
    or a bias far from its middle), those are rounded to float32: to Inf above its range.

    Args:
      codes: unsigned integers of any shape.
      fmt: a format by name, path or value.
      dtype: float32, bfloat16 or float16; float64 where JAX has x64 switched on.

    Raises:
      TypeError: `codes` is not an unsigned integer array, or `dtype` is another type.

    Example:
      >>> decode(jnp.array([0x38, 0x7F, 0x01], jnp.uint8), "float8_e4m3fn")
      Array([1.        ,        nan, 0.00195312], dtype=float32)
    """
    fmt = get_format(fmt)
    codes = jnp.asarray(codes)
    if not jnp.issubdtype(codes.dtype, jnp.unsignedinteger):
        raise TypeError(f"`codes` must be an unsigned integer array, got {codes.dtype}")
    return _decode(codes, fmt, np.dtype(dtype).name)


# Compiled as a whole also outside a caller's `jit`: one by one, the operations take seconds.
@functools.partial(
    jax.jit, static_argnames=("fmt", "rounding", "overflow", "word_bits", "nan_code")
)
def _encode(
    x: jax.Array,
    words: jax.Array | None,
    fmt: Format,
    rounding: str,
    overflow: str,
    word_bits: int,
    nan_code: int | None,
) -> jax.Array:
    return encode_bits(to_bits(x), fmt, rounding, overflow, words, word_bits, nan_code)


@functools.partial(
    jax.jit, static_argnames=("fmt", "rounding", "overflow", "word_bits", "nan_code")
)
def _round_to_format(
    x: jax.Array,
    words: jax.Array | None,
    fmt: Format,
    rounding: str,
    overflow: str,
    word_bits: int,
    nan_code: int | None,
) -> jax.Array:
    bits = to_bits(x)
    in_place = fmt.signed and fmt.encoding == "sign_magnitude" and bits.dtype == jnp.uint32
    if in_place and magnitudes.serves(fmt, rounding):
        return narrow(round_bits(bits, fmt, rounding, overflow, nan_code), x.dtype)
    codes = encode_bits(bits, fmt, rounding, overflow, words, word_bits, nan_code)
    return decode_to(codes.astype(jnp.uint32), fmt, x.dtype)


@functools.partial(jax.jit, static_argnames=("fmt", "dtype"))
def _decode(codes: jax.Array, fmt: Format, dtype: str) -> jax.Array:
    return decode_to(codes.astype(jnp.uint32), fmt, dtype)


def decode_to(codes: jax.Array, fmt: Format, dtype: DTypeLike) -> jax.Array:
    """uint32 codes to values of a float type, rounded once to nearest even."""
    name = np.dtype(dtype).name
    if name in ("bfloat16", "float16") and not within_float32(fmt):
        # By way of float32, which does not hold all of its values, one would be rounded twice.
        narrowed = encode_number(
            decode_number(codes, fmt), get_format(name), "nearest_even", "nonsaturating"
        )
        return lax.bitcast_convert_type(narrowed, jnp.dtype(name))
    if name != "float64":
        return narrow(decode_bits(codes, fmt), dtype)
    if not x64():
        raise TypeError(
            "`dtype` = float64 needs jax.config.update('jax_enable_x64', True); use float32, which "
            "holds every value of a format with at most 8 exponent bits"
        )
    return lax.bitcast_convert_type(float64.pack(decode_number(codes, fmt)), jnp.float64)


def within_float32(fmt: Format) -> bool:
    """Whether float32 holds every value of a format."""
    if fmt.table is not None:
        return True
    lowest_bit = fmt.min_exponent - fmt.mantissa_bits
    return lowest_bit >= -149 and max(fmt.max, -fmt.min) <= float(np.finfo(np.float32).max)


def to_bits(x: jax.Array) -> jax.Array:
    """The bits of a float array: uint64 of float64, else uint32 of the same float32 values."""
    if x.dtype == jnp.float64:
        return lax.bitcast_convert_type(x, jnp.uint64)
    return float32.to_bits(x)


def encode_bits(
    bits: jax.Array,
    fmt: Format,
    rounding: str,
    overflow: str,
    words: jax.Array | None = None,
    word_bits: int = 0,
    nan_code: int | None = None,
) -> jax.Array:
    """`encode` on float32 bits (uint32), or float64 bits (uint64)."""
    if bits.dtype == jnp.uint64:
        x = float64.number(bits)
    elif magnitudes.serves(fmt, rounding):
        code = magnitudes.code_of(magnitudes.round_magnitude(bits, fmt, rounding), fmt)
        size, sign = bits & float32.MAGNITUDE, bits & float32.SIGN
        special = (size == float32.INFINITY, size > float32.INFINITY)
        x = float32.Number(sign, jnp.zeros_like(size).astype(jnp.int32), size, *special)
        return _finish(code, x, fmt, rounding, overflow, nan_code)
    else:
        x = float32.number(bits)
    return encode_number(x, fmt, rounding, overflow, words, word_bits, nan_code)


def encode_number(
    x: float32.Number,
    fmt: Format,
    rounding: str,
    overflow: str,
    words: jax.Array | None = None,
    word_bits: int = 0,
    nan_code: int | None = None,
) -> jax.Array:
    """`encode` on numbers, whose exponents may lie outside float32's."""
    if fmt.table is None:
        rounded = _round(x, fmt, rounding, words, word_bits)
        return _finish(rounded, x, fmt, rounding, overflow, nan_code)
    past = functools.partial(_past_codes, fmt, rounding, overflow)
    code = table.encode(x, fmt, rounding, words, word_bits, past)
    return _with_specials(code, x, fmt, nan_code, lowest=fmt.table.index(fmt.min))


def _finish(
    rounded: jax.Array,
    x: float32.Number,
    fmt: Format,
    rounding: str,
    overflow: str,
    nan_code: int | None,
) -> jax.Array:
    """A magnitude's code with what overflows, the sign, Inf and NaN in their places.

    Of x only the sign, whether the significand is zero, and Inf and NaN are looked at.
    """
    negative = x.sign != 0

    def by_sign(of: Callable[[bool], int]) -> jax.Array | np.uint32:
        below, above = np.uint32(of(True)), np.uint32(of(False))
        return above if below == above else jnp.where(negative, below, above)

    limit = by_sign(lambda below: _largest(fmt, below))
    past_finite = by_sign(lambda below: _past_codes(fmt, rounding, overflow, below)[0])
    past_infinite = by_sign(lambda below: _past_codes(fmt, rounding, overflow, below)[1])
    code = jnp.where(rounded > limit, past_finite, rounded)
    code = jnp.where(x.infinite, past_infinite, code)
    return _with_specials(_with_sign(code, negative, fmt), x, fmt, nan_code, lowest=0)


def _with_specials(
    code: jax.Array, x: float32.Number, fmt: Format, nan_code: int | None, lowest: int
) -> jax.Array:
    """Codes where NaN has its own, as have negative numbers in an unsigned format."""
    negative = x.sign != 0
    if not fmt.signed:
        below_zero = negative & (x.infinite | (x.significand != 0))
        nan = lowest if fmt.nan_code is None else fmt.nan_code
        code = jnp.where(below_zero, np.uint32(nan), code)
    code = jnp.where(x.nan, _nan(fmt, negative, nan_code), code)
    return code.astype(fmt.code_dtype)


def round_bits(
    bits: jax.Array, fmt: Format, rounding: str, overflow: str, nan_code: int | None = None
) -> jax.Array:
    """float32 bits of what float32 bits round to: `decode_bits(encode_bits(...))`, in fewer steps.

    Only where `magnitudes.serves`, in a signed format of sign and magnitude.
    """
    sign = bits & float32.SIGN
    rounded = magnitudes.round_magnitude(bits, fmt, rounding)
    value, largest = magnitudes.value_of(rounded, fmt), float32.constant(fmt.max)
    past = {below: _past_codes(fmt, rounding, overflow, below) for below in (False, True)}

    def beyond(which: int) -> jax.Array | np.uint32:
        above, below = (_magnitude_bits(past[side][which], fmt) for side in (False, True))
        return above if above == below else jnp.where(sign != 0, below, above)

    value = jnp.where(value > largest, beyond(0), value)
    if overflow != "saturate":
        value = jnp.where(rounded.size == float32.INFINITY, beyond(1), value)
    value = sign | value
    if fmt.zero == "unsigned":
        # Neither zero nor NaN has a sign where the code of -0 is NaN's.
        value = jnp.where(value == float32.SIGN, 0, value)
        value = jnp.where(value & float32.MAGNITUDE > float32.INFINITY, float32.QUIET_NAN, value)
    nan = jnp.asarray(_nan(fmt, sign != 0, nan_code), jnp.uint32)
    return jnp.where(rounded.size > float32.INFINITY, decode_bits(nan, fmt), value)


def _magnitude_bits(code: int, fmt: Format) -> np.uint32:
    """float32 bits of a magnitude's code."""
    return np.float32(abs(fmt.value(code))).view(np.uint32)


def _round(
    x: float32.Number, fmt: Format, rounding: str, words: jax.Array | None, word_bits: int
) -> jax.Array:
    """The magnitude's code, uint32, as if the exponent had no upper limit."""
    word = x.significand.dtype
    width = 8 * word.itemsize - 1
    precision = 52 if word == jnp.uint64 else 23
    # Zero has no exponent of its own: one far below the format's keeps it zero.
    above = jnp.where(x.significand == 0, -width - 33, x.exponent - fmt.min_exponent)
    if fmt.subnormals:
        shift = precision - fmt.mantissa_bits + jnp.maximum(-above, 0)
        hidden = np.uint32(0)
    else:
        shift = jnp.full_like(x.exponent, precision - fmt.mantissa_bits)
        hidden = np.uint32(1 << fmt.mantissa_bits)
    near = jnp.minimum(shift, width).astype(word)
    kept = x.significand >> near
    rest = x.significand - (kept << near)
    # Among normal numbers the significand's hidden bit is what carries into the exponent field.
    lead = jnp.clip(above, 0, 1 << fmt.exponent_bits).astype(jnp.uint32) << fmt.mantissa_bits
    code = lead + kept.astype(jnp.uint32) - hidden
    up = goes_away(x.sign, code, rest, near, shift, rounding, words, word_bits)
    code = code + up.astype(jnp.uint32)
    if fmt.subnormals:
        return code
    return jnp.where((above < 0) | (x.significand == 0), 0, code)


def goes_away(
    sign: jax.Array,
    code: jax.Array,
    rest: jax.Array,
    near: jax.Array,
    shift: jax.Array,
    rounding: str,
    words: jax.Array | None,
    word_bits: int,
) -> jax.Array:
    """Whether the magnitude is rounded up: `rest` of 2^shift lies above `code`."""
    unit, twice = np.array(1, rest.dtype) << near, rest << 1
    odd = (code & 1) == 1
    match rounding:
        case "nearest_even":
            return (twice > unit) | ((twice == unit) & odd)
        case "nearest_away":
            return twice >= unit
        case "nearest_toward_zero":
            return twice > unit
        case "toward_zero":
            return jnp.zeros_like(odd)
        case "toward_positive":
            return (rest != 0) & (sign == 0)
        case "toward_negative":
            return (rest != 0) & (sign != 0)
        case "to_odd":
            return (rest != 0) & ~odd
    assert words is not None
    width = 8 * rest.dtype.itemsize - 1
    down = jnp.clip(shift - word_bits, 0, width).astype(rest.dtype)
    left = jnp.clip(word_bits - shift, 0, width).astype(rest.dtype)
    fraction = (rest >> down) << left
    # What lies below the fraction's last bit; nothing where bits were added to the right.
    lost = (rest - ((rest >> down) << down)) << 1
    half = np.array(1, rest.dtype) << down
    return carries(fraction, (lost >= half) & (down > 0), lost > half, words, word_bits, rounding)


def _largest(fmt: Format, negative: bool) -> int:
    """The magnitude's code of the largest finite value on one side of zero."""
    lowest = negative and fmt.encoding == "twos_complement" and not fmt.narrow_range
    return fmt.max_code + int(lowest)


def _past_codes(fmt: Format, rounding: str, overflow: str, negative: bool) -> tuple[int, int]:
    """Codes for finite values past the last, and for Inf: of the magnitude, or of a table."""
    infinity, nan = fmt.infinity_code, fmt.nan_code
    if fmt.table is None:
        limit = _largest(fmt, negative)
    else:
        limit = fmt.table.index(fmt.min if negative else fmt.max)
        if infinity is not None and negative:
            infinity = fmt.table.index(-np.inf) if -np.inf in fmt.table else nan
    if overflow == "saturate" or (infinity is None and nan is None):
        return limit, limit
    if overflow == "saturate_finite":
        return limit, limit if infinity is None else infinity
    beyond = infinity if infinity is not None else nan
    assert beyond is not None
    stops = rounding in ("toward_zero", "to_odd")
    stops = stops or rounding == ("toward_positive" if negative else "toward_negative")
    return limit if stops else beyond, beyond


def _with_sign(code: jax.Array, negative: jax.Array, fmt: Format) -> jax.Array:
    if fmt.encoding == "twos_complement":
        return jnp.where(negative, np.uint32(0) - code, code) & np.uint32(fmt.code_mask)
    if not fmt.signed:
        return code
    signed = jnp.where(negative, code | np.uint32(fmt.sign_mask), code)
    # Where the code of -0 means something else, zero has no sign.
    return jnp.where(code == 0, 0, signed) if fmt.zero == "unsigned" else signed


def _nan(fmt: Format, negative: jax.Array, nan_code: int | None) -> jax.Array | np.uint32:
    if fmt.table is not None:
        minus_zero = [i for i, x in enumerate(fmt.table) if x == 0 and np.signbit(x)]
        missing = nan_code if nan_code is not None else minus_zero[0] if minus_zero else 0
        return np.uint32(missing if fmt.nan_code is None else fmt.nan_code)
    if fmt.nan_code is not None:
        sign = fmt.sign_mask if fmt.signed and fmt.nan != "negative_zero" else 0
        return jnp.where(negative, np.uint32(fmt.nan_code | sign), np.uint32(fmt.nan_code))
    if nan_code is not None:
        return np.uint32(nan_code)
    minus_zero = fmt.sign_mask if fmt.zero == "signed" else 0
    return jnp.where(negative, np.uint32(0), np.uint32(minus_zero))


def narrow(bits: jax.Array, dtype: DTypeLike) -> jax.Array:
    """float32 bits to float32, bfloat16 or float16, rounded to nearest even; overflow gives Inf.

    Done on integers, so that XLA cannot drop the rounding when the value is widened again.
    """
    name = np.dtype(dtype).name
    if name == "float32":
        return float32.from_bits(bits)
    if name not in FLOATS:
        raise TypeError(f"`dtype` must be float32, bfloat16 or float16, got {name}")
    codes = encode_bits(bits, get_format(name), "nearest_even", "nonsaturating")
    return lax.bitcast_convert_type(codes, jnp.dtype(name))
