"""Encoding float values to codes of a format and back, on integers alone.

No float operation decides a code, so XLA's flushing of subnormals, its rewritten divisions and its
fused products cannot change one. `lowprec.numerics.oracle` says the same in exact arithmetic.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from lowprec.numerics import float32
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.rounding import OVERFLOWS, ROUNDINGS, Overflow, Rounding, check_choice

_INPUTS = ("float32", "bfloat16", "float16")


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
      x: float32, bfloat16 or float16, any shape.
      fmt: a format by name, path or value.
      rounding: see `lowprec.numerics.rounding.Rounding`.
      overflow: see `lowprec.numerics.rounding.Overflow`.
      random_bits: for `stochastic`, an unsigned array of x's shape.
      random_bit_count: how many low bits r of a word count, by default all. A value is rounded away
        from zero iff `word + floor(fraction * 2^r) >= 2^r`.
      nan_code: the code of NaN in a format without NaN; by default what ml_dtypes returns, which is
        -0 for NaN and +0 for -NaN, and 0 in a format without -0.

    Returns:
      Codes of x's shape: uint8, uint16 or uint32, the narrowest that holds them.

    Raises:
      TypeError: x is not float32, bfloat16 or float16, or `random_bits` is not unsigned.
      ValueError: an unknown format or mode, or random bits missing, superfluous or misshapen.

    Under `jax.grad` it raises: codes have no gradient. See `lowprec.cast`.

    Source: the formats' own documents for values; IEEE 754-2019 sections 4.3 and 7.4 for rounding.

    Example:
      >>> encode(jnp.array([1.0, 0.3, -1000.0]), "float8_e4m3fn")
      Array([ 56,  42, 254], dtype=uint8)
    """
    fmt = get_format(fmt)
    x = float_array("x", x)
    words, count = check_random(x.shape, rounding, random_bits, random_bit_count)
    check_choice("overflow", overflow, OVERFLOWS)
    if nan_code is not None and not 0 <= nan_code <= fmt.code_mask:
        raise ValueError(f"`nan_code` = {nan_code}; {fmt.name} has the codes 0 to {fmt.code_mask}")
    x = refuse_gradient("encode", x)
    return _encode(x, words, fmt, rounding, overflow, count, nan_code)


def decode(codes: ArrayLike, fmt: str | Format, *, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """The values of codes, exact in float32; a narrower `dtype` is rounded to nearest even.

    NaN codes give a quiet NaN, Inf codes Inf, subnormals their exact value. Bits above the format's
    are ignored.

    Args:
      codes: unsigned integers of any shape.
      fmt: a format by name, path or value.
      dtype: float32, bfloat16 or float16.

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
    return encode_bits(float32.to_bits(x), fmt, rounding, overflow, words, word_bits, nan_code)


@functools.partial(jax.jit, static_argnames=("fmt", "dtype"))
def _decode(codes: jax.Array, fmt: Format, dtype: str) -> jax.Array:
    return narrow(decode_bits(codes.astype(jnp.uint32), fmt), dtype)


def float_array(argument: str, x: ArrayLike) -> jax.Array:
    """`x` as a JAX array; TypeError unless it is float32, bfloat16 or float16."""
    given = getattr(x, "dtype", None)
    if given is None:
        x = given_array = np.asarray(x)
        # A Python list or number has no type of its own: it becomes JAX's default float.
        if np.issubdtype(given_array.dtype, np.floating):
            return jnp.asarray(given_array, jnp.float32)
        given = given_array.dtype
    if np.dtype(given).name not in _INPUTS:
        raise TypeError(
            f"`{argument}` must be float32, bfloat16 or float16, got {np.dtype(given).name}; "
            f"convert it first, so that its rounding happens where you see it"
        )
    return jnp.asarray(x)


def check_random(
    shape: tuple[int, ...],
    rounding: str,
    random_bits: ArrayLike | None,
    random_bit_count: int | None,
) -> tuple[jax.Array | None, int]:
    """Checks a rounding mode with its random words; returns them as uint32, and their width."""
    check_choice("rounding", rounding, ROUNDINGS)
    if rounding != "stochastic":
        if random_bits is not None or random_bit_count is not None:
            raise ValueError(
                f"`random_bits` and `random_bit_count` need rounding='stochastic', got {rounding!r}"
            )
        return None, 0
    if random_bits is None:
        raise ValueError(
            "rounding='stochastic' needs `random_bits`, an unsigned array of x's shape, such as "
            "jax.random.bits(key, x.shape, 'uint32')"
        )
    words = jnp.asarray(random_bits)
    if not jnp.issubdtype(words.dtype, jnp.unsignedinteger):
        raise TypeError(f"`random_bits` must be an unsigned integer array, got {words.dtype}")
    if words.shape != shape:
        raise ValueError(f"`random_bits` has shape {words.shape}; x has shape {shape}")
    width = words.dtype.itemsize * 8
    count = width if random_bit_count is None else random_bit_count
    if not 1 <= count <= min(width, 32):
        raise ValueError(f"`random_bit_count` = {count}; use 1 to {min(width, 32)} ({words.dtype})")
    return words.astype(jnp.uint32) & np.uint32((1 << count) - 1), count


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def refuse_gradient(function: str, x: jax.Array) -> jax.Array:
    """The identity; under differentiation a ValueError, since codes would give a silent zero."""
    return x


@refuse_gradient.defjvp
def _refuse_gradient_jvp(function: str, primals: Any, tangents: Any) -> Any:
    raise ValueError(
        f"`{function}` has no gradient: its codes are integers, and the gradient would silently be "
        f"zero. Use lowprec.cast(x, ..., grad='straight_through'), or jax.lax.stop_gradient(x)"
    )


def encode_bits(
    bits: jax.Array,
    fmt: Format,
    rounding: str,
    overflow: str,
    words: jax.Array | None = None,
    word_bits: int = 0,
    nan_code: int | None = None,
) -> jax.Array:
    """`encode` on float32 bits."""
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
    """`encode` on numbers whose exponents may lie outside float32's."""
    rounded = _round(x.sign, x.exponent, x.significand, fmt, rounding, words, word_bits)
    negative = x.sign != 0
    limit = np.uint32(fmt.max_code)
    if fmt.encoding == "twos_complement":
        limit = limit + negative.astype(jnp.uint32)
    past_finite, past_infinite = _overflow_codes(fmt, rounding, overflow, negative, limit)
    code = jnp.where(rounded > limit, past_finite, rounded)
    code = jnp.where(x.infinite, past_infinite, code)
    code = _with_sign(code, negative, fmt)
    if not fmt.signed:
        below_zero = negative & (x.infinite | (x.significand != 0))
        code = jnp.where(below_zero, np.uint32(fmt.nan_code or 0), code)
    code = jnp.where(x.nan, _nan(fmt, negative, nan_code), code)
    return code.astype(fmt.code_dtype)


def _round(
    sign: jax.Array,
    exponent: jax.Array,
    significand: jax.Array,
    fmt: Format,
    rounding: str,
    words: jax.Array | None,
    word_bits: int,
) -> jax.Array:
    """The magnitude's code as if the exponent had no upper limit."""
    # Zero has no exponent of its own: one far below the format's keeps it zero.
    above = jnp.where(significand == 0, -64, exponent - fmt.min_exponent)
    if fmt.subnormals:
        shift = 23 - fmt.mantissa_bits + jnp.maximum(-above, 0)
        hidden = np.uint32(0)
    else:
        shift = jnp.full_like(exponent, 23 - fmt.mantissa_bits)
        hidden = np.uint32(1 << fmt.mantissa_bits)
    near = jnp.minimum(shift, 31).astype(jnp.uint32)
    kept = significand >> near
    rest = significand - (kept << near)
    # Among normal numbers the significand's hidden bit is what carries into the exponent field.
    lead = jnp.clip(above, 0, 1 << 8).astype(jnp.uint32) << fmt.mantissa_bits
    code = lead + kept - hidden
    code = code + _increment(sign, code, rest, near, shift, rounding, words, word_bits)
    if fmt.subnormals:
        return code
    return jnp.where((above < 0) | (significand == 0), 0, code)


def _increment(
    sign: jax.Array,
    code: jax.Array,
    rest: jax.Array,
    near: jax.Array,
    shift: jax.Array,
    rounding: str,
    words: jax.Array | None,
    word_bits: int,
) -> jax.Array:
    """1 where the magnitude is rounded up: `rest` of 2^shift lies above `code`."""
    unit, twice = np.uint32(1) << near, rest << 1
    odd = (code & 1) == 1
    match rounding:
        case "nearest_even":
            up = (twice > unit) | ((twice == unit) & odd)
        case "nearest_away":
            up = twice >= unit
        case "nearest_toward_zero":
            up = twice > unit
        case "toward_zero":
            up = jnp.zeros_like(odd)
        case "toward_positive":
            up = (rest != 0) & (sign == 0)
        case "toward_negative":
            up = (rest != 0) & (sign != 0)
        case "to_odd":
            up = (rest != 0) & ~odd
        case _:
            assert words is not None
            down = jnp.clip(shift - word_bits, 0, 31).astype(jnp.uint32)
            left = jnp.clip(word_bits - shift, 0, 31).astype(jnp.uint32)
            fraction = (rest >> down) << left
            # word + fraction >= 2^r, without the carry out of 32 bits.
            up = words > np.uint32((1 << word_bits) - 1) - fraction
    return up.astype(jnp.uint32)


def _overflow_codes(
    fmt: Format, rounding: str, overflow: str, negative: jax.Array, limit: jax.Array | np.uint32
) -> tuple[jax.Array | np.uint32, jax.Array | np.uint32]:
    """Magnitude codes for finite values past the largest, and for Inf."""
    infinity = fmt.infinity_code
    if overflow == "saturate" or (infinity is None and fmt.nan_code is None):
        return limit, limit
    if overflow == "saturate_finite":
        return limit, limit if infinity is None else np.uint32(infinity)
    beyond = np.uint32(fmt.nan_code or 0) if infinity is None else np.uint32(infinity)
    match rounding:
        case "toward_zero" | "to_odd":
            return limit, beyond
        case "toward_positive":
            return jnp.where(negative, limit, beyond), beyond
        case "toward_negative":
            return jnp.where(negative, beyond, limit), beyond
        case _:
            return beyond, beyond


def _with_sign(code: jax.Array, negative: jax.Array, fmt: Format) -> jax.Array:
    if fmt.encoding == "twos_complement":
        return jnp.where(negative, np.uint32(0) - code, code) & np.uint32(fmt.code_mask)
    if not fmt.signed:
        return code
    signed = jnp.where(negative, code | np.uint32(fmt.sign_mask), code)
    # Where the code of -0 means something else, zero has no sign.
    return jnp.where(code == 0, 0, signed) if fmt.zero == "unsigned" else signed


def _nan(fmt: Format, negative: jax.Array, nan_code: int | None) -> jax.Array | np.uint32:
    if fmt.nan_code is not None:
        sign = fmt.sign_mask if fmt.signed and fmt.nan != "negative_zero" else 0
        return jnp.where(negative, np.uint32(fmt.nan_code | sign), np.uint32(fmt.nan_code))
    if nan_code is not None:
        return np.uint32(nan_code)
    minus_zero = fmt.sign_mask if fmt.zero == "signed" else 0
    return jnp.where(negative, np.uint32(0), np.uint32(minus_zero))


def magnitude_code(codes: jax.Array, fmt: Format) -> jax.Array:
    """The codes without their sign, uint32: of -x what x has."""
    codes = codes.astype(jnp.uint32) & np.uint32(fmt.code_mask)
    if fmt.encoding == "twos_complement":
        negative = (codes & np.uint32(fmt.sign_mask)) != 0
        return jnp.where(negative, np.uint32(1 << fmt.bits) - codes, codes)
    return codes & ~np.uint32(fmt.sign_mask)


def decode_bits(codes: jax.Array, fmt: Format) -> jax.Array:
    """uint32 codes to float32 bits."""
    codes = codes & np.uint32(fmt.code_mask)
    negative = (codes & np.uint32(fmt.sign_mask)) != 0
    code = magnitude_code(codes, fmt)
    value = _decode_finite(code, fmt)
    sign = jnp.where(negative, float32.SIGN, np.uint32(0))
    if fmt.encoding == "sign_magnitude" and fmt.infinity_code is not None:
        value = jnp.where(code == np.uint32(fmt.infinity_code), float32.INFINITY, value)
    if fmt.nan == "negative_zero":
        return jnp.where(negative & (code == 0), float32.QUIET_NAN, sign | value)
    if fmt.nan_code is not None:
        last = fmt.max_code if fmt.infinity_code is None else fmt.infinity_code
        value = jnp.where(code > np.uint32(last), float32.QUIET_NAN, value)
    return sign | value


def _decode_finite(code: jax.Array, fmt: Format) -> jax.Array:
    """Magnitude codes to float32 bits."""
    mantissa_bits = fmt.mantissa_bits
    if fmt.exponent_bits and fmt.bias == 127 and fmt.subnormals:
        # float32's own exponent: also the subnormals are a shift.
        return code << (23 - mantissa_bits)
    field = code >> mantissa_bits
    mantissa = code & np.uint32((1 << mantissa_bits) - 1)
    if fmt.encoding == "twos_complement":
        field, mantissa = jnp.zeros_like(code), code
    hidden = np.uint32(1 << mantissa_bits)
    subnormal = (field == 0) & fmt.subnormals
    significand = jnp.where(subnormal, mantissa, mantissa | hidden)
    exponent = jnp.maximum(field.astype(jnp.int32), int(fmt.subnormals)) - fmt.bias - mantissa_bits
    normalised = lax.bitcast_convert_type(significand.astype(jnp.float32), jnp.uint32)
    if fmt.min_exponent - mantissa_bits >= -126:
        shifted = normalised + (exponent << 23).astype(jnp.uint32)
        return jnp.where(significand == 0, 0, shifted)
    _, own, significand = float32.unpack(normalised)
    return float32.pack(jnp.zeros_like(code), own + exponent, significand << 8)


def narrow(bits: jax.Array, dtype: DTypeLike) -> jax.Array:
    """float32 bits to float32, bfloat16 or float16, rounded to nearest even; overflow gives Inf.

    Done on integers, so that XLA cannot drop the rounding when the value is widened again.
    """
    name = np.dtype(dtype).name
    if name == "float32":
        return float32.from_bits(bits)
    if name not in _INPUTS:
        raise TypeError(f"`dtype` must be float32, bfloat16 or float16, got {name}")
    codes = encode_bits(bits, get_format(name), "nearest_even", "nonsaturating")
    return lax.bitcast_convert_type(codes, jnp.dtype(name))
