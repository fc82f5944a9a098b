"""The operands that all recipes are compared on: captured, drawn after cards, and of known kinds.

Every number is one of bfloat16, as what a trained model multiplies is: the product of the operands
as they stand is what a recipe is measured against.
"""

import dataclasses
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lowprec.gemm.recipe import ROLES, Role
from lowprec.models.cards import card
from lowprec.models.operands import Operands
from lowprec.study.accumulation_operands import Card, synthesize

CAPTURED, CARD = "captured", "card"
Numbers = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is compared; see experiments/gemm_recipes.toml.

    Attributes:
      seed: of all random numbers.
      documents: whose operands are captured.
      outputs: rows and columns of each product that are looked at.
      vectors: rows of both operands that are drawn.
      families: names of `FAMILIES`.
      depth, seeds: K of the families, and how many pairs of operands each.
      card_layer: whose operands' cards are drawn after, in all three roles.
      card_depths, card_seeds: K of those, of which dgrad and wgrad have the first alone, and how
        many pairs each.
    """

    seed: int
    documents: int
    outputs: int
    vectors: int
    families: tuple[str, ...]
    depth: int
    seeds: int
    card_layer: str
    card_depths: tuple[int, ...]
    card_seeds: int


def read_config(path: Path) -> Config:
    """Reads what is compared.

    Raises:
      ValueError: a key that does not belong there, one that is missing, or a family that there is
        not.
    """
    table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    try:
        config = Config(**fields)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error
    unknown = set(config.families) - set(FAMILIES)
    if unknown:
        raise ValueError(
            f"{path}: families = {sorted(unknown)}; there are {', '.join(sorted(FAMILIES))}"
        )
    return config


class Pair(NamedTuple):
    """The operands of one product, both float32 with the contraction axis last.

    Attributes:
      unit: what intervals are taken over: a layer, or a seed.
      a: (M, K).
      b: (N, K), the second operand transposed.
    """

    unit: str
    a: NDArray[np.float32]
    b: NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Group:
    """Products of one kind and role, on which every recipe gets one figure with an interval.

    Attributes:
      family: `captured`, `card`, or of `FAMILIES`.
      role: whose operand pair of a recipe applies.
      k: their depth; 0 where it differs between them.
      pairs: makes the operands.
    """

    family: str
    role: Role
    k: int
    pairs: Callable[[], list[Pair]]


def student_t(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Student's t with 3 degrees of freedom, whose variance is finite and whose kurtosis is not."""
    return rng.standard_t(3, shape) / math.sqrt(3)


def outlier_channels(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Normal numbers, of which every hundredth channel on average is 20 times as large."""
    scales = np.where(rng.random(shape[1]) < 0.01, 20.0, 1.0)
    return rng.standard_normal(shape) * scales


def massive_activations(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Normal numbers, but for two channels of one vector in 32 that are 300, of either sign.

    Massive activations as in arXiv 2402.17762: the same few channels of few tokens, hundreds of
    times as large as the rest.
    """
    x = rng.standard_normal(shape)
    channels = rng.choice(shape[1], 2, replace=False)
    x[np.ix_(np.arange(0, shape[0], 32), channels)] = 300 * rng.choice([-1.0, 1.0], 2)
    return x


def _normal(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    return rng.standard_normal(shape)


def _laplace(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    return rng.laplace(scale=math.sqrt(0.5), size=shape)


FAMILIES: Mapping[str, tuple[Numbers, Numbers]] = {
    "gaussian": (_normal, _normal),
    "laplace": (_laplace, _laplace),
    "student_t": (student_t, student_t),
    "outlier_channels": (outlier_channels, _normal),
    "massive_activations": (massive_activations, _normal),
}
"""What draws both operands of each family; all have the variance 1 where nothing is outlying."""


def captured_group(layers: Sequence[Operands], role: Role) -> Group:
    """The products of captured layers in one role."""

    def pairs() -> list[Pair]:
        found = [(layer.layer, *layer.product(role)) for layer in layers]
        return [Pair(name, plain(a), plain(b.T)) for name, a, b in found]

    return Group(family=CAPTURED, role=role, k=0, pairs=pairs)


def synthetic_groups(config: Config, layers: Sequence[Operands]) -> Iterator[Group]:
    """The families, and what is drawn after the cards of a layer's operands in every role.

    Raises:
      ValueError: the layer was not captured.
    """
    for name in config.families:
        draws = FAMILIES[name]
        yield _drawn(config, name, "fprop", config.depth, config.seeds, draws)
    layer = next((x for x in layers if x.layer == config.card_layer), None)
    if layer is None:
        raise ValueError(
            f"card_layer = {config.card_layer!r}; captured are {', '.join(x.layer for x in layers)}"
        )
    for role in ROLES:
        a, b = layer.product(role)
        cards = _after(_card(a)), _after(_card(b.T))
        for depth in config.card_depths if role == "fprop" else config.card_depths[:1]:
            yield _drawn(config, CARD, role, depth, config.card_seeds, cards)


def _drawn(
    config: Config, family: str, role: Role, depth: int, seeds: int, draws: tuple[Numbers, Numbers]
) -> Group:
    def numbers(seed: int, side: int) -> NDArray[np.float32]:
        place = [config.seed, seed, side, ROLES.index(role), depth]
        rng = np.random.default_rng([*place, *family.encode()])
        return plain(draws[side](rng, (config.vectors, depth)))

    def pairs() -> list[Pair]:
        return [Pair(f"seed {i}", numbers(i, 0), numbers(i, 1)) for i in range(seeds)]

    return Group(family=family, role=role, k=depth, pairs=pairs)


def _card(x: NDArray) -> Card:
    found = card(x, 1)
    return Card(found.rms, found.excess_kurtosis, found.outlier_channel_ratio, x.shape[1])


def _after(of: Card) -> Numbers:
    return lambda rng, shape: synthesize(of, rng, shape)


def plain(x: NDArray) -> NDArray[np.float32]:
    """As float32, rounded to bfloat16 before."""
    return np.ascontiguousarray(x.astype(ml_dtypes.bfloat16).astype(np.float32))
