"""Operands as a ledger reads them, and what quantizing each of them does to the exact product."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from lowprec.gemm.gemm import STATIC, to_prepare
from lowprec.gemm.operand import Operand, prepare_operand, whole_transforms
from lowprec.gemm.recipe import Recipe, Role
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block
from lowprec.scaling.qtensor import QTensor
from lowprec.scaling.tiles import tiles_of
from lowprec.scaling.transforms import apply
from lowprec.study.ledger_exact import Exact, Floats, exact_product

Mask = NDArray[np.bool_]


class Side(NamedTuple):
    """One operand, whole, or the rows (of a) or columns (of b) that are looked at.

    Attributes:
      operand: what `multiply_operands` takes.
      given: as the caller has it, float64.
      turned: the same, or where both operands are turned alike, as its transform leaves it.
      stands: element * scale, exactly, the tensor scale left out.
      tensor: the tensor scale, (1, 1) or one a row or column; ones where there is none.
      clipped, dead: elements that saturate, and those other than zero that become zero.
      gain: the least-squares coefficient of the quantized operand on `turned`, less 1.
    """

    operand: Operand
    given: Floats
    turned: Floats
    stands: Floats
    tensor: Floats
    clipped: Mask
    dead: Mask
    gain: float


def read_sides(
    recipe: Recipe, role: Role, a: jax.Array, b: jax.Array, key: jax.Array | None
) -> tuple[Side, Side]:
    """Both operands of a product, prepared as `gemm` prepares them.

    Raises:
      ValueError: one of them, or what it becomes, is not finite.
    """
    pair = getattr(recipe, role)
    for name, x in (("a", a), ("b", b)):
        _check_finite(f"`{name}`", _wide(x))
    given = [_wide(x) for x in whole_transforms(a, b, pair)]
    sides = []
    for name, x, arguments in zip(
        ("a", "b"), given, to_prepare(recipe, role, a, b, key), strict=True
    ):
        operand, q = _prepare(**arguments)
        target = arguments["target"]
        side = _read(x, operand, q, target, arguments["turned"])
        _check_finite(f"`{name}` in {target.name}", side.stands * side.tensor)
        sides.append(side)
    return sides[0], sides[1]


@functools.partial(jax.jit, static_argnames=STATIC)
def _prepare(**given: Any) -> tuple[Operand, QTensor | None]:
    return prepare_operand(**given)


def _wide(x: Any) -> Floats:
    return np.asarray(x).astype(np.float64)


def _check_finite(what: str, x: Floats) -> None:
    wrong = np.argwhere(~np.isfinite(x))
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        raise ValueError(
            f"{what} is {x[place]} at {place}; an exact account is of finite numbers alone"
        )


def _read(
    given: Floats, operand: Operand, q: QTensor | None, target: Format | Block, turned: bool
) -> Side:
    values = _wide(operand.values)
    whole = np.ones((1, 1))
    tensor = whole if operand.tensor_scale is None else _of_bits(operand.tensor_scale)
    if q is None or not isinstance(target, Block):
        assert isinstance(target, Format)
        clipped = np.abs(given) > target.max
        side = Side(operand, given, given, values, tensor, clipped, given != 0, 0.0)
    elif (target.transform is not None and not turned) or target.coding != "scaled":
        # What a transform mixed when it was undone is neither clipped nor flushed.
        dead = np.full(given.shape, target.transform is None)
        side = Side(operand, given, given, values, tensor, ~np.isfinite(given), dead, 0.0)
    else:
        side = _scaled(given, operand, q, target, tensor)
    dead = side.dead & (side.turned != 0) & (side.stands == 0)
    side = side._replace(dead=dead, clipped=side.clipped & ~dead)
    return side._replace(gain=_gain(side.stands * side.tensor, side.turned))


def _scaled(given: Floats, operand: Operand, q: QTensor, block: Block, tensor: Floats) -> Side:
    """The side of element * scale; clipped is what lies half a step beyond the largest element."""
    before = given
    if block.transform is not None:
        bits = jax.numpy.asarray(given.astype(np.float32).view(np.uint32))
        before = _of_bits(apply(bits, block.transform, q.axis, q.transform_state)[0])
    values = block.element.values
    assert values is not None, "blocks have elements of 16 bits or fewer"
    elements, scales = values[np.asarray(q.codes)], _scales(q, block)
    step = block.element.max - np.max(values[values < block.element.max])
    limit = (block.element.max + step / 2) * scales * tensor
    ends = (elements == block.element.max) | (elements == block.element.min)
    everywhere = np.full(given.shape, True)
    clipped = ends & (np.abs(before) > limit)
    return Side(operand, given, before, elements * scales, tensor, clipped, everywhere, 0.0)


def _scales(q: QTensor, block: Block) -> Floats:
    """The size of every element's scale, without the tensor scale."""
    scales = np.asarray(q.scales)
    if scales.dtype != np.float32:
        values = block.scale_format.values
        assert values is not None, "scales in codes have 8 bits or fewer"
        scales = values[scales]
    spread = np.abs(scales.astype(np.float64))
    for axis, tile in enumerate(tiles_of(q.shape, q.scales.shape, block, q.axis)):
        spread = spread.repeat(tile, axis)
    return spread[: q.shape[0], : q.shape[1]]


def _of_bits(bits: jax.Array) -> Floats:
    return np.asarray(bits).view(np.float32).astype(np.float64)


def _gain(quantized: Floats, x: Floats) -> float:
    """<quantized, x> / <x, x> - 1 in float64: any number serves, the split stays exact."""
    size = float(np.max(np.abs(x), initial=0.0))
    if size == 0.0:
        return 0.0
    ones = x / size
    return float(np.sum((quantized - x) / size * ones) / np.sum(ones * ones))


def at_rows(side: Side, rows: NDArray[np.intp], *, of_b: bool = False) -> Side:
    """Some rows of a, or columns of b, of an operand that was quantized as a whole."""

    def take(x: Any, axis: int) -> Any:
        return x if x is None or x.shape[axis] == 1 else x.take(rows, axis)

    axis = 1 if of_b else 0
    arrays: Any = {
        name: take(x, axis) for name, x in side._asdict().items() if name not in ("operand", "gain")
    }
    operand = Operand(*(take(x, axis) for x in side.operand))
    return side._replace(operand=operand, **arrays)


@dataclasses.dataclass(frozen=True, eq=False)
class Quantized:
    """What the operands alone do: the exact product, that of quantized operands, and the terms."""

    exact: Exact
    product: Exact
    terms: dict[str, Exact]


def operand_terms(a: Side, b: Side) -> Quantized:
    """The exact product of the given operands, of what they stand for, and their difference split.

    Terms are `transform`, `a_gain`, `a_clipping`, `a_dead_zone`, `a_grid`, the same of b, `cross`.
    """
    exact = exact_product(a.given, b.given)
    turned = exact_product(a.turned, b.turned)
    of_a, of_b = Exact.of(a.tensor), Exact.of(b.tensor)
    only_a = exact_product(a.stands, b.turned) * of_a
    only_b = exact_product(a.turned, b.stands) * of_b
    both = exact_product(a.stands, b.stands) * of_a * of_b
    terms = {"transform": turned - exact}
    by_a = lambda x, scaled: _times(exact_product(x, b.turned), of_a if scaled else None)
    by_b = lambda x, scaled: _times(exact_product(a.turned, x), of_b if scaled else None)
    for name, side, product, by in (("a", a, only_a, by_a), ("b", b, only_b, by_b)):
        gain = Exact.of(side.gain)
        whole = gain + Exact.of(1.0)
        terms[f"{name}_gain"] = turned * gain
        clipped = by(side.clipped * side.stands, True)
        terms[f"{name}_clipping"] = clipped - by(side.clipped * side.turned, False) * whole
        terms[f"{name}_dead_zone"] = Exact.of(0.0) - by(side.dead * side.turned, False) * whole
        rest = product - turned
        for part in ("gain", "clipping", "dead_zone"):
            rest = rest - terms[f"{name}_{part}"]
        terms[f"{name}_grid"] = rest
    terms["cross"] = both - only_a - only_b + turned
    return Quantized(exact, both, terms)


def _times(x: Exact, factor: Exact | None) -> Exact:
    return x if factor is None else x * factor
