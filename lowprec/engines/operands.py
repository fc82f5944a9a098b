"""The operands of a product: their formats, their values as float32 bits, and their scales."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from lowprec.engines.engine import Engine
from lowprec.engines.terms import NONE
from lowprec.numerics import float32
from lowprec.numerics.codec import encode_bits
from lowprec.numerics.decoding import decode_bits, decode_number
from lowprec.numerics.format import Format, get_format


class Given(NamedTuple):
    """An operand as a caller gives it, checked.

    Attributes:
      values: float32, each exactly in the format where the engine has input formats and does not
        cut its operands to them itself.
      format: the input format, None where the engine takes any float32.
    """

    values: jax.Array
    format: Format | None


def operand(argument: str, x: ArrayLike, engine: Engine, fmt: str | Format | None) -> Given:
    """An operand in float32, exactly, and the input format that it is read in.

    Raises:
      TypeError: it is not of a float type that float32 holds.
      ValueError: the engine does not take its format, or needs one named, or a value (outside
        `jit`) is none of the format's.
    """
    dtype = np.dtype(getattr(x, "dtype", np.float32))
    if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize > 4:
        raise TypeError(
            f"`{argument}` must be of a float type that float32 holds, got {dtype.name}; "
            f"convert it first, so that its rounding happens where you see it"
        )
    chosen = _format(argument, dtype, engine, fmt)
    if isinstance(x, np.ndarray):
        # Types that XLA does not have are widened here; the rest too, with the same result.
        x = x.astype(np.float32)
    values = jnp.asarray(x, None if isinstance(x, jax.Array) else np.float32)
    if chosen is not None and chosen.dtype is not None and values.dtype == chosen.dtype:
        return Given(values.astype(jnp.float32), chosen)
    values = values.astype(jnp.float32)
    if chosen is None or chosen.name == "float32":
        return Given(values, chosen)
    if engine.truncate_operands:
        return Given(values, chosen)
    _check_values(argument, values, chosen)
    return Given(values, chosen)


def _format(
    argument: str, dtype: np.dtype, engine: Engine, fmt: str | Format | None
) -> Format | None:
    names = [known.name for known in engine.inputs]
    if not names:
        # Any float32 numbers will do; a narrower format makes products exact, and faster.
        known = fmt if fmt is not None else dtype.name
        return get_format(known) if known != "float32" else None
    if fmt is not None:
        found = get_format(fmt)
        if found not in engine.inputs:
            raise ValueError(
                f"`{argument}_format` = {found.name}: engine {engine.name!r} takes "
                f"{', '.join(names)}"
            )
        return found
    for known in engine.inputs:
        if known.dtype == dtype:
            return known
    if len(names) == 1:
        return engine.inputs[0]
    raise ValueError(
        f"engine {engine.name!r} takes {', '.join(names)}, and {dtype.name} does not say which: "
        f"pass `{argument}_format`, or an array of such a type"
    )


def truncated(bits: jax.Array, fmt: Format) -> jax.Array:
    """float32 bits with those that the format has no room for cleared, as hardware does."""
    return bits & np.uint32(0xFFFFFFFF << 23 - fmt.mantissa_bits & 0xFFFFFFFF)


def _check_values(argument: str, values: jax.Array, fmt: Format) -> None:
    """ValueError where a concrete value is none of the format's; under `jit` nothing is checked."""
    if isinstance(values, Tracer):
        return
    # Within a caller's trace a constant may still be a value.
    with jax.ensure_compile_time_eval():
        wrong = np.asarray(_wrong_values(values, fmt))
    if wrong.any():
        first = np.argwhere(wrong)[0]
        value = np.asarray(values)[tuple(first)]
        raise ValueError(
            f"`{argument}` holds {value} at {tuple(int(i) for i in first)}, which {fmt.name} "
            f"does not hold; cast it first: lp.cast({argument}, {fmt.name!r})"
        )


@functools.partial(jax.jit, static_argnames="fmt")
def _wrong_values(values: jax.Array, fmt: Format) -> jax.Array:
    """Which values a format does not hold."""
    bits = float32.to_bits(values)
    codes = encode_bits(bits, fmt, "toward_zero", "saturate_finite")
    wrong = bits != decode_bits(codes.astype(jnp.uint32), fmt)
    if fmt.has_nan:
        wrong &= bits & float32.MAGNITUDE <= float32.INFINITY
    if fmt.zero == "unsigned":
        wrong &= bits != float32.SIGN
    return wrong


class Scales(NamedTuple):
    """Block scales taken apart, (K / block, n).

    Attributes:
      significand: float32 below 2; 0 of a zero.
      exponent: int32, as the format's exponent field reads; of zero a number below all others.
      nan: bool.
    """

    significand: jax.Array
    exponent: jax.Array
    nan: jax.Array


def scale_format(argument: str, scales: Any, engine: Engine) -> Format:
    """The format of scale codes: an ml_dtypes type says which, plain codes are of the first."""
    dtype = np.dtype(getattr(scales, "dtype", np.uint8))
    for known in engine.scale_formats:
        if known.dtype == dtype:
            return known
    if dtype != np.uint8:
        raise TypeError(
            f"`{argument}` must hold uint8 codes of "
            f"{' or '.join(x.name for x in engine.scale_formats)}, got {dtype.name}"
        )
    return engine.scale_formats[0]


def scale_codes(scales: Any) -> jax.Array:
    """Scale codes as uint8."""
    if isinstance(scales, jax.Array):
        if scales.dtype == jnp.uint8:
            return scales
        return jax.lax.bitcast_convert_type(scales, jnp.uint8)
    array = np.asarray(scales)
    return jnp.asarray(array if array.dtype == np.uint8 else array.view(np.uint8))


def take_scales_apart(codes: jax.Array, fmt: Format) -> Scales:
    """Codes of block scales, whose sign bit counts for nothing."""
    x = decode_number(codes.astype(jnp.uint32), fmt)
    exponent = jnp.maximum(x.exponent, fmt.min_exponent)
    field = (127 + x.exponent - exponent).astype(jnp.uint32) << 23
    value = jnp.where(x.significand == 0, 0, field | (x.significand & 0x7FFFFF))
    zero = x.significand == 0
    return Scales(float32.from_bits(value), jnp.where(zero, NONE, exponent), x.nan)
