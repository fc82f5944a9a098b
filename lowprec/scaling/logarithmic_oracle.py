"""The oracle of LogFMT blocks: the committed polynomials in Python's integers, and the real rule.

`code_tile` says bit for bit what `lowprec.quantize` returns; `real_levels` and `real_thresholds`
are the definition in real numbers, to 40 digits, from which it may differ by the polynomials'
error. It shares no arithmetic with `lowprec.scaling.logarithmic`.
"""

import itertools
import math
from decimal import Decimal, getcontext
from fractions import Fraction
from typing import NamedTuple

from lowprec.numerics import oracle
from lowprec.scaling.block import Block
from lowprec.scaling.codings import Logarithmic

getcontext().prec = 40


class Coded(NamedTuple):
    """Codes of a tile, the stored amax and amin, and float32 bits of the values."""

    codes: list[int]
    amax: float
    amin: float
    values: list[int]


def polynomial(t: int, coefficients: tuple[int, ...]) -> int:
    """Horner's rule, every product with t / 2^32 floored."""
    result = 0
    for coefficient in reversed(coefficients):
        result = coefficient + (result * t >> 32)
    return result


def log2(x: float, spec: Logarithmic) -> int:
    """log2 of a positive number in units of 2^-23."""
    mantissa, exponent = math.frexp(x)
    t = int((2 * mantissa - 1) * 2**32)
    return (exponent - 1) * 2**23 + (polynomial(t, spec.log2_coefficients) + 64 >> 7)


def exp2(logarithm: int, spec: Logarithmic) -> int:
    """float32 bits of the power of two of a number in units of 2^-23."""
    whole, rest = divmod(logarithm, 2**23)
    significand = polynomial(rest * 2**9, spec.exp2_coefficients)
    return oracle.round_to_float32(Fraction(significand, 2**30) * Fraction(2) ** whole)


def code_tile(xs: list[float], block: Block) -> Coded:
    """What `lowprec.quantize` makes of one tile of float32 values, and what they decode to."""
    spec = block.logarithmic
    assert spec is not None
    levels = 2 ** (block.element.bits - 1)
    signs = [levels if math.copysign(1.0, x) < 0 else 0 for x in xs]
    if not all(map(math.isfinite, xs)):
        nan = oracle.float32_bits(math.nan)
        return Coded([sign + levels - 1 for sign in signs], math.nan, math.nan, [nan] * len(xs))
    sizes = [abs(x) for x in xs]
    counted = sizes if spec.zeros == "included" else [size for size in sizes if size > 0]
    amax, amin = _stored(max(sizes), True, block), _stored(min(counted, default=0.0), False, block)
    if amax == 0:
        return Coded(signs, amax, amin, [sign // levels << 31 for sign in signs])
    lowest, span, cut = _ladder(amax, amin, spec)
    rise = _rise(span, levels - 2, spec)
    codes, values = [], []
    for size, sign in zip(sizes, signs, strict=True):
        above = 0 if size == 0 else log2(size, spec) - lowest
        reached = [k for k in range(1, levels) if _reaches(above, k, span, rise, levels - 2)]
        index = 0 if size == 0 else levels - 1 if span == 0 else max(reached, default=0)
        codes.append(sign + index)
        bits = _level(index, amax, 0.0 if cut else amin, lowest, span, levels, spec)
        values.append((sign // levels << 31) + bits)
    return Coded(codes, amax, amin, values)


def _ladder(amax: float, amin: float, spec: Logarithmic) -> tuple[int, int, bool]:
    """The lowest level and the length of the ladder, and whether it was cut short of amin."""
    top = log2(amax, spec)
    floor = top - spec.octaves * 2**23
    cut = amin == 0 or log2(amin, spec) < floor
    lowest = floor if cut else log2(amin, spec)
    return lowest, top - lowest, cut


def _rise(span: int, steps: int, spec: Logarithmic) -> int:
    """How far a midpoint lies above the middle of two logarithms, times the number of steps."""
    half = span * 2**8 // steps
    return polynomial(half * half // 2**32, spec.midpoint_coefficients) * steps // 2**7


def _reaches(above: int, k: int, span: int, rise: int, steps: int) -> bool:
    """Whether a logarithm lies at or above the midpoint of the levels k - 1 and k."""
    return above * steps >= (k - 2) * span + Fraction(span, 2) + rise


def _level(
    index: int, amax: float, amin: float, lowest: int, span: int, levels: int, spec: Logarithmic
) -> int:
    if index == 0:
        return 0
    if index == levels - 1:
        return oracle.float32_bits(amax)
    if index == 1 and amin:
        return oracle.float32_bits(amin)
    place = ((index - 1) * span + (levels - 2) // 2) // (levels - 2)
    bits = exp2(lowest + place, spec)
    return min(max(bits, oracle.float32_bits(amin)), oracle.float32_bits(amax))


def _stored(x: float, up: bool, block: Block) -> float:
    code = oracle.encode(
        x,
        block.scale_format,
        rounding="toward_positive" if up else "toward_zero",
        overflow="saturate",
    )
    return float(oracle.decode(code, block.scale_format))


def real_levels(amax: float, amin: float, octaves: int, levels: int) -> list[Decimal]:
    """The levels K = 0 to N - 1 in real numbers, the first one 2^(L0 - s), which stands for 0."""
    top = Decimal(amax).ln() / Decimal(2).ln()
    lowest = top - octaves
    if amin > 0:
        lowest = max(lowest, Decimal(amin).ln() / Decimal(2).ln())
    step = (top - lowest) / (levels - 2)
    return [Decimal(2) ** (lowest + (k - 1) * step) for k in range(levels)]


def real_thresholds(amax: float, amin: float, octaves: int, levels: int) -> list[Decimal]:
    """The smallest magnitude of each index from 1: the mean of a level and the one below."""
    ladder = real_levels(amax, amin, octaves, levels)
    return [(low + high) / 2 for low, high in itertools.pairwise(ladder)]
