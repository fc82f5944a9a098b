"""`linear`: three products of `gemm`, bit for bit, under every transformation of JAX."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.gemm import OperandPair, Recipe, gemm, get_recipe, linear, list_recipes
from lowprec.gemm.linear import shares
from lowprec.metrics import sqnr_db
from lowprec.numerics import get_format
from lowprec.scaling import get_block
from tests.gemm.linear_cases import KEY, by_linear, by_products, on, operands
from tests.helpers import assert_bits_equal, floats, graded
from tests.scaling.helpers import slow_if

FAST = ("bf16", "mxfp8")
SLOW = (
    "fp8_tensor",
    "deepseek_v3",
    "nvfp4_training",
    "float32",
    "te_current",
    "te_mxfp8_2d",
    "quartet2",
    "te_mxfp8_dequantized_backward",
    "torchao_rowwise_with_gw_hp",
    "int8_dynamic",
    "bitnet_b158",
)
LOSS = lambda y: jnp.sum(jnp.sin(y.astype(jnp.float32)))


LINEAR = jax.jit(by_linear, static_argnames="recipe")
PRODUCTS = jax.jit(by_products, static_argnames="recipe")


def same_bits(x: jax.Array, w: jax.Array, dy: jax.Array, recipe: Recipe, key: Any) -> Any:
    """y, dx and dw of `linear`, which are `gemm`'s in another program."""
    got = LINEAR(x, w, dy, recipe=recipe, key=key)
    want = PRODUCTS(x, w, dy, recipe=recipe, key=key)
    for one, other, like in zip(got, want, (want[0], x, w), strict=True):
        assert one.dtype == like.dtype
        assert_bits_equal(one, np.asarray(other).astype(one.dtype))
    return got


def check(recipe: Recipe, rows: tuple[int, ...], depth: int, out: int) -> None:
    """Bits of `linear` in one program against those of `gemm` in another, and their sizes."""
    x, w, dy = operands(rows, depth, out)
    key = KEY if recipe.stochastic else None
    got = same_bits(x, w, dy, recipe, key)
    flat, back = (np.asarray(z, np.float64).reshape(-1, z.shape[-1]) for z in (x, dy))
    weight = np.asarray(w, np.float64)
    exact = flat @ weight, back @ weight.T, flat.T @ back
    for one, other in zip(got, exact, strict=True):
        assert sqnr_db(np.asarray(one, np.float64).reshape(other.shape), other) > 3


@pytest.mark.parametrize("name", graded((*FAST, *SLOW), fast=FAST))
def test_three_products_are_those_of_gemm(name: str) -> None:
    check(on(name, "native"), (2, 35), 40, 33)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepseek_v3", "nvfp4_training_no_rht", "te_current"])
def test_three_products_are_those_of_gemm_over_several_tiles(name: str) -> None:
    check(on(name, "native"), (3, 50), 136, 130)


@pytest.mark.parametrize(
    "name", graded(["deepseek_v3", "te_current", "nvfp4_training", "deepgemm_sm100"])
)
def test_three_products_are_those_of_gemm_on_the_recipes_own_engines(name: str) -> None:
    check(get_recipe(name), (70,), 48, 32)


@pytest.mark.slow
def test_one_call_after_the_other_gives_the_same_bits() -> None:
    x, w, dy = operands()
    recipe = on("fp8_tensor", "native")
    eager = by_linear(x, w, dy, recipe, None)
    for one, other in zip(eager, LINEAR(x, w, dy, recipe=recipe, key=None), strict=True):
        assert_bits_equal(one, other)


def test_inf_nan_and_zeros_follow_their_blocks() -> None:
    x, w, dy = operands()
    x = x.at[0, 0, 0].set(jnp.inf).at[0, 1].set(-0.0)
    x = x.at[0, 2, :2].set(floats([0x00000001, 0x80400000]))
    w, dy = w.at[5, 1].set(jnp.nan), dy.at[1, 33, 0].set(-jnp.inf).at[0, 4].set(0)
    for one in same_bits(x, w, dy, on("mxfp8", "native"), None):
        finite = np.isfinite(np.asarray(one, np.float32))
        assert finite.any() and not finite.all()


def test_what_is_quantized_once_has_square_tiles_and_nothing_drawn() -> None:
    found = {
        name: (
            shares(get_recipe(name), "fprop", "a", "wgrad", "a"),
            shares(get_recipe(name), "fprop", "b", "dgrad", "b"),
            shares(get_recipe(name), "dgrad", "a", "wgrad", "b"),
        )
        for name in list_recipes()
    }
    assert found["fp8_tensor"] == found["te_current"] == found["te_delayed"] == (True,) * 3
    assert found["deepseek_v3"] == found["nvfp4_training"] == (False, True, False)
    for name in ("bf16", "mxfp8", "bitnet_b158", "quartet2", "te_nvfp4_4over6", "int8_dynamic"):
        assert found[name] == (False,) * 3
    block = dataclasses.replace(get_block("fp8_tensor"), name="drawn", rounding="stochastic")
    pair = OperandPair(a=block, b=block)
    drawn = dataclasses.replace(get_recipe("fp8_tensor"), fprop=pair, dgrad=pair, wgrad=pair)
    assert not shares(drawn, "fprop", "b", "dgrad", "b")


def stochastic() -> Recipe:
    """All six operands rounded stochastically."""
    block = dataclasses.replace(get_block("mxfp4"), name="drawn", rounding="stochastic")
    pair = OperandPair(a=block, b=block)
    base = get_recipe("mxfp4")
    return dataclasses.replace(base, name="drawn", fprop=pair, dgrad=pair, wgrad=pair)


@pytest.mark.slow
def test_a_key_gives_each_operand_of_each_product_words_of_its_own() -> None:
    x, w, dy = operands((6,), 32, 6)
    run = LINEAR
    one = run(x, w, dy, recipe=stochastic(), key=KEY)
    for left, right in zip(one, run(x, w, dy, recipe=stochastic(), key=KEY), strict=True):
        assert_bits_equal(left, right)
    other = run(x, w, dy, recipe=stochastic(), key=jax.random.key(6))
    assert all(not np.array_equal(*pair) for pair in zip(one, other, strict=True))
    # Equal matrices in two roles are rounded apart: y = x @ x, dx = x @ x, dw = x @ x.
    same = jnp.asarray(np.random.default_rng(0).normal(size=(32, 32)), jnp.bfloat16)
    symmetric = same + same.T
    y, dx, dw = run(symmetric, symmetric, symmetric, recipe=stochastic(), key=KEY)
    arrays = [np.asarray(z, np.float32) for z in (y, dx, dw)]
    assert all(not np.array_equal(arrays[i], arrays[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    # Symmetric operands with the same words would give a symmetric product.
    assert not np.array_equal(arrays[0], arrays[0].T)


@pytest.mark.slow
def test_float32_has_the_gradient_of_the_plain_product() -> None:
    # Integers: every order of summation is exact.
    rng = np.random.default_rng(3)
    x, w, dy = (
        jnp.asarray(rng.integers(-9, 10, shape), jnp.float32)
        for shape in ((2, 5, 24), (24, 7), (2, 5, 7))
    )
    got = by_linear(x, w, dy, get_recipe("float32"), None)
    y, pull = jax.vjp(lambda x, w: jnp.einsum("bti,io->bto", x, w), x, w)
    for one, other in zip(got, (y, *pull(dy)), strict=True):
        assert_bits_equal(one, other)
    x, w, dy = operands((9,), 24, 7)
    dy = dy.astype(jnp.float32)
    y, pull = jax.vjp(lambda x, w: jnp.matmul(x, w, precision="highest"), x, w)
    got = by_linear(x, w, dy, get_recipe("float32"), None)
    for one, other in zip(got, (y, *pull(dy)), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("x_type", slow_if((jnp.bfloat16, jnp.float16), [jnp.float16]))
def test_gradients_have_the_types_of_what_they_belong_to(x_type: Any) -> None:
    x, w, dy = operands((3,), 32, 5, dtype=x_type)
    y, dx, dw = LINEAR(x, w, dy, recipe=get_recipe("bf16"), key=None)
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, x_type, jnp.float32)
    wide = dataclasses.replace(get_recipe("bf16"), output=get_format("float32"))
    y, dx, dw = LINEAR(x, w, dy, recipe=wide, key=None)
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.float32, x_type, jnp.float32)
    want = gemm(dy.astype(jnp.float32), w.T, wide, role="dgrad")
    assert_bits_equal(dx, np.asarray(want).astype(x_type))


def members(recipe: Recipe, count: int = 3) -> tuple[list[Any], Any]:
    """A batch and its gradients, one call a member."""
    x, w, _ = operands((count, 4), 32, 5)
    gradient = jax.grad(lambda x, w: LOSS(linear(x, w, recipe)), argnums=(0, 1))
    one = jax.jit(gradient)
    return [x, w], [one(member, w) for member in x]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["vmap", "scan", "remat"])
def test_transformations_change_no_bit(way: str) -> None:
    recipe = get_recipe("mxfp8")
    (x, w), each = members(recipe)
    layer = lambda x, w: LOSS(linear(x, w, recipe))
    gradient = jax.grad(jax.checkpoint(layer) if way == "remat" else layer, argnums=(0, 1))
    if way == "scan":
        run = lambda x, w: jax.lax.scan(lambda _, x: (None, gradient(x, w)), None, x)[1]
    else:
        run = jax.vmap(gradient, in_axes=(0, None))
    got = jax.jit(run)(x, w)
    for i, (dx, dw) in enumerate(each):
        assert_bits_equal(got[0][i], dx)
        assert_bits_equal(got[1][i], dw)


@pytest.mark.slow
def test_layers_under_scan_have_the_gradients_of_layers_one_by_one() -> None:
    recipe = get_recipe("mxfp8")
    rng = np.random.default_rng(1)
    # Without outliers: a saturated tanh has no gradient.
    x = jnp.asarray(rng.normal(size=(4, 32)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(2, 32, 32)) / 6, jnp.float32)
    layer = lambda x, w: jnp.tanh(linear(x, w, recipe).astype(jnp.float32))

    def scanned(weights: jax.Array) -> jax.Array:
        step = jax.checkpoint(lambda x, w: (layer(x, w), None))
        return LOSS(jax.lax.scan(step, x, weights)[0])

    def unrolled(weights: jax.Array) -> jax.Array:
        return LOSS(functools.reduce(layer, weights, x))

    got = jax.jit(jax.grad(scanned))(weights)
    assert_bits_equal(got, jax.jit(jax.grad(unrolled))(weights))
    assert np.isfinite(got).all() and (np.asarray(got) != 0).mean() > 0.9


def test_there_is_no_second_derivative_and_none_forward() -> None:
    x, w, _ = operands((3,), 32, 5)
    loss = lambda w: LOSS(linear(x, w, "bf16"))
    for second in (
        lambda: jax.grad(lambda w: jnp.sum(jax.grad(loss)(w)))(w),
        lambda: jax.jvp(jax.grad(loss), (w,), (w,)),
        lambda: jax.jit(jax.hessian(loss))(w),
    ):
        with pytest.raises(ValueError, match="`linear` has no second derivative"):
            second()
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss, (w,), (w,))


def test_the_gradient_leaves_keys_alone() -> None:
    x, w, dy = operands((3,), 32, 5)
    recipe = stochastic()

    def gradients(x: jax.Array, w: jax.Array, key: jax.Array) -> Any:
        y, pull = jax.vjp(lambda x, w, key: linear(x, w, recipe, key=key), x, w, key)
        return pull(dy.astype(y.dtype))

    for key in (KEY, jax.random.PRNGKey(5)):
        dx, dw, nothing = jax.eval_shape(gradients, x, w, key)
        assert (dx.shape, dw.shape, nothing.dtype) == (x.shape, w.shape, jax.dtypes.float0)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"`x` has shape \(3, 8\) and `w` \(4, 2\)", ((3, 8), (4, 2), "bf16")),
        (ValueError, r"\(\.\.\., in\) and \(in, out\) are needed", ((3, 8), (8,), "bf16")),
        (ValueError, r"`x` has shape \(\)", ((), (8, 2), "bf16")),
        (ValueError, "there is nothing to multiply", ((0, 8), (8, 2), "bf16")),
        (ValueError, "no recipe is named 'mxfp9'", ((3, 8), (8, 2), "mxfp9")),
        (ValueError, "'drawn' rounds .* needs `key`", ((3, 8), (8, 2), stochastic())),
        (
            ValueError,
            "recipe 'mxfp8' takes none: leave it out",
            ((3, 8), (8, 2), "mxfp8", {"amax_history": jnp.zeros((3, 4))}),
        ),
    ],
)
def test_what_does_not_fit_is_named(error: type[Exception], message: str, call: Any) -> None:
    x, w, recipe, *more = call
    with pytest.raises(error, match=message):
        linear(jnp.ones(x), jnp.ones(w), recipe, **(more[0] if more else {}))


def test_operands_are_floats_that_float32_holds() -> None:
    with pytest.raises(TypeError, match="`w` must be float32, bfloat16 or float16, got int32"):
        linear(jnp.ones((2, 4)), jnp.ones((4, 2), jnp.int32), "bf16")
