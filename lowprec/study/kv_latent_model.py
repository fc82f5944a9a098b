"""A model with latent attention whose latents are kept by a method: what that costs in loss."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lowprec.kv import KVMethod, get_kv_method
from lowprec.kv.latent import LatentSpec
from lowprec.kv.pair import array_bytes
from lowprec.models.corpus import Windows
from lowprec.models.latent_parameters import LatentTransformerConfig
from lowprec.models.latent_transformer import forward, latent_attention
from lowprec.study.kv_model import Mode, lost, predictions
from lowprec.study.kv_rows import KvModelRow
from lowprec.study.model import Predictions

EXACT = "mla_bf16"
"""What other methods are compared with."""


def predict_latent(
    params: Any,
    config: LatentTransformerConfig,
    text: Windows,
    method: KVMethod,
    mode: Mode,
    *,
    prompt: int,
) -> Predictions:
    """What the model says of the bytes behind `prompt` tokens of every window.

    Raises:
      ValueError: the model has not what the method needs.
    """
    score = lambda x: latent_log_probabilities(params, x, method, config, mode, prompt)
    return predictions(text, score, prompt)


@functools.partial(jax.jit, static_argnames=("config", "mode", "prompt"))
def latent_log_probabilities(
    params: Any,
    tokens: jax.Array,
    method: KVMethod,
    config: LatentTransformerConfig,
    mode: Mode,
    prompt: int,
) -> jax.Array:
    """Of every next byte of tokens (windows, tokens), through caches of latents, float32.

    Every token sees the latents as its cache holds them: a method of this kind codes each as it
    comes, so that a window is computed at once. In mode `exact_prefill` the first `prompt` tokens
    see bfloat16 ones.

    Raises:
      ValueError: the method chooses tokens, or mixes rotary keys too, or does not take latents of
        this size.
    """
    check_method(method)

    def attend(
        q_latent: Any, q_rope: Any, latent: Any, k_rope: Any, config: LatentTransformerConfig
    ) -> jax.Array:
        held = held_by(method, latent, k_rope)
        mixed = latent_attention(q_latent, q_rope, *held, config)
        if mode == "before_use":
            return mixed
        exact = held_by(get_kv_method(EXACT), latent, k_rope)
        before = (jnp.arange(tokens.shape[1]) < prompt)[:, None]
        return jnp.where(before, latent_attention(q_latent, q_rope, *exact, config), mixed)

    return jax.nn.log_softmax(forward(params, tokens, config, attention=attend), axis=-1)


def held_by(method: KVMethod, latent: jax.Array, k_rope: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Latents (batch, tokens, latent_dim) and rotary keys as a cache of the method gives them."""
    batch, tokens, dim = latent.shape
    cache = method.init(batch, dim, k_rope.shape[-1], tokens)
    return method.read(method.append(cache, latent, k_rope))


def check_method(method: KVMethod) -> None:
    """Raises ValueError where the model has not what the method needs."""
    spec = method.spec
    if not isinstance(spec, LatentSpec):
        raise ValueError("it needs an indexer, which the model has not been trained with")
    if spec.values != "latent":
        raise ValueError("it mixes rotary keys too, which the model has not been trained with")


def latent_row(
    method: KVMethod,
    mode: Mode,
    config: LatentTransformerConfig,
    baseline: Predictions,
    other: Predictions,
    *,
    seed: int,
) -> KvModelRow:
    """A method against bfloat16 latents, both in predictions of the same bytes."""
    shape = config.latent_dim, config.rope_dim, config.context
    size = array_bytes(jax.eval_shape(lambda: method.init(1, *shape).pages)) / config.context
    return KvModelRow(
        method=f"kv:{method.name}",
        mode=mode,
        bits=8 * size / (config.latent_dim + config.rope_dim),
        bytes_per_token=size * config.layers,
        exempt=0.0,
        context=config.context,
        **lost(baseline, other, seed=seed),
    )
