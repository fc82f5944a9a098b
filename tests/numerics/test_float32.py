"""float32 arithmetic on bits against exact fractions."""

import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowprec.numerics import float32, get_format, oracle
from tests.helpers import (
    NOT_FINITE,
    SIGN,
    SIZE,
    SPECIALS,
    STRICT,
    STRICT_SLOW,
    UInts,
    assert_bits_equal,
    bit_arrays,
    floats,
    random_words,
)

ALL = tuple(
    x | sign for x in (*SPECIALS, *NOT_FINITE, 0x34000000, 0x7F000000) for sign in (0, SIGN)
)
FLOAT32 = get_format("float32")
Function = Callable[..., jax.Array]


def exact(function: Callable[..., int], *operands: UInts) -> UInts:
    rows = zip(*(operand.tolist() for operand in operands), strict=True)
    return np.array([function(*row) for row in rows], np.uint32)


def show(*operands: UInts) -> np.ndarray:
    """The operands side by side, as one void scalar a row is all a message needs."""
    return np.array(
        [" ".join(map(hex, row)) for row in zip(*(o.tolist() for o in operands), strict=True)]
    )


def compare(function: Function, want: Callable[..., int], *operands: UInts) -> None:
    got = np.asarray(jitted(function)(*map(jnp.asarray, operands)))
    expected = exact(want, *operands)
    wrong = np.flatnonzero(got != expected)
    if len(wrong):
        first = wrong[0]
        pytest.fail(
            f"{want.__name__}({show(*operands)[first]}) is {expected[first]:#010x}, "
            f"got {got[first]:#010x}; {len(wrong)} of {len(got)} differ"
        )


JITTED: dict[Function, Function] = {}


def jitted(function: Function) -> Function:
    return JITTED.setdefault(function, jax.jit(function))


PAIRS = ((float32.multiply, oracle.multiply), (float32.divide, oracle.divide))
operands = bit_arrays(FLOAT32)


@pytest.mark.parametrize(("function", "want"), PAIRS, ids=["multiply", "divide"])
@settings(max_examples=20)
@given(a=operands, b=operands)
def test_products_and_quotients(
    function: Function, want: Callable[..., int], a: UInts, b: UInts
) -> None:
    compare(function, want, a, b)


@pytest.mark.parametrize(("function", "want"), PAIRS, ids=["multiply", "divide"])
def test_every_pair_of_specials(function: Function, want: Callable[..., int]) -> None:
    a, b = (
        grid.ravel() for grid in np.meshgrid(np.array(ALL, np.uint32), np.array(ALL, np.uint32))
    )
    compare(function, want, a, b)


@pytest.mark.parametrize(
    ("function", "ufunc"),
    [(float32.multiply, np.multiply), (float32.divide, np.divide)],
    ids=["multiply", "divide"],
)
def test_a_million_patterns_as_the_processor(function: Function, ufunc: np.ufunc) -> None:
    a, b = random_words(1 << 20, 1), random_words(1 << 20, 2)
    # A quarter of the results is subnormal or nearly so.
    a[::4], b[::4] = (a[::4] & 0x80FFFFFF) | 0x20000000, (b[::4] & 0x80FFFFFF) | 0x1F000000
    with np.errstate(all="ignore"):
        want = ufunc(floats(a), floats(b)).view(np.uint32)
    want = np.where(np.isnan(floats(want)), np.uint32(0x7FC00000), want)
    got = np.asarray(jitted(function)(jnp.asarray(a), jnp.asarray(b)))
    assert_bits_equal(floats(got), floats(want), inputs=floats(a))
    subnormal = (want & 0x7FFFFFFF) < 0x800000
    assert 0.01 < subnormal.mean() < 0.99


@settings(max_examples=20)
@given(a=operands, b=operands, c=operands)
def test_fused_multiply_add(a: UInts, b: UInts, c: UInts) -> None:
    compare(float32.fused_multiply_add, oracle.fused_multiply_add, a, b, c)


def test_fused_multiply_add_of_specials() -> None:
    few = np.array(
        [0, SIGN, 1, 0x3F800000, 0xBF800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000]
    )
    grids = np.meshgrid(few, few, few)
    compare(
        float32.fused_multiply_add,
        oracle.fused_multiply_add,
        *(grid.ravel().astype(np.uint32) for grid in grids),
    )


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), nudge=st.integers(-3, 3), apart=st.integers(-60, 60))
def test_fused_multiply_add_near_cancellation(seed: int, nudge: int, apart: int) -> None:
    """c within a few ulp of -ab, or some binades away, is where alignment and borrow decide."""
    a, b = random_words(SIZE, seed), random_words(SIZE, seed + 1)
    a, b = (a & 0x807FFFFF) | 0x3F000000, (b & 0x807FFFFF) | 0x3F800000
    with np.errstate(all="ignore"):
        product = (floats(a) * floats(b)).view(np.uint32).astype(np.int64)
    c = (product + nudge) ^ SIGN
    c[1::2] = np.clip((c[1::2] & 0x7FFFFFFF) + (apart << 23), 1, 0x7F7FFFFF) | (c[1::2] & SIGN)
    compare(float32.fused_multiply_add, oracle.fused_multiply_add, a, b, c.astype(np.uint32))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), scale=st.integers(1, 40))
def test_fused_multiply_add_among_subnormals(seed: int, scale: int) -> None:
    a, b, c = (random_words(SIZE, seed + step) for step in range(3))
    a = (a & 0x807FFFFF) | np.uint32(scale << 23)
    b = (b & 0x807FFFFF) | np.uint32(max(105 - scale, 1) << 23)
    c = (c & 0x80FFFFFF) >> (c & 7) | (c & SIGN)
    compare(float32.fused_multiply_add, oracle.fused_multiply_add, a, b, c)


def test_a_double_rounding_is_not_made() -> None:
    # 4097 * 4097 + 2^-30: rounded to float64 first, the last bit is lost and the tie goes to even.
    a, c = np.float32(4097).view(np.uint32), np.float32(2.0**-30).view(np.uint32)
    words = [jnp.full(SIZE, word, jnp.uint32) for word in (a, a, c)]
    got = float(floats(np.asarray(jitted(float32.fused_multiply_add)(*words)))[0])
    assert got == 16785410.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "count"),
    [
        pytest.param(float32.multiply, 2, id="multiply", marks=pytest.mark.slow),
        pytest.param(float32.divide, 2, id="divide"),
        pytest.param(float32.fused_multiply_add, 3, id="fused_multiply_add"),
    ],
)
def test_eager_and_strict_are_jit(function: Function, count: int) -> None:
    rng = [random_words(SIZE, seed) for seed in range(count)]
    for row in rng:
        row[: len(ALL)] = np.roll(ALL, len(row) + int(row[-1]) % 7)
    words = [jnp.asarray(row) for row in rng]
    want = jitted(function)(*words)
    assert_bits_equal(function(*words), want)
    assert_bits_equal(jax.vmap(function)(*words), want)
    for options in (STRICT, STRICT_SLOW):
        assert_bits_equal(jax.jit(function, compiler_options=options)(*words), want)


@settings(max_examples=10)
@given(a=operands, b=operands)
def test_multiply_short(a: UInts, b: UInts) -> None:
    a = a & np.uint32(0xFFFF0000)
    a = np.where((a & 0x7F800000) == 0, a & np.uint32(SIGN), a)
    compare(float32.multiply_short, oracle.multiply, a, b)


def rounded_to_24_bits(x: Fraction) -> Fraction:
    """To nearest even, with an unbounded exponent."""
    if x == 0:
        return x
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
    exponent -= abs(x) < Fraction(2) ** exponent
    unit = Fraction(2) ** (exponent - 23)
    return round(x / unit) * unit


SCALINGS: list[tuple[Any, Callable[[int, int], int], Callable[[Any, Any], Any]]] = [
    (float32.scaled_up, oracle.multiply, operator.mul),
    (float32.scaled_down, oracle.divide, operator.truediv),
]


@pytest.mark.parametrize(("function", "bounded", "exactly"), SCALINGS, ids=["up", "down"])
@settings(max_examples=3)
@given(a=operands, b=operands)
def test_scaled(
    function: Any,
    bounded: Callable[[int, int], int],
    exactly: Callable[[Any, Any], Any],
    a: UInts,
    b: UInts,
) -> None:
    """The float32 product or quotient, but one that loses no bits among the subnormals."""
    a[: len(ALL)], b[: len(ALL)] = ALL, np.roll(ALL, int(a[-1]) % len(ALL))
    sign, exponent, significand, infinite, nan = map(
        np.asarray, jax.jit(function)(jnp.asarray(a), jnp.asarray(b))
    )
    for index, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        left, right = oracle.decode(x, "fp32"), oracle.decode(y, "fp32")
        result = oracle.decode(bounded(x, y), "fp32")
        assert nan[index] == (result.kind == "nan"), (hex(x), hex(y))
        if result.kind == "nan":
            continue
        assert infinite[index] == (result.kind == "infinity"), (hex(x), hex(y))
        assert (sign[index] != 0) == result.negative
        if infinite[index]:
            continue
        if result.value == 0:
            assert significand[index] == 0, (hex(x), hex(y))
        else:
            magnitude = int(significand[index]) * Fraction(2) ** (int(exponent[index]) - 23)
            want = rounded_to_24_bits(abs(exactly(left.value, right.value)))
            assert magnitude == want, (hex(x), hex(y))
            assert significand[index] >> 23 == 1


def test_unpack_normalises_subnormals() -> None:
    bits = np.array([0, 1, 3, 0x7FFFFF, 0x800000, 0x3F800000, 0x80000001], np.uint32)
    sign, exponent, significand = map(np.asarray, float32.unpack(jnp.asarray(bits)))
    assert (significand[1:] >> 23 == 1).all() and significand[0] == 0
    values = np.ldexp(significand.astype(np.float64), exponent - 23)
    np.testing.assert_array_equal(np.where(sign != 0, -values, values), floats(bits))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_pack_rounds_once(seed: int) -> None:
    words = random_words(2 * SIZE, seed)
    significand, exponent = words[:SIZE] | SIGN, (words[SIZE:] % 400).astype(np.int32) - 240
    # Ties, and ties with a sticky bit.
    significand[::3] &= np.uint32(0xFFFFFF80)
    significand[1::3] = significand[1::3] & np.uint32(0xFFFFFF80) | 1
    got = jitted(float32.pack)(
        jnp.zeros(SIZE, jnp.uint32), jnp.asarray(exponent), jnp.asarray(significand)
    )
    pairs = zip(significand.tolist(), exponent.tolist(), strict=True)
    want = [oracle.round_to_float32(m * Fraction(2) ** (e - 31)) for m, e in pairs]
    assert_bits_equal(floats(np.asarray(got)), floats(want), inputs=exponent)


def test_pack_at_every_tie() -> None:
    """Also where all kept bits lie below the significand, and one sticky bit breaks the tie."""
    patterns = [0x80000000, 0x80000001, 0xC0000000, 0xC0000001, 0xFFFFFFFF, 0x80000080, 0x80000081]
    exponents = [*range(-190, -118), *range(120, 135)]
    pairs = [(m, e) for m in patterns for e in exponents]
    significand, exponent = np.array(pairs, np.int64).T
    got = float32.pack(
        jnp.zeros(len(pairs), jnp.uint32),
        jnp.asarray(exponent.astype(np.int32)),
        jnp.asarray(significand.astype(np.uint32)),
    )
    want = [oracle.round_to_float32(m * Fraction(2) ** (e - 31)) for m, e in pairs]
    assert_bits_equal(floats(np.asarray(got)), floats(want), inputs=exponent)


def test_constant() -> None:
    assert float32.constant(448.0) == 0x43E00000
    with pytest.raises(ValueError, match=r"0\.1 is not a float32"):
        float32.constant(0.1)
