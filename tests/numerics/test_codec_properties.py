"""Laws that every format and mode obeys, without an oracle: the numbering is that of the design."""

import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowprec.numerics import Format, decode, encode
from lowprec.numerics.rounding import (
    ROUNDINGS,
    STOCHASTIC,
    Rounding,
    away_count,
    bias,
    is_stochastic,
)
from tests.helpers import (
    FORMAT_NAMES,
    FORMATS,
    SIGN,
    SIZE,
    SMALL_FORMATS,
    WITHIN_FLOAT32,
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

DETERMINISTIC = tuple(name for name in ROUNDINGS if not is_stochastic(name))
SYMMETRIC = [
    fmt
    for fmt in FORMATS
    if (fmt.table is None and fmt.signed and fmt.encoding == "sign_magnitude")
    or (fmt.table and fmt.zero == "unsigned" and {-x for x in fmt.table} >= set(fmt.table[1:]))
]

every_format = pytest.mark.parametrize("fmt", FORMATS, ids=FORMAT_NAMES)
within_float32 = pytest.mark.parametrize(
    "fmt", WITHIN_FLOAT32, ids=[fmt.name for fmt in WITHIN_FLOAT32]
)
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
    return random_words(size, seed) if is_stochastic(rounding) else None


def used_codes(fmt: Format) -> np.ndarray:
    """The codes, less the lowest of two's complement where it is never encoded."""
    codes = np.array(code_sample(fmt), fmt.code_dtype)
    return codes[codes != fmt.sign_mask] if fmt.narrow_range else codes


@within_float32
def test_1_encode_undoes_decode(fmt: Format) -> None:
    codes = used_codes(fmt)
    numbers = ~np.isnan(values(codes, fmt))
    x = floats(decoded(codes, fmt))
    back = encoded(as_bits(x), fmt)
    assert_bits_equal(back[numbers], codes[numbers], fmt=fmt, inputs=x[numbers])
    assert np.isnan(values(back[~numbers], fmt)).all()


@within_float32
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
    in_turn = fmt.table is None or fmt.name in ("hif8", "nf4", "ternary", "binary")
    place = np.clip(np.searchsorted(lattice, x), 1, len(lattice) - 1)
    for index, off in enumerate(distance):
        near = lattice[place[index] - 1 : place[index] + 1]
        least = [abs(Fraction(x[index]) - Fraction(v)) for v in near]
        assert abs(off) == min(least), (x[index], codes[index])
        if least[0] == least[1] and in_turn:
            assert codes[index] % 2 == 0, (x[index], codes[index])


@pytest.mark.parametrize("fmt", SYMMETRIC, ids=[fmt.name for fmt in SYMMETRIC])
def test_5_odd_symmetry(fmt: Format) -> None:
    bits = finite(sized(edges(fmt), 4 * SIZE))
    swap = {"toward_positive": "toward_negative", "toward_negative": "toward_positive"}
    for rounding in DETERMINISTIC:
        codes = encoded(bits, fmt, rounding, "saturate")
        mirrored = encoded(bits ^ np.uint32(SIGN), fmt, swap.get(rounding, rounding), "saturate")
        np.testing.assert_array_equal(values(mirrored, fmt), -values(codes, fmt))


@within_float32
def test_6_directed_bracket(fmt: Format) -> None:
    bits = inside(fmt)
    x = floats(bits).astype(np.float64)
    below = values(encoded(bits, fmt, "toward_negative", "saturate"), fmt)
    above = values(encoded(bits, fmt, "toward_positive", "saturate"), fmt)
    if fmt.zero == "none" and fmt.table is None:
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


@within_float32
def test_7_exact_values_stay(fmt: Format) -> None:
    codes = used_codes(fmt)
    codes = codes[np.isfinite(values(codes, fmt))]
    bits = as_bits(values(codes, fmt).astype(np.float32))
    for rounding in DETERMINISTIC:
        assert_bits_equal(encoded(bits, fmt, rounding), codes, fmt=fmt)
    for word in (0, 2**31, 2**32 - 1):
        words = np.full(len(codes), word, np.uint32)
        for count in (1, 8, 32):
            for rounding in STOCHASTIC:
                got = encoded(bits, fmt, rounding, "nonsaturating", words, count)
                assert_bits_equal(got, codes, fmt=fmt)


@every_format
def test_8_overflow(fmt: Format) -> None:
    x = np.array([np.inf, -np.inf, 3.4e38, -3.4e38], np.float32)
    if fmt.max > 1e38:
        x = x[:2]
    codes = encoded(as_bits(x), fmt, overflow="saturate")
    got = values(codes, fmt)
    want = np.where(x > 0, fmt.max, fmt.min)
    if not fmt.signed:
        floor = math.nan if fmt.has_nan else fmt.min
        want = np.where(x > 0, fmt.max, floor)
    np.testing.assert_array_equal(got, want)
    free = values(encoded(as_bits(x), fmt, overflow="nonsaturating"), fmt)
    if fmt.has_inf:
        np.testing.assert_array_equal(
            free, np.where((x > 0) | fmt.signed, np.sign(x) * np.inf, want)
        )
    elif fmt.has_nan:
        assert np.isnan(free).all()
    else:
        np.testing.assert_array_equal(free, want)


@every_format
def test_9_sign_of_zero(fmt: Format) -> None:
    zeros = encoded(np.array([0, SIGN], np.uint32), fmt)
    tiny = encoded(np.array([1, SIGN | 1], np.uint32), fmt, "toward_zero")
    if fmt.table is not None:
        if fmt.zero != "none":
            np.testing.assert_array_equal(values(zeros, fmt), 0)
            assert np.signbit(values(zeros, fmt)).tolist() == [False, fmt.zero == "signed"]
        return
    if fmt.zero == "none":
        assert zeros[0] == tiny[0] == 0
        assert zeros[1] == fmt.sign_mask
        return
    assert zeros[0] == 0 and zeros[1] == (fmt.sign_mask if fmt.zero == "signed" else 0)
    if fmt.signed and fmt.magnitude(1) > 2.0**-149:
        assert_bits_equal(tiny, zeros)


@pytest.mark.parametrize("rounding", STOCHASTIC)
@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("name", ["float8_e4m3fn", "float4_e2m1fn", "int8", "hif8", "nf4"])
def test_10_every_word_counts_once(name: str, count: int, rounding: Rounding) -> None:
    """Over all 2^r words the number that goes away from zero is the closed form's."""
    fmt = next(fmt for fmt in FORMATS if fmt.name == name)
    bits = inside(fmt)[:: max(4 * SIZE // 128, 1)]
    grid, words = np.meshgrid(bits, np.arange(1 << count, dtype=np.uint32), indexing="ij")
    codes = encoded(grid, fmt, rounding, "saturate", words, count)
    down = encoded(bits, fmt, "toward_zero", "saturate")
    outward = [encoded(bits, fmt, f"toward_{way}", "saturate") for way in ("negative", "positive")]
    up = np.where(floats(bits) < 0, *outward)
    assert ((codes == down[:, None]) | (codes == up[:, None])).all()
    away = (codes != down[:, None]).sum(axis=1)
    lower, upper = values(down, fmt), values(up, fmt)
    for x, low, high, seen in zip(floats(bits).tolist(), lower, upper, away.tolist(), strict=True):
        exact = x == low
        fraction = 0 if exact else (Fraction(x) - Fraction(low)) / (Fraction(high) - Fraction(low))
        assert seen == away_count(Fraction(fraction), rounding, count), (x, count)


@pytest.mark.parametrize("rounding", STOCHASTIC)
@pytest.mark.parametrize("count", [1, 3, 6])
def test_10_the_closed_form_of_the_bias(rounding: Rounding, count: int) -> None:
    """Within a word's share, and for all but `stochastic` zero on average over the fractions."""
    step = Fraction(1, 2 ** (count + 3))
    errors = [bias(step * i, rounding, count) for i in range(2 ** (count + 3))]
    word = Fraction(1, 2**count)
    mean = sum(errors) / len(errors)
    if rounding == "stochastic":
        assert max(errors) == 0 and min(errors) == step - word
        assert mean == (step - word) / 2
    else:
        assert max(map(abs, errors)) == word / 2
        assert mean == (step / 2 if rounding == "stochastic_fast" else 0)
    with pytest.raises(ValueError, match="`rounding` = 'nearest_even'; use one of stochastic"):
        bias(Fraction(0), "nearest_even", count)
    with pytest.raises(ValueError, match="`fraction` = 1; use a number from 0 to below 1"):
        bias(Fraction(1), rounding, count)


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
