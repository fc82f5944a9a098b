"""What plain accumulators are made of: roundings in few operations, and products never rounded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.engines import fused_multiply, get_engine, matmul
from lowprec.engines.narrowing import has_units, holds_products, nearest_even, to_format
from lowprec.numerics import Format, float32, get_format, oracle
from lowprec.numerics.codec import decode_bits, encode_bits
from tests.engines.dots import KINDS, by_matmul, by_oracle, draw
from tests.helpers import NOT_FINITE, SIGN, UInts, as_bits, assert_bits_equal, floats, graded

FORMATS = ("float16", "e6m9", "e5m20", "e7m2")
NAN = np.uint32(0x7FC00000)
NARROW = (
    ("sequential.float16.nearest_even", "float16", "float16"),
    ("sequential.float16.nearest_even", "float8_e5m2", "float8_e4m3fn"),
    ("sequential.bfloat16.nearest_even", "bfloat16", "bfloat16"),
    ("sequential.e5m20.nearest_even", "float16", "float16"),
    ("sequential.e6m9.toward_positive", "float8_e5m2", "float8_e5m2"),
    ("sequential.e6m9.to_odd", "float16", "float16"),
    ("chunked.16.e6m9.e6m9", "float8_e5m2", "float8_e5m2"),
    ("chunked.12.float16.e6m9", "float16", "float16"),
    ("chunked.5.e6m9.bfloat16", "float8_e5m2", "bfloat16"),
    ("chunked.16.e6m9.float16", "float8_e5m2", "float8_e5m2"),
    ("chunked.8.e6m9.float32", "float16", "float8_e5m2"),
    ("pairwise.float16", "float16", "float16"),
    ("compensated", "float16", "float16"),
    ("fp32", "bfloat16", "float8_e5m2"),
    ("fp32_fma", "float16", "bfloat16"),
)
"""Engines with operands whose products float32 holds, and some the register too."""


def canonical(bits: UInts) -> UInts:
    return np.where((bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000), NAN, bits)


def trouble(fmt: Format, count: int = 20_000, seed: int = 0) -> UInts:
    """float32 bits: any, of the format's size, its midpoints and their neighbours; no subnormals"""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)
    ends = fmt.min_exponent - fmt.mantissa_bits - 3, int(np.log2(fmt.max)) + 2
    sized = rng.standard_normal(count) * np.exp2(rng.integers(*ends, count))
    values = np.array([fmt.value(int(x)) for x in rng.integers(0, fmt.max_code + 1, 500)])
    binades = np.maximum(np.floor(np.log2(np.maximum(values, 1e-45))), fmt.min_exponent)
    step = np.exp2(binades - fmt.mantissa_bits - 1)
    middle = (values + step).astype(np.float32).view(np.uint32)[:, None]
    near = (middle + np.array([-1, 0, 1], np.int64)).astype(np.uint32).ravel()
    specials = np.array(NOT_FINITE, np.uint32)
    found = np.concatenate(
        [patterns, sized.astype(np.float32).view(np.uint32), near, near | SIGN, specials]
    ).astype(np.uint32)
    return np.where((found & np.uint32(0x7F800000)) == 0, found & SIGN, found).astype(np.uint32)


def by_codes(
    bits: UInts, fmt: Format, rounding: str = "nearest_even", words: UInts | None = None
) -> UInts:
    count = 0 if words is None else 32
    there = jax.jit(lambda x, w: encode_bits(x, fmt, rounding, "nonsaturating", w, count))
    codes = there(bits, words).astype(jnp.uint32)
    return canonical(np.asarray(jax.jit(lambda x: decode_bits(x, fmt))(codes)))


@pytest.mark.parametrize("name", FORMATS)
def test_nearest_even_is_that_of_codes(name: str) -> None:
    fmt = get_format(name)
    assert has_units(fmt)
    bits = trouble(fmt)
    got = jax.jit(lambda x: float32.to_bits(nearest_even(float32.from_bits(x), fmt)))(bits)
    assert_bits_equal(canonical(np.asarray(got)), by_codes(bits, fmt))


@pytest.mark.parametrize("name", FORMATS[:2])
def test_nearest_even_of_sums(name: str) -> None:
    fmt = get_format(name)
    a, b = (floats(by_codes(trouble(fmt, seed=seed), fmt)) for seed in (0, 1))
    b = np.where(np.arange(b.size) % 3 == 0, -a, b)
    got = jax.jit(lambda a, b: nearest_even(a + b, fmt, within=True))(a, b)
    with np.errstate(invalid="ignore"):
        total = (a + b).view(np.uint32)
    assert_bits_equal(canonical(as_bits(got)), by_codes(total, fmt))


@pytest.mark.parametrize("name", ["bfloat16", "e8m21"])
def test_formats_of_float32s_range_are_cut(name: str) -> None:
    fmt = get_format(name)
    assert not has_units(fmt)
    rng = np.random.default_rng(0)
    bits = rng.integers(0x800000, 0x7F800001, 40_000).astype(np.uint32)
    bits = np.where(np.arange(bits.size) % 2, bits, bits | SIGN).astype(np.uint32)
    got = jax.jit(lambda x: to_format(x, fmt, "nearest_even", None))(bits)
    assert_bits_equal(got, by_codes(bits, fmt))


@pytest.mark.parametrize("name", ["float16", "e7m2"])
def test_stochastic_rounding_is_that_of_codes(name: str) -> None:
    fmt = get_format(name)
    bits = trouble(fmt)
    rng = np.random.default_rng(1)
    words = rng.integers(0, 2**32, bits.size, dtype=np.uint64).astype(np.uint32)
    # High words carry what is tiny.
    words = np.where(rng.random(bits.size) < 0.5, words | np.uint32(0xFFFFF000), words)
    got = jax.jit(lambda x, w: to_format(x, fmt, "stochastic", w))(bits, words)
    assert_bits_equal(canonical(np.asarray(got)), by_codes(bits, fmt, "stochastic", words))


@pytest.mark.parametrize(
    ("register", "a", "b", "held"),
    [
        ("e6m9", "float8_e5m2", "float8_e5m2", True),
        ("float16", "float8_e5m2", "float8_e5m2", False),
        ("bfloat16", "float8_e4m3fn", "float8_e4m3fn", True),
        ("e8m6", "float8_e4m3fn", "float8_e4m3fn", False),
        ("float32", "float16", "float16", True),
        ("float32", "bfloat16", "bfloat16", False),
    ],
)
def test_which_products_a_format_holds(register: str, a: str, b: str, held: bool) -> None:
    fmt, first, second = (get_format(x) for x in (register, a, b))
    assert holds_products(fmt, first, second) == held
    if first.bits > 8:
        return
    values = [np.array([x.value(code) for code in range(2**x.bits)]) for x in (first, second)]
    values = [x[np.isfinite(x)].astype(np.float32) for x in values]
    products = np.outer(values[0], values[1]).ravel().view(np.uint32)
    normal = (products & np.uint32(0x7F800000)) != 0
    kept = by_codes(products, fmt) == products
    assert bool(kept[normal].all()) == held


def spread(exponents: tuple[int, int], count: int, seed: int) -> UInts:
    """float32 bits of numbers with such exponents, half of them short or next to a short one."""
    rng = np.random.default_rng(seed)
    field = rng.integers(exponents[0] + 127, exponents[1] + 128, count).astype(np.uint32)
    drawn = rng.integers(0, 1 << 23, count).astype(np.uint32)
    short = np.where(rng.random(count) < 0.5, drawn & 0x7FF000, 0x7FFFFF - (drawn & 3))
    mantissa = np.where(rng.random(count) < 0.5, drawn, short).astype(np.uint32)
    return rng.integers(0, 2, count).astype(np.uint32) << 31 | field << 23 | mantissa


def test_multiply_add_rounds_once() -> None:
    a, b = (spread((-2, 2), 160_000, seed) for seed in (0, 1))
    ranges = ((-3, 3), (-103, 100), (20, 26), (-28, -20))
    c_bits = np.concatenate([spread(x, 40_000, seed) for seed, x in enumerate(ranges)])
    product = (floats(a) * floats(b)).view(np.uint32)
    # A third cancels all but the product's error, and some are zeros.
    turn = np.arange(a.size) % 9
    c_bits = np.where(turn < 3, (product ^ SIGN) + turn.astype(np.uint32) - 1, c_bits)
    a = np.where(turn == 4, a & SIGN, a)
    c_bits = np.where((turn == 5) | (turn == 4) & (b & 1 == 1), c_bits & SIGN, c_bits)
    a, b, c_bits = (x.astype(np.uint32) for x in (a, b, c_bits))

    def fused(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        left, right = (fused_multiply.split(float32.from_bits(x)) for x in (a, b))
        return fused_multiply.multiply_add(left, right, float32.from_bits(c))

    got = as_bits(jax.jit(fused)(a, b, c_bits))
    assert_bits_equal(got, jax.jit(float32.fused_multiply_add)(a, b, c_bits))
    chosen = range(0, a.size, 320)
    some = [oracle.fused_multiply_add(int(a[i]), int(b[i]), int(c_bits[i])) for i in chosen]
    assert_bits_equal(got[::320], np.array(some, np.uint32))


@pytest.mark.parametrize(
    ("a", "b", "c", "fits"),
    [
        (1.0, 1.0, 1.0, True),
        (0.0, 1.0, 0.0, True),
        (2.0**-40, 2.0**-40, 2.0**-103, True),
        (2.0**-41, 2.0**-40, 0.0, False),
        (2.0**-103, 2.0**90, 0.0, False),
        (1.0, 1.0, 2.0**-104, False),
        (1.0, 1.0, 2.0**126, False),
        (2.0**61, 2.0**61, 0.0, True),
        (2.0**61, 2.0**62, 0.0, False),
        (np.inf, 1.0, 0.0, False),
        (1.0, np.nan, 0.0, False),
        (1.0, 1.0, -np.inf, False),
    ],
)
def test_range_of_multiply_add(a: float, b: float, c: float, fits: bool) -> None:
    left, right = (fused_multiply.split(jnp.array([[1.0, x]], jnp.float32)) for x in (a, b))
    start = float32.to_bits(jnp.array([[c]], jnp.float32))
    assert bool(fused_multiply.within_range(left, right, start)) == fits


@pytest.mark.slow
def test_fp32_fma_falls_back_where_numbers_are_tiny() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(x).astype(np.float32) for x in ((2, 5), (5, 300), (2, 300)))
    # The second tile of columns alone.
    b[:, 290], c[:, 290] = b[:, 290] * np.float32(2.0**-126), 0
    b[2, 295], c[0, 296] = np.inf, 3e38
    got = as_bits(matmul(a, b, c, engine="fp32_fma"))
    for row, column in [(0, 0), (1, 255), (0, 256), (0, 290), (1, 290), (0, 295), (0, 296)]:
        total = as_bits(c)[row, column].item()
        for x, y in zip(as_bits(a)[row], as_bits(b)[:, column], strict=True):
            total = oracle.fused_multiply_add(int(x), int(y), total)
        assert got[row, column] == total
    assert np.isfinite(floats(got[:, 290])).all() and (floats(got[:, 290]) != 0).all()


@pytest.mark.slow
def test_fp32_fma_of_an_infinity_and_small_numbers_alone() -> None:
    a = jnp.array([[np.inf, 1.0], [1.0, -np.inf], [np.inf, -np.inf]])
    b = jnp.full((2, 1), 2.0**-30)
    for x, y in ((a, b), (b.T, a.T)):
        got = np.asarray(matmul(x, y, engine="fp32_fma")).ravel()
        np.testing.assert_array_equal(got, [np.inf, -np.inf, np.nan])


@pytest.mark.parametrize(
    ("engine", "product", "total", "want"),
    [
        ("e8m13.nearest_even", 2.0**-114 + 2.0**-127, 2.0**-100, 2.0**-100 + 2.0**-113),
        ("e8m13.nearest_even", 2.0**-114, 2.0**-100, 2.0**-100),
        ("e8m21.to_odd", 2.0**-120 * (1 + 2.0**-21), 2.0**-100, 2.0**-100 + 3 * 2.0**-121),
        (
            "e8m21.toward_negative",
            -(2.0**-121) * (1 + 2.0**-20),
            2.0**-100,
            2.0**-100 - 3 * 2.0**-122,
        ),
    ],
)
def test_what_a_sum_loses_below_float32s_range_counts(
    engine: str, product: float, total: float, want: float
) -> None:
    a, b, c = (jnp.full((1, 1), x, jnp.float32) for x in (1.0, product, total))
    assert matmul(a, b, c, engine=f"sequential.{engine}").item() == want


def test_units_of_half_a_normal_number_are_too_small() -> None:
    wide, deep = (
        dataclasses.replace(get_format("e6m9"), name="deep", bias=bias) for bias in (117, 118)
    )
    assert has_units(wide) and not has_units(deep)
    # Three quarters of the smallest unit, a subnormal.
    bits = np.array([0x600000, 0x80600000, 0x400000, 0x400001], np.uint32)
    want = np.array([0x800000, 0x80800000, 0, 0x800000], np.uint32)
    assert_bits_equal(jax.jit(lambda x: to_format(x, deep, "nearest_even", None))(bits), want)


def test_chunks_of_more_bits_than_their_sum_are_rounded_once() -> None:
    # 1 + 2^-8 lies between two numbers of bfloat16; 2^-30 decides, and float32 would lose it.
    a = jnp.array([[1.0, 2.0**-4]], jnp.bfloat16)
    b = jnp.array([[1.0], [2.0**-4]], jnp.bfloat16)
    c = jnp.full((1, 1), 2.0**-30)
    assert matmul(a, b, c, engine="chunked.2.e6m9.bfloat16").item() == 1 + 2.0**-7
    assert matmul(a, b, -c, engine="chunked.2.e6m9.bfloat16").item() == 1


@pytest.mark.parametrize("kind", graded(KINDS))
@pytest.mark.parametrize(("name", "a", "b"), NARROW)
def test_narrow_operands_are_exact(name: str, a: str, b: str, kind: str) -> None:
    formats = get_format(a), get_format(b)
    engine = dataclasses.replace(get_engine(name), inputs=tuple(dict.fromkeys(formats)))
    for seed in range(8):
        dots = draw(engine, formats, None, kind, seed)
        assert_bits_equal(
            by_matmul(engine, formats, None, dots), by_oracle(engine, formats, None, dots)
        )
