"""Asymmetric integers: every variant against exact arithmetic, and the sources' corner cases."""

import dataclasses
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowprec as lp
from lowprec.numerics import get_format
from lowprec.scaling import Block, QTensor, affine_oracle, get_block, list_blocks, quantize
from lowprec.scaling.affine import _float16
from lowprec.scaling.codings import Affine
from tests.helpers import STRICT, UInts, as_bits, assert_bits_equal, floats, random_words
from tests.scaling.helpers import slow_if, tensors

pytestmark = pytest.mark.slow

NAMES = [name for name in list_blocks() if get_block(name).coding == "affine"]
TWINS = [name for name in NAMES if name.startswith(("int2", "int4_quarot_g"))]
"""Entries that differ from others in little: only the slow suite compiles them."""


def changed(name: str, **changes: Any) -> Block:
    affine = dataclasses.replace(get_block(name).affine or Affine(**changes), **changes)
    return dataclasses.replace(get_block(name), name=f"{name}_{changes}", affine=affine)


USER_BLOCKS = (
    changed("int4_vllm_token", fused=False, clip_ratio=0.7),
    dataclasses.replace(
        changed("int4_quarot_g128", with_zero=True, arithmetic="float32"),
        element=get_format("uint8"),
        scale_format=get_format("float32"),
    ),
)


def width(block: Block) -> int:
    return 9 if block.tile[1] == "all" else int(block.tile[1]) + 5


def canonical(x: Any) -> UInts:
    """float32 bits, every NaN the same: a source's NaN has any sign."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, np.uint32(0x7FC00000), bits)


def assert_exact(bits: UInts, block: Block, **options: Any) -> QTensor:
    """Fails where rows of `quantize` and `dequantize` differ from the oracle in any bit."""
    q = quantize(jnp.asarray(floats(bits)), block, **options)
    values = canonical(q.dequantize())
    columns = bits.shape[1] if block.tile[1] == "all" else int(block.tile[1])
    words = options.pop("random_bits", np.zeros_like(bits))
    for row, start in itertools.product(range(bits.shape[0]), range(0, bits.shape[1], columns)):
        part = np.s_[row, start : start + columns]
        numbers = [float(x) for x in floats(bits[part])]
        want = affine_oracle.code_tile(numbers, block, words=words[part].tolist(), **options)
        assert canonical(q.scales)[row, start // columns] == canonical(want.scale)
        assert_bits_equal(np.asarray(q.codes)[part], np.array(want.codes, np.uint8))
        assert_bits_equal(values[part], canonical(want.values), inputs=floats(bits[part]))
        if want.offset is None:
            assert q.offsets is None
        else:
            assert q.offsets is not None
            assert canonical(q.offsets)[row, start // columns] == canonical(want.offset)
    return q


@pytest.mark.parametrize("name", slow_if(NAMES, set(NAMES) - {"int4_kivi_g32"}))
@settings(max_examples=12)
@given(data=st.data())
def test_entries_are_exact(name: str, data: st.DataObject) -> None:
    block = get_block(name)
    assert_exact(data.draw(tensors((2, width(block)), 10)), block)


@pytest.mark.slow
@pytest.mark.parametrize("block", USER_BLOCKS, ids=lambda block: block.name[:24])
@settings(max_examples=25)
@given(data=st.data())
def test_other_combinations_are_exact(block: Block, data: st.DataObject) -> None:
    assert_exact(data.draw(tensors((2, width(block)), 10)), block)


@pytest.mark.parametrize("name", slow_if(NAMES, TWINS))
def test_numbers_of_a_cache_are_exact(name: str) -> None:
    block = get_block(name)
    sizes = 10.0 ** np.linspace(-7, 4, 12)[:, None]
    shape = (12, 9)
    numbers = np.random.default_rng(0).normal(size=shape) * sizes + sizes / 2
    q = assert_exact(numbers.astype(np.float32).view(np.uint32), block)
    assert len(np.unique(np.asarray(q.codes))) == 2**block.element.bits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rounding"),
    [("int2_kivi_g32", "stochastic"), ("int4_quarot_g128", "stochastic")],
)
def test_stochastic_rounding_is_exact(name: str, rounding: Any) -> None:
    block = get_block(name)
    shape = (2, width(block))
    numbers = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    words = random_words(numbers.size, 5).reshape(shape)
    assert_exact(numbers.view(np.uint32), block, rounding=rounding, random_bits=words)


@pytest.mark.slow
def test_kivi_is_float16_arithmetic() -> None:
    """The same by NumPy's float16, operation by operation."""
    x = np.random.default_rng(2).normal(size=(256, 32)).astype(np.float16) * np.float16(3)
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    scale = (high - low) / np.float16(3)
    codes = np.rint(np.clip((x - low) / scale, 0, 3)).astype(np.float16)
    q = quantize(jnp.asarray(x), "int2_kivi_g32")
    np.testing.assert_array_equal(q.codes, codes.astype(np.uint8))
    np.testing.assert_array_equal(q.scales, scale.astype(np.float32))
    np.testing.assert_array_equal(q.offsets, low.astype(np.float32))
    np.testing.assert_array_equal(q.dequantize(jnp.float16), codes * scale + low)
    in_float32 = np.rint((x - low).astype(np.float32) / scale.astype(np.float32))
    assert np.any(codes * scale + low != in_float32 * scale.astype(np.float32) + low)


def row(*numbers: float) -> jax.Array:
    """A tile of nine numbers, the last one over and over, so that one shape is compiled."""
    filled = np.full((12, 9), numbers[-1], np.float32)
    filled[:, : len(numbers)] = numbers
    return jnp.asarray(filled)


def codes_of(numbers: jax.Array, name: str, count: int) -> list[int]:
    return np.asarray(quantize(numbers, name).codes)[0, :count].tolist()


def test_the_zero_point_is_in_the_scale() -> None:
    q = quantize(row(-1.0, 0.0, 0.3, 2.0), "int4_vllm_token")
    bits = int(as_bits(q.scales)[0].item())
    scale = float(floats([bits & ~15])[0])
    assert bits & 15 == 5 and q.offsets is None
    np.testing.assert_array_equal(q.codes[0, :4], [0, 5, 7, 15])
    np.testing.assert_array_equal(q.dequantize(), (np.asarray(q.codes) - 5.0) * np.float32(scale))
    assert q.dequantize()[0, 1] == 0.0 and scale < 0.2


@pytest.mark.parametrize(
    ("name", "code", "value"),
    [
        ("int4_kivi_g32", 0, float(np.float16(0.3))),
        ("int4_quarot_kernel", 0, float(np.float16(0.3))),
        ("int4_turboquant_token", 0, float(np.float16(0.3))),
        ("int4_kvquant", 15, 0.0),
        ("int4_kvquant_unrounded", 0, 0.0),
        ("int4_vllm_token", 15, 1.5e-5),
    ],
)
def test_a_tile_of_one_value(name: str, code: int, value: float) -> None:
    """0 / 0 is the code 0 and decodes to the minimum; where it is clamped, the clamp decides."""
    q = quantize(row(0.3), name)
    np.testing.assert_array_equal(q.codes, code)
    np.testing.assert_allclose(q.dequantize(), value, rtol=2e-6)


def test_a_tile_of_zeros() -> None:
    for name in set(NAMES) - set(TWINS):
        q = quantize(row(0.0), name)
        np.testing.assert_array_equal(np.asarray(q.dequantize()), 0.0, err_msg=name)
    # QuaRot's range from -1 to 1: 1 / (2 / 15) is just below 7.5 in float32.
    q = quantize(row(0.0), "int4_quarot_token")
    assert q.offsets is not None
    np.testing.assert_array_equal(q.scales, np.float32(2) / np.float32(15))
    np.testing.assert_array_equal(q.offsets, 7.0)
    np.testing.assert_array_equal(q.codes, 7)


def test_nan_and_inf_follow_the_source() -> None:
    for name in ("int4_kivi_g32", "int4_quarot_token"):
        for special in (jnp.nan, jnp.inf, -jnp.inf):
            q = quantize(row(special, 1.0, 2.0), name)
            assert np.isnan(np.asarray(q.dequantize())).all() and not np.asarray(q.codes).any()
    # A NaN counts for nothing where the source's minimum and maximum pass it over.
    q = quantize(row(jnp.nan, 0.0, 15.0), "int4_turboquant_token")
    assert q.codes[0, :3].tolist() == [0, 0, 15]
    assert q.dequantize()[0, :3].tolist() == [0.0, 0.0, 15.0]
    assert not np.asarray(quantize(row(jnp.nan), "int4_vllm_token").dequantize()).any()
    assert not np.asarray(quantize(row(jnp.inf, 1.0), "int4_kvquant").dequantize()).any()


def test_halves_go_to_even_or_up() -> None:
    """The values 0.5, 1.5 and 2.5 in units of the scale, by rounding and by adding a half."""
    x = row(0.0, 0.5, 1.5, 2.5, 15.0)
    assert codes_of(x, "int4_quarot_kernel", 5) == [0, 0, 2, 2, 15]
    assert codes_of(x, "int4_turboquant_token", 5) == [0, 1, 2, 3, 15]
    # A half is added in float32: just below it the sum is rounded up to 1.
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    assert codes_of(row(0.0, below, 15.0), "int4_turboquant_token", 3) == [0, 1, 15]


def test_the_range_holds_zero_or_not() -> None:
    x = row(10.0, 11.0, 13.0)
    with_zero, without = (
        float(quantize(x, f"int4_quarot_{kind}").scales[0, 0]) for kind in ("token", "kernel")
    )
    assert with_zero == float(np.float32(13) / np.float32(15))
    assert without == float(np.float16(3) / np.float16(15))


@pytest.mark.slow
def test_a_clip_ratio_is_a_float32() -> None:
    clipped = float(quantize(row(10.0, 11.0, 13.0), "int4_quarot_g128").scales[0, 0])
    ends = [np.float16(np.float32(end) * np.float32(0.95)) for end in (10, 13)]
    assert clipped == float((ends[1] - ends[0]) / np.float16(15))


def test_the_error_is_within_half_a_step() -> None:
    x = jnp.asarray(np.random.default_rng(3).normal(size=(12, 9)).astype(np.float32))
    for name in ("int4_kvquant_unrounded", "int4_turboquant_token", "int4_kivi_g32"):
        q = quantize(x, name)
        step = np.asarray(1 / q.scales if "kvquant" in name else q.scales)
        # float16 metadata moves both ends by up to 2^-11 of the range.
        assert np.all(np.abs(q.dequantize() - x) <= step * (0.5 + 15 * 2**-9)), name
        assert np.max(np.abs(q.dequantize() - x) / step) > 0.45


def test_float16_rounding_of_float32_bits() -> None:
    edges = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    finite = np.sort(edges[np.isfinite(edges)].astype(np.float32))
    middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32).view(np.uint32)
    near = np.concatenate([middles - 1, middles, middles + 1, random_words(1 << 16)])
    near = np.concatenate([near, [0x477FEFFF, 0x477FF000, 0xFF800000, 1]]).astype(np.uint32)
    with np.errstate(over="ignore", invalid="ignore"):
        want = floats(near).astype(np.float16).astype(np.float32)
    got = np.asarray(jax.jit(_float16)(jnp.asarray(near)))
    assert_bits_equal(canonical(floats(got)), canonical(want), inputs=floats(near))


def test_rounding_a_quotient_twice_is_innocuous() -> None:
    """float32 and then float16, against one rounding of integers, for all pairs of significands.

    By a power of two the quotients are moved through the binades where float16 is subnormal.
    """
    a, b = (np.arange(1024, 2048, dtype=np.int64)[::step] for step in (1, 7))
    pairs = np.stack(np.meshgrid(a, b)).reshape(2, -1)
    for shift in (0, 14, 15, 18, 22, 24, 25):
        twice = (pairs[0] * 2.0**-shift).astype(np.float32) / pairs[1].astype(np.float32)
        twice = twice.astype(np.float16).astype(np.float64)
        # A unit in the last place: 2^-24, and 2^-10 of the quotient's binade above 2^-14.
        binade = np.floor(np.log2(pairs[0] / pairs[1])) - shift
        unit = 2.0 ** np.maximum(binade - 10, -24)
        dividend = (pairs[0] * 2.0**-shift / unit).astype(np.int64)
        assert np.array_equal(dividend * unit, pairs[0] * 2.0**-shift) or shift > 20
        scaled = np.round(pairs[0] * 2.0**-shift / unit * 2**24).astype(np.int64)
        quotient, rest = np.divmod(scaled, pairs[1] << 24)
        half = pairs[1] << 23
        up = (rest > half) | ((rest == half) & (quotient % 2 == 1))
        np.testing.assert_array_equal(twice, (quotient + up) * unit)


@pytest.mark.parametrize("name", ["int4_kivi_g32", "int4_vllm_token"])
@pytest.mark.slow
def test_the_same_bits_under_every_transformation(name: str) -> None:
    x = jnp.asarray(floats(random_words(12 * 9)).reshape(12, 9))

    def parts(x: jax.Array) -> tuple[jax.Array, ...]:
        q = quantize(x, name)
        return q.codes, q.scales, q.dequantize()

    want = parts(x)
    in_scan = jax.lax.scan(lambda carry, row: (carry, parts(row[None])), 0, x)[1]
    ways = {
        "jit": jax.jit(parts)(x),
        "vmap": jax.vmap(lambda row: parts(row[None]))(x),
        "scan": in_scan,
        "strict": jax.jit(parts, compiler_options=STRICT)(x),
    }
    for way in ways.values():
        for got, expected in zip(way, want, strict=True):
            assert_bits_equal(np.asarray(got).reshape(expected.shape), expected)


@pytest.mark.slow
def test_columns_are_rows_of_the_transposed() -> None:
    x = jnp.asarray(np.random.default_rng(4).normal(size=(40, 6)).astype(np.float32))
    rows, columns = quantize(x.T, "int4_kivi_g32"), quantize(x, "int4_kivi_g32", axis=0)
    assert_bits_equal(columns.codes, rows.codes.T)
    assert columns.offsets is not None and rows.offsets is not None
    assert_bits_equal(columns.offsets, rows.offsets.T)
    assert_bits_equal(columns.dequantize(), rows.dequantize().T)


def test_bits_count_the_offsets() -> None:
    q = quantize(row(1.0), "int4_kivi_g32")
    assert q.bits_per_element == 4 + (16 + 16) / 9 and q.nbytes == 12 * 9 * 4 // 8 + 12 * 4
    assert quantize(row(1.0), "int4_vllm_token").nbytes == 12 * 9 // 2 + 12 * 4
    assert get_block("int2_kivi_g32").bits_per_element == 3.0


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("leave out `amax`", {"block": "int4_kivi_g32", "amax": 1.0}),
        ("`rounding` = 'to_odd'", {"block": "int4_vllm_token", "rounding": "to_odd"}),
        ("`signs` is for a block", {"block": "int4_kivi_g32", "signs": [1, 1]}),
    ],
)
def test_errors(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        quantize(jnp.ones((1, 4)), **options)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("clip_ratio", {"clip_ratio": 1.5}),
        ("min_range and min_scale", {"min_range": -1.0}),
        ("min_range and min_scale", {"min_scale": -1.0}),
        ("fused = true", {"fused": True}),
        ("fused = true", {"fused": True, "zero_point": "minimum", "arithmetic": "float16"}),
        ("fused = true", {"fused": True, "zero_point": "integer", "arithmetic": "float32"}),
        ("zero_point = 'packed' needs", {"zero_point": "packed", "offset_bits": 0}),
        ("round_offset", {"round_offset": True}),
        ("offset_bits = 0", {"offset_bits": 0}),
    ],
)
def test_contradictions(message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        changed("int4_kivi_g32", **changes)


def test_blocks_say_what_they_lack() -> None:
    block = get_block("int4_kivi_g32")
    for changes, message in (
        ({"affine": None}, "table [affine]"),
        ({"scale_rule": "amax"}, "scale_rule = 'range'"),
        ({"scale_format": get_format("float8_e4m3fn")}, "need scale_format"),
        ({"element": get_format("float4_e2m1fn")}, "codes are integers"),
        ({"element": get_format("int4")}, "unsigned integers from 0 up"),
        ({"element": dataclasses.replace(get_format("uint4"), bias=0)}, "unsigned integers"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            dataclasses.replace(block, **changes)


def test_a_scale_alone_is_no_value() -> None:
    with pytest.raises(ValueError, match="not elements times scales"):
        quantize(row(1.0), "int4_kivi_g32").scale_bits()
    with pytest.raises(ValueError, match="no gradient"):
        jax.grad(lambda x: lp.quantize(x, "int4_kivi_g32").dequantize().sum())(row(1.0))
    slope = jax.grad(lambda x: lp.cast(x, "int4_kivi_g32").sum())(row(1.0))
    np.testing.assert_array_equal(slope, 1.0)
