"""Every format, rounding mode and overflow policy against the exact oracle, bit for bit."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowprec.numerics import Format, decode, float32, get_format, oracle
from lowprec.numerics.codec import encode_bits, encode_number, narrow
from lowprec.numerics.rounding import OVERFLOWS, ROUNDINGS, STOCHASTIC, is_stochastic
from tests.helpers import (
    FORMATS,
    NOT_FINITE,
    SIZE,
    UInts,
    assert_bits_equal,
    bit_arrays,
    code_sample,
    decoded,
    each_of,
    edges,
    encoded,
    exactly_encoded,
    float_list,
    floats,
    random_words,
    sized,
    word_arrays,
)

EDGES = 4500

every_format = each_of(FORMATS)


def compare(
    fmt: Format,
    bits: UInts,
    words: UInts,
    word_bits: int,
    overflows: tuple[str, ...] = OVERFLOWS,
) -> None:
    """Asserts all modes, and all policies or some, on some bit patterns.

    The policies differ on what is large alone: all but the first are tried on that.
    """
    with np.errstate(invalid="ignore"):  # Signalling NaNs.
        large = ~(np.abs(floats(bits).astype(np.float64)) < fmt.max / 2)
    large = sized(np.flatnonzero(large), SIZE)
    for overflow, rounding in itertools.product(overflows, ROUNDINGS):
        tried = slice(None) if overflow == overflows[0] else large
        drawn = words[tried] if is_stochastic(rounding) else None
        got = encoded(bits[tried], fmt, rounding, overflow, drawn, word_bits)
        want = exactly_encoded(bits[tried], fmt, rounding, overflow, drawn, word_bits)
        try:
            assert_bits_equal(got, want, fmt=fmt, inputs=floats(bits[tried]))
        except AssertionError as error:
            error.add_note(f"{fmt.name}, {rounding}, {overflow}, {word_bits} random bits")
            raise


@every_format
@settings(max_examples=3)
@given(data=st.data())
def test_bit_patterns(fmt: Format, data: st.DataObject) -> None:
    bits, words = data.draw(bit_arrays(fmt)), data.draw(word_arrays())
    overflow = data.draw(st.sampled_from(OVERFLOWS))
    compare(fmt, bits, words, data.draw(st.integers(1, 32)), (overflow,))


@every_format
def test_edges(fmt: Format) -> None:
    bits = edges(fmt)
    assert fmt.bits > 8 or len(bits) <= EDGES, "an edge of a small format would go untested"
    bits = sized(bits, min(len(bits), EDGES))
    words = random_words(len(bits))
    # The words that carry least and most, and the one that rounds to nearest.
    words[::4], words[1::4], words[2::4] = 0, 2**32 - 1, 1 << 7
    compare(fmt, bits, words, 8)
    drawn = random_words(len(bits), 1)
    for rounding in STOCHASTIC:
        got = encoded(bits, fmt, rounding, "saturate", drawn, 32)
        want = exactly_encoded(bits, fmt, rounding, "saturate", drawn, 32)
        assert_bits_equal(got, want, fmt=fmt, inputs=floats(bits))


def float32_bits(x: oracle.Exact) -> int:
    """The float32 bits of an exact value, which one with a wide exponent field rounds to."""
    if x.kind == "finite":
        return oracle.round_to_float32(x.value, x.negative)
    return oracle.float32_bits(float(x))


@every_format
def test_decode(fmt: Format) -> None:
    codes = code_sample(fmt) if fmt.bits > 16 else list(range(1 << fmt.bits))
    want = np.array([float32_bits(oracle.decode(code, fmt)) for code in codes], np.uint32)
    got = decoded(np.array(codes, fmt.code_dtype), fmt)
    assert_bits_equal(floats(got), floats(want), inputs=np.array(codes, fmt.code_dtype))


@every_format
def test_decode_ignores_bits_above_the_format(fmt: Format) -> None:
    codes = np.array(code_sample(fmt), np.uint32)
    above = codes | np.uint32((0xFFFFFFFF << fmt.bits) & 0xFFFFFFFF)
    assert_bits_equal(floats(decoded(above, fmt)), floats(decoded(codes, fmt)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@every_format
def test_decode_to_narrow_types(fmt: Format, dtype: jax.typing.DTypeLike) -> None:
    codes = sized(np.array(code_sample(fmt), fmt.code_dtype), SIZE)
    name = np.dtype(dtype).name
    want = [
        oracle.encode(
            float(oracle.decode(code, fmt)),
            name,
            rounding="nearest_even",
            overflow="nonsaturating",
        )
        for code in codes.tolist()
    ]
    got = narrow(jnp.asarray(decoded(codes, fmt)), dtype)
    assert got.dtype == dtype
    assert_bits_equal(got, np.array(want, np.uint16).view(dtype))


@every_format
def test_nan_code_serves_only_formats_without_nan(fmt: Format) -> None:
    nan_code = 5
    bits = sized(np.array([*NOT_FINITE, 0xFFC00000, 0, 0xBF800000], np.uint32), SIZE)
    words = jnp.asarray(bits)
    got = encode_bits(words, fmt, "nearest_even", "saturate", nan_code=nan_code)
    want = [
        oracle.encode(x, fmt, rounding="nearest_even", overflow="saturate", nan_code=nan_code)
        for x in float_list(bits)
    ]
    assert_bits_equal(got, np.array(want, fmt.code_dtype), fmt=fmt, inputs=floats(bits))


@pytest.mark.parametrize("rounding", ["nearest_even", "toward_zero", "to_odd"])
@every_format
def test_exponents_outside_float32(fmt: Format, rounding: str) -> None:
    bits = sized(edges(fmt), SIZE)
    shifts = (random_words(len(bits)) % 321).astype(np.int32) - 160
    shifts[::3] %= 3
    x = float32.number(jnp.asarray(bits))
    x = x._replace(exponent=x.exponent + jnp.asarray(shifts))
    got = encode_number(x, fmt, rounding, "saturate")
    scaled = [
        math.ldexp(x, shift) for x, shift in zip(float_list(bits), shifts.tolist(), strict=True)
    ]
    want = [
        oracle.encode(x, fmt, rounding=rounding, overflow="saturate")  # type: ignore[arg-type] - a name from ROUNDINGS
        for x in scaled
    ]
    assert_bits_equal(got, np.array(want, fmt.code_dtype), fmt=fmt, inputs=floats(bits))


def test_decode_of_subnormals_just_below_float32s() -> None:
    fmt = Format(name="bias_128", exponent_bits=4, mantissa_bits=3, bias=128)
    codes = np.arange(256, dtype=np.uint8)
    want = np.array([float32_bits(oracle.decode(code, fmt)) for code in range(256)], np.uint32)
    assert_bits_equal(floats(decoded(codes, fmt)), floats(want), inputs=codes)


LOW_BIAS = Format(name="low_bias", exponent_bits=8, mantissa_bits=20, bias=140)
"""No wider an exponent than float32's, but one that reaches below its subnormals."""


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("fmt", [get_format("e11m20"), LOW_BIAS], ids=["e11m20", "low_bias"])
def test_what_float32_does_not_hold_is_rounded_once(
    fmt: Format, dtype: jax.typing.DTypeLike
) -> None:
    """Just above a tie among bfloat16's subnormals, where float32 has no room for the rest."""
    name = np.dtype(dtype).name
    halfway = 2.0**-134 if name == "bfloat16" else 2.0**-25
    codes = np.array(
        [
            oracle.encode(x, fmt, rounding="nearest_even", overflow="saturate")
            for x in (halfway * (1 + 2.0**-20), halfway, halfway * (1 - 2.0**-20), 1.0)
        ],
        fmt.code_dtype,
    )
    want = [
        oracle.encode(
            float(oracle.decode(int(code), fmt)),
            name,
            rounding="nearest_even",
            overflow="nonsaturating",
        )
        for code in codes
    ]
    got = decode(jnp.asarray(codes), fmt, dtype=dtype)
    assert want[0] == 1 and want[1] == 0
    assert_bits_equal(got, np.array(want, np.uint16).view(dtype))
