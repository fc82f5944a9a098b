"""The least error of a product of Gaussian matrices at a given rate, and the rate of an error.

Ordentlich and Polyanskiy, "Optimal Quantization for Matrix Multiplication" (arXiv 2410.13780): each
of two matrices with independent N(0, 1) entries, n x a and n x b, is described by R bits an entry
without knowledge of the other. No decoder then estimates their product with a mean squared
Frobenius error below n a b Gamma(R), at any n, a and b; and lattices reach it as n grows. The
product itself has the expected square n a b, so that Gamma is a relative squared error.

    Gamma(R) = 1 - (1 - f(K)) R / K   for R < K,
    Gamma(R) = f(R) = 2 2^(-2R) - 2^(-4R)   for R >= K,

where the line from (0, 1) touches f at K = 0.906 bits: below it, dropping a share of the n
coordinates and describing the others with K bits is better than describing all.
"""

import functools
import math


def least_error(rate: float) -> float:
    """Gamma(R): the least relative squared error of a product, operands at `rate` bits an entry.

    Raises:
      ValueError: a rate that is negative or not a number.

    Example:
      >>> least_error(0.0), least_error(1.0), round(least_error(4.0), 6)
      (1.0, 0.4375, 0.007797)
    """
    if not rate >= 0:
        raise ValueError(f"`rate` = {rate!r} bits an entry; it is at least 0")
    knee = touching_rate()
    if rate < knee:
        return 1 - (1 - _independent(knee)) * rate / knee
    return _independent(rate)


def least_rate(error: float) -> float:
    """The rate at which the bound has this relative squared error: the inverse of `least_error`.

    Inf for an error of 0, and 0 for one of 1 or more, which an estimate of zero has.

    Raises:
      ValueError: an error that is negative or not a number.

    Example:
      >>> least_rate(0.4375), least_rate(1.0)
      (1.0, 0.0)
    """
    if not error >= 0:
        raise ValueError(f"`error` = {error!r}; a squared error is at least 0")
    if error == 0:
        return math.inf
    knee = touching_rate()
    if error > _independent(knee):
        return max(0.0, (1 - error) * knee / (1 - _independent(knee)))
    # 2 t - t^2 = error, with t = 2^(-2R), solved without cancellation.
    return -math.log2(error / (1 + math.sqrt(1 - error))) / 2


@functools.cache
def touching_rate() -> float:
    """K: where the line from (0, 1) touches f, so that f(K) - K f'(K) = 1.

    Example:
      >>> round(touching_rate(), 4)
      0.9063
    """
    low, high = 0.5, 2.0
    for _ in range(100):
        middle = (low + high) / 2
        slope = -4 * math.log(2) * (4**-middle - 16**-middle)
        # Above 1 for rates below K, where f is concave or not yet steep enough.
        short = _independent(middle) - middle * slope > 1
        low, high = (middle, high) if short else (low, middle)
    return (low + high) / 2


def _independent(rate: float) -> float:
    """f(R): what describing every entry with R bits costs, both operands at rate-distortion."""
    return 2 * 4**-rate - 16**-rate
