"""float64 inputs and outputs, where JAX has x64 switched on: each value is rounded once."""

import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import lowprec as lp
from lowprec.numerics import Format, oracle
from lowprec.numerics.codec import encode_bits
from lowprec.numerics.rounding import OVERFLOWS, ROUNDINGS, is_stochastic
from tests.helpers import (
    FORMATS,
    assert_bits_equal,
    code_sample,
    each_of,
    graded,
    random_words,
    sized,
)

SIZE = 1024
every_format = each_of(FORMATS)
EDGES = ("float8_e4m3fn", "float8_e8m0fnu", "int8")
"""Formats whose edges the fast tests try: a floating-point one and what differs most from it."""


@pytest.fixture(autouse=True)
def _x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def edges(fmt: Format) -> NDArray[np.float64]:
    """Values and midpoints of a format, each with its float64 neighbours, and specials."""
    exact = [oracle.decode(code, fmt) for code in code_sample(fmt)]
    values = sorted({abs(float(x)) for x in exact if x.kind == "finite"} - {math.inf})
    step = values[-1] if len(values) == 1 else values[-1] - values[-2]
    ladder = np.array([*values, fmt.overflow_value or min(values[-1] + step, 1e308)])
    points = np.concatenate([ladder, ladder[1:] / 2 + ladder[:-1] / 2, ladder[:1] / 2])
    finite = np.concatenate(
        [points, np.nextafter(points, np.inf), np.nextafter(points, 0.0), 2.0 ** np.arange(-9, 9)]
    )
    special = np.array([0.0, 5e-324, 2.2e-308, 1e-310, 1.7e308, math.inf, math.nan])
    near = sized(finite, SIZE // 2 - len(special))  # type: ignore[arg-type] - any kind of number may be cut
    some = np.concatenate([near, special])
    return np.concatenate([some, -some])


@pytest.mark.parametrize(
    "fmt",
    graded(FORMATS, fast=[x for x in FORMATS if x.name in EDGES], name=lambda x: x.name),
)
def test_edges(fmt: Format) -> None:
    x = edges(fmt)
    bits, words = jnp.asarray(x.view(np.uint64)), random_words(SIZE)
    for rounding, overflow in itertools.product(ROUNDINGS, ("nonsaturating",)):
        count = 11
        drawn = words & np.uint32((1 << count) - 1) if is_stochastic(rounding) else None
        given = None if drawn is None else jnp.asarray(drawn)
        got = encode_bits(bits, fmt, rounding, overflow, given, count if given is not None else 0)
        want = [
            oracle.encode(
                value,
                fmt,
                rounding=rounding,  # type: ignore[arg-type] - a name from ROUNDINGS
                overflow=overflow,
                word=0 if drawn is None else int(drawn[i]),
                word_bits=count,
            )
            for i, value in enumerate(x.tolist())
        ]
        assert_bits_equal(got, np.array(want, fmt.code_dtype), fmt=fmt, inputs=x)


@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "hif8", "int8", "float6_e2m3fn"])
def test_overflow(name: str, overflow: str) -> None:
    fmt = lp.get_format(name)
    x = np.array([fmt.max, np.nextafter(fmt.max, 1e9), 1.1 * fmt.max, 2 * fmt.max, 1e300, np.inf])
    x = np.concatenate([x, -x])
    got = lp.encode(x, fmt, overflow=overflow)  # type: ignore[arg-type] - a name from OVERFLOWS
    want = [
        oracle.encode(value, fmt, rounding="nearest_even", overflow=overflow)  # type: ignore[arg-type] - a name from OVERFLOWS
        for value in x.tolist()
    ]
    assert_bits_equal(got, np.array(want, fmt.code_dtype), fmt=fmt, inputs=x)


def test_one_rounding_where_ml_dtypes_rounds_twice() -> None:
    # Midpoints of float8_e4m3fn plus one float64 step, which float32 cannot tell from a tie: where
    # the even code is the lower one, rounding twice stays there.
    values = np.array(lp.get_format("float8_e4m3fn").values)[:127]
    middles = np.nextafter((values[1:] + values[:-1]) / 2, np.inf)
    once = np.asarray(lp.decode(lp.encode(middles, "float8_e4m3fn"), "float8_e4m3fn"))
    assert (once == values[1:]).all()
    twice = middles.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    assert (twice != values[1:]).sum() == 63
    # A Python float is a float64 here.
    assert float(lp.cast(-431.99999999999994, "float8_e4m3fn")) == -416.0
    assert lp.cast(np.float64(-431.99999999999994), "float8_e4m3fn") == -416.0


@every_format
def test_decode(fmt: Format) -> None:
    codes = code_sample(fmt)
    want = np.array([float(oracle.decode(code, fmt)) for code in codes])
    got = np.asarray(lp.decode(jnp.array(codes, fmt.code_dtype), fmt, dtype=np.float64))
    assert got.dtype == np.float64 and np.isfinite(got).sum() > len(got) // 4
    nan = np.isnan(want)
    assert (np.isnan(got) == nan).all()
    assert_bits_equal(np.where(nan, 0, got), np.where(nan, 0, want))


def test_values_below_float64_are_rounded_once() -> None:
    # The last place of float64 is 2^-1074: here are halves, quarters and less of it.
    deep = lp.Format(name="deep", exponent_bits=11, mantissa_bits=4, bias=1078)
    codes = np.arange(400)
    want = np.array([float(oracle.decode(int(code), deep).value) for code in codes])
    got = np.asarray(lp.decode(jnp.array(codes, deep.code_dtype), deep, dtype=np.float64))
    assert_bits_equal(got, want)
    assert len(np.unique(want)) > 100


def test_cast_keeps_float64_and_its_gradient() -> None:
    x = jnp.array([0.3, 1e300, -5e-324])
    assert x.dtype == jnp.float64
    assert lp.cast(x, "float8_e4m3fn").tolist() == [0.3125, 448.0, -0.0]
    assert jnp.signbit(lp.cast(x, "float8_e4m3fn"))[2]
    slope = jax.grad(lambda x: lp.cast(x, "float8_e4m3fn", grad="clipped").sum())(x)
    assert slope.dtype == jnp.float64 and slope.tolist() == [1.0, 0.0, 1.0]
    plain, jitted = lp.encode(x, "nf4"), jax.jit(lambda x: lp.encode(x, "nf4"))(x)
    assert_bits_equal(plain, jitted)


def test_a_block_needs_float32() -> None:
    with pytest.raises(TypeError, match="`x` must be float32, bfloat16 or float16, got float64"):
        lp.quantize(jnp.ones((2, 32), jnp.float64), "mxfp4")


def test_without_x64_float64_is_refused() -> None:
    with jax.enable_x64(False):
        with pytest.raises(TypeError, match=r"got float64; convert it first.*jax_enable_x64"):
            lp.encode(np.ones(3), "float8_e4m3fn")
        with pytest.raises(TypeError, match=r"`dtype` = float64 needs jax\.config\.update"):
            lp.decode(jnp.ones(3, jnp.uint8), "float8_e4m3fn", dtype=np.float64)
