"""Scores of candidates from their quantized operands alone, without their engines.

Each operand is quantized once for every block that some candidate has for it; products are float32
ones of this machine, rounded to the output type.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.gemm.recipe import OperandPair
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block
from lowprec.study.advise_candidates import Candidate
from lowprec.study.advise_choice import Scores
from lowprec.study.advise_parts import Part
from lowprec.study.advise_values import values

Progress = Callable[[str, int, int], None]
"""Told what is under way, how much of it is done and how much there is."""
Side = Literal["a", "b"]
Key = tuple[Format | Block, Format | Block | None]
"""What becomes of an operand, and of the copy that it starts from."""
WORKERS = 2
_AXES: dict[Side, tuple[int, int]] = {"a": (-1, -2), "b": (-2, -1)}


class Screen:
    """Scores on one part of one product; the quantized second operands are kept."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._signal = float(part.signal.sum())
        self._kept: dict[Key, list[NDArray[np.float32]]] = {}
        self._alone: dict[tuple[Side, Key], float] = {}

    def scores(self, found: Sequence[Candidate], progress: Progress) -> Scores:
        """The SQNR in dB of each candidate's product; minus infinity where it is not finite."""
        lefts: dict[Key, list[Candidate]] = {}
        for candidate in found:
            lefts.setdefault(_key(candidate.pair, "a"), []).append(candidate)
        rights = [k for k in _keys(found, "b") if k not in self._kept]
        total, done = len(rights) + len(lefts), 0
        scores: Scores = {}
        with ThreadPoolExecutor(WORKERS) as pool:
            for key, kept in pool.map(lambda k: (k, self._quantized("b", k)), rights):
                self._kept[key] = kept
                progress("second operands quantized", done := done + 1, total)
            for part in pool.map(lambda item: self._of_left(*item), lefts.items()):
                scores |= part
                progress("products of quantized operands", done := done + 1, total)
        return {x: scores[x] for x in found}

    def _of_left(self, key: Key, found: Sequence[Candidate]) -> Scores:
        left = self._quantized("a", key)
        return {x: self._score(left, self._kept[_key(x.pair, "b")], x) for x in found}

    def _score(
        self, left: Sequence[NDArray], right: Sequence[NDArray], candidate: Candidate
    ) -> float:
        output = jnp.dtype(candidate.recipe.output.name)
        with np.errstate(over="ignore", invalid="ignore"):
            products = [(a @ b).astype(output) for a, b in zip(left, right, strict=True)]
            return sqnr(self._signal, float(self._part.noise(products).sum()))

    def estimates(self, found: Sequence[Candidate], progress: Progress) -> Scores:
        """What to expect of candidates: both operands' errors, each found with the other exact.

        A combination of p blocks for a and q for b takes p + q products instead of p * q.
        """
        wanted = [(side, key) for side in ("a", "b") for key in _keys(found, side)]
        missing = [x for x in wanted if x not in self._alone]
        with ThreadPoolExecutor(WORKERS) as pool:
            for i, (place, noise) in enumerate(pool.map(self._noise_alone, missing)):
                self._alone[place] = noise
                progress("changed operands quantized", i + 1, len(missing))
        return {
            x: sqnr(
                self._signal,
                self._alone["a", _key(x.pair, "a")] + self._alone["b", _key(x.pair, "b")],
            )
            for x in found
        }

    def _noise_alone(self, place: tuple[Side, Key]) -> tuple[tuple[Side, Key], float]:
        side, key = place
        quantized = self._quantized(side, key)
        if side == "b":
            self._kept[key] = quantized
        other = [(b if side == "a" else a).astype(np.float32) for a, b in self._part.pairs]
        pairs = zip(quantized, other, strict=True)
        products = [x @ y if side == "a" else y @ x for x, y in pairs]
        return place, float(self._part.noise(products).sum())

    def _quantized(self, side: Side, key: Key) -> list[NDArray[np.float32]]:
        target, copy = key
        axis, other = _AXES[side]
        matrices = [pair[side == "b"] for pair in self._part.pairs]
        if copy is not None:
            matrices = [values(x, copy, other).astype(x.dtype) for x in matrices]
        return [values(x, target, axis) for x in matrices]


def sqnr(signal: float, noise: float) -> float:
    """Signal over noise in dB; infinite where there is no noise, minus infinity where it is NaN.

    Example:
      >>> sqnr(100.0, 1.0), sqnr(1.0, 0.0), sqnr(1.0, float("nan"))
      (20.0, inf, -inf)
    """
    if not np.isfinite(noise):
        return -np.inf
    return np.inf if noise == 0 else float(10 * np.log10(signal / noise))


def _key(pair: OperandPair, side: Side) -> Key:
    return (pair.a, pair.a_from) if side == "a" else (pair.b, pair.b_from)


def _keys(found: Iterable[Candidate], side: Side) -> list[Key]:
    return list(dict.fromkeys(_key(x.pair, side) for x in found))
