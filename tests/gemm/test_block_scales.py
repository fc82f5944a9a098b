"""Recipes on engines that apply block scales themselves."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.engines import get_engine, matmul
from lowprec.gemm import OperandPair, Recipe, gemm, get_recipe
from lowprec.numerics import decode, get_format
from lowprec.scaling import Block, QTensor, get_block, quantize
from tests.helpers import assert_bits_equal

MX = "blackwell.tcgen05.mxf8f6f4.fp32"
NV = "blackwell.tcgen05.nvf4.fp32"
CASES = (
    ("mxfp8", MX),
    ("mxfp6", MX),
    ("mxfp4", "blackwell.tcgen05.mxf4.fp32"),
    ("nvfp4", NV),
)


def operands(depth: int = 200) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(5)
    # Blocks that differ widely, or every sum would be exact.
    size = np.exp2(rng.integers(-12, 12, depth // 8).repeat(8))
    a, b = rng.normal(size=(3, depth)) * size, rng.normal(size=(depth, 4))
    return jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)


def elements(q: QTensor) -> jax.Array:
    return decode(q.codes, q.block.element)


def quantized(a: jax.Array, b: jax.Array, pair: OperandPair) -> tuple[QTensor, QTensor]:
    assert isinstance(pair.a, Block) and isinstance(pair.b, Block)
    return quantize(a, pair.a), quantize(b, pair.b, axis=-2)


def by_matmul(a: jax.Array, b: jax.Array, recipe: Recipe, engine: str, c: Any = None) -> np.ndarray:
    """What the recipe says, by `quantize` and `matmul`, tensor scales left out."""
    q, r = quantized(a, b, recipe.fprop)
    formats: dict[str, Any] = {"a_format": q.block.element, "b_format": r.block.element}
    scales: dict[str, Any] = {"a_scale": q.scales, "b_scale": r.scales}
    return np.asarray(matmul(elements(q), elements(r), c, engine=engine, **formats, **scales))


def tensor_scale(a: jax.Array, b: jax.Array, recipe: Recipe) -> np.float32:
    found = quantized(a, b, recipe.fprop)
    scales = [np.asarray(x.tensor_scale).item() for x in found if x.tensor_scale is not None]
    return np.float32(np.prod(np.asarray(scales, np.float32)))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[name for name, _ in CASES])
def test_scales_are_handed_to_the_engine(case: tuple[str, str]) -> None:
    name, engine = case
    (a, b), recipe = operands(), get_recipe(name)
    got = gemm(a, b, name, engine=engine, out_dtype=jnp.float32)
    want = by_matmul(a, b, recipe, engine) * tensor_scale(a, b, recipe)
    assert_bits_equal(got, want)
    assert not np.array_equal(got, gemm(a, b, name, out_dtype=jnp.float32))
    # Truncation in the engine loses less than the formats do.
    exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    assert np.linalg.norm(got - exact) < 0.3 * np.linalg.norm(exact)


@pytest.mark.slow
def test_a_scale_of_a_square_tile_belongs_to_each_of_its_rows() -> None:
    (a, b), wide = operands(), get_block("nvfp4_16x16")
    pair = OperandPair(a=get_block("nvfp4"), b=wide)
    recipe = dataclasses.replace(get_recipe("nvfp4"), fprop=pair, engine=get_engine(NV))
    q, r = quantized(a, b, pair)
    spread = np.repeat(np.asarray(r.scales), 16, axis=1)[:, :4]
    want = matmul(elements(q), elements(r), engine=NV, a_scale=q.scales, b_scale=spread)
    got = gemm(a, b, recipe, out_dtype=jnp.float32)
    assert_bits_equal(got, np.asarray(want) * tensor_scale(a, b, recipe))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "engine"), [CASES[0], CASES[3]])
def test_orders_cut_scales_with_their_elements(name: str, engine: str) -> None:
    (a, b), recipe = operands(), get_recipe(name)
    scale = tensor_scale(a, b, recipe)
    q, r = quantized(a, b, recipe.fprop)
    x, y = elements(q), elements(r)
    every = get_engine(engine).scale_block
    assert every is not None

    def part(begin: int, end: int) -> np.ndarray:
        blocks = slice(begin // every, -(-end // every))
        scales: dict[str, Any] = {"a_scale": q.scales[:, blocks], "b_scale": r.scales[blocks]}
        formats: dict[str, Any] = {"a_format": q.block.element, "b_format": r.block.element}
        return np.asarray(matmul(x[:, begin:end], y[begin:end], engine=engine, **formats, **scales))

    halves = (part(0, 128) + part(128, 200)) * scale
    got = {
        order: gemm(a, b, name, engine=engine, out_dtype=jnp.float32, order=order)
        for order in ("split_k.1", "split_k.2", "stream_k.1", "stream_k.2")
    }
    whole = part(0, 200) * scale
    for order in ("split_k.1", "stream_k.1"):
        assert_bits_equal(got[order], whole)
    for order in ("split_k.2", "stream_k.2"):
        assert_bits_equal(got[order], halves)
    promoted = gemm(a, b, name, engine=engine, out_dtype=jnp.float32, promote_every=128)
    assert_bits_equal(promoted, halves)
    assert not np.array_equal(whole, halves)


def changed(block: str, **changes: Any) -> Recipe:
    other = dataclasses.replace(get_block(block), name="changed", **changes)
    return dataclasses.replace(get_recipe("mxfp8"), name="own", fprop=OperandPair(a=other, b=other))


PLAIN = dataclasses.replace(
    get_recipe("bf16"),
    name="own",
    fprop=OperandPair(a=get_format("float8_e4m3fn"), b=get_format("float8_e4m3fn")),
)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("bf16", {}, "takes float8_e5m2, float8_e4m3fn, float6_e3m2fn, float6_e2m3fn"),
        (PLAIN, {}, "scales of every 32 k; recipe 'own' multiplies float8_e4m3fn without"),
        (changed("mxfp8_e4m3", tile=(1, 16)), {}, "every 32 k; changed has tiles of 16 along K"),
        ("fp8_tensor", {}, "every 32 k; fp8_tensor has tiles of all along K"),
        (
            changed("fp8_1x128"),
            {},
            "every 32 k in float8_e8m0fnu; changed has scales in float32",
        ),
        ("mxfp8", {"promote_every": 48}, "which promote_every = 48 cuts through"),
    ],
)
def test_other_scales_are_refused(recipe: Any, options: dict[str, Any], message: str) -> None:
    a, b = operands(64)
    with pytest.raises(ValueError, match=re.escape(message)):
        gemm(a, b, recipe, engine=MX, **options)


def test_codes_that_mean_an_infinity_to_one_side_alone_are_refused() -> None:
    a, b = operands(64)
    ieee = dataclasses.replace(
        get_block("nvfp4"), name="ieee", scale_format=get_format("float8_e4m3")
    )
    recipe = dataclasses.replace(get_recipe("nvfp4"), name="own", fprop=OperandPair(a=ieee, b=ieee))
    with pytest.raises(ValueError, match="ieee has scales in float8_e4m3"):
        gemm(a, b, recipe, engine=NV)


def test_a_recipe_may_say_so() -> None:
    recipe = dataclasses.replace(get_recipe("mxfp8"), engine=get_engine(MX), scales="engine")
    assert recipe.scale_place == "engine" and isinstance(recipe.fprop.a, Block)
    with pytest.raises(ValueError, match="scales = 'engine', and 'native' takes no block scales"):
        dataclasses.replace(get_recipe("mxfp8"), scales="engine")
