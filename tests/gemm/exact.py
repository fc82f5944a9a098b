"""A GEMM under a recipe in exact arithmetic: the oracles of quantization and the fp32 engine."""

import dataclasses
import itertools
import math
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from lowprec.engines.oracle import sequential_dot
from lowprec.gemm import OperandPair, Recipe
from lowprec.gemm.operand import random_signs, random_words
from lowprec.gemm.recipe import Role
from lowprec.numerics import Format
from lowprec.numerics import oracle as numbers
from lowprec.numerics.oracle import float32_bits, fused_multiply_add, multiply
from lowprec.scaling import Block, affine_oracle, eden_oracle
from lowprec.scaling import oracle as tensors
from lowprec.scaling import transforms_oracle as transforms

Bits = NDArray[np.uint32]
ONE = float32_bits(1.0)


class ExactOperand(NamedTuple):
    """Vectors along K: bits of elements, of the scale of each, and of each row's tensor scale."""

    elements: Bits
    scales: Bits
    tensor: list[int]


class Drawn(NamedTuple):
    """What a block is given beside an operand's rows."""

    words: Bits | None = None
    signs: list[float] | None = None
    amax: list[float] | None = None


def exact_operand(
    bits: Bits, target: Format | Block, drawn: Drawn, *, turned: bool
) -> ExactOperand:
    """Rows of a, or columns of b as rows, quantized along K; a transform undone unless `turned`."""
    ones = [ONE] * len(bits)
    if isinstance(target, Format):
        return ExactOperand(_plain(bits, target), np.full(bits.shape, ONE, np.uint32), ones)
    if target.transform is None:
        return _quantized(bits, target, drawn)
    vector = drawn.signs
    if vector is None:
        fixed = target.transform.signs
        assert fixed != "given"
        vector = [float(x) for x in fixed or (1,) * target.transform.size]
    rows = transforms.apply_rows(_listed(bits), target.transform, vector)
    plain = dataclasses.replace(target, transform=None)
    inner = _quantized(_bits(rows), plain, drawn)
    if turned:
        return inner
    values = [
        [multiply(multiply(x, s), t) for x, s in zip(row, scales, strict=True)]
        for row, scales, t in zip(
            inner.elements.tolist(), inner.scales.tolist(), inner.tensor, strict=True
        )
    ]
    back = transforms.undo_rows(_listed(np.array(values, np.uint32)), target.transform, vector)
    return ExactOperand(_bits(back), np.full(bits.shape, ONE, np.uint32), ones)


def _plain(bits: Bits, target: Format) -> Bits:
    policy = "nonsaturating" if target.infinity == "ieee" else "saturate"
    values = [
        numbers.decode(
            numbers.encode(float(x), target, rounding="nearest_even", overflow=policy), target
        )
        for x in bits.view(np.float32).ravel()
    ]
    return np.array([float32_bits(float(x)) for x in values], np.uint32).reshape(bits.shape)


def _quantized(bits: Bits, target: Block, drawn: Drawn) -> ExactOperand:
    if target.coding == "affine":
        return _affine(bits, target)
    q = _by_oracle(bits, target, drawn)
    decode = lambda code, fmt: float32_bits(float(numbers.decode(int(code), fmt)))
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
    each = np.broadcast_to(np.asarray(tensor, np.uint32).reshape(-1), len(bits)).tolist()
    return ExactOperand(elements.reshape(bits.shape), spread, each)


def _affine(bits: Bits, target: Block) -> ExactOperand:
    """Values of tiles along rows, which have no scales to be taken apart."""
    rows, columns = target.tile
    assert rows == 1
    length = bits.shape[1] if columns == "all" else int(columns)
    values = [
        [
            value
            for start in range(0, len(row), length)
            for value in affine_oracle.code_tile(row[start : start + length], target).values
        ]
        for row in _listed(bits)
    ]
    ones = np.full(bits.shape, ONE, np.uint32)
    return ExactOperand(_bits(values), ones, [ONE] * len(bits))


def _by_oracle(bits: Bits, target: Block, drawn: Drawn) -> tensors.Quantized:
    if target.eden is not None:
        assert drawn.words is not None
        coded = eden_oracle.code_rows(_listed(bits), target, drawn.words.tolist())
        codes, scales = (np.array(x, np.uint8) for x in (coded.codes, coded.scales))
        return tensors.Quantized(codes, scales, float32_bits(coded.tensor), _bits(coded.values))
    if drawn.amax is None or len(drawn.amax) == 1:
        amax = None if drawn.amax is None else drawn.amax[0]
        return tensors.quantize(bits, target, amax=amax, words=drawn.words)
    each = [
        tensors.quantize(bits[i : i + 1], target, amax=amax) for i, amax in enumerate(drawn.amax)
    ]
    codes, scales, values = (
        np.concatenate([getattr(q, name) for q in each]) for name in ("codes", "scales", "values")
    )
    return tensors.Quantized(codes, scales, None, values)


def _listed(bits: Bits) -> list[list[float]]:
    return np.ascontiguousarray(bits).view(np.float32).astype(float).tolist()


def _bits(rows: list[list[float]]) -> Bits:
    return np.array(rows, np.float32).view(np.uint32)


def exact_copy(bits: Bits, target: Format | Block | None) -> Bits:
    """Rows cast to what another role holds of them, in float32."""
    if target is None:
        return bits
    if isinstance(target, Format):
        return _plain(bits, target)
    return _by_oracle(bits, target, Drawn(amax=_means(bits, target))).values


def _means(bits: Bits, target: Format | Block) -> list[float] | None:
    """The mean magnitude of each tile, for a block that is given its largest numbers."""
    if isinstance(target, Format) or target.amax_source == "measured":
        return None
    sizes = np.abs(bits.view(np.float32)).astype(float)
    rows = sizes.reshape(1, -1) if target.tile[0] == "all" else sizes
    return [transforms.mean(row) for row in rows.tolist()]


def exact_gemm(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    recipe: Recipe,
    role: Role,
    key: jax.Array | None = None,
) -> Bits:
    """The float32 bits of a @ b under a recipe whose engine is fp32; `key` as `gemm` takes it."""
    recipe = recipe.in_role(role)
    pair = recipe.fprop
    a_key, b_key = (None, None) if key is None else jax.random.split(key)
    sides = []
    for x, target, copy, own, axis in (
        (a, pair.a, pair.a_from, a_key, -1),
        (b.T, pair.b, pair.b_from, b_key, -2),
    ):
        rows = np.ascontiguousarray(x).view(np.uint32)
        rows = np.ascontiguousarray(exact_copy(np.ascontiguousarray(rows.T), copy).T)
        amax = _means(rows, target)
        rows = np.pad(rows, [(0, 0), (0, -rows.shape[1] % _whole(pair))])
        shape = rows.shape if axis == -1 else rows.shape[::-1]
        words = None if isinstance(target, Format) else random_words(shape, target, axis, own)
        words = None if words is None else np.asarray(words if axis == -1 else words.T)
        signs = random_signs(target, key)
        drawn = Drawn(words, None if signs is None else np.asarray(signs, float).tolist(), amax)
        sides.append(exact_operand(rows, target, drawn, turned=pair.transforms_cancel))
    left, right = sides
    out = np.zeros((a.shape[0], b.shape[1]), np.uint32)
    for i, j in itertools.product(*map(range, out.shape)):
        total = _entry(left, right, i, j, recipe)
        out[i, j] = multiply(multiply(left.tensor[i], right.tensor[j]), total)
    return out


def _whole(pair: OperandPair) -> int:
    """What K is padded to a multiple of."""
    turned = [x.transform.size for x in (pair.a, pair.b) if isinstance(x, Block) and x.transform]
    return math.lcm(*turned)


def _entry(left: ExactOperand, right: ExactOperand, i: int, j: int, recipe: Recipe) -> int:
    x, y = left.elements[i].tolist(), right.elements[j].tolist()
    x_scales, y_scales = left.scales[i].tolist(), right.scales[j].tolist()
    if recipe.scales == "operands":
        x = list(map(multiply, x, x_scales))
        y = list(map(multiply, y, y_scales))
    whole = ONE if recipe.scales == "operands" else multiply(x_scales[0], y_scales[0])
    if recipe.promote_every is None:
        return multiply(whole, sequential_dot(x, y))
    if recipe.scales != "promotion":
        x_scales, y_scales = ([ONE] * len(x) for x in (x_scales, y_scales))
    total = 0
    for start in range(0, len(x), recipe.promote_every):
        part = slice(start, start + recipe.promote_every)
        partial = sequential_dot(x[part], y[part])
        if recipe.promotion == "multiply_fma":
            total = fused_multiply_add(multiply(partial, x_scales[start]), y_scales[start], total)
            continue
        if recipe.promotion == "multiply_multiply_add":
            partial = multiply(multiply(partial, x_scales[start]), y_scales[start])
            total = fused_multiply_add(ONE, partial, total)
            continue
        scale = multiply(x_scales[start], y_scales[start])
        if recipe.promotion == "fma":
            total = fused_multiply_add(scale, partial, total)
        else:
            total = fused_multiply_add(ONE, multiply(scale, partial), total)
    return total if recipe.scales == "promotion" else multiply(whole, total)
