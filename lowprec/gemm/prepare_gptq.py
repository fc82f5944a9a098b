"""GPTQ: columns rounded one after the other, each error made up for by the columns still to come.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv 2210.17323), algorithm 1. Which code a number gets is the block's own arithmetic; which
number is to be rounded is float64 algebra on the host, the same on one machine and version alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.gemm.preparation import Gptq
from lowprec.gemm.prepare_calibration import Progress
from lowprec.gemm.prepare_rounding import Rounder, turned
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block
from lowprec.scaling.qtensor import QTensor


def gptq(
    w: jax.Array, moment: NDArray, target: Format | Block, steps: Gptq, progress: Progress
) -> jax.Array | QTensor:
    """The weight (K, N) rounded so that the product with calibration rows errs little.

    Args:
      w: float32.
      moment: the mean of x x^T over calibration rows, (K, K) float64; of x as the block's own
        transform leaves it, where it has one.
      target: what it is rounded to.
      steps: how.
      progress: told of every block of columns.

    Returns:
      A QTensor along K, or for a format the float32 values.

    Raises:
      ValueError: the moments are singular, with too little damping.
    """
    weight = np.asarray(turned(w, target, -2), np.float64)
    dead = np.diagonal(moment) == 0
    weight[dead] = 0
    order = np.arange(len(weight))
    if steps.order == "activation":
        order = np.argsort(-np.diagonal(moment), kind="stable")
    upper = inverse_factor(moment[np.ix_(order, order)], dead[order], steps.damping)
    rounder = Rounder(weight, target)
    if steps.scales == "original" or steps.order == "activation":
        for start in range(0, len(weight), rounder.along):
            rounder.hold(start, weight[rounder.tile(start)])
    values = np.empty_like(weight)
    # From here on columns are in the order in which they are rounded.
    values[order] = _rounded_in_turn(weight[order], upper, order, rounder, steps, progress)
    if isinstance(target, Format):
        return jnp.asarray(values.astype(np.float32))
    return rounder.quantized()


def inverse_factor(moment: NDArray, dead: NDArray, damping: float) -> NDArray:
    """The upper triangular U with U^T U = H^-1, H the damped moments.

    H's own factor into an upper triangle times its transpose is inverted, which is the same and
    keeps more digits than a factor of the inverse.

    Raises:
      ValueError: H is not positive definite.
    """
    damped = moment.copy()
    damp = damping * np.mean(np.diagonal(moment))
    damped[np.diag_indices_from(damped)] += np.where(dead, 1.0, 0.0) + damp
    try:
        lower = np.linalg.cholesky(damped[::-1, ::-1])
    except np.linalg.LinAlgError:
        raise ValueError(
            f"gptq: the second moments of `calibration` are singular with damping = {damping}; "
            f"give more rows than the weight has ({len(moment)}), or more damping"
        ) from None
    return np.triu(np.linalg.inv(lower[::-1, ::-1]))


def _rounded_in_turn(
    weight: NDArray,
    upper: NDArray,
    order: NDArray,
    rounder: Rounder,
    steps: Gptq,
    progress: Progress,
) -> NDArray:
    """The values of all columns, in the order given; `weight` is worked on."""
    values = np.empty_like(weight)
    for start in range(0, len(weight), steps.columns):
        stop = min(start + steps.columns, len(weight))
        before = weight[start:stop].copy()
        errors = np.zeros((stop - start, weight.shape[1]))
        for k in range(start, stop):
            column = int(order[k])
            if not rounder.holds(column):
                late = errors[: k - start], upper[start:k]
                tile = rounder.tile(column)
                rounder.hold(column, _shown(weight, before, tile, start, stop, *late, steps))
            values[k] = rounder.round(column, weight[k])
            errors[k - start] = (weight[k] - values[k]) / upper[k, k]
            weight[k + 1 : stop] -= np.outer(upper[k, k + 1 : stop], errors[k - start])
        weight[stop:] -= upper[start:stop, stop:].T @ errors
        progress("gptq", stop, len(weight))
    return values


def _shown(
    weight: NDArray,
    before: NDArray,
    tile: slice,
    start: int,
    stop: int,
    errors: NDArray,
    upper: NDArray,
    steps: Gptq,
) -> NDArray:
    """The columns that a tile's scale is made for when its first is reached, in natural order."""
    if steps.scales == "start":
        return np.concatenate([before[tile.start - start :], weight[stop : tile.stop]])[
            : tile.stop - tile.start
        ]
    # Columns past the block wait for its errors until it is done.
    columns = weight[tile].copy()
    waiting = slice(max(stop, tile.start), tile.stop)
    if waiting.start < waiting.stop:
        columns[waiting.start - tile.start :] -= upper[:, waiting].T @ errors
    return columns
