"""A text through a model layer by layer on two sides: where they begin to differ, and how far."""

import dataclasses
import hashlib
from collections.abc import Callable

import jax
import numpy as np
from numpy.typing import NDArray

from lowprec.models.checkpoints.architecture import Hooks
from lowprec.models.transformer import NamedLinear
from lowprec.study.diff_rows import LayerRow
from lowprec.study.diff_subjects import Subject

Streams = tuple[jax.Array, jax.Array]
Say = Callable[[str], None]


class Watch:
    """Finds the first product that two runs of a layer disagree about.

    Attributes:
      first: its name, or that its input was the first to differ; None as long as all agree.
    """

    def __init__(self) -> None:
        self.first: str | None = None
        # A weight may be multiplied with several times, as the keys' of latent attention is.
        self._seen: dict[str, list[tuple[bytes, bytes]]] = {}

    def noting(self, linear: NamedLinear) -> NamedLinear:
        """A hook that notes what goes in and comes out."""

        def noted(name: str, x: jax.Array, w: jax.Array) -> jax.Array:
            y = linear(name, x, w)
            self._seen.setdefault(name, []).append((_digest(x), _digest(y)))
            return y

        return noted

    def checking(self, linear: NamedLinear) -> NamedLinear:
        """A hook that compares them with what was noted."""

        def checked(name: str, x: jax.Array, w: jax.Array) -> jax.Array:
            y = linear(name, x, w)
            if self.first is None and self._seen.get(name):
                noted = self._seen[name].pop(0)
                if noted[0] != _digest(x):
                    self.first = f"input of {name}"
                elif noted[1] != _digest(y):
                    self.first = name
            return y

        return checked


def _digest(x: jax.Array) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(x).tobytes(), digest_size=16).digest()


def through_layers(
    subject: Subject, hooks: tuple[Hooks, Hooks], pair: str, done: Say | None
) -> tuple[Streams, list[LayerRow], str | None]:
    """The last streams of both sides, a row of every layer, and the first product that differs.

    Args:
      subject: the model and the text.
      hooks: of side A and of side B.
      pair: what rows call it.
      done: called with the name of each layer as both sides are through it.

    Raises:
      ValueError: a side gives what is not finite.
    """
    stream, rows, watch = subject.embed(subject.tokens), [], Watch()
    streams = stream, stream
    for number in range(subject.layers):
        own = hooks
        if watch.first is None:
            own = (
                dataclasses.replace(hooks[0], linear=watch.noting(hooks[0].linear)),
                dataclasses.replace(hooks[1], linear=watch.checking(hooks[1].linear)),
            )
        streams = (
            subject.layer(number, streams[0], own[0]),
            subject.layer(number, streams[1], own[1]),
        )
        name = f"layers.{number}"
        sums = Differing()
        for window in range(len(subject.tokens)):
            a, b = (np.asarray(x[window]) for x in streams)
            check_finite(a, b, name)
            sums.add(a, b)
        rows.append(sums.row(pair, name))
        if done is not None:
            done(name)
    return streams, rows, watch.first


class Differing:
    """Sums over parts of two arrays that are compared bit by bit."""

    def __init__(self) -> None:
        self._differing = self._count = 0
        self._error = self._size = self._largest = 0.0

    def add(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
        """Takes a part of both arrays in."""
        self._differing += int(np.count_nonzero(a.view(np.uint32) != b.view(np.uint32)))
        self._count += a.size
        difference = a.astype(np.float64) - b
        self._error += float(np.sum(difference**2))
        self._size += float(np.sum(np.square(a, dtype=np.float64)))
        self._largest = max(self._largest, float(np.max(np.abs(difference))))

    def row(self, pair: str, layer: str) -> LayerRow:
        """What has been found."""
        return LayerRow(
            pair=pair,
            layer=layer,
            differing=self._differing / self._count,
            relative=float(np.sqrt(self._error / self._size)) if self._error else 0.0,
            largest=self._largest,
        )


def check_finite(a: NDArray, b: NDArray, where: str) -> None:
    """Raises ValueError where either side's numbers are not all finite."""
    for side, x in (("A", a), ("B", b)):
        if not np.isfinite(x).all():
            count = int(np.count_nonzero(~np.isfinite(x)))
            raise ValueError(
                f"side {side}: {where} gives {count} of {x.size} numbers that are NaN or Inf, of "
                f"which nothing can be said; a wider output or other scales may hold them"
            )
