"""Gradients with respect to keys and values: finite differences through the hook of attention."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.models import transformer
from lowprec.models.key_value_gradients import key_value_gradients
from lowprec.models.parameters import TransformerConfig
from lowprec.models.scoring import log_probabilities
from lowprec.models.transformer import forward, rotated_attention
from tests.models.random_parameters import random_parameters

CONFIG = TransformerConfig(
    vocabulary=29, layers=2, width=16, heads=4, kv_heads=2, head_dim=4, hidden=24, context=16
)
TOKENS = np.random.default_rng(0).integers(0, 29, 12)


def test_they_are_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    # Steps of bfloat16 have no derivative: both sides without them.
    monkeypatch.setattr(transformer, "round_to_bfloat16", lambda x: x)
    params = jax.tree.map(jnp.asarray, random_parameters(CONFIG))
    found = key_value_gradients(params, jnp.asarray(TOKENS), CONFIG)

    @jax.jit
    def loss(added: tuple[jax.Array, jax.Array]) -> jax.Array:
        def attend(q: Any, k: Any, v: Any, config: TransformerConfig, own: Any) -> jax.Array:
            return rotated_attention(q, k + own[0][None], v + own[1][None], config)

        tokens = jnp.asarray(TOKENS)[None]
        logits = forward(params, tokens, CONFIG, attention=attend, attention_states=added)
        return -jnp.mean(log_probabilities(logits, tokens))

    shape, step = found[0].shape, 0.03
    assert shape == found[1].shape == (2, 2, 12, 4)
    rng = np.random.default_rng(1)
    for side in range(2):
        for layer in range(2):
            ways = [np.zeros(shape, np.float32) for _ in range(2)]
            # Along the gradient, so that the difference is large, and a little aside of it.
            slope = np.asarray(found[side])[layer]
            way = slope / np.linalg.norm(slope) + 0.3 * rng.normal(size=slope.shape) / slope.size
            ways[side][layer] = way
            up, down = (
                loss((jnp.asarray(sign * ways[0]), jnp.asarray(sign * ways[1])))
                for sign in (step, -step)
            )
            difference = (float(up) - float(down)) / (2 * step)
            assert difference == pytest.approx(np.sum(slope * way), rel=0.02), (side, layer)
    # No byte follows the last token.
    assert not np.asarray(found[0])[:, :, -1].any() and not np.asarray(found[1])[:, :, -1].any()
    assert np.asarray(found[0])[:, :, :-1].any(axis=(1, 3)).all()


def test_what_is_no_sequence_is_refused() -> None:
    params = random_parameters(CONFIG)
    with pytest.raises(ValueError, match=r"one sequence \(tokens,\) of two or more"):
        key_value_gradients(params, jnp.asarray(TOKENS)[None], CONFIG)
    with pytest.raises(ValueError, match=r"one sequence \(tokens,\) of two or more"):
        key_value_gradients(params, jnp.asarray(TOKENS[:1]), CONFIG)
    with pytest.raises(TypeError, match="must be integers"):
        key_value_gradients(params, jnp.ones(4), CONFIG)
