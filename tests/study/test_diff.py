"""Two sides told apart: nothing between equal ones, and what is there where one thing differs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.gemm.gemm import gemm
from lowprec.models.checkpoints import open_checkpoint
from lowprec.models.checkpoints.texts import TokenWindows
from lowprec.models.parameters import TransformerConfig
from lowprec.models.transformer import forward
from lowprec.study.diff import Difference, compare_sides
from lowprec.study.diff_layers import Watch
from lowprec.study.diff_sides import read_side
from lowprec.study.diff_subjects import (
    Subject,
    checkpoint_subject,
    own_subject,
    small_subject,
)
from tests.models.checkpoints.reference import FIXTURES, tokens_of
from tests.models.random_parameters import random_parameters

# All weights of one shape: a recipe is compiled once.
CONFIG = TransformerConfig(
    vocabulary=32, layers=2, width=64, heads=2, kv_heads=2, head_dim=32, hidden=64, context=48
)
PARAMS = random_parameters(CONFIG)
TOKENS = np.random.default_rng(1).integers(0, 32, (4, 48)).astype(np.uint8)
UNIT = np.array([0, 1, 1, 2])
# Summed in one order that split_k changes, and not rounded to bfloat16 after it.
PLAIN = "bf16 engine=fp32 output=float32"


def subject_of(params: Any = PARAMS) -> Subject:
    given: dict[str, Any] = {"name": "tiny", "unit": UNIT, "units": "documents"}
    return own_subject(params, CONFIG, TOKENS, calibration=TOKENS[:1], **given)


def told_apart(a: str, b: str, subject: Subject | None = None, **options: Any) -> Difference:
    given = subject or subject_of()
    return compare_sides(given, read_side(a, "A"), read_side(b, "B"), **options)


def assert_nothing_differs(found: Difference) -> None:
    row = dataclasses.asdict(found.row)
    for name, value in row.items():
        if name.startswith(("kl_", "reverse_", "delta_", "flip")):
            assert value == 0, name
    assert row["identical"] and row["first_layer"] is None and row["first_product"] is None
    for layer in found.layers:
        assert (layer.differing, layer.relative, layer.largest) == (0, 0, 0)
    for one in found.sequences:
        assert (one.ess, one.ess_low, one.ess_high, one.smallest, one.largest) == (1,) * 5
        assert one.outside == 0
    assert all(point.magnitude == 0 for point in found.tail)


def test_equal_sides_differ_in_nothing() -> None:
    found = told_apart("bf16 kv=fp8_token", "bf16  kv=fp8_token")
    assert_nothing_differs(found)
    row = found.row
    assert (row.windows, row.length, row.tokens, row.units, row.unit) == (4, 24, 96, 3, "documents")
    assert [x.layer for x in found.layers] == ["layers.0", "layers.1", "logits"]


def test_the_order_of_a_sum_alone_is_found() -> None:
    found = told_apart(PLAIN, f"{PLAIN} order=split_k.2", pair="order")
    row = found.row
    assert (row.first_layer, row.first_product) == (0, "layers.0.attention.q")
    assert not row.identical and 0 < row.kl_mean < 1e-6 and row.pair == "order"
    assert 0 < row.delta_largest < 1e-2 and row.flips == 0
    for layer in found.layers:
        assert 0.2 < layer.differing <= 1 and 1e-8 < layer.relative < 1e-3
    assert {x.pair for x in (*found.sequences, *found.layers, *found.tail)} == {"order"}


def test_batches_tell_where_the_recipe_or_the_order_looks_at_them() -> None:
    # The tiles of 192 rows are dealt without a cut, those of 64 are not.
    assert_nothing_differs(told_apart(PLAIN, f"{PLAIN} rows=64"))
    order = f"{PLAIN} order=stream_k.2"
    assert_nothing_differs(told_apart(PLAIN, order))
    found = told_apart(order, f"{order} rows=64")
    assert found.row.first_product == "layers.0.attention.q" and found.row.kl_mean > 0


def test_figures_are_those_of_the_logits() -> None:
    found = told_apart(PLAIN, "mxfp4 output=float32", prompt=8)

    def through(recipe: Any) -> np.ndarray:
        linear = lambda x, w: gemm(x, w, recipe)
        logits = forward(PARAMS, jnp.asarray(TOKENS), CONFIG, linear=linear)
        wide = np.asarray(logits, np.float64)[:, 7:-1]
        return wide - np.log(np.exp(wide).sum(-1, keepdims=True))

    p, q = (through(read_side(x).recipe) for x in (PLAIN, "mxfp4 output=float32"))
    row, came = found.row, TOKENS[:, 8:, None].astype(int)
    divergence = (np.exp(p) * (p - q)).sum(-1)
    assert row.kl_mean == pytest.approx(divergence.mean(), rel=1e-3)
    assert row.kl_largest == pytest.approx(divergence.max(), rel=1e-3)
    assert row.kl_low < row.kl_mean < row.kl_high
    delta = np.take_along_axis(p - q, came, -1)[..., 0]
    assert row.delta_mean == pytest.approx(delta.mean(), rel=1e-2, abs=1e-4)
    assert row.delta_largest == pytest.approx(np.abs(delta).max(), rel=1e-3)
    assert row.delta_percentile_5 == pytest.approx(np.quantile(delta, 0.05), rel=1e-2)
    assert row.flips == np.sum(p.argmax(-1) != q.argmax(-1)) > 0
    assert row.flip_share == pytest.approx(row.flips / 160) and row.tokens == 160
    whole = next(x for x in found.sequences if (x.tokens, x.length) == ("text", 40))
    assert whole.sequences == 4
    ratios = np.exp(delta.sum(-1))
    assert whole.ess == pytest.approx(ratios.sum() ** 2 / (4 * (ratios**2).sum()), rel=1e-2)


def test_a_cache_differs_first_in_what_attention_gives() -> None:
    found = told_apart("bf16 kv=bf16", "bf16 kv=int4_token")
    assert found.row.first_product == "input of layers.0.attention.o"
    assert found.row.first_layer == 0 and found.row.kl_mean > 1e-5


@pytest.mark.slow
@pytest.mark.thorough
def test_calibrated_methods_are_fitted_by_layer() -> None:
    # This side names a method.
    methods = subject_of().fit(read_side("bf16 kv=kvquant_4bit").method)  # type: ignore[arg-type]
    assert len(methods) == 2 and all(x.fitted is not None for x in methods)
    first, second = (jax.tree.leaves(x.fitted) for x in methods)
    assert any((np.asarray(x) != np.asarray(y)).any() for x, y in zip(first, second, strict=True))


def test_outputs_of_which_nothing_can_be_said_are_refused() -> None:
    large = jax.tree.map(lambda x: x, PARAMS)
    large["layers"]["attention"] = large["layers"]["attention"] | {
        "v": large["layers"]["attention"]["v"] * np.float32(1e6)
    }
    with pytest.raises(ValueError, match=r"side B: layers.0 gives \d+ of 3072 numbers"):
        told_apart("bf16", "bf16 output=float16", subject_of(large))
    silent = dataclasses.replace(subject_of(), head=lambda x: 0 * x[..., :32] + 1)
    with pytest.raises(ValueError, match="side A says the same after every token"):
        told_apart("bf16", "bf16", silent)


def test_what_leaves_too_little_is_refused() -> None:
    for prompt in (48, -1):
        with pytest.raises(ValueError, match=f"`prompt` = {prompt} must leave some"):
            told_apart("bf16", "bf16", prompt=prompt)
    alone = dataclasses.replace(subject_of(), unit=np.zeros(4, int))
    with pytest.raises(ValueError, match="needs 2 documents or more"):
        told_apart("bf16", "bf16", alone)
    with pytest.raises(TypeError, match="no latents: use a method such as kivi_2bit"):
        told_apart("bf16", "bf16 kv=mla_bf16")
    with pytest.raises(ValueError, match="use one of byte_lm, byte_gqa"):
        small_subject("byte_mla", count=2)


def test_products_are_compared_call_by_call() -> None:
    watch, x = Watch(), jnp.ones((1, 2))
    noted, checked = watch.noting(lambda name, x, w: x), watch.checking(lambda name, x, w: x + w)
    noted("twice", x, x)
    noted("twice", 2 * x, x)
    # A side may route no token to an expert.
    checked("experts.3", x, x)
    checked("twice", x, 0 * x)
    assert watch.first is None
    checked("twice", 2 * x, x)
    assert watch.first == "twice"
    other = Watch()
    other.noting(lambda name, x, w: x)("once", x, x)
    other.checking(lambda name, x, w: x)("once", 2 * x, x)
    assert other.first == "input of once"


@pytest.mark.slow
@pytest.mark.thorough
def test_latents_of_a_checkpoint_have_methods_of_their_own() -> None:
    tokens = tokens_of(96, batch=3, length=8)
    mask = np.ones(tokens.shape, bool)
    text = TokenWindows(tokens=tokens, byte_counts=mask.astype(np.int32), mask=mask)
    subject = checkpoint_subject(open_checkpoint(FIXTURES / "deepseek_v3"), text)
    assert_nothing_differs(told_apart("bf16 kv=mla_bf16", "bf16 kv=mla_bf16", subject))
    found = told_apart("bf16 kv=mla_bf16", "bf16 kv=mla_fp8_656", subject)
    # Latents have been mixed when they come to the second product with the weight of values.
    assert str(found.row.first_product).startswith("input of layers.0.attention.")
    with pytest.raises(TypeError, match="this model caches latents"):
        told_apart("bf16", "bf16 kv=fp8_token", subject)


def test_a_checkpoint_on_a_text_of_its_own() -> None:
    tokens = tokens_of(96, batch=4, length=12)
    mask = np.ones(tokens.shape, bool)
    mask[:, 0] = False
    text = TokenWindows(tokens=tokens, byte_counts=mask.astype(np.int32), mask=mask)
    subject = checkpoint_subject(open_checkpoint(FIXTURES / "llama"), text)
    # The first window is left to fit to.
    assert len(subject.tokens) == 3 and subject.units == "windows"
    assert_nothing_differs(told_apart("bf16", "bf16", subject))
    found = told_apart("bf16", "mxfp4", subject, prompt=0)
    assert found.row.model == "LlamaForCausalLM" and found.row.tokens == 33
    assert found.row.first_product == "layers.0.attention.q" and found.row.kl_mean > 0
    with pytest.raises(ValueError, match="is an encoder, which predicts no next token"):
        checkpoint_subject(open_checkpoint(FIXTURES / "bert"), text)
    with pytest.raises(ValueError, match="the text has 2: give a longer text"):
        checkpoint_subject(open_checkpoint(FIXTURES / "llama"), text[:2])


@pytest.mark.slow
@pytest.mark.thorough
def test_promotion_and_order_on_the_repositorys_model() -> None:
    subject = small_subject("byte_lm", count=2)
    spanning = "deepseek_v3 a=fp8_channel b=fp8_channel scales=output"
    promotion = told_apart(spanning, f"{spanning} promote_every=never", subject)
    order = told_apart("deepseek_v3", "deepseek_v3 order=split_k.2", subject)
    for found in (promotion, order):
        assert found.row.first_layer == 0 and not found.row.identical
    assert promotion.row.kl_mean > 10 * order.row.kl_mean > 0
    assert_nothing_differs(told_apart("deepseek_v3", "deepseek_v3 rows=256", subject))
