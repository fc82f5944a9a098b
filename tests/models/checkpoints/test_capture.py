"""What is captured from a checkpoint is what it multiplied, and its cards say no more."""

import fnmatch

import ml_dtypes
import numpy as np
import pytest

from lowprec.models.cards import card
from lowprec.models.checkpoints import Hooks, open_checkpoint
from lowprec.models.checkpoints.capture import capture_checkpoint
from lowprec.models.checkpoints.products import bfloat16_linear
from tests.models.checkpoints.reference import FIXTURES, tokens_of

TOKENS = tokens_of(96, length=16)
COUNTS = {"llama": 2 * 7 + 1, "bert": 2 * 6 + 2}


@pytest.mark.parametrize("name", COUNTS)
def test_products_of_what_is_captured_are_the_model_s(name: str) -> None:
    checkpoint = open_checkpoint(FIXTURES / name)
    layers = list(capture_checkpoint(checkpoint, TOKENS))
    assert [layer.layer for layer in layers] == ["layers.0", "layers.1", "head"]
    operands = {own.layer: own for layer in layers for own in layer.operands}
    assert len(operands) == COUNTS[name]
    head = operands["head"]
    assert head.x is not None and head.w is not None
    assert head.x.dtype == ml_dtypes.bfloat16 and head.x.shape == (32, 32)
    x, w = (np.asarray(a, np.float32) for a in (head.x, head.w))
    logits = np.asarray(checkpoint.logits(TOKENS, Hooks(linear=bfloat16_linear)))
    bias = np.zeros(96, np.float32)
    if name == "bert":
        bias = np.asarray(checkpoint.weights.vector("cls.predictions.bias", 96))
    np.testing.assert_allclose(logits.reshape(32, 96), x @ w + bias, rtol=1e-4, atol=1e-4)


def test_caches_are_captured_where_there_are_some() -> None:
    first = next(capture_checkpoint(open_checkpoint(FIXTURES / "qwen3"), TOKENS))
    assert first.key_values is not None and first.key_values.k.shape == (2, 2, 16, 16)
    assert first.key_values.groups == 2
    assert next(capture_checkpoint(open_checkpoint(FIXTURES / "bert"), TOKENS)).key_values is None


def test_experts_are_captured_on_the_tokens_that_chose_them() -> None:
    checkpoint = open_checkpoint(FIXTURES / "deepseek_v3")
    pattern = "layers.*.mlp.experts.*.up"
    layers = list(capture_checkpoint(checkpoint, TOKENS, wanted=[pattern]))
    assert not layers[0].operands  # a dense layer
    for layer in layers[1:3]:
        assert all(fnmatch.fnmatch(own.layer, pattern) for own in layer.operands)
        rows = [len(own.x) for own in layer.operands if own.x is not None]
        assert sum(rows) == TOKENS.size * 3 and len(rows) <= 8


def test_latents_are_captured_where_a_cache_holds_them() -> None:
    checkpoint = open_checkpoint(FIXTURES / "deepseek_v3")
    first = next(capture_checkpoint(checkpoint, TOKENS, wanted=["*.kv_down"]))
    shapes = {name: x.shape for name, x in first.latents.items()}
    assert shapes == {"latent": (TOKENS.size, 20), "k_rope": (TOKENS.size, 8)}
    assert first.key_values is None and {"layers.0.latent", "layers.0.k_rope"} <= {*first.cards()}
    # Its norm leaves a latent's gains times numbers whose mean square is one.
    (own,) = first.operands
    assert own.x is not None and own.w is not None
    down = own.x.astype(np.float32) @ own.w.astype(np.float32)
    gain = checkpoint.weights.vector("model.layers.0.self_attn.kv_a_layernorm.weight", 20)
    expected = down[:, :20] / np.sqrt(np.square(down[:, :20]).mean(1, keepdims=True) + 1e-6)
    found = first.latents["latent"].astype(np.float32)
    np.testing.assert_allclose(found, expected * np.asarray(gain)[None], rtol=1e-2, atol=1e-3)


def test_cards_are_of_both_operands_along_the_axis_that_is_summed() -> None:
    checkpoint = open_checkpoint(FIXTURES / "llama")
    wanted = ["layers.1.mlp.down"]
    _, layer = capture_checkpoint(checkpoint, TOKENS, wanted=wanted)
    cards, (own,) = layer.cards(), layer.operands
    assert cards.keys() == {"layers.1.mlp.down.x", "layers.1.mlp.down.w"}
    assert own.x is not None and own.w is not None
    assert cards["layers.1.mlp.down.x"] == card(own.x, 1)
    assert cards["layers.1.mlp.down.w"] == card(own.w, 0)


def test_patterns_that_match_nothing_are_refused() -> None:
    checkpoint = open_checkpoint(FIXTURES / "llama")
    with pytest.raises(ValueError, match=r"`wanted` = \['layers.9'\] match no linear layer"):
        list(capture_checkpoint(checkpoint, TOKENS, wanted=["layers.9"]))
