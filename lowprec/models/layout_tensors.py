"""A quantized weight as the named tensors of a checkpoint's form, and back, bit for bit."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lowprec.models.layouts import Form, Layout
from lowprec.numerics.packing import pack, packed_bytes, unpack
from lowprec.scaling.block import Block, get_block
from lowprec.scaling.qtensor import QTensor
from lowprec.scaling.tiles import scales_shape, tile_shape

Arrays = Mapping[str, np.ndarray]
_BYTES = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
}
"""Types of one byte, which codes are written and read as."""
PACK = jax.jit(pack, static_argnums=1)
UNPACK = jax.jit(unpack, static_argnums=(1, 2))
"""Compiled once a shape: a checkpoint has few, and many tensors of each."""
_FLOATS = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}


class Read(NamedTuple):
    """A weight that was found in a file, and the names of the tensors that it took."""

    name: str
    tensor: QTensor
    taken: tuple[str, ...]


def to_arrays(name: str, q: QTensor, layout: Layout) -> dict[str, np.ndarray]:
    """The tensors that keep a weight in a layout, by name.

    Packed codes are filled with the code 0 to whole tiles, and so to whole bytes.

    Raises:
      ValueError: the layout has no form for the block, the contraction axis is not the last, or a
        divisor in float32 cannot give back the tensor scale.
    """
    if q.axis != -1 or len(q.shape) < 2:
        raise ValueError(
            f"tensor {name!r} of shape {q.shape} is contracted along axis {q.axis}; weights of the "
            f"layout {layout.name} are (..., out, in), contracted along the last: quantize the "
            f"transposed weight with axis=-1"
        )
    factors = 0 if q.tensor_scale is None else q.tensor_scale.size
    holding = (x for x in layout.forms if x.holds(q.block) and bool(x.tensor_scale) == factors)
    form = next(holding, None)
    if form is None:
        raise ValueError(
            f"tensor {name!r}: the layout {layout.name} ({layout.title}) holds no block "
            f"{q.block.name}; it holds those decoded as {layout.blocks}, and the layout lowprec "
            f"holds every block"
        )
    arrays = {
        name + form.codes: _packed(np.asarray(q.codes), q.block, form),
        name + form.scales: _scales(np.asarray(q.scales), form),
    }
    if form.tensor_scale:
        factor = np.asarray(q.tensor_scale, np.float32).reshape(())
        kept = factor if form.tensor_scale_is == "factor" else divisor(name, factor)
        arrays[name + form.tensor_scale] = kept.reshape(form.tensor_scale_shape)
    return arrays


def divisor(name: str, factor: np.ndarray) -> np.ndarray:
    """The float32 that 1 is divided by to give a tensor scale, correctly rounded.

    Raises:
      ValueError: there is none: reciprocals of float32 numbers skip some of them.
    """
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        nearest = np.float32(1) / factor
        below, above = (np.nextafter(nearest, np.float32(to)) for to in (-np.inf, np.inf))
        for found in (nearest, below, above):
            if (np.float32(1) / found).tobytes() == factor.tobytes():
                return np.asarray(found, np.float32)
    if np.isnan(factor):
        return np.asarray(factor)
    raise ValueError(
        f"tensor {name!r}: its tensor scale {factor!s} is 1 / x of no float32 x, which is what "
        f"this layout stores; the layouts modelopt and lowprec store the scale itself, and the "
        f"block nvfp4 makes scales that are such reciprocals"
    )


def from_arrays(
    arrays: Arrays,
    name: str,
    form: Form,
    block: Block | None = None,
    shape: tuple[int, ...] | None = None,
) -> Read | None:
    """The weight that tensors of a form make; None where they are not of that form.

    Args:
      arrays: all tensors of a file by name.
      name: of the weight.
      form: whose suffixes, types and shapes the tensors must have.
      block: what it is read as, by default the form's own.
      shape: of the weight where it is known: what it was filled with is then cut off.
    """
    names = [name + form.codes, name + form.scales, *_tensor_scale_name(name, form)]
    if any(key not in arrays for key in names):
        return None
    codes, scales = arrays[names[0]], arrays[names[1]]
    block = get_block(form.block) if block is None else block
    whole = _code_shape(codes, block, form)
    if codes.dtype != _BYTES[form.codes_dtype] or whole is None:
        return None
    shape = whole if shape is None else shape
    if not _fills(shape, whole, block, form):
        return None
    kept = _read_scales(scales, scales_shape(shape, tile_shape(block, shape, -1)), form)
    factor = _read_tensor_scale(arrays, names[2:], form)
    if kept is None or (form.tensor_scale and factor is None):
        return None
    found = _unpacked(codes, whole, block, form)[..., : shape[-1]]
    tensor = QTensor(
        codes=jnp.asarray(found),
        scales=jnp.asarray(kept),
        tensor_scale=None if factor is None else jnp.asarray(factor.reshape((1,) * len(shape))),
        block=block,
    )
    return Read(name, tensor, tuple(names))


def _tensor_scale_name(name: str, form: Form) -> list[str]:
    return [name + form.tensor_scale] if form.tensor_scale else []


def _packed(codes: np.ndarray, block: Block, form: Form) -> np.ndarray:
    if form.packing == "none":
        return codes.view(_BYTES[form.codes_dtype])
    tile = int(block.tile[1])
    tiles = -(-codes.shape[-1] // tile)
    missing = tiles * tile - codes.shape[-1]
    filled = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
    packed = np.asarray(PACK(filled, block.element))
    return packed if form.packing == "last" else packed.reshape(*codes.shape[:-1], tiles, -1)


def _unpacked(packed: np.ndarray, shape: tuple[int, ...], block: Block, form: Form) -> np.ndarray:
    if form.packing == "none":
        return packed.view(np.uint8)
    flat = packed if form.packing == "last" else packed.reshape(*shape[:-1], -1)
    return np.asarray(UNPACK(flat, block.element, shape[-1]))


def _code_shape(codes: np.ndarray, block: Block, form: Form) -> tuple[int, ...] | None:
    """The shape of the codes that a tensor holds; None where it cannot be of the form."""
    if form.packing == "none":
        return codes.shape if codes.ndim >= 2 and codes.size else None
    axes = 2 if form.packing == "last" else 3
    if codes.ndim < axes or not codes.size:
        return None
    tile = int(block.tile[1])
    width = packed_bytes(tile, block.element.bits)
    count, rest = divmod(codes.shape[-1], width)
    if form.packing == "tiles":
        return (*codes.shape[:-2], codes.shape[-2] * tile) if (count, rest) == (1, 0) else None
    # A last, partial tile is possible where another program wrote the file.
    left, odd = divmod(rest * 8, block.element.bits)
    return None if odd else (*codes.shape[:-1], count * tile + left)


def _fills(shape: tuple[int, ...], whole: tuple[int, ...], block: Block, form: Form) -> bool:
    """Whether codes of the shape `whole` are those of a weight of `shape`, in whole tiles."""
    if form.packing == "none" or shape == whole:
        return shape == whole
    tile = int(block.tile[1])
    return (*shape[:-1], -(-shape[-1] // tile) * tile) == whole


def _scales(scales: np.ndarray, form: Form) -> np.ndarray:
    kept = scales.reshape(1) if form.scales_shape == "scalar" else scales
    return kept if form.scales_dtype == "F32" else kept.view(_BYTES[form.scales_dtype])


def _read_scales(scales: np.ndarray, shape: tuple[int, ...], form: Form) -> np.ndarray | None:
    types = {(_BYTES | _FLOATS)[name] for name in (form.scales_dtype, *form.scales_read)}
    if scales.dtype not in types:
        return None
    if form.scales_shape == "scalar":
        if scales.shape not in ((), (1,)):
            return None
        scales = scales.reshape(shape)
    if scales.shape != shape:
        return None
    return scales.astype(np.float32) if form.scales_dtype == "F32" else scales.view(np.uint8)


def _read_tensor_scale(arrays: Arrays, names: list[str], form: Form) -> np.ndarray | None:
    if not names:
        return None
    kept: Any = arrays[names[0]]
    if kept.dtype != np.float32 or kept.shape not in ((), (1,)):
        return None
    if form.tensor_scale_is == "factor":
        return kept
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        return np.asarray(np.float32(1) / kept)
