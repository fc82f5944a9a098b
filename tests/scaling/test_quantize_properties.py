"""Laws of `quantize` that need no oracle: scale, order, error, shapes, sizes, arguments."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.numerics import Format, decode, get_format
from lowprec.scaling import Block, get_block, quantize
from lowprec.scaling.codings import Transform
from tests.helpers import as_bits, assert_bits_equal, floats, random_words
from tests.scaling.helpers import assert_exact, changed, slow_if, width

POWERS = Format(
    name="powers",
    signed=False,
    exponent_bits=4,
    mantissa_bits=0,
    bias=7,
    nan="all_ones",
    zero="none",
    subnormals=False,
)
MX = ["mxfp8_e4m3", "mxfp8_e5m2_rceil", "mxfp6_e2m3_rceil", "mxfp6_e3m2", "mxfp4"]
FLOAT_SCALES = ["fp8_1x128", "fp8_128x128", "fp8_channel", "fp8_tensor", "nvfp4"]


def numbers(*shape: int, seed: int = 0) -> jax.Array:
    """Normal numbers of different sizes by column."""
    rng = np.random.default_rng(seed)
    return jnp.asarray((rng.normal(size=shape) * np.exp(rng.normal(size=shape[-1]))), jnp.float32)


def rows_for(name: str) -> jax.Array:
    """Two rows of a whole and a ragged tile; one shape a block, so that it is compiled once."""
    return numbers(2, width(get_block(name)))


def there_and_back(x: jax.Array, block: str | Block, **options: Any) -> np.ndarray:
    return np.asarray(quantize(x, block, **options).dequantize())


@pytest.mark.parametrize("name", MX)
def test_power_of_two_scales_are_idempotent(name: str) -> None:
    once = there_and_back(rows_for(name), name)
    assert_bits_equal(there_and_back(jnp.asarray(once), name), once)


@pytest.mark.parametrize("name", [*MX, *FLOAT_SCALES])
def test_a_power_of_two_moves_scales_and_not_codes(name: str) -> None:
    x = rows_for(name)
    q, moved = quantize(x, name), quantize(x * 16, name)
    assert_bits_equal(np.asarray(moved.codes), np.asarray(q.codes))
    assert_bits_equal(np.asarray(moved.dequantize()), np.asarray(q.dequantize()) * np.float32(16))
    if name in MX:
        np.testing.assert_array_equal(np.asarray(moved.scales), np.asarray(q.scales) + 4)
    elif name == "nvfp4":
        assert_bits_equal(np.asarray(moved.scales), np.asarray(q.scales))


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "fp8_1x128"])
def test_order_inside_a_tile_does_not_matter(name: str) -> None:
    x = rows_for(name)
    tile = int(get_block(name).tile[1])
    order = np.concatenate(
        [np.random.default_rng(0).permutation(tile), np.arange(tile, x.shape[1])]
    )
    q, shuffled = quantize(x, name), quantize(x[:, order], name)
    assert_bits_equal(np.asarray(shuffled.codes), np.asarray(q.codes)[:, order])
    assert_bits_equal(np.asarray(shuffled.scales), np.asarray(q.scales))


@pytest.mark.parametrize("name", [*(name for name in MX if "rceil" in name), *FLOAT_SCALES])
def test_error_is_at_most_half_a_step(name: str) -> None:
    block = get_block(name)
    x = rows_for(name)
    q = quantize(x, block)
    value = np.asarray(q.dequantize(), np.float64)
    code = np.asarray(decode(q.codes, block.element), np.float64)
    scale = np.where(code == 0, np.nan, value / np.where(code == 0, 1, code))
    element = block.element
    exponent = np.maximum(np.frexp(code)[1] - 1, element.min_exponent)
    half = 2.0 ** (exponent - element.mantissa_bits) / 2
    # Rounded scales: the largest value may lie a little past MAX; the e4m3 scales of nvfp4 within
    # half an ulp, 1/16 of it. The float32 operations between move it by some 2^-24.
    past = (element.max / 16 if name == "nvfp4" else 0.0) + 2.0**-20 * np.abs(code)
    bound = scale * (half + np.where(np.abs(code) == element.max, past, 2.0**-20 * np.abs(code)))
    error = np.abs(np.asarray(x, np.float64) - value)
    known = ~np.isnan(scale)
    assert known.mean() > 0.5 and np.all(error[known] <= bound[known])
    assert error[known].max() > 0


def test_floor_saturates_by_less_than_an_eighth() -> None:
    x = jnp.asarray(np.linspace(256, 511.9, 64, dtype=np.float32))[:, None]
    value = there_and_back(x, "mxfp8_e4m3")
    assert np.all(value[np.asarray(x) > 448] == 448)


@pytest.mark.parametrize(
    ("name", "shape", "axis", "scales"),
    [
        ("mxfp4", (3, 70), -1, (3, 3)),
        ("mxfp4", (70, 3), -2, (3, 3)),
        ("mxfp4", (2, 70, 3), 1, (2, 3, 3)),
        ("mxfp4", (2, 33, 3), 0, (1, 33, 3)),
        ("nvfp4", (3, 33), -1, (3, 3)),
        ("fp8_1x128", (3, 129), -1, (3, 2)),
        ("fp8_128x128", (129, 130), -1, (2, 2)),
        ("fp8_channel", (3, 9), -1, (3, 1)),
        ("fp8_channel", (3, 9), -2, (1, 9)),
        ("fp8_tensor", (2, 3, 9), -1, (1, 1, 1)),
        ("mxfp4", (70,), -1, (3,)),
    ],
)
def test_shape_of_the_scales(
    name: str, shape: tuple[int, ...], axis: int, scales: tuple[int, ...]
) -> None:
    q = jax.eval_shape(lambda x: quantize(x, name, axis=axis), jnp.zeros(shape))
    assert q.codes.shape == shape and q.shape == shape and q.scales.shape == scales


@pytest.mark.parametrize(
    ("name", "bits", "nbytes"),
    [
        # 3 x 70 elements: 210 codes; 3 x 3 scales of 32, 3 x 5 of 16, 3 x 1 of 128.
        ("mxfp4", 210 * 4 + 9 * 8, 105 + 9),
        ("mxfp6_e2m3", 210 * 6 + 9 * 8, 158 + 9),
        ("mxfp8_e4m3", 210 * 8 + 9 * 8, 210 + 9),
        ("nvfp4", 210 * 4 + 15 * 8 + 32, 105 + 15 + 4),
        ("fp8_1x128", 210 * 8 + 3 * 32, 210 + 12),
        ("fp8_tensor", 210 * 8 + 32, 210 + 4),
    ],
)
def test_sizes_by_hand(name: str, bits: int, nbytes: int) -> None:
    q = jax.eval_shape(lambda x: quantize(x, name), jnp.zeros((3, 70)))
    assert q.bits_per_element == bits / 210
    assert q.nbytes == nbytes


@pytest.mark.parametrize(
    "name", slow_if(["mxfp4", "fp8_channel", "fp8_128x128"], ["mxfp4", "fp8_channel"])
)
def test_axis_minus_2_is_axis_minus_1_transposed(name: str) -> None:
    x = numbers(40, 5)
    down, across = quantize(x, name, axis=-2), quantize(x.T, name)
    assert_bits_equal(np.asarray(down.codes), np.asarray(across.codes).T)
    assert_bits_equal(np.asarray(down.scales), np.asarray(across.scales).T)
    assert_bits_equal(np.asarray(down.dequantize()), np.asarray(across.dequantize()).T)


@pytest.mark.parametrize("name", slow_if(["mxfp4", "fp8_128x128"], ["fp8_128x128"]))
def test_leading_axes_are_batch_axes(name: str) -> None:
    x = numbers(2, 3, 4, 40)
    q, back = quantize(x, name), there_and_back(x, name)
    for i, j in np.ndindex(2, 3):
        one = quantize(x[i, j], name)
        assert_bits_equal(np.asarray(q.scales)[i, j], np.asarray(one.scales))
        assert_bits_equal(back[i, j], np.asarray(one.dequantize()))


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_if(["fp8_tensor", "nvfp4"], ["nvfp4"]))
def test_a_scale_of_the_whole_array_spans_batch_axes_and_vmap_does_not(name: str) -> None:
    x = numbers(2, 2, width(get_block(name))) * jnp.array([1.0, 100.0])[:, None, None]
    whole, each = quantize(x, name), jax.vmap(lambda m: quantize(m, name))(x)
    scale = whole.scales if whole.tensor_scale is None else whole.tensor_scale
    scales = each.scales if each.tensor_scale is None else each.tensor_scale
    assert scale.size == 1 and scales.size == 2
    for i in range(2):
        alone = quantize(x[i], name)
        assert_bits_equal(np.asarray(each.codes)[i], np.asarray(alone.codes))
        back = jax.vmap(lambda q: q.dequantize())(each)
        assert_bits_equal(np.asarray(back)[i], np.asarray(alone.dequantize()))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("mxfp4", jnp.bfloat16), ("mxfp4", jnp.float16), ("fp8_1x128", jnp.bfloat16)],
)
def test_narrow_input_is_its_float32_value(name: str, dtype: Any) -> None:
    x = rows_for(name).astype(dtype)
    x = x.at[0, 0].set(-0.0).at[1, 0].set(jnp.finfo(dtype).smallest_subnormal)
    wide = jnp.asarray(np.asarray(x).astype(np.float32))
    narrow_q, wide_q = quantize(x, name), quantize(wide, name)
    assert_bits_equal(np.asarray(narrow_q.codes), np.asarray(wide_q.codes))
    assert_bits_equal(np.asarray(narrow_q.scales), np.asarray(wide_q.scales))


@pytest.mark.parametrize("name", ["mxfp4", "fp8_tensor", "nvfp4"])
def test_static_amax_of_the_measured_value_changes_nothing(name: str) -> None:
    x = rows_for(name)
    q = quantize(x, name)
    if name == "mxfp4":
        padded = np.pad(np.abs(np.asarray(x)), ((0, 0), (0, 29)))
        amax: Any = padded.reshape(2, 2, 32).max(-1)
    else:
        amax = float(jnp.max(jnp.abs(x)))
    static = quantize(x, name, amax=amax)
    assert_bits_equal(np.asarray(static.codes), np.asarray(q.codes))
    assert_bits_equal(np.asarray(static.scales), np.asarray(q.scales))


@pytest.mark.slow
def test_factors_that_a_caller_gave_are_not_counted() -> None:
    block = changed("mxfp4", transform=Transform(kind="smoothing"))
    x = numbers(3, 40)
    q, plain = quantize(x, block, smoothing=jnp.full(40, 2.0)), quantize(x, "mxfp4")
    assert q.transform_state is not None
    assert (q.nbytes, q.bits_per_element) == (plain.nbytes, plain.bits_per_element)
    with pytest.raises(ValueError, match="quantizes a transformed tensor"):
        q.scaled_bits()
    assert_bits_equal(plain.scaled_bits(), as_bits(plain.dequantize()))


@pytest.mark.slow
def test_static_amax_of_each_row() -> None:
    x = rows_for("nvfp4_row")
    q = quantize(x, "nvfp4_row")
    static = quantize(x, "nvfp4_row", amax=jnp.max(jnp.abs(x), axis=1, keepdims=True))
    assert_bits_equal(np.asarray(static.codes), np.asarray(q.codes))
    assert static.tensor_scale is not None and static.tensor_scale.shape == (x.shape[0], 1)
    with pytest.raises(ValueError, match="does not broadcast to"):
        quantize(x, "nvfp4_row", amax=jnp.max(jnp.abs(x), axis=0, keepdims=True))


def test_static_amax_saturates_what_lies_above() -> None:
    x = jnp.array([[1.0, 100.0, -100.0]])
    np.testing.assert_array_equal(there_and_back(x, "fp8_tensor", amax=1.0), [[1.0, 1.0, -1.0]])
    np.testing.assert_array_equal(there_and_back(x, "mxfp4", amax=4.0), [[1.0, 6.0, -6.0]])


def test_static_amax_broadcasts_over_tiles() -> None:
    x = numbers(3, 40)
    by_row = jnp.array([[1.0], [8.0], [64.0]])
    q = quantize(x, "mxfp4", amax=by_row)
    np.testing.assert_array_equal(np.asarray(q.scales), [[125] * 2, [128] * 2, [131] * 2])


def test_stochastic_rounding_with_given_words() -> None:
    # 2.25 lies a quarter of the way from 2 to 3 under the scale 1: up iff the word and
    # a quarter carry past 2^32, that is for the last quarter of the words.
    words = np.array([0, 0xBFFFFFFF, 0xC0000000, 0xFFFFFFFF, 0], np.uint32)
    x = jnp.array([2.25, 2.25, 2.25, 2.25, 4.0])
    q = quantize(x, "mxfp4", rounding="stochastic", random_bits=words)
    np.testing.assert_array_equal(np.asarray(q.dequantize()), [2, 2, 3, 3, 4])
    few = changed("mxfp4", rounding="stochastic", random_bit_count=2)
    q = quantize(x, few, random_bits=np.array([0, 2, 3, 7, 3], np.uint32))
    np.testing.assert_array_equal(np.asarray(q.dequantize()), [2, 2, 3, 3, 4])


def test_stochastic_rounding_is_unbiased() -> None:
    x = jnp.full((64, 32), 2.25).at[:, 0].set(4.0)
    words = random_words(64 * 32).reshape(64, 32)
    back = there_and_back(x, "mxfp4", rounding="stochastic", random_bits=words)[:, 1:]
    assert set(np.unique(back)) == {2.0, 3.0}
    # A quarter up: the mean of n Bernoulli draws has the standard deviation sqrt(3/16 / n).
    assert abs(back.mean() - 2.25) < 4 * math.sqrt(3 / 16 / back.size)


def test_dequantize_rounds_a_narrow_type_once() -> None:
    q = quantize(rows_for("fp8_1x128"), "fp8_1x128")
    wide = np.asarray(q.dequantize())
    for dtype in (jnp.bfloat16, jnp.float16):
        assert_bits_equal(np.asarray(q.dequantize(dtype)), wide.astype(dtype))


def test_a_product_beyond_float32_is_inf_and_a_subnormal_exact() -> None:
    largest = floats([[0x7F7FFFFF, 0x00000001]])
    q = quantize(jnp.asarray(largest), changed("mxfp4", tile=(1, 1), scale_rule="ceil"))
    # ceil(log2 amax) = 128: X = 2^126 and 4 * 2^126 is past float32; 2^-149 / 2^-127 rounds to 0.
    np.testing.assert_array_equal(as_bits(q.dequantize()), [[0x7F800000, 0]])


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "no elements", lambda: quantize(jnp.zeros((0, 3)), "mxfp4")),
        (ValueError, "no elements", lambda: quantize(1.0, "mxfp4")),
        (ValueError, "out of range", lambda: quantize(jnp.ones((2, 3)), "mxfp4", axis=2)),
        (ValueError, "does not broadcast", lambda: quantize(jnp.ones(3), "mxfp4", amax=np.ones(2))),
        (ValueError, "did you mean.*mxfp4", lambda: quantize(jnp.ones(3), "mxfp44")),
        (ValueError, "random_bits", lambda: quantize(jnp.ones(3), "mxfp4", rounding="stochastic")),
        (
            ValueError,
            "need rounding",
            lambda: quantize(jnp.ones(3), "mxfp4", random_bits=jnp.zeros(3, jnp.uint32)),
        ),
        (TypeError, "int32", lambda: quantize(jnp.ones(3, jnp.int32), "mxfp4")),
        (TypeError, "float64", lambda: quantize(np.ones(3), "mxfp4")),
        (
            ValueError,
            "fp8_tensor_static is for static scaling: pass `amax`",
            lambda: quantize(jnp.ones(3), "fp8_tensor_static"),
        ),
        (
            ValueError,
            r"does not broadcast to \(2, 1\), the shape of the tensor scale",
            lambda: quantize(jnp.ones((2, 16)), "nvfp4_row", amax=np.ones((1, 16))),
        ),
        (
            ValueError,
            "`amax` = -3.0 is negative",
            lambda: quantize(jnp.ones(3), "fp8_tensor", amax=-3.0),
        ),
        (TypeError, "`block`", lambda: quantize(jnp.ones(3), 4)),  # type: ignore[arg-type] - a wrong type is the test
    ],
)
def test_errors(error: type[Exception], message: str, call: Any) -> None:
    with pytest.raises(error, match=message):
        call()


E3M0 = get_format("float4_e3m0fn")


@pytest.mark.parametrize(
    ("name", "message", "changes"),
    [
        ("mxfp4", "tile sizes", {"tile": (0, 32)}),
        ("mxfp4", "'amax' needs a scale format with mantissa bits", {"scale_rule": "amax"}),
        ("nvfp4", "need a scale format without mantissa bits", {"scale_rule": "rceil"}),
        ("mxfp4", "go together", {"tensor_scale": "amax"}),
        ("mxfp4", "use one of", {"rounding": "nearest"}),
        ("mxfp4", "use one of", {"overflow": "wrap"}),
        # Once a TypeError at the first tile with NaN: a power-of-two format without one.
        ("mxfp4", "unsigned scale format without zero", {"scale_format": E3M0}),
        (
            "mxfp4",
            "'propagate' needs a scale format with NaN, and powers has none",
            {"scale_format": dataclasses.replace(POWERS, nan="none")},
        ),
        ("mxfp4", "'two_level' is for scales with", {"scale_arithmetic": "two_level"}),
        ("mxfp4", "min_scale and guard are for", {"min_scale": 0.5}),
        ("mxfp4", "a rule rounds powers of two", {"scale_rounding": "toward_positive"}),
        ("fp8_1x128", "is not for scales", {"scale_rounding": "stochastic"}),
        ("nvfp4", "is not for scales", {"scale_rounding": "stochastic_fast"}),
        ("nvfp4", "is not for scales", {"scale_rounding": "to_odd"}),
        ("nvfp4", "use one of", {"scale_rounding": "nearest"}),
        ("fp8_1x128", "go together", {"scale_arithmetic": "two_level_divide"}),
        ("nvfp4", "needs a scale format of 8 bits", {"scale_format": get_format("float32")}),
        (
            "fp8_channel",
            "'encode_scale' needs scale_format = 'float32'",
            {"scale_format": get_format("bfloat16")},
        ),
        ("fp8_1x128", "needs a tensor_scale", {"tensor_scale_max": 256.0}),
        ("nvfp4_16x16", "needs tiles of one row", {"tensor_scale": "row_amax"}),
        ("nvfp4", "needs tiles of one row", {"tensor_scale": "row_amax", "tile": ("all", 16)}),
        ("fp8_1x128", "min_amax is at least 0 and guard", {"guard": 1.5}),
        ("nvfp4_minimum_error", "guard needs scale_rule = 'amax'", {"guard": 0.9}),
        ("fp8_1x128", "is for power-of-two scales", {"nonfinite": "largest_scale"}),
        ("mxfp4", "oas_factor is for 'oas'", {"scale_rule": "oas"}),
        ("nvfp4", "error is for scale_rule = 'four_over_six'", {"error": "squared"}),
        ("nvfp4_4over6", "needs scale_arithmetic", {"scale_arithmetic": "two_level"}),
        ("fp8_1x128", "needs a scale format of 8 bits", {"scale_rule": "minimum_error"}),
        ("fp8_1x128", "int1 has no positive value to scale to", {"element": get_format("int1")}),
        ("mxfp4_even", "not a table", {"element": get_format("nf4")}),
    ],
)
def test_a_block_refuses_contradictions(name: str, message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(get_block(name), **changes)


def test_power_of_two_scales_without_nan() -> None:
    fmt = dataclasses.replace(POWERS, nan="none")
    block = changed("mxfp4_rceil", tile=(1, 4), scale_format=fmt, nonfinite="largest_scale")
    x = jnp.array([[np.nan, 1.0, 2.0, 3.0], [np.inf, 1.0, 2.0, 3.0], [6.0, 1.0, 2.0, 3.0]])
    q = quantize(x, block)
    assert np.asarray(q.scales)[:, 0].tolist() == [15, 15, 7]
    np.testing.assert_array_equal(np.asarray(q.dequantize())[2], x[2])


def test_min_amax_and_unit_scales_of_powers_of_two() -> None:
    x = jnp.array([[1e-3, 0.0], [0.5, 0.0], [3.0, 0.0]])
    raised = quantize(x, changed("mxfp4_rceil", tile=(1, 2), min_amax=6.0))
    assert np.asarray(raised.scales)[:, 0].tolist() == [127, 127, 127]
    unit = quantize(x, changed("mxfp4_rceil", tile=(1, 2), unit_scale_amax=0.5))
    assert np.asarray(unit.scales)[:, 0].tolist() == [127, 127, 126]


def test_scales_of_nine_bits_are_kept_as_floats() -> None:
    block = changed("fp8_1x128", tile=(1, 16), scale_format=get_format("e5m3"))
    x = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    assert_exact(as_bits(jnp.asarray(x)), block)
    q = quantize(x, block)
    assert q.scales.dtype == jnp.float32 and len(np.unique(q.scales)) > 2
