"""Orders of summation over K: split-K and stream-K."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.engines import get_engine, matmul
from lowprec.gemm import gemm, get_recipe
from lowprec.gemm.summation import part_starts
from lowprec.numerics import get_format
from lowprec.scaling import cast
from tests.helpers import assert_bits_equal
from tests.scaling.helpers import slow_if

ENGINES = ("kulisch", "compensated", "pairwise.float32", "chunked.24.e6m9.e6m9", "fp32", "native")


def operands() -> tuple[jax.Array, jax.Array]:
    a, b = (jax.random.normal(jax.random.key(seed), shape) for seed, shape in SHAPES)
    return a, b


SHAPES = ((0, (3, 200)), (1, (200, 4)))


@pytest.mark.parametrize("engine", slow_if(ENGINES, ENGINES[:5]))
def test_one_part_is_the_engines_own_sum(engine: str) -> None:
    a, b = operands()
    whole = gemm(a, b, "float32", engine=engine)
    assert_bits_equal(gemm(a, b, "float32", engine=engine, order="split_k.1"), whole)
    assert_bits_equal(whole, matmul(a, b, engine=engine))


@pytest.mark.slow
def test_parts_are_summed_from_zero_and_added_in_turn() -> None:
    a, b = operands()
    got = gemm(a, b, "float32", engine="fp32", order="split_k.3")
    # Seven steps of 32 k: three of them make a part.
    parts = [matmul(a[:, k : k + 96], b[k : k + 96], engine="fp32") for k in (0, 96, 192)]
    assert_bits_equal(got, (parts[0] + parts[1]) + parts[2])
    assert not np.array_equal(got, gemm(a, b, "float32", engine="fp32"))


@pytest.mark.slow
def test_parts_are_whole_instructions() -> None:
    engine = dataclasses.replace(
        get_engine("hopper.wgmma.fp8.fp32"), fused_length=24, accumulator="last"
    )
    a, b = (cast(x, "float8_e4m3fn") for x in operands())
    recipe = dataclasses.replace(
        get_recipe("deepseek_v3"),
        engine=engine,
        promote_every=None,
        scales="output",
        output=get_format("float32"),
        **{role: dataclasses.replace(PLAIN) for role in ("fprop", "dgrad", "wgrad")},
    )
    whole = gemm(a, b, recipe)
    assert_bits_equal(gemm(a, b, recipe, order="split_k.1"), whole)
    assert_bits_equal(gemm(a, b, recipe, order="stream_k.1"), whole)
    assert not np.array_equal(gemm(a, b, recipe, order="split_k.2"), whole)


PLAIN = type(get_recipe("float32").fprop)(
    a=get_format("float8_e4m3fn"), b=get_format("float8_e4m3fn")
)


@pytest.mark.slow
def test_promoted_parts() -> None:
    a, b = operands()
    once = gemm(a, b, "deepseek_v3", out_dtype=jnp.float32)
    split = gemm(a, b, "deepseek_v3", out_dtype=jnp.float32, order="split_k.2")
    # Two promotions make two parts: their sum is rounded once either way.
    np.testing.assert_allclose(split, once, rtol=1e-5)


def test_stream_k_deals_steps_of_tiles_in_turn() -> None:
    starts = part_starts("stream_k.2", (128, 300), 4)
    assert starts.shape == (4, 1, 3)
    # Twelve steps, six a worker: the second begins in the middle of the second tile.
    assert np.argwhere(starts).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [2, 0, 1]]


def test_orders_are_checked() -> None:
    a, b = operands()
    with pytest.raises(ValueError, match=r"order = 'split_k'; use sequential, split_k\.<parts>"):
        gemm(a, b, "float32", order="split_k")
    with pytest.raises(ValueError, match="sums all of K at once"):
        gemm(a, b, "float32", engine="kulisch", order="stream_k.2")
    with pytest.raises(ValueError, match="`gemm` has no key to give"):
        gemm(a, b, "float32", engine="sequential.float16.stochastic")
    with pytest.raises(ValueError, match="has not been published"):
        gemm(a, b, "fp8_tensor", engine="cdna4.mfma.fp8.fp32")
    with pytest.raises(ValueError, match="`out_dtype` = float64; use float32"):
        gemm(a, b, "float32", out_dtype=np.float64)
