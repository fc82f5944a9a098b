"""What is asked of an array that a user hands in, and the one-line messages when it fails.

Tensor names come from files that others wrote, so a message never prints one raw: a name with
control characters would break the promise of one line.
"""

import jax.numpy as jnp
import numpy as np

FLOAT64_ADVICE = "convert to float32 first, so that rounding happens where you see it"


def quoted(name: str) -> str:
    """`name` in backticks, on one line and no longer than 200 characters.

    Example:
        >>> quoted("layer.x")
        '`layer.x`'
    """
    printable = name if name.isprintable() else repr(name)[1:-1]
    return f"`{printable if len(printable) <= 200 else printable[:197] + '...'}`"


def is_float(dtype: np.dtype) -> bool:
    """Whether `dtype` is a real float of numpy or ml_dtypes, of any width."""
    return bool(jnp.issubdtype(dtype, jnp.floating))


def check_operand_dtype(name: str, array: np.ndarray) -> None:
    """Accept a float of 32 bits or fewer.

    Raises:
        TypeError: `array` is wider than 32 bits, an integer, a bool, complex or an object array.

    Example:
        >>> check_operand_dtype("x", np.zeros(3))
        Traceback (most recent call last):
            ...
        TypeError: tensor `x` is float64: convert to float32 first, so that rounding happens \
where you see it
    """
    if not is_float(array.dtype):
        raise TypeError(
            f"tensor {quoted(name)} is {array.dtype}, not a float; pass the values themselves, "
            "as float32, float16, bfloat16 or a narrower float"
        )
    if array.dtype.itemsize > 4:
        raise TypeError(f"tensor {quoted(name)} is {array.dtype}: {FLOAT64_ADVICE}")


def check_values(name: str, array: np.ndarray) -> None:
    """Accept an array that has elements, all of them finite.

    Raises:
        ValueError: `array` is empty, or holds NaN or Inf; the message counts them and says where
            the first one stands.
    """
    if array.size == 0:
        raise ValueError(f"tensor {quoted(name)} is empty: its shape is {array.shape}")
    finite = np.isfinite(array)
    if finite.all():
        return
    nan_count = int(np.isnan(array).sum())
    inf_count = int(array.size - finite.sum()) - nan_count
    first = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), array.shape))
    raise ValueError(
        f"tensor {quoted(name)} holds {nan_count} NaN and {inf_count} Inf among {array.size} "
        f"elements, the first at index {first}; only finite values can be compared"
    )
