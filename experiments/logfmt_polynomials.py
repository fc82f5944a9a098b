"""Regenerates the fixed-point polynomials of the LogFMT blocks in formats/blocks/logfmt*.toml.

Each is the interpolation of a function at Chebyshev points, nearly minimax, in decimals of 60
digits, its coefficients rounded to 2^-30. Run it to print them:

    python experiments/logfmt_polynomials.py
"""

import math
from collections.abc import Callable
from decimal import Decimal, getcontext
from fractions import Fraction

UNIT = 30
"""Coefficients are in units of 2^-30."""

getcontext().prec = 60


def log2_ratio(t: Decimal) -> Decimal:
    """log2(1 + t) / t."""
    return (1 + t).ln() / Decimal(2).ln() / t


def exp2_ratio(f: Decimal) -> Decimal:
    """(2^f - 1) / f."""
    return ((f * Decimal(2).ln()).exp() - 1) / f


def midpoint_ratio(v: Decimal) -> Decimal:
    """log2(cosh(sqrt(v) ln 2)) / v."""
    up = (v.sqrt() * Decimal(2).ln()).exp()
    return ((up + 1 / up) / 2).ln() / Decimal(2).ln() / v


def interpolate(function: Callable[[Decimal], Decimal], degree: int) -> list[Fraction]:
    """The polynomial through Chebyshev points of [0, 1], constant first."""
    count = degree + 1
    nodes = [
        Fraction(0.5 * (1 + math.cos(math.pi * (2 * i + 1) / (2 * count)))) for i in range(count)
    ]
    values = [Fraction(function(Decimal(x.numerator) / Decimal(x.denominator))) for x in nodes]
    # Newton's divided differences, then nested multiplication back to powers.
    for level in range(1, count):
        for i in range(count - 1, level - 1, -1):
            values[i] = (values[i] - values[i - 1]) / (nodes[i] - nodes[i - level])
    powers = [Fraction(0)] * count
    for i in range(count - 1, -1, -1):
        shifted = [Fraction(0), *powers[:-1]]
        powers = [s - nodes[i] * p for s, p in zip(shifted, powers, strict=True)]
        powers[0] += values[i]
    return powers


def fixed(coefficients: list[Fraction]) -> tuple[int, ...]:
    return tuple(round(c * 2**UNIT) for c in coefficients)


def polynomials() -> dict[str, tuple[int, ...]]:
    """The three tables: their constants are exact, so that powers of two have exact logarithms."""
    return {
        "log2_coefficients": (0, *fixed(interpolate(log2_ratio, 9))),
        "exp2_coefficients": (2**UNIT, *fixed(interpolate(exp2_ratio, 6))),
        "midpoint_coefficients": (0, *fixed(interpolate(midpoint_ratio, 5))),
    }


if __name__ == "__main__":
    for name, coefficients in polynomials().items():
        print(f"{name} = {list(coefficients)}")
