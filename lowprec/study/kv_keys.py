"""Planted keys asked for again at growing distance, through a method's caches."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.models.copy_spans import PlantedKeys, score_keys
from lowprec.study.intervals import paired_interval
from lowprec.study.kv_model import in_batches

LEAST_EXACT = 0.5
"""Of the keys at a distance, bfloat16 has to find so many for a method to be judged there."""

Z = 1.959963984540054
"""Of a 95 % interval, the normal distribution's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KvKeyRow:
    """How many planted keys a model finds through a method's caches, at one distance.

    Attributes:
      method: `kv:NAME`.
      model: `gqa` or `mla`.
      bits: of a number in a cache of a window.
      bytes_per_token: in all layers of the model.
      distance: bytes from the planted key to the one asked for.
      cases, digits: keys, and hexadecimal digits of each.
      exact, low, high: the share of keys found whole, with Wilson's 95 % interval.
      exact_bf16: the same of bfloat16 caches.
      bits_per_digit: the mean of -log2 p of the key's digits.
      increase, increase_low, increase_high: of it over bfloat16's, paired by case, with a 95 %
        interval.
      chance_exact, chance_bits: of guessing.
    """

    method: str
    model: str
    bits: float
    bytes_per_token: float
    distance: int
    cases: int
    digits: int
    exact: float
    low: float
    high: float
    exact_bf16: float
    bits_per_digit: float
    increase: float
    increase_low: float
    increase_high: float
    chance_exact: float
    chance_bits: float


class Found(NamedTuple):
    """Of every window: bits a digit, and whether the key is found whole."""

    bits: np.ndarray
    exact: np.ndarray


class Size(NamedTuple):
    """Of a cache of a window: bits of a number, and bytes of a token in all layers."""

    bits: float
    bytes_per_token: float


def find_keys(score: Callable[[jax.Array], jax.Array], asked: PlantedKeys) -> Found:
    """Asks for every key.

    Args:
      score: (windows, tokens) integers to logarithms of probabilities, (..., vocabulary).
    """

    def both(tokens: jax.Array) -> jax.Array:
        bits, exact = score_keys(score(tokens), tokens, asked.digits)
        return jnp.stack([bits, exact.astype(jnp.float32)], axis=-1)

    bits, exact = in_batches(both, asked.tokens).T
    return Found(bits.astype(np.float64), exact != 0)


def answered(asked: PlantedKeys, baseline: Found) -> list[int]:
    """The distances at which bfloat16 finds enough keys for others to be judged."""
    distances = np.unique(asked.distance)
    return [int(x) for x in distances if baseline.exact[asked.distance == x].mean() >= LEAST_EXACT]


def key_rows(
    name: str,
    model: str,
    size: Size,
    asked: PlantedKeys,
    baseline: Found,
    found: Found,
    *,
    seed: int,
) -> list[KvKeyRow]:
    """A row for each distance at which bfloat16 finds at least half of the keys.

    Args:
      name: of the method.
      seed: of the bootstrap over cases.
    """
    rows = []
    for distance in answered(asked, baseline):
        here = asked.distance == distance
        count = int(here.sum())
        exact = float(found.exact[here].mean())
        low, high = wilson(exact, count)
        difference = found.bits[here] - baseline.bits[here]
        increase = paired_interval(difference, np.ones(count), seed=seed)
        rows.append(
            KvKeyRow(
                method=f"kv:{name}",
                model=model,
                bits=size.bits,
                bytes_per_token=size.bytes_per_token,
                distance=distance,
                cases=count,
                digits=asked.digits,
                exact=exact,
                low=low,
                high=high,
                exact_bf16=float(baseline.exact[here].mean()),
                bits_per_digit=float(found.bits[here].mean()),
                increase=increase[0],
                increase_low=increase[1],
                increase_high=increase[2],
                chance_exact=asked.chance_exact,
                chance_bits=asked.chance_bits,
            )
        )
    return rows


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count`.

    Example:
      >>> [round(x, 3) for x in wilson(0.5, 100)]
      [0.404, 0.596]
    """
    spread = Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def unanswered(asked: PlantedKeys, baseline: Found) -> Sequence[tuple[int, float]]:
    """The other distances, and the share of keys that bfloat16 finds there."""
    judged = set(answered(asked, baseline))
    return [
        (int(x), float(baseline.exact[asked.distance == x].mean()))
        for x in np.unique(asked.distance)
        if int(x) not in judged
    ]
