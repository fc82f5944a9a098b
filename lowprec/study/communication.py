"""Formats that move activations: what they do to a tensor, and how many bytes a token takes.

Every tensor is bfloat16 when it is sent, as a model's activations are; errors are against the
float32 values before. A unit is a document or a seed: what is compared is compared on the same
units, and intervals are over them.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.metrics import measure
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block, get_format_or_block
from lowprec.scaling.quantize import quantize
from lowprec.study.communication_tensors import Sent
from lowprec.study.formats import there_and_back
from lowprec.study.intervals import paired_interval
from lowprec.study.products import qualified

Outcome = Literal["more", "less", "not resolved"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentRow:
    """One tensor in one format.

    `flushed` is the share of elements other than zero that become zero; `relative_rms` the root
    mean square of |error| / |x| over elements other than zero, the flushed ones, whose ratio is 1,
    included; `largest_relative` the largest of the others.
    """

    stage: str
    tensor: str
    target: str
    units: int
    numbers: int
    sqnr_db: float
    gain: float
    gain_standard_error: float
    residual_sqnr_db: float
    flushed: float
    relative_rms: float
    largest_relative: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRow:
    """All tensors of a stage in one format: the mean over tensors of their SQNR, and its interval.

    `bits_per_element` counts scales in a token of `channels`; `least_db` and `most_db` are those of
    single tensors.
    """

    stage: str
    target: str
    channels: int
    bits_per_element: float
    bytes_per_token: float
    tensors: int
    units: int
    sqnr_db: float
    low_db: float
    high_db: float
    least_db: float
    most_db: float
    gain: float
    flushed: float
    relative_rms: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeadRow:
    """How much less noise one format leaves than another in a stage, in dB, paired."""

    stage: str
    target: str
    baseline: str
    tensors: int
    units: int
    lead_db: float
    low_db: float
    high_db: float
    outcome: Outcome


class Noise(NamedTuple):
    """A tensor in one format, unit by unit.

    Attributes:
      row: over all units.
      signal, noise: (units,) sums of squares.
    """

    row: SentRow
    signal: NDArray[np.float64]
    noise: NDArray[np.float64]


def send(tensor: Sent, target: Format | Block) -> Noise:
    """What a tensor becomes that is rounded to bfloat16, quantized, sent and dequantized.

    Example:
      >>> ones = Sent("ones", "ones", np.full((2, 4, 128), 1.001, np.float32))
      >>> send(ones, get_format_or_block("bfloat16")).row.relative_rms.__round__(6)
      0.000999
    """
    units, tokens, channels = tensor.values.shape
    # All tokens at once: no scale spans two, and programs are compiled once a shape.
    rows = jnp.asarray(tensor.values.reshape(units * tokens, channels)).astype(jnp.bfloat16)
    received, _ = there_and_back(target, rows, 0)
    y = np.asarray(received).astype(np.float64).reshape(units, -1)
    x = tensor.values.astype(np.float64).reshape(units, -1)
    error, some = np.abs(y - x), x != 0
    lost = some & (y == 0)
    relative = error[some] / np.abs(x[some])
    kept = relative[~lost[some]]
    measures = measure(y, x)
    row = SentRow(
        stage=tensor.stage,
        tensor=tensor.name,
        target=qualified(target),
        units=units,
        numbers=x.size,
        sqnr_db=measures.sqnr_db,
        gain=measures.gain,
        gain_standard_error=measures.gain_standard_error,
        residual_sqnr_db=measures.residual_sqnr_db,
        flushed=float(np.mean(lost)),
        relative_rms=float(np.sqrt(np.mean(relative**2))) if relative.size else math.nan,
        largest_relative=float(kept.max()) if kept.size else math.nan,
    )
    return Noise(row, np.sum(x * x, axis=1), np.sum(error**2, axis=1))


@functools.cache
def bits_per_element(target: Format | Block, channels: int) -> float:
    """Bits of an element of a token of so many channels, scales included.

    Example:
      >>> from lowprec.scaling.block import get_block
      >>> round(bits_per_element(get_block("int8_token"), 7168) * 7168 / 8)
      7172
    """
    if isinstance(target, Format):
        return float(target.bits)
    token = jax.ShapeDtypeStruct((1, channels), jnp.float32)
    sent = jax.eval_shape(functools.partial(quantize, block=target), token)
    return sent.bits_per_element


def stage_row(found: Sequence[Noise], channels: int, *, seed: int) -> StageRow:
    """One format on all tensors of a stage, which have the same units.

    Args:
      found: one a tensor.
      channels: of the token whose bytes are counted.
      seed: of the bootstrap over units.

    Raises:
      ValueError: a unit without signal or without error.
    """
    first, rows = found[0].row, [x.row for x in found]
    target = get_format_or_block(first.target.partition(":")[2])
    by_unit = np.mean([_decibels(x.signal, x.noise) for x in found], axis=0)
    mean, low, high = paired_interval(by_unit, np.ones_like(by_unit), seed=seed)
    bits = bits_per_element(target, channels)
    return StageRow(
        stage=first.stage,
        target=first.target,
        channels=channels,
        bits_per_element=bits,
        bytes_per_token=bits * channels / 8,
        tensors=len(found),
        units=first.units,
        sqnr_db=mean,
        low_db=low,
        high_db=high,
        least_db=min(row.sqnr_db for row in rows),
        most_db=max(row.sqnr_db for row in rows),
        gain=float(np.mean([row.gain for row in rows])),
        flushed=float(np.mean([row.flushed for row in rows])),
        relative_rms=float(np.sqrt(np.mean([row.relative_rms**2 for row in rows]))),
    )


def lead_row(target: Sequence[Noise], baseline: Sequence[Noise], *, seed: int) -> LeadRow:
    """How far the noise of one format lies below that of another, tensor by tensor, unit by unit.

    Raises:
      ValueError: the two are not of the same tensors.
    """
    names = [[x.row.tensor for x in found] for found in (target, baseline)]
    if names[0] != names[1] or not names[0]:
        raise ValueError(f"`target` has the tensors {names[0]}, `baseline` {names[1]}")
    pairs = zip(target, baseline, strict=True)
    by_unit = np.mean([_decibels(b.noise, a.noise) for a, b in pairs], axis=0)
    lead, low, high = paired_interval(by_unit, np.ones_like(by_unit), seed=seed)
    return LeadRow(
        stage=target[0].row.stage,
        target=target[0].row.target,
        baseline=baseline[0].row.target,
        tensors=len(target),
        units=target[0].row.units,
        lead_db=lead,
        low_db=low,
        high_db=high,
        outcome=outcome(low, high),
    )


def outcome(low: float, high: float) -> Outcome:
    """Whether an interval lies above zero, below it or around it."""
    return "more" if low > 0 else "less" if high < 0 else "not resolved"


def by_stage(found: Mapping[str, Sequence[Noise]]) -> dict[tuple[str, str], list[Noise]]:
    """By stage and target: each distribution of synthetic tensors is a stage of its own."""
    grouped: dict[tuple[str, str], list[Noise]] = {}
    for target, noises in found.items():
        for one in noises:
            grouped.setdefault((one.row.stage, target), []).append(one)
    return grouped


def _decibels(numerator: NDArray, denominator: NDArray) -> NDArray:
    if not (numerator.all() and denominator.all()):
        raise ValueError("a unit without signal or without error has no ratio in decibels")
    return 10 * np.log10(numerator / denominator)
