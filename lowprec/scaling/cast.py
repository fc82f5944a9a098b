"""There and back: what a tensor becomes in a number format or a block scaling, with a gradient."""

import dataclasses
import typing
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from lowprec.numerics import float32, float64
from lowprec.numerics.arguments import float_array
from lowprec.numerics.codec import round_to_format, to_bits
from lowprec.numerics.format import Format
from lowprec.numerics.rounding import Overflow, Rounding, check_choice
from lowprec.scaling.block import Block, get_format_or_block
from lowprec.scaling.qtensor import QTensor
from lowprec.scaling.quantize import quantize

Gradient = Literal["straight_through", "clipped", "none"]


def cast(
    x: ArrayLike,
    fmt_or_block: str | Format | Block,
    *,
    axis: int = -1,
    grad: Gradient = "straight_through",
    rounding: Rounding | None = None,
    overflow: Overflow | None = None,
    random_bits: ArrayLike | None = None,
    random_bit_count: int | None = None,
    nan_code: int | None = None,
    amax: ArrayLike | None = None,
    signs: ArrayLike | None = None,
    smoothing: ArrayLike | None = None,
) -> jax.Array:
    """Rounds a tensor to a format or a block scaling and back to its own type.

    NaN, Inf, -0, subnormals and overflow follow `encode` or `quantize`. A value that x's own type
    cannot hold (65504 in bfloat16) is rounded to it, to nearest even.

    Args:
      x: float32, bfloat16 or float16, any shape; to a format also float64 where JAX has x64 on.
        Python numbers and lists are float64 there; elsewhere they are rounded to float32 first.
      fmt_or_block: a format or a block scaling by name, path or value.
      axis: the contraction axis of a block scaling.
      grad: the gradient with respect to x. `straight_through`: as if the cast were the identity;
        `clipped`: the same, but zero where x lies outside the format's range [min, max], or, in a
        block, outside that range times its tile's scale by more than float32 rounds; `none`: zero.
      rounding: by default nearest even, or the block's.
      overflow, random_bit_count, nan_code: as `encode`; for a format alone.
      random_bits: for `stochastic`, an unsigned array of x's shape.
      amax, signs, smoothing: as `quantize`; for a block alone.

    Returns:
      An array of x's shape and type.

    Raises:
      TypeError: x is not float32, bfloat16 or float16.
      ValueError: an unknown name or mode, or an argument that does not apply; under `jax.grad`, a
        gradient with respect to `amax` or `smoothing`.

    Example:
      >>> cast(jnp.array([1.0, 0.3, -1000.0]), "float8_e4m3fn").tolist()
      [1.0, 0.3125, -448.0]
    """
    target = get_format_or_block(fmt_or_block)
    check_choice("grad", grad, typing.get_args(Gradient))
    x = float_array("x", x, float64=isinstance(target, Format))
    fixed = lax.stop_gradient(x)
    if isinstance(target, Format):
        _refuse_for_format(target, amax=amax, signs=signs, smoothing=smoothing)
        mode = "nearest_even" if rounding is None else rounding
        policy = "saturate" if overflow is None else overflow
        y = round_to_format(
            fixed, target, mode, policy, random_bits, random_bit_count, nan_code=nan_code
        )
        outside = _outside_format(fixed, target) if grad == "clipped" else None
    else:
        _refuse_for_block(
            target, overflow=overflow, random_bit_count=random_bit_count, nan_code=nan_code
        )
        if grad == "clipped":
            _refuse_clipped(target)
        given = {"amax": amax, "signs": signs, "smoothing": smoothing}
        q = quantize(fixed, target, axis=axis, rounding=rounding, random_bits=random_bits, **given)
        y = q.dequantize(x.dtype)
        outside = _outside_tiles(fixed, q) if grad == "clipped" else None
    if grad == "none":
        return y
    return _straight_through(x if outside is None else jnp.where(outside, fixed, x), y)


def _refuse_for_format(target: Format, **given: ArrayLike | None) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"`{name}` needs a block scaling; {target.name} is a number format")


def _refuse_for_block(target: Block, **given: str | int | None) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"`{name}` is set by the block {target.name}; pass a changed block")


def _refuse_clipped(block: Block) -> None:
    """Raises ValueError where a value is not cut off at its tile's scale times an element."""
    for what, there in (
        ("another coding", block.coding != "scaled"),
        ("a transform", block.transform is not None),
        ("corrected scales", block.eden is not None),
    ):
        if there:
            raise ValueError(
                f"`grad` = 'clipped' needs codes that saturate where x does, and the block "
                f"{block.name} has {what}; use 'straight_through'"
            )


def _outside_format(x: jax.Array, fmt: Format) -> jax.Array:
    """Whether numbers lie outside the range from the format's lowest to its largest value."""
    bits = to_bits(x)
    kind = np.float64 if bits.dtype == jnp.uint64 else np.float32
    size, negative, nan = _parts(bits)
    largest = size > _float_bits(fmt.max, kind, up=False)
    if fmt.min < 0:
        lowest = size > _float_bits(-fmt.min, kind, up=False)
        return jnp.where(negative, lowest, largest) & ~nan
    least = _float_bits(fmt.min, kind, up=True)
    below = jnp.where(negative, (size | least) != 0, size < least)
    return (below | (~negative & largest)) & ~nan


def _float_bits(limit: float, kind: Any, *, up: bool) -> np.unsignedinteger:
    """Bits of the float next to a limit that is no smaller (`up`), or no larger."""
    nearest = kind(min(limit, float(np.finfo(kind).max)))
    if up and float(nearest) < limit:
        nearest = np.nextafter(nearest, kind(np.inf))
    if not up and float(nearest) > limit:
        nearest = np.nextafter(nearest, kind(0))
    return nearest.view(np.uint64 if kind is np.float64 else np.uint32)


_SMALLEST_NORMAL = np.uint32(1 << 23)
_ROUNDINGS = np.uint32(8)
"""Units in float32's last place: more than scale, quotient and product are rounded by in all."""


def _outside_tiles(x: jax.Array, q: QTensor) -> jax.Array:
    """Whether numbers lie beyond their tile's scale times the element's lowest or largest value.

    By more than float32's rounding of the scale: a tile's largest number is not cut off by that.
    """
    element = q.block.element
    size, negative, nan = _parts(to_bits(x))
    lowest, largest = np.array([element.min_code, element.max_code], q.codes.dtype)
    ends = dataclasses.replace(q, codes=jnp.where(negative, lowest, largest))
    limit = _parts(to_bits(ends.dequantize()))[0]
    room = jnp.where(limit < _SMALLEST_NORMAL, np.uint32(0), _ROUNDINGS)
    return (size > limit + room) & ~nan


def _parts(bits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the bits of floats: those of the magnitude, whether there is a sign, and if it is NaN."""
    wide = bits.dtype == jnp.uint64
    module = float64 if wide else float32
    size = bits & module.MAGNITUDE
    return size, bits != size, size > module.INFINITY


@jax.custom_jvp
def _straight_through(x: jax.Array, y: jax.Array) -> jax.Array:
    """The value y with the gradient of x; exact, unlike x + stop_gradient(y - x)."""
    return y


@_straight_through.defjvp
def _straight_through_jvp(primals: Any, tangents: Any) -> Any:
    return _straight_through(*primals), tangents[0]
