"""Tiles of zeros, of subnormals, with NaN, with Inf: what every block's source makes of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.scaling import QTensor, get_block, list_blocks, quantize
from tests.helpers import as_bits, floats
from tests.scaling.helpers import width

ROWS = 2
MX = [name for name in list_blocks() if get_block(name).power_of_two]
NAN_TILE = [*MX, "fp8_1x128", "fp8_128x128", "fp8_channel"]
EPS = np.float32(1e-4) / np.float32(448)


def ordinary(name: str) -> np.ndarray:
    """Two rows: a whole tile of numbers up to 3, and a ragged one."""
    numbers = np.random.default_rng(1).uniform(-3, 3, (ROWS, width(get_block(name))))
    return numbers.astype(np.float32)


def q_of(name: str, x: np.ndarray) -> QTensor:
    return quantize(jnp.asarray(x), name)


def affected(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Which elements share a tile with element (0, 0)."""
    rows, columns = get_block(name).tile
    inside = np.zeros(shape, bool)
    inside[: None if rows == "all" else rows, : None if columns == "all" else columns] = True
    return inside


@pytest.mark.parametrize("name", list_blocks())
def test_zeros_give_zero_codes_and_keep_their_sign(name: str) -> None:
    zeros = np.zeros_like(ordinary(name))
    zeros[0, ::2] = -0.0
    q = q_of(name, zeros)
    np.testing.assert_array_equal(as_bits(q.dequantize()), as_bits(zeros))
    scales = np.unique(np.asarray(q.scales))
    if name in MX or name == "nvfp4":
        assert scales.tolist() == [0]
    elif name in ("fp8_1x128", "fp8_128x128"):
        assert scales.tolist() == [EPS]
    else:
        assert scales.tolist() == [1.0]
    assert q.tensor_scale is None or float(q.tensor_scale.item()) == 1.0


@pytest.mark.parametrize("name", MX)
def test_subnormals_that_the_scale_reaches_are_exact(name: str) -> None:
    # k * 2^-133 for k = 0..3 under the scale 2^-127: multiples of 2^-6, which E5M2 and E4M3 hold;
    # elsewhere each is rounded to a multiple of the element's smallest value.
    row = np.arange(width(get_block(name)), dtype=np.uint32) % 4 << 16
    x = floats(np.stack([row, row]))
    q = q_of(name, x)
    step = 2.0**-127 * (get_block(name).element.min_subnormal or 0.0)
    assert np.all(np.asarray(q.scales) == 0)
    got = as_bits(q.dequantize()).astype(np.float64) * 2.0**-149
    want = np.round(as_bits(x) * 2.0**-149 / step) * step
    np.testing.assert_array_equal(got, want)
    assert name.startswith("mxfp8") == np.array_equal(as_bits(q.dequantize()), as_bits(x))


@pytest.mark.parametrize(
    ("name", "want"),
    [
        # 448 / 2^-127 is past float32, and TransformerEngine takes the largest number: 2 * 2^-128.
        ("fp8_tensor", 2 * 2.0**-128),
        # So is 2688 / 2^-127. The tile's scale is e4m3(2 / 6) = 11/32; its inverse is limited too,
        # which leaves the element 2.
        ("nvfp4", 2 * 11 / 32 * 2.0**-128),
    ],
)
def test_subnormals_under_a_float_scale_stop_at_the_largest_factor(name: str, want: float) -> None:
    x = floats(np.full((ROWS, width(get_block(name))), 0x400000, np.uint32))  # 2^-127
    sizes = as_bits(q_of(name, x).dequantize()).astype(np.float64) * 2.0**-149
    np.testing.assert_array_equal(sizes, want)


def test_subnormals_below_eps_are_zero() -> None:
    for name in ("fp8_1x128", "fp8_128x128", "fp8_channel"):
        x = floats(np.full((ROWS, width(get_block(name))), 0x400000, np.uint32))
        assert not np.any(as_bits(q_of(name, x).dequantize()))


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAN_TILE)
def test_a_nan_or_inf_makes_its_tile_nan_and_no_other(name: str, special: float) -> None:
    x = ordinary(name)
    clean = np.asarray(q_of(name, x).dequantize())
    # A finite number beside it whose quotient by an infinite scale is a zero of large exponents.
    x[0, :2] = special, 3.4e38
    q = q_of(name, x)
    values, tile = np.asarray(q.dequantize()), affected(name, x.shape)
    assert np.isnan(values[tile]).all()
    np.testing.assert_array_equal(as_bits(values[~tile]), as_bits(clean[~tile]))
    assert np.any(~tile)
    if name in MX:
        assert np.asarray(q.scales)[0, 0] == 255


def test_transformer_engine_leaves_a_tensor_with_nan_or_inf_unscaled() -> None:
    x = np.array([[np.nan, 1.0, -500.0, 0.3]], np.float32)
    q = q_of("fp8_tensor", x)
    assert q.scales.item() == 1.0
    np.testing.assert_array_equal(np.asarray(q.dequantize()), [[np.nan, 1.0, -448.0, 0.3125]])
    x[0, 0] = np.inf
    np.testing.assert_array_equal(
        np.asarray(q_of("fp8_tensor", x).dequantize()), [[448.0, 1.0, -448.0, 0.3125]]
    )


def test_nvfp4_with_a_nan_is_nan_everywhere() -> None:
    x = ordinary("nvfp4")
    x[1, 18] = np.nan
    q = q_of("nvfp4", x)
    assert q.tensor_scale is not None and np.isnan(q.tensor_scale.item())
    assert np.isnan(np.asarray(q.dequantize())).all()


def test_nvfp4_with_an_inf_has_the_tensor_scale_1() -> None:
    # S = 2688 / Inf = 0 becomes 1; the tile of the Inf has the scale 448, and Inf saturates at 6.
    x = np.tile(np.array([[6.0, -3.0, 1.0, 0.5]], np.float32), (1, 8))
    x[0, 0] = np.inf
    q = q_of("nvfp4", x)
    assert q.tensor_scale is not None and q.tensor_scale.item() == 1.0
    np.testing.assert_array_equal(np.asarray(q.scales), [[0x7E, 0x38]])
    values = np.asarray(q.dequantize())
    assert values[0, 0] == 6 * 448
    assert not np.any(values[0, 1:16])
    np.testing.assert_array_equal(values[0, 16:], x[0, 16:])
