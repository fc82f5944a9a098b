"""What a checkpoint loses on a text: against sums done by hand, and refusals."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.gemm.recipe import get_recipe
from lowprec.kv import get_kv_method
from lowprec.models.checkpoints import Hooks, open_checkpoint
from lowprec.models.checkpoints.prepared import PreparedLinear
from lowprec.models.checkpoints.products import recipe_linear
from lowprec.models.checkpoints.texts import TokenWindows
from lowprec.study.checkpoint_evaluation import evaluate
from lowprec.study.checkpoint_passes import linear_names
from lowprec.study.checkpoint_scores import _compared
from tests.models.checkpoints.folders import copied, rewritten, tensors_of
from tests.models.checkpoints.reference import FIXTURES, tokens_of

LLAMA = open_checkpoint(FIXTURES / "llama")


def text_of(windows: int = 4, length: int = 16) -> TokenWindows:
    """Random tokens of one to three bytes; the first of each window is none of the text's."""
    tokens = tokens_of(96, batch=windows, length=length)
    mask = np.ones(tokens.shape, bool)
    mask[:, 0] = False
    sizes = np.random.default_rng(1).integers(1, 4, tokens.shape)
    return TokenWindows(tokens=tokens, byte_counts=np.where(mask, sizes, 0), mask=mask)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def test_figures_are_those_of_the_logits() -> None:
    text, recipe = text_of(), get_recipe("mxfp8")
    rows = {(row.what, row.layer): row for row in evaluate(LLAMA, text, recipes=[recipe])}
    assert list(rows) == [("recipe:bf16", "all"), ("recipe:mxfp8", "all")]
    base, other = recipe_linear("bf16"), recipe_linear(recipe)

    def linear(name: str, x: Any, w: Any) -> Any:
        return (base if name == "head" else other)(name, x, w)

    p, q = (
        log_softmax(np.asarray(LLAMA.logits(text.tokens, Hooks(linear=x))))[:, :-1]
        for x in (base, linear)
    )
    came = text.tokens[:, 1:, None]
    bits = [-np.take_along_axis(x, came, -1) / np.log(2) for x in (p, q)]
    count = text.byte_counts.sum()
    row = rows["recipe:mxfp8", "all"]
    assert row.bits_per_byte == pytest.approx(bits[1].sum() / count, rel=1e-5)
    assert row.perplexity == pytest.approx(2 ** bits[1].mean(), rel=1e-5)
    assert row.increase == pytest.approx((bits[1] - bits[0]).sum() / count, abs=1e-5)
    assert row.low <= row.increase <= row.high and row.low < row.high
    divergence = (np.exp(p) * (p - q)).sum(-1)
    assert row.kl_mean == pytest.approx(divergence.mean(), rel=1e-3, abs=1e-6)
    assert row.top1_flips == pytest.approx(np.mean(p.argmax(-1) != q.argmax(-1)))
    assert (row.windows, row.tokens, row.bytes) == (4, 60, count)
    exact = rows["recipe:bf16", "all"]
    assert (exact.increase, exact.low, exact.high, exact.kl_mean) == (0, 0, 0, 0)


@pytest.mark.slow
def test_layers_are_quantized_one_at_a_time_and_pairs_together() -> None:
    found = evaluate(
        LLAMA,
        text_of(windows=2),
        recipes=[get_recipe("mxfp4")],
        methods=[get_kv_method("fp8_token")],
        sensitivity="layers",
    )
    rows = {(row.what, row.layer): row for row in found}
    whole = ["recipe:bf16", "recipe:mxfp4", "kv:fp8_token", "recipe:mxfp4 kv:fp8_token"]
    alone = [(x, f"layers.{n}") for x in whole[1:3] for n in range(2)]
    assert list(rows) == [(x, "all") for x in whole] + alone
    for what in whole[1:3]:
        divergences = [rows[what, f"layers.{n}"].kl_mean for n in range(2)]
        assert min(divergences) > 0 and max(divergences) < 3 * rows[what, "all"].kl_mean
    assert rows["recipe:mxfp4", "all"].kl_mean > rows["kv:fp8_token", "all"].kl_mean


@pytest.mark.slow
@pytest.mark.thorough
def test_linear_layers_are_quantized_one_at_a_time() -> None:
    text, patterns = text_of(windows=2, length=8), ["layers.1.mlp.*", "head"]
    options: dict[str, Any] = {"recipes": [get_recipe("mxfp4")], "wanted": patterns}
    found = evaluate(LLAMA, text, **options, sensitivity="linear")
    rows = {row.layer: row for row in found if row.what == "recipe:mxfp4"}
    alone = [*(f"layers.1.mlp.{name}" for name in ("gate", "up", "down")), "head"]
    assert list(rows) == ["all", *alone]
    assert min(rows[name].kl_mean for name in alone) > 0
    # Only what was asked for is quantized: all of it is no more than its parts.
    assert rows["all"].kl_mean < 2 * sum(rows[name].kl_mean for name in alone)
    mixture = {"layers.1.mlp.up": get_recipe("mxfp4")}
    (_, mixed) = evaluate(LLAMA, text, mixtures={"one": mixture})
    assert mixed.what == "advice:one" and mixed.layer == "all"
    assert mixed.kl_mean == rows["layers.1.mlp.up"].kl_mean
    with pytest.raises(ValueError, match=r"`wanted` = \['layers.7'\] match no linear layer"):
        evaluate(LLAMA, text, recipes=options["recipes"], wanted=["layers.7"])


@pytest.mark.slow
@pytest.mark.thorough
def test_experts_count_as_one() -> None:
    checkpoint = open_checkpoint(FIXTURES / "deepseek_v3")
    names = linear_names(checkpoint, tokens_of(96, batch=1, length=1))
    assert names[0] == [
        *(f"layers.0.attention.{x}" for x in ("q_down", "q_up", "kv_down", "kv_up", "o")),
        *(f"layers.0.mlp.{x}" for x in ("gate", "up", "down")),
    ]
    experts = [f"layers.1.mlp.experts.*.{x}" for x in ("gate", "up", "down")]
    assert names[1][5:8] == experts and names[-1] == ["head"]


def test_small_divergences_keep_their_digits() -> None:
    rng = np.random.default_rng(0)
    for size in (1e-4, 1e-2, 1.0, 100.0):
        p, d = rng.normal(size=(3, 500)), size * rng.normal(size=(3, 500))
        first, second = (log_softmax(x).astype(np.float32) for x in (p, p + d))
        tokens = jnp.zeros(3, jnp.int32)
        _, divergence, _ = _compared(jnp.asarray(first), jnp.asarray(second), tokens)
        exact = log_softmax(p), log_softmax(p + d)
        expected = (np.exp(exact[0]) * (exact[0] - exact[1])).sum(-1)
        np.testing.assert_allclose(np.asarray(divergence), expected, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.thorough
def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path)
    tensors = tensors_of(folder)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * np.float32(np.nan)
    rewritten(folder, tensors)
    with pytest.raises(ValueError, match="own logits in bf16 hold NaN or Inf"):
        evaluate(open_checkpoint(folder), text_of(2, 8), recipes=[get_recipe("mxfp8")])


def test_a_method_that_would_keep_all_of_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="snapkv keeps 32 tokens in any case, which is all of a"):
        evaluate(LLAMA, text_of(windows=2, length=64), methods=[get_kv_method("snapkv")])


@pytest.mark.slow
@pytest.mark.thorough
def test_latents_have_methods_of_their_own() -> None:
    checkpoint = open_checkpoint(FIXTURES / "deepseek_v3")
    text, methods = text_of(windows=2, length=8), [get_kv_method("mla_bf16")]
    found = evaluate(checkpoint, text, methods=methods)
    assert [row.what for row in found] == ["recipe:bf16", "kv:mla_bf16"]
    assert 0 < found[1].kl_mean < 0.01
    with pytest.raises(TypeError, match="this model caches latents"):
        evaluate(checkpoint, text_of(), methods=[get_kv_method("fp8_token")])


@pytest.mark.slow
@pytest.mark.thorough
def test_recipes_that_prepare_weights_are_fitted_to_the_first_window() -> None:
    recipes = [get_recipe(name) for name in ("gptq_mxfp4", "quarot_w4a4_rotated")]
    found = evaluate(LLAMA, text_of(3, 64), recipes=recipes, wanted=["layers.1.mlp.up"])
    assert [row.windows for row in found] == [2] * len(found)
    assert min(row.kl_mean for row in found[1:]) > 0
    prepared = PreparedLinear(recipes[0], {})
    with pytest.raises(ValueError, match="no token that may be looked at reaches a: give longer"):
        prepared.linear("a", jnp.ones((1, 32)), jnp.ones((32, 32)))


@pytest.mark.slow
@pytest.mark.thorough
def test_calibrated_methods_are_fitted_to_the_first_window() -> None:
    methods = [get_kv_method("kvquant_4bit"), get_kv_method("bf16")]
    found = evaluate(LLAMA, text_of(windows=3), methods=methods)
    assert [row.windows for row in found] == [2, 2, 2]
    assert found[1].kl_mean > found[2].kl_mean > 0


def test_what_cannot_be_scored_is_refused() -> None:
    encoder = open_checkpoint(FIXTURES / "bert")
    with pytest.raises(ValueError, match="is an encoder, which predicts no next token"):
        evaluate(encoder, text_of(), recipes=[get_recipe("mxfp8")])
    with pytest.raises(ValueError, match="needs 2 windows or more to score"):
        evaluate(LLAMA, text_of(windows=1), recipes=[get_recipe("mxfp8")])


def test_rows_are_plain() -> None:
    row = evaluate(LLAMA, text_of(windows=2), recipes=[get_recipe("bf16")])[0]
    assert {type(x) for x in dataclasses.asdict(row).values()} <= {str, float, int}
