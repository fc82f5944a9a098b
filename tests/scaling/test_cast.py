"""`cast`: the values of encode and decode or quantize and dequantize, and its gradients."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowprec as lp
from lowprec.numerics import Format, decode, encode, get_format
from lowprec.scaling import Block, cast, get_format_or_block, quantize
from tests.helpers import as_bits, assert_bits_equal, floats, random_words
from tests.scaling.helpers import slow_if

FORMATS = ("float8_e4m3fn", "float4_e2m1fn")
BLOCKS = ("mxfp4", "fp8_channel")
SPECIAL = floats([0, 1 << 31, 0x400000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x43E40000, 1])


def patterns() -> jax.Array:
    """Numbers of all sizes, with specials in a tile of their own."""
    ordinary = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32) * 100
    ordinary[2, 32:40] = SPECIAL
    return jnp.asarray(ordinary)


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_format_is_encode_and_decode(fmt: str) -> None:
    x = patterns()
    assert_bits_equal(cast(x, fmt), decode(encode(x, fmt), fmt))
    options: Any = {"rounding": "toward_zero", "overflow": "nonsaturating", "nan_code": 1}
    assert_bits_equal(cast(x, fmt, **options), decode(encode(x, fmt, **options), fmt))


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_is_quantize_and_dequantize(block: str) -> None:
    x = patterns()
    assert_bits_equal(cast(x, block), quantize(x, block).dequantize())
    options: Any = {"amax": 50.0, "axis": 0, "rounding": "nearest_away"}
    assert_bits_equal(cast(x, block, **options), quantize(x, block, **options).dequantize())


def test_a_file_may_hold_a_format_or_a_block(tmp_path: Path) -> None:
    files = Path(__file__).resolve().parents[2] / "formats"
    for kind, name in (("elements", "float8_e5m2"), ("blocks", "mxfp4")):
        own = tmp_path / f"own_{name}.toml"
        text = (files / kind / f"{name}.toml").read_text().split("[cite]")[0]
        own.write_text(text.replace(f'name = "{name}"', f'name = "own_{name}"'))
        assert get_format_or_block(str(own)).name == f"own_{name}"
        assert_bits_equal(cast(patterns(), str(own)), cast(patterns(), name))
    assert isinstance(get_format_or_block(str(own)), Block)


def test_a_name_of_both_kinds_must_say_which() -> None:
    message = "'mxint8' is a format and a block; use 'format:mxint8' or 'block:mxint8'"
    with pytest.raises(ValueError, match=message):
        cast(patterns(), "mxint8")
    one, other = (cast(patterns(), f"{kind}:mxint8") for kind in ("format", "block"))
    assert_bits_equal(one, cast(patterns(), get_format("mxint8")))
    assert_bits_equal(other, quantize(patterns(), "mxint8").dequantize())
    assert (np.asarray(one) != np.asarray(other)).any()


@pytest.mark.parametrize("target", ["float8_e4m3fn", "mxfp4"])
def test_random_bits_are_passed_on(target: str) -> None:
    x, words = patterns()[:2], random_words(128).reshape(2, 64)
    up = jnp.full((2, 64), 2**32 - 1, jnp.uint32)
    one = cast(x, target, rounding="stochastic", random_bits=words)
    other = cast(x, target, rounding="stochastic", random_bits=up)
    assert np.any(as_bits(one) != as_bits(other))
    away = np.abs(np.asarray(other)) >= np.abs(np.asarray(x))
    assert away.mean() > 0.9


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_type_is_kept_and_rounded_once(dtype: Any) -> None:
    x = jnp.array([1.0, 0.3, -100.0, 65504.0], jnp.float32).astype(dtype)
    y = cast(x, "float16")
    assert y.dtype == dtype
    wide = decode(encode(x, "float16"), "float16")
    assert_bits_equal(y, np.asarray(wide).astype(dtype))
    assert cast(x, "mxfp4").dtype == dtype


def test_minus_zero_is_kept() -> None:
    zeros = jnp.array([-0.0, 0.0, -1e-9])
    for target in ("float8_e4m3fn", "mxfp8_e4m3"):
        np.testing.assert_array_equal(as_bits(cast(zeros, target))[:2], [1 << 31, 0])


def weighted_gradient(x: jax.Array, target: str | Format, grad: Any, **options: Any) -> np.ndarray:
    """The gradient of sum(w * cast(x)) for weights that tell the elements apart."""
    weights = (jnp.arange(x.size, dtype=jnp.float32) + 0.3).reshape(x.shape).astype(x.dtype)
    loss = lambda x: jnp.sum(weights * cast(x, target, grad=grad, **options))
    return np.asarray(jax.jit(jax.grad(loss))(x)) / np.asarray(weights)


EDGE = floats([0x43E00000, 0x43E00001, 0x43DFFFFF])  # 448 and its neighbours


def test_straight_through_is_the_identity_everywhere() -> None:
    for target in ("float8_e4m3fn", "mxfp4", "fp8_tensor"):
        x = patterns()
        np.testing.assert_array_equal(weighted_gradient(x, target, "straight_through"), 1.0)


def test_none_is_zero_everywhere() -> None:
    for target in ("float8_e4m3fn", "mxfp4"):
        np.testing.assert_array_equal(weighted_gradient(patterns(), target, "none"), 0.0)


def test_clipped_is_zero_exactly_where_a_format_saturates() -> None:
    x = jnp.asarray(np.concatenate([EDGE, -EDGE, [1e12, 1.0, 0.0, np.inf]]).astype(np.float32))
    got = weighted_gradient(x, "float8_e4m3fn", "clipped")
    np.testing.assert_array_equal(got, [1, 0, 1, 1, 0, 1, 0, 1, 1, 0])


def test_clipped_is_zero_exactly_where_a_block_saturates() -> None:
    # The scale of 7 is 1: what lies above 6 saturates; 5.9 rounds up to 6 and does not.
    x = jnp.array([[7.0, 6.0, 5.9, -6.5, 6.25, 0.1]])
    np.testing.assert_array_equal(weighted_gradient(x, "mxfp4", "clipped"), [[0, 1, 1, 0, 0, 1]])
    static = weighted_gradient(jnp.array([[2.0, 0.5]]), "fp8_tensor", "clipped", amax=1.0)
    np.testing.assert_array_equal(static, [[0, 1]])


@pytest.mark.parametrize(
    ("fmt", "x", "wanted"),
    [
        ("int8", [-127.3, -127, -126.4, -128.3, 127.3], [1, 1, 1, 0, 0]),
        ("int8_symmetric", [-127.3, -127, 127], [0, 1, 1]),
        ("int2", [-1.3, -0.9, -2.2, 1.3], [1, 1, 0, 0]),
        ("uint4", [-5, 3, 20, 0, 15], [0, 1, 0, 1, 1]),
        ("nf4", [-1.1, -1, 0.99, 1.1], [0, 1, 1, 0]),
        ("float8_e8m0fnu", [0, 1e-39, 1, -1, np.nan], [0, 0, 1, 0, 1]),
    ],
)
def test_clipped_goes_by_the_range_of_the_format(
    fmt: str, x: list[float], wanted: list[int]
) -> None:
    assert weighted_gradient(jnp.array(x, jnp.float32), fmt, "clipped").tolist() == wanted


def test_clipped_where_float32_has_no_such_lowest_value() -> None:
    """2^-199 is the lowest: nothing but zero lies below it."""
    fmt = Format(
        name="far_below",
        signed=False,
        exponent_bits=8,
        mantissa_bits=2,
        bias=199,
        zero="none",
        subnormals=False,
    )
    x = jnp.array([0.0, -0.0, 1e-38, 1.0, -1.0], jnp.float32)
    assert weighted_gradient(x, fmt, "clipped").tolist() == [0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    "block",
    slow_if(
        ["fp8_channel", "int8_channel", "int4_g128", "mxfp4_rceil"], ["int4_g128", "mxfp4_rceil"]
    ),
)
def test_clipped_keeps_the_largest_of_a_tile(block: str) -> None:
    """Its scale is rounded, but what it becomes is not cut off."""
    x = np.random.default_rng(0).normal(size=(64, 512)).astype(np.float32)
    rounded = np.abs(np.asarray(cast(x, block))).max(axis=1) < np.abs(x).max(axis=1)
    assert rounded.any() or block == "mxfp4_rceil"
    np.testing.assert_array_equal(weighted_gradient(jnp.asarray(x), block, "clipped"), 1.0)


def test_clipped_needs_scales_that_are_not_corrected() -> None:
    block = dataclasses.replace(lp.get_block("nvfp4_ms_eden"), transform=None)
    with pytest.raises(ValueError, match="has corrected scales; use 'straight_through'"):
        cast(jnp.ones((1, 128)), block, grad="clipped")


def test_clipped_does_not_change_the_value() -> None:
    x = patterns()
    assert_bits_equal(cast(x, "float8_e4m3fn", grad="clipped"), cast(x, "float8_e4m3fn"))


def test_a_cotangent_is_not_rounded() -> None:
    # An astype's gradient would round 0.3 to the nearest float8.
    _, pull = jax.vjp(lambda x: cast(x, "float8_e4m3fn"), jnp.ones(1))
    np.testing.assert_array_equal(
        pull(jnp.array([0.3], jnp.float32))[0], np.asarray([0.3], np.float32)
    )


def test_second_derivatives_have_no_gradient_of_the_cast() -> None:
    cubed = lambda x: cast(x, "float8_e4m3fn") ** 3
    assert jax.grad(jax.grad(cubed))(jnp.float32(2.0)) == 12.0


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "`amax` needs a block", {"fmt_or_block": "float8_e4m3fn", "amax": 1.0}),
        (ValueError, "`overflow` is set by", {"fmt_or_block": "mxfp4", "overflow": "saturate"}),
        (ValueError, "`nan_code` is set by", {"fmt_or_block": "mxfp4", "nan_code": 0}),
        (ValueError, "`random_bit_count`", {"fmt_or_block": "mxfp4", "random_bit_count": 8}),
        (ValueError, "`grad` = 'ste'", {"fmt_or_block": "mxfp4", "grad": "ste"}),
        (ValueError, "format or block", {"fmt_or_block": "mxfp5"}),
        (ValueError, "ambiguous", {"fmt_or_block": "e4m3"}),
    ],
)
def test_errors(error: type[Exception], message: str, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        cast(jnp.ones((1, 4)), **options)
    with pytest.raises(TypeError, match="int32"):
        cast(jnp.ones((1, 4), jnp.int32), "mxfp4")


def test_clipped_reads_twos_complement_codes() -> None:
    x = jnp.asarray([-1.3, -1000.0, 1.3, 1000.0, -127.5], jnp.float32)
    gradient = jax.grad(lambda x: lp.cast(x, "int8", grad="clipped").sum())(x)
    assert gradient.tolist() == [1, 0, 1, 0, 1]
