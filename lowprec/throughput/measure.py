"""What a call takes on this machine: compilation apart, median and spread, and its memory."""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from lowprec.throughput.timing import compiled, in_turn

Path = Literal["emulated", "native"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A call's times. Those of an emulated path say nothing of hardware that has the formats.

    Attributes:
      path: `emulated`, formats that this machine computes in other arithmetic, or `native`.
      device: the machine, as the backend names it.
      calls: timed, after the warm-up.
      seconds: the median of a call.
      low, high: its quartiles.
      compile_seconds: of XLA's compilation, tracing left out.
      temporary_bytes: of the program, beside arguments and results; 0 where it is not told.
      peak_bytes: in use on the device since it started, this call or another; None where the
        device does not count.
    """

    path: Path
    device: str
    calls: int
    seconds: float
    low: float
    high: float
    compile_seconds: float
    temporary_bytes: int
    peak_bytes: int | None


def measure(
    function: Callable[..., Any],
    *arguments: Any,
    path: Path,
    calls: int = 9,
    warm_up: int = 2,
    options: dict[str, Any] | None = None,
) -> Measured:
    """Compiles a function for its arguments, warms it up, and times calls that wait for the result.

    Args:
      function: takes and returns pytrees of arrays.
      arguments: its arrays.
      path: what the row says the arithmetic is.
      calls: how many are timed, each for itself.
      warm_up: how many run before.
      options: compiler options of the program, such as `lowprec.compiler_options()`.

    Raises:
      ValueError: `calls` below 1, `warm_up` below 0, or no such path.

    Example:
      >>> import jax.numpy as jnp
      >>> found = measure(lambda x: x @ x, jnp.ones((8, 8)), path="native", calls=3)
      >>> found.low <= found.seconds <= found.high, found.calls
      (True, 3)
    """
    if calls < 1 or warm_up < 0:
        raise ValueError(f"`calls` = {calls}, `warm_up` = {warm_up}; use 1 or more, and 0 or more")
    if path not in ("emulated", "native"):
        raise ValueError(f"`path` = {path!r}; use 'emulated' or 'native'")
    program = compiled(function, *arguments, options=options)
    for _ in range(warm_up):
        program.call()
    times = in_turn({"call": program.call}, calls)["call"]
    low, high = (float(np.quantile(times, q)) for q in (0.25, 0.75))
    device = jax.devices()[0]
    return Measured(
        path=path,
        device=device.device_kind,
        calls=calls,
        seconds=statistics.median(times),
        low=low,
        high=high,
        compile_seconds=program.seconds,
        temporary_bytes=program.temporary_bytes,
        peak_bytes=_peak(device),
    )


def _peak(device: Any) -> int | None:
    """Bytes at the most, where the backend counts them."""
    found = device.memory_stats()
    return None if found is None else found.get("peak_bytes_in_use")
