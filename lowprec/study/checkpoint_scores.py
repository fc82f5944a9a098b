"""What each pass of an evaluation says of the tokens that came, and how far it is from bf16."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.models.checkpoints.entries import Checkpoint
from lowprec.models.checkpoints.texts import TokenWindows
from lowprec.models.transformer import NamedLinear

SERIES = 0.02
"""Below it e^d - 1 - d is its series to d^4, right to a few parts in 10^7, where differences in
float32 would leave few digits of it."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Scores:
    """One pass over the windows, its numbers for each scored token in float64.

    Attributes:
      bits: -log2 of the probability of the token that came.
      divergence: KL of bf16's distribution to this pass's, in nats.
      flipped: whether the most probable token is another than bf16's.
    """

    bits: NDArray[np.float64]
    divergence: NDArray[np.float64]
    flipped: NDArray[np.float64]


def scored(
    checkpoint: Checkpoint,
    streams: Sequence[jax.Array],
    heads: Sequence[NamedLinear],
    text: TokenWindows,
) -> list[Scores]:
    """The scores of every pass, the first of which is what the others are compared with.

    Logits are of one window at a time, as vocabularies are large.

    Args:
      checkpoint: the model.
      streams: (windows, tokens, width) behind the last layer, of every pass.
      heads: the product of each pass's output head.
      text: the windows.

    Raises:
      ValueError: the first pass gives NaN or Inf: there is nothing to compare with.
    """
    head = checkpoint.architecture.head(checkpoint.weights)
    parts: list[list[tuple[NDArray[np.float64], ...]]] = [[] for _ in streams]
    for window in range(len(text.tokens)):
        tokens, mask = jnp.asarray(text.tokens[window, 1:]), text.mask[window, 1:]
        one = slice(window, window + 1)
        expected = _logarithms(head(streams[0][one], heads[0]))
        if not bool(jnp.all(jnp.isfinite(expected))):
            raise ValueError(
                f"{checkpoint.directory}: the model's own logits in bf16 hold NaN or Inf: are its "
                f"weights whole?"
            )
        for place, stream in enumerate(streams):
            found = expected if not place else _logarithms(head(stream[one], heads[place]))
            numbers = _compared(expected, found, tokens)
            parts[place].append(tuple(np.asarray(x, np.float64)[mask] for x in numbers))
    return [_joined(own) for own in parts]


def _joined(parts: Sequence[tuple[NDArray[np.float64], ...]]) -> Scores:
    bits, divergence, flipped = (np.concatenate(x) for x in zip(*parts, strict=True))
    return Scores(bits=bits, divergence=divergence, flipped=flipped)


@jax.jit
def _logarithms(logits: jax.Array) -> jax.Array:
    """(tokens - 1, vocabulary) of a window's logits (1, tokens, vocabulary)."""
    return jax.nn.log_softmax(logits[0, :-1], axis=-1)


@jax.jit
def _compared(expected: jax.Array, found: jax.Array, tokens: jax.Array) -> tuple[jax.Array, ...]:
    nats = -jnp.take_along_axis(found, tokens[:, None], axis=-1)[:, 0]
    divergence = jnp.sum(_excess(expected, found), axis=-1)
    flipped = jnp.argmax(expected, axis=-1) != jnp.argmax(found, axis=-1)
    return nats / np.float32(np.log(2.0)), divergence, flipped


def _excess(expected: jax.Array, found: jax.Array) -> jax.Array:
    """p (e^d - 1 - d) of each number, d = log q - log p: none is negative.

    They sum to the divergence sum p (-d), as both distributions sum to one, and small divergences
    are not lost among terms of either sign.
    """
    p, d = jnp.exp(expected), found - expected
    series = p * d * d * (0.5 + d * (1 / 6 + d * (1 / 24)))
    # As q - p - p d, where e^d alone may overflow.
    plain = jnp.maximum(jnp.exp(found) - p - p * d, 0.0)
    return jnp.where(jnp.abs(d) < SERIES, series, plain)


def sums(values: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Sums over each window of numbers of the scored tokens, mask (windows, tokens) saying where.

    Example:
      >>> sums(np.ones(3), np.array([[True, True], [False, True]])).tolist()
      [2.0, 1.0]
    """
    found = np.bincount(np.nonzero(mask)[0], values, minlength=len(mask))
    return found.astype(np.float64)
