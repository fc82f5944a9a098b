"""A GEMM under a recipe in exact arithmetic: the oracles of quantization and the fp32 engine."""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowprec.engines.oracle import sequential_dot
from lowprec.gemm import Recipe
from lowprec.numerics import Format
from lowprec.numerics import oracle as numbers
from lowprec.numerics.oracle import float32_bits, fused_multiply_add, multiply
from lowprec.scaling import Block
from lowprec.scaling import oracle as tensors

Bits = NDArray[np.uint32]
ONE = float32_bits(1.0)


class ExactOperand(NamedTuple):
    """Vectors along K: elements, the scale of each element, and the tensor scale, as bits."""

    elements: Bits
    scales: Bits
    tensor: int


def exact_operand(bits: Bits, target: Format | Block) -> ExactOperand:
    """Rows of a, or columns of b as rows, quantized along K."""
    if isinstance(target, Format):
        policy = "nonsaturating" if target.infinity == "ieee" else "saturate"
        values = [
            numbers.decode(
                numbers.encode(float(x), target, rounding="nearest_even", overflow=policy),
                target,
            )
            for x in bits.view(np.float32).ravel()
        ]
        rounded = np.array([float32_bits(float(x)) for x in values], np.uint32)
        return ExactOperand(rounded.reshape(bits.shape), np.full(bits.shape, ONE, np.uint32), ONE)
    q = tensors.quantize(bits, target)
    decode = lambda code, fmt: float32_bits(float(numbers.decode(int(code), fmt)))  # noqa: E731
    elements = np.array([decode(code, target.element) for code in q.codes.ravel()], np.uint32)
    wide = target.scale_format.bits > 8
    scales = np.array(
        [int(x) if wide else decode(x, target.scale_format) for x in q.scales.ravel()], np.uint32
    ).reshape(q.scales.shape)
    rows, columns = (
        size if tile == "all" else tile for size, tile in zip(bits.shape, target.tile, strict=True)
    )
    spread = scales.repeat(rows, axis=0).repeat(columns, axis=1)[: bits.shape[0], : bits.shape[1]]
    tensor = ONE if q.tensor_scale is None else q.tensor_scale
    assert isinstance(tensor, int), "recipes with a scale a row come later"
    return ExactOperand(elements.reshape(bits.shape), spread, tensor)


def exact_gemm(a: NDArray[np.float32], b: NDArray[np.float32], recipe: Recipe, role: str) -> Bits:
    """The float32 bits of a @ b under a recipe whose engine is fp32."""
    pair = getattr(recipe, role)
    left = exact_operand(np.ascontiguousarray(a).view(np.uint32), pair.a)
    right = exact_operand(np.ascontiguousarray(b.T).view(np.uint32), pair.b)
    out = np.zeros((a.shape[0], b.shape[1]), np.uint32)
    for i, j in itertools.product(*map(range, out.shape)):
        total = _entry(left, right, i, j, recipe)
        out[i, j] = multiply(multiply(left.tensor, right.tensor), total)
    return out


def _entry(left: ExactOperand, right: ExactOperand, i: int, j: int, recipe: Recipe) -> int:
    x, y = left.elements[i].tolist(), right.elements[j].tolist()
    x_scales, y_scales = left.scales[i].tolist(), right.scales[j].tolist()
    if recipe.scales == "operands":
        x = list(map(multiply, x, x_scales))
        y = list(map(multiply, y, y_scales))
    if recipe.promote_every is None:
        scale = ONE if recipe.scales == "operands" else multiply(x_scales[0], y_scales[0])
        return multiply(scale, sequential_dot(x, y))
    total = 0
    for start in range(0, len(x), recipe.promote_every):
        part = slice(start, start + recipe.promote_every)
        partial = sequential_dot(x[part], y[part])
        if recipe.promotion == "multiply_multiply_add":
            partial = multiply(multiply(partial, x_scales[start]), y_scales[start])
            total = fused_multiply_add(ONE, partial, total)
            continue
        scale = ONE if recipe.scales == "operands" else multiply(x_scales[start], y_scales[start])
        if recipe.promotion == "fma":
            total = fused_multiply_add(scale, partial, total)
        else:
            total = fused_multiply_add(ONE, multiply(scale, partial), total)
    return total
