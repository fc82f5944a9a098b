"""The error ledger: what each step of a recipe adds to the error of a product, exactly."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from lowprec.engines.engine import Engine, get_engine
from lowprec.engines.matmul import check_shapes
from lowprec.gemm.gemm import check_engine, summation
from lowprec.gemm.recipe import ROLES, Recipe, Role, get_recipe
from lowprec.numerics.codec import float_array
from lowprec.numerics.rounding import check_choice
from lowprec.study.ledger_engine import engine_terms, total_bits
from lowprec.study.ledger_exact import Exact
from lowprec.study.ledger_operand import at_rows, operand_terms, read_sides
from lowprec.study.ledger_parts import check_order
from lowprec.study.ledger_terms import Ledger, made


def ledger(
    a: ArrayLike,
    b: ArrayLike,
    recipe: str | Recipe,
    *,
    role: Role = "fprop",
    engine: str | Engine | None = None,
    promote_every: int | None = None,
    order: str | None = None,
    key: jax.Array | None = None,
    outputs: int = 4096,
    seed: int = 0,
) -> Ledger:
    """The error of `lowprec.gemm(a, b, recipe, ...)`, split exactly into terms.

    Their names and meanings are `lowprec.study.ledger_terms.TERMS`, the same for every recipe.
    The exact product y is that of the operands as given. A quantized operand stands for element *
    scale * tensor scale, exactly. Quantizing a alone changes the product by the four terms of a
    together, quantizing b alone by those of b, both by `cross` more. Of an operand, `gain` is a
    number times y: the least-squares coefficient of quantized on given elements, less 1, over the
    whole operand. The rest splits by elements: those beyond the largest value by half a step or
    more (`clipping`), those other than zero that become zero (`dead_zone`), all others (`grid`).
    Where both operands are turned alike, the turned ones are compared; where a transform is
    undone before the product, an element is none of one place, and all but the gain is `grid`,
    which holds the rounding of turning back too. An earlier role's copy is part of quantization.

    The engine's terms follow the sums that it makes. `alignment` is what engines of NVIDIA's and
    AMD's kinds cut off products, groups of products and the accumulator before a sum is rounded,
    operands that they truncate included; other engines have `accumulator_rounding` alone. Both are
    scaled exactly as the sums are; whatever scaling rounds is `scaling`.

    Args:
      a, b: (M, K) and (K, N), float32, bfloat16 or float16.
      recipe, role, engine, promote_every, order, key: as of `lowprec.gemm`.
      outputs: where M * N is more, so many at most are looked at, in a grid of drawn rows and
        columns; operands are quantized as a whole before, and K stays whole.
      seed: of that draw.

    Returns:
      A `Ledger`, whose `check()` has been called.

    Raises:
      TypeError: an operand is not float32, bfloat16 or float16.
      ValueError: an operand, what it becomes, or an output is not finite; an operand is not a
        matrix; `stream_k` without promotion, whose parts differ between tiles; what `gemm` refuses.

    Example:
      >>> a = jnp.full((1, 32), 1.25)
      >>> found = ledger(a, jnp.ones((32, 1)), "mxfp4")
      >>> found["a_gain"].values, found["output_rounding"].energy, found.check()
      (array([[-8.]]), 0.0, 1)
    """
    recipe = get_recipe(recipe)
    chosen = _chosen(recipe, role, engine, promote_every, order)
    left, right = float_array("a", a), float_array("b", b)
    if left.ndim != 2 or right.ndim != 2:
        raise ValueError(
            f"`a` of shape {left.shape} and `b` of shape {right.shape}: a ledger is of two "
            f"matrices, (M, K) and (K, N)"
        )
    check_shapes(left.shape, right.shape)
    if recipe.stochastic and key is None:
        raise ValueError(
            f"recipe {chosen.name!r} rounds stochastically and needs `key`, such as "
            f"jax.random.key(0)"
        )
    rows, columns = _drawn(left.shape[0], right.shape[1], outputs, seed)
    terms, exact, output = _account(chosen, role, left, right, key, rows, columns)
    found = made(
        terms,
        exact,
        output,
        recipe=chosen.name,
        role=role,
        engine=chosen.engine.name,
        shape=(*left.shape, right.shape[1]),
        rows=rows,
        columns=columns,
    )
    found.check()
    return found


def _account(
    recipe: Recipe,
    role: Role,
    a: jax.Array,
    b: jax.Array,
    key: jax.Array | None,
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
) -> tuple[dict[str, Exact], Exact, NDArray[Any]]:
    """All terms, the exact product, and the output, of some rows and columns."""
    summed = summation(recipe, role)
    check_order(summed)
    whole = read_sides(recipe, role, a, b, key)
    x, y = at_rows(whole[0], rows), at_rows(whole[1], columns, of_b=True)
    quantized = operand_terms(x, y)
    # Of stream_k, the tile that an output is in decides how its sum is cut.
    stream = summed.order.startswith("stream_k")
    left, right = whole if stream else (x, y)
    total = total_bits(left.operand, right.operand, summed)
    total = total[np.ix_(rows, columns)] if stream and total is not None else total
    terms, output = engine_terms(x, y, summed, quantized.product, total)
    return quantized.terms | terms, quantized.exact, output


def _chosen(
    recipe: Recipe,
    role: Role,
    engine: str | Engine | None,
    promote_every: int | None,
    order: str | None,
) -> Recipe:
    check_choice("role", role, ROLES)
    given = {
        "engine": None if engine is None else get_engine(engine),
        "promote_every": promote_every,
        "order": order,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    chosen = dataclasses.replace(recipe.in_role(role), **changes)
    check_engine(chosen.engine)
    return chosen


def _drawn(m: int, n: int, outputs: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns, ascending: all, or as nearly a square as fits."""
    if outputs < 1:
        raise ValueError(f"`outputs` = {outputs}; at least 1")
    columns = min(n, max(math.isqrt(outputs), outputs // m))
    rows = min(m, outputs // columns)
    rng = np.random.default_rng(seed)
    draw = lambda size, count: np.sort(rng.choice(size, count, replace=False))
    return draw(m, rows), draw(n, columns)
