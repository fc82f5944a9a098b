"""Codes and the arrays of other libraries: NumPy with ml_dtypes, JAX's narrow types, PyTorch.

Within lowprec a number is a code, an unsigned integer. These functions are the border: bits go
through unchanged, and nothing is rounded.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from lowprec.numerics import dlpack
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.packing import pack

PAIRS = "float4_e2m1fn_x2"
"""PyTorch's type of two E2M1 numbers a byte."""


def to_codes(x: Any) -> jax.Array:
    """The codes of an array whose type is a number format.

    NaN keeps its bits, -0 its sign. Unsigned integers are codes already.

    Args:
      x: an array of any shape: NumPy's with a type of NumPy or ml_dtypes, JAX's (also traced), or
        PyTorch's (`float4_e2m1fn_x2` holds two elements a byte: the last axis doubles).

    Returns:
      Codes of x's shape: uint8, uint16 or uint32.

    Raises:
      TypeError: the type is no format of the catalogue, such as float64 or bool.

    Example:
      >>> to_codes(np.array([1.0, -0.0, 448.0], jnp.float8_e4m3fn))
      Array([ 56, 128, 126], dtype=uint8)
    """
    if dlpack.is_foreign(x):
        x = dlpack.imported("x", x)
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        raise TypeError(f"`x` is a {type(x).__name__}; pass an array, whose type says its format")
    dtype = np.dtype(dtype)
    if dtype in (np.uint8, np.uint16, np.uint32):
        return jnp.asarray(x)
    fmt = _format_of("x", dtype)
    if isinstance(x, np.ndarray | np.generic):
        # ml_dtypes gives types of fewer bits a byte each; JAX has not all of them.
        codes = np.ascontiguousarray(x).view(fmt.code_dtype).reshape(np.shape(x))
        return jnp.asarray(codes & fmt.code_dtype.type(fmt.code_mask))
    if fmt.bits >= 8:
        return lax.bitcast_convert_type(x, fmt.code_dtype)
    return lax.bitcast_convert_type(x, f"uint{fmt.bits}").astype(fmt.code_dtype)


def from_codes(codes: ArrayLike, fmt: str | Format) -> np.ndarray:
    """Codes as a NumPy array of the type that ml_dtypes or NumPy has for the format.

    Bits above the format's are dropped. Not for use under `jit`, where `decode` gives values.

    Args:
      codes: unsigned integers of any shape.
      fmt: a format by name, path or value.

    Returns:
      An array of `codes`' shape and of `Format.dtype`.

    Raises:
      TypeError: `codes` are no unsigned integers.
      ValueError: there is no such type for the format; codes and `decode` work for all.

    Example:
      >>> from_codes(jnp.array([0x38, 0x7F], jnp.uint8), "float8_e4m3fn").astype(np.float32)
      array([ 1., nan], dtype=float32)
    """
    fmt = get_format(fmt)
    found = np.asarray(codes)
    if not np.issubdtype(found.dtype, np.unsignedinteger):
        raise TypeError(f"`codes` must be an unsigned integer array, got {found.dtype}")
    if fmt.dtype is None:
        raise ValueError(
            f"neither ml_dtypes nor NumPy has a type for {fmt.name}; keep the codes, or take the "
            f"values with lowprec.decode"
        )
    masked = (found & found.dtype.type(fmt.code_mask)).astype(fmt.code_dtype)
    if fmt.bits < 8 and fmt.encoding == "twos_complement":
        # ml_dtypes keeps the sign of a narrow integer in all bits of its byte.
        shift = 8 - fmt.bits
        masked = ((masked << shift).view(np.int8) >> shift).view(np.uint8)
    return masked.view(fmt.dtype)


def from_torch(tensor: Any) -> jax.Array:
    """A copy of a PyTorch tensor as a JAX array of the same type and bits, on its device.

    FP8 types come as JAX's of the same name, through uint8 where DLPack refuses them;
    `float4_e2m1fn_x2` as `float4_e2m1fn`, its last axis twice as long. Gradients end here.
    Functions that take float32, bfloat16 or float16 take a tensor of these too.

    Raises:
      TypeError: `tensor` is no tensor, its type is not JAX's (or 64 bits wide, with x64 off), or
        its device is not JAX's.

    Example:
      >>> from_torch(torch.ones(2, dtype=torch.float8_e5m2))  # doctest: +SKIP
      Array([1, 1], dtype=float8_e5m2)
    """
    if not dlpack.is_foreign(tensor):
        raise TypeError(
            f"`tensor` is a {type(tensor).__name__}, not a PyTorch tensor; NumPy and JAX arrays "
            f"need no conversion"
        )
    return dlpack.imported("tensor", tensor)


def to_torch(x: ArrayLike, fmt: str | Format | None = None) -> Any:
    """A copy of an array as a PyTorch tensor of the same bits, on its device.

    Args:
      x: a JAX or NumPy array, of ml_dtypes' types too; with `fmt`, codes of that format.
        `float4_e2m1fn` becomes `float4_e2m1fn_x2`, two a byte, the first in its lower half.
      fmt: a format by name, path or value, whose type the tensor shall have; without it codes stay
        unsigned integers, which every version of PyTorch takes.

    Returns:
      A tensor of x's shape; of `float4_e2m1fn_x2` the last axis is half as long.

    Raises:
      ImportError: PyTorch is not installed.
      TypeError: PyTorch has no such type: pass codes without `fmt`.
      ValueError: an odd number of 4-bit floats, which do not fill their last byte.

    Example:
      >>> to_torch(jnp.array([0x38], jnp.uint8), "float8_e4m3fn")  # doctest: +SKIP
      tensor([1.], dtype=torch.float8_e4m3fn)
    """
    torch = dlpack.torch()
    if fmt is not None:
        x = from_codes(x, fmt)
    name = np.dtype(getattr(x, "dtype", None) or np.asarray(x).dtype).name
    if name == "float4_e2m1fn":
        return _pairs(torch, to_codes(x))
    wanted = getattr(torch, name, None)
    if wanted is None:
        raise TypeError(
            f"PyTorch {torch.__version__} has no type for {name}; pass the codes, as unsigned "
            f"integers and without `fmt`"
        )
    if name.startswith("float8"):
        # As bytes: not every version takes FP8 by DLPack.
        return _copied(torch, to_codes(x)).view(wanted)
    return _copied(torch, jnp.asarray(x))


def _pairs(torch: Any, codes: jax.Array) -> Any:
    wanted = getattr(torch, PAIRS, None)
    if wanted is None or not codes.ndim or codes.shape[-1] % 2:
        shape = codes.shape
        raise (TypeError if wanted is None else ValueError)(
            f"`x` of shape {shape} does not become torch.{PAIRS}, two elements a byte"
            f"{f' (PyTorch {torch.__version__} lacks it)' if wanted is None else ''}; an even last "
            f"axis does, and lowprec.pack(codes, 'float4_e2m1fn') gives the bytes as uint8"
        )
    return _copied(torch, pack(codes, "float4_e2m1fn")).view(wanted)


def _copied(torch: Any, x: jax.Array) -> Any:
    # A clone: writing into the tensor must not change an array that JAX takes for constant.
    return torch.from_dlpack(x).clone()


def _format_of(argument: str, dtype: np.dtype) -> Format:
    """The format that a type of NumPy or ml_dtypes is."""
    try:
        fmt = get_format(dtype.name)
    except ValueError:
        fmt = None
    if fmt is None or fmt.dtype != dtype:
        raise TypeError(
            f"`{argument}` is {dtype.name}, which is no format of the catalogue; convert it to one "
            f"such as float32, or encode it with lowprec.encode"
        )
    return fmt
