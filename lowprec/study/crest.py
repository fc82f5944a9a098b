"""Blocks of a chosen crest factor, and what arXiv 2510.25602 predicts of integers and floats there.

The crest factor of a block of k elements is max |x| / rms. It is at least 1 and at most sqrt(k),
where all but one element are zero.
"""

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lowprec.numerics.format import Format

Family = Literal["generalised_normal", "student_t", "outlier"]
FAMILIES: tuple[str, ...] = get_args(Family)


def draw_blocks(
    family: str, parameter: float, count: int, size: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Blocks as float32 (count, size), each of rms 2^u with u uniform in [0, 1).

    The random factor stands for blocks whose largest value lies anywhere in its binade, which
    power-of-two scales depend on.

    Args:
      family: `generalised_normal`, density proportional to exp(-|x|^parameter): 2 is the normal,
        1 the Laplace, above 2 lies towards the uniform; `student_t` with `parameter` degrees of
        freedom; `outlier`, normal elements, one of them enlarged to give a crest factor of
        `parameter` * sqrt(size).
      parameter: of the family, positive; below 1 for `outlier`.
      count, size: of blocks and their elements.
      rng: where the numbers come from.

    Raises:
      ValueError: an unknown family or a parameter that it does not have.
    """
    if family not in FAMILIES:
        raise ValueError(f"`family` = {family!r}; the families are {', '.join(FAMILIES)}")
    if not 0 < parameter < (1 if family == "outlier" else math.inf):
        raise ValueError(f"`parameter` = {parameter!r} is outside the range of {family}")
    shape = (count, size)
    if family == "generalised_normal":
        size_of = rng.standard_gamma(1 / parameter, shape) ** (1 / parameter)
        x = np.where(rng.random(shape) < 0.5, -size_of, size_of)
    elif family == "student_t":
        x = rng.standard_t(parameter, shape)
    else:
        x = rng.standard_normal(shape)
        # peak^2 = crest^2 (peak^2 + rest) / size, with crest^2 = parameter^2 size.
        rest = np.sum(x[:, 1:] ** 2, axis=1)
        x[:, 0] = np.sqrt(rest * parameter**2 / (1 - parameter**2)) * np.sign(x[:, 0])
    x /= np.sqrt(np.mean(x * x, axis=1, keepdims=True))
    return (x * 2 ** rng.random((count, 1))).astype(np.float32)


def crest_factors(blocks: NDArray) -> NDArray[np.float64]:
    """max |x| / rms of blocks (count, size).

    Example:
      >>> crest_factors(np.array([[1.0, -1.0], [0.0, 2.0]])).round(3).tolist()
      [1.0, 1.414]
    """
    x = np.asarray(blocks, np.float64)
    return np.max(np.abs(x), axis=1) / np.sqrt(np.mean(x * x, axis=1))


def predicted_integer_db(
    bits: int, crest: float, *, overhead: float, size: int | None, exact: bool = False
) -> float:
    """Equation 13 of arXiv 2510.25602: the SQNR of a symmetric integer block, dB.

    Args:
      bits: of the integer.
      crest: factor of the block.
      overhead: rho, the scale over the one that maps the maximum to the largest integer; the
        authors take 1.5 for power-of-two scales and 1 for E4M3 ones.
      size: of the block where its maximum is exact, as they take it to be with E4M3 scales.
      exact: whether the largest integer is 2^(bits - 1) - 1; the authors count one more, which is
        1.16 dB at 4 bits.

    Example:
      >>> round(predicted_integer_db(8, 7.55, overhead=1.5, size=None), 2)
      31.86
    """
    gain = 0.0 if size is None else 10 * math.log10(size / (size - 1))
    if exact:
        largest = 2 ** (bits - 1) - 1
        return 10 * math.log10(12) + 20 * math.log10(largest / (overhead * crest)) + gain
    return 4.78 + 6.02 * bits - 20 * math.log10(overhead * crest) + gain


def predicted_float_db(
    element: Format, crest: float, *, overhead: float, size: int | None
) -> float:
    """Equation 14 of arXiv 2510.25602: the SQNR of a floating-point block, dB.

    Elements count as N(0, 1) whatever the crest factor. Normal numbers lose 2^(-2M) / 24 of their
    energy, subnormal ones a twelfth of the squared step.

    Example:
      >>> from lowprec.numerics.format import get_format
      >>> e4m3 = get_format("float8_e4m3fn")
      >>> round(predicted_float_db(e4m3, 7.55, overhead=1.5, size=None), 2)
      31.86
    """
    assert element.min_normal is not None
    scale = overhead * crest / element.max
    edge = element.min_normal * scale
    subnormal = math.erf(edge / math.sqrt(2))
    tail = math.sqrt(2 / math.pi) * edge * math.exp(-edge * edge / 2)
    normal_energy = 1 - subnormal + tail
    if size is not None:
        normal_energy -= crest**2 / size
    step = element.min_normal * 2.0**-element.mantissa_bits * scale
    noise = normal_energy / (24 * 4**element.mantissa_bits) + step**2 / 12 * subnormal
    return -10 * math.log10(noise)


def predicted_lead_db(
    integer_bits: int,
    element: Format,
    crest: float,
    *,
    overhead: float,
    size: int | None,
    exact: bool = False,
) -> float:
    """How much SQNR the integer block has more than the other by equations 13 and 14, dB."""
    integer = predicted_integer_db(integer_bits, crest, overhead=overhead, size=size, exact=exact)
    return integer - predicted_float_db(element, crest, overhead=overhead, size=size)


def predicted_crossing(
    integer_bits: int, element: Format, *, overhead: float, size: int | None, exact: bool = False
) -> float:
    """The crest factor below which equations 13 and 14 prefer the integer; NaN where there is none.

    Searched from 1 to 12, the range that the authors plot, or to sqrt(size) where a size is given.

    Example:
      >>> from lowprec.numerics.format import get_format
      >>> e4m3 = get_format("float8_e4m3fn")
      >>> round(predicted_crossing(8, e4m3, overhead=1.5, size=None), 2)
      7.55
    """

    def lead(crest: float) -> float:
        return predicted_lead_db(
            integer_bits, element, crest, overhead=overhead, size=size, exact=exact
        )

    low, high = 1.0, 12.0 if size is None else math.sqrt(size)
    if lead(low) <= 0 or lead(high) >= 0:
        return math.nan
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if lead(middle) > 0 else (low, middle)
    return (low + high) / 2
