"""Passes that share work, recipes on linear layers, and attention through caches."""

from typing import Any

import jax
import numpy as np
import pytest

from lowprec.gemm.gemm import gemm
from lowprec.kv import get_kv_method
from lowprec.models.checkpoints import Hooks, open_checkpoint, run_layers
from lowprec.models.checkpoints.architecture import float32_linear
from lowprec.models.checkpoints.caches import (
    FittingHooks,
    cached_attention,
    cached_latent_attention,
    check_method,
)
from lowprec.models.checkpoints.products import bfloat16_linear, recipe_linear
from tests.models.checkpoints.reference import FIXTURES, tokens_of

LLAMA = open_checkpoint(FIXTURES / "llama")
DEEPSEEK = open_checkpoint(FIXTURES / "deepseek_v3")
TOKENS = tokens_of(96, length=16)
EXACT = Hooks()


class Counted:
    """The float32 product, and the names that it was called with."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def linear(self, name: str, x: jax.Array, w: jax.Array) -> jax.Array:
        self.names.append(name)
        return float32_linear(name, x, w)


def largest(x: Any, y: Any) -> float:
    return float(np.abs(np.asarray(x) - np.asarray(y)).max())


def logits_of(checkpoint: Any, hooks: Hooks) -> np.ndarray:
    return np.asarray(checkpoint.logits(TOKENS, hooks))


def test_a_pass_is_what_the_model_gives_and_shares_what_it_can() -> None:
    counted, narrow = Counted(), Hooks(linear=bfloat16_linear)
    exact = Hooks(linear=counted.linear)
    passes = {"exact": [exact, exact], "last": [exact, narrow], "first": [narrow, exact]}
    done: list[int] = []
    found = run_layers(LLAMA, TOKENS, passes, done=done.append)
    # Seven products a layer: layer 0 once, layer 1 for two different streams.
    assert len(counted.names) == 3 * 7 and done == [0, 1]
    assert counted.names[0] == "layers.0.attention.q" and counted.names[-1] == "layers.1.mlp.down"
    head = LLAMA.architecture.head(LLAMA.weights)
    np.testing.assert_array_equal(
        np.asarray(head(found["exact"], float32_linear)), logits_of(LLAMA, EXACT)
    )
    assert largest(found["last"], found["exact"]) > 0
    assert largest(found["first"], found["last"]) > 0


def test_every_layer_needs_hooks() -> None:
    with pytest.raises(ValueError, match="'a' has hooks for 1 layers of 2"):
        run_layers(LLAMA, TOKENS, {"a": [EXACT]})


def test_a_recipe_s_product_is_gemm_s_whatever_the_rows() -> None:
    rng = np.random.default_rng(0)
    w = jax.numpy.asarray(rng.normal(size=(64, 8)), jax.numpy.float32)
    # Five rows are filled up to eight, which changes no scale of a whole tensor.
    x = jax.numpy.asarray(rng.normal(size=(5, 64)), jax.numpy.float32)
    found = recipe_linear("fp8_tensor")("layers.0.mlp.up", x[None], w)
    expected = gemm(x, w, "fp8_tensor").astype(jax.numpy.float32)
    np.testing.assert_array_equal(np.asarray(found[0]), np.asarray(expected))


@pytest.mark.slow
@pytest.mark.thorough
def test_a_recipe_that_draws_is_given_a_key() -> None:
    x = jax.random.normal(jax.random.key(0), (4, 64))
    w = jax.random.normal(jax.random.key(1), (64, 4))
    with pytest.raises(ValueError, match="needs `key`"):
        gemm(x, w, "nvfp4_training")
    first, again = (recipe_linear("nvfp4_training", seed=3)("a", x, w) for _ in range(2))
    np.testing.assert_array_equal(np.asarray(first), np.asarray(again))


@pytest.mark.parametrize(
    ("method", "bound"),
    [
        ("bf16", 0.1),
        pytest.param("fp8_token", 0.5, marks=[pytest.mark.slow, pytest.mark.thorough]),
    ],
)
def test_a_cache_that_keeps_every_token_moves_logits_a_little(method: str, bound: float) -> None:
    methods = [get_kv_method(method)] * 2
    found = logits_of(LLAMA, Hooks(attention=cached_attention(methods, prompt=1)))
    assert 0 < largest(found, logits_of(LLAMA, EXACT)) < bound


def test_a_cache_with_room_for_all_is_exact_but_for_its_numbers() -> None:
    methods = [get_kv_method("streaming")] * 2
    kept = cached_attention(methods, prompt=8, kept=2.0)
    few = cached_attention(methods, prompt=8, kept=0.25)
    exact = logits_of(LLAMA, EXACT)
    assert largest(logits_of(LLAMA, Hooks(attention=kept)), exact) < 0.1
    found = logits_of(LLAMA, Hooks(attention=few))
    # The prompt sees itself exactly; what comes behind it does not see all of it.
    assert largest(found[:, :8], exact[:, :8]) < 1e-4 < largest(found[:, 8:], exact[:, 8:])


@pytest.mark.slow
@pytest.mark.thorough
def test_keys_before_rope_are_fitted_and_turned() -> None:
    """A method of keys before RoPE, fitted to each layer, through the stretched RoPE of Llama 3."""
    fitting = FittingHooks(get_kv_method("kvquant_4bit"))
    run_layers(LLAMA, TOKENS[:1], {"": [fitting.hooks(EXACT)] * 2})
    assert len(fitting.methods) == 2
    hooks = Hooks(attention=cached_attention(fitting.methods, prompt=1))
    assert 0 < largest(logits_of(LLAMA, hooks), logits_of(LLAMA, EXACT)) < 1.0


def test_latents_in_bfloat16_give_the_expanded_form_s_logits() -> None:
    methods = [get_kv_method("mla_bf16")] * 3
    hooks = Hooks(latent_attention=cached_latent_attention(methods))
    assert 0 < largest(logits_of(DEEPSEEK, hooks), logits_of(DEEPSEEK, EXACT)) < 0.2


def test_methods_of_other_caches_are_refused() -> None:
    with pytest.raises(TypeError, match="kivi_2bit: this model caches latents"):
        check_method(get_kv_method("kivi_2bit"), DEEPSEEK.architecture)
    with pytest.raises(TypeError, match="mla_bf16 keeps latents; this model has keys and values"):
        check_method(get_kv_method("mla_bf16"), LLAMA.architecture)
    encoder = open_checkpoint(FIXTURES / "bert")
    with pytest.raises(ValueError, match="an encoder keeps no cache"):
        check_method(get_kv_method("bf16"), encoder.architecture)
    methods = [get_kv_method("bf16")] * 2
    with pytest.raises(ValueError, match="an encoder keeps no cache"):
        encoder.logits(TOKENS, Hooks(attention=cached_attention(methods, prompt=1)))
