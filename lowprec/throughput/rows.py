"""What the benchmarks of recipes found, a row each."""

import dataclasses
from typing import Literal

Verdict = Literal["met", "missed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemmTime:
    """A square product under a recipe, beside the machine's own float32 product.

    Attributes:
      size: M, N and K.
      recipe, engine: names.
      way: "plain" inside a caller's own `jax.jit`, "options" with `lowprec.compiler_options()`.
      seconds: of a call, the median over rounds.
      times_float32, low, high: the ratio's median over rounds, and its quartiles.
      wanted: the ratio that is wanted at most.
      met: whether the median is within it.
      compile_seconds, temporary_bytes: of the program.
      device: the machine.
    """

    size: int
    recipe: str
    engine: str
    way: Literal["plain", "options"]
    seconds: float
    times_float32: float
    low: float
    high: float
    wanted: float
    met: Verdict
    compile_seconds: float
    temporary_bytes: int
    device: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingTime:
    """A layer forward and backward, or a whole training step, beside those under bf16.

    Attributes:
      what: "layer" or "step".
      recipe: its name.
      seconds: of a call, the median over rounds.
      times_bf16, low, high: the ratio's median over rounds, and its quartiles.
      wanted, wanted_compile: the ratio and the seconds of compilation that are wanted at most.
      met: whether both are within it.
      compile_seconds, temporary_bytes: of the program.
      device: the machine.
    """

    what: Literal["layer", "step"]
    recipe: str
    seconds: float
    times_bf16: float
    low: float
    high: float
    wanted: float
    wanted_compile: float
    met: Verdict
    compile_seconds: float
    temporary_bytes: int
    device: str
