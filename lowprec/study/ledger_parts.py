"""The parts of K that are summed on their own, and what each of their sums is made of."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from lowprec.engines.aligned import Aligned
from lowprec.engines.trace import aligns, trace
from lowprec.gemm.operand import Operand
from lowprec.gemm.recipe import Recipe, split_of
from lowprec.gemm.summation import least_step, sum_products
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block
from lowprec.study.ledger_exact import Exact, Floats, exact_product
from lowprec.study.ledger_operand import Side

Bits = NDArray[np.uint32]


class Parts(NamedTuple):
    """Sums of parts of K from zero: sum = product + alignment + roundings.

    Attributes:
      bits: float32 bits (parts, M, N).
      product: the exact sums of products.
      alignment: what aligning cut off, zero in engines that do not.
    """

    bits: Bits
    product: Exact
    alignment: Exact


class _Chunk(NamedTuple):
    """Operands of some parts, (parts, M, K) and (parts, K, N), and codes of their block scales.

    The first two are float64, what is multiplied exactly; the others go to the engine.
    """

    a_exact: Floats
    b_exact: Floats
    a: jax.Array
    b: jax.Array
    a_blocks: jax.Array | None
    b_blocks: jax.Array | None


def is_whole(recipe: Recipe) -> bool:
    """Whether all of K is one part."""
    return recipe.promote_every is None and recipe.order == "sequential"


def check_order(recipe: Recipe) -> None:
    """ValueError for a sum whose parts differ between outputs, and are not promoted."""
    if recipe.promote_every is None and recipe.order.startswith("stream_k"):
        raise ValueError(
            f"order = {recipe.order!r} without promote_every cuts K elsewhere in every tile, which "
            f"the ledger does not follow; use split_k.<parts>, or promote_every"
        )


def parts_of(a: Side, b: Side, recipe: Recipe) -> Parts:
    """Sums of all parts in the engine of a recipe, each with what it is made of.

    Raises:
      ValueError: a sum is not finite.
    """
    found = [_summed(chunk, recipe) for chunk in _cut(a, b, recipe)]
    bits = np.concatenate([x.bits for x in found])
    product, alignment = _joined([x.product for x in found]), _joined([x.alignment for x in found])
    return Parts(bits, product, alignment)


def _joined(arrays: list[Exact]) -> Exact:
    unit = min(x.unit for x in arrays)
    return Exact(np.concatenate([x.at_unit(unit).integers for x in arrays]), unit)


def _cut(a: Side, b: Side, recipe: Recipe) -> Iterator[_Chunk]:
    """Both operands by parts, as `lowprec.gemm.summation` cuts them."""
    depth, every = a.given.shape[1], recipe.promote_every
    if every is not None:
        yield _chunk(a, b, recipe, slice(0, depth), -(-depth // every), every)
        return
    _, count = split_of(recipe.order)
    length = least_step(recipe.engine)
    steps = -(-depth // length)
    per_part = depth if is_whole(recipe) else length * -(-steps // count)
    for start in range(0, depth, per_part):
        size = min(per_part, depth - start)
        yield _chunk(a, b, recipe, slice(start, start + size), 1, size)


def _chunk(a: Side, b: Side, recipe: Recipe, k: slice, parts: int, length: int) -> _Chunk:
    """So many parts of `length` k each, of some of K, padded with zeros."""
    every = recipe.engine.scale_block or 1
    blocks = slice(k.start // every, -(-k.stop // every))
    left, right = a.operand, b.operand
    codes = [None if x is None else np.asarray(x) for x in (left.block_scales, right.block_scales)]
    values = [np.asarray(x.values) for x in (left, right)]
    exact = [
        x.astype(np.float64) if c is None else side.stands
        for x, c, side in zip(values, codes, (a, b), strict=True)
    ]
    rows = functools.partial(_rows, part=k, parts=parts, length=length)
    of_blocks = functools.partial(_rows, part=blocks, parts=parts, length=-(-length // every))
    return _Chunk(
        rows(exact[0]),
        rows(exact[1].T).transpose(0, 2, 1),
        jnp.asarray(rows(values[0])),
        jnp.asarray(rows(values[1].T).transpose(0, 2, 1)),
        None if codes[0] is None else jnp.asarray(of_blocks(codes[0])),
        None if codes[1] is None else jnp.asarray(of_blocks(codes[1].T).transpose(0, 2, 1)),
    )


def _rows(x: NDArray[Any], part: slice, parts: int, length: int) -> NDArray[Any]:
    """Some columns of (rows, K) as (parts, rows, length), zero-padded."""
    x = x[:, part]
    x = np.pad(x, [(0, 0), (0, parts * length - x.shape[1])])
    return x.reshape(x.shape[0], parts, length).transpose(1, 0, 2)


def _summed(chunk: _Chunk, recipe: Recipe) -> Parts:
    bits, sums = _run(*chunk[2:], recipe=_plain(recipe))
    check_sums(np.asarray(bits), "a sum over K")
    product = exact_product(chunk.a_exact, chunk.b_exact)
    if sums is None:
        return Parts(np.asarray(bits), product, Exact.of(np.zeros(bits.shape)))
    return Parts(np.asarray(bits), product, _without_start(sums) - product)


def check_sums(bits: Bits, what: str) -> None:
    """ValueError where one of some sums, whose last axes are outputs, is not finite."""
    values = bits.view(np.float32)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        raise ValueError(
            f"the output is not finite: {what} is {values[place]} at {place[-2:]} of the outputs "
            f"looked at; an exact account is of finite numbers alone"
        )


def _without_start(sums: Aligned) -> Exact:
    """What all aligned sums of a part, leaves (parts, sums, M, N), are beyond what they start from.

    Where each started from the last one rounded, that is what was aligned of the products, less
    what was cut off the sums.
    """
    high, low = (np.asarray(x).astype(np.uint64) for x in (sums.high, sums.low))
    aligned = (high << np.uint64(32) | low).view(np.int64)
    total = Exact.total(aligned, np.asarray(sums.unit).astype(np.int64), axis=1)
    added, start = (
        Exact.total_of(np.asarray(x).view(np.float32), axis=1) for x in (sums.added, sums.start)
    )
    return total + added - start


@functools.cache
def _plain(recipe: Recipe) -> Recipe:
    """A recipe of the same engine and formats, for one part."""
    return dataclasses.replace(recipe, promote_every=None, scales="operands", order="sequential")


@functools.partial(jax.jit, static_argnames="recipe")
def _run(
    a: jax.Array,
    b: jax.Array,
    a_blocks: jax.Array | None,
    b_blocks: jax.Array | None,
    recipe: Recipe,
) -> tuple[jax.Array, Aligned | None]:
    """Every part from zero: float32 bits, and in engines that align the sums on the way."""
    engine = recipe.engine
    formats = _known(recipe.fprop.a), _known(recipe.fprop.b)

    def one(part: tuple[jax.Array | None, ...]) -> tuple[jax.Array, Aligned | None]:
        a, b, a_blocks, b_blocks = part
        assert a is not None and b is not None
        left, right = Operand(a, block_scales=a_blocks), Operand(b, block_scales=b_blocks)
        if not aligns(engine):
            return sum_products(left, right, recipe), None
        sums = trace(a, b, engine, formats, (a_blocks, b_blocks))
        if engine.accumulator == "separate":
            return sum_products(left, right, recipe), sums
        return sums.end[-1], sums

    return lax.map(one, (a, b, a_blocks, b_blocks))


def _known(target: Format | Block) -> Format | None:
    """A format that says something of exponents."""
    assert isinstance(target, Format)
    return None if target.name == "float32" else target
