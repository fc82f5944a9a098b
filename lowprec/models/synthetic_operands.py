"""Operands drawn after their cards alone: numbers of like size and like tails, and nothing else."""

import math
import zlib
from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lowprec.models.array_checks import quoted
from lowprec.models.cards import OperandCard
from lowprec.models.operands import ROLES, Operands

WIDEST = 13.0
"""The widest spread of the logarithms of channels' scales: e^(4 s^2) is still a float64."""


class Card(NamedTuple):
    """What of a captured operand's card a synthetic one keeps.

    Attributes:
      rms, excess_kurtosis, outlier_channel_ratio: as `lowprec.models.cards.OperandCard`.
      channels: how many the captured operand had, of which the outlier is the largest.
    """

    rms: float
    excess_kurtosis: float
    outlier_channel_ratio: float
    channels: int


def synthesize(card: Card, rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Numbers after a card: (vectors, K), independent but for the size of their channel.

    A channel's scale is exp(s z), z normal, with s such that the largest of as many channels as
    were captured is expected at `outlier_channel_ratio` times the median. The numbers of a channel
    are its scale times Student's t with the degrees of freedom that make the kurtosis of the whole
    the card's: scales alone give 3 exp(4 s^2), and where that is enough the numbers are normal.
    The rms is the card's. What the card does not say is not there: means, directions that vectors
    share, and any relation between the two operands of a product.

    Args:
      card: of the captured operand.
      rng: where the numbers come from.
      shape: vectors and K, which may exceed the captured ones.

    Raises:
      ValueError: an `outlier_channel_ratio` beyond any that scales in float64 can have.
    """
    vectors, depth = shape
    place = (card.channels - 0.375) / (card.channels + 0.25)  # Blom 1958: the largest of n
    spread = math.log(max(card.outlier_channel_ratio, 1.0)) / NormalDist().inv_cdf(place)
    if spread > WIDEST:
        raise ValueError(
            f"`outlier_channel_ratio` = {card.outlier_channel_ratio:g} among {card.channels} "
            f"channels is more than {math.exp(WIDEST * NormalDist().inv_cdf(place)):.1g}, beyond "
            f"which no operands are drawn"
        )
    scales = np.exp(spread * rng.standard_normal(depth))
    excess = (card.excess_kurtosis + 3) / math.exp(4 * spread**2) - 3
    if excess > 0:
        freedom = 4 + 6 / excess
        numbers = rng.standard_t(freedom, (vectors, depth)) / math.sqrt(freedom / (freedom - 2))
    else:
        numbers = rng.standard_normal((vectors, depth))
    return numbers * (scales * card.rms / math.exp(spread**2))


def synthetic_operands(
    cards: Mapping[str, OperandCard], *, seed: int, rows: int | None = None
) -> list[Operands]:
    """Layers drawn after cards, as `lowprec.models.card_files.read_cards` gives them.

    Args:
      cards: by tensor, `LAYER.x`, `LAYER.w` and `LAYER.dy`; other names are passed over, and layers
        without two of these.
      seed: of the numbers; each tensor's also depend on its name.
      rows: tokens of x and dy, by default as many as were captured.

    Returns:
      Layers sorted by name, each number one of the type on the card and none above its `amax`,
      which the few that would be are cut to.

    Raises:
      ValueError: a card that no operands can be drawn after; the message names it.

    Example:
      >>> from lowprec.models.cards import card
      >>> cards = {f"fc.{x}": card(np.eye(4, dtype=np.float32)) for x in ("x", "w")}
      >>> synthetic_operands(cards, seed=0, rows=8)[0].x.shape
      (8, 4)
    """
    layers: dict[str, dict[str, NDArray]] = {}
    for name, card in sorted(cards.items()):
        layer, _, member = name.rpartition(".")
        if member not in {x for pair in ROLES.values() for x in pair}:
            continue
        count = rows if member != "w" else None
        layers.setdefault(layer, {})[member] = _drawn(name, card, seed, count)
    return [
        Operands(layer, **{member: x for member, x in members.items()})
        for layer, members in layers.items()
        if len(members) > 1
    ]


def _drawn(name: str, card: OperandCard, seed: int, rows: int | None) -> NDArray:
    """A matrix of the card's shape, or of so many rows, channels along its contraction axis."""
    shape = (card.shape[0] if rows is None else rows, card.shape[1])
    vectors, channels = (shape[1 - card.axis], shape[card.axis])
    # One channel is no outlier among others: as many as two give it a place.
    count = max(card.shape[card.axis], 2)
    kept = Card(card.rms, card.excess_kurtosis, card.outlier_channel_ratio, count)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    try:
        numbers = synthesize(kept, rng, (vectors, channels))
    except (ValueError, MemoryError) as error:
        raise ValueError(f"card {quoted(name)} of shape {card.shape}: {error}") from error
    numbers = np.clip(numbers, -card.amax, card.amax)
    x = numbers if card.axis == 1 else numbers.T
    dtype = np.dtype(getattr(ml_dtypes, card.dtype, card.dtype))
    return np.ascontiguousarray(x.astype(np.float32).astype(dtype))
