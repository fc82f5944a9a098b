"""Plain accumulators: sums made one by one, by chunks, by a tree, or with compensation."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.engines import fused_multiply
from lowprec.engines.arithmetic import Register, flush_operand
from lowprec.engines.engine import Engine
from lowprec.engines.fused_multiply import Split
from lowprec.engines.narrowing import holds_products
from lowprec.engines.terms import reading
from lowprec.engines.tiling import Kernel, over_tiles, run_steps
from lowprec.numerics import float32
from lowprec.numerics.format import Format

_STEP = 32
"""How many k a step takes, unrolled: sums stay in registers meanwhile."""
_FUSED_STEP = 4
_ROUNDED_STEP = 8
"""The same where sums are rounded, a chain of many operations: a processor then works on some
steps at once."""


def compute(
    engine: Engine,
    formats: tuple[Format | None, Format | None],
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    key: jax.Array | None,
) -> jax.Array:
    """float32 bits of one product: a (K, M), b (K, N), c (M, N) as float32 bits."""
    register = _register(engine, formats)
    floats = [float32.from_bits(x) for x in (a, b)]
    if engine.accumulation == "pairwise":
        floats, c = _flushed_to_zero(engine, formats, floats, c)
    elif engine.subnormals == "flush":
        floats = [flush_operand(x) for x in floats]
        c = float32.to_bits(flush_operand(float32.from_bits(c)))
    if engine.fused_multiply and register.native:
        left, right = (fused_multiply.split(x) for x in floats)
        return over_tiles(_multiply_add(register), a.shape[0], left, right, c)
    kernel = _KERNELS[engine.accumulation](engine, register, a.shape[0])
    return over_tiles(kernel, floats[0].shape[0], floats[0], floats[1], c, key)


def _flushed_to_zero(
    engine: Engine,
    formats: tuple[Format | None, Format | None],
    floats: list[jax.Array],
    c: jax.Array,
) -> tuple[list[jax.Array], jax.Array]:
    """Operands and c with subnormals of their own formats as +0, and zeros up to a whole step."""
    length = engine.fused_length
    assert length is not None
    flushed = []
    for x, fmt in zip(floats, formats, strict=True):
        smallest = np.float32((fmt or engine.output).min_normal or 0).view(np.uint32)
        bits = _without_subnormals(float32.to_bits(x), smallest)
        flushed.append(float32.from_bits(jnp.pad(bits, [(0, -x.shape[0] % length), (0, 0)])))
    return flushed, _without_subnormals(c, float32.constant(2.0**-126))


def _without_subnormals(bits: jax.Array, smallest: np.uint32) -> jax.Array:
    """float32 bits, +0 where they are subnormal in a format; -0 stays."""
    size = bits & float32.MAGNITUDE
    return jnp.where((size != 0) & (size < smallest), 0, bits)


def _register(engine: Engine, formats: tuple[Format | None, Format | None]) -> Register:
    first, second = formats
    flushes = engine.subnormals == "flush"
    exact = held = False
    if first is not None and second is not None:
        how = reading(first, second, False)
        # Out of float32's range a product would be lost, which rounding to nearest does not notice.
        whole = how.direct or (flushes and engine.output_rounding == "nearest_even")
        exact = whole and how.product_bits <= 24
        held = how.direct and holds_products(engine.register_format, first, second)
    return Register(engine.register_format, engine.output_rounding, exact, flushes, held)


def _step_length(register: Register) -> int:
    return _STEP if register.native else _ROUNDED_STEP


def _nearest(register: Register, fmt: Format | None = None) -> Register:
    return dataclasses.replace(register, format=fmt or register.format, rounding="nearest_even")


def _start(register: Register, c: jax.Array) -> jax.Array:
    # A barrier, or the compiler drops the sum with a constant zero, and -0 stays -0.
    return lax.optimization_barrier(_nearest(register).rounded(float32.from_bits(c)))


def _finish(total: jax.Array) -> jax.Array:
    bits = float32.to_bits(total)
    return jnp.where(bits & float32.MAGNITUDE > float32.INFINITY, float32.QUIET_NAN, bits)


def _sequential(engine: Engine, register: Register, depth: int) -> Kernel:
    del depth

    def step(
        total: jax.Array, a: jax.Array, b: jax.Array, known: None, key: jax.Array | None
    ) -> jax.Array:
        del known
        words = None if key is None else _words(register, key, (a.shape[0], *total.shape))
        for k in range(a.shape[0]):
            x, y = a[k][:, None], b[k][None, :]
            first, second = (None, None) if words is None else (words[0][k], words[1][k])
            if engine.fused_multiply:
                total = register.multiply_add(x, y, total, second)
            else:
                total = register.add(total, register.multiply(x, y, first), second)
        return total

    return Kernel(_step_length(register), functools.partial(_start, register), step, _finish)


def _words(register: Register, key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Random words for products and for sums: of one word the halves, where these are enough."""
    if 23 - register.format.mantissa_bits > 16:
        first, second = jax.random.bits(key, (2, *shape), jnp.uint32)
        return first, second
    both = jax.random.bits(key, shape, jnp.uint32)
    return both << 16, both & np.uint32(0xFFFF0000)


def _multiply_add(register: Register) -> Kernel:
    """Sums of products that are not rounded: by floats where these are exact, else by integers."""

    def step(total: jax.Array, a: Split, b: Split, known: None, key: Any) -> jax.Array:
        del known, key
        for k in range(a.whole.shape[0]):
            x = Split(*(part[k][:, None] for part in a))
            y = Split(*(part[k][None, :] for part in b))
            total = fused_multiply.multiply_add(x, y, total)
        return total

    def by_integers(total: jax.Array, a: Split, b: Split, known: None, key: Any) -> jax.Array:
        del known, key
        return register.multiply_add(a.whole[0][:, None], b.whole[0][None, :], total)

    start = functools.partial(_start, register)
    slow = Kernel(1, start, by_integers, _finish)
    return Kernel(
        _FUSED_STEP, start, step, _finish, fits=fused_multiply.within_range, otherwise=slow
    )


def _chunked(engine: Engine, register: Register, depth: int) -> Kernel:
    del depth
    assert engine.fused_length is not None and engine.outer is not None
    outer = dataclasses.replace(
        register,
        format=engine.outer,
        rounding=engine.outer_rounding,
        exact_products=False,
        added=register.format,
    )
    inner = _sequential(engine, register, 0)

    def step(
        total: jax.Array, a: jax.Array, b: jax.Array, known: None, key: jax.Array | None
    ) -> jax.Array:
        del known
        partial = lax.optimization_barrier(jnp.zeros_like(total))
        return outer.add(total, run_steps(inner, a.shape[0], a, b, partial, key))

    return Kernel(engine.fused_length, functools.partial(_start, outer), step, _finish)


def _compensated(engine: Engine, register: Register, depth: int) -> Kernel:
    """Kahan's summation: the rounding error of each addition is taken from the next product."""
    del engine, depth

    def start(c: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = _start(register, c)
        return total, jnp.zeros_like(total)

    def step(state: Any, a: jax.Array, b: jax.Array, known: None, key: jax.Array | None) -> Any:
        del known, key
        total, error = state
        for k in range(a.shape[0]):
            term = register.add(register.multiply(a[k][:, None], b[k][None, :]), -error)
            larger = register.add(total, term)
            error = register.add(register.add(larger, -total), -term)
            total = larger
        return total, error

    return Kernel(_step_length(register), start, step, lambda state: _finish(state[0]))


def _tree(engine: Engine, register: Register, depth: int) -> Kernel:
    """Products added in pairs, neighbours first; the sums of steps wait for their neighbours.

    The state is a binary counter: place j holds the sum of 2^j steps where bit j of the count is
    set.
    """
    del engine
    length = _step_length(register)
    places = max(1, (-(-depth // length)).bit_length())

    def start(c: jax.Array) -> Any:
        waiting = jnp.zeros((places, *c.shape), jnp.float32)
        return waiting, jnp.zeros((), jnp.int32), _start(register, c)

    def step(state: Any, a: jax.Array, b: jax.Array, known: None, key: jax.Array | None) -> Any:
        del known, key
        waiting, count, c = state
        sums = [register.multiply(a[k][:, None], b[k][None, :]) for k in range(a.shape[0])]
        carried = _pairs(register, sums)
        moving = jnp.bool_(True)
        for place in range(places):
            here = (count >> place) & 1 == 1
            both = register.add(waiting[place], carried)
            kept = jnp.where(moving & ~here, carried, waiting[place])
            waiting = waiting.at[place].set(kept)
            carried = jnp.where(moving & here, both, carried)
            moving &= here
        return waiting, count + 1, c

    def finish(state: Any) -> jax.Array:
        waiting, count, c = state
        # The sum furthest right has nobody to its right: it moves up as it is.
        total, some = jnp.zeros_like(c), jnp.bool_(False)
        for place in range(places):
            here = (count >> place) & 1 == 1
            joined = jnp.where(some, register.add(waiting[place], total), waiting[place])
            total, some = jnp.where(here, joined, total), some | here
        return _finish(register.add(c, total))

    return Kernel(length, start, step, finish)


def _pairs(register: Register, sums: list[jax.Array]) -> jax.Array:
    while len(sums) > 1:
        pairs = [register.add(x, y) for x, y in zip(sums[::2], sums[1::2], strict=False)]
        sums = pairs + sums[len(sums) - len(sums) % 2 :]
    return sums[0]


def _pairwise(engine: Engine, register: Register, depth: int) -> Kernel:
    """AMD CDNA2: products of two or four k added in pairs, then to c."""
    del depth
    assert engine.fused_length is not None

    def step(
        total: jax.Array, a: jax.Array, b: jax.Array, known: None, key: jax.Array | None
    ) -> jax.Array:
        del known, key
        sums = [register.multiply(a[k][:, None], b[k][None, :]) for k in range(a.shape[0])]
        return register.add(total, _pairs(register, sums))

    return Kernel(engine.fused_length, functools.partial(_start, register), step, _finish)


_KERNELS = {
    "sequential": _sequential,
    "chunked": _chunked,
    "compensated": _compensated,
    "tree": _tree,
    "pairwise": _pairwise,
}
