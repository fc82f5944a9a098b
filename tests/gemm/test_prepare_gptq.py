"""GPTQ against one column after the other by an explicit inverse, and where it must round alike."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lowprec.gemm import Preparation, get_recipe
from lowprec.gemm.preparation import Gptq
from lowprec.gemm.prepare_gptq import gptq, inverse_factor
from lowprec.numerics import get_format
from lowprec.scaling import Block, QTensor, cast, get_block, list_blocks, quantize
from tests.helpers import assert_bits_equal, floats
from tests.scaling.helpers import slow_if

K, N, TILE = 24, 6, 8
INT4 = dataclasses.replace(get_block("int4_g128"), name="int4_g8", tile=(1, TILE))
MXFP4 = dataclasses.replace(get_block("mxfp4"), name="mxfp4_g8", tile=(1, TILE))
E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])

Quantizer = Callable[[NDArray], tuple[Any, Callable[[Any, NDArray], NDArray]]]


def silent(step: str, done: int, total: int) -> None:
    del step, done, total


def correlated(rows: int = 200, depth: int = K, seed: int = 0) -> NDArray[np.float32]:
    """Rows of x whose channels go together, and differ in size."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(depth, depth)) * np.exp(rng.normal(size=depth))
    return (rng.normal(size=(rows, depth)) @ mix).astype(np.float32)


def weight(depth: int = K, width: int = N, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(depth, width)).astype(np.float32)


def moments(x: NDArray[np.float32]) -> NDArray:
    wide = x.astype(np.float64)
    return wide.T @ wide / len(x)


# An oracle that shares no arithmetic: quantizers in NumPy, and the inverse itself, from which each
# finished column is eliminated (optimal brain quantization), instead of a Cholesky factor.


def int4_scale(tile: NDArray) -> NDArray:
    amax = np.abs(tile.astype(np.float32)).max(0)
    return np.float32(7) / amax


def int4_code(scale: NDArray, column: NDArray) -> NDArray:
    # Integers have no -0.
    return np.clip(np.rint(column.astype(np.float32) * scale), -7, 7) + 0.0


def int4_value(scale: NDArray, code: NDArray) -> NDArray:
    return (code.astype(np.float32) * (np.float32(1) / scale)).astype(np.float64)


def mxfp4_scale(tile: NDArray) -> NDArray:
    _, exponent = np.frexp(np.abs(tile.astype(np.float32)).max(0).astype(np.float64))
    return 2.0 ** (exponent - 1 - 2)


def mxfp4_code(scale: NDArray, column: NDArray) -> NDArray:
    x = column.astype(np.float32).astype(np.float64) / scale
    distance = np.abs(np.abs(x)[:, None] - E2M1)
    # Of two nearest the even code: its distance is a little less.
    nearest = np.argmin(distance + np.arange(8) % 2 * 1e-12, axis=1)
    return np.copysign(E2M1[nearest], x)


def mxfp4_value(scale: NDArray, code: NDArray) -> NDArray:
    return code * scale


QUANTIZERS: dict[str, tuple[Any, Any, Any]] = {
    INT4.name: (int4_scale, int4_code, int4_value),
    MXFP4.name: (mxfp4_scale, mxfp4_code, mxfp4_value),
}


def one_by_one(w: NDArray, moment: NDArray, name: str, order: NDArray, scales: str) -> NDArray:
    """Values of all columns, rounded in an order; scales of the updated or original weights."""
    scale_of, code_of, value_of = QUANTIZERS[name]
    left = w.astype(np.float64)
    damped = moment + 0.01 * np.mean(np.diag(moment)) * np.eye(len(w))
    inverse = np.linalg.inv(damped)
    start = {k: scale_of(left[k : k + TILE]) for k in range(0, len(w), TILE)}
    values = np.zeros_like(left)
    rest = list(order)
    for k in order:
        tile = k // TILE * TILE
        if scales == "updated" and k == tile:
            start[tile] = scale_of(left[tile : tile + TILE])
        values[k] = value_of(start[tile], code_of(start[tile], left[k]))
        error = (left[k] - values[k]) / inverse[k, k]
        left[rest] -= np.outer(inverse[rest, k], error)
        inverse -= np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
        rest.remove(k)
    return values


@pytest.mark.parametrize(
    ("block", "order", "scales"),
    [
        (MXFP4, "natural", "updated"),
        pytest.param(MXFP4, "activation", "original", marks=pytest.mark.slow),
        pytest.param(INT4, "natural", "updated", marks=pytest.mark.slow),
        pytest.param(INT4, "natural", "original", marks=pytest.mark.slow),
        pytest.param(INT4, "activation", "original", marks=pytest.mark.slow),
    ],
)
def test_columns_are_those_of_the_plain_algorithm(block: Block, order: Any, scales: Any) -> None:
    w, moment = weight(), moments(correlated())
    # Blocks of 5 columns cut through tiles of 8.
    steps = Gptq(columns=5, order=order, scales=scales)
    got = gptq(jnp.asarray(w), moment, block, steps, silent)
    in_turn = np.arange(K)
    if order == "activation":
        in_turn = np.argsort(-np.diag(moment), kind="stable")
        assert not np.array_equal(in_turn, np.arange(K))
    want = one_by_one(w, moment, block.name, in_turn, scales)
    assert isinstance(got, QTensor) and got.block == block and got.axis == -2
    assert_bits_equal(got.dequantize(), want.astype(np.float32))
    nearest = np.asarray(cast(jnp.asarray(w), block, axis=-2))
    assert 0.05 < np.mean(want != nearest) < 0.95


ALIKE = ("nvfp4",)
HELD = tuple(
    name
    for name in list_blocks()
    if (block := get_block(name)).rounding == "nearest_even" or block.affine
    if block.coding != "logarithmic" and block.eden is None and block.amax_source == "measured"
    if not block.transform or (block.transform.kind == "hadamard" and not block.transform.needs)
)


SOME = tuple(sorted({*HELD[::6], *ALIKE}))
"""Every sixth, in the order of names, in which relatives stand together."""


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_if(SOME, [name for name in SOME if name not in ALIKE]))
def test_without_correlation_every_number_is_rounded_to_its_nearest(name: str) -> None:
    block = get_block(name)
    depth = 2 * (block.transform.size if block.transform else 40)
    w = jnp.asarray(weight(depth, 20) * np.exp(weight(depth, 1, 2)))
    # Ragged tiles, and blocks of columns that cut through them.
    got = gptq(w, np.eye(depth), block, Gptq(columns=48), silent)
    want = quantize(w, block, axis=-2)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert_bits_equal(one, other)
    assert len(np.unique(np.asarray(want.codes))) > 1


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_any_finite_weight_is_rounded_as_quantize_rounds_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    exponents = rng.integers(0, 180, (K, N), np.uint32)
    w = jnp.asarray(floats(rng.integers(0, 2**23, (K, N), np.uint32) | exponents << 23))
    got = gptq(w, np.eye(K), MXFP4, Gptq(), silent)
    want = quantize(w, MXFP4, axis=-2)
    assert isinstance(got, QTensor)
    assert_bits_equal(got.codes, want.codes)
    assert_bits_equal(got.scales, want.scales)


def test_a_format_is_rounded_without_scales() -> None:
    w = jnp.asarray(weight())
    fmt = get_format("float8_e4m3fn")
    got = gptq(w, np.eye(K), fmt, Gptq(), silent)
    assert isinstance(got, jax.Array)
    assert_bits_equal(got, cast(w, fmt))
    other = np.asarray(gptq(w, moments(correlated()), fmt, Gptq(), silent))
    assert not np.array_equal(other, got) and np.array_equal(other, cast(other, fmt))


def loss(w: NDArray, values: Any, moment: NDArray) -> float:
    error = w.astype(np.float64) - np.asarray(values, np.float64)
    return float(np.sum(error * (moment @ error)))


@pytest.mark.parametrize("block", [MXFP4, pytest.param(INT4, marks=pytest.mark.slow)])
def test_the_loss_on_calibration_is_below_that_of_rounding_to_nearest(block: Block) -> None:
    w, moment = weight(), moments(correlated())
    nearest = loss(w, cast(jnp.asarray(w), block, axis=-2), moment)
    for steps in (Gptq(), Gptq(scales="original"), Gptq(order="activation", scales="original")):
        got = gptq(jnp.asarray(w), moment, block, steps, silent)
        assert isinstance(got, QTensor)
        assert 0 < loss(w, got.dequantize(), moment) < 0.8 * nearest


def test_blocks_of_columns_change_nothing_but_scales_of_their_start() -> None:
    w, moment = jnp.asarray(weight()), moments(correlated())
    codes = {}
    for columns in (1, 7, 8, 128):
        for scales in ("updated", "start"):
            steps = Gptq(columns=columns, scales=scales)
            got = gptq(w, moment, MXFP4, steps, silent)
            assert isinstance(got, QTensor)
            codes[columns, scales] = np.asarray(got.dequantize())
    for columns in (1, 7, 8):
        assert_bits_equal(codes[columns, "updated"], codes[128, "updated"])
    # Blocks of whole tiles, or of one column, see every update in time.
    for columns in (1, 8):
        assert_bits_equal(codes[columns, "start"], codes[128, "updated"])
    assert not np.array_equal(codes[128, "start"], codes[128, "updated"])


def test_columns_that_calibration_never_reached_are_zero() -> None:
    x, w = correlated(), weight()
    x[:, [3, 20]] = 0
    got = gptq(jnp.asarray(w), moments(x), MXFP4, Gptq(), silent)
    assert isinstance(got, QTensor)
    values = np.asarray(got.dequantize())
    assert not values[[3, 20]].any() and np.count_nonzero(values) > 0.6 * values.size


def test_the_factor_is_that_of_the_inverse() -> None:
    moment = moments(correlated())
    upper = inverse_factor(moment, np.zeros(K, bool), 0.01)
    damped = moment + 0.01 * np.mean(np.diag(moment)) * np.eye(K)
    assert not np.tril(upper, -1).any()
    np.testing.assert_allclose(upper.T @ upper @ damped, np.eye(K), atol=1e-9)
    with pytest.raises(ValueError, match=r"singular with damping = 0.*more rows.*\(24\), or more"):
        inverse_factor(np.ones((K, K)), np.zeros(K, bool), 0)


def test_a_second_quantization_would_find_other_scales() -> None:
    """Why a Prepared holds the QTensor and not its values."""
    w = jnp.asarray(weight(K, 64))
    got = gptq(w, moments(correlated()), MXFP4, Gptq(), silent)
    assert isinstance(got, QTensor)
    again = quantize(got.dequantize(), MXFP4, axis=-2)
    assert not np.array_equal(again.scales, got.scales)


def test_what_gptq_cannot_round_is_refused() -> None:
    steps = Preparation(gptq=Gptq())
    for name, message in (
        ("mxfp4_stochastic", "draws random numbers"),
        ("nvfp4_ms_eden", "draws random numbers"),
        ("logfmt8_1x128", "logarithmic codes have no scale"),
        ("int8_smoothquant", "its transform depends on the weight"),
    ):
        with pytest.raises(ValueError, match=message):
            steps.check_weight(get_block(name))
    turned = Preparation(gptq=Gptq(order="activation"))
    with pytest.raises(ValueError, match="needs scales = 'original'"):
        turned.check_weight(get_block("mxfp4"))
    turned.check_weight(get_block("int8_channel"))
    with pytest.raises(ValueError, match="recipe 'gptq_mxfp4': prepare of mxfp4_stochastic"):
        base = get_recipe("gptq_mxfp4")
        pair = dataclasses.replace(base.fprop, b=get_block("mxfp4_stochastic"))
        dataclasses.replace(base, fprop=pair)
