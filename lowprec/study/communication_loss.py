"""The held-out loss of the small model when what its layers send each other is quantized."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.models.corpus import Windows
from lowprec.models.parameters import Parameters, TransformerConfig, linear_shapes
from lowprec.models.scoring import log_probabilities
from lowprec.models.transformer import bfloat16_linear, forward, round_to_bfloat16
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block
from lowprec.scaling.cast import cast
from lowprec.study.intervals import paired_interval
from lowprec.study.products import qualified

COMBINED = ("attention.o", "mlp.down")
"""Layers whose outputs are added to the residual stream: what LogFMT's authors quantized."""
BATCH = 14


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossRow:
    """Loss in bits per byte with the residual branches' outputs in one format, over another's.

    `relative` and its interval are the increase over the baseline's loss.
    """

    target: str
    baseline: str
    documents: int
    bytes: int
    bits_per_byte: float
    increase: float
    low: float
    high: float
    relative: float
    relative_low: float
    relative_high: float


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Loss:
    """Bits that the bytes of each document take.

    Attributes:
      target: what was sent.
      bits, bytes: (documents,) float64.
    """

    target: str
    bits: NDArray[np.float64]
    bytes: NDArray[np.float64]


def document_loss(
    params: Parameters, config: TransformerConfig, text: Windows, target: Format | Block
) -> Loss:
    """Runs the model over windows with the outputs of `COMBINED` sent in a format.

    What is sent is bfloat16 before. Everything else is as the model does it by default.
    """
    padded = np.pad(text.tokens, [(0, -len(text.tokens) % BATCH), (0, 0)])
    batches = [
        np.asarray(_log_probabilities(params, jnp.asarray(part), config, target))
        for part in np.split(padded, len(padded) // BATCH)
    ]
    bits = -np.concatenate(batches)[: len(text.tokens)].astype(np.float64) / math.log(2)
    count = text.document_count
    sums = np.bincount(text.document, np.sum(bits, axis=1, where=text.mask), minlength=count)
    sizes = np.bincount(text.document, text.mask.sum(axis=1), minlength=count)
    some = sizes > 0
    return Loss(
        target=qualified(target),
        bits=sums[some].astype(np.float64),
        bytes=sizes[some].astype(np.float64),
    )


@functools.partial(jax.jit, static_argnames=("config", "target"))
def _log_probabilities(
    params: Parameters, tokens: jax.Array, config: TransformerConfig, target: Format | Block
) -> jax.Array:
    def linear(x: jax.Array, w: jax.Array, sent: Any) -> jax.Array:
        y = bfloat16_linear(x, w)
        return y if sent is None else cast(round_to_bfloat16(y), target)

    names = linear_shapes(config)
    states = {name: jnp.zeros(config.layers) if name in COMBINED else None for name in names}
    return log_probabilities(forward(params, tokens, config, linear=linear, states=states), tokens)


def loss_row(baseline: Loss, other: Loss, *, seed: int) -> LossRow:
    """How much more one takes than the other, paired by document."""
    increase, low, high = paired_interval(other.bits - baseline.bits, baseline.bytes, seed=seed)
    ours, theirs = (float(x.bits.sum() / x.bytes.sum()) for x in (other, baseline))
    return LossRow(
        target=other.target,
        baseline=baseline.target,
        documents=other.bits.size,
        bytes=int(other.bytes.sum()),
        bits_per_byte=ours,
        increase=increase,
        low=low,
        high=high,
        relative=increase / theirs,
        relative_low=low / theirs,
        relative_high=high / theirs,
    )


def loss_rows(losses: Sequence[Loss], baseline: str, *, seed: int) -> list[LossRow]:
    """Every other loss over that of the baseline.

    Raises:
      ValueError: the baseline is not among them.
    """
    found = {loss.target: loss for loss in losses}
    if baseline not in found:
        raise ValueError(f"`baseline` = {baseline!r} is not among {', '.join(found)}")
    others = [loss for loss in losses if loss.target != baseline]
    return [loss_row(found[baseline], loss, seed=seed) for loss in others]
