"""LogFMT: the committed polynomials bit for bit, and how near they are to the real numbers."""

import dataclasses
import importlib.util
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.numerics import Format, get_format
from lowprec.scaling import Block, get_block, logarithmic_oracle, quantize
from lowprec.scaling.codings import Logarithmic
from lowprec.scaling.fixed_point import exp2, log2, multiply_high, polynomial
from lowprec.scaling.logarithmic import _square
from tests.helpers import STRICT_SLOW, UInts, as_bits, assert_bits_equal, floats, random_words
from tests.scaling.helpers import slow_if

pytestmark = pytest.mark.slow

LOGFMT8, LOGFMT10 = get_block("logfmt8_1x128"), get_block("logfmt10_1x128")
SHAPE = (16, 128)


def spec(block: Block) -> Logarithmic:
    assert block.logarithmic is not None
    return block.logarithmic


def bits_wide(bits: int, **changes: Any) -> Block:
    element = Format(name=f"sign_{bits}", exponent_bits=0, mantissa_bits=bits - 1, bias=2 - bits)
    return dataclasses.replace(LOGFMT8, name=f"logfmt{bits}", element=element, **changes)


BLOCKS = {
    "8": LOGFMT8,
    "10": LOGFMT10,
    "6_float32": bits_wide(6, scale_format=get_format("float32")),
    "8_zeros": dataclasses.replace(
        LOGFMT8, logarithmic=dataclasses.replace(spec(LOGFMT8), zeros="included")
    ),
}


def tiles() -> UInts:
    """Tiles of every kind, a row each: the last ones have NaN, Inf, zeros or one value."""
    rng = np.random.default_rng(0)
    words = random_words(SHAPE[0] * SHAPE[1], 2).reshape(SHAPE)
    rows = rng.normal(size=SHAPE).astype(np.float32).view(np.uint32)
    rows[1] &= np.uint32(0xFFFF0000)
    rows[2] = words[2] & np.uint32(0xBFFFFFFF)
    rows[3] = words[3] & np.uint32(0x80FFFFFF)
    rows[4] = words[4] & np.uint32(0x800003FF)
    for row, spread in ((5, 0x7), (6, 0xFFF), (7, 0x3FFFFF), (8, 0x3FFFFFF)):
        rows[row] = np.uint32(0x3F800000) + (words[row] & np.uint32(spread))
    rows[9] = (words[9] & np.uint32(0x807FFFFF)) | np.uint32(0x7F000000)
    rows[10, ::3] = words[10, ::3] & np.uint32(1 << 31)
    rows[11] = (np.float32(0.3).view(np.uint32) & np.uint32(0xFFFF0000)) * (words[11] & 1)
    rows[12] = words[12] & np.uint32(1 << 31)
    rows[13, 5], rows[14, 7] = 0x7F800000, 0xFFC00000
    return rows.astype(np.uint32)


def row_of(bits: UInts) -> list[float]:
    return [float(x) for x in floats(bits)]


@pytest.mark.parametrize("name", slow_if(BLOCKS, ["10", "6_float32", "8_zeros"]))
def test_exact(name: str) -> None:
    bits, block = tiles(), BLOCKS[name]
    q = quantize(jnp.asarray(floats(bits)), block)
    assert q.offsets is not None
    values = q.dequantize()
    # The oracle tries every level: of the many levels of 10 bits a sample of tiles will do.
    for i, row in list(enumerate(bits))[:: 3 if name == "10" else 1]:
        want = logarithmic_oracle.code_tile(row_of(row), block)
        np.testing.assert_array_equal(q.scales[i, 0], np.float32(want.amax))
        np.testing.assert_array_equal(q.offsets[i, 0], np.float32(want.amin))
        assert_bits_equal(np.asarray(q.codes)[i], np.array(want.codes, q.codes.dtype), inputs=row)
        assert_bits_equal(as_bits(values)[i], np.array(want.values, np.uint32), inputs=row)
    assert len(np.unique(np.asarray(q.codes)[0])) > 30


def test_products_are_floored_exactly() -> None:
    a, b = random_words(4000, 1), random_words(4000, 2)
    a[:8], b[:8] = (0, 0x80000000, 0x7FFFFFFF, 0xFFFFFFFF) * 2, (0xFFFFFFFF,) * 4 + (1,) * 4
    want = [(int(x) * int(y)) >> 32 for x, y in zip(a.view(np.int32), b, strict=True)]
    got = jax.jit(multiply_high)(jnp.asarray(a.view(np.int32)), jnp.asarray(b))
    np.testing.assert_array_equal(got, want)
    squares = [int(x) ** 2 >> 32 for x in a]
    got = np.asarray(jax.jit(_square)(jnp.asarray(a))).view(np.uint32)
    np.testing.assert_array_equal(got, np.array(squares, np.uint32))


def test_the_polynomials_are_regenerated_by_their_script() -> None:
    path = Path(__file__).parents[2] / "experiments" / "logfmt_polynomials.py"
    module = importlib.util.spec_from_file_location("logfmt_polynomials", path)
    assert module is not None and module.loader is not None
    script = importlib.util.module_from_spec(module)
    module.loader.exec_module(script)
    made = script.polynomials()
    for block in (LOGFMT8, LOGFMT10):
        for name, coefficients in made.items():
            assert getattr(spec(block), name) == coefficients


def test_logarithms_are_monotone_and_near() -> None:
    """Over every 64th significand: within 0.6 units of 2^-23 octave of the logarithm."""
    significands = np.arange(0, 1 << 23, 64, dtype=np.uint32) | np.uint32(0x3F800000)
    coefficients = spec(LOGFMT8).log2_coefficients
    got = np.asarray(jax.jit(log2, static_argnums=1)(jnp.asarray(significands), coefficients))
    exact = np.log2(floats(significands).astype(np.float64)) * 2**23
    assert np.abs(got - exact).max() < 0.6
    assert np.all(np.diff(got) > 0)
    powers = jnp.asarray((np.arange(1, 255) << 23).astype(np.uint32))
    np.testing.assert_array_equal(log2(powers, coefficients), (np.arange(1, 255) - 127) * 2**23)


@pytest.mark.slow
def test_logarithms_of_all_significands_never_fall() -> None:
    significands = np.arange(1 << 23, dtype=np.uint32) | np.uint32(0x3F800000)
    coefficients = spec(LOGFMT8).log2_coefficients
    got = np.asarray(jax.jit(log2, static_argnums=1)(jnp.asarray(significands), coefficients))
    assert np.all(np.diff(got) >= 0) and got[0] == 0 and got[-1] == 2**23 - 1
    exact = np.log2(floats(significands).astype(np.float64)) * 2**23
    assert np.abs(got - exact).max() < 0.6


def test_powers_are_near_and_reach_both_ends() -> None:
    logarithms = np.concatenate(
        [np.arange(0, 1 << 23, 64), (np.array([-150, -149, -127, -126, 0, 127, 128]) << 23) + 12345]
    ).astype(np.int32)
    bits = jax.jit(exp2, static_argnums=1)(jnp.asarray(logarithms), spec(LOGFMT8).exp2_coefficients)
    with np.errstate(over="ignore"):
        exact = np.exp2(logarithms / 2.0**23)
        wanted = exact.astype(np.float32)
    got = floats(np.asarray(bits))
    middle = slice(0, 1 << 17)
    assert np.abs(got[middle].astype(np.float64) / exact[middle] - 1).max() < 2.0**-23.6
    np.testing.assert_array_equal(np.isinf(got), np.isinf(wanted))
    tiny = (got > 0) & (got < 2.0**-126)
    assert tiny.sum() >= 2 and np.all(np.abs(got[tiny] - exact[tiny]) <= 2.0**-149)


def test_midpoints_are_near() -> None:
    """log2(cosh(u ln 2 / 2)) for all steps of a ladder of 6 bits and more."""
    u = np.linspace(0, 1.07, 2001)
    squares = jnp.asarray((u**2 / 4 * 2**32).astype(np.uint32))
    got = np.asarray(polynomial(squares, spec(LOGFMT8).midpoint_coefficients)) / 2**30
    exact = np.log2(np.cosh(u * np.log(2) / 2))
    assert np.abs(got - exact).max() < 2.0**-27


@pytest.mark.parametrize("row", [0, 1, 2, 8])
def test_the_distance_from_the_rule_in_real_numbers(row: int) -> None:
    """Levels within 2^-22, and the nearest level but for ties within 2^-21 of a threshold."""
    block, bits = LOGFMT8, tiles()
    got = logarithmic_oracle.code_tile(row_of(bits[row]), block)
    ladder = (got.amax, got.amin, spec(block).octaves, 128)
    levels = logarithmic_oracle.real_levels(*ladder)
    thresholds = logarithmic_oracle.real_thresholds(*ladder)
    for x, code, value in zip(row_of(bits[row]), got.codes, got.values, strict=True):
        index = code & 127
        decoded = Decimal(abs(float(floats([value])[0])))
        if index:
            assert abs(decoded / levels[index] - 1) < Decimal(2) ** -22
        nearest = sum(threshold <= abs(Decimal(x)) for threshold in thresholds)
        if nearest != index:
            nearer = min(abs(abs(Decimal(x)) / t - 1) for t in thresholds)
            assert abs(nearest - index) == 1 and nearer < Decimal(2) ** -21


@pytest.mark.slow
def test_nearest_in_linear_space() -> None:
    """Against all levels that the tile decodes to: none is nearer by more than rounding."""
    bits = tiles()[[0, 2, 8]]
    q = quantize(jnp.asarray(floats(tiles())), LOGFMT10)
    values = np.abs(np.asarray(q.dequantize(), np.float64))
    for at, row in zip((0, 2, 8), bits, strict=True):
        amax, amin = float(q.scales[at, 0]), float(np.asarray(q.offsets)[at, 0])
        levels = [float(x) for x in logarithmic_oracle.real_levels(amax, amin, 32, 512)]
        x = np.abs(floats(row).astype(np.float64))
        above = x >= levels[1]
        best = np.abs(x[:, None] - np.array(levels[1:])[None, :]).min(1)
        error = np.abs(values[at] - x)
        assert np.all(error[above] <= best[above] + x[above] * 2.0**-21)
        assert np.median(error[above] / x[above]) > 1e-4


@pytest.mark.parametrize("name", slow_if(["8", "10"], ["10"]))
def test_both_ends_are_kept(name: str) -> None:
    """amax and amin of a bfloat16 tile are values of it, so that coding twice changes nothing."""
    block, numbers = BLOCKS[name], np.random.default_rng(3).normal(size=SHAPE)
    x = jnp.asarray(numbers, jnp.bfloat16).astype(jnp.float32)
    once = quantize(x, block)
    values = once.dequantize()
    for end in (np.max, np.min):
        np.testing.assert_array_equal(end(np.abs(values), 1), end(np.abs(x), 1))
    twice = quantize(values, block)
    assert_bits_equal(twice.codes, once.codes)
    assert_bits_equal(twice.dequantize(), values)


def test_special_tiles() -> None:
    bits = tiles()
    q = quantize(jnp.asarray(floats(bits)), LOGFMT8)
    values, codes = np.asarray(q.dequantize()), np.asarray(q.codes)
    # One value and zeros: the value has the top index and comes back.
    assert set(codes[11].tolist()) == {0, 127}
    assert_bits_equal(values[11], floats(bits[11]))
    # All zeros: index 0, their signs kept.
    assert_bits_equal(values[12], floats(bits[12]))
    assert q.scales[12, 0] == 0 and set(codes[12].tolist()) == {0, 128}
    for nonfinite in (13, 14):
        assert np.isnan(values[nonfinite]).all() and np.isnan(q.scales[nonfinite, 0])
    # 32 octaves below the largest and deeper, elements are 0.
    deep = np.full(SHAPE, 1.0, np.float32)
    deep[:, 1], deep[:, 2] = 2.0**-31.5, 2.0**-40
    got = np.asarray(quantize(jnp.asarray(deep), LOGFMT8).dequantize())
    np.testing.assert_allclose(got[0, :3], [1.0, 2.0**-31.5, 0.0], rtol=0.1)
    assert got[0, 2] == 0


@pytest.mark.slow
def test_a_zero_that_counts_stretches_the_ladder() -> None:
    x = np.abs(np.random.default_rng(4).normal(size=SHAPE)).astype(np.float32) + 1
    x[:, 0] = 0
    errors = []
    for block in (LOGFMT8, BLOCKS["8_zeros"]):
        y = np.asarray(quantize(jnp.asarray(x), block).dequantize())
        assert np.all(y[:, 0] == 0)
        errors.append(np.abs(y - x).mean())
    assert errors[1] > 5 * errors[0]


@pytest.mark.slow
def test_more_bits_are_nearer() -> None:
    x = jnp.asarray(np.random.default_rng(5).normal(size=SHAPE).astype(np.float32))
    errors = [
        float(jnp.linalg.norm(quantize(x, block).dequantize() - x) / jnp.linalg.norm(x))
        for block in (LOGFMT8, LOGFMT10)
    ]
    assert 0.01 < errors[0] < 0.02 and 3.5 < errors[0] / errors[1] < 4.5


@pytest.mark.slow
def test_the_same_bits_under_every_transformation() -> None:
    x = jnp.asarray(floats(tiles()))

    def parts(x: jax.Array) -> tuple[jax.Array, ...]:
        q = quantize(x, LOGFMT8)
        return q.codes, q.scales, q.dequantize()

    want = parts(x)
    batched = jax.vmap(lambda row: parts(row[None]))(x)
    strict = jax.jit(parts, compiler_options=STRICT_SLOW)(x)
    for way in (batched, strict):
        for got, expected in zip(way, want, strict=True):
            assert_bits_equal(np.asarray(got).reshape(expected.shape), expected)


def test_bits_and_errors() -> None:
    q = quantize(jnp.ones(SHAPE), LOGFMT8)
    assert q.bits_per_element == 8.25 and q.codes.dtype == jnp.uint8
    assert q.nbytes == 16 * 128 + 16 * 4
    with pytest.raises(ValueError, match="nearest in linear space"):
        quantize(jnp.ones(SHAPE), LOGFMT10, rounding="toward_zero")
    with pytest.raises(ValueError, match="from 6 to 16 bits"):
        bits_wide(5)
    with pytest.raises(ValueError, match="a sign and a magnitude, and those of int8 are not"):
        dataclasses.replace(LOGFMT8, element=get_format("int8"))
    assert Fraction(LOGFMT8.bits_per_element) == Fraction(33, 4)
