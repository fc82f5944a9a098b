"""Matrix products with a named order and precision of summation."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from lowprec.engines.engine import Engine, get_engine
from lowprec.engines.kernels import compute
from lowprec.engines.native import native_product
from lowprec.engines.operands import (
    operand,
    scale_codes,
    scale_format,
    take_scales_apart,
    truncated,
)
from lowprec.engines.register import serves
from lowprec.numerics import float32
from lowprec.numerics.codec import encode_bits
from lowprec.numerics.format import Format
from lowprec.numerics.rounding import is_stochastic

_AT_ONCE = 4096
"""Members of a batch are computed side by side up to so many elements of the result."""


class Inputs(NamedTuple):
    """What `matmul` computes with: float32 operands, and c, scale codes and key or None."""

    a: jax.Array
    b: jax.Array
    c: jax.Array | None
    scales: tuple[jax.Array, jax.Array] | None
    key: jax.Array | None


def matmul(
    a: ArrayLike,
    b: ArrayLike,
    c: ArrayLike | None = None,
    *,
    engine: str | Engine,
    a_format: str | Format | None = None,
    b_format: str | Format | None = None,
    a_scale: ArrayLike | None = None,
    b_scale: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The product a @ b + c as a matrix engine computes it, bit for bit.

    The bits depend on neither M, N nor batching: a row of a and a column of b give the same number
    in any product (but for stochastic rounding, whose words belong to a place in the result). K
    beyond one instruction is a chain of them, the last one padded with zeros. NaN and Inf, zeros,
    subnormals and overflow are as the engine has them: a fused sum is NaN where an operand is, for
    Inf * 0 and for Inf of both signs; it overflows to Inf in every rounding mode, and its zero is
    +0. The gradient is that of the exact product, by a plain float32 product.

    Args:
      a: (..., M, K): numbers that the engine's input format holds exactly, in any float type that
        float32 holds. Outside `jit` a value that is none of the format's is an error; under `jit`
        nothing is checked, and such a value gives a result that no engine would.
      b: (..., K, N), the same; batch axes broadcast.
      c: (..., M, N) or None; rounded to the engine's output format first, to nearest even.
      engine: an engine by name, path or value.
      a_format, b_format: the input formats, where the engine has several and the array's type does
        not say which.
      a_scale: (..., M, ceil(K / block)) codes of the engine's scale format, uint8 or of the
        ml_dtypes type; needed by engines with block scales.
      b_scale: (..., ceil(K / block), N), the same.
      key: a PRNG key for an engine that rounds stochastically.

    Returns:
      (..., M, N) float32, or float16 where that is the engine's output.

    Raises:
      TypeError: an operand is float64 or not a float, or scales are no codes.
      ValueError: shapes that do not fit, an empty operand, an unknown engine, one whose arithmetic
        nobody knows, a format that it does not take, scales or `key` missing or not wanted.

    Example:
      >>> a, b = jnp.array([[1.0, 2**-14]]), jnp.ones((2, 1))
      >>> matmul(a, b, engine="fp32").item()
      1.00006103515625
      >>> matmul(a.astype(jnp.float8_e5m2), b.astype(jnp.float8_e5m2),
      ...        engine="hopper.wgmma.fp8.fp32").item()
      1.0
    """
    engine = get_engine(engine)
    check_computable(engine)
    left = operand("a", a, engine, a_format)
    right = operand("b", b, engine, b_format)
    batch = check_shapes(left.values.shape, right.values.shape)
    m, n = left.values.shape[-2], right.values.shape[-1]
    start = None if c is None else _accumulator(c, batch, (m, n))
    scales = _scales(engine, left.values, right.values, a_scale, b_scale)
    if is_stochastic(engine.output_rounding) != (key is not None):
        raise ValueError(
            f"`key` = {key}: engine {engine.name!r} rounds {engine.output_rounding} and "
            f"{'needs one, such as jax.random.key(0)' if key is None else 'takes none'}"
        )
    formats = (left.format, right.format)
    codes, scale_formats = (None, None) if scales is None else scales
    given = Inputs(left.values, right.values, start, codes, key)
    return _compiled(given, nameless(engine), formats, scale_formats)


@functools.cache
def nameless(engine: Engine) -> Engine:
    """The engine without what does not change a bit: those that compute alike share programs."""
    return dataclasses.replace(engine, name="", evidence=None)


def check_computable(engine: Engine) -> None:
    """ValueError for an engine that says too little, or what no kernel computes."""
    kind, register = engine.accumulation, engine.register_format
    if kind == "unknown":
        raise ValueError(
            f"engine {engine.name!r} cannot multiply: how it sums has not been published; "
            f"describe your guess as an Engine of your own"
        )
    if kind in ("fused", "grouped", "two_step") and not engine.inputs:
        raise ValueError(
            f"engine {engine.name!r}: accumulation = {kind!r} needs inputs, the formats whose "
            f"exponents it aligns"
        )
    if kind in ("fused", "grouped", "two_step", "exact") and not serves(register):
        raise ValueError(
            f"engine {engine.name!r}: sums cannot be rounded to {register.name}, which needs "
            f"subnormals no smaller than 2^-100, at most 8 exponent bits, and a sign and Inf as "
            f"IEEE 754 has them; e8m13 and float16 do"
        )
    plain = kind in ("sequential", "chunked", "tree", "compensated") and not engine.fused_multiply
    reaches = [x for x in (register, engine.outer) if x is not None and x.exponent_bits >= 8]
    if plain and reaches and engine.subnormals == "keep":
        raise ValueError(
            f"engine {engine.name!r}: a register of 8 exponent bits needs subnormals = 'flush': "
            f"sums of {reaches[0].name} below 2^-126 are zeros here"
        )
    stochastic = is_stochastic(engine.output_rounding) and engine.output_rounding != "stochastic"
    if kind == "sequential" and stochastic:
        raise ValueError(
            f"engine {engine.name!r}: output_rounding = {engine.output_rounding!r}; of the "
            f"stochastic modes a 'sequential' sum has 'stochastic' alone"
        )


def _accumulator(c: ArrayLike, batch: tuple[int, ...], shape: tuple[int, int]) -> jax.Array:
    given = _plain("c", c)
    if given.ndim < 2 or given.shape[-2:] != shape:
        raise ValueError(f"`c` has shape {given.shape}; a @ b has shape {(*batch, *shape)}")
    try:
        np.broadcast_shapes(given.shape[:-2], batch)
    except ValueError:
        raise ValueError(
            f"the batch axes of `c` {given.shape} do not broadcast with those of a @ b, "
            f"{(*batch, *shape)}"
        ) from None
    return given


def _plain(argument: str, x: ArrayLike) -> jax.Array:
    dtype = np.dtype(getattr(x, "dtype", np.float32))
    if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize > 4:
        raise TypeError(
            f"`{argument}` must be of a float type that float32 holds, got {dtype.name}; "
            f"convert it first, so that its rounding happens where you see it"
        )
    return jnp.asarray(x, dtype).astype(jnp.float32)


def _scales(
    engine: Engine,
    a: jax.Array,
    b: jax.Array,
    a_scale: ArrayLike | None,
    b_scale: ArrayLike | None,
) -> tuple[tuple[jax.Array, jax.Array], tuple[Format, Format]] | None:
    given = (a_scale, b_scale)
    if engine.scale_block is None:
        if any(x is not None for x in given):
            raise ValueError(
                f"`a_scale` and `b_scale`: engine {engine.name!r} takes no block scales; multiply "
                f"its result by them"
            )
        return None
    if a_scale is None or b_scale is None:
        raise ValueError(
            f"engine {engine.name!r} needs `a_scale` and `b_scale`, codes of "
            f"{' or '.join(x.name for x in engine.scale_formats)} for every {engine.scale_block} k"
        )
    blocks = -(-a.shape[-1] // engine.scale_block)
    wanted = (*a.shape[:-1], blocks), (*b.shape[:-2], blocks, b.shape[-1])
    codes, formats = [], []
    for argument, x, shape in zip(("a_scale", "b_scale"), given, wanted, strict=True):
        formats.append(scale_format(argument, x, engine))
        codes.append(scale_codes(x))
        if codes[-1].shape != shape:
            raise ValueError(f"`{argument}` has shape {codes[-1].shape}; {shape} is needed")
    return (codes[0], codes[1]), (formats[0], formats[1])


def product(
    a: jax.Array,
    b: jax.Array,
    c: jax.Array | None,
    engine: Engine,
    formats: tuple[Format | None, Format | None] = (None, None),
    scales: tuple[jax.Array | None, jax.Array | None] = (None, None),
) -> jax.Array:
    """`matmul` on float32 arrays that fit, of values that the formats hold.

    Block scales are codes of the engine's one scale format, both or none.
    """
    first, second = scales
    if first is None or second is None:
        return _product(Inputs(a, b, c, None, None), engine, formats, None)
    (fmt,) = engine.scale_formats
    return _product(Inputs(a, b, c, (first, second), None), engine, formats, (fmt, fmt))


def _product(
    given: Inputs,
    engine: Engine,
    formats: tuple[Format | None, Format | None],
    scale_formats: tuple[Format, Format] | None,
) -> jax.Array:
    a, b, c = given.a, given.b, given.c
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if c is None:
        c = jnp.zeros((*batch, a.shape[-2], b.shape[-1]), jnp.float32)
    batch = np.broadcast_shapes(batch, c.shape[:-2])
    a, b, c = (jnp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, b, c))
    scales = None
    if given.scales is not None and scale_formats is not None:
        spread = (jnp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in given.scales)
        scales = tuple(
            take_scales_apart(x, fmt) for x, fmt in zip(spread, scale_formats, strict=True)
        )

    @jax.custom_jvp
    def multiplied(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        return _batched(engine, formats, (a, b, c, scales), given.key)

    @multiplied.defjvp
    def _jvp(primals: Any, tangents: Any) -> Any:
        (a, b, _), (da, db, dc) = primals, tangents
        exact = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
        out = multiplied(*primals)
        return out, (exact(da, b) + exact(a, db) + dc).astype(out.dtype)

    return multiplied(a, b, c)


_compiled = jax.jit(_product, static_argnames=("engine", "formats", "scale_formats"))


def _batched(
    engine: Engine, formats: tuple[Format | None, Format | None], operands: Any, key: Any
) -> jax.Array:
    """A stack of products: small ones side by side, large ones one after the other."""
    batch = operands[0].shape[:-2]
    m, n = operands[2].shape[-2:]
    one = functools.partial(_one, engine, formats)
    if not batch:
        return one(operands, key)
    count = math.prod(batch)
    flat = jax.tree.map(lambda x: x.reshape(count, *x.shape[len(batch) :]), operands)
    keys = None if key is None else jax.random.split(key, count)
    together = 1 if engine.accumulation == "native" else max(1, min(count, _AT_ONCE // (m * n)))
    if together == 1:
        out = lax.map(lambda x: one(*x), (flat, keys))
        return out.reshape(*batch, m, n)
    rounds = -(-count // together)

    def cut(x: jax.Array) -> jax.Array:
        # The first member fills up the last round: unlike zeros, no new case for a compiler.
        filled = jnp.concatenate(
            [x, jnp.broadcast_to(x[:1], (rounds * together - count, *x.shape[1:]))]
        )
        return filled.reshape(rounds, together, *x.shape[1:])

    out = lax.map(lambda x: jax.vmap(one)(*x), jax.tree.map(cut, (flat, keys)))
    return out.reshape(-1, m, n)[:count].reshape(*batch, m, n)


def _one(
    engine: Engine, formats: tuple[Format | None, Format | None], operands: Any, key: Any
) -> jax.Array:
    a, b, c, scales = operands
    if engine.accumulation == "native":
        return native_product(engine, a, b, c)
    if scales is not None:
        first, second = scales
        scales = (jax.tree.map(jnp.transpose, first), second)
    a_bits, b_bits, c_bits = (float32.to_bits(x) for x in (a.T, b, c))
    if engine.truncate_operands:
        a_bits, b_bits = (
            x if fmt is None else truncated(x, fmt)
            for x, fmt in zip((a_bits, b_bits), formats, strict=True)
        )
    bits = compute(engine, formats, a_bits, b_bits, c_bits, scales, key)
    return _as_output(engine, bits)


def _as_output(engine: Engine, bits: jax.Array) -> jax.Array:
    if engine.output.name == "float32":
        return float32.from_bits(bits)
    codes = encode_bits(bits, engine.output, "nearest_even", "nonsaturating")
    # An engine's NaN keeps all the bits that it has in the narrow format.
    nan = bits & float32.MAGNITUDE > float32.INFINITY
    shift = 23 - engine.output.mantissa_bits
    payload = (bits >> shift & np.uint32((1 << engine.output.mantissa_bits) - 1)).astype(
        codes.dtype
    )
    infinity = np.asarray(engine.output.infinity_code, codes.dtype)
    return lax.bitcast_convert_type(jnp.where(nan, infinity | payload, codes), jnp.float16)


def check_shapes(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The batch shape of a product; ValueError where a @ b is not one."""
    fits = len(a) >= 2 and len(b) >= 2 and a[-1] == b[-2]
    if not fits:
        raise ValueError(
            f"`a` of shape {a} and `b` of shape {b} do not multiply; "
            f"(..., M, K) x (..., K, N) is needed"
        )
    if 0 in a or 0 in b:
        raise ValueError(f"an operand is empty: `a` has shape {a}, `b` has shape {b}")
    try:
        return np.broadcast_shapes(a[:-2], b[:-2])
    except ValueError:
        raise ValueError(f"the batch axes of `a` {a} and `b` {b} do not broadcast") from None
