"""The oracle of steps that align products, add them and round once: fused, grouped, exact."""

from collections.abc import Sequence
from typing import NamedTuple

from lowprec.engines.engine import Engine
from lowprec.engines.oracle_number import (
    ZERO,
    Number,
    add,
    field_exponent,
    finite,
    min_exponent,
    multiply,
    round_to,
    shift_and_round,
    special_sum,
)


class Term(NamedTuple):
    """What a step adds, and the exponent it is aligned by; None where it does not count."""

    value: Number
    exponent: int | None


def product(a: Number, b: Number, lowest: tuple[int, int]) -> Term:
    """a * b with the sum of both exponents; a subnormal has its format's lowest one."""
    value = multiply(a, b)
    if value.kind != "finite" or value.significand == 0:
        return Term(value, None)
    return Term(value, field_exponent(a, lowest[0]) + field_exponent(b, lowest[1]))


def scaled(term: Term, alpha: Term, beta: Term) -> Term:
    """A product times two scales, whose exponents join its own."""
    value = multiply(multiply(term.value, alpha.value), beta.value)
    exponents = (term.exponent, alpha.exponent, beta.exponent)
    known = [exponent for exponent in exponents if exponent is not None]
    return Term(value, sum(known) if len(known) == 3 else None)


def summed_group(terms: Sequence[Term], alpha: Term, beta: Term) -> Term:
    """The sum of a group's products times its two scales, with the exponents of the scales alone.

    A group of zeros, or with a scale of zero, does not count; one that cancels to zero does.
    """
    total = ZERO
    for term in terms:
        total = add(total, term.value)
    value = multiply(multiply(total, alpha.value), beta.value)
    if alpha.exponent is None or beta.exponent is None or all(x.exponent is None for x in terms):
        return Term(value, None)
    return Term(value, alpha.exponent + beta.exponent)


def fused_step(engine: Engine, terms: Sequence[Term], c: Number, word: int = 0) -> Number:
    """The terms and c aligned to the largest exponent, cut, added and rounded to the register.

    Where the accumulator is added in a separate operation, c is what the step before gave.
    """
    assert engine.fraction_bits is not None
    special = special_sum([*(term.value for term in terms), c])
    if special is not None:
        return special
    if engine.accumulator != "last":
        lowest = min_exponent(engine.output)
        terms = [*terms, Term(c, None if c.is_zero else field_exponent(c, lowest))]
    exponents = [term.exponent for term in terms if term.exponent is not None]
    if engine.min_exponent is not None:
        exponents.append(engine.min_exponent)
    # Without any exponent every term is zero.
    unit = max(exponents, default=0) - engine.fraction_bits
    total = finite(
        sum(
            shift_and_round(x.significand, x.exponent - unit, engine.alignment_rounding)
            for x, _ in terms
        ),
        unit,
    )
    return _rounded(engine, add(total, c) if engine.accumulator == "last" else total, word)


def exact_step(engine: Engine, terms: Sequence[Term], c: Number) -> Number:
    """The terms and c added exactly, then rounded to the register."""
    special = special_sum([*(term.value for term in terms), c])
    if special is not None:
        return special
    total = c
    for term in terms:
        total = add(total, term.value)
    return _rounded(engine, total, 0)


def _rounded(engine: Engine, total: Number, word: int) -> Number:
    """A sum in the register; an exact zero is +0."""
    if total.is_zero:
        return ZERO
    rounded = round_to(total, engine.register_format, engine.output_rounding, word=word)
    return ZERO if rounded.is_zero and engine.zero_sign == "positive" else rounded
