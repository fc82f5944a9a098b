"""All formats, modes and policies on few patterns each: in seconds, what no mutation may survive.

The full comparisons are in tests/numerics and tests/scaling. Here every branch is taken once, on
the patterns where branches decide, so that `make mutants` can afford the whole of it hundreds of
times.
"""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.numerics import Format, float32, get_format, oracle
from lowprec.numerics.codec import decode, decode_bits, encode, encode_bits
from lowprec.numerics.rounding import OVERFLOWS, ROUNDINGS, is_stochastic
from tests.helpers import FORMATS, SIGN, UInts, as_bits, assert_bits_equal, floats, random_words
from tests.scaling.helpers import BLOCKS, FAST, USER_BLOCKS, assert_exact, narrowed

# The full comparisons say more: this is for `make mutants` and, once, the slow suite.
pytestmark = pytest.mark.slow

FEW = 96
SOME = [fmt for fmt in FORMATS if fmt.name not in ("float32", "tensorfloat32", "nineteen_bits")]
LAYOUTS = (
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e8m0fnu",
    "float6_e2m3fn",
    "float4_e2m1fn",
    "int4_symmetric",
    "int8",
    "ue4m3",
    "hif8",
    "nf4",
    "binary",
    "table_that_overflows",
    "table_without_zero",
    "signed_without_zero",
    "fixed_point",
    "below_float32_normal",
    "up_to_float32_max",
    "binary8p4se",
    "binary5p1ue",
)
"""A format of every kind."""


def telling(fmt: Format, seed: int) -> UInts:
    """Values, midpoints and their neighbours around the ends and at random places of a format."""
    rng = np.random.default_rng(seed)
    last = fmt.max_code
    codes = [0, 1, 2, 3, last - 1, last, *rng.integers(0, last + 1, 6).tolist()]
    # Of a wide format few codes lie within float32: those of some of its values do.
    some: dict[str, Any] = {"rounding": "nearest_even", "overflow": "saturate"}
    codes += [oracle.encode(x, fmt, **some) for x in (1e-39, 1.2e-38, 0.3, 1.0, 3.0, 1e30)]
    exact = [oracle.decode(code & fmt.code_mask, fmt) for code in codes]
    values = [abs(x.value) for x in exact if x.kind == "finite" and 2**-140 < abs(x.value) < 2**127]
    points = [x * scale for x in values for scale in (1, Fraction(17, 16), Fraction(3, 2), 2)]
    near = np.array([float(x) for x in points], np.float32).view(np.uint32).astype(np.int64)
    around = np.concatenate([near - 1, near, near + 1])
    chosen = rng.choice(around, FEW - 24, replace=True)
    special = [0, 1, 0x400001, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00001]
    anywhere = rng.integers(0, 1 << 31, 8)
    magnitudes = np.concatenate([chosen, special, special, anywhere])
    signs = np.concatenate([rng.integers(0, 2, len(chosen)), [0] * 8, [1] * 8, [0, 1] * 4])
    return (magnitudes | signs << 31).astype(np.uint32)


def by_name(names: tuple[str, ...]) -> list[Format]:
    return [fmt for fmt in FORMATS if fmt.name in names]


@pytest.mark.parametrize("fmt", by_name(LAYOUTS), ids=lambda fmt: fmt.name)
def test_every_mode(fmt: Format) -> None:
    bits, words = telling(fmt, 1), random_words(FEW, 2)
    words[::3] = np.array([0, 2**32 - 1], np.uint32)[np.arange(len(words[::3])) % 2]
    for rounding, overflow in itertools.product(ROUNDINGS, OVERFLOWS):
        for count in (1, 7, 32) if is_stochastic(rounding) else (0,):
            if count and overflow == "saturate_finite":
                continue
            compare(fmt, bits, rounding, overflow, words, count)


def compare(
    fmt: Format, bits: UInts, rounding: Any, overflow: Any, words: UInts, count: int
) -> None:
    drawn = words & np.uint32((1 << count) - 1)
    random = jnp.asarray(drawn) if count else None
    got = encode_bits(jnp.asarray(bits), fmt, rounding, overflow, random, count)
    want = [
        oracle.encode(x, fmt, rounding=rounding, overflow=overflow, word=word, word_bits=count)
        for x, word in zip(signed_floats(bits), drawn.tolist(), strict=True)
    ]
    try:
        assert_bits_equal(got, np.array(want, fmt.code_dtype), fmt=fmt, inputs=floats(bits))
    except AssertionError as error:
        error.add_note(f"{fmt.name} {rounding} {overflow} {count} random bits")
        raise


def signed_floats(bits: UInts) -> list[float]:
    """Python floats; a NaN keeps its sign."""
    values = floats(bits).astype(np.float64).tolist()
    return [
        math.copysign(x, -1.0 if pattern & SIGN else 1.0)
        for x, pattern in zip(values, bits.tolist(), strict=True)
    ]


@pytest.mark.parametrize("rounding", ["nearest_even", "to_odd"])
def test_every_format(rounding: str) -> None:
    for fmt in SOME:
        bits = telling(fmt, 3)
        compare(fmt, bits, rounding, "nonsaturating", bits, 0)
        codes = np.unique(random_words(FEW, 4) & np.uint32(fmt.code_mask))
        codes = np.resize([*range(min(4, 1 << fmt.bits)), fmt.max_code, *codes], FEW)
        exact = [float(oracle.decode(code, fmt)) for code in codes.tolist()]
        with np.errstate(over="ignore", invalid="ignore"):
            want = np.array(exact).astype(np.float32)
        got = floats(np.asarray(decode_bits(jnp.asarray(codes, jnp.uint32), fmt)))
        numbers = ~np.isnan(want)
        assert (np.isnan(got) == ~numbers).all(), fmt.name
        if max(map(abs, [0.0, *(x for x in exact if math.isfinite(x))])) < 3e38:
            assert_bits_equal(got[numbers], want[numbers], inputs=codes[numbers])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_public_functions(dtype: Any) -> None:
    x = jnp.asarray(floats(telling(get_format("float8_e5m2"), 5))).astype(dtype)
    wide = as_bits(np.asarray(x).astype(np.float32))
    got = encode(x, "float8_e5m2", overflow="nonsaturating")
    want = encode_bits(jnp.asarray(wide), get_format("e5m2"), "nearest_even", "nonsaturating")
    assert_bits_equal(got, want)
    back = decode(got, "e5m2", dtype=dtype)
    exact = np.asarray(decode(got, "e5m2")).astype(dtype)
    assert back.dtype == dtype
    assert_bits_equal(np.nan_to_num(np.asarray(back)), np.nan_to_num(exact))
    random = encode(x, "e2m1", rounding="stochastic", random_bits=random_words(FEW, 1).astype("u1"))
    words = random_words(FEW, 1).astype(np.uint8).astype(np.uint32)
    assert_bits_equal(
        random, encode_bits(jnp.asarray(wide), get_format("e2m1"), "stochastic", "saturate",
                            jnp.asarray(words), 8)
    )  # fmt: skip


SUBNORMAL = (0, 1, 3, 0x7FFFFF, 0x800000, 0x800001, 0x01000000)
NORMAL = (0x3F7FFFFF, 0x3F800000, 0x3F800001, 0x40490FDB, 0x40400000, 0x34000000, 0x7E800000)
EDGES = np.array([*SUBNORMAL, *NORMAL, 0x7F7FFFFF, 0x7F800000, 0x7FC00000], np.uint32)


def pairs() -> tuple[UInts, UInts]:
    a, b = (grid.ravel() for grid in np.meshgrid(EDGES, EDGES))
    some = random_words(256, 8), random_words(256, 9)
    close = (some[0] & 0x807FFFFF) | 0x1F800000, (some[1] & 0x807FFFFF) | 0x20000000
    a, b = np.concatenate([a, some[0], close[0]]), np.concatenate([b, some[1], close[1]])
    flips = random_words(len(a), 10) & np.uint32(SIGN)
    return a ^ flips, b


@pytest.mark.parametrize(
    ("function", "want"),
    [
        (float32.multiply, oracle.multiply),
        (float32.divide, oracle.divide),
    ],
    ids=["multiply", "divide"],
)
def test_float32_arithmetic(function: Callable[..., Any], want: Callable[..., int]) -> None:
    a, b = pairs()
    got = jax.jit(function)(jnp.asarray(a), jnp.asarray(b))
    exact = [want(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert_bits_equal(floats(np.asarray(got)), floats(exact), inputs=floats(a))


def test_float32_fused_multiply_add() -> None:
    a, b = pairs()
    c = np.roll(a, 5) ^ np.uint32(SIGN)
    with np.errstate(all="ignore"):
        c[::2] = as_bits(floats(a) * floats(b))[::2] ^ np.uint32(SIGN)
    got = jax.jit(float32.fused_multiply_add)(*map(jnp.asarray, (a, b, c)))
    rows = zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    exact = [oracle.fused_multiply_add(*row) for row in rows]
    assert_bits_equal(floats(np.asarray(got)), floats(exact), inputs=floats(a))


@pytest.mark.parametrize(
    "block", [x for x in BLOCKS if x.name in FAST or x in USER_BLOCKS], ids=lambda x: x.name
)
def test_every_way_to_scale(block: Any) -> None:
    small = narrowed(block)
    kept = small.element.mantissa_bits or 3
    plain = random_words(2 * 11, 3).reshape(2, 11)
    near = (plain & np.uint32(0x807FFFFF)) | (np.uint32(120) + plain % 6) << np.uint32(23)
    ties = near & np.uint32(0xFFFFFFFF << (22 - kept) & 0xFFFFFFFF)
    tiny = plain & np.uint32(0x80FFFFFF)
    holes = near.copy()
    holes[0, :8], holes[1, 2], holes[1, 9] = 0, 0x7F800000, 0x7FC00000
    for bits in (near, ties, tiny, holes):
        assert_exact(bits, small)


@pytest.mark.parametrize(("bits", "width"), [(8, 8), (9, 16), (16, 16), (17, 32), (28, 32)])
def test_the_width_of_codes(bits: int, width: int) -> None:
    fmt = Format(name=f"of_{bits}_bits", exponent_bits=4, mantissa_bits=bits - 5, bias=7)
    assert fmt.bits == bits and fmt.code_dtype == np.dtype(f"u{width // 8}")
    assert encode(jnp.ones(3), fmt).dtype == fmt.code_dtype
