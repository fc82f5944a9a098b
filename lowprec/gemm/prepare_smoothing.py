"""The factors between x and w: SmoothQuant's from their largest numbers, AWQ's by search.

Factors are float64 on the host, the same on one machine and version, rounded once to float32;
x / s and s * w are then correctly rounded float32 arithmetic.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.gemm.preparation import Smoothing
from lowprec.gemm.prepare_calibration import Calibration
from lowprec.gemm.prepare_rounding import nearest_values
from lowprec.gemm.prepared import turn
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block


def smoothing_factors(
    w: jax.Array, calibration: Calibration, target: Format | Block, steps: Smoothing, length: int
) -> tuple[jax.Array, jax.Array | None]:
    """The factors s, (K,) float32, and the ratio of `awq`, a float32 scalar.

    Args:
      w: (K, N) float32.
      calibration: rows of x.
      target: what the weight will be rounded to.
      steps: how.
      length: K with the zeros that the block's transform needs.
    """
    if steps.method == "smoothquant":
        return jnp.asarray(_smoothquant(w, calibration, steps)), None
    factors, ratio = _awq(w, calibration, target, steps, length)
    return jnp.asarray(factors), jnp.asarray(ratio, jnp.float32)


def _smoothquant(w: jax.Array, calibration: Calibration, steps: Smoothing) -> NDArray:
    assert steps.strength is not None
    of_x = calibration.largest()
    of_w = np.maximum(np.abs(np.asarray(w, np.float64)).max(1), steps.least)
    factors = of_x**steps.strength / of_w ** (1 - steps.strength)
    return np.maximum(factors, steps.least).astype(np.float32)


def _awq(
    w: jax.Array, calibration: Calibration, target: Format | Block, steps: Smoothing, length: int
) -> tuple[NDArray, float]:
    """The factors with the smallest loss on the grid."""
    mean = calibration.mean_magnitude()
    if not mean.any():
        raise ValueError("`calibration` is all zeros: awq has nothing to go by; give real inputs")
    moment = calibration.second_moment() if steps.loss == "output" else None
    wide = np.asarray(w, np.float64)
    losses, tried = [], []
    for i, ratio in enumerate(steps.grid, start=1):
        factors = awq_factors(mean, ratio, steps.least)
        scaled = turn(w, jnp.asarray(factors), None, None, axis=-2, length=length)
        values = np.asarray(nearest_values(scaled, target), np.float64)[: len(wide)]
        error = wide - values / factors[:, None].astype(np.float64)
        if moment is None:
            losses.append(float(np.mean((error * mean[:, None]) ** 2)))
        else:
            losses.append(float(np.sum(error * (moment @ error))))
        tried.append(factors)
        calibration.progress("awq", i, len(steps.grid))
    best = int(np.argmin(losses))
    return tried[best], steps.grid[best]


def awq_factors(mean: NDArray, ratio: float, least: float) -> NDArray:
    """The factors of one ratio, (K,) float32, from the mean magnitudes of the channels of x.

    Example:
      >>> awq_factors(np.array([1.0, 4.0]), 0.5, 1e-4)
      array([0.70710677, 1.4142135 ], dtype=float32)
    """
    powers = np.maximum(np.maximum(mean / mean.max(), least) ** ratio, least)
    return (powers / np.sqrt(powers.max() * powers.min())).astype(np.float32)
