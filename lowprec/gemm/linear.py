"""A linear layer under a recipe: its product, and the two products of its gradient."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from lowprec.gemm.amax_history import amaxes_in, checked_history, largest, rolled
from lowprec.gemm.gemm import STATIC, check_engine, multiply_operands, summation, to_prepare
from lowprec.gemm.operand import Matrix, Operand, prepare_operand
from lowprec.gemm.recipe import ROLES, OperandPair, Recipe, Role, draws, get_recipe
from lowprec.numerics import float32
from lowprec.numerics.codec import float_array, narrow
from lowprec.scaling.block import Block
from lowprec.scaling.candidates import TRIED
from lowprec.scaling.qtensor import QTensor


def linear(
    x: ArrayLike,
    w: ArrayLike,
    recipe: str | Recipe,
    *,
    key: jax.Array | None = None,
    amax_history: ArrayLike | None = None,
) -> jax.Array:
    """The product x @ w under a recipe, with a gradient under the same recipe.

    Forward it is `gemm` of all rows of x in the role fprop; backward dx = dy @ w^T in dgrad and
    dw = x^T @ dy in wgrad, dw summed over all rows: each with its role's formats, tiles,
    transforms, rounding, engine and output type, bit for bit as `gemm` has it. NaN, Inf, -0,
    subnormals and overflow are `gemm`'s too. An operand whose tiles are square is quantized once
    for both products that need it.

    Delayed scaling remembers the largest magnitudes of x, w and dy in `amax_history`: float32
    (3, length), `jnp.zeros((3, 1024), jnp.float32)` before the first step. The gradient with
    respect to it is no gradient but the history to pass to the next step, so that it comes out of
    the backward pass beside dx and dw; see `lowprec.gemm.amax_history`. It must reach one call a
    step, unbatched: what several calls, or members under `vmap`, hand back would be added.

    Args:
      x: (..., in) float32, bfloat16 or float16; all axes but the last are rows of one matrix.
        Members of a batch under `jax.vmap` are quantized apart.
      w: (in, out), the same.
      recipe: a recipe by name, path or value.
      key: a PRNG key for a stochastic recipe. `jax.random.split(key, 3)` makes the keys of fprop,
        dgrad and wgrad, as passed to `gemm`: words are drawn for each operand of each product.
      amax_history: for a recipe with delayed scaling.

    Returns:
      (..., out) in the recipe's output type. dx and dw have the types of x and w: what the role
      puts out is rounded to them, to nearest even. A second derivative is a ValueError, a
      forward-mode one JAX's TypeError.

    Raises:
      TypeError: an operand is not float32, bfloat16 or float16, or the history not float32.
      ValueError: shapes that do not fit, an empty operand, an unknown name, a stochastic recipe
        without `key`, a history that is missing, misshapen or not wanted.

    Example:
      >>> x, w = jnp.ones((4, 32)), jnp.full((32, 2), 0.5)
      >>> loss = lambda w: jnp.sum(linear(x, w, "mxfp8").astype(jnp.float32))
      >>> jax.jit(jax.grad(loss))(w)[0]
      Array([4., 4.], dtype=float32)
      >>> fp8 = dataclasses.replace(get_recipe("te_delayed"), engine=lp.get_engine("native"))
      >>> loss = lambda w, seen: jnp.sum(linear(x, w, fp8, amax_history=seen).astype(jnp.float32))
      >>> step = jax.jit(jax.grad(loss, argnums=(0, 1)))
      >>> gradient, seen = step(w, jnp.zeros((3, 4)))
      >>> seen
      Array([[1. , 0. , 0. , 1. ],
             [0.5, 0. , 0. , 0.5],
             [1. , 0. , 0. , 1. ]], dtype=float32)
    """
    whole = get_recipe(recipe)
    for role in ROLES:
        check_engine(whole.in_role(role).engine)
    x, w = float_array("x", x), float_array("w", w)
    _check_shapes(x.shape, w.shape)
    if whole.stochastic and key is None:
        raise ValueError(
            f"recipe {whole.name!r} rounds stochastically and needs `key`, such as "
            f"jax.random.key(0)"
        )
    history = checked_history(whole, amax_history)
    drawn = key if whole.stochastic else None
    keys = None if drawn is None else jax.random.split(drawn, len(ROLES))
    y: jax.Array = _linear(whole, x.reshape(-1, x.shape[-1]), w, keys, history)
    return y.reshape(*x.shape[:-1], w.shape[1])


def _check_shapes(x: tuple[int, ...], w: tuple[int, ...]) -> None:
    if not x or len(w) != 2 or x[-1] != w[0]:
        raise ValueError(
            f"`x` has shape {x} and `w` {w}; (..., in) and (in, out) are needed, with one `in`"
        )
    if 0 in (*x, *w):
        raise ValueError(f"`x` has shape {x} and `w` {w}: there is nothing to multiply")


class Kept(NamedTuple):
    """What the backward pass needs of the forward one.

    Attributes:
      x, w: matrices, or as quantized for fprop where their other product takes them so.
      types: empty arrays of the types of x and w.
      keys: of the three products, or None.
      history, amaxes: the history, and float32 bits of the largest magnitudes of x and w; or None.
    """

    x: Matrix
    w: Matrix
    types: tuple[jax.Array, jax.Array]
    keys: jax.Array | None
    history: jax.Array | None
    amaxes: tuple[jax.Array, jax.Array] | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(
    recipe: Recipe,
    x: jax.Array,
    w: jax.Array,
    keys: jax.Array | None,
    history: jax.Array | None,
) -> jax.Array:
    return _product(recipe, "fprop", x, w, keys, history).y


def _forward(
    recipe: Recipe,
    x: jax.Array,
    w: jax.Array,
    keys: jax.Array | None,
    history: jax.Array | None,
) -> tuple[jax.Array, Kept]:
    x, w = _refuse_second(x), _refuse_second(w)
    shared = shares(recipe, "fprop", "a", "wgrad", "a"), shares(recipe, "fprop", "b", "dgrad", "b")
    done = _product(recipe, "fprop", x, w, keys, history, keep=shared)
    kept = Kept(
        x=x if done.a is None else done.a,
        w=w if done.b is None else done.b,
        types=(jnp.zeros(0, x.dtype), jnp.zeros(0, w.dtype)),
        keys=keys,
        history=history,
        amaxes=None if history is None else (largest(x), largest(w)),
    )
    return done.y, kept


def _backward(
    recipe: Recipe, kept: Kept, dy: jax.Array
) -> tuple[jax.Array, jax.Array, None, jax.Array | None]:
    dy = _refuse_second(dy)
    shared = shares(recipe, "dgrad", "a", "wgrad", "b")
    x, w = _transposed(kept.x), _transposed(kept.w)
    given = kept.keys, kept.history
    dgrad = _product(recipe, "dgrad", dy, w, *given, keep=(shared, False))
    # Quantized along its rows, dy is contracted over its columns next.
    again = dy if dgrad.a is None else dataclasses.replace(dgrad.a, axis=-2)
    wgrad = _product(recipe, "wgrad", x, again, *given)
    dx, dw = (
        _as_type(out, like.dtype) for out, like in zip((dgrad.y, wgrad.y), kept.types, strict=True)
    )
    if kept.history is None or kept.amaxes is None:
        return dx, dw, None, None
    assert recipe.delayed is not None
    newest = jnp.stack([*kept.amaxes, largest(dy)])
    return dx, dw, None, rolled(kept.history, newest, recipe.delayed)


_linear.defvjp(_forward, _backward)


class Product(NamedTuple):
    """A product, and its operands as quantized where those are to be kept."""

    y: jax.Array
    a: QTensor | None
    b: QTensor | None


def _product(
    recipe: Recipe,
    role: Role,
    a: Matrix,
    b: Matrix,
    keys: jax.Array | None,
    history: jax.Array | None,
    *,
    keep: tuple[bool, bool] = (False, False),
) -> Product:
    """What `gemm` computes in a role; operands may be quantized already, as their block says."""
    recipe, key = recipe.in_role(role), None if keys is None else keys[ROLES.index(role)]
    amaxes = None
    if history is not None and recipe.delayed is not None:
        amaxes = amaxes_in(role, history, recipe.delayed)
    given = to_prepare(recipe, role, a, b, key, amaxes)
    (left, kept_a), (right, kept_b) = (
        _prepare(keep=wanted, **one) for one, wanted in zip(given, keep, strict=True)
    )
    return Product(multiply_operands(left, right, summation(recipe, role)), kept_a, kept_b)


@functools.partial(jax.jit, static_argnames=(*STATIC, "keep"))
def _prepare(*, keep: bool, **given: Any) -> tuple[Operand, QTensor | None]:
    operand, quantized = prepare_operand(**given)
    return operand, quantized if keep else None


@functools.cache
def shares(recipe: Recipe, role: Role, side: str, other: Role, other_side: str) -> bool:
    """Whether a tensor becomes the same codes and scales in two products, transposed or not.

    Its tiles are square or the whole tensor, and nothing that is done to it depends on an order.
    """
    pairs = getattr(recipe, role), getattr(recipe, other)
    (block, source), (other_block, other_source) = (
        (getattr(pair, s), (getattr(pair, f"{s}_from"), getattr(pair, f"{s}_amax")))
        for pair, s in zip(pairs, (side, other_side), strict=True)
    )
    if not isinstance(block, Block) or block != other_block or source != other_source:
        return False
    return (
        block.tile[0] == block.tile[1]
        and block.coding == "scaled"
        and block.scale_rule not in TRIED
        and block.tensor_scale != "row_amax"
        and source in ((None, None), (None, "history"))
        and not draws(block)
        and not any(map(_turns, pairs))
    )


def _turns(pair: OperandPair) -> bool:
    """Whether an operand is transformed, for which both are padded along K."""
    return any(isinstance(x, Block) and x.transform is not None for x in (pair.a, pair.b))


def _transposed(x: Matrix) -> Matrix:
    """The transpose, contracted over what were rows or columns of the other product's result."""
    if not isinstance(x, QTensor):
        return x.T
    return dataclasses.replace(x, codes=x.codes.T, scales=x.scales.T)


def _as_type(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    return x if x.dtype == dtype else narrow(float32.to_bits(x), dtype)


@jax.custom_jvp
def _refuse_second(x: jax.Array) -> jax.Array:
    return x


@_refuse_second.defjvp
def _refuse_second_jvp(primals: Any, tangents: Any) -> Any:
    raise ValueError(
        "`linear` has no second derivative: its gradient is made of quantized products, whose own "
        "gradient would silently be zero. Differentiate once, or use jnp.matmul there"
    )
