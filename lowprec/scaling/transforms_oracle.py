"""The exact oracle of transforms: one vector at a time, in fractions rounded once an operation.

Numbers are finite Python floats that hold float32 values. It shares no arithmetic with
`lowprec.scaling.transforms`; what is promised for Inf and NaN is IEEE 754's, tested there.
"""

import math
from fractions import Fraction

from lowprec.scaling.affine_oracle import round_to
from lowprec.scaling.codings import Transform


def apply_rows(
    rows: list[list[float]], transform: Transform, vector: list[float] | None = None
) -> list[list[float]]:
    """What `lowprec.scaling.transforms.apply` makes of a matrix whose rows are contracted."""
    if transform.kind == "mean":
        means = [mean(list(column)) for column in zip(*rows, strict=True)]
        made = [[_sum(x, -m) for x, m in zip(row, means, strict=True)] for row in rows]
    elif transform.kind == "smoothing":
        assert vector is not None
        factors = [Fraction(v) if transform.inverse else 1 / Fraction(v) for v in vector]
        made = [[_scaled(x, f) for x, f in zip(row, factors, strict=True)] for row in rows]
    else:
        fixed = () if transform.signs == "given" else transform.signs
        signs = vector or [float(sign) for sign in fixed] or [1.0] * transform.size
        made = [_hadamard_row(_flipped(row, signs), transform.size) for row in rows]
    return [[round_to(Fraction(x), transform.output, _negative(x)) for x in row] for row in made]


def undo_rows(
    rows: list[list[float]], transform: Transform, vector: list[float]
) -> list[list[float]]:
    """What `lowprec.scaling.transforms.undo` makes of it; `vector` has the means of `mean`."""
    if transform.kind == "mean":
        return [[_sum(x, m) for x, m in zip(row, vector, strict=True)] for row in rows]
    if transform.kind == "smoothing":
        factors = [1 / Fraction(v) if transform.inverse else Fraction(v) for v in vector]
        return [[_scaled(x, f) for x, f in zip(row, factors, strict=True)] for row in rows]
    return [_flipped(_hadamard_row(row, transform.size), vector) for row in rows]


def matrix(size: int) -> list[list[int]]:
    """The Sylvester-Hadamard matrix: H of twice the size is [[H, H], [H, -H]]."""
    if size == 1:
        return [[1]]
    half = matrix(size // 2)
    return [row + row for row in half] + [row + [-x for x in row] for row in half]


def mean(column: list[float]) -> float:
    """Pairs are added, then pairs of pairs; zeros fill up to a power of two. Then one division."""
    count = len(column)
    sums = list(column)
    while len(sums) & (len(sums) - 1):
        sums.append(0.0)
    while len(sums) > 1:
        sums = [_sum(sums[i], sums[i + 1]) for i in range(0, len(sums), 2)]
    return round_to(Fraction(sums[0]) / count, "float32", _negative(sums[0]))


def inverse_root(size: int) -> float:
    """The float32 next to 1 / sqrt(size), by the integer square root."""
    scale = 1 << 200
    return round_to(Fraction(math.isqrt(scale * scale // size), scale), "float32")


def _hadamard_row(row: list[float], size: int) -> list[float]:
    made: list[float] = []
    for start in range(0, len(row), size):
        block, step, held = row[start : start + size], 1, 1
        if max(abs(x) for x in block) * size >= 2.0**128:
            block, held = [_divided(x, size) for x in block], size
        while step < size:
            block = [
                _sum(block[i], block[i + step])
                if not i & step
                else _sum(block[i - step], -block[i])
                for i in range(size)
            ]
            step *= 2
        made += [_scaled(x, Fraction(inverse_root(size)) * held) for x in block]
    return made


def _divided(x: float, size: int) -> float:
    """A quotient that is exact, or a zero of its sign where it is less than 2^-126."""
    return x / size if abs(x / size) >= 2.0**-126 else math.copysign(0.0, x)


def _flipped(row: list[float], signs: list[float]) -> list[float]:
    return [-x if signs[i % len(signs)] < 0 else x for i, x in enumerate(row)]


def _sum(a: float, b: float) -> float:
    return round_to(Fraction(a) + Fraction(b), "float32", _negative(a) and _negative(b))


def _scaled(x: float, factor: Fraction) -> float:
    return round_to(Fraction(x) * factor, "float32", _negative(x))


def _negative(x: float) -> bool:
    return math.copysign(1.0, x) < 0
