"""The exact oracle of every engine: one dot product in Python integers.

Slow and obvious, it spells out what `lowprec.matmul` must return, bit for bit, and shares no
arithmetic with it. `dot` reads operands and chains an engine's steps; the steps are in
`oracle_fused`, `oracle_two_step` and `oracle_plain`.
"""

import itertools
from collections.abc import Iterator, Sequence

from lowprec.engines.engine import Engine, get_engine
from lowprec.engines.oracle_fused import (
    Term,
    exact_step,
    fused_step,
    product,
    scaled,
    summed_group,
)
from lowprec.engines.oracle_number import (
    ZERO,
    Number,
    add,
    decoder,
    field_exponent,
    finite,
    min_exponent,
    round_to,
    to_float32_bits,
)
from lowprec.engines.oracle_plain import Pairs, pairwise_step, plain_dot, without_subnormals
from lowprec.engines.oracle_two_step import two_step
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.rounding import is_stochastic

_PLAIN = ("sequential", "chunked", "tree", "compensated")
_QUIET_NAN = 0x7FC00000
_ALL_ONES_NAN = {"float32": 0x7FFFFFFF, "float16": 0x7FFFE000}
_ONE = Term(finite(1, 0), 0)

Scales = Sequence[tuple[Term, Term]]


def dot(
    engine: Engine,
    a: Sequence[int],
    b: Sequence[int],
    c: int = 0,
    *,
    a_format: Format,
    b_format: Format,
    a_scales: Sequence[int] = (),
    b_scales: Sequence[int] = (),
    scale_format: Format | None = None,
    words: Sequence[int] | None = None,
) -> int:
    """sum(a * b) + c as an engine computes it.

    Args:
      engine: any engine but `native` and `unknown` ones.
      a: K codes of `a_format`.
      b: K codes of `b_format`.
      c: float32 bits.
      a_format: the format of a: one of the engine's inputs; float32 where it truncates operands;
        any that float32 holds for plain accumulators.
      b_format: the format of b, the same.
      a_scales: codes of `scale_format`, one for each `scale_block` of k; none is a scale of 1.
      b_scales: the same for b.
      scale_format: the format of both scales, of which the sign is ignored.
      words: random words of 32 bits for stochastic rounding, one for each rounding in order: of
        `sequential`, each product and each sum; of `fused`, each step.

    Returns:
      float32 bits; a float16 result is widened, its NaN too.

    Raises:
      ValueError: the engine has no defined bits, or stochastic rounding lacks words.

    Example:
      >>> fp8 = get_format("float8_e4m3fn")
      >>> ones = [0x38] * 4
      >>> hex(dot(get_engine("hopper.wgmma.fp8.fp32"), ones, ones, a_format=fp8, b_format=fp8))
      '0x40800000'
    """
    if engine.accumulation in ("native", "unknown"):
        raise ValueError(
            f"engine {engine.name!r}: accumulation = {engine.accumulation!r} has no defined bits"
        )
    if words is None and is_stochastic(engine.output_rounding):
        raise ValueError(f"engine {engine.name!r}: {engine.output_rounding} rounding needs `words`")
    drawn = itertools.repeat(0) if words is None else iter(words)
    start = decoder(get_format("float32"))(c)
    pairs = [
        (_operand(engine, x, a_format), _operand(engine, y, b_format))
        for x, y in zip(a, b, strict=True)
    ]
    if engine.accumulation in _PLAIN:
        return to_float32_bits(plain_dot(engine, pairs, start, drawn), _QUIET_NAN)
    lowest = _lowest(engine, a_format), _lowest(engine, b_format)
    scales = _scales(engine, len(pairs), a_scales, b_scales, scale_format)
    total = round_to(start, engine.output, "nearest_even")
    length = engine.instruction_length or len(pairs)
    for first in range(0, len(pairs), length):
        one = slice(first, first + length)
        total = _instruction(engine, pairs[one], scales[one], lowest, total, drawn)
    nan = _ALL_ONES_NAN[engine.output.name] if engine.nan == "all_ones" else _QUIET_NAN
    return to_float32_bits(total, nan)


def sequential_dot(a: Sequence[int], b: Sequence[int], c: int = 0) -> int:
    """`dot` of float32 bits by the `fp32` engine."""
    float32 = get_format("float32")
    return dot(get_engine("fp32"), a, b, c, a_format=float32, b_format=float32)


def _operand(engine: Engine, code: int, fmt: Format) -> Number:
    """The value of an operand, cut to the engine's input format where it says so."""
    if engine.truncate_operands:
        cut_to = engine.inputs[0]
        assert cut_to.exponent_bits == fmt.exponent_bits and cut_to.infinity == fmt.infinity
        code &= -1 << (fmt.mantissa_bits - cut_to.mantissa_bits)
    return decoder(fmt)(code)


def _lowest(engine: Engine, fmt: Format) -> int:
    """The exponent that subnormal operands of a format are read with."""
    return min_exponent(engine.through or fmt)


def _scales(
    engine: Engine,
    count: int,
    a_scales: Sequence[int],
    b_scales: Sequence[int],
    fmt: Format | None,
) -> Scales:
    """Both scales of every k as terms; nothing where no step needs them."""
    if not a_scales and not b_scales:
        return [(_ONE, _ONE)] * count if engine.accumulation == "grouped" else []
    if fmt is None or engine.scale_block is None:
        raise ValueError("scales need `scale_format` and an engine with scale_block")
    alphas, betas = ([_scale(code, fmt) for code in codes] for codes in (a_scales, b_scales))
    block = engine.scale_block
    return [(alphas[k // block], betas[k // block]) for k in range(count)]


def _scale(code: int, fmt: Format) -> Term:
    """A scale without its sign, and its exponent; a zero has none."""
    value = decoder(fmt)(code & fmt.code_mask)
    value = value._replace(negative=False, significand=abs(value.significand))
    counts = value.kind == "finite" and value.significand
    return Term(value, field_exponent(value, min_exponent(fmt)) if counts else None)


def _instruction(
    engine: Engine,
    pairs: Pairs,
    scales: Scales,
    lowest: tuple[int, int],
    c: Number,
    words: Iterator[int],
) -> Number:
    """The k that are taken before c has joined once: one step, or `interleave` of them."""
    if engine.accumulation == "pairwise":
        c = without_subnormals(c, min_exponent(engine.output))
        return pairwise_step(engine, _padded(engine, pairs), lowest, c)
    terms = [product(x, y, lowest) for x, y in pairs]
    if engine.accumulation == "exact":
        return exact_step(engine, terms, c)
    if engine.accumulation == "two_step":
        return two_step(engine, terms, c)
    if engine.accumulation == "grouped":
        terms = _groups(engine, terms, scales)
    elif scales:
        terms = [scaled(term, *pair) for term, pair in zip(terms, scales, strict=True)]
    separate = engine.accumulator == "separate"
    total = ZERO if separate else c
    for place in range(engine.interleave):
        dealt = [x for k, x in enumerate(terms) if k // 2 % engine.interleave == place]
        total = fused_step(engine, dealt, total, next(words))
    # An operation of its own: to nearest even, with subnormals and the signs of zeros.
    return round_to(add(total, c), engine.output, "nearest_even") if separate else total


def _groups(engine: Engine, terms: Sequence[Term], scales: Scales) -> list[Term]:
    """The sums of `group` consecutive products, each with the scales of its first k."""
    assert engine.group is not None
    starts = range(0, len(terms), engine.group)
    return [summed_group(terms[k : k + engine.group], *scales[k]) for k in starts]


def _padded(engine: Engine, pairs: Pairs) -> Pairs:
    """An instruction's pairs, with zeros where K has ended: -0 + 0 is not -0."""
    missing = (engine.instruction_length or len(pairs)) - len(pairs)
    return [*pairs, *[(ZERO, ZERO)] * missing]
