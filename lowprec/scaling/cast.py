"""There and back: what a tensor becomes in a number format or a block scaling, with a gradient."""

import typing
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from lowprec.numerics.arguments import float_array
from lowprec.numerics.codec import at_limit, encode, round_to_format, to_bits
from lowprec.numerics.format import Format
from lowprec.numerics.rounding import Overflow, Rounding, check_choice
from lowprec.scaling.block import Block, get_format_or_block
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
      fmt_or_block: a format or a block scaling by name, path or value.
      axis: the contraction axis of a block scaling.
      grad: the gradient with respect to x. `straight_through`: as if the cast were the identity;
        `clipped`: the same, but zero where the result saturates below |x|; `none`: zero.
      rounding: by default nearest even, or the block's.
      overflow, random_bit_count, nan_code: as `encode`; for a format alone.
      random_bits: for `stochastic`, an unsigned array of x's shape.
      amax, signs, smoothing: as `quantize`; for a block alone.

    Returns:
      An array of x's shape and type.

    Raises:
      TypeError: x is not float32, bfloat16 or float16.
      ValueError: an unknown name or mode, or an argument that does not apply.

    Example:
      >>> cast(jnp.array([1.0, 0.3, -1000.0]), "float8_e4m3fn").tolist()
      [1.0, 0.3125, -448.0]
    """
    target = get_format_or_block(fmt_or_block)
    check_choice("grad", grad, typing.get_args(Gradient))
    x = float_array("x", x, float64=isinstance(target, Format))
    fixed, saturated = lax.stop_gradient(x), jnp.zeros((), bool)
    if isinstance(target, Format):
        for name, value in (("amax", amax), ("signs", signs), ("smoothing", smoothing)):
            if value is not None:
                raise ValueError(
                    f"`{name}` needs a block scaling; {target.name} is a number format"
                )
        mode = "nearest_even" if rounding is None else rounding
        policy = "saturate" if overflow is None else overflow
        random = {"random_bits": random_bits, "random_bit_count": random_bit_count}
        y = round_to_format(fixed, target, mode, policy, **random, nan_code=nan_code)
        if grad == "clipped":
            codes = encode(
                fixed, target, rounding=mode, overflow=policy, nan_code=nan_code, **random
            )
            saturated = at_limit(codes, target)
    else:
        for name, value in (
            ("overflow", overflow),
            ("random_bit_count", random_bit_count),
            ("nan_code", nan_code),
        ):
            if value is not None:
                raise ValueError(
                    f"`{name}` is set by the block {target.name}; pass a changed block"
                )
        q = quantize(
            fixed,
            target,
            axis=axis,
            amax=amax,
            rounding=rounding,
            random_bits=random_bits,
            signs=signs,
            smoothing=smoothing,
        )
        y = q.dequantize(x.dtype)
        if grad == "clipped" and (target.coding != "scaled" or target.transform is not None):
            raise ValueError(
                f"`grad` = 'clipped' needs codes that saturate where x does, and the block "
                f"{target.name} has {'a transform' if target.transform else 'another coding'}; use "
                f"'straight_through'"
            )
        saturated = at_limit(q.codes, target.element)
    if grad == "none":
        return y
    if grad == "clipped":
        larger = _magnitude(fixed) > _magnitude(y)
        x = jnp.where(saturated & larger, fixed, x)
    return _straight_through(x, y)


def _magnitude(x: jax.Array) -> jax.Array:
    bits = to_bits(x)
    return bits & np.array((1 << 8 * bits.dtype.itemsize - 1) - 1, bits.dtype)


@jax.custom_jvp
def _straight_through(x: jax.Array, y: jax.Array) -> jax.Array:
    """The value y with the gradient of x; exact, unlike x + stop_gradient(y - x)."""
    return y


@_straight_through.defjvp
def _straight_through_jvp(primals: Any, tangents: Any) -> Any:
    return _straight_through(*primals), tangents[0]
