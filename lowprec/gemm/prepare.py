"""Preparing a weight as a recipe says: fitted on calibration rows, seeded, on the host."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from numpy.typing import NDArray

from lowprec.gemm.preparation import LowRank, Preparation
from lowprec.gemm.prepare_calibration import Calibration, Progress, Turn, calibration_rows
from lowprec.gemm.prepare_gptq import gptq
from lowprec.gemm.prepare_low_rank import nearest_low_rank
from lowprec.gemm.prepare_rounding import nearest_values, turned
from lowprec.gemm.prepare_smoothing import smoothing_factors
from lowprec.gemm.prepared import Prepared, turn
from lowprec.gemm.recipe import Recipe, get_recipe
from lowprec.numerics.arguments import float_array
from lowprec.scaling.block import Block
from lowprec.scaling.codings import Transform
from lowprec.scaling.qtensor import QTensor


def prepare(
    w: ArrayLike,
    recipe: str | Recipe,
    *,
    calibration: ArrayLike | Sequence[ArrayLike] | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Takes a weight through the preparation of a recipe: its table [prepare].

    In this order: smoothing (SmoothQuant, AWQ), rotation, low-rank matrices of the weight, rounding
    (GPTQ, or to nearest when it is multiplied), low-rank matrices of the rounding's error. Codes
    are those of the recipe's own block; what is rounded comes from float64 algebra on the host
    (sums, powers, Cholesky, singular values), the same bits on one machine and version. A Hadamard
    rotation alone is bit exact. A recipe without a preparation leaves the weight as it is.

    What is fitted does best on the rows that it was fitted to: keep others for what you report.

    Args:
      w: (K, N) float32, bfloat16 or float16: in x @ w, x has K columns.
      recipe: a recipe by name, path or value; its role fprop is prepared.
      calibration: x as it reaches the layer, (..., K), or a sequence of such arrays, float32,
        bfloat16 or float16; a `numpy.memmap` is read a block at a time. For the steps that are
        fitted: smoothing, GPTQ and weighted low rank (`recipe.prepare.fitted`).
      progress: called with a step's name, how much of it is done and how much there is.

    Returns:
      A `Prepared`, whose `product(x)` takes the place of `gemm(x, w, recipe)`.

    Raises:
      TypeError: w or calibration are not float32, bfloat16 or float16; or inside `jit`.
      ValueError: shapes that do not fit, NaN or Inf, calibration that is missing or not wanted, or
        a step that the weight or its data do not allow.

    Source: the recipe's own citation, `lowprec show NAME`, and `lowprec.gemm.preparation`.

    Example:
      >>> x, w = jax.random.normal(jax.random.key(0), (64, 32)), jnp.eye(32)
      >>> prepared = prepare(w, "gptq_mxfp4", calibration=x)
      >>> prepared.w, prepared.product(x).shape
      (QTensor(mxfp4, shape=(32, 32), scales=(1, 32), axis=-2), (64, 32))
    """
    whole = get_recipe(recipe)
    w = _weight(w)
    steps = whole.prepare
    rows = _calibration(whole, calibration, w.shape[0], progress)
    if steps is None:
        return Prepared(w=w, recipe=whole, depth=w.shape[0])
    return _prepared(w, whole, steps, rows, progress or _silent)


def _silent(step: str, done: int, total: int) -> None:
    """Nobody wants to know."""
    del step, done, total


def _weight(w: ArrayLike) -> jax.Array:
    w = float_array("w", w)
    # Inside a transformation so is what was no tracer before.
    if isinstance(w, Tracer):
        raise TypeError(
            "`w` is traced by a JAX transformation; `prepare` computes on the host: call it first, "
            "and pass the Prepared, which is a pytree, in"
        )
    if w.ndim != 2 or not w.size:
        raise ValueError(f"`w` has shape {w.shape}; it is a matrix (K, N)")
    if not np.isfinite(np.asarray(w, np.float32)).all():
        raise ValueError("`w` has NaN or Inf, which no preparation can be fitted to")
    return w


def _calibration(
    recipe: Recipe,
    given: ArrayLike | Sequence[ArrayLike] | None,
    depth: int,
    progress: Progress | None,
) -> Calibration | None:
    fitted = recipe.prepare is not None and recipe.prepare.fitted
    if given is None:
        if fitted:
            raise ValueError(
                f"recipe {recipe.name!r} fits its preparation to `calibration`: pass rows of x, "
                f"(..., {depth}), other than those you will report"
            )
        return None
    if not fitted:
        raise ValueError(
            f"recipe {recipe.name!r} fits nothing to `calibration`: leave it out (ask "
            f"recipe.prepare.fitted)"
        )
    return calibration_rows(given, depth, progress or _silent)


def _prepared(
    w: jax.Array,
    recipe: Recipe,
    steps: Preparation,
    rows: Calibration | None,
    progress: Progress,
) -> Prepared:
    depth, target = w.shape[0], recipe.fprop.b
    rotation = None if steps.rotation is None else steps.rotation.transform(depth)
    length = _whole_length(depth, recipe, rotation)
    smoothing = ratio = None
    if steps.smoothing is not None:
        assert rows is not None
        smoothing, ratio = smoothing_factors(w, rows, target, steps.smoothing, length)
    signs = _signs(steps, rotation, length)
    weight = turn(w, smoothing, signs, rotation, axis=-2, length=length)

    def inputs(block: NDArray) -> NDArray:
        x = jnp.asarray(block)
        return np.asarray(turn(x, smoothing, signs, rotation, axis=-1, length=length))

    low_rank = None
    if steps.low_rank is not None and steps.low_rank.of == "weight":
        weight, low_rank = _without(weight, steps.low_rank, rows, inputs)
        progress("low rank", 1, 1)
    rounded: jax.Array | QTensor = weight
    if steps.gptq is not None:
        assert rows is not None
        seen: Turn = lambda x: np.asarray(turned(jnp.asarray(inputs(x)), target, -1))
        rounded = gptq(weight, rows.second_moment(seen), target, steps.gptq, progress)
    if steps.low_rank is not None and steps.low_rank.of == "error":
        low_rank = _correction(weight, rounded, recipe, steps.low_rank, rows, inputs)
        progress("low rank", 1, 1)
    parts = {"smoothing": smoothing, "signs": signs, "low_rank": low_rank, "ratio": ratio}
    return Prepared(w=rounded, recipe=recipe, depth=depth, **parts)


def _whole_length(depth: int, recipe: Recipe, rotation: Transform | None) -> int:
    """K, filled up to whole blocks of the rotation and of the blocks' own transforms."""
    pair = recipe.fprop
    sizes = [x.transform.size for x in (pair.a, pair.b) if isinstance(x, Block) and x.transform]
    if rotation is not None:
        sizes.append(rotation.size)
    return depth + -depth % math.lcm(*(size or 1 for size in sizes))


def _signs(steps: Preparation, rotation: Transform | None, length: int) -> jax.Array | None:
    """Signs for all of K, drawn by NumPy's PCG64, whose stream is the same everywhere."""
    if steps.rotation is None or rotation is None or rotation.needs != "signs":
        return None
    generator = np.random.Generator(np.random.PCG64(steps.rotation.seed))
    return jnp.asarray(1 - 2 * generator.integers(0, 2, length).astype(np.float32))


def _factors(
    matrix: NDArray, steps: LowRank, rows: Calibration | None, inputs: Turn
) -> tuple[jax.Array, jax.Array]:
    """The low-rank matrices in the type that they are kept in."""
    left, right = nearest_low_rank(matrix, steps, rows, inputs)
    kept = jnp.dtype(steps.format)
    narrow = lambda x: jnp.asarray(x.astype(np.float32)).astype(kept)
    return narrow(left), narrow(right)


def _without(
    weight: jax.Array, steps: LowRank, rows: Calibration | None, inputs: Turn
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """What is left of the weight beside its low-rank matrices, as they are kept; float32."""
    wide = np.asarray(weight, np.float64)
    left, right = _factors(wide, steps, rows, inputs)
    rest = wide - np.asarray(left, np.float64) @ np.asarray(right, np.float64)
    return jnp.asarray(rest.astype(np.float32)), (left, right)


def _correction(
    weight: jax.Array,
    rounded: jax.Array | QTensor,
    recipe: Recipe,
    steps: LowRank,
    rows: Calibration | None,
    inputs: Turn,
) -> tuple[jax.Array, jax.Array]:
    """Low-rank matrices nearest to the error of rounding the weight."""
    if isinstance(rounded, QTensor):
        values = rounded.dequantize()
    else:
        values = nearest_values(rounded, recipe.fprop.b)
    return _factors(
        np.asarray(weight, np.float64) - np.asarray(values, np.float64), steps, rows, inputs
    )
