"""Products and lone tensors under recipes, measured against float64."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.gemm.gemm import STATIC, multiply_operands, summation, to_prepare
from lowprec.gemm.operand import Operand, prepare_operand
from lowprec.gemm.recipe import ROLES, OperandPair, Recipe, Role, operand_bits
from lowprec.metrics import measure
from lowprec.models.operands import LoneTensor, Operands
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block
from lowprec.scaling.cast import cast
from lowprec.scaling.quantize import quantize
from lowprec.study.fate import Fate, operand_fate
from lowprec.study.rows import ProductRow, TensorRow, error_columns

_SHARED_SIZES = (256, 1024)


def compare_products(
    operands: Sequence[Operands], recipe: Recipe, *, source: str
) -> Iterator[ProductRow]:
    """Every product of every layer under one recipe, a row each.

    The reference is the float64 product of the operands as stored. Float32 operands are used as
    float32, 16-bit ones exactly.
    """
    for layer in operands:
        for role in ROLES:
            if role not in layer.roles:
                continue
            a, b = (_device(x) for x in layer.product(role))
            yield _product_row(layer.layer, role, a, b, recipe.in_role(role), source)


def _product_row(
    layer: str, role: Role, a: jax.Array, b: jax.Array, recipe: Recipe, source: str
) -> ProductRow:
    pair = getattr(recipe, role)
    shared = (a, b) if _takes_means(pair) else (padded(a), padded(b))
    y, left, right = quantized_product(*shared, recipe, role)
    y = y[: a.shape[0], : b.shape[1]]
    wide_a, wide_b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    measures = measure(np.asarray(y, np.float64), wide_a @ wide_b, np.abs(wide_a) @ np.abs(wide_b))
    elements = a.size + b.size
    return ProductRow(
        source=source,
        layer=layer,
        role=role,
        recipe=f"recipe:{recipe.name}",
        block_a=qualified(pair.a),
        block_b=qualified(pair.b),
        engine=f"engine:{recipe.engine.name}",
        reproducibility=recipe.engine.reproducibility,
        evidence=str(recipe.engine.evidence or ""),
        m=a.shape[0],
        k=a.shape[1],
        n=b.shape[1],
        bits_per_element=pair.bits_per_element,
        backward_error=measures.backward_error,
        clipped=(int(left.clipped) + int(right.clipped)) / elements,
        flushed=(int(left.flushed) + int(right.flushed)) / elements,
        **error_columns(measures),
    )


def _takes_means(pair: OperandPair) -> bool:
    """Whether rows and columns of zeros would change what an operand becomes."""
    transforms = [x.transform for x in (pair.a, pair.b) if isinstance(x, Block) and x.transform]
    return bool(pair.a_amax or pair.b_amax) or any(x.kind == "mean" for x in transforms)


def padded(x: jax.Array) -> jax.Array:
    """A small matrix with zero rows and columns up to a size that others share.

    Zeros change no scale but one of means, no sum and no count, and programs are compiled once a
    shape.
    """
    return jnp.pad(x, [(0, _shared_size(size) - size) for size in x.shape])


def _shared_size(size: int) -> int:
    return next((shared for shared in _SHARED_SIZES if size <= shared), size)


def quantized_product(
    a: jax.Array, b: jax.Array, recipe: Recipe, role: Role, key: jax.Array | None = None
) -> tuple[jax.Array, Fate, Fate]:
    """A product under a recipe as it stands in a role, and what became of both operands' elements.

    The halves of `gemm`: each operand is quantized once for the product and its statistics. A
    stochastic recipe without `key` draws from key 0.
    """
    summed = summation(recipe, role)
    if recipe.stochastic and key is None:
        key = jax.random.key(0)
    both = [_prepare(**given) for given in to_prepare(recipe, role, a, b, key)]
    (left, a_fate), (right, b_fate) = both
    return multiply_operands(left, right, summed), a_fate, b_fate


@functools.partial(jax.jit, static_argnames=STATIC)
def _prepare(x: jax.Array, target: Format | Block, **given: Any) -> tuple[Operand, Fate]:
    operand, quantized = prepare_operand(x, target, **given)
    became = quantized if isinstance(target, Block) else target
    assert became is not None
    return operand, operand_fate(x, became)


def compare_tensors(
    tensors: Sequence[LoneTensor], target: Format | Block, *, source: str
) -> Iterator[TensorRow]:
    """Every tensor under one block scaling along its last axis, a row each."""
    for tensor in tensors:
        x = _device(tensor.x)
        y, fate = _cast(x, target)
        measures = measure(np.asarray(y, np.float64), np.asarray(x, np.float64))
        yield TensorRow(
            source=source,
            name=tensor.name,
            block=qualified(target),
            rows=x.shape[0],
            columns=x.shape[1],
            bits_per_element=operand_bits(target),
            clipped=int(fate.clipped) / x.size,
            flushed=int(fate.flushed) / x.size,
            **error_columns(measures),
        )


@functools.partial(jax.jit, static_argnames="target")
def _cast(x: jax.Array, target: Format | Block) -> tuple[jax.Array, Fate]:
    if isinstance(target, Format):
        return cast(x.astype(jnp.float32), target), operand_fate(x, target)
    q = quantize(x, target)
    return q.dequantize(), operand_fate(x, q)


def qualified(target: Format | Block) -> str:
    """`block:NAME` or `format:NAME`: one name may stand for entries of several kinds."""
    return f"{'block' if isinstance(target, Block) else 'format'}:{target.name}"


def blocks_of(recipes: Sequence[Recipe]) -> list[Format | Block]:
    """What the recipes quantize operands to, without repetition, by name."""
    found = {qualified(x): x for r in recipes for x in (r.fprop.a, r.fprop.b, r.wgrad.a, r.dgrad.a)}
    return [found[name] for name in sorted(found)]


def _device(x: np.ndarray) -> jax.Array:
    """On the device, in float32 where the type is neither that nor one of 16 bits."""
    narrow = x.dtype.name in ("float32", "bfloat16", "float16")
    return jnp.asarray(x if narrow else x.astype(np.float32))
