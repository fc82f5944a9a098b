"""Which kernel computes an engine, and how its operands are laid out for it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowprec.engines import exact, fused, grouped, plain, two_step
from lowprec.engines.aligned import Aligned, Record
from lowprec.engines.engine import Engine
from lowprec.engines.operands import Scales
from lowprec.engines.register import round_sum
from lowprec.engines.terms import (
    Reading,
    Terms,
    largest_exponent,
    reading,
    special_sum,
    take_apart,
)
from lowprec.engines.tiling import Kernel, over_tiles
from lowprec.numerics import float32
from lowprec.numerics.format import Format, get_format

ALIGNING = ("fused", "grouped", "two_step")
"""What aligns sums before it rounds them, as `aligned_sums` tells."""
_STEP = 16
"""A step takes so many k at least."""


def compute(
    engine: Engine,
    formats: tuple[Format | None, Format | None],
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    scales: tuple[Scales, Scales] | None,
    key: jax.Array | None,
) -> jax.Array:
    """float32 bits of one matrix product: a (K, M), b (K, N) and c (M, N) as float32 bits.

    Scales are (K / block, M) and (K / block, N).
    """
    if engine.accumulation == "exact":
        return _exact(engine, formats, a, b, c)
    if engine.accumulation not in ALIGNING:
        return plain.compute(engine, formats, a, b, c, key)
    a, b = _whole_instructions(engine, a, b)
    depth = a.shape[0]
    c = fused.into_output(engine, c)
    nan = (_nan(a)[:, None] | _nan(b)[None, :]) if _without_infinity(engine, formats) else None
    if scales is not None:
        of_scales = scales[0].nan.any(0)[:, None] | scales[1].nan.any(0)[None, :]
        nan = of_scales if nan is None else nan | of_scales
    kernel, operands = _aligning(engine, formats, a, b, scales)
    out = over_tiles(kernel, depth, operands[0], operands[1], c, key)
    return out if nan is None else jnp.where(nan, fused.nan_bits(engine), out)


def aligned_sums(
    engine: Engine,
    formats: tuple[Format | None, Format | None],
    a: jax.Array,
    b: jax.Array,
    scales: tuple[Scales, Scales] | None,
) -> Aligned:
    """Every sum on the way of `compute` from c = 0, in order: leaves (sums, M, N).

    The engine is one that aligns, and does not round stochastically; all that is finite.
    """
    a, b = _whole_instructions(engine, a, b)
    length, record = engine.instruction_length, []
    assert length is not None
    kernel, operands = _aligning(engine, formats, a, b, scales, record)
    count = a.shape[0] // length
    cut = lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:])
    left, right = jax.tree.map(cut, operands)

    def step(c: jax.Array, given: Any) -> tuple[jax.Array, Aligned]:
        record.clear()
        left, right, known = given
        c = kernel.step(c, left, right, known, None)
        return c, jax.tree.map(lambda *sums: jnp.stack(sums), *record)

    start = jnp.zeros((a.shape[1], b.shape[1]), jnp.uint32)
    sums = lax.scan(step, start, (left, right, kernel.before(left, right)))[1]
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), sums)


def _whole_instructions(engine: Engine, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both operands with zeros along K up to the end of an instruction."""
    length = engine.instruction_length
    assert length is not None
    missing = -a.shape[0] % length
    return jnp.pad(a, [(0, missing), (0, 0)]), jnp.pad(b, [(0, missing), (0, 0)])


def _aligning(
    engine: Engine,
    formats: tuple[Format | None, Format | None],
    a: jax.Array,
    b: jax.Array,
    scales: tuple[Scales, Scales] | None,
    record: Record | None = None,
) -> tuple[Kernel, Any]:
    """The kernel of an engine that aligns, and its operands, of whole instructions."""
    if scales is not None:
        scales = _per_k(scales[0], engine, a.shape[0]), _per_k(scales[1], engine, a.shape[0])
    if engine.accumulation == "grouped":
        return _grouped(engine, a, b, scales, record)
    return _fused(engine, formats, a, b, scales, record)


def _without_infinity(engine: Engine, formats: tuple[Format | None, Format | None]) -> bool:
    """Whether operands have NaN at most, which makes a sum NaN whatever else is in it."""
    return not any((engine.through or fmt or get_format("float32")).has_inf for fmt in formats)


def _nan(bits: jax.Array) -> jax.Array:
    """Which of the columns of (K, n) hold a NaN."""
    return (bits & float32.MAGNITUDE > float32.INFINITY).any(0)


def _per_k(scales: Scales, engine: Engine, depth: int) -> Scales:
    """Scales of so many k as the engine uses them: of a group, a step, or a k."""
    block, wanted = engine.scale_block, scale_step(engine)
    assert block is not None
    spread = jax.tree.map(lambda x: jnp.repeat(x, block // wanted, axis=0), scales)
    rows = depth // wanted
    return jax.tree.map(
        lambda x: jnp.pad(x[:rows], [(0, rows - min(rows, x.shape[0])), (0, 0)]), spread
    )


def scale_step(engine: Engine) -> int:
    """For how many k the kernel is handed one scale."""
    block, length = engine.scale_block, engine.instruction_length
    assert block is not None and length is not None
    if engine.accumulation == "grouped":
        assert engine.group is not None
        return engine.group
    return length if block % length == 0 and engine.interleave == 1 else 1


def _fused(
    engine: Engine,
    formats: tuple[Format | None, Format | None],
    a: jax.Array,
    b: jax.Array,
    scales: tuple[Scales, Scales] | None,
    record: Record | None,
) -> tuple[Kernel, Any]:
    through = engine.through
    first, second = ((through or fmt) for fmt in formats)
    assert first is not None and second is not None
    folded = scales is not None and scale_step(engine) == 1
    how = reading(first, second, folded)
    if how.product_bits > 24:
        raise ValueError(
            f"engine {engine.name!r}: products of {first.name} and {second.name} have "
            f"{how.product_bits} significant bits; fused sums are computed of at most 24"
        )
    operands = []
    for index, (x, fmt) in enumerate(((a, first), (b, second))):
        exponents = None if scales is None else scales[index].exponent
        whole = engine.accumulation == "two_step"
        terms = take_apart(x, how, fmt.min_exponent, exponents if folded else None, whole)
        operands.append(terms if folded else terms._replace(scale=exponents))
    assert engine.instruction_length is not None
    # Of short instructions some make a step: a compiler vectorises it, and it is worth its while.
    together = max(1, _STEP // engine.instruction_length)
    kernel = Kernel(
        engine.instruction_length * together,
        lambda c: c,
        functools.partial(_fused_step, engine, how, record),
        lambda c: c,
        functools.partial(_tops, engine, how),
    )
    return kernel, operands


def _fused_step(
    engine: Engine,
    how: Reading,
    record: Record | None,
    c: jax.Array,
    a: Terms,
    b: Terms,
    tops: list[jax.Array],
    key: jax.Array | None,
) -> jax.Array:
    length, depth = engine.instruction_length, a.value.shape[0]
    assert length is not None
    words = None
    if key is not None:
        words = jax.random.bits(key, (depth // length, engine.interleave, *c.shape), jnp.uint32)
    for index in range(depth // length):
        here = slice(index * length, (index + 1) * length)
        left, right = (_slice(x, here, index, depth // length) for x in (a, b))
        parts = len(tops) // (depth // length)
        own = tops[index * parts : (index + 1) * parts]
        if engine.accumulation == "two_step":
            c = two_step.step(engine, how, left, right, own, c, record)
        else:
            drawn = None if words is None else words[index]
            c = fused.instruction(engine, how, left, right, own, c, drawn, record)
    return c


def _tops(engine: Engine, how: Reading, a: Terms, b: Terms) -> list[jax.Array]:
    """The largest exponents of the products of each fused sum of a step: (steps, R, C) each."""
    length, depth = engine.instruction_length, a.exponent.shape[1]
    assert length is not None
    return [
        largest_exponent(a.exponent, b.exponent, [start + k for k in part])
        for start in range(0, depth, length)
        for part in fused.parts(engine, length)
    ]


def _slice(x: Terms, here: slice, index: int, count: int) -> Terms:
    """The terms of one of the instructions of a step."""
    if count == 1:
        return x
    special = None if x.special is None else x.special[here]
    scale = None if x.scale is None else x.scale[index : index + 1]
    return Terms(x.value[here], x.exponent[here], special, scale)


def _grouped(
    engine: Engine,
    a: jax.Array,
    b: jax.Array,
    scales: tuple[Scales, Scales] | None,
    record: Record | None,
) -> tuple[Kernel, Any]:
    assert engine.group is not None and engine.instruction_length is not None
    operands = []
    for index, x in enumerate((a, b)):
        if scales is None:
            rows = (x.shape[0] // engine.group, x.shape[1])
            significand, exponent = jnp.ones(rows, jnp.float32), jnp.zeros(rows, jnp.int32)
        else:
            significand, exponent = scales[index].significand, scales[index].exponent
        operands.append(grouped.take_apart_groups(x, engine.group, significand, exponent))
    kernel = Kernel(
        engine.instruction_length,
        lambda c: c,
        lambda c, a, b, known, key: grouped.step(engine, a, b, c, record),
        lambda c: c,
    )
    return kernel, operands


def _exact(
    engine: Engine,
    formats: tuple[Format | None, Format | None],
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
) -> jax.Array:
    """Sums of `fused_length` products and c, rounded once; of all of them where it is None."""
    c = fused.into_output(engine, c)
    wide = get_format("float32")
    depth, length = a.shape[0], engine.fused_length
    terms = (depth if length is None else length) + 1
    span = exact.span_of(formats[0] or wide, formats[1] or wide, terms)
    finite = [jnp.where(x & float32.MAGNITUDE < float32.INFINITY, x, 0) for x in (a, b)]
    specials = [_signs(x) for x in (a, b)]

    def add(total: Any, left: Any, right: Any) -> Any:
        number, special = total
        for k in range(left[0].shape[0]):
            x, y = left[0][k][:, None], right[0][k][None, :]
            number = exact.add_product(number, span, x, y)
        return number, special + special_sum(left[1], right[1])

    def start(c: jax.Array) -> Any:
        special = jnp.where(c & float32.MAGNITUDE < float32.INFINITY, 0, c)
        number = exact.add_number(exact.zero(span, c.shape), span, jnp.where(special == 0, c, 0))
        return number, float32.from_bits(special)

    def finish(total: Any) -> jax.Array:
        number, special = total
        bits = round_sum(
            exact.to_sum(number, span),
            engine.register_format,
            engine.output_rounding,
            engine.zero_sign,
        )
        return fused.finish_specials(engine, float32.to_bits(special), bits)

    def whole_step(total: Any, left: Any, right: Any, known: None, key: Any) -> Any:
        del known, key
        number, special = add(total, left, right)
        # Carried at every step, digits never run out of room.
        return exact.carried(number), special

    def rounded_step(c: jax.Array, left: Any, right: Any, known: None, key: Any) -> jax.Array:
        del known, key
        return finish(add(start(c), left, right))

    if length is None:
        kernel = Kernel(1, start, whole_step, finish)
    else:
        kernel = Kernel(length, lambda c: c, rounded_step, lambda c: c)
    left, right = zip(finite, specials, strict=True)
    return over_tiles(kernel, depth, left, right, c)


def _signs(bits: jax.Array) -> jax.Array:
    """float32: Inf and NaN as they are, else the sign, or 0 of a zero."""
    size = bits & float32.MAGNITUDE
    one = jnp.where(size == 0, 0, float32.ONE | (bits & float32.SIGN))
    return float32.from_bits(jnp.where(size < float32.INFINITY, one, bits))
