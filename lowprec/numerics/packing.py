"""Packing codes without gaps: element j occupies bits [j*b, (j+1)*b) of a little-endian stream."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lowprec.numerics.arguments import whole_number
from lowprec.numerics.format import Format, get_format


def pack(codes: ArrayLike, fmt: str | Format, *, axis: int = -1) -> jax.Array:
    """Packs codes of b bits along an axis into bytes.

    Bits of a code above the format's are ignored; a last, partial byte is filled with zeros.

    Args:
      codes: unsigned integers (..., n).
      fmt: a format by name, path or value, of b bits.
      axis: which one n is; the others stay in their places.

    Returns:
      uint8 (..., ceil(n * b / 8)).

    Raises:
      TypeError: `codes` is not an unsigned integer array.
      ValueError: `codes` has no such axis.

    Example:
      >>> pack(jnp.array([1, 2, 3], jnp.uint8), "float4_e2m1fn")
      Array([33,  3], dtype=uint8)
    """
    fmt = get_format(fmt)
    codes = _unsigned("codes", codes)
    axis = _checked_axis(axis, codes)
    if axis != codes.ndim - 1:
        return jnp.moveaxis(pack(jnp.moveaxis(codes, axis, -1), fmt), -1, axis)
    count, width = _group(fmt.bits)
    size = codes.shape[-1]
    groups = _groups_of(count, codes) & np.uint32(fmt.code_mask)
    packed = []
    for byte in range(width):
        first, last = byte * 8 // fmt.bits, min((byte * 8 + 7) // fmt.bits, count - 1)
        parts = [_move(groups[..., j], j * fmt.bits - byte * 8) for j in range(first, last + 1)]
        packed.append(sum(parts[1:], parts[0]) & 0xFF)
    stream = jnp.stack(packed, axis=-1).astype(jnp.uint8)
    stream = stream.reshape(*codes.shape[:-1], groups.shape[-2] * width)
    return stream[..., : packed_bytes(size, fmt.bits)]


def unpack(packed: ArrayLike, fmt: str | Format, size: int, *, axis: int = -1) -> jax.Array:
    """Undoes `pack`: bytes (..., ceil(size * b / 8)) to codes (..., size).

    Args:
      packed: uint8 (..., bytes).
      fmt: a format by name, path or value, of b bits.
      size: how many codes the axis held.
      axis: which one they are packed along.

    Returns:
      Codes (..., size): uint8, uint16 or uint32.

    Raises:
      TypeError: `packed` is not uint8, or `size` is no integer.
      ValueError: `size` is negative, or the axis has another number of bytes than so many codes
        need.

    Example:
      >>> unpack(jnp.array([33, 3], jnp.uint8), "float4_e2m1fn", 3)
      Array([1, 2, 3], dtype=uint8)
    """
    fmt = get_format(fmt)
    packed = _unsigned("packed", packed)
    if packed.dtype != jnp.uint8:
        raise TypeError(f"`packed` must be uint8, got {packed.dtype}")
    if whole_number("size", size) < 0:
        raise ValueError(f"`size` = {size}; it is the number of codes in the last axis, at least 0")
    axis = _checked_axis(axis, packed)
    expected = packed_bytes(size, fmt.bits)
    if packed.shape[axis] != expected:
        raise ValueError(
            f"`packed` has {packed.shape[axis]} bytes in its axis {axis - packed.ndim}; {size} "
            f"codes of {fmt.bits} bits ({fmt.name}) need {expected}"
        )
    count, width = _group(fmt.bits)
    if fmt.bits == 2 and axis == packed.ndim - 1:
        # Four codes side by side in a word, whose bytes they are: each loop reads what lies beside.
        word = packed.astype(jnp.uint32)
        word = (word | word << 6 | word << 12 | word << 18) & np.uint32(0x03030303)
        codes = jax.lax.bitcast_convert_type(word, jnp.uint8)
        return codes.reshape(*packed.shape[:-1], count * expected)[..., :size]
    if width == 1:
        # One fusion, in which XLA makes no array of the parts.
        shifts = np.arange(count, dtype=np.uint8) * np.uint8(fmt.bits)
        shifts = np.expand_dims(shifts, [i for i in range(packed.ndim + 1) if i != axis + 1])
        codes = (jnp.expand_dims(packed, axis + 1) >> shifts) & np.uint8(fmt.code_mask)
        shape = list(packed.shape)
        shape[axis] *= count
        return jax.lax.slice_in_dim(codes.reshape(shape), 0, size, axis=axis)
    if axis != packed.ndim - 1:
        return jnp.moveaxis(unpack(jnp.moveaxis(packed, axis, -1), fmt, size), -1, axis)
    groups = _groups_of(width, packed)
    codes = []
    for j in range(count):
        start = j * fmt.bits
        first, last = start // 8, (start + fmt.bits - 1) // 8
        parts = [_move(groups[..., byte], byte * 8 - start) for byte in range(first, last + 1)]
        codes.append(sum(parts[1:], parts[0]) & np.uint32(fmt.code_mask))
    stream = jnp.stack(codes, axis=-1).reshape(*packed.shape[:-1], groups.shape[-2] * count)
    return stream[..., :size].astype(fmt.code_dtype)


def packed_bytes(size: int, bits: int) -> int:
    """Bytes that `size` codes of `bits` bits occupy."""
    return -(-size * bits // 8)


def _group(bits: int) -> tuple[int, int]:
    """The shortest run of codes that fills whole bytes: codes and bytes in it."""
    count = 8 // math.gcd(8, bits)
    return count, count * bits // 8


def _move(x: jax.Array, distance: int) -> jax.Array:
    """Shifts left by `distance` bits, or right where it is negative."""
    return x << distance if distance >= 0 else x >> -distance


def _groups_of(count: int, x: jax.Array) -> jax.Array:
    """(..., n) as uint32 (..., ceil(n / count), count), filled with zeros."""
    missing = -x.shape[-1] % count
    if missing:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    # The number of groups is spelt out: an empty leading axis leaves -1 undetermined.
    return x.astype(jnp.uint32).reshape(*x.shape[:-1], x.shape[-1] // count, count)


def _checked_axis(axis: int, x: jax.Array) -> int:
    """`axis` counted from the front."""
    if not -x.ndim <= whole_number("axis", axis) < x.ndim:
        raise ValueError(f"`axis` = {axis} is out of range for an array with {x.ndim} axes")
    return axis % x.ndim


def _unsigned(argument: str, x: ArrayLike) -> jax.Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        raise TypeError(f"`{argument}` must be an unsigned integer array, got {x.dtype}")
    if x.ndim == 0:
        raise ValueError(f"`{argument}` needs at least one axis, got a scalar")
    return x
