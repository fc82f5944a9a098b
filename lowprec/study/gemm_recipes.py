"""Every recipe of the catalogue on the same products: the error that quantizing operands leaves.

Operands are quantized as a role of the recipe says; what they become is multiplied exactly, in
float64. Engines, where scales are applied and the output's type are left out: what they add is in
`lowprec.ledger`. Recipes that quantize alike are measured once.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from lowprec.gemm.operand import random_signs, random_words
from lowprec.gemm.recipe import OperandPair, Recipe, Role, draws
from lowprec.metrics import measure
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block
from lowprec.scaling.quantize import quantize
from lowprec.study.advise_values import in_pieces, values
from lowprec.study.gemm_recipes_operands import Group, Pair, plain

SHARED = 1024
"""The size that small matrices are given, so that they share programs."""
_QUICK = {"xla_backend_optimization_level": 0}
"""Compiled in half the time, to the same bits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitRow:
    """One product under one way to quantize its operands, against their product as they stand.

    `pair` names the first recipe that quantizes so; `product_error` is the squared error of an
    output over K, which for operands of variance 1 is relative to its expected square.
    """

    family: str
    role: str
    k: int
    unit: str
    pair: str
    sqnr_db: float
    gain: float
    residual_sqnr_db: float
    product_error: float


class Treatment(NamedTuple):
    """What becomes of an operand: the block or format, and the copy that it starts from."""

    target: Format | Block
    copy: Format | Block | None


def left_out(recipe: Recipe) -> str:
    """Why a recipe cannot be run on operands alone; empty where it can."""
    if recipe.prepare is not None:
        return "prepared"
    return "delayed" if recipe.takes_history else ""


def treatments(pair: OperandPair) -> tuple[Treatment, Treatment]:
    """What becomes of both operands, whatever their blocks are called."""
    return (
        Treatment(_nameless(pair.a), pair.a_from and _nameless(pair.a_from)),
        Treatment(_nameless(pair.b), pair.b_from and _nameless(pair.b_from)),
    )


def _nameless(target: Format | Block) -> Format | Block:
    return dataclasses.replace(target, name="block") if isinstance(target, Block) else target


def alike(recipes: Sequence[Recipe], role: Role) -> dict[tuple[Treatment, Treatment], list[str]]:
    """The names of recipes that quantize alike in a role, by what they do.

    Example:
      >>> from lowprec.gemm.recipe import get_recipe
      >>> found = alike([get_recipe(x) for x in ("mxfp4", "mxfp4_exact", "nvfp4")], "fprop")
      >>> list(found.values())
      [['mxfp4', 'mxfp4_exact'], ['nvfp4']]
    """
    found: dict[tuple[Treatment, Treatment], list[str]] = {}
    for recipe in recipes:
        found.setdefault(treatments(getattr(recipe, role)), []).append(recipe.name)
    return found


def measure_group(
    group: Group, recipes: Sequence[Recipe], outputs: int, done: set[str]
) -> Iterator[list[UnitRow]]:
    """The rows of a group, those of one way to quantize at a time.

    Args:
      group: of products.
      recipes: none of which is `left_out`.
      outputs: rows and columns of a product that are looked at, drawn with a fixed seed.
      done: names of ways that are not measured again.
    """
    ways = [(way, names[0]) for way, names in alike(recipes, group.role).items()]
    ways = [(way, name) for way, name in ways if name not in done]
    if not ways:
        return
    pairs = group.pairs()
    places = [_drawn(pair, outputs) for pair in pairs]
    exact = [
        _product(x.a[rows], x.b[columns]) for x, (rows, columns) in zip(pairs, places, strict=True)
    ]
    second: dict[Treatment, list[NDArray[np.float32]]] = {}
    ways.sort(key=lambda way: repr(way[0][0]))
    first: tuple[Treatment, list[NDArray[np.float32]]] | None = None
    for (of_a, of_b), name in ways:
        if first is None or first[0] != of_a:
            first = (
                of_a,
                [
                    quantized(x.a, of_a, i, 0)[rows]
                    for i, (x, (rows, _)) in enumerate(zip(pairs, places, strict=True))
                ],
            )
        if of_b not in second:
            second[of_b] = [
                quantized(x.b, of_b, i, 1)[columns]
                for i, (x, (_, columns)) in enumerate(zip(pairs, places, strict=True))
            ]
        yield [
            _row(group, pair, name, _product(a, b), y)
            for pair, a, b, y in zip(pairs, first[1], second[of_b], exact, strict=True)
        ]


def _drawn(pair: Pair, outputs: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    rng = np.random.default_rng(0)
    counts = pair.a.shape[0], pair.b.shape[0]
    rows, columns = (np.sort(rng.choice(n, min(n, outputs), replace=False)) for n in counts)
    return rows, columns


def _product(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    return a.astype(np.float64) @ b.astype(np.float64).T


def _row(group: Group, pair: Pair, name: str, y: NDArray, exact: NDArray) -> UnitRow:
    found = measure(y, exact)
    return UnitRow(
        family=group.family,
        role=group.role,
        k=pair.a.shape[1],
        unit=pair.unit,
        pair=name,
        sqnr_db=found.sqnr_db,
        gain=found.gain,
        residual_sqnr_db=found.residual_sqnr_db,
        product_error=float(np.mean((y - exact) ** 2)) / pair.a.shape[1],
    )


def quantized(x: NDArray[np.float32], how: Treatment, unit: int, side: int) -> NDArray[np.float32]:
    """What an operand of a product stands for after it is quantized; a transform is undone.

    Args:
      x: (vectors, K) float32, each a bfloat16 number.
      how: what becomes of it.
      unit, side: which product's, and 0 for its first operand, 1 for its second: they say which
        random words round it. Signs of a transform are the same for both operands.

    Example:
      >>> from lowprec.scaling.block import get_block
      >>> x = np.array([[1.0, 3.1, -7.0]], np.float32)
      >>> quantized(x, Treatment(get_block("mxfp4"), None), 0, 0).tolist()
      [[1.0, 3.0, -6.0]]
    """
    if how.copy is not None:
        x = plain(values(x, how.copy, -2))
    random = isinstance(how.target, Block) and draws(how.target)
    if random or not in_pieces(how.target):
        assert isinstance(how.target, Block)
        return _whole(x, how.target, jax.random.fold_in(jax.random.key(0), unit), side)
    return values(x, how.target, -1)


def _whole(x: NDArray[np.float32], block: Block, key: jax.Array, side: int) -> NDArray[np.float32]:
    """A matrix quantized in one piece, with zeros up to a size that others share.

    Zeros change no scale: blocks of means are no candidates.
    """
    small = max(x.shape) <= SHARED
    shape = (SHARED, SHARED) if small else (x.shape[0], -(-x.shape[1] // SHARED) * SHARED)
    filled = np.pad(x, [(0, size - own) for size, own in zip(shape, x.shape, strict=True)])
    words = random_words(filled.shape, block, -1, jax.random.split(key)[side])
    signs = random_signs(block, key)
    found = np.asarray(_quantized(filled, words, signs, block=block))
    return found[: x.shape[0], : x.shape[1]]


@functools.partial(jax.jit, static_argnames="block", compiler_options=_QUICK)
def _quantized(
    x: jax.Array, words: jax.Array | None, signs: jax.Array | None, block: Block
) -> jax.Array:
    return quantize(x, block, random_bits=words, signs=signs).dequantize()
