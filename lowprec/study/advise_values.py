"""What matrices become under many blocks, for a choice among them: few programs, all bits kept.

Compiling a quantizer takes longer than running it. A matrix is taken apart into pieces of one
shape, so that a block is compiled once whatever it is that it quantizes; what a scale spans beyond
a piece is measured before.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.gemm.operand import mean_amax
from lowprec.gemm.recipe import takes_amax
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block
from lowprec.scaling.cast import cast
from lowprec.scaling.quantize import quantize

PIECE = (256, 512)
"""Rows and columns of a piece; columns run along the contraction axis."""


def values(x: NDArray, target: Format | Block, axis: int) -> NDArray[np.float32]:
    """What a matrix is after quantizing it along an axis and back, as `lowprec.quantize` has it.

    Args:
      x: a matrix of float32, bfloat16 or float16.
      target: a format, or a block that draws no random numbers.
      axis: the contraction axis, -1 or -2.

    Returns:
      float32 of x's shape; a transform is undone.

    Example:
      >>> from lowprec.scaling.block import get_block
      >>> values(np.array([[1.0, 3.1, -7.0]], np.float32), get_block("mxfp4"), -1).tolist()
      [[1.0, 3.0, -6.0]]
    """
    wide = x.astype(np.float32)
    turned = np.ascontiguousarray(wide if axis == -1 else wide.T)
    found = _in_pieces(turned, target) if in_pieces(target) else _whole(turned, target)
    return found if axis == -1 else found.T


def in_pieces(target: Format | Block) -> bool:
    """Whether pieces of a matrix become what they do in the matrix, given what scales span it."""
    if isinstance(target, Format):
        return True
    spans = "all" in target.tile or target.tensor_scale != "none"
    if spans and (target.coding != "scaled" or target.transform is not None):
        return False
    if target.tile[0] == "all" and target.tile[1] != "all":
        return False
    if target.coding == "affine" and target.transform is not None:
        return False
    sizes = [size for size in target.tile if size != "all"]
    if target.transform is not None:
        if not target.transform.size:
            return False
        sizes.append(target.transform.size)
    return all(PIECE[1] % size == 0 and PIECE[0] % size == 0 for size in sizes)


def _in_pieces(x: NDArray[np.float32], target: Format | Block) -> NDArray[np.float32]:
    rows, columns = PIECE
    amax = _spanning_amax(x, target)
    missing = [(0, -size % piece) for size, piece in zip(x.shape, PIECE, strict=True)]
    # A zero may lie beyond a tile's other numbers, and widen it; a number that it has does not.
    affine = isinstance(target, Block) and target.coding == "affine"
    filled = np.pad(x, missing, mode="edge" if affine else "constant")
    if amax is not None and amax.shape[0] > 1:
        amax = np.pad(amax, [(0, filled.shape[0] - x.shape[0]), (0, 0)])
    out = np.empty_like(filled)
    for top, left in _places(filled.shape):
        own = amax if amax is None or amax.shape[0] == 1 else amax[top : top + rows]
        piece = filled[top : top + rows, left : left + columns]
        out[top : top + rows, left : left + columns] = _values(piece, own, target)
    return out[: x.shape[0], : x.shape[1]]


def _places(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    for top in range(0, shape[0], PIECE[0]):
        for left in range(0, shape[1], PIECE[1]):
            yield top, left


def _spanning_amax(x: NDArray[np.float32], target: Format | Block) -> NDArray[np.float32] | None:
    """What scales are made for where they span more than a piece: (1, 1) or (rows, 1)."""
    if isinstance(target, Format):
        return None
    if takes_amax(target):
        return np.asarray(mean_amax(jnp.asarray(x), target, -1)).reshape(-1, 1)
    if target.tile == ("all", "all") or target.tensor_scale == "amax":
        return np.abs(x).max(keepdims=True)
    if "all" in target.tile or target.tensor_scale == "row_amax":
        return np.abs(x).max(1, keepdims=True)
    return None


def _whole(x: NDArray[np.float32], target: Format | Block) -> NDArray[np.float32]:
    """A matrix quantized as it is, with zeros up to whole blocks of a transform."""
    assert isinstance(target, Block)
    size = target.transform.size if target.transform is not None else 0
    missing = -x.shape[1] % size if size else 0
    filled = np.pad(x, [(0, 0), (0, missing)])
    amax = mean_amax(jnp.asarray(filled), target, -1)
    return np.asarray(_values(filled, amax, target))[:, : x.shape[1]]


@functools.partial(jax.jit, static_argnames="target")
def _values(x: jax.Array, amax: jax.Array | None, target: Format | Block) -> jax.Array:
    if isinstance(target, Format):
        return cast(x, target, overflow="nonsaturating" if target.has_inf else "saturate")
    return quantize(x, target, amax=amax).dequantize()
