"""Laws that every format and mode obeys, without an oracle: the numbering is that of the design."""

import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowprec.numerics import Format, decode, encode
from lowprec.numerics.rounding import ROUNDINGS
from tests.helpers import (
    FORMAT_NAMES,
    FORMATS,
    SIGN,
    SIZE,
    SMALL_FORMATS,
    UInts,
    as_bits,
    assert_bits_equal,
    bit_arrays,
    code_sample,
    decoded,
    edges,
    encoded,
    exactly_encoded,
    floats,
    random_words,
    sized,
)

DETERMINISTIC = tuple(name for name in ROUNDINGS if name != "stochastic")
SYMMETRIC = [fmt for fmt in FORMATS if fmt.signed and fmt.encoding == "sign_magnitude"]

every_format = pytest.mark.parametrize("fmt", FORMATS, ids=FORMAT_NAMES)
small_formats = pytest.mark.parametrize(
    "fmt", SMALL_FORMATS, ids=[fmt.name for fmt in SMALL_FORMATS]
)


def finite(bits: UInts) -> UInts:
    """The same with every NaN and Inf made 1."""
    return np.where((bits & 0x7F800000) == 0x7F800000, np.uint32(0x3F800000), bits)


def inside(fmt: Format) -> UInts:
    """Edges between the limits of a format, which no overflow policy touches."""
    bits = finite(sized(edges(fmt), 4 * SIZE))
    x = floats(bits).astype(np.float64)
    lowest = fmt.min if fmt.signed or fmt.zero == "none" else 0.0
    return np.where((x >= lowest) & (x <= fmt.max), bits, np.float32(fmt.max).view(np.uint32))


def values(codes: np.ndarray, fmt: Format) -> np.ndarray:
    if fmt.values is not None:
        return fmt.values[codes]
    return np.array([fmt.value(code) for code in codes.tolist()])


def drawn(rounding: str, size: int, seed: int = 0) -> UInts | None:
    return random_words(size, seed) if rounding == "stochastic" else None


@every_format
def test_1_encode_undoes_decode(fmt: Format) -> None:
    codes = np.array(code_sample(fmt), fmt.code_dtype)
    numbers = ~np.isnan(values(codes, fmt))
    x = floats(decoded(codes, fmt))
    back = encoded(as_bits(x), fmt)
    assert_bits_equal(back[numbers], codes[numbers], fmt=fmt, inputs=x[numbers])
    assert np.isnan(values(back[~numbers], fmt)).all()


@every_format
def test_2_idempotent(fmt: Format) -> None:
    bits = sized(edges(fmt), SIZE)
    for rounding in ROUNDINGS:
        once = encoded(bits, fmt, rounding, "saturate", drawn(rounding, SIZE))
        again = encoded(decoded(once, fmt), fmt, rounding, "saturate", drawn(rounding, SIZE, 1))
        assert_bits_equal(again, once, fmt=fmt, inputs=floats(bits))


@every_format
def test_3_monotone(fmt: Format) -> None:
    bits = finite(sized(edges(fmt), 4 * SIZE))
    # -0 below +0: a format without zero tells them apart.
    bits = bits[np.lexsort((~np.signbit(floats(bits)), floats(bits)))]
    if not fmt.signed:
        bits = bits[floats(bits) >= 0]
    for rounding in DETERMINISTIC:
        steps = np.diff(values(encoded(bits, fmt, rounding, "saturate"), fmt))
        assert (steps >= 0).all(), (rounding, floats(bits)[:-1][steps < 0][:1])


@small_formats
def test_4_nearest_and_ties_to_even(fmt: Format) -> None:
    bits = inside(fmt)
    x = floats(bits).astype(np.float64)
    assert fmt.values is not None
    lattice = np.unique(fmt.values[np.isfinite(fmt.values)])
    codes = encoded(bits, fmt)
    # Exact in float64: a value and x have the same sign or lie far apart.
    distance = [Fraction(v) - Fraction(w) for v, w in zip(x, values(codes, fmt), strict=True)]
    place = np.clip(np.searchsorted(lattice, x), 1, len(lattice) - 1)
    for index, off in enumerate(distance):
        near = lattice[place[index] - 1 : place[index] + 1]
        least = [abs(Fraction(x[index]) - Fraction(v)) for v in near]
        assert abs(off) == min(least), (x[index], codes[index])
        if least[0] == least[1]:
            assert codes[index] % 2 == 0, (x[index], codes[index])


@pytest.mark.parametrize("fmt", SYMMETRIC, ids=[fmt.name for fmt in SYMMETRIC])
def test_5_odd_symmetry(fmt: Format) -> None:
    bits = finite(sized(edges(fmt), 4 * SIZE))
    swap = {"toward_positive": "toward_negative", "toward_negative": "toward_positive"}
    for rounding in DETERMINISTIC:
        codes = encoded(bits, fmt, rounding, "saturate")
        mirrored = encoded(bits ^ np.uint32(SIGN), fmt, swap.get(rounding, rounding), "saturate")
        np.testing.assert_array_equal(values(mirrored, fmt), -values(codes, fmt))


@every_format
def test_6_directed_bracket(fmt: Format) -> None:
    bits = inside(fmt)
    x = floats(bits).astype(np.float64)
    below = values(encoded(bits, fmt, "toward_negative", "saturate"), fmt)
    above = values(encoded(bits, fmt, "toward_positive", "saturate"), fmt)
    if fmt.zero == "none":
        low = np.abs(x) < fmt.magnitude(0)
        x = np.where(low, np.where(np.signbit(x), -1, 1) * fmt.magnitude(0), x)
    assert (below <= x).all() and (x <= above).all()
    assert ((below == above) == (below == x)).all()
    for rounding in ROUNDINGS:
        got = values(encoded(bits, fmt, rounding, "saturate", drawn(rounding, len(bits))), fmt)
        assert ((got == below) | (got == above)).all(), rounding


@small_formats
def test_6_the_bracket_is_tight(fmt: Format) -> None:
    bits = inside(fmt)
    below = values(encoded(bits, fmt, "toward_negative", "saturate"), fmt)
    above = values(encoded(bits, fmt, "toward_positive", "saturate"), fmt)
    assert fmt.values is not None
    lattice = np.unique(fmt.values[np.isfinite(fmt.values)])
    places = np.searchsorted(lattice, above) - np.searchsorted(lattice, below)
    assert set(places.tolist()) == {0, 1}


@every_format
def test_7_exact_values_stay(fmt: Format) -> None:
    codes = np.array(code_sample(fmt), fmt.code_dtype)
    codes = codes[np.isfinite(values(codes, fmt))]
    bits = as_bits(values(codes, fmt).astype(np.float32))
    for rounding in DETERMINISTIC:
        assert_bits_equal(encoded(bits, fmt, rounding), codes, fmt=fmt)
    for word in (0, 2**31, 2**32 - 1):
        words = np.full(len(codes), word, np.uint32)
        for count in (1, 8, 32):
            assert_bits_equal(
                encoded(bits, fmt, "stochastic", "nonsaturating", words, count), codes
            )


@every_format
def test_8_overflow(fmt: Format) -> None:
    x = np.array([np.inf, -np.inf, 3.4e38, -3.4e38], np.float32)
    if fmt.max > 1e38:
        x = x[:2]
    codes = encoded(as_bits(x), fmt, overflow="saturate")
    got = values(codes, fmt)
    want = np.where(x > 0, fmt.max, fmt.min)
    if not fmt.signed:
        floor = math.nan if fmt.has_nan else fmt.magnitude(0)
        want = np.where(x > 0, fmt.max, floor)
    np.testing.assert_array_equal(got, want)
    free = values(encoded(as_bits(x), fmt, overflow="nonsaturating"), fmt)
    if fmt.has_inf:
        np.testing.assert_array_equal(free, np.sign(x) * np.inf)
    elif fmt.has_nan:
        assert np.isnan(free).all()
    else:
        np.testing.assert_array_equal(free, want)


@every_format
def test_9_sign_of_zero(fmt: Format) -> None:
    zeros = encoded(np.array([0, SIGN], np.uint32), fmt)
    tiny = encoded(np.array([1, SIGN | 1], np.uint32), fmt, "toward_zero")
    if fmt.zero == "none":
        assert zeros[0] == tiny[0] == 0
        assert zeros[1] == fmt.sign_mask
        return
    assert zeros[0] == 0 and zeros[1] == (fmt.sign_mask if fmt.zero == "signed" else 0)
    if fmt.signed and fmt.magnitude(1) > 2.0**-149:
        assert_bits_equal(tiny, zeros)


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("name", ["float8_e4m3fn", "float4_e2m1fn", "float8_e5m2", "int8"])
def test_10_every_word_counts_once(name: str, count: int) -> None:
    """Over all 2^r words the exact number, floor(fraction * 2^r), of values goes away from zero."""
    fmt = next(fmt for fmt in FORMATS if fmt.name == name)
    bits = inside(fmt)[:: max(4 * SIZE // 128, 1)]
    grid, words = np.meshgrid(bits, np.arange(1 << count, dtype=np.uint32), indexing="ij")
    codes = encoded(grid, fmt, "stochastic", "saturate", words, count)
    down = encoded(bits, fmt, "toward_zero", "saturate")
    away = (codes != down[:, None]).sum(axis=1)
    lower = values(down, fmt)
    upper = values(down + np.where(floats(bits) < 0, away_step(fmt), 1).astype(np.uint8), fmt)
    for x, low, high, seen in zip(floats(bits).tolist(), lower, upper, away.tolist(), strict=True):
        exact = x == low
        fraction = 0 if exact else (Fraction(x) - Fraction(low)) / (Fraction(high) - Fraction(low))
        assert seen == math.floor(fraction * 2**count), (x, count)


def away_step(fmt: Format) -> int:
    """One code away from zero, among the negative ones."""
    return -1 if fmt.encoding == "twos_complement" else 1


@settings(max_examples=5)
@given(data=st.data())
@pytest.mark.parametrize(
    "name", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "float6_e3m2fn", "float16"]
)
def test_11_round_to_odd_makes_double_rounding_single(name: str, data: st.DataObject) -> None:
    """By way of two more bits, rounded to odd, the nearest is the same; to nearest it is not."""
    fmt = next(fmt for fmt in FORMATS if fmt.name == name)
    wide = Format(
        name="wide",
        exponent_bits=8,
        mantissa_bits=fmt.mantissa_bits + 2,
        bias=127,
        infinity="ieee",
        nan="ieee",
    )
    bits = finite(data.draw(bit_arrays(fmt)))
    for rounding in ("nearest_even", "nearest_away", "nearest_toward_zero"):
        direct = encoded(bits, fmt, rounding)
        by_odd = as_bits(decode(encoded(bits, wide, "to_odd", "saturate"), wide))
        assert_bits_equal(encoded(by_odd, fmt, rounding), direct, fmt=fmt, inputs=floats(bits))


def test_11_double_rounding_to_nearest_is_wrong() -> None:
    """What the property above would be worth if it held for any way there."""
    x = np.float32(1 + 2.0**-4 + 2.0**-20)
    wide = Format(
        name="wide", exponent_bits=8, mantissa_bits=5, bias=127, infinity="ieee", nan="ieee"
    )
    halfway = decode(encode(x, wide), wide)
    assert int(encode(x, "float8_e4m3fn")) == 0x39
    assert int(encode(halfway, "float8_e4m3fn")) == 0x38


@pytest.mark.parametrize("fmt", SMALL_FORMATS[:5], ids=lambda fmt: fmt.name)
def test_the_narrow_inputs_agree_with_float32(fmt: Format) -> None:
    """bfloat16 and float16 are widened exactly, subnormals included."""
    words = random_words(SIZE).astype(np.uint16)
    for dtype in (jnp.bfloat16, jnp.float16):
        x = jnp.asarray(words).view(dtype)
        exact = np.asarray(x).astype(np.float32)
        want = exactly_encoded(as_bits(exact), fmt, overflow="saturate")
        assert_bits_equal(encode(x, fmt), want, fmt=fmt, inputs=exact)
