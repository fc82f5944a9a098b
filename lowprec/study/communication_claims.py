"""What is published of LogFMT, asked of captured and synthetic tensors and of the small model."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lowprec.metrics import gain
from lowprec.scaling.block import Block, get_block, get_format_or_block
from lowprec.study.communication import LeadRow, Noise, lead_row
from lowprec.study.communication_loss import Loss, loss_row
from lowprec.study.communication_tensors import Sent
from lowprec.study.formats import there_and_back
from lowprec.study.intervals import paired_interval
from lowprec.study.products import qualified

Kind = Literal["better", "near", "unbiased"]
Verdict = Literal["reproduced", "not reproduced", "not resolved"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A published statement about a block.

    Attributes:
      text: what is claimed.
      kind: `better` than the baseline, `near` it, or `unbiased`.
      target, baseline: entries; the baseline is empty for `unbiased`.
    """

    text: str
    kind: Kind
    target: str
    baseline: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """One measure that a claim can be held against.

    `value` and its 95 % interval are of `measure`: `error`, dB of less noise than the baseline;
    `loss`, the relative increase over the loss under the baseline; `gain`, that of products of the
    tensor, minus 1. `baseline_value` is the gain of rounding in logarithmic space, else NaN.
    """

    claim: str
    target: str
    baseline: str
    measure: Literal["error", "loss", "gain"]
    where: str
    units: int
    value: float
    low: float
    high: float
    baseline_value: float
    verdict: Verdict


def better(low: float, high: float) -> Verdict:
    """Whether what should lie above zero does."""
    return "reproduced" if low > 0 else "not reproduced" if high < 0 else "not resolved"


def near(low: float, high: float, margin: float) -> Verdict:
    """Whether what should be within a margin of zero is.

    Example:
      >>> near(-0.1, 0.2, 0.5), near(0.4, 0.6, 0.5), near(0.6, 0.8, 0.5)
      ('reproduced', 'not resolved', 'not reproduced')
    """
    if -margin <= low and high <= margin:
        return "reproduced"
    return "not reproduced" if low > margin or high < -margin else "not resolved"


def unbiased(own: tuple[float, float], other: tuple[float, float]) -> Verdict:
    """Whether one interval is around zero and the other is not."""
    around = [low <= 0 <= high for low, high in (own, other)]
    if around[1]:
        return "not resolved" if around[0] else "not reproduced"
    return "reproduced" if around[0] else "not reproduced"


def error_rows(
    claim: Claim, found: Mapping[tuple[str, str], Sequence[Noise]], *, seed: int
) -> Iterator[ClaimRow]:
    """`better`, by the noise in every stage."""
    stages = dict.fromkeys(stage for stage, _ in found)
    for stage in stages:
        own, other = (found[stage, name] for name in (claim.target, claim.baseline))
        lead: LeadRow = lead_row(own, other, seed=seed)
        ends = lead.low_db, lead.high_db
        yield _row(
            claim, "error", stage, lead.units, (lead.lead_db, *ends), better(*ends), float("nan")
        )


def loss_claim(claim: Claim, losses: Mapping[str, Loss], *, margin: float, seed: int) -> ClaimRow:
    """`better` or `near`, by the loss of the small model."""
    row = loss_row(losses[claim.baseline], losses[claim.target], seed=seed)
    value, low, high = row.relative, row.relative_low, row.relative_high
    verdict = near(low, high, margin) if claim.kind == "near" else better(-high, -low)
    return _row(claim, "loss", "combine", row.documents, (value, low, high), verdict, float("nan"))


def gain_rows(claim: Claim, tensors: Sequence[Sent], *, seed: int) -> Iterator[ClaimRow]:
    """`unbiased`, by the gain in every stage: of the block, and of rounding its logarithms."""
    block = get_block(claim.target)
    for stage in dict.fromkeys(tensor.stage for tensor in tensors):
        some = [tensor for tensor in tensors if tensor.stage == stage]
        own = np.mean([_gains(tensor, block, linear=True) for tensor in some], axis=0)
        other = np.mean([_gains(tensor, block, linear=False) for tensor in some], axis=0)
        ours, theirs = (paired_interval(x, np.ones_like(x), seed=seed) for x in (own, other))
        verdict = unbiased(ours[1:], theirs[1:])
        yield _row(claim, "gain", stage, own.size, ours, verdict, theirs[0])


def _gains(tensor: Sent, block: Block, *, linear: bool) -> NDArray[np.float64]:
    """(units,) slopes minus 1 of what is received on what is sent, which is bfloat16."""
    units, tokens, channels = tensor.values.shape
    sent = tensor.values.reshape(units * tokens, channels).astype(ml_dtypes.bfloat16)
    if linear:
        received = np.asarray(there_and_back(block, jnp.asarray(sent), 0)[0])
    else:
        received = rounded_in_log_space(sent.astype(np.float64), block)
    pairs = (x.astype(np.float64).reshape(units, -1) for x in (received, sent))
    return np.array([gain(y, x)[0] for y, x in zip(*pairs, strict=True)])


def rounded_in_log_space(x: NDArray[np.float64], block: Block) -> NDArray[np.float64]:
    """LogFMT's levels, each magnitude at that whose logarithm is nearest to its own.

    What lies nearer to the level below the lowest becomes zero. In float64: an illustration of what
    LogFMT avoids, and no code of it.

    Args:
      x: (rows, columns), whole tiles or a ragged last one.
      block: logarithmic, with tiles of one row.
    """
    spec, columns = block.logarithmic, block.tile[1]
    assert spec is not None and columns != "all"
    levels = 2 ** (block.element.bits - 1)
    padded = np.pad(x, [(0, 0), (0, -x.shape[1] % columns)])
    tiles = padded.reshape(-1, columns)
    size = np.abs(tiles)
    some = size.max(axis=1, keepdims=True) > 0
    largest = np.where(some, size.max(axis=1, keepdims=True), 1.0)
    smallest = np.min(np.where(size > 0, size, largest), axis=1, keepdims=True)
    high = np.log2(largest)
    low = np.maximum(np.log2(smallest), high - spec.octaves)
    step = np.where(high > low, high - low, 1.0) / (levels - 2)
    place = np.rint((np.log2(np.where(size > 0, size, largest)) - low) / step)
    y = np.where(place < 0, 0.0, np.sign(tiles) * np.exp2(low + place * step))
    return y.reshape(padded.shape)[:, : x.shape[1]]


def _row(
    claim: Claim,
    measure: Literal["error", "loss", "gain"],
    where: str,
    units: int,
    estimate: tuple[float, float, float],
    verdict: Verdict,
    baseline_value: float,
) -> ClaimRow:
    value, low, high = estimate
    return ClaimRow(
        claim=claim.text,
        target=_qualified(claim.target),
        baseline=_qualified(claim.baseline),
        measure=measure,
        where=where,
        units=units,
        value=value,
        low=low,
        high=high,
        baseline_value=baseline_value,
        verdict=verdict,
    )


def _qualified(name: str) -> str:
    return qualified(get_format_or_block(name)) if name else ""
