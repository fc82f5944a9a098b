"""A GEMM under a recipe: quantize both operands, multiply in an engine, promote, scale, round."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from lowprec.engines.engine import Engine, get_engine
from lowprec.engines.matmul import check_computable, check_shapes, nameless
from lowprec.gemm.operand import (
    Matrix,
    Operand,
    earlier_copies,
    mean_amax,
    prepare_operand,
    random_signs,
    whole_transforms,
)
from lowprec.gemm.promotion import scaled, within_range
from lowprec.gemm.recipe import ROLES, OperandPair, Recipe, Role, get_recipe
from lowprec.gemm.summation import sum_products
from lowprec.numerics.codec import float_array, narrow
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.rounding import check_choice, is_stochastic
from lowprec.scaling.block import Block
from lowprec.scaling.qtensor import QTensor

Sums = Callable[[Operand, Operand, Recipe], jax.Array]
"""What sums over K, as `sum_products` does; hashable."""


def gemm(
    a: ArrayLike,
    b: ArrayLike | QTensor,
    recipe: str | Recipe,
    *,
    role: Role = "fprop",
    engine: str | Engine | None = None,
    promote_every: int | None = None,
    order: str | None = None,
    out_dtype: DTypeLike | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The product a @ b under a recipe, contracted over K.

    Both operands are quantized along K as the role says, multiplied in the engine, scaled where the
    recipe says, and rounded once to the output type. A scaled product that overflows is Inf; NaN
    and Inf operands follow their blocks. The gradient is the exact product's (straight-through).

    Args:
      a: (..., M, K) float32, bfloat16 or float16: x, dy or x^T.
      b: (..., K, N): w, w^T or dy, already transposed. A matrix b takes all rows of a as one
        tensor; with batch axes each member is quantized alone. Or a matrix as it was quantized
        before, by the role's block along K (axis -2): its codes are multiplied, it has no gradient.
      recipe: a recipe by name, path or value.
      role: `fprop`, `dgrad` or `wgrad`: which of the recipe's operand pairs applies.
      engine: in place of the recipe's.
      promote_every: in place of the recipe's.
      order: in place of the recipe's: `sequential`, `split_k.<parts>` or `stream_k.<workers>`.
      out_dtype: float32, bfloat16 or float16, in place of the recipe's output.
      key: a PRNG key for stochastic rounding; recipes without it draw nothing.

    Returns:
      (..., M, N) of the output type.

    Raises:
      TypeError: an operand is not float32, bfloat16 or float16.
      ValueError: shapes that do not fit, an empty operand, an unknown name, a stochastic recipe
        without `key`, or one with delayed scaling, whose history `linear` takes.

    Example:
      >>> gemm(jnp.ones((2, 128)), jnp.ones((128, 1)), "mxfp8")
      Array([[128],
             [128]], dtype=bfloat16)
    """
    whole = get_recipe(recipe)
    check_choice("role", role, ROLES)
    chosen = overridden(whole.in_role(role), engine, promote_every, order, out_dtype)
    a = float_array("a", a)
    b = _checked(b, chosen, role) if isinstance(b, QTensor) else float_array("b", b)
    batch = check_shapes(a.shape, b.shape)
    check_key(whole, key)
    if not batch:
        return of_matrices(chosen, role, a, b, key)
    if isinstance(b, QTensor) or b.ndim == 2:
        out = of_matrices(chosen, role, a.reshape(-1, a.shape[-1]), b, key)
        return out.reshape(*batch, a.shape[-2], b.shape[-1])
    return _batched(chosen, role, a, b, batch, key)


def check_key(recipe: Recipe, key: jax.Array | None) -> None:
    """ValueError for a stochastic recipe without a key."""
    if recipe.stochastic and key is None:
        raise ValueError(
            f"recipe {recipe.name!r} rounds stochastically and needs `key`, "
            f"such as jax.random.key(0)"
        )


def overridden(
    recipe: Recipe,
    engine: str | Engine | None,
    promote_every: int | None,
    order: str | None,
    out_dtype: DTypeLike | None,
) -> Recipe:
    """A recipe with what an argument of `gemm` sets in place of its own."""
    changes: dict[str, Any] = {}
    if engine is not None:
        changes["engine"] = get_engine(engine)
    if promote_every is not None:
        changes["promote_every"] = promote_every
    if order is not None:
        changes["order"] = order
    if out_dtype is not None:
        name = np.dtype(out_dtype).name
        if name not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"`out_dtype` = {name}; use float32, bfloat16 or float16")
        changes["output"] = get_format(name)
    chosen = dataclasses.replace(recipe, **changes)
    check_engine(chosen.engine)
    return chosen


def check_engine(engine: Engine) -> None:
    """ValueError for an engine that nothing can be computed with, or not without a key."""
    check_computable(engine)
    if is_stochastic(engine.output_rounding):
        raise ValueError(
            f"engine {engine.name!r} rounds stochastically, for which `gemm` has no key to "
            f"give; lp.matmul(..., key=) has"
        )


def _checked(b: QTensor, recipe: Recipe, role: Role) -> QTensor:
    """ValueError unless a quantized matrix is what the recipe would make of its second operand."""
    pair = getattr(recipe, role)
    if b.block != pair.b or b.axis != -2 or len(b.shape) != 2:
        raise ValueError(
            f"`b` is quantized as {b.block.name} along axis {b.axis} of {b.shape}; {role}.b of "
            f"recipe {recipe.name!r} is {pair.b.name}, a matrix along axis -2"
        )
    sizes = [x.transform.size for x in (pair.a, pair.b) if isinstance(x, Block) and x.transform]
    if pair.b_from is not None or any(size and b.shape[0] % size for size in sizes):
        raise ValueError(
            f"`b` is quantized already; {role}.b of recipe {recipe.name!r} starts from another "
            f"copy, or its {b.shape[0]} rows are no whole blocks of the recipe's transforms: pass "
            f"a float matrix"
        )
    return b


def _batched(
    recipe: Recipe,
    role: Role,
    a: jax.Array,
    b: jax.Array,
    batch: tuple[int, ...],
    key: jax.Array | None,
) -> jax.Array:
    flat = [jnp.broadcast_to(x, (*batch, *x.shape[-2:])).reshape(-1, *x.shape[-2:]) for x in (a, b)]
    count = flat[0].shape[0]
    if key is None:
        out = jax.vmap(lambda x, y: of_matrices(recipe, role, x, y, None))(*flat)
    else:
        keys = jax.random.split(key, count)
        one = functools.partial(of_matrices, recipe, role)
        out = jax.vmap(one)(flat[0], flat[1], keys)
    return out.reshape(*batch, *out.shape[1:])


def of_matrices(
    recipe: Recipe,
    role: Role,
    a: jax.Array,
    b: jax.Array | QTensor,
    key: jax.Array | None,
    sums: Sums = sum_products,
) -> jax.Array:
    """`gemm` of two matrices; the gradient leaves the key alone."""

    @jax.custom_jvp
    def straight_through(a: jax.Array, b: jax.Array | QTensor) -> jax.Array:
        return _forward(recipe, role, a, b, key, sums)

    @straight_through.defjvp
    def _jvp(primals: Any, tangents: Any) -> Any:
        (a, b), (da, db) = primals, tangents
        wide = functools.partial(
            jnp.matmul, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
        )
        out = straight_through(a, b)
        if isinstance(b, QTensor):
            return out, wide(da.astype(jnp.float32), b.dequantize()).astype(out.dtype)
        a, b, da, db = (x.astype(jnp.float32) for x in (a, b, da, db))
        return out, (wide(da, b) + wide(a, db)).astype(out.dtype)

    return straight_through(a, b)


def _forward(
    recipe: Recipe,
    role: Role,
    a: jax.Array,
    b: jax.Array | QTensor,
    key: jax.Array | None,
    sums: Sums,
) -> jax.Array:
    # Three programs outside a caller's `jit`: recipes share those that are the same.
    summed = summation(recipe, role)
    left, right = (_prepare(**given) for given in to_prepare(recipe, role, a, b, key))
    return multiply_operands(left, right, summed, sums)


def to_prepare(
    recipe: Recipe,
    role: Role,
    a: Matrix,
    b: Matrix,
    key: jax.Array | None,
    history: tuple[jax.Array, jax.Array] | None = None,
) -> list[dict[str, Any]]:
    """The arguments of `prepare_operand` for both operands; those in `STATIC` are no arrays.

    `history` is what operands with amax = "history" are scaled by.
    """
    if recipe.prepare is not None and role == "fprop":
        raise ValueError(
            f"recipe {recipe.name!r} prepares its weight, and this one was not: take "
            f"lowprec.prepare(w, {recipe.name!r}, calibration=...).product(x), or to multiply the "
            f"weight as it is, dataclasses.replace(recipe, prepare=None)"
        )
    pair = getattr(recipe, role)
    a, b = earlier_copies(a, b, pair)
    amaxes = _amaxes(recipe, pair, a, b, history)
    whole = whole_transforms(a, b, pair)
    keys = (None, None) if key is None else jax.random.split(key)
    return [
        {
            "x": x,
            "target": target,
            "place": recipe.scale_place,
            "axis": axis,
            "key": own,
            "scale_block": recipe.engine.scale_block,
            "turned": pair.transforms_cancel,
            "signs": random_signs(target, key),
            "amax": amax,
        }
        for x, target, axis, own, amax in zip(
            whole, (pair.a, pair.b), (-1, -2), keys, amaxes, strict=True
        )
    ]


def _amaxes(
    recipe: Recipe,
    pair: OperandPair,
    a: Matrix,
    b: Matrix,
    history: tuple[jax.Array, jax.Array] | None,
) -> list[jax.Array | None]:
    """What each operand's block is scaled by, where it does not measure that itself."""
    found: list[jax.Array | None] = []
    sides = (a, pair.a, pair.a_amax, -1), (b, pair.b, pair.b_amax, -2)
    for i, (x, target, source, axis) in enumerate(sides):
        if isinstance(x, QTensor) or source != "history":
            found.append(None if isinstance(x, QTensor) else mean_amax(x, target, axis))
            continue
        if history is None:
            raise ValueError(
                f"recipe {recipe.name!r} scales by magnitudes of earlier steps, which one product "
                f"does not know: use lowprec.linear(x, w, {recipe.name!r}, amax_history=...)"
            )
        found.append(history[i])
    return found


STATIC = ("target", "place", "axis", "scale_block", "turned")


@functools.partial(jax.jit, static_argnames=STATIC)
def _prepare(**given: Any) -> Operand:
    return prepare_operand(**given)[0]


@functools.cache
def summation(recipe: Recipe, role: Role) -> Recipe:
    """The recipe without its name, of its operands only the formats of what is multiplied.

    That is what `multiply_operands` depends on; recipes that sum alike share its programs.
    """
    pair = getattr(recipe, role)
    first, second = (_multiplied(recipe, x) for x in (pair.a, pair.b))
    plain, engine = OperandPair(a=first, b=second), nameless(recipe.engine)
    if engine.scale_formats:
        engine = dataclasses.replace(engine, scale_formats=(_block_scale_format(recipe, pair),))
    plain_pairs = {"fprop": plain, "dgrad": plain, "wgrad": plain}
    unused: dict[str, Any] = {"name": "", "delayed": None, "prepare": None}
    return dataclasses.replace(recipe, engine=engine, **unused, **plain_pairs)


def _multiplied(recipe: Recipe, target: Format | Block) -> Format:
    """The format of an operand's values in the engine: float32 where nothing else matters."""
    engine, anything = recipe.engine, get_format("float32")
    scaled = isinstance(target, Block) and recipe.scale_place == "operands"
    element = target.element if isinstance(target, Block) else target
    if engine.accumulation == "native" or (scaled and not engine.inputs):
        return anything
    if not engine.inputs:
        # A table says nothing of exponents.
        return element if element.table is None else anything
    names = ", ".join(x.name for x in engine.inputs)
    if scaled:
        raise ValueError(
            f"engine {engine.name!r} takes {names}: recipe {recipe.name!r} multiplies elements "
            f"by their scales first (scales = 'operands'), and then they are none of these"
        )
    if element not in engine.inputs and not engine.truncate_operands:
        raise ValueError(
            f"engine {engine.name!r} takes {names}; recipe {recipe.name!r} multiplies "
            f"{element.name}"
        )
    return engine.inputs[0] if engine.truncate_operands else element


def _block_scale_format(recipe: Recipe, pair: OperandPair) -> Format:
    """The engine's name for the scale format that both blocks have; their tiles are checked."""
    engine, found = recipe.engine, []
    every = engine.scale_block
    assert every is not None
    wanted = f"engine {engine.name!r} applies scales of every {every} k"
    for block in (pair.a, pair.b):
        if not isinstance(block, Block) or block.coding != "scaled":
            raise ValueError(f"{wanted}; recipe {recipe.name!r} multiplies {block.name} without")
        along = block.tile[1]
        if not isinstance(along, int) or along % every:
            raise ValueError(f"{wanted}; {block.name} has tiles of {along} along K")
        alike = [x for x in engine.scale_formats if _same_codes(x, block.scale_format)]
        if not alike:
            raise ValueError(
                f"{wanted} in {' or '.join(x.name for x in engine.scale_formats)}; "
                f"{block.name} has scales in {block.scale_format.name}"
            )
        found.append(alike[0])
    if found[0] != found[1]:
        raise ValueError(
            f"engine {engine.name!r} takes one format for the scales of both operands, "
            f"got {found[0].name} and {found[1].name}"
        )
    if recipe.promote_every is not None and recipe.promote_every % every:
        raise ValueError(f"{wanted}, which promote_every = {recipe.promote_every} cuts through")
    return found[0]


def _same_codes(of_engine: Format, of_block: Format) -> bool:
    """Whether codes of a block's scales mean the same to the engine: the sign bit aside."""
    names = ("exponent_bits", "mantissa_bits", "bias", "infinity", "nan", "subnormals")
    return all(getattr(of_engine, name) == getattr(of_block, name) for name in names)


@functools.partial(jax.jit, static_argnames=("recipe", "sums"))
def multiply_operands(
    left: Operand, right: Operand, recipe: Recipe, sums: Sums = sum_products
) -> jax.Array:
    """The product of prepared operands in the engine: promoted, scaled and rounded."""
    in_range = within_range(left, right, recipe.engine, left.values.shape[1])
    if recipe.scales != "promotion" or recipe.promote_every is None:
        # One scale for the whole sum, or none.
        plain = left._replace(scales=None), right._replace(scales=None)
        total = scaled(sums(*plain, recipe), left.scales, right.scales, in_range)
    else:
        total = sums(left, right, recipe)
    total = scaled(total, left.tensor_scale, right.tensor_scale, in_range)
    return narrow(total, np.dtype(recipe.output.name))
