"""A format's derived attributes, its contradictions, and how it is found by name."""

import dataclasses
import itertools
import math
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lowprec import catalogue
from lowprec.numerics import Format, decode, encode, get_format, list_formats, oracle
from tests.helpers import FORMAT_NAMES, FORMATS, SMALL_FORMATS, WITHIN_FLOAT32

GOOD: dict[str, Any] = {"name": "x", "exponent_bits": 4, "mantissa_bits": 3, "bias": 7}

every_format = pytest.mark.parametrize("fmt", FORMATS, ids=FORMAT_NAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exponent_bits": 16}, "exponent_bits must be from 0 to 15"),
        ({"exponent_bits": -1}, "exponent_bits must be from 0 to 15"),
        ({"bias": None}, "needs exponent_bits, mantissa_bits and bias, or a table"),
        ({"narrow_range": True}, "narrow_range is for two's complement"),
        ({"overflow_value": 1.0}, "overflow_value is for a table"),
        ({"table": (0.0, 1.0)}, "a table leaves the other parameters at their defaults"),
        (
            {"signed": False, "zero": "unsigned", "exponent_bits": 9, "mantissa_bits": 23},
            "a format has at most 31 bits beside the sign",
        ),
        ({"mantissa_bits": 24}, "mantissa_bits must be from 0 to 23"),
        ({"exponent_bits": 0, "mantissa_bits": 0}, "needs an exponent or a mantissa field"),
        ({"infinity": "ieee"}, "'ieee' together or not at all"),
        ({"nan": "ieee"}, "'ieee' together or not at all"),
        (
            {"infinity": "ieee", "nan": "ieee", "mantissa_bits": 0},
            "nan = 'ieee' needs mantissa bits",
        ),
        (
            {"infinity": "ieee", "nan": "ieee", "exponent_bits": 0},
            "infinity = 'ieee' needs an exponent field",
        ),
        ({"nan": "negative_zero"}, "needs signed = true and zero = 'unsigned'"),
        ({"nan": "negative_zero", "zero": "unsigned", "signed": False}, "needs signed = true"),
        ({"zero": "unsigned"}, "spends the code of -0 on nan"),
        ({"zero": "none"}, "subnormals = false needs zero = 'none'"),
        ({"subnormals": False}, "subnormals = false needs zero = 'none'"),
        ({"encoding": "twos_complement"}, "two's complement is for signed integers"),
        ({"bias": 40000}, "bias must be from -32768 to 32768"),
        ({"infinity": "last", "exponent_bits": 0, "mantissa_bits": 1}, "no code is left"),
    ],
)
def test_contradictions(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="format 'x'") as caught:
        Format(**{**GOOD, **change})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("table", "overflow_value", "message"),
    [
        ((0.0, 1.0, 2.0), None, "2 to 65536 values, a power of two"),
        ((0.0, 1.0, 1.0, 2.0), None, "no value twice"),
        ((0.0, 0.0, 1.0, 2.0), None, "no value twice"),
        ((0.0, math.nan), 1.0, "two finite values or more"),
        ((0.0, -1.0), None, "a positive value"),
        ((0.0, 0.1), None, "a table's values are float32"),
        ((0.0, 2.0**-101), None, "a table's values are float32"),
        ((1.0, -0.1), None, "a table's values are float32"),
        ((0.0, 1.0, 2.0, math.inf), None, "needs overflow_value"),
        ((0.0, 1.0, 2.0, math.inf), 2.0, "overflow_value lies above every value"),
        ((0.0, 1.0, 2.0, 3.0), 4.0, "overflow_value is a float32, for a table with nan or inf"),
    ],
)
def test_contradictory_tables(
    table: tuple[float, ...], overflow_value: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match="format 'x'") as caught:
        Format(name="x", table=table, overflow_value=overflow_value)
    assert message in str(caught.value)


def test_an_unsigned_table_has_no_negative_values() -> None:
    with pytest.raises(ValueError, match="signed = false, and the table has negative values"):
        Format(name="x", signed=False, table=(-1.0, 1.0))
    assert not Format(name="x", signed=False, table=(0.5, 1.0)).signed
    renamed = dataclasses.replace(Format(name="x", table=(0.5, 1.0)), name="y")
    assert renamed == Format(name="y", table=(0.5, 1.0))


def test_an_unsigned_table_sends_negatives_to_the_zero_that_stands_first() -> None:
    for zeros in ((0.0, -0.0), (-0.0, 0.0)):
        fmt = Format(name="x", table=(1.0, *zeros, 2.0))
        code = oracle.encode(-3.0, fmt, rounding="nearest_even", overflow="saturate")
        assert not fmt.signed and code == 1
        assert encode(jnp.float32(-3.0), fmt) == 1


def test_a_table_reaches_from_2_to_the_minus_100_to_126() -> None:
    fmt = Format(name="x", table=(2.0**-100, -(2.0**126)))
    assert (fmt.min, fmt.max) == (-(2.0**126), 2.0**-100)


def test_equal_tables_are_equal_and_short_to_print() -> None:
    one, other = (
        Format(name="x", table=(0.0, 1.0, float("nan"), -1.0), overflow_value=2) for _ in range(2)
    )
    assert one == other and hash(one) == hash(other) and one.signed and one.zero == "unsigned"
    assert repr(get_format("hif8")) == (
        "Format(name='hif8', zero='unsigned', table=<256 values>, overflow_value=49152.0)"
    )


def test_tables_differ_by_where_minus_zero_is() -> None:
    one, other = (
        Format(name="x", table=table) for table in ((0.0, 1.0, -0.0, 2.0), (-0.0, 1.0, 0.0, 2.0))
    )
    assert one != other and one == Format(name="x", table=one.table)
    lone = [Format(name="x", table=(zero, 1.0)) for zero in (0.0, -0.0)]
    assert lone[0] != lone[1]
    # Nor do they share what was compiled for the other.
    codes = jnp.arange(4, dtype=jnp.uint8)
    signs = [np.signbit(np.asarray(decode(codes, fmt))).tolist() for fmt in (one, other)]
    assert signs == [[False, False, True, False], [True, False, False, False]]
    assert pickle.loads(pickle.dumps(get_format("hif8"))) == get_format("hif8")


def test_a_table_may_be_an_array() -> None:
    values = np.array([-1.5, -0.25, 0.5, 2.0], np.float32)
    fmt = Format(name="x", table=values)  # type: ignore[arg-type] - any sequence of numbers
    assert fmt == Format(name="x", table=(-1.5, -0.25, 0.5, 2.0))
    assert decode(jnp.arange(4, dtype=jnp.uint8), fmt).tolist() == values.tolist()
    for table in (1.5, ["a", "b"], np.ones((2, 2))):
        with pytest.raises(TypeError, match="`table` must be a sequence of numbers"):
            Format(name="x", table=table)  # type: ignore[arg-type] - any sequence of numbers


def test_families() -> None:
    family = catalogue.lookup("elements", "families/p3109").claims
    claims = {**family, **catalogue.lookup("elements", "families/ieee_interchange").claims}
    for name, figures in claims.items():
        for claim, figure in figures.items():
            assert getattr(get_format(name), claim) == figure, (name, claim)
    assert get_format("binary8p4") == get_format("binary8p4se")
    assert get_format("e5m10").values is not None
    np.testing.assert_array_equal(get_format("e5m10").values, get_format("float16").values)  # type: ignore[arg-type] - a small format has values
    count = 0
    for width in range(3, 16):
        for precision, kind in itertools.product(range(1, width + 1), ("se", "sf", "ue", "uf")):
            fmt = get_format(f"binary{width}p{precision}{kind}")
            assert fmt.bits == width and fmt.has_nan and fmt.has_inf == kind.endswith("e")
            count += 1
    assert count == 4 * sum(range(3, 16))
    for name in ("binary16p4", "binary2p1", "binary8p9", "binary8p0"):
        with pytest.raises(ValueError, match="K from 3 to 15 and P from 1 to K"):
            get_format(name)
    with pytest.raises(ValueError, match="E from 2 to 11 and M from 1 to 23"):
        get_format("e12m3")


@pytest.mark.parametrize("bias", [-112, 147])
def test_the_outermost_biases(bias: int) -> None:
    fmt = Format(**{**GOOD, "bias": bias})
    assert float(np.float32(fmt.max)) == fmt.max
    assert fmt.min_subnormal is not None
    assert float(np.float32(fmt.min_subnormal)) == fmt.min_subnormal > 0


@pytest.mark.parametrize("fmt", SMALL_FORMATS, ids=[fmt.name for fmt in SMALL_FORMATS])
def test_derived_attributes_follow_from_the_values(fmt: Format) -> None:
    assert fmt.values is not None
    finite = fmt.values[np.isfinite(fmt.values)]
    assert fmt.values.shape == (1 << fmt.bits,) and fmt.values.dtype == np.float64
    assert not fmt.values.flags.writeable
    lowest = -finite.max() if fmt.narrow_range else finite.min()
    assert (fmt.max, fmt.min) == (finite.max(), lowest)
    assert fmt.has_inf == bool(np.isinf(fmt.values).any())
    assert fmt.has_nan == bool(np.isnan(fmt.values).any())
    positive = np.unique(finite[finite > 0])
    smallest = fmt.min_subnormal if fmt.min_subnormal is not None else fmt.min_normal
    assert smallest == (None if fmt.table or not positive.size else positive[0])
    signs = np.signbit(fmt.values[fmt.values == 0]).tolist()
    assert sorted(signs) == {"signed": [False, True], "unsigned": [False], "none": []}[fmt.zero]
    # No value but zero has two codes.
    assert len(np.unique(finite)) == len(finite) - (fmt.zero == "signed")


@every_format
def test_codes_of_limits(fmt: Format) -> None:
    assert (fmt.value(fmt.max_code), fmt.value(fmt.min_code)) == (fmt.max, fmt.min)
    assert fmt.infinity_code is None or fmt.value(fmt.infinity_code) == math.inf
    assert fmt.nan_code is None or math.isnan(fmt.value(fmt.nan_code))
    assert fmt.code_dtype.itemsize * 8 >= fmt.bits > fmt.code_dtype.itemsize * 4 or fmt.bits <= 8
    if fmt in WITHIN_FLOAT32:
        assert float(np.float32(fmt.max)) == fmt.max


def test_a_thing_without_meaning_is_none() -> None:
    integer, scale = get_format("int8"), get_format("float8_e8m0fnu")
    assert (integer.min_normal, integer.min_subnormal, integer.min) == (None, 1.0, -128.0)
    assert (scale.min_subnormal, scale.min_normal, scale.min) == (None, 2.0**-127, 2.0**-127)
    assert get_format("float32").values is None
    assert get_format("float4_e2m1fn").nan_code is None
    assert dataclasses.replace(integer, name="mine").dtype is None


@pytest.mark.parametrize("name", list_formats())
def test_dtype_is_of_the_same_name(name: str) -> None:
    fmt = get_format(name)
    if fmt.dtype is not None:
        assert fmt.dtype.name == name
        assert fmt.code_dtype.itemsize == fmt.dtype.itemsize


@pytest.mark.parametrize(
    "name",
    (
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e8m0fnu",
        "float6_e2m3fn",
        "float4_e2m1fn",
        "int8",
        "uint4",
        "bfloat16",
        "float16",
        "float32",
    ),
)
def test_formats_of_ml_dtypes_and_numpy_have_their_dtype(name: str) -> None:
    scalar = getattr(ml_dtypes, name, None) or getattr(np, name)
    assert get_format(name).dtype == np.dtype(scalar)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "int8", "uint4", "ndarray", "matrix", "float64"])
def test_dtype_is_of_the_same_numbers(name: str) -> None:
    assert Format(**{**GOOD, "name": name, "bias": 9}).dtype is None
    assert Format(name=name, table=(0.0, 1.0)).dtype is None


def test_listed_and_found() -> None:
    assert list(list_formats()) == sorted(list_formats())
    assert [get_format(name).name for name in list_formats()] == list(list_formats())
    assert get_format("float8_e4m3fn") is get_format("float8_e4m3fn")
    mine = Format(**GOOD)
    assert get_format(mine) is mine


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("e5m2", "float8_e5m2"),
        ("e2m1", "float4_e2m1fn"),
        ("e2m3", "float6_e2m3fn"),
        ("e3m2", "float6_e3m2fn"),
        ("e8m0", "float8_e8m0fnu"),
        ("bf16", "bfloat16"),
        ("fp16", "float16"),
        ("tf32", "tensorfloat32"),
        ("fp32", "float32"),
    ],
)
def test_aliases(alias: str, name: str) -> None:
    assert get_format(alias) == get_format(name)


def test_what_cannot_be_found() -> None:
    with pytest.raises(ValueError, match="float8_e4m3fn or float8_e4m3"):
        get_format("e4m3")
    with pytest.raises(ValueError, match="no element is named 'float8_e4m3fm'; did you mean"):
        get_format("float8_e4m3fm")
    with pytest.raises(TypeError, match="`fmt` must be a format's name"):
        get_format(8)


def test_a_path_in_place_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nexponent_bits = 2\nmantissa_bits = 2\nbias = 9\n')
    assert get_format(str(path)) == Format(name="mine", exponent_bits=2, mantissa_bits=2, bias=9)
    assert np.asarray(encode(jnp.float32(2.0**-8), str(path))).tolist() == 4


def test_a_format_is_a_static_argument_of_jit() -> None:
    assert {fmt: None for fmt in FORMATS}.keys() == set(FORMATS)
    function = jax.jit(encode, static_argnames="fmt")
    assert int(function(jnp.float32(1.0), fmt=Format(**GOOD))) == 0x38
    with pytest.raises(dataclasses.FrozenInstanceError):
        Format(**GOOD).bias = 3  # type: ignore[misc] - frozen: that is the test
