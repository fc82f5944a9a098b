"""Operand cards: the statistics that say why a recipe does well or badly on a matrix.

Everything is computed on the host in float64, from the values alone: the same matrix gives the same
card. Exponents are taken with `frexp`, which is exact, where a logarithm could land on the wrong
side of a power of two.
"""

from dataclasses import asdict, dataclass

import numpy as np

from lowprec.models.array_checks import check_values, is_float

BLOCK = 32
SPECTRUM_ROWS = 128


@dataclass(frozen=True, kw_only=True)
class OperandCard:
    """Statistics of a matrix that is contracted along one of its axes.

    A *vector* is a line of elements along the contraction axis, a *channel* one position on that
    axis. Ratios without a meaning (everything is zero, or constant) are 0.

    Attributes:
        shape: the matrix as given.
        dtype: its dtype.
        axis: its contraction axis, 0 or 1.
        amax: largest magnitude, in units of the elements.
        rms: root of the mean square of all elements, in units of the elements.
        crest_median: median over blocks of max / rms, without unit. A block is 32 consecutive
            elements of a vector (fewer at its end); blocks of zeros do not count. Between 1 (one
            magnitude) and sqrt(32) = 5.66 (one element carries all): what a block scale must span.
        crest_percentile_99: 99th percentile of the same.
        excess_kurtosis: fourth central moment over the squared variance, minus 3, of all elements,
            without unit: 0 for a Gaussian, large for heavy tails.
        outlier_channel_ratio: largest rms of a channel over the median of the channels that are
            not all zero, without unit: 1 where all channels weigh the same.
        effective_rank: exp of the entropy (in nats) of the squared singular values normalised to
            sum 1, over the number of singular values: 1 for a flat spectrum, near 0 for one
            dominant direction. Of at most 128 vectors, evenly spaced: the i-th of 128 out of n
            is vector floor(i * n / 128).
        top_energy: largest squared singular value over the sum of all, from 0 to 1, of the same.
        exponent_spread: 95th minus 5th percentile of floor(log2|x|) over the nonzero elements, in
            octaves; both percentiles are exponents that occur.
        zero_fraction: share of elements that are zero, from 0 to 1.
    """

    shape: tuple[int, int]
    dtype: str
    axis: int
    amax: float
    rms: float
    crest_median: float
    crest_percentile_99: float
    excess_kurtosis: float
    outlier_channel_ratio: float
    effective_rank: float
    top_energy: float
    exponent_spread: int
    zero_fraction: float

    def to_dict(self) -> dict[str, object]:
        """The fields by name, of plain Python types; `shape` is a list, as JSON has it."""
        return {**asdict(self), "shape": list(self.shape)}


def card(x: np.ndarray, axis: int = -1) -> OperandCard:
    """The card of a matrix.

    Args:
        x: (rows, columns), any float of numpy or ml_dtypes, finite.
        axis: the contraction axis: 1 or -1 for the left operand of a product, 0 for the right.

    Returns:
        The statistics, as `OperandCard` defines them.

    Raises:
        TypeError: `x` is not a float array.
        ValueError: `x` is not 2-D, is empty, or holds NaN or Inf; or `axis` is not one of its axes.

    Example:
        >>> flat = card(np.ones((4, 64), np.float32))
        >>> flat.amax, flat.crest_median, flat.exponent_spread
        (1.0, 1.0, 0)
    """
    _check(x, axis)
    axis %= 2
    # Vectors as rows, in units of a power of two near amax: squares neither overflow nor vanish.
    exact = np.ascontiguousarray(np.moveaxis(x, axis, 1)).astype(np.float64)
    amax = float(np.abs(exact).max())
    unit = float(np.ldexp(1.0, np.frexp(amax)[1] - 1)) if amax else 1.0
    values = exact / unit
    crests = _block_crests(exact)
    effective_rank, top_energy = _spectrum(values)
    return OperandCard(
        shape=(x.shape[0], x.shape[1]),
        dtype=str(x.dtype),
        axis=axis,
        amax=amax,
        rms=float(np.sqrt(np.mean(values**2))) * unit,
        crest_median=float(np.median(crests)),
        crest_percentile_99=float(np.percentile(crests, 99)),
        excess_kurtosis=_excess_kurtosis(values),
        outlier_channel_ratio=_outlier_channel_ratio(values),
        effective_rank=effective_rank,
        top_energy=top_energy,
        exponent_spread=_exponent_spread(exact),
        zero_fraction=float(np.mean(exact == 0)),
    )


def _check(x: np.ndarray, axis: int) -> None:
    if not is_float(x.dtype):
        raise TypeError(f"`x` is {x.dtype}; a card needs a float array")
    if x.ndim != 2:
        raise ValueError(f"`x` has shape {x.shape}; a card needs a matrix")
    if axis not in (-2, -1, 0, 1):
        raise ValueError(f"`axis` is {axis}; a matrix has axes 0 and 1 (or -2 and -1)")
    check_values("x", x)


def _block_crests(values: np.ndarray) -> np.ndarray:
    """max / rms of every block that is not all zero; a single 0 where there is none."""
    starts = np.arange(0, values.shape[1], BLOCK)
    lengths = np.minimum(BLOCK, values.shape[1] - starts)
    largest = np.maximum.reduceat(np.abs(values), starts, axis=1)
    # A block far below the matrix's amax would lose its squares to underflow: rescale each alone.
    scale = np.repeat(np.where(largest > 0, largest, 1), lengths, axis=1)
    mean_square = np.add.reduceat((values / scale) ** 2, starts, axis=1) / lengths
    crests = 1 / np.sqrt(mean_square[largest > 0])
    return crests if crests.size else np.zeros(1)


def _excess_kurtosis(values: np.ndarray) -> float:
    # A constant matrix would leave rounding residues of its mean, which are no spread.
    if values.min() == values.max():
        return 0.0
    squares = (values - values.mean()) ** 2
    return float(np.mean(squares**2) / np.mean(squares) ** 2 - 3)


def _outlier_channel_ratio(values: np.ndarray) -> float:
    channel_rms = np.sqrt(np.mean(values**2, axis=0))
    alive = channel_rms[channel_rms > 0]
    return float(alive.max() / np.median(alive)) if alive.size else 0.0


def _spectrum(values: np.ndarray) -> tuple[float, float]:
    """Effective rank over the number of singular values, and the share of the largest."""
    count = min(len(values), SPECTRUM_ROWS)
    sample = values[np.arange(count) * len(values) // count]
    # The squared singular values are the eigenvalues of the smaller Gram matrix; those it loses
    # to rounding are below 1e-15 of the largest and add nothing to the entropy.
    gram = sample @ sample.T if count <= sample.shape[1] else sample.T @ sample
    energies = np.maximum(np.linalg.eigvalsh(gram), 0)
    total = energies.sum()
    if total == 0:
        return 0.0, 0.0
    shares = energies[energies > 0] / total
    entropy = -np.sum(shares * np.log(shares))
    return float(np.exp(entropy) / len(energies)), float(shares.max())


def _exponent_spread(values: np.ndarray) -> int:
    exponents = np.frexp(values[values != 0])[1]
    if exponents.size == 0:
        return 0
    low, high = np.percentile(exponents, [5, 95], method="inverted_cdf")
    return int(high - low)
