"""Arrays of other libraries, PyTorch's above all, as JAX arrays, without importing any of them.

Both ways copy: a JAX array never changes, and another library's may at any time.
"""

import importlib
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_WIDE = {"float64": "float32", "int64": "int32", "uint64": "uint32"}
"""Types that JAX narrows, unasked, where x64 is switched off."""


def is_foreign(x: Any) -> bool:
    """Whether `x` is another library's array, which hands over its memory by DLPack."""
    own = isinstance(x, jax.Array | np.ndarray | np.generic)
    return not own and hasattr(x, "__dlpack__") and hasattr(x, "dtype")


def type_name(x: Any) -> str:
    """The name of an array's type: `bfloat16` of `torch.bfloat16`."""
    return str(x.dtype).rpartition(".")[-1]


def imported(argument: str, x: Any) -> jax.Array:
    """Another library's array as a JAX array of the same type and bits, on its device.

    A gradient does not flow through. A type that JAX's DLPack refuses and that has 8 bits comes as
    unsigned bytes, which are then read as the type.

    Raises:
      TypeError: JAX has no such type, or would narrow it.
    """
    name = type_name(x)
    if name in _WIDE and jax.dtypes.canonicalize_dtype(name) != np.dtype(name):
        raise TypeError(
            f"`{argument}` is {name}, which JAX would narrow to {_WIDE[name]}; convert it first, "
            f"so that its rounding happens where you see it, or switch JAX's x64 on"
        )
    x = x.detach() if hasattr(x, "detach") else x
    x = x.contiguous() if hasattr(x, "contiguous") else x
    if name == "float4_e2m1fn_x2":
        return _from_pairs(_bytes(x))
    try:
        return _copied(x)
    except Exception as error:  # torch, JAX and DLPack each raise errors of their own
        found = getattr(jnp, name, None)
        if found is None or np.dtype(found).itemsize != 1 or not hasattr(x, "view"):
            raise TypeError(
                f"`{argument}` of type {name} on {getattr(x, 'device', 'its device')} cannot be "
                f"handed to JAX by DLPack ({' '.join(str(error).split())}); move it to the CPU "
                f"with .cpu(), or pass a NumPy array"
            ) from error
        return lax.bitcast_convert_type(_bytes(x), found)


def torch() -> ModuleType:
    """PyTorch, which only those need who pass its tensors or ask for one.

    Raises:
      ImportError: it is not installed.
    """
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise ImportError(
            f'a PyTorch tensor needs PyTorch ({error}): pip install "lowprec[torch]"'
        ) from error


def _bytes(x: Any) -> jax.Array:
    """A PyTorch tensor of one byte an element as uint8."""
    return _copied(x.view(torch().uint8))


def _copied(x: Any) -> jax.Array:
    # JAX 0.10 shares memory also where `from_dlpack` is asked to copy.
    if hasattr(x, "clone"):
        return jnp.from_dlpack(x.clone())
    with jax.ensure_compile_time_eval():
        return jax.block_until_ready(jnp.array(jnp.from_dlpack(x), copy=True))


def _from_pairs(packed: jax.Array) -> jax.Array:
    """Bytes (..., n) to float4_e2m1fn (..., 2 n), the lower half of a byte first."""
    codes = jnp.stack([packed & 0xF, packed >> 4], axis=-1)
    codes = codes.reshape(*packed.shape[:-1], 2 * packed.shape[-1])
    return lax.bitcast_convert_type(codes.astype(jnp.uint4), jnp.float4_e2m1fn)
