"""The oracle itself, against values worked out by hand and against Python's own conversions."""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowprec.numerics import Format, get_format, oracle
from tests.helpers import FORMAT_NAMES, FORMATS, SPECIALS, code_sample


@pytest.mark.parametrize(
    ("name", "code", "value"),
    [
        ("float8_e4m3fn", 0x7E, 448.0),
        ("float8_e4m3fn", 0x81, -(2.0**-9)),
        ("float8_e4m3fn", 0xFF, -math.nan),
        ("float8_e5m2", 0x7B, 57344.0),
        ("float8_e5m2", 0xFC, -math.inf),
        ("float8_e5m2", 0x7D, math.nan),
        ("float4_e2m1fn", 0x9, -0.5),
        ("float4_e2m1fn", 0x8, -0.0),
        ("float8_e8m0fnu", 0, 2.0**-127),
        ("float8_e8m0fnu", 254, 2.0**127),
        ("float8_e8m0fnu", 255, math.nan),
        ("int8", 0x80, -128.0),
        ("int8", 0xFF, -1.0),
        ("float16", 1, 2.0**-24),
        ("float32", 0x80000001, -(2.0**-149)),
    ],
)
def test_decode_by_hand(name: str, code: int, value: float) -> None:
    got = float(oracle.decode(code, name))
    assert got == value or (math.isnan(got) and math.isnan(value))
    assert math.copysign(1, got) == math.copysign(1, value)


@pytest.mark.parametrize(
    ("name", "x", "rounding", "overflow", "code"),
    [
        ("float8_e4m3fn", 464.0, "nearest_even", "nonsaturating", 0x7E),
        ("float8_e4m3fn", 464.0, "nearest_away", "nonsaturating", 0x7F),
        ("float8_e4m3fn", -464.00003, "nearest_even", "nonsaturating", 0xFF),
        ("float8_e4m3fn", 1e9, "to_odd", "nonsaturating", 0x7E),
        ("float8_e4m3fn", 449.0, "toward_positive", "nonsaturating", 0x7F),
        ("float8_e4m3fn", -449.0, "toward_positive", "nonsaturating", 0xFE),
        ("float8_e4m3fn", -0.0, "nearest_even", "saturate", 0x80),
        ("float8_e5m2", 61440.0, "nearest_even", "nonsaturating", 0x7C),
        ("float8_e5m2", 61439.0, "nearest_even", "nonsaturating", 0x7B),
        ("float8_e5m2", -math.inf, "nearest_even", "saturate_finite", 0xFC),
        ("float8_e5m2", -math.inf, "nearest_even", "saturate", 0xFB),
        ("float8_e5m2", math.inf, "toward_zero", "nonsaturating", 0x7C),
        ("float4_e2m1fn", 0.25, "nearest_even", "saturate", 0),
        ("float4_e2m1fn", 0.75, "nearest_even", "saturate", 2),
        ("float4_e2m1fn", 5.0, "nearest_even", "saturate", 6),
        ("float4_e2m1fn", 5.0, "nearest_toward_zero", "saturate", 6),
        ("float4_e2m1fn", 5.0, "nearest_away", "saturate", 7),
        ("float4_e2m1fn", math.inf, "nearest_even", "nonsaturating", 7),
        ("float4_e2m1fn", math.nan, "nearest_even", "saturate", 8),
        ("float4_e2m1fn", -math.nan, "nearest_even", "saturate", 0),
        ("float8_e8m0fnu", 0.0, "nearest_even", "saturate", 0),
        ("float8_e8m0fnu", -1.0, "nearest_even", "saturate", 255),
        ("float8_e8m0fnu", 3.0, "nearest_even", "saturate", 128),
        ("float8_e8m0fnu", 1.5, "nearest_even", "saturate", 128),
        ("int8", -128.5, "nearest_even", "saturate", 0x80),
        ("int8", -300.0, "nearest_even", "nonsaturating", 0x80),
        ("int8", -0.5, "nearest_even", "saturate", 0),
        ("int8", 127.5, "toward_zero", "saturate", 127),
    ],
)
def test_encode_by_hand(name: str, x: float, rounding: str, overflow: str, code: int) -> None:
    assert oracle.encode(x, name, rounding=rounding, overflow=overflow) == code  # type: ignore[arg-type] - a name from ROUNDINGS


def test_stochastic_by_hand() -> None:
    # 4.5 lies a quarter of the way from 4 (code 6) to 6 (code 7) of E2M1: of four words one.
    codes = [
        oracle.encode(
            4.5,
            "float4_e2m1fn",
            rounding="stochastic",
            overflow="saturate",
            word=word,
            word_bits=2,
        )
        for word in range(8)
    ]
    assert codes == [6, 6, 6, 7] * 2


@pytest.mark.parametrize("fmt", FORMATS, ids=FORMAT_NAMES)
def test_decode_agrees_with_the_format(fmt: Format) -> None:
    for code in code_sample(fmt):
        value, exact = fmt.value(code), float(oracle.decode(code, fmt))
        assert struct.pack("<d", value) == struct.pack("<d", exact) or (
            math.isnan(value) and math.isnan(exact)
        ), f"{fmt.name}: code {code:#x} is {value} in Format and {exact} in the oracle"


@given(st.integers(0, 2**64 - 1), st.integers(-30, 20))
def test_float16_and_float32_as_python_rounds_them(mantissa: int, exponent: int) -> None:
    x = math.ldexp((mantissa >> 11) - 2**52, exponent - 52)
    for name, code in (("float16", "<e"), ("float32", "<f")):
        try:
            want = int.from_bytes(struct.pack(code, x), "little")
        except OverflowError:
            want = 0x7C00 | (0x8000 if x < 0 else 0)
        got = oracle.encode(x, name, rounding="nearest_even", overflow="nonsaturating")
        assert got == want, (name, x.hex())


@given(st.one_of(st.integers(0, 2**32 - 1), st.sampled_from(SPECIALS)))
def test_round_to_float32_keeps_what_is_float32(bits: int) -> None:
    exact = oracle.decode(bits, "float32")
    if exact.kind != "finite":
        return
    assert oracle.round_to_float32(exact.value, exact.negative) == bits


def test_round_to_float32_by_hand() -> None:
    tiny, top = Fraction(1, 2**149), Fraction(2**128 - 2**104)
    assert oracle.round_to_float32(tiny / 2) == 0
    assert oracle.round_to_float32(-tiny / 2) == 0x80000000
    assert oracle.round_to_float32(tiny * 3 / 2) == 2
    assert oracle.round_to_float32(tiny * Fraction(500001, 10**6)) == 1
    assert oracle.round_to_float32(1 + Fraction(1, 2**24)) == 0x3F800000
    assert oracle.round_to_float32(1 + Fraction(3, 2**24)) == 0x3F800002
    assert oracle.round_to_float32(top + Fraction(2**103) - 1) == 0x7F7FFFFF
    assert oracle.round_to_float32(top + Fraction(2**103)) == 0x7F800000
    assert oracle.round_to_float32(Fraction(0), negative_zero=True) == 0x80000000


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_arithmetic_as_the_processor_does_it(a: int, b: int) -> None:
    x, y = np.array([a, b], np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        results = ((x * y, oracle.multiply(a, b)), (x / y, oracle.divide(a, b)))
    for want, got in results:
        assert got == 0x7FC00000 if np.isnan(want) else got == want.view(np.uint32)


def test_the_processor_keeps_subnormals_here() -> None:
    assert float(np.float32(1e-40) * np.float32(2)) > 0
    assert get_format("float32").min_subnormal == 2.0**-149
