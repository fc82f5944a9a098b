"""What a role sets for itself, copies that it starts from, and what is given to its blocks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.engines import get_engine, matmul
from lowprec.gemm import OperandPair, Recipe, gemm, get_recipe
from lowprec.gemm.operand import random_signs
from lowprec.numerics import get_format
from lowprec.scaling import cast, get_block, quantize
from tests.gemm.exact import exact_gemm
from tests.helpers import assert_bits_equal
from tests.scaling.helpers import slow_if

KEY = jax.random.key(11)
BF16 = get_format("bfloat16")
FP32: dict[str, Any] = {"engine": "fp32", "out_dtype": jnp.float32}


def operands(m: int = 2, k: int = 64, n: int = 3) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(m, k)), rng.normal(size=(k, n)) * np.exp(rng.normal(size=n))
    return jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)


def recipe(pair: OperandPair, **changes: Any) -> Recipe:
    return dataclasses.replace(get_recipe("bf16"), name="own", dgrad=pair, **changes)


def test_a_role_runs_as_it_says_and_others_as_the_recipe() -> None:
    a, b = operands()
    own = OperandPair(
        a=BF16, b=BF16, engine=get_engine("fp32"), promote_every=16, output=get_format("float32")
    )
    whole = recipe(own)
    got = gemm(a, b, whole, role="dgrad")
    assert got.dtype == jnp.float32
    plain = OperandPair(a=BF16, b=BF16)
    want = recipe(plain, engine=own.engine, promote_every=16)
    assert_bits_equal(got, gemm(a, b, want, out_dtype=jnp.float32))
    assert gemm(a, b, whole).dtype == jnp.bfloat16
    assert gemm(a, b, whole, role="dgrad", out_dtype=jnp.float16).dtype == jnp.float16
    assert whole.in_role("fprop").engine == whole.engine
    assert whole.in_role("dgrad").dgrad == plain


@pytest.mark.parametrize("side", slow_if(("a", "b"), ["a"]))
def test_a_copy_is_rounded_along_the_other_axis_first(side: str) -> None:
    a, b = operands(m=40)
    copied: dict[str, Any] = {f"{side}_from": get_block("mxfp4")}
    whole = recipe(OperandPair(a=BF16, b=get_block("mxfp8_e4m3"), **copied))
    if side == "a":
        first = cast(a, "mxfp4", axis=-2), b
    else:
        first = a, cast(b, "mxfp4", axis=-1)
    base = recipe(OperandPair(a=BF16, b=get_block("mxfp8_e4m3")))
    got = gemm(a, b, whole, role="dgrad", **FP32)
    assert_bits_equal(got, gemm(*first, base, role="dgrad", **FP32))
    assert not np.array_equal(got, gemm(a, b, base, role="dgrad", **FP32))


@pytest.mark.slow
def test_a_copy_has_the_operands_own_type() -> None:
    a, b = (x.astype(jnp.bfloat16) for x in operands())
    whole = recipe(OperandPair(a=BF16, b=get_format("float32"), b_from=get_block("fp8_tensor")))
    got = gemm(a, b, whole, role="dgrad", **FP32)
    copy = cast(b, "fp8_tensor", axis=-1)
    assert copy.dtype == jnp.bfloat16
    wide = (x.astype(jnp.float32) for x in (a, copy))
    assert_bits_equal(got, matmul(*wide, engine="fp32"))


@pytest.mark.slow
def test_signs_are_drawn_for_both_operands_from_the_key() -> None:
    a, b = operands()
    turned = get_block("mxfp4_h32")
    assert turned.transform is not None
    drawn = dataclasses.replace(turned.transform, signs="given")
    block = dataclasses.replace(turned, name="drawn", transform=drawn)
    whole = recipe(OperandPair(a=block, b=block))
    assert whole.stochastic
    with pytest.raises(ValueError, match="needs `key`"):
        gemm(a, b, whole, role="dgrad")
    got = gemm(a, b, whole, role="dgrad", key=KEY, **FP32)
    vector = np.asarray(random_signs(block, KEY))
    assert set(vector.tolist()) == {-1.0, 1.0} and vector.shape == (32,)
    known = dataclasses.replace(turned.transform, signs=tuple(map(int, vector)))
    fixed = dataclasses.replace(turned, name="fixed", transform=known)
    want = gemm(a, b, recipe(OperandPair(a=fixed, b=fixed)), role="dgrad", **FP32)
    assert_bits_equal(got, want)
    assert not np.array_equal(got, gemm(a, b, whole, role="dgrad", key=jax.random.key(1), **FP32))


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("bitnet_b158", "fprop"),
        ("bitnet_b158", "dgrad"),
        ("weight_only_binary", "fprop"),
    ],
)
@pytest.mark.slow
def test_scales_of_mean_magnitudes_are_exact(name: str, role: Any) -> None:
    a, b = operands(k=40)
    got = gemm(a, b, name, role=role, **FP32)
    want = exact_gemm(np.asarray(a), np.asarray(b), get_recipe(name), role)
    assert_bits_equal(got, want.view(np.float32))


@pytest.mark.slow
def test_a_ternary_weight_is_scaled_by_its_mean_magnitude() -> None:
    _, b = operands(k=40)
    size = np.abs(np.asarray(b, np.float64)).mean()
    got = np.asarray(gemm(np.eye(40, dtype=np.float32), b, "bitnet_b158", **FP32), np.float64)
    want = np.clip(np.rint(np.asarray(b, np.float64) / size), -1, 1) * size
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert len(np.unique(want)) == 3


@pytest.mark.slow
def test_an_affine_operand_is_multiplied_as_it_decodes() -> None:
    a, b = operands()
    block = get_block("int4_quarot_token")
    assert block.coding == "affine"
    pair = OperandPair(a=get_format("float32"), b=block)
    got = gemm(a, b, recipe(pair), role="dgrad", **FP32)
    want = matmul(a, quantize(b, block, axis=-2).dequantize(), engine="fp32")
    assert_bits_equal(got, want)
    with pytest.raises(ValueError, match=r"dgrad\.b = int4_quarot_token has no scales"):
        recipe(dataclasses.replace(pair, scales="output"))


STATIC = dataclasses.replace(get_block("fp8_1x128"), name="static", amax_source="given")


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("a_from = mxfp4_stochastic draws random", {"a_from": get_block("mxfp4_stochastic")}),
        ("b_from = nvfp4_rht16 draws random numbers or", {"b_from": get_block("nvfp4_rht16")}),
        ("b_amax = 'mean' and a block with", {"b_amax": "mean"}),
        ("a_amax = 'mean' and a block with", {"a": get_block("fp8_tensor_static")}),
        (
            "tiles of whole rows or tensors, and static has",
            {"b": STATIC, "b_amax": "mean"},
        ),
    ],
)
def test_pairs_that_contradict_themselves_are_refused(
    message: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        OperandPair(**{"a": BF16, "b": BF16, **changes})


def test_what_a_role_sets_is_checked_as_the_recipe_is() -> None:
    with pytest.raises(ValueError, match="output must be float32, bfloat16 or float16"):
        recipe(OperandPair(a=BF16, b=BF16, output=get_format("e5m2")))
    block = get_block("fp8_1x128")
    with pytest.raises(ValueError, match=r"dgrad\.a = fp8_1x128: scales = 'promotion' needs"):
        recipe(OperandPair(a=block, b=BF16, scales="promotion"))


def test_a_block_may_be_told_from_the_format_of_its_name() -> None:
    pair = get_recipe("ocp_int8_e4m3").fprop
    assert pair.a == get_block("mxint8") and pair.b == get_block("mxfp8_e4m3")
