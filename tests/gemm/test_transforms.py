"""Recipes whose blocks turn a tensor before they quantize it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.engines import get_engine
from lowprec.gemm import OperandPair, Recipe, gemm, get_recipe
from lowprec.metrics import sqnr_db
from lowprec.scaling import Block, get_block, quantize
from lowprec.scaling.codings import Transform

TURNED = get_block("nvfp4_rht16")
PLAIN = dataclasses.replace(TURNED, transform=None)


def operands(depth: int = 64) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(16, depth)), rng.normal(size=(depth, 16))
    a[:, 5] *= 8
    return jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)


def recipe(a: Block, b: Block, **changes: Any) -> Recipe:
    pair = OperandPair(a=a, b=b)
    return dataclasses.replace(get_recipe("nvfp4"), name="own", fprop=pair, **changes)


def turned(x: np.ndarray) -> np.ndarray:
    """The transform by its definition, in float64."""
    transform = TURNED.transform
    assert transform is not None and transform.signs != "given"
    h = np.array([[1.0]])
    while len(h) < 16:
        h = np.block([[h, h], [h, -h]])
    blocks = x.reshape(*x.shape[:-1], -1, 16) * np.array(transform.signs)
    return (blocks @ h.T / 4).reshape(x.shape)


@pytest.mark.slow
def test_operands_turned_alike_are_multiplied_as_they_are() -> None:
    a, b = operands()
    got = np.asarray(gemm(a, b, recipe(TURNED, TURNED), out_dtype=jnp.float32), np.float64)
    x = turned(np.asarray(a, np.float64)).astype(jnp.bfloat16).astype(np.float32)
    y = turned(np.asarray(b, np.float64).T).astype(jnp.bfloat16).astype(np.float32)
    left = np.asarray(quantize(x, PLAIN).dequantize(), np.float64)
    right = np.asarray(quantize(y, PLAIN).dequantize(), np.float64)
    np.testing.assert_allclose(got, left @ right.T, rtol=1e-5, atol=1e-5)
    exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    assert 14 < sqnr_db(got, exact) < 22


@pytest.mark.slow
def test_a_transform_of_one_operand_is_undone() -> None:
    a, b = operands()
    got = np.asarray(gemm(a, b, recipe(TURNED, PLAIN), out_dtype=jnp.float32), np.float64)
    left = np.asarray(quantize(a, TURNED).dequantize(), np.float64)
    right = np.asarray(quantize(b, PLAIN, axis=-2).dequantize(), np.float64)
    np.testing.assert_allclose(got, left @ right, rtol=1e-5, atol=1e-5)
    assert not np.allclose(got, gemm(a, b, recipe(TURNED, TURNED), out_dtype=jnp.float32))


@pytest.mark.slow
def test_a_ragged_k_is_padded_to_whole_transforms() -> None:
    a, b = operands(50)
    pad = [(0, 0), (0, 14)]
    for blocks in ((TURNED, TURNED), (PLAIN, TURNED)):
        got = gemm(a, b, recipe(*blocks), out_dtype=jnp.float32)
        whole = gemm(jnp.pad(a, pad), jnp.pad(b, pad[::-1]), recipe(*blocks), out_dtype=jnp.float32)
        np.testing.assert_array_equal(got, whole)
        assert np.isfinite(got).all() and np.ptp(got) > 1


@pytest.mark.slow
def test_turned_elements_go_to_an_engine_with_their_scales() -> None:
    a, b = operands()
    engine = get_engine("blackwell.tcgen05.nvf4.fp32")
    got = gemm(a, b, recipe(TURNED, TURNED, engine=engine), out_dtype=jnp.float32)
    near = gemm(a, b, recipe(TURNED, TURNED), out_dtype=jnp.float32)
    np.testing.assert_allclose(got, near, rtol=1e-5, atol=1e-4)
    assert np.ptp(got) > 1


def test_transforms_that_no_product_can_take_are_refused() -> None:
    smooth = dataclasses.replace(PLAIN, transform=Transform(kind="smoothing"))
    with pytest.raises(ValueError, match="takes `smoothing`, which a recipe has no place for"):
        recipe(smooth, PLAIN)
    engine = get_engine("blackwell.tcgen05.nvf4.fp32")
    with pytest.raises(ValueError, match="which takes scales = 'operands', not 'engine'"):
        recipe(TURNED, PLAIN, engine=engine)
