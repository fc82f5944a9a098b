"""A step's sum, scaled and added in float32 to that of earlier steps, each operation rounded once.

On integers, or many times as fast in floats, where no number on the way can be subnormal, infinite
or NaN: every one is a multiple of the last places of what it is made of, and these are looked at.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.engines import fused_multiply
from lowprec.engines.arithmetic import apart
from lowprec.engines.engine import Engine
from lowprec.gemm.operand import Operand
from lowprec.numerics import float32
from lowprec.numerics.format import get_format

Scale = jax.Array | None


def scale_product(a: Scale, b: Scale, shape: tuple[int, ...]) -> Scale:
    """fl(sa * sb) as float32 bits of a shape; the one that is given; or None."""
    given = [jnp.broadcast_to(x, shape) for x in (a, b) if x is not None]
    if len(given) == 2:
        return float32.multiply(*given)
    return given[0] if given else None


def plus(a: jax.Array, b: jax.Array, in_range: jax.Array | None = None) -> jax.Array:
    """a + b of float32 bits."""
    return _either(in_range, _plus_in_floats, _plus_in_integers, a, b)


def _plus_in_floats(a: jax.Array, b: jax.Array) -> jax.Array:
    return a + b


def _plus_in_integers(a: jax.Array, b: jax.Array) -> jax.Array:
    return float32.fused_multiply_add(jnp.full(a.shape, float32.ONE), a, b)


def scaled(total: jax.Array, a: Scale, b: Scale, in_range: jax.Array | None = None) -> jax.Array:
    """fl(fl(sa * sb) * total) on float32 bits; scales (M, 1) or (1, 1), and (1, N) or (1, 1)."""
    if a is None and b is None:
        return total
    return _either(in_range, _scaled_in_floats, _scaled_in_integers, total, a, b)


def _scaled_in_floats(total: jax.Array, a: Scale, b: Scale) -> jax.Array:
    scale = _float_scale(a, b)
    return total if scale is None else apart(scale * total)


def _scaled_in_integers(total: jax.Array, a: Scale, b: Scale) -> jax.Array:
    scale = scale_product(a, b, total.shape)
    return total if scale is None else float32.multiply(scale, total)


def _float_scale(a: Scale, b: Scale) -> Scale:
    return a if b is None else b if a is None else apart(a * b)


def _either(
    in_range: jax.Array | None,
    by_floats: Callable[..., jax.Array],
    by_integers: Callable[..., jax.Array],
    *given: Scale,
) -> jax.Array:
    """Of float32 bits what floats make of them where these are in range, else what integers do.

    The branches are also what keeps a compiler from working the result out again wherever it is
    used, which took a hundred times as long.
    """
    if in_range is None:
        return by_integers(*given)

    def floats(*given: Scale) -> jax.Array:
        numbers = (x if x is None else float32.from_bits(x) for x in given)
        return float32.to_bits(by_floats(*numbers))

    return lax.cond(in_range, floats, by_integers, *given)


def add_promoted(
    total: jax.Array,
    partial: jax.Array,
    rows: Scale,
    columns: Scale,
    promotion: str,
    in_range: jax.Array | None,
) -> jax.Array:
    """A step's sum added to a total, scaled as the promotion says.

    Args:
      total, partial: (M, N) float32 bits.
      rows, columns: scales, (M, 1) and (1, N) float32 bits, or None.
      promotion: as `Recipe.promotion`.
      in_range: what `within_range` says of the whole product.
    """
    floats, integers = (functools.partial(way, promotion) for way in (add_in_floats, _in_integers))
    return _either(in_range, floats, integers, total, partial, rows, columns)


def _in_integers(
    promotion: str, total: jax.Array, partial: jax.Array, rows: Scale, columns: Scale
) -> jax.Array:
    if promotion == "multiply_multiply_add":
        for scale in (rows, columns):
            if scale is not None:
                partial = float32.multiply(partial, jnp.broadcast_to(scale, partial.shape))
        return _plus_in_integers(total, partial)
    if promotion == "multiply_fma" and rows is not None and columns is not None:
        rows, columns = (jnp.broadcast_to(x, total.shape) for x in (rows, columns))
        return float32.fused_multiply_add(float32.multiply(partial, rows), columns, total)
    scale = scale_product(rows, columns, total.shape)
    if scale is None:
        return _plus_in_integers(total, partial)
    if promotion in ("fma", "multiply_fma"):
        return float32.fused_multiply_add(scale, partial, total)
    return _plus_in_integers(total, float32.multiply(scale, partial))


def add_in_floats(
    promotion: str, total: jax.Array, partial: jax.Array, rows: Scale, columns: Scale
) -> jax.Array:
    """What `add_promoted` does, on float32 numbers that are in range."""
    if promotion == "multiply_multiply_add":
        for scale in (rows, columns):
            partial = partial if scale is None else apart(partial * scale)
        return total + partial
    if promotion == "multiply_fma" and rows is not None and columns is not None:
        return _fused(apart(partial * rows), columns, total)
    scale = _float_scale(rows, columns)
    if scale is None:
        return total + partial
    if promotion in ("fma", "multiply_fma"):
        return _fused(scale, partial, total)
    return total + apart(scale * partial)


def _fused(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    return fused_multiply.multiply_add(fused_multiply.split(a), fused_multiply.split(b), c)


def within_range(left: Operand, right: Operand, engine: Engine, length: int) -> jax.Array | None:
    """Whether floats will do for sums of `length` k and what becomes of them; None if not known.

    Whatever an engine rounds off, its sums are multiples of the last places of its products, and
    totals are of those of what is added to them. They are to be normal numbers, and so is whatever
    is made on the way; what is added is at most so many times the largest product.
    """
    formats = (engine.output, engine.register_format, engine.outer)
    wide = all(x is None or x.exponent_bits >= get_format("float32").exponent_bits for x in formats)
    if not wide or left.block_scales is not None or right.block_scales is not None:
        return None
    depth = left.values.shape[1]
    ends = [_ends(float32.to_bits(x.values)) for x in (left, right)]
    scales = (left.scales, right.scales, left.tensor_scale, right.tensor_scale)
    factors = [_ends(x) for x in scales if x is not None]
    # An Inf stays one however small its partner, and NaN has no size.
    finite = functools.reduce(jnp.logical_and, (high < 128 for _, high in ends + factors))
    place, size = (sum(x) for x in zip(*ends, strict=True))
    place, size = jnp.minimum(place, 0), jnp.maximum(size + _carries(length), 0)
    for low, high in factors:
        # Any of them may be multiplied without the others.
        place, size = place + jnp.minimum(low, 0), size + jnp.maximum(high + 1, 0)
    return finite & (place >= -126) & (size + _carries(-(-depth // length)) < 127)


def _carries(count: int) -> int:
    """By how many powers of two a sum of so many numbers may exceed them, roundings included.

    Of an engine that rounds away from zero roundings could add up; to reach 2^127 they would take
    more steps than any K has.
    """
    return max(count - 1, 0).bit_length() + 2


def _ends(bits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The exponents of the last place and of the largest of float32 numbers, zeros left out.

    128 is the largest of such as are not finite. Without numbers the last place is 127.
    """
    size = bits & float32.MAGNITUDE
    biased = size >> 23
    significand = (size & np.uint32(0x7FFFFF)) | jnp.where(biased == 0, 0, np.uint32(1 << 23))
    trailing = 31 - lax.clz(significand & (~significand + 1))
    places = jnp.maximum(biased, 1).astype(jnp.int32) - 150 + trailing.astype(jnp.int32)
    last = jnp.min(jnp.where(size == 0, 127, places), initial=127)
    return last, (jnp.max(size, initial=0) >> 23).astype(jnp.int32) - 127
