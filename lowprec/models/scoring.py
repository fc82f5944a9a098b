"""How well a model predicts bytes: log-probabilities, and bits per byte overall and by document."""

import math

import jax
import jax.numpy as jnp


def log_probabilities(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Natural log-probability of each token but the first, given those before it.

    Args:
      logits: (..., tokens, vocabulary) float32, as `forward` returns them.
      tokens: (..., tokens) integers.

    Returns:
      (..., tokens - 1) float32; element t belongs to tokens[..., t + 1].

    Raises:
      ValueError: the shapes do not belong together, or there is no second token.

    >>> log_probabilities(jnp.zeros((1, 3, 256)), jnp.zeros((1, 3), jnp.uint8)).shape
    (1, 2)
    """
    if logits.shape[:-1] != tokens.shape or tokens.shape[-1] < 2:
        raise ValueError(
            "`logits` must be (..., tokens, vocabulary) and `tokens` (..., tokens) with at least "
            f"2 tokens, got the shapes {logits.shape} and {tokens.shape}"
        )
    logarithms = jax.nn.log_softmax(logits[..., :-1, :].astype(jnp.float32), axis=-1)
    targets = tokens[..., 1:, None].astype(jnp.int32)
    return jnp.take_along_axis(logarithms, targets, axis=-1)[..., 0]


def bits_per_byte(log_probability: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Mean of -log2 p over the positions where `mask` is True, a float32 scalar.

    Args:
      log_probability: natural logarithms of any shape, as `log_probabilities` returns them.
      mask: bool of the same shape; everything by default. An all-False mask gives NaN.

    >>> bits_per_byte(jnp.log(jnp.full((2, 3), 0.25))).item()
    2.0
    """
    kept = jnp.ones(log_probability.shape, bool) if mask is None else mask
    _check_mask(log_probability, kept)
    total = jnp.sum(jnp.where(kept, log_probability, 0.0))
    return -total / (jnp.sum(kept, dtype=jnp.float32) * math.log(2.0))


def document_bits_per_byte(
    log_probability: jax.Array, mask: jax.Array, document: jax.Array, document_count: int
) -> jax.Array:
    """Bits per byte of every document, (document_count,) float32; NaN for one without targets.

    Args:
      log_probability: (windows, length - 1) natural logarithms.
      mask: (windows, length - 1) bool, the positions that count.
      document: (windows,) integers, the document each window comes from.
      document_count: how many documents there are; static under `jit`.

    >>> halves = jnp.log(jnp.full((2, 3), 0.5))
    >>> document_bits_per_byte(halves, jnp.ones((2, 3), bool), jnp.array([0, 1]), 2).tolist()
    [1.0, 1.0]
    """
    _check_mask(log_probability, mask)
    if document.shape != log_probability.shape[:1]:
        raise ValueError(
            f"`document` must have one entry a window, ({log_probability.shape[0]},), "
            f"got the shape {document.shape}"
        )
    sums = jnp.where(mask, log_probability, 0.0).sum(axis=1)
    totals = jax.ops.segment_sum(sums, document, document_count)
    counts = jax.ops.segment_sum(mask.sum(axis=1, dtype=jnp.float32), document, document_count)
    return -totals / (counts * math.log(2.0))


def _check_mask(log_probability: jax.Array, mask: jax.Array) -> None:
    if mask.shape != log_probability.shape or mask.dtype != bool:
        raise ValueError(
            f"`mask` must be bool of the shape {log_probability.shape}, "
            f"got {mask.dtype} of the shape {mask.shape}"
        )
