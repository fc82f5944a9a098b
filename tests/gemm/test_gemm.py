"""`gemm`: every recipe and role bit for bit under the fp32 engine, and what the arguments do."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

import lowprec as lp
from lowprec.engines import matmul
from lowprec.gemm import OperandPair, Recipe, gemm, get_recipe, list_recipes
from lowprec.gemm.gemm import summation
from lowprec.gemm.operand import mean_amax, prepare_operand, random_signs, whole_transforms
from lowprec.gemm.recipe import ROLES
from lowprec.metrics import sqnr_db
from lowprec.numerics import Format
from lowprec.scaling import Block, cast, get_block
from tests.gemm.exact import exact_gemm
from tests.helpers import assert_bits_equal, graded
from tests.scaling.helpers import slow_if

M, K, N = 2, 300, 3
FAST = ("deepseek_v3", "nvfp4")
FP32: dict[str, Any] = {"engine": "fp32", "out_dtype": jnp.float32}
KEY = jax.random.key(3)
UNPREPARED = [
    name
    for name in list_recipes()
    if get_recipe(name).prepare is None and not get_recipe(name).takes_history
]


def operands(m: int = M, k: int = K, n: int = N, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Normal operands whose columns along K differ in size, with an outlier."""
    rng = np.random.default_rng(seed)
    size = np.exp(0.5 * rng.normal(size=k))
    a = rng.normal(size=(m, k)) * size
    b = rng.normal(size=(k, n)) / size[:, None]
    a[0, 7] *= 20
    return jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)


def cases() -> list[tuple[str, str]]:
    """Recipes and roles, until every operand and every way to promote and to scale was there."""
    out, seen = [], set()
    for name in (*FAST, *UNPREPARED):
        for role in ROLES:
            recipe = get_recipe(name).in_role(role)
            pair = recipe.fprop
            turned, scales = pair.transforms_cancel, recipe.scales
            parts = {
                ("a", pair.a, pair.a_from, scales, turned),
                ("b", pair.b, pair.b_from, scales, turned),
                (scales, recipe.promote_every, recipe.promotion, turned),
            }
            out += [(name, role)] * (not parts <= seen)
            seen |= parts
    return out


def representatives() -> list[str]:
    """One recipe for each way in which products are summed: engine, formats, promotion, scales."""
    found: dict[Recipe, str] = {}
    for name in ("bf16", *UNPREPARED):
        found.setdefault(summation(get_recipe(name).in_role("fprop"), "fprop"), name)
    return list(found.values())


def expected_db(recipe: Recipe) -> float:
    """The SQNR that the formats of fprop promise on normal numbers, within a few dB.

    Of floats: 6.02 dB for each mantissa bit and the hidden one, and 7; of levels evenly spaced up
    to 3.5 standard deviations: 6.02 dB for each bit, less 6. Errors add.
    """
    pair = recipe.in_role("fprop").fprop
    targets = [x.element if isinstance(x, Block) else x for x in (pair.a, pair.b)]
    noise = [_noise(fmt) for fmt in (*targets, recipe.in_role("fprop").output)]
    return -10 * np.log10(sum(noise))


def _noise(fmt: Format) -> float:
    if fmt.table is None and fmt.exponent_bits:
        return 10 ** -min(0.602 * (fmt.mantissa_bits + 1) + 0.7, 13.8)
    assert fmt.values is not None
    levels = np.unique(np.abs(fmt.values[np.isfinite(fmt.values)])).size
    return 10 ** -(0.602 * np.log2(2 * levels - 1) - 0.6)


@pytest.mark.parametrize(
    ("name", "role"),
    graded(cases(), fast=[case for case in cases() if case[0] == FAST[0]]),
)
def test_recipe_is_exact_under_the_fp32_engine(name: str, role: Any) -> None:
    a, b = operands()
    recipe = get_recipe(name)
    key = KEY if recipe.stochastic else None
    got = gemm(a, b, recipe, role=role, key=key, **FP32)
    want = exact_gemm(np.asarray(a), np.asarray(b), recipe, role, key)
    assert_bits_equal(got, want.view(np.float32))
    assert np.isfinite(want.view(np.float32)).all() and np.ptp(want.view(np.float32)) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"promotion": "multiply_add"},
        pytest.param({"promote_every": 64}, marks=pytest.mark.slow),
    ],
)
def test_promotion_is_exact(changes: dict[str, Any]) -> None:
    a, b = operands(8)
    recipe = dataclasses.replace(get_recipe("deepseek_v3"), **changes)
    got = gemm(a, b, recipe, **FP32)
    assert_bits_equal(got, exact_gemm(np.asarray(a), np.asarray(b), recipe, "fprop").view("f4"))
    assert not np.array_equal(got, gemm(a, b, "deepseek_v3", **FP32))


@pytest.mark.slow
def test_promotion_of_scaled_operands_is_exact() -> None:
    a, b = operands()
    recipe = dataclasses.replace(get_recipe("mxfp8"), promote_every=96)
    got = gemm(a, b, recipe, **FP32)
    assert_bits_equal(got, exact_gemm(np.asarray(a), np.asarray(b), recipe, "fprop").view("f4"))


@pytest.mark.parametrize("name", graded(representatives(), fast=["bf16"]))
def test_recipe_is_near_the_product_of_its_dequantized_operands(name: str) -> None:
    a, b = operands(32, K, 24)
    recipe = get_recipe(name).in_role("fprop")
    pair = recipe.fprop
    assert pair.a_from is None and pair.b_from is None
    key = KEY if recipe.stochastic else None
    got = np.asarray(gemm(a, b, recipe, key=key)).astype(np.float64)
    left, right = multiplied(a, b, recipe, key)
    want, size = left @ right, np.abs(left) @ np.abs(right)
    # Products of K padded to 384, sums of tiles, a few roundings of scales; what the engine cuts
    # off each product and c; then one rounding to bfloat16.
    out = {"bfloat16": 2.0**-8, "float16": 2.0**-11}.get(recipe.output.name, 0.0)
    engine = recipe.engine
    cut = ((engine.fused_length or 0) + 1) * 2.0 ** -(engine.fraction_bits or 24)
    assert np.all(np.abs(got - want) <= out * np.abs(want) + (400 * 2.0**-24 + cut) * size)
    exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    assert -10 < sqnr_db(got, exact) - expected_db(recipe) < 7


def multiplied(
    a: jax.Array, b: jax.Array, recipe: Recipe, key: jax.Array | None
) -> list[NDArray[np.float64]]:
    """Both operands as the product of fprop sees them, scaled: turned where that cancels."""
    pair = recipe.in_role("fprop").fprop
    sizes = [mean_amax(x, t, axis) for x, t, axis in ((a, pair.a, -1), (b, pair.b, -2))]
    a, b = map(jnp.asarray, whole_transforms(a, b, pair))
    keys = (None, None) if key is None else jax.random.split(key)
    out = []
    for i, (x, target, axis) in enumerate(((a, pair.a, -1), (b, pair.b, -2))):
        drawn: dict[str, Any] = {"key": keys[i], "signs": random_signs(target, key)}
        turned = pair.transforms_cancel
        seen, _ = prepare_operand(
            x, target, "operands", axis=axis, turned=turned, amax=sizes[i], **drawn
        )
        values = np.asarray(seen.values, np.float64)
        if seen.tensor_scale is not None:
            values = values * np.asarray(seen.tensor_scale).view(np.float32).astype(np.float64)
        out.append(values)
    return out


def pairs_apart() -> Recipe:
    """A recipe whose six operands all differ."""
    blocks = list(map(get_block, ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4")))
    last = get_block("mxfp4_rceil")
    pairs = {
        "fprop": OperandPair(a=blocks[0], b=blocks[1]),
        "dgrad": OperandPair(a=blocks[2], b=blocks[3]),
        "wgrad": OperandPair(a=blocks[4], b=last),
    }
    return dataclasses.replace(get_recipe("mxfp8"), name="apart", **pairs)


@pytest.mark.slow
@pytest.mark.parametrize("role", slow_if(ROLES, ["fprop", "dgrad"]))
def test_role_selects_the_pair(role: Any) -> None:
    a, b = operands(k=70)
    recipe = pairs_apart()
    pair = getattr(recipe, role)
    want = matmul(cast(a, pair.a), cast(b, pair.b, axis=-2), engine="fp32")
    assert_bits_equal(gemm(a, b, recipe, role=role, **FP32), want)


@pytest.mark.parametrize("dtype", [jnp.float16, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_output_type_is_one_rounding(dtype: Any) -> None:
    a, b = operands(k=70)
    wide = np.asarray(matmul(cast(a, "bf16"), cast(b, "bf16"), engine="fp32"))
    got = gemm(a, b, "bf16", engine="fp32", out_dtype=dtype)
    assert got.dtype == dtype
    assert_bits_equal(got, wide.astype(dtype))


def test_overrides_are_the_recipe_with_these_values() -> None:
    a, b = operands(k=70)
    base = get_recipe("bf16")
    assert gemm(a, b, base).dtype == jnp.bfloat16
    got = gemm(a, b, base, promote_every=32, engine="fp32", out_dtype=jnp.float32)
    want = exact_gemm(
        np.asarray(a), np.asarray(b), dataclasses.replace(base, promote_every=32), "fprop"
    )
    assert_bits_equal(got, want.view(np.float32))


@pytest.mark.slow
def test_a_matrix_b_takes_all_rows_as_one_tensor() -> None:
    a, b = operands(6, 70)
    batched = a.reshape(2, 3, 70)
    fp32 = functools.partial(gemm, recipe="fp8_tensor", engine="fp32")
    got = np.asarray(fp32(batched, b))
    assert got.shape == (2, 3, N)
    assert_bits_equal(got.reshape(6, N), fp32(a, b))
    # The outlier is in the first half: alone, the second is scaled by its own largest value.
    assert not np.array_equal(got[1], np.asarray(fp32(batched[1], b)))


@pytest.mark.slow
def test_members_of_a_batched_b_are_quantized_alone() -> None:
    a, b = operands(3, 70)
    stacked = jnp.stack([b, 2 * b + 1])
    got = np.asarray(gemm(a, stacked, "fp8_tensor", engine="fp32"))
    assert got.shape == (2, 3, N)
    for i in range(2):
        assert_bits_equal(got[i], gemm(a, stacked[i], "fp8_tensor", engine="fp32"))


def stochastic() -> Recipe:
    block = dataclasses.replace(get_block("mxfp4"), name="mxfp4_sr", rounding="stochastic")
    pair = OperandPair(a=block, b=block)
    base = get_recipe("mxfp4")
    return dataclasses.replace(base, name="sr", fprop=pair, dgrad=pair, wgrad=pair)


@pytest.mark.slow
def test_a_stochastic_recipe_needs_a_key_and_repeats_with_it() -> None:
    a, b = operands(k=70)
    recipe = stochastic()
    assert recipe.stochastic and not get_recipe("mxfp4").stochastic
    with pytest.raises(ValueError, match="'sr' rounds stochastically and needs `key`"):
        gemm(a, b, recipe)
    key, other = jax.random.key(0), jax.random.key(1)
    one = gemm(a, b, recipe, key=key, **FP32)
    assert_bits_equal(gemm(a, b, recipe, key=key, **FP32), one)
    assert not np.array_equal(one, gemm(a, b, recipe, key=other, **FP32))


@pytest.mark.slow
def test_members_of_a_batch_draw_words_of_their_own() -> None:
    a, b = operands(k=70)
    recipe, key, stacked = stochastic(), jax.random.key(0), jnp.stack([b, b])
    both = np.asarray(gemm(jnp.stack([a, a]), stacked, recipe, key=key, **FP32))
    assert not np.array_equal(both[0], both[1])


def test_gradient_is_that_of_the_exact_product() -> None:
    a, b = operands(k=70)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(M, N)), jnp.float32)
    loss = lambda a, b: jnp.sum(weights * gemm(a, b, "mxfp4", out_dtype=jnp.float32))
    da, db = jax.grad(loss, (0, 1))(a, b)
    np.testing.assert_allclose(da, np.asarray(weights) @ np.asarray(b).T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(db, np.asarray(a).T @ np.asarray(weights), rtol=1e-5, atol=1e-5)


def test_an_overflowing_scaled_product_is_inf_and_nan_stays_in_its_row() -> None:
    a = jnp.array([[3e38, 3e38], [1.0, jnp.nan], [1.0, 1.0]])
    b = jnp.array([[3e38], [3e38]])
    got = np.asarray(gemm(a, b, "float32"))[:, 0]
    assert np.isinf(got[0]) and np.isnan(got[1]) and np.isinf(got[2])
    got = np.asarray(gemm(a[1:], jnp.ones((2, 1)), "mxfp8"))[:, 0]
    assert np.isnan(got[0]) and got[1] == 2


A, B = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)


@pytest.mark.parametrize(
    ("error", "message", "arguments", "options"),
    [
        (ValueError, "do not multiply", (A, A, "bf16"), {}),
        (ValueError, "empty", (A[:0], B, "bf16"), {}),
        (ValueError, "`role` = 'forward'", (A, B, "bf16"), {"role": "forward"}),
        (ValueError, "did you mean.*mxfp8", (A, B, "mxfp9"), {}),
        (ValueError, "engine", (A, B, "bf16"), {"engine": "fp31"}),
        (ValueError, "promote_every = 0", (A, B, "bf16"), {"promote_every": 0}),
        (ValueError, "does not divide", (A, B, "deepseek_v3"), {"promote_every": 96}),
        (ValueError, "`out_dtype` = float8_e5m2", (A, B, "bf16"), {"out_dtype": jnp.float8_e5m2}),
        (TypeError, "float64", (A.astype(np.float64), B, "bf16"), {}),
        (TypeError, "`recipe` must be", (A, B, 3), {}),
    ],
)
def test_errors(
    error: type[Exception], message: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(error, match=message):
        gemm(*arguments, **options)


@pytest.mark.slow
@pytest.mark.parametrize("every", [32, 64, 128])
def test_a_ragged_tile_keeps_its_own_scale_when_promoted_within_tiles(every: int) -> None:
    x = np.ones((1, 160), np.float32)
    x[0, 128:] = 1000
    w = np.ones((160, 1), np.float32)
    y = lp.gemm(x, w, "deepseek_v3", promote_every=every, out_dtype=np.float32)
    assert abs(float(y[0, 0]) - 32128) < 1


@pytest.mark.slow
def test_output_scales_wait_for_the_output_also_when_promoted() -> None:
    rng = np.random.default_rng(3)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in ((8, 256), (256, 8)))
    q, r = lp.quantize(x, "fp8_tensor"), lp.quantize(w, "fp8_tensor", axis=-2)
    codes = [np.asarray(lp.decode(t.codes, "float8_e4m3fn")) for t in (q, r)]
    parts = [codes[0][:, k : k + 128] @ codes[1][k : k + 128] for k in (0, 128)]
    total = np.asarray(lp.matmul(codes[0][:, :128], codes[1][:128], engine="fp32"))
    total = total + np.asarray(lp.matmul(codes[0][:, 128:], codes[1][128:], engine="fp32"))
    assert np.allclose(total, sum(parts))
    scale = np.asarray(q.scales)[0, 0] * np.asarray(r.scales)[0, 0]
    y = lp.gemm(x, w, "fp8_tensor", engine="fp32", promote_every=128, out_dtype=np.float32)
    np.testing.assert_array_equal(np.asarray(y), scale * total)
