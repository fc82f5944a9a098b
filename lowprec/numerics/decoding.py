"""Codes of a format to values, on integers: exact, whatever the compiler does to floats."""

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.numerics import float32, table
from lowprec.numerics.format import Format


def magnitude_code(codes: jax.Array, fmt: Format) -> jax.Array:
    """The codes without their sign, uint32: of -x what x has. Not for a table."""
    codes = codes.astype(jnp.uint32) & np.uint32(fmt.code_mask)
    if fmt.encoding == "twos_complement":
        negative = (codes & np.uint32(fmt.sign_mask)) != 0
        return jnp.where(negative, np.uint32(1 << fmt.bits) - codes, codes)
    return codes & ~np.uint32(fmt.sign_mask)


def at_limit(codes: jax.Array, fmt: Format) -> jax.Array:
    """Whether codes stand for a signed format's largest or lowest value, or for no finite one.

    Of an unsigned format the lowest, 0, is no limit.
    """
    if fmt.table is None and fmt.encoding == "twos_complement":
        codes = codes.astype(jnp.uint32) & np.uint32(fmt.code_mask)
        return (codes == np.uint32(fmt.max_code)) | (codes == np.uint32(fmt.min_code))
    if fmt.table is None:
        return magnitude_code(codes, fmt) >= np.uint32(fmt.max_code)
    limits = [not fmt.min < x < fmt.max for x in fmt.table]
    return jnp.take(jnp.array(limits), codes.astype(jnp.uint32), mode="clip")


def decode_bits(codes: jax.Array, fmt: Format) -> jax.Array:
    """uint32 codes to float32 bits."""
    codes = codes & np.uint32(fmt.code_mask)
    if fmt.table is not None:
        return table.decode(codes, fmt)
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


def decode_number(codes: jax.Array, fmt: Format) -> float32.Number:
    """uint32 codes to numbers, exact also where float32 has no such exponent."""
    codes = codes & np.uint32(fmt.code_mask)
    if fmt.table is not None:
        return float32.number(table.decode(codes, fmt))
    bits = decode_bits(codes, fmt)
    exponent, significand = _exponent_and_significand(magnitude_code(codes, fmt), fmt)
    _, own, significand = float32.unpack(float32.integer_bits(significand))
    size = bits & float32.MAGNITUDE
    # Inf is a value's only where the format has it: a value above float32's range decodes to Inf.
    infinite = jnp.zeros(codes.shape, bool)
    if fmt.infinity_code is not None:
        infinite = magnitude_code(codes, fmt) == np.uint32(fmt.infinity_code)
    return float32.Number(
        bits & float32.SIGN, own + exponent, significand, infinite, size > float32.INFINITY
    )


def _exponent_and_significand(code: jax.Array, fmt: Format) -> tuple[jax.Array, jax.Array]:
    """A magnitude's code as an integer significand and the exponent of its unit."""
    mantissa_bits = fmt.mantissa_bits
    field = code >> mantissa_bits
    mantissa = code & np.uint32((1 << mantissa_bits) - 1)
    if fmt.encoding == "twos_complement":
        field, mantissa = jnp.zeros_like(code), code
    subnormal = (field == 0) & fmt.subnormals
    significand = jnp.where(subnormal, mantissa, mantissa | np.uint32(1 << mantissa_bits))
    exponent = jnp.maximum(field.astype(jnp.int32), int(fmt.subnormals)) - fmt.bias - mantissa_bits
    return exponent, significand


def _decode_finite(code: jax.Array, fmt: Format) -> jax.Array:
    """Magnitude codes to float32 bits."""
    mantissa_bits = fmt.mantissa_bits
    if 0 < fmt.exponent_bits <= 8 and fmt.bias == 127 and fmt.subnormals:
        # float32's own exponent: also the subnormals are a shift.
        return code << (23 - mantissa_bits)
    exponent, significand = _exponent_and_significand(code, fmt)
    normalised = float32.integer_bits(significand)
    top = (1 << fmt.exponent_bits) - 1 - fmt.bias if fmt.exponent_bits else fmt.min_exponent
    if fmt.min_exponent - mantissa_bits >= -126 and top <= 127:
        shifted = normalised + (exponent << 23).astype(jnp.uint32)
        return jnp.where(significand == 0, 0, shifted)
    _, own, significand = float32.unpack(normalised)
    return float32.pack(jnp.zeros_like(code), own + exponent, significand << 8)
