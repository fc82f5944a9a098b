"""A model whose caches are kept by a method: how much held-out loss that costs."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.kv import KVMethod, Rope
from lowprec.kv.kvquant import KVQuantSpec
from lowprec.kv.pair import PairSpec
from lowprec.kv.teacher import teacher_forced
from lowprec.models.capture import capture_key_values
from lowprec.models.corpus import Windows
from lowprec.models.decoding import decoded_logits
from lowprec.models.key_value_gradients import key_value_gradients
from lowprec.models.transformer import TransformerConfig, forward
from lowprec.study.intervals import paired_interval
from lowprec.study.kv_rows import KvModelRow
from lowprec.study.kv_tensors import bits_of, choosing, exempt
from lowprec.study.model import Predictions

Mode = Literal["before_use", "exact_prefill"]
MODES: tuple[Mode, ...] = ("before_use", "exact_prefill")
BATCH = 8


def fitted_by_layer(
    method: KVMethod, params: Any, config: TransformerConfig, text: Any
) -> KVMethod:
    """The method fitted to every layer's keys and values, its arrays stacked by layer.

    KVQuant is fitted as published: with the squared gradients of the loss as weights.

    Args:
      text: (windows, tokens) integers of the calibrate part.
    """
    if not method.spec.calibrated:
        return method
    weighted = isinstance(method.spec, KVQuantSpec)
    windows = [_samples(params, jnp.asarray(row), config, weighted) for row in text]
    layers = [method.fit(samples) for samples in zip(*windows, strict=True)]
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *layers)


def _samples(
    params: Any, tokens: jax.Array, config: TransformerConfig, weighted: bool
) -> list[dict[str, np.ndarray]]:
    """What methods are fitted to, of every layer for one sequence (tokens,)."""
    samples = [
        {
            name: np.asarray(getattr(x, name), np.float32)[None]
            for name in ("k", "v", "k_before_rope")
        }
        for x in capture_key_values(params, tokens, config)
    ]
    if weighted:
        gradients = key_value_gradients(params, tokens, config)
        for sample, *own in zip(samples, *(np.asarray(x) for x in gradients), strict=True):
            sample |= {name: x[None] for name, x in zip(("k_grad", "v_grad"), own, strict=True)}
    return samples


def predict(
    params: Any,
    config: TransformerConfig,
    text: Windows,
    method: KVMethod,
    mode: Mode,
    *,
    prompt: int,
    kept: float,
) -> Predictions:
    """What the model says of the bytes behind `prompt` tokens of every window.

    Methods that keep every token are run over a window at once, each token seeing what its cache
    would hold; others are decoded token by token, and keep the share `kept` of the prompt.
    """
    rope = Rope(theta=config.rope_theta)
    budget = choosing(method, round(kept * prompt), rope).get("budget")
    return predictions(
        text, lambda x: log_probabilities(params, x, method, config, mode, prompt, budget), prompt
    )


def predictions(text: Windows, score: Callable[[jax.Array], jax.Array], prompt: int) -> Predictions:
    """What is said of the bytes behind `prompt` tokens of every window.

    Args:
      score: (windows, tokens) integers to logarithms of probabilities, (..., vocabulary).
    """
    every = in_batches(score, text.tokens)
    mask = text.mask.copy()
    mask[:, : prompt - 1] = False
    return Predictions(
        log_probabilities=every[:, :-1][mask],
        targets=text.tokens[:, 1:][mask],
        document=np.broadcast_to(text.document[:, None], mask.shape)[mask],
    )


def in_batches(score: Callable[[jax.Array], jax.Array], tokens: np.ndarray) -> np.ndarray:
    """`score` of (windows, tokens), a few windows at a time."""
    padded = np.pad(tokens, [(0, -len(tokens) % BATCH), (0, 0)])
    starts = range(0, len(padded), BATCH)
    rows = [np.asarray(score(jnp.asarray(padded[start : start + BATCH]))) for start in starts]
    return np.concatenate(rows)[: len(tokens)]


@functools.partial(jax.jit, static_argnames=("config", "mode", "prompt", "budget"))
def log_probabilities(
    params: Any,
    tokens: jax.Array,
    method: KVMethod,
    config: TransformerConfig,
    mode: Mode,
    prompt: int,
    budget: int | None,
) -> jax.Array:
    """Of every next byte of tokens (windows, tokens), through the method's caches, float32.

    Args:
      prompt: tokens of a prompt that see each other exactly, in mode `exact_prefill` and where a
        method is decoded token by token.
      budget: tokens that a method which chooses keeps.
    """
    if not isinstance(method.spec, PairSpec):
        logits = decoded_logits(params, tokens, config, method, prompt=prompt, budget=budget)
        return jax.nn.log_softmax(logits, axis=-1)
    exact_rows = prompt if mode == "exact_prefill" else 0

    def attend(q: Any, k: Any, v: Any, config: TransformerConfig, own: KVMethod = method) -> Any:
        rope = Rope(theta=config.rope_theta)
        mixed = teacher_forced(own, q, k, v, rope=rope, exact_rows=exact_rows)
        return mixed.swapaxes(1, 2).reshape(*tokens.shape, -1)

    states = None if method.fitted is None else method
    logits = forward(params, tokens, config, attention=attend, attention_states=states)
    return jax.nn.log_softmax(logits, axis=-1)


def model_row(
    method: KVMethod,
    mode: Mode,
    config: TransformerConfig,
    baseline: Predictions,
    other: Predictions,
    *,
    seed: int,
    given: dict[str, Any],
) -> KvModelRow:
    """A method against bf16, both in predictions of the same bytes.

    Args:
      seed: of the bootstrap.
      given: what the method's `init` was given beside sizes.
    """
    size = bits_of(method, config.kv_heads, config.head_dim, config.context, given)
    return KvModelRow(
        method=f"kv:{method.name}",
        mode=mode,
        bits=size,
        bytes_per_token=size / 8 * config.layers * 2 * config.kv_heads * config.head_dim,
        exempt=exempt(method, config.context, given),
        context=config.context,
        **lost(baseline, other, seed=seed),
    )


def lost(baseline: Predictions, other: Predictions, *, seed: int) -> dict[str, Any]:
    """What other predictions of the same bytes lose, as `KvModelRow` has it."""
    index = np.arange(baseline.targets.size)
    p, q = (x.log_probabilities.astype(np.float64) for x in (baseline, other))
    bits = [-x[index, baseline.targets] / np.log(2.0) for x in (p, q)]
    documents = int(baseline.document.max()) + 1
    weight = np.bincount(baseline.document, minlength=documents).astype(np.float64)
    difference = np.bincount(baseline.document, bits[1] - bits[0], minlength=documents)
    scored = weight > 0
    increase, low, high = paired_interval(difference[scored], weight[scored], seed=seed)
    divergence = np.sum(np.exp(p) * (p - q), axis=-1)
    return {
        "bits_per_byte": float(np.mean(bits[1])),
        "increase": increase,
        "low": low,
        "high": high,
        "kl_median": float(np.median(divergence)),
        "kl_percentile_99": float(np.quantile(divergence, 0.99)),
        "top1_agreement": float(np.mean(np.argmax(p, axis=-1) == np.argmax(q, axis=-1))),
        "documents": int(scored.sum()),
        "bytes": int(weight.sum()),
    }
