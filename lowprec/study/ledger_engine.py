"""What an engine, promotion and scales do to the exact product of quantized operands."""

from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from lowprec.gemm.operand import Operand
from lowprec.gemm.promotion import scale_product
from lowprec.gemm.recipe import Recipe
from lowprec.gemm.summation import sum_products
from lowprec.numerics import float32
from lowprec.numerics.codec import narrow
from lowprec.study.ledger_exact import Exact
from lowprec.study.ledger_operand import Side
from lowprec.study.ledger_parts import Bits, Parts, check_sums, is_whole, parts_of

_multiply = jax.jit(float32.multiply)
_scale_product = jax.jit(scale_product, static_argnames="shape")
_narrow = jax.jit(narrow, static_argnums=1)


def total_bits(left: Operand, right: Operand, recipe: Recipe) -> Bits | None:
    """float32 bits of the sum over K, before the last scales; None where one part is the sum.

    `recipe` is what `lowprec.gemm.gemm.summation` makes of one.
    """
    if is_whole(recipe):
        return None
    if not _promotes_scales(recipe):
        left, right = (x._replace(scales=None) for x in (left, right))
    return np.asarray(_sum(left, right, recipe))


_sum = jax.jit(sum_products, static_argnames="recipe")


def engine_terms(
    a: Side, b: Side, recipe: Recipe, quantized: Exact, total: Bits | None
) -> tuple[dict[str, Exact], NDArray[Any]]:
    """The terms between the exact product of quantized operands and the output, and that.

    Terms are `scaling`, `alignment`, `accumulator_rounding`, `promotion`, `output_rounding`;
    `total` is what `total_bits` gives.

    Raises:
      ValueError: a sum or an output is not finite.
    """
    parts = parts_of(a, b, recipe)
    bits: Any = parts.bits[0] if total is None else total
    check_sums(bits, "the sum over K")
    terms = _of_sums(parts, a.operand, b.operand, recipe, bits)
    stages = [(a.operand.tensor_scale, b.operand.tensor_scale)]
    if not _promotes_scales(recipe):
        stages = [(a.operand.scales, b.operand.scales), *stages]
    for first, second in stages:
        bits = _scaled(terms, bits, first, second)
    terms["scaling"] = terms["scaling"] + (terms.pop("sums") - quantized)
    output = np.asarray(_narrow(bits, recipe.output.name))
    check_sums(output.astype(np.float32).view(np.uint32), "the output")
    terms["output_rounding"] = Exact.of(output) - exact_of_bits(bits)
    return terms, output


def _promotes_scales(recipe: Recipe) -> bool:
    return recipe.scales == "promotion" and recipe.promote_every is not None


def _of_sums(
    parts: Parts, left: Operand, right: Operand, recipe: Recipe, total: Bits
) -> dict[str, Exact]:
    """The terms of a sum over K; `sums` is what its parts are exactly.

    With parts p, made of exact products, what alignment cut off, and roundings, scaled by s, and
    the numbers that promotion adds to a float32 total: whatever rounds those is `promotion`, and
    what they are beyond s * p is `scaling`.
    """
    partial = exact_of_bits(parts.bits)
    rounding = partial - parts.product - parts.alignment
    weight, added = Exact.of(np.ones((1, 1, 1))), partial
    if _promotes_scales(recipe):
        assert recipe.promote_every is not None
        rows, columns = _scales_of_parts(left, right, recipe.promote_every)
        weight = _exact_scale(rows, columns)
        added = _added(parts.bits, rows, columns, recipe)
    return {
        "sums": (weight * parts.product).sum(),
        "alignment": (weight * parts.alignment).sum(),
        "accumulator_rounding": (weight * rounding).sum(),
        "promotion": exact_of_bits(total) - added.sum(),
        "scaling": (added - weight * partial).sum(),
    }


def _scales_of_parts(left: Operand, right: Operand, every: int) -> tuple[Bits | None, Bits | None]:
    """Scales of a, (parts or 1, M, 1), and of b, (parts or 1, 1, N): a part lies in one tile."""
    rows = columns = None
    if left.scales is not None:
        rows = np.asarray(left.scales)[:, ::every].T[:, :, None]
    if right.scales is not None:
        columns = np.asarray(right.scales)[::every, None, :]
    return rows, columns


def _added(bits: Bits, rows: Bits | None, columns: Bits | None, recipe: Recipe) -> Exact:
    """What promotion adds to the running total, before it is rounded into that.

    These are the products of `lowprec.gemm.summation`; its sums are not repeated here.
    """
    spread = lambda x: np.broadcast_to(x, bits.shape)
    partial = bits
    if recipe.promotion == "multiply_multiply_add":
        for scale in (rows, columns):
            partial = partial if scale is None else _multiply(partial, spread(scale))
        return exact_of_bits(partial)
    if recipe.promotion == "multiply_fma" and rows is not None and columns is not None:
        return exact_of_bits(_multiply(partial, spread(rows))) * exact_of_bits(columns)
    scale = _scale_product(rows, columns, shape=bits.shape)
    if scale is None:
        return exact_of_bits(partial)
    if recipe.promotion in ("fma", "multiply_fma"):
        return exact_of_bits(scale) * exact_of_bits(partial)
    return exact_of_bits(_multiply(scale, partial))


def _scaled(terms: dict[str, Exact], total: Bits, a: jax.Array | None, b: jax.Array | None) -> Bits:
    """Scales all terms exactly, and the total as `gemm` does; the difference is `scaling`."""
    scale = _scale_product(a, b, shape=total.shape)
    if scale is None:
        return total
    factor = _exact_scale(*(None if x is None else np.asarray(x) for x in (a, b)))
    for name in terms:
        terms[name] = terms[name] * factor
    scaled = np.asarray(_multiply(scale, total))
    terms["scaling"] = terms["scaling"] + (exact_of_bits(scaled) - exact_of_bits(total) * factor)
    return scaled


def _exact_scale(first: Bits | None, second: Bits | None) -> Exact:
    """The exact product of two scales, 1 where there is none."""
    product = Exact.of(1.0)
    for bits in (first, second):
        product = product if bits is None else product * exact_of_bits(bits)
    return product


def exact_of_bits(bits: jax.Array | Bits) -> Exact:
    """The numbers of finite float32 bits."""
    return Exact.of(np.asarray(bits).view(np.float32))
