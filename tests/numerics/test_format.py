"""A format's derived attributes, its contradictions, and how it is found by name."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.numerics import Format, encode, get_format, list_formats
from tests.helpers import FORMAT_NAMES, FORMATS, SMALL_FORMATS

GOOD: dict[str, Any] = {"name": "x", "exponent_bits": 4, "mantissa_bits": 3, "bias": 7}

every_format = pytest.mark.parametrize("fmt", FORMATS, ids=FORMAT_NAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exponent_bits": 9}, "exponent_bits must be from 0 to 8"),
        ({"exponent_bits": -1}, "exponent_bits must be from 0 to 8"),
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
            "infinity needs an exponent field",
        ),
        ({"nan": "negative_zero"}, "needs signed = true and zero = 'unsigned'"),
        ({"nan": "negative_zero", "zero": "unsigned", "signed": False}, "needs signed = true"),
        ({"zero": "unsigned"}, "spends the code of -0 on nan"),
        ({"zero": "none"}, "subnormals = false needs zero = 'none'"),
        ({"subnormals": False}, "subnormals = false needs zero = 'none'"),
        ({"encoding": "twos_complement"}, "two's complement is for signed integers"),
        ({"bias": 148}, "must lie within float32's"),
        ({"bias": -113}, "must lie within float32's"),
    ],
)
def test_contradictions(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="format 'x'") as caught:
        Format(**{**GOOD, **change})
    assert message in str(caught.value)


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
    assert (fmt.max, fmt.min) == (finite.max(), finite.min())
    assert fmt.has_inf == bool(np.isinf(fmt.values).any())
    assert fmt.has_nan == bool(np.isnan(fmt.values).any())
    positive = np.unique(finite[finite > 0])
    smallest = fmt.min_subnormal if fmt.min_subnormal is not None else fmt.min_normal
    assert smallest == positive[0]
    signs = np.signbit(fmt.values[fmt.values == 0]).tolist()
    assert signs == {"signed": [False, True], "unsigned": [False], "none": []}[fmt.zero]
    # No value but zero has two codes.
    assert len(np.unique(finite)) == len(finite) - (fmt.zero == "signed")


@every_format
def test_codes_of_limits(fmt: Format) -> None:
    assert fmt.value(fmt.max_code) == fmt.max
    assert fmt.infinity_code is None or fmt.value(fmt.infinity_code) == math.inf
    assert fmt.nan_code is None or math.isnan(fmt.value(fmt.nan_code))
    assert fmt.code_dtype.itemsize * 8 >= fmt.bits > fmt.code_dtype.itemsize * 4 or fmt.bits <= 8
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
        Format(**GOOD).bias = 3  # type: ignore[misc]
