"""Clipped, flushed and counted elements, against a count by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowprec as lp
from lowprec.study.fate import operand_fate, value_histogram
from lowprec.study.products import padded

# The floor rule scales amax 7.5 by 1: 7.5 is past 6 + half a step (7), 6.9 is not; 0.2 vanishes.
X = np.array([[7.5, 6.9, 1.0, 0.2, 0.0, -0.2, -7.2, 0.3] + [0.0] * 24], np.float32)


@pytest.mark.parametrize("jitted", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_fate_of_a_block(jitted: bool) -> None:
    of_block = lambda x: operand_fate(x, lp.quantize(x, "mxfp4"))
    fate = (jax.jit(of_block) if jitted else of_block)(jnp.asarray(X))
    assert (int(fate.clipped), int(fate.flushed)) == (2, 2)


def test_fate_of_a_format() -> None:
    x = jnp.asarray([[1e5, 6e4, 1e-9, 0.0, -1e5]], jnp.float32)
    fate = operand_fate(x, lp.get_format("float8_e5m2"))
    assert (int(fate.clipped), int(fate.flushed)) == (3, 1)


def test_histogram_counts_every_element() -> None:
    counts = dict(value_histogram(X, lp.get_block("mxfp4")))
    assert sum(counts.values()) == X.size
    assert counts[6.0] == 2 and counts[-6.0] == 1 and counts[0.0] == 27 and counts[0.5] == 1
    assert list(counts) == sorted(counts) and len(counts) == 15


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["mxfp4", "deepseek_v3"])
def test_zeros_around_the_operands_change_no_bit(recipe: str) -> None:
    rng = np.random.default_rng(5)
    a = jnp.asarray(rng.standard_normal((5, 130)), jnp.bfloat16)
    b = jnp.asarray(rng.standard_normal((130, 7)), jnp.bfloat16)
    wide_a, wide_b = padded(a), padded(b)
    assert wide_a.shape == wide_b.shape == (256, 256)
    y = np.asarray(lp.gemm(wide_a, wide_b, recipe))[:5, :7].view(np.uint16)
    expected = np.asarray(lp.gemm(a, b, recipe)).view(np.uint16)
    assert np.unique(expected).size > 30
    np.testing.assert_array_equal(y, expected)


@pytest.mark.slow
def test_fate_of_ranges() -> None:
    """Nothing lies outside a tile's range but where it was made smaller."""
    whole = lp.quantize(X, "int4_kivi_g32")
    assert int(operand_fate(jnp.asarray(X), whole).clipped) == 0
    block = dataclasses.replace(lp.get_block("int4_quarot_g128"), tile=(1, 32), transform=None)
    assert block.affine is not None and block.affine.clip_ratio == 0.95
    narrow = dataclasses.replace(
        block, affine=dataclasses.replace(block.affine, clip_ratio=0.5), name="half"
    )
    fate = operand_fate(jnp.asarray(X), lp.quantize(X, narrow))
    values = np.asarray(lp.quantize(X, narrow).dequantize())
    step = np.diff(np.unique(values)).min()
    assert int(fate.clipped) == np.sum(np.abs(X - values) > 0.51 * step) == 3
    assert int(fate.flushed) == np.sum((X != 0) & (values == 0))


@pytest.mark.slow
def test_fate_of_logarithms() -> None:
    fate = operand_fate(jnp.asarray(X), lp.quantize(X, "logfmt8_1x128"))
    assert (int(fate.clipped), int(fate.flushed)) == (0, 0)
