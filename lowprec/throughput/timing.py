"""Timing of compiled calls in turn, so that what else the machine does falls on all alike."""

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

Call = Callable[[], Any]


class Compiled(NamedTuple):
    """A compiled call that waits for its result, with what its compilation cost.

    Attributes:
      call: runs the program on the arrays it was compiled for.
      seconds: of XLA's compilation alone, tracing left out.
      temporary_bytes: of the program, 0 where the backend does not say.
    """

    call: Call
    seconds: float
    temporary_bytes: int


def compiled(
    function: Callable[..., Any], *arrays: Any, options: dict[str, Any] | None = None
) -> Compiled:
    """Compiles a function for these arguments, and runs it once.

    Args:
      function: takes and returns pytrees of arrays.
      arrays: its arguments.
      options: compiler options of the program, such as `lowprec.compiler_options()`.

    Example:
      >>> import jax.numpy as jnp
      >>> program = compiled(lambda x: x + 1, jnp.zeros(2))
      >>> program.call().tolist()
      [1.0, 1.0]
    """
    lowered = jax.jit(function, compiler_options=options).lower(*arrays)
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
    call = lambda: jax.block_until_ready(program(*arrays))
    call()
    analysis = program.memory_analysis()
    return Compiled(call, seconds, analysis.temp_size_in_bytes if analysis is not None else 0)


def in_turn(
    calls: Mapping[str, Call], rounds: int, repeats: Mapping[str, int] | None = None
) -> dict[str, list[float]]:
    """Seconds of every call, once a round, all in turn.

    Args:
      calls: by name, each run before, so that nothing is compiled here.
      rounds: positive.
      repeats: how often a call that is short runs within a round; 1 where it is not named.

    Returns:
      By name the mean seconds of a call in each round.

    Raises:
      ValueError: fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"`rounds` = {rounds}; use 1 or more")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            again = (repeats or {}).get(name, 1)
            start = time.perf_counter()
            for _ in range(again):
                call()
            times[name].append((time.perf_counter() - start) / again)
    return times


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> tuple[float, float, float]:
    """The median over rounds of a ratio of times, between its quartiles: middle, low, high.

    Raises:
      ValueError: the two have different numbers of rounds.

    Example:
      >>> ratio([2.0, 4.0, 3.0], [1.0, 1.0, 1.0])
      (3.0, 2.5, 3.5)
    """
    if len(numerator) != len(denominator):
        raise ValueError(f"`numerator` has {len(numerator)} rounds, `denominator` has "
                         f"{len(denominator)}; a ratio is taken round by round")  # fmt: skip
    ratios = np.asarray(numerator) / np.asarray(denominator)
    low, middle, high = (float(np.quantile(ratios, q)) for q in (0.25, 0.5, 0.75))
    return middle, low, high


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes rows as CSV, floats to four digits; the directory is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow(f"{x:.4g}" if isinstance(x, float) else x for x in row)
