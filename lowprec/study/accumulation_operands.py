"""Operands of a study of accumulation: random numbers of a kind, or drawn after a captured card."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.models.synthetic_operands import Card as Card
from lowprec.models.synthetic_operands import synthesize as synthesize
from lowprec.numerics.format import Format
from lowprec.scaling.cast import cast
from lowprec.study.accumulation_config import Config, Distribution

Draw = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]
KINDS: dict[str, Draw] = {
    "uniform": lambda rng, shape: rng.random(shape),
    "symmetric": lambda rng, shape: 2 * rng.random(shape) - 1,
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "half_normal": lambda rng, shape: np.abs(rng.standard_normal(shape)),
    "rectified": lambda rng, shape: np.maximum(rng.standard_normal(shape), 0),
}
"""Kinds of independent numbers: U(0, 1), U(-1, 1), N(0, 1), its magnitude, its positive part."""
CARD = "card:"


class Operands(NamedTuple):
    """Pairs of matrices in float32, each number one of the format's.

    Attributes:
      a: (seeds, rows, K).
      b: (seeds, K, columns).
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]


def read_cards(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a report's cards.csv by the operand's name."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        return {row["tensor"]: row for row in csv.DictReader(file)}


def card_of(row: Mapping[str, str]) -> Card:
    """The card of a row of cards.csv; channels lie along the contraction axis."""
    channels = row["columns"] if row["tensor"].endswith(".x") else row["rows"]
    return Card(
        rms=float(row["rms"]),
        excess_kurtosis=float(row["excess_kurtosis"]),
        outlier_channel_ratio=float(row["outlier_channel_ratio"]),
        channels=int(channels),
    )


def draw(
    distribution: Distribution, config: Config, fmt: Format, cards: Mapping[str, Card]
) -> Operands:
    """The operands of every seed, rounded to the format, to nearest even.

    Raises:
      ValueError: a kind that there is not, or a card that is missing.
    """
    sides = []
    for side, (name, vectors) in enumerate(
        ((distribution.a, config.rows), (distribution.b, config.columns))
    ):
        number = _source(name, cards)
        drawn = np.stack(
            [
                number(np.random.default_rng([config.seed, seed, side]), (vectors, config.depth))
                for seed in range(config.seeds)
            ]
        )
        if distribution.scaled:
            drawn *= fmt.max / np.abs(drawn).max(axis=(1, 2), keepdims=True)
        sides.append(np.asarray(cast(jnp.asarray(drawn.astype(np.float32)), fmt)))
    return Operands(sides[0], np.ascontiguousarray(sides[1].transpose(0, 2, 1)))


def _source(name: str, cards: Mapping[str, Card]) -> Draw:
    if name in KINDS:
        return KINDS[name]
    tensor = name.removeprefix(CARD)
    if tensor == name or tensor not in cards:
        raise ValueError(
            f"no numbers are called {name!r}; use {', '.join(KINDS)}, or {CARD} and one of "
            f"{', '.join(cards) or 'no cards'}"
        )
    card = cards[tensor]
    return lambda rng, shape: synthesize(card, rng, shape)
