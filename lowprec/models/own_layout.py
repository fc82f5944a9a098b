"""The layout `lowprec`: a quantized tensor of any block, whole, in five tensors at most.

NAME.codes holds the codes, packed along the last axis; NAME.scales, NAME.offsets,
NAME.tensor_scale and NAME.transform_state the arrays of a `QTensor` as they are.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from lowprec.models.array_checks import quoted
from lowprec.models.layout_tensors import PACK, UNPACK, Arrays, Read
from lowprec.numerics.packing import packed_bytes
from lowprec.scaling.block import Block
from lowprec.scaling.qtensor import QTensor
from lowprec.scaling.tiles import scales_shape, tile_shape

CODES = ".codes"
_PARTS = ("scales", "offsets", "tensor_scale", "transform_state")


def to_arrays(name: str, q: QTensor) -> dict[str, np.ndarray]:
    """The tensors that keep a quantized tensor, by name."""
    arrays = {name + CODES: np.asarray(PACK(q.codes, q.block.element))}
    for part in _PARTS:
        array = getattr(q, part)
        if array is not None:
            arrays[f"{name}.{part}"] = np.asarray(array)
    return arrays


def from_arrays(arrays: Arrays, name: str, block: Block, shape: tuple[int, ...], axis: int) -> Read:
    """The tensor that `to_arrays` kept.

    Raises:
      ValueError: a tensor is missing, or not of the type and shape that the block gives it.
    """
    keys = {"codes": name + CODES} | {part: f"{name}.{part}" for part in _PARTS}
    found = {part: arrays[key] for part, key in keys.items() if key in arrays}
    wanted = _expected(block, shape, axis)
    if block.tensor_scale != "none" or "tensor_scale" in found:
        size = (1,) * len(shape)
        if block.tensor_scale == "row_amax":
            size = tuple(1 if i == axis % len(shape) else n for i, n in enumerate(shape))
        wanted["tensor_scale"] = (np.dtype(np.float32), size)
    if "offsets" in found:
        wanted["offsets"] = (np.dtype(np.float32), wanted["scales"][1])
    for part, (dtype, size) in wanted.items():
        array: Any = found.get(part)
        if array is None or array.dtype != dtype or array.shape != size:
            is_ = "missing" if array is None else f"{array.dtype} {array.shape}"
            raise ValueError(
                f"tensor {quoted(keys[part])} is {is_}; a {block.name} of shape {shape} along axis "
                f"{axis} needs {dtype} {size}"
            )
    parts = {part: jnp.asarray(found[part]) for part in _PARTS if part in found}
    codes = UNPACK(found["codes"], block.element, shape[-1])
    tensor = QTensor(codes=codes, block=block, axis=axis, **parts)
    return Read(name, tensor, tuple(keys[part] for part in found))


def _expected(
    block: Block, shape: tuple[int, ...], axis: int
) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    scales = scales_shape(shape, tile_shape(block, shape, axis))
    kind = block.scale_format.code_dtype if block.scale_format.bits <= 8 else np.dtype(np.float32)
    packed = (*shape[:-1], packed_bytes(shape[-1], block.element.bits))
    return {"codes": (np.dtype(np.uint8), packed), "scales": (kind, scales)}
