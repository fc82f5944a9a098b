"""The oracle of accumulators whose every operation is rounded, as a processor's would be."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from lowprec.engines.engine import Engine
from lowprec.engines.oracle_number import ZERO, Number, add, min_exponent, multiply, round_to
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.rounding import Rounding, is_stochastic

_FLOAT32 = get_format("float32")
Pairs = Sequence[tuple[Number, Number]]


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """IEEE 754 operations in a format.

    `flush`: as in float32 arithmetic without subnormals: operands below 2^-126 are zeros of their
    sign, and so is a result that lies there after rounding to 24 bits. A format whose numbers end
    above 2^-126 keeps its own subnormals all the same.
    """

    fmt: Format
    rounding: Rounding
    flush: bool

    def rounded(self, x: Number, word: int = 0) -> Number:
        flush = self.flush and min_exponent(self.fmt) <= -126
        if flush and x.kind == "finite" and x.significand:
            nearest = round_to(x, _FLOAT32, "nearest_even", flush=True)
            if nearest.kind == "finite" and not nearest.significand:
                return Number("finite", x.negative)
        if is_stochastic(self.rounding):
            x = _cut(x)
        return round_to(x, self.fmt, self.rounding, flush=flush, stops_at_max=True, word=word)

    def nearest(self, x: Number) -> Number:
        """x rounded to nearest even, whatever the mode of the operations."""
        return dataclasses.replace(self, rounding="nearest_even").rounded(x)

    def operand(self, x: Number) -> Number:
        """x, or a zero of its sign where it is flushed."""
        tiny = x.kind == "finite" and x.significand and x.binade < -126
        return Number("finite", x.negative) if self.flush and tiny else x

    def multiply(self, x: Number, y: Number, word: int = 0) -> Number:
        return self.rounded(multiply(self.operand(x), self.operand(y)), word)

    def add(self, x: Number, y: Number, word: int = 0) -> Number:
        return self.rounded(add(x, y, self.rounding), word)

    def subtract(self, x: Number, y: Number) -> Number:
        return self.add(x, y._replace(negative=not y.negative, significand=-y.significand))

    def multiply_add(self, x: Number, y: Number, z: Number, word: int = 0) -> Number:
        exact = multiply(self.operand(x), self.operand(y))
        return self.rounded(add(exact, z, self.rounding), word)


def _cut(x: Number) -> Number:
    """The first 24 bits of x: of the fraction only so many are compared with random ones."""
    lost = abs(x.significand).bit_length() - 24
    if lost <= 0:
        return x
    kept = abs(x.significand) >> lost
    return x._replace(significand=-kept if x.significand < 0 else kept, exponent=x.exponent + lost)


def plain_dot(engine: Engine, pairs: Pairs, c: Number, words: Iterator[int]) -> Number:
    """The sum that `sequential`, `chunked`, `tree` or `compensated` computes."""
    flush = engine.subnormals == "flush"
    inner = Arithmetic(engine.register_format, engine.output_rounding, flush)
    match engine.accumulation:
        case "sequential":
            return _sequential(engine, inner, pairs, inner.nearest(c), words)
        case "chunked":
            return _chunked(engine, inner, pairs, c, words)
        case "tree":
            products = [inner.multiply(a, b) for a, b in pairs]
            return inner.add(inner.nearest(c), _tree(inner, products))
        case "compensated":
            return _compensated(inner, pairs, inner.nearest(c))
    raise AssertionError(engine.accumulation)


def _sequential(
    engine: Engine, ops: Arithmetic, pairs: Pairs, total: Number, words: Iterator[int]
) -> Number:
    """k ascending; each rounding takes a random word: the product's, then the sum's."""
    for a, b in pairs:
        if engine.fused_multiply:
            total = ops.multiply_add(a, b, total, next(words))
        else:
            product = ops.multiply(a, b, next(words))
            total = ops.add(total, product, next(words))
    return total


def _chunked(
    engine: Engine, inner: Arithmetic, pairs: Pairs, c: Number, words: Iterator[int]
) -> Number:
    assert engine.outer is not None and engine.fused_length is not None
    outer = Arithmetic(engine.outer, engine.outer_rounding, inner.flush)
    total = outer.nearest(c)
    for start in range(0, len(pairs), engine.fused_length):
        chunk = pairs[start : start + engine.fused_length]
        total = outer.add(total, _sequential(engine, inner, chunk, ZERO, words))
    return total


def _tree(ops: Arithmetic, terms: list[Number]) -> Number:
    """Neighbours added level by level; the last of an odd number is carried up as it is."""
    while len(terms) > 1:
        paired = itertools.zip_longest(terms[::2], terms[1::2])
        terms = [x if y is None else ops.add(x, y) for x, y in paired]
    return terms[0]


def _compensated(ops: Arithmetic, pairs: Pairs, total: Number) -> Number:
    """Kahan's sum: what a sum lost is taken off the next product."""
    error = ZERO
    for a, b in pairs:
        corrected = ops.subtract(ops.multiply(a, b), error)
        following = ops.add(total, corrected)
        error = ops.subtract(ops.subtract(following, total), corrected)
        total = following
    return total


def pairwise_step(engine: Engine, pairs: Pairs, lowest: tuple[int, int], c: Number) -> Number:
    """AMD CDNA2: products of two or four k, neighbours added, then c; no subnormals anywhere.

    Subnormal operands become +0, whatever their sign; subnormal results keep theirs.
    """
    ops = Arithmetic(engine.register_format, engine.output_rounding, flush=True)
    products = [
        ops.multiply(without_subnormals(a, lowest[0]), without_subnormals(b, lowest[1]))
        for a, b in pairs
    ]
    return ops.add(c, _tree(ops, products))


def without_subnormals(x: Number, lowest: int) -> Number:
    """x, or +0 where it lies below 2^lowest; -0 stays."""
    return ZERO if x.kind == "finite" and x.significand and x.binade < lowest else x
