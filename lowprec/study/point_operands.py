"""The operands of a point of a study: numbers of a named distribution, or a layer of a file.

What is drawn follows from the declared seed, the distribution, the side and the operand's own shape
alone, so that every recipe of a study meets the same numbers, wherever and whenever it runs.
"""

import dataclasses
import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lowprec.catalogue import unknown
from lowprec.models.operands import Operands, as_narrow, load_layers
from lowprec.models.synthetic_operands import Card, synthesize

Shape = tuple[int, int]
Numbers = NDArray[np.float64]


def gaussian(rng: np.random.Generator, shape: Shape, *, scale: float = 1.0) -> Numbers:
    """N(0, scale^2)."""
    return scale * rng.standard_normal(shape)


def laplace(rng: np.random.Generator, shape: Shape, *, scale: float = 1.0) -> Numbers:
    """Laplace's distribution with the standard deviation `scale`."""
    return rng.laplace(scale=scale * math.sqrt(0.5), size=shape)


def uniform(
    rng: np.random.Generator, shape: Shape, *, low: float = -1.0, high: float = 1.0
) -> Numbers:
    """U(low, high)."""
    return rng.uniform(low, high, shape)


def student_t(rng: np.random.Generator, shape: Shape, *, degrees: float = 3.0) -> Numbers:
    """Student's t with so many degrees of freedom, over its standard deviation where it has one."""
    spread = math.sqrt(degrees / (degrees - 2)) if degrees > 2 else 1.0
    return rng.standard_t(degrees, shape) / spread


def lognormal(rng: np.random.Generator, shape: Shape, *, sigma: float = 1.0) -> Numbers:
    """exp(sigma N(0, 1)) with a random sign."""
    return np.exp(sigma * rng.standard_normal(shape)) * rng.choice([-1.0, 1.0], shape)


def outlier_channels(
    rng: np.random.Generator, shape: Shape, *, share: float = 0.01, factor: float = 20.0
) -> Numbers:
    """N(0, 1), of which a share of the channels, on average, is so many times as large."""
    factors = np.where(rng.random(shape[1]) < share, factor, 1.0)
    return rng.standard_normal(shape) * factors


def massive_activations(
    rng: np.random.Generator,
    shape: Shape,
    *,
    value: float = 300.0,
    channels: int = 2,
    every: int = 32,
) -> Numbers:
    """N(0, 1), but for a few channels of one vector in so many, of either sign.

    As in arXiv 2402.17762: the same few channels of few tokens, hundreds of times as large.
    """
    x = rng.standard_normal(shape)
    chosen = rng.choice(shape[1], min(channels, shape[1]), replace=False)
    signs = rng.choice([-1.0, 1.0], len(chosen))
    x[np.ix_(np.arange(0, shape[0], every), chosen)] = value * signs
    return x


def card(
    rng: np.random.Generator,
    shape: Shape,
    *,
    rms: float,
    excess_kurtosis: float,
    outlier_channel_ratio: float,
    channels: int,
) -> Numbers:
    """Drawn after the card of a captured operand; see `lowprec.models.cards`."""
    return synthesize(Card(rms, excess_kurtosis, outlier_channel_ratio, channels), rng, shape)


DISTRIBUTIONS: Mapping[str, Callable[..., Numbers]] = {
    function.__name__: function
    for function in (
        card,
        gaussian,
        laplace,
        lognormal,
        massive_activations,
        outlier_channels,
        student_t,
        uniform,
    )
}
"""Functions of a generator, (vectors, K) and the arguments that a study may name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """One operand that is drawn: every number independent of the others but for its channel.

    Attributes:
      distribution: a name of `DISTRIBUTIONS`.
      arguments: those that it takes, by name, sorted; the others keep their defaults.

    Raises:
      ValueError: no such distribution, no such argument, or one that is missing.

    Example:
      >>> str(Drawn(distribution="student_t", arguments=(("degrees", 4.0),)))
      'student_t(degrees=4.0)'
    """

    distribution: str
    arguments: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(unknown("distribution", self.distribution, DISTRIBUTIONS))
        taken = inspect.signature(DISTRIBUTIONS[self.distribution]).parameters
        named = [name for name, x in taken.items() if x.kind is inspect.Parameter.KEYWORD_ONLY]
        for name, value in self.arguments:
            if name not in named:
                raise ValueError(unknown(f"argument of {self.distribution!r}", name, named))
            if not math.isfinite(value):
                raise ValueError(f"{self.distribution}: `{name}` = {value}; use a finite number")
        given = [name for name, _ in self.arguments]
        missing = [x for x in named if taken[x].default is inspect.Parameter.empty]
        if missing := [name for name in missing if name not in given]:
            raise ValueError(f"{self.distribution!r} needs {', '.join(missing)}")

    def __str__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.arguments)
        return f"{self.distribution}({inside})" if inside else self.distribution

    def draw(self, shape: Shape, seed: int, side: str) -> NDArray[np.float32]:
        """(vectors, K) float32, each number rounded to bfloat16, as what a model multiplies is."""
        place = f"{self} {side} {shape[0]} {shape[1]} {seed}"
        words = np.frombuffer(hashlib.sha256(place.encode()).digest(), "<u4")
        rng = np.random.default_rng(words)
        x = DISTRIBUTIONS[self.distribution](rng, shape, **dict(self.arguments))
        return np.ascontiguousarray(x.astype(ml_dtypes.bfloat16).astype(np.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """A layer of a file: what its products multiply.

    Attributes:
      path: of the file, absolute.
      digest: SHA-256 of its bytes, which is looked at again where the point runs.
      layer: the layer's name.
    """

    path: str
    digest: str
    layer: str

    def __str__(self) -> str:
        return f"{Path(self.path).name}:{self.layer}"

    def product(self, role: str) -> tuple[np.ndarray, np.ndarray]:
        """(M, K) and (K, N) of a role.

        Raises:
          ValueError: the file has changed since the study was read, or lacks the product.
          OSError: it cannot be read.
        """
        found = _layers(self.path, self.digest)
        first, second = found[self.layer].product(role)
        return np.ascontiguousarray(as_narrow(first)), np.ascontiguousarray(as_narrow(second))


@functools.lru_cache(maxsize=4)
def _layers(path: str, digest: str) -> dict[str, Operands]:
    """A file's layers by name; read once a process."""
    if _digest(Path(path)) != digest:
        raise ValueError(f"{path} is not the file that the study was read with; start it again")
    return {layer.layer: layer for layer in load_layers(path)[0]}


def stored_layers(path: Path) -> dict[str, tuple[Stored, Operands]]:
    """The layers of a file that a study names, with their shapes."""
    digest, where = _digest(path), str(path.resolve())
    found = _layers(where, digest)
    return {
        name: (Stored(path=where, digest=digest, layer=name), layer)
        for name, layer in found.items()
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
