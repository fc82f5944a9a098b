"""Error measures on arrays, in float64 on the host.

Every measure takes the result and an exact reference of the same shape. They are NumPy functions,
not traced ones: JAX has no float64 unless it is switched on, and a measure must not add an error.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorMeasures:
    """How a result differs from its reference; see the functions of the same names.

    Attributes:
      sqnr_db: signal to quantization-noise ratio, dB.
      gain: least-squares slope of result on reference, minus 1.
      gain_standard_error: the standard error of `gain`.
      residual_sqnr_db: the ratio after the gain is removed, dB.
      relative_frobenius: ||result - reference|| / ||reference||.
      backward_error: the largest |result - reference| / (|A| |B|), or NaN where no bound was given.
    """

    sqnr_db: float
    gain: float
    gain_standard_error: float
    residual_sqnr_db: float
    relative_frobenius: float
    backward_error: float


def measure(
    result: ArrayLike, reference: ArrayLike, magnitude: ArrayLike | None = None
) -> ErrorMeasures:
    """All error measures of `result` against `reference`.

    Args:
      result: any shape, float.
      reference: the same shape, exact or float64.
      magnitude: for a product A @ B, the product |A| @ |B|, which bounds its conditioning.

    Raises:
      ValueError: shapes differ, or an array is empty.

    Example:
      >>> round(measure([1.0, 2.1], [1.0, 2.0]).sqnr_db, 2)
      26.99
    """
    y, x = _pair(result, reference)
    slope, error = gain(y, x)
    return ErrorMeasures(
        sqnr_db=sqnr_db(y, x),
        gain=slope,
        gain_standard_error=error,
        residual_sqnr_db=sqnr_db(y, (1 + slope) * x),
        relative_frobenius=relative_frobenius(y, x),
        backward_error=math.nan if magnitude is None else backward_error(y, x, magnitude),
    )


def sqnr_db(result: ArrayLike, reference: ArrayLike) -> float:
    """Signal to quantization-noise ratio, 10 log10(sum x^2 / sum (y - x)^2), in dB, pooled.

    Inf where result and reference are equal, NaN where the reference is all zeros or an operand is
    not finite.

    Example:
      >>> sqnr_db([1.0, 1.0], [1.0, 1.0])
      inf
    """
    y, x = _pair(result, reference)
    signal, noise = float(np.sum(x * x)), float(np.sum((y - x) ** 2))
    if not math.isfinite(signal) or not math.isfinite(noise) or signal == 0:
        return math.nan
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


def gain(result: ArrayLike, reference: ArrayLike) -> tuple[float, float]:
    """The least-squares slope of result on reference, minus 1, and its standard error.

    A rounding that shrinks every sum shows here, and hides in SQNR. The standard error is White's
    (1980, HC0), which allows for noise that grows with the signal; elements count as independent.

    Example:
      >>> slope, error = gain([0.9, 1.8], [1.0, 2.0])
      >>> round(slope, 3), round(error, 3)
      (-0.1, 0.0)
    """
    y, x = _pair(result, reference)
    energy = float(np.sum(x * x))
    if energy == 0:
        return math.nan, math.nan
    slope = float(np.sum(x * (y - x))) / energy
    residual = y - (1 + slope) * x
    return slope, math.sqrt(float(np.sum((x * residual) ** 2))) / energy


def relative_frobenius(result: ArrayLike, reference: ArrayLike) -> float:
    """||y - x|| / ||x|| in the Frobenius norm; NaN where the reference is all zeros.

    Example:
      >>> relative_frobenius([1.0, 1.0], [1.0, 0.0])
      1.0
    """
    y, x = _pair(result, reference)
    norm = float(np.linalg.norm(x))
    return float(np.linalg.norm(y - x)) / norm if norm else math.nan


def backward_error(result: ArrayLike, reference: ArrayLike, magnitude: ArrayLike) -> float:
    """The largest |y - x| / (|A| |B|) over the elements of a product; 0 / 0 counts as 0.

    The componentwise backward error (Higham, Accuracy and Stability of Numerical Algorithms, 2002,
    section 7.2): how far the operands would have to move, relative to themselves, to give y.

    Example:
      >>> backward_error([1.5], [1.0], [10.0])
      0.05
    """
    y, x = _pair(result, reference)
    scale, error = np.asarray(magnitude, np.float64), np.abs(y - x)
    if scale.shape != x.shape:
        raise ValueError(f"`magnitude` has shape {scale.shape}; the reference has {x.shape}")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error == 0, 0.0, error / scale)
    return float(np.max(ratio))


def _pair(result: ArrayLike, reference: ArrayLike) -> tuple[NDArray, NDArray]:
    y, x = np.asarray(result, np.float64), np.asarray(reference, np.float64)
    if y.shape != x.shape:
        raise ValueError(f"`result` has shape {y.shape}; `reference` has shape {x.shape}")
    if not x.size:
        raise ValueError(f"`reference` of shape {x.shape} is empty")
    return y, x
