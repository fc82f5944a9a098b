"""The oracle of `two_step` (AMD CDNA3): products aligned to each other, then to c, cut downwards.

Source: the TR-FDPA and GTR-FDPA of "Bit-Accurate Modeling of GPU Matrix Multiply-Accumulate Units"
(arXiv 2511.10909).
"""

from collections.abc import Sequence

from lowprec.engines.engine import Engine
from lowprec.engines.oracle_fused import Term
from lowprec.engines.oracle_number import (
    ZERO,
    Number,
    add,
    field_exponent,
    finite,
    infinity,
    min_exponent,
    round_to,
    shift_and_round,
    special_sum,
)
from lowprec.numerics.rounding import Rounding


def two_step(engine: Engine, terms: Sequence[Term], c: Number) -> Number:
    """The products cut to `fraction_bits` below their own largest exponent, then joined by c."""
    assert engine.fraction_bits is not None and engine.second_fraction_bits is not None
    beyond = 2**engine.register_format.exponent_bits - 1 - engine.register_format.bias
    special = special_sum([*(_limited(term.value, beyond) for term in terms), c])
    if special is not None:
        return special
    lowest = min_exponent(engine.output)
    c_exponent = lowest if c.is_zero else field_exponent(c, lowest)
    products, exponent = _products(engine, terms)
    largest = c_exponent if exponent is None else max(exponent, c_exponent)
    dropped = engine.drop_accumulator_below
    if dropped is not None and c_exponent < largest - dropped:
        c = ZERO
    # Where c joins, products keep one bit more than the sum does after it.
    kept = largest - engine.second_fraction_bits - 1
    total = add(
        _cut(products, kept, "toward_negative"),
        _cut(c, largest - engine.fraction_bits, "toward_negative"),
    )
    if total.is_zero:
        return ZERO
    unit = field_exponent(total, lowest) - engine.second_fraction_bits
    total = _cut(total, unit, "toward_negative")
    rounded = round_to(total, engine.register_format, engine.output_rounding)
    return ZERO if rounded.is_zero and engine.zero_sign == "positive" else rounded


def _products(engine: Engine, terms: Sequence[Term]) -> tuple[Number, int | None]:
    """The sum of the products and its largest exponent, None where all are zero.

    With `halves`, even and odd k are summed apart, each aligned to its own largest exponent, and
    cut downwards to the larger one where they meet.
    """
    assert engine.fraction_bits is not None
    if not engine.halves:
        return _aligned(terms, engine.fraction_bits)
    halves = [_aligned(terms[start::2], engine.fraction_bits) for start in (0, 1)]
    exponents = [exponent for _, exponent in halves if exponent is not None]
    if not exponents:
        return ZERO, None
    unit = max(exponents) - engine.fraction_bits
    even, odd = (_cut(total, unit, "toward_negative") for total, _ in halves)
    return add(even, odd), max(exponents)


def _aligned(terms: Sequence[Term], fraction_bits: int) -> tuple[Number, int | None]:
    """The sum of products cut toward zero so many bits below the largest exponent, and that."""
    exponents = [term.exponent for term in terms if term.exponent is not None]
    if not exponents:
        return ZERO, None
    total = ZERO
    for term in terms:
        total = add(total, _cut(term.value, max(exponents) - fraction_bits, "toward_zero"))
    return total, max(exponents)


def _cut(x: Number, unit: int, rounding: Rounding) -> Number:
    """x as a multiple of 2^unit."""
    return finite(shift_and_round(x.significand, x.exponent - unit, rounding), unit)


def _limited(x: Number, beyond: int) -> Number:
    """A product, infinite from 2^beyond on."""
    overflows = x.kind == "finite" and x.significand != 0 and x.binade >= beyond
    return infinity(x.negative) if overflows else x
