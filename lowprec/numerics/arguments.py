"""Checks of arguments that the functions on arrays share."""

import functools
import reprlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lowprec.numerics import dlpack
from lowprec.numerics.rounding import ROUNDINGS, check_choice, is_stochastic

FLOATS = ("float32", "bfloat16", "float16")


def x64() -> bool:
    """Whether JAX keeps float64."""
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64


def float_array(argument: str, x: ArrayLike, *, float64: bool = False) -> jax.Array:
    """`x` as a JAX array; TypeError unless it is float32, bfloat16 or float16.

    float64 passes where it may and JAX keeps it: without x64 it would be rounded twice, unseen.
    A Python number or list has no type: it is float64 where that passes, else rounded to float32.
    Another library's array, a PyTorch tensor say, is copied; its gradient ends there.
    """
    if dlpack.is_foreign(x):
        x = dlpack.imported(argument, x)
    given = getattr(x, "dtype", None)
    if given is None:
        x = given_array = np.asarray(x)
        if np.issubdtype(given_array.dtype, np.floating):
            return jnp.asarray(given_array, jnp.float64 if float64 and x64() else jnp.float32)
        given = given_array.dtype
    name = np.dtype(given).name
    if name == "float64" and float64 and x64():
        return jnp.asarray(x)
    if name not in FLOATS:
        hint = "convert it first, so that its rounding happens where you see it"
        if name == "float64" and float64:
            hint += "; or switch JAX's x64 on, jax.config.update('jax_enable_x64', True)"
        raise TypeError(
            f"`{argument}` must be {', '.join(FLOATS[:2])} or float16, got {name}; {hint}"
        )
    return jnp.asarray(x)


def whole_number(argument: str, value: Any) -> int:
    """A Python or NumPy integer as an int; TypeError for all else, a bool included."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(
            f"`{argument}` must be an integer, got {value!r} ({type(value).__name__}); use an int"
        )
    return int(value)


def real_array(argument: str, x: ArrayLike) -> jax.Array:
    """Real numbers of any type, rounded to float32; TypeError for all else, a bool included."""
    for leaf in jax.tree.leaves(x):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.integer, jnp.floating)):
            raise TypeError(
                f"`{argument}` = {reprlib.repr(x)} holds {dtype}; use real numbers, such as float32"
            )
    # Too large a number becomes Inf, which the caller refuses in its own words.
    with np.errstate(over="ignore"):
        return jnp.asarray(x, jnp.float32)


def check_random(
    shape: tuple[int, ...],
    rounding: str,
    random_bits: ArrayLike | None,
    random_bit_count: int | None,
) -> tuple[jax.Array | None, int]:
    """Checks a rounding mode with its random words; returns them as uint32, and their width."""
    check_choice("rounding", rounding, ROUNDINGS)
    if not is_stochastic(rounding):
        if random_bits is not None or random_bit_count is not None:
            raise ValueError(
                f"`random_bits` and `random_bit_count` need rounding='stochastic' or one of its "
                f"variants, got {rounding!r}"
            )
        return None, 0
    if random_bits is None:
        raise ValueError(
            f"rounding={rounding!r} needs `random_bits`, an unsigned array of x's shape, such as "
            "jax.random.bits(key, x.shape, 'uint32')"
        )
    words = jnp.asarray(random_bits)
    if not jnp.issubdtype(words.dtype, jnp.unsignedinteger):
        raise TypeError(f"`random_bits` must be an unsigned integer array, got {words.dtype}")
    if words.shape != shape:
        raise ValueError(f"`random_bits` has shape {words.shape}; x has shape {shape}")
    width = words.dtype.itemsize * 8
    if random_bit_count is None:
        count = min(width, 32)
    else:
        count = whole_number("random_bit_count", random_bit_count)
    if not 1 <= count <= min(width, 32):
        raise ValueError(f"`random_bit_count` = {count}; use 1 to {min(width, 32)} ({words.dtype})")
    return words.astype(jnp.uint32) & np.uint32((1 << count) - 1), count


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def undifferentiable(message: str, x: jax.Array) -> jax.Array:
    """The identity; under differentiation a ValueError with the message."""
    return x


@undifferentiable.defjvp
def _undifferentiable_jvp(message: str, primals: Any, tangents: Any) -> Any:
    raise ValueError(message)


def refuse_gradient(function: str, x: jax.Array) -> jax.Array:
    """The identity; under differentiation a ValueError, since codes would give a silent zero."""
    return undifferentiable(
        f"`{function}` has no gradient: its codes are integers, and the gradient would silently be "
        f"zero. Use lowprec.cast(x, ..., grad='straight_through'), or jax.lax.stop_gradient(x)",
        x,
    )


def refuse_gradient_of(argument: str, meaning: str, x: jax.Array) -> jax.Array:
    """The same for another argument than the tensor itself, for which `cast` has no gradient."""
    return undifferentiable(
        f"there is no gradient with respect to `{argument}`, {meaning}: codes are integers, and it "
        f"would silently be zero. Pass jax.lax.stop_gradient({argument})",
        x,
    )
