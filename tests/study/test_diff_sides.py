"""How a side of `lowprec diff` is spelt, and how many rows share its products."""

import jax
import numpy as np
import pytest

from lowprec.gemm.gemm import gemm
from lowprec.gemm.recipe import get_recipe
from lowprec.study.diff_sides import read_side, side_linear
from tests.helpers import assert_bits_equal


def test_a_side_is_a_recipe_and_its_changes() -> None:
    side = read_side("deepseek_v3   order=split_k.2  kv=fp8_token rows=16 promotion=multiply_fma")
    assert side.label == "deepseek_v3 order=split_k.2 kv=fp8_token rows=16 promotion=multiply_fma"
    recipe, entry = side.recipe, get_recipe("deepseek_v3")
    assert (recipe.order, recipe.promotion, recipe.promote_every) == (
        "split_k.2",
        "multiply_fma",
        128,
    )
    assert recipe.fprop == entry.fprop and recipe.engine == entry.engine
    assert side.method is not None and side.method.name == "fp8_token" and side.rows == 16
    plain = read_side("mxfp8")
    assert plain.recipe == get_recipe("mxfp8").in_role("fprop")
    assert plain.method is None and plain.rows is None


def test_scales_over_k_need_no_promotion() -> None:
    spelt = "deepseek_v3 a=fp8_channel b=fp8_channel scales=output promote_every=never output=fp32"
    recipe = read_side(spelt).recipe
    assert recipe.promote_every is None and recipe.scales == "output"
    assert recipe.fprop.a.name == recipe.fprop.b.name == "fp8_channel"
    assert recipe.output.name == "float32"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "`B` = '': begin with a recipe's name or path, such as 'deepseek_v3"),
        ("order=split_k.2", "begin with a recipe's name or path"),
        ("deepseek", "did you mean deepseek_v3"),
        ("deepseek_v3 ordr=split_k.2", "no key is named 'ordr'; did you mean order"),
        ("deepseek_v3 split_k=4", "split_k is an order; write order=split_k.4"),
        ("deepseek_v3 stream_k=", "write order=stream_k.<parts>"),
        ("deepseek_v3 kv=", "write kv=VALUE, without spaces"),
        ("deepseek_v3 order=split_k.2 order=sequential", "order is given twice"),
        ("deepseek_v3 order=split_k", "use sequential, split_k.<parts> or stream_k.<workers>"),
        ("deepseek_v3 rows=0", "rows = '0'; use a whole number of at least 1"),
        ("deepseek_v3 rows=²", "rows = '²'; use a whole number"),
        ("deepseek_v3 promote_every=none", "use a whole number of at least 1, or never"),
        ("deepseek_v3 promote_every=never", "such as a=fp8_channel b=fp8_channel scales=output"),
        ("deepseek_v3 promote_every=48", "promote_every = 48 does not divide"),
        ("deepseek_v3 scales=row", "use one of operands, promotion, output, engine"),
        ("deepseek_v3 promotion=add", "use one of fma, "),
        ("nvfp4 engine=hopper.wgmma.fp8.fp32", "takes float8_e4m3fn, float8_e5m2"),
        ("te_delayed", "needs a history of magnitudes, which a side has no place for"),
        ("awq_int4_g128", "needs a prepared weight, which a side has no place for"),
        ("bf16 kv=kivi_3bit", "did you mean kivi_"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        read_side(text, "B")
    assert str(refusal.value).startswith(f"`B` = {text!r}") and message in str(refusal.value)


def operands() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(3)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 7, 64), (64, 3)))
    x[1] *= 8
    return jax.numpy.asarray(x), jax.numpy.asarray(w)


def test_rows_that_no_scale_spans_are_the_same_bits_alone() -> None:
    x, w = operands()
    whole, alone = (side_linear(read_side(text), seed=0) for text in ("mxfp8", "mxfp8 rows=5"))
    assert_bits_equal(alone("one", x, w), whole("one", x, w))


def test_a_scale_of_all_rows_is_of_those_that_share_a_product() -> None:
    x, w = operands()
    found = side_linear(read_side("fp8_tensor rows=7"), seed=0)("one", x, w)
    for n in range(2):
        assert_bits_equal(found[n], gemm(x[n], w, "fp8_tensor").astype(np.float32))
    whole = side_linear(read_side("fp8_tensor"), seed=0)("one", x, w)
    assert (np.asarray(whole[0]) != np.asarray(found[0])).any()


def test_every_product_draws_bits_of_its_own() -> None:
    x, w = operands()
    same = jax.numpy.concatenate([x[:1], x[:1]])
    drawn = side_linear(read_side("mxfp4 a=mxfp4_stochastic rows=7"), seed=0)
    found = np.asarray(drawn("one", same, w))
    assert (found[0] != found[1]).any()
    assert_bits_equal(drawn("one", same, w), found)
    assert (np.asarray(drawn("two", same, w)) != found).any()
