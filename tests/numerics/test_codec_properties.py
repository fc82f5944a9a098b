"""Closed forms of stochastic rounding, and rounding twice; `tests/properties` has the laws."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.numerics import Format, decode, encode
from lowprec.numerics.rounding import (
    STOCHASTIC,
    Rounding,
    away_count,
    bias,
)
from tests.helpers import (
    FORMATS,
    SIZE,
    SMALL_FORMATS,
    UInts,
    as_bits,
    assert_bits_equal,
    edges,
    encoded,
    exactly_encoded,
    floats,
    random_words,
    sized,
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


@pytest.mark.parametrize("rounding", STOCHASTIC)
@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param(
            name, count, marks=[pytest.mark.slow] * (name != "float8_e4m3fn" and count != 3)
        )
        for name in ("float8_e4m3fn", "float4_e2m1fn", "int8", "hif8", "nf4")
        for count in (1, 2, 3, 8)
    ],
)
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
def test_10_between_values_on_both_sides_of_zero(rounding: Rounding) -> None:
    """Also at whole steps below zero, where nothing is borrowed from the next."""
    fmt = Format(name="minus_three_to_one", table=(-3.0, 1.0))
    x = np.arange(-3, 1.25, 0.25).astype(np.float32)
    grid, words = np.meshgrid(x.view(np.uint32), np.arange(16, dtype=np.uint32), indexing="ij")
    codes = encoded(grid.ravel(), fmt, rounding, "saturate", words.ravel(), 4)
    want = exactly_encoded(grid.ravel(), fmt, rounding, "saturate", words.ravel(), 4)
    assert_bits_equal(codes, want, fmt=fmt, inputs=floats(grid.ravel()))


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
