"""Statistics of calibration rows, in passes over blocks of rows that fit memory.

Sums are float64, on the host.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from lowprec.numerics.arguments import FLOATS

Progress = Callable[[str, int, int], None]
"""Told the step that is under way, how much of it is done, and how much there is."""
Turn = Callable[[NDArray], NDArray]
"""What becomes of rows before they are multiplied: float32 (rows, K) to (rows, K')."""

_ELEMENTS = 1 << 22
"""Numbers of a block of rows: 32 MiB in float64."""


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Rows of x, (tokens, K) each part, read a block at a time: a `numpy.memmap` stays on disk."""

    parts: tuple[NDArray, ...]
    progress: Progress

    @property
    def tokens(self) -> int:
        """How many rows there are."""
        return sum(part.shape[0] for part in self.parts)

    def blocks(self, step: str) -> Iterator[NDArray]:
        """The rows as float32, in blocks; reports each.

        Raises:
          ValueError: a number is NaN or Inf.
        """
        done, tokens = 0, self.tokens
        for part in self.parts:
            rows = max(1, _ELEMENTS // part.shape[1])
            for start in range(0, part.shape[0], rows):
                block = np.asarray(part[start : start + rows]).astype(np.float32)
                if not np.isfinite(block).all():
                    raise ValueError(
                        f"`calibration` has NaN or Inf in rows {done} to {done + len(block) - 1}; "
                        f"leave them out"
                    )
                yield block
                done += len(block)
                self.progress(step, done, tokens)

    def largest(self) -> NDArray:
        """The largest magnitude of each channel, (K,) float64."""
        every = [np.abs(block).max(0) for block in self.blocks("largest magnitudes")]
        return np.max(every, axis=0).astype(np.float64)

    def mean_magnitude(self, turn: Turn = lambda x: x) -> NDArray:
        """The mean magnitude of each channel, (K',) float64."""
        blocks = self.blocks("mean magnitudes")
        sums = [np.abs(turn(x).astype(np.float64)).sum(0) for x in blocks]
        return np.sum(sums, axis=0) / self.tokens

    def second_moment(self, turn: Turn = lambda x: x) -> NDArray:
        """The mean of x x^T, (K', K') float64: half of GPTQ's Hessian, as damping is relative."""
        total: NDArray | None = None
        for block in self.blocks("second moments"):
            x = turn(block).astype(np.float64)
            total = x.T @ x if total is None else total + x.T @ x
        assert total is not None
        return total / self.tokens


def calibration_rows(
    given: ArrayLike | Sequence[ArrayLike], depth: int, progress: Progress
) -> Calibration:
    """Calibration data as rows of K numbers.

    Raises:
      TypeError: it is not float32, bfloat16 or float16.
      ValueError: an array's last axis is not K long, or there are no rows.
    """
    parts = []
    for part in given if isinstance(given, (list, tuple)) else [given]:
        rows = np.asanyarray(part)
        if rows.dtype.name not in FLOATS:
            raise TypeError(
                f"`calibration` must be {', '.join(FLOATS[:2])} or float16, got {rows.dtype}; "
                f"convert it first"
            )
        if rows.ndim < 2 or rows.shape[-1] != depth or not rows.size:
            raise ValueError(
                f"`calibration` has shape {rows.shape}; it is x (..., K) with K = {depth}, the "
                f"weight's first axis, and at least one row"
            )
        parts.append(rows.reshape(-1, depth))
    if not parts:
        raise ValueError(f"`calibration` is empty; it is x (..., K) with K = {depth}")
    return Calibration(tuple(parts), progress)
