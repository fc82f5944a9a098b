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


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttendTime:
    """Attention of one token over a cache, beside the fastest over bfloat16 keys and values.

    Attributes:
      tokens, heads, dim, queries: of the cache, and query heads.
      method: its name.
      arithmetic: of dequantization, where an entry has a choice; else "".
      seconds: of a call, the median over rounds.
      times_bf16, low, high: the ratio's median over rounds, and its quartiles.
      peer: which bfloat16 program was the fastest.
      wanted: the ratio that is wanted at most; 0 for the peers themselves.
      temporary_bytes, wanted_bytes: of the program, and the most that is wanted.
      met: whether ratio and bytes are within what is wanted.
      cache_bytes: what the call reads.
      compile_seconds: of the program.
      device: the machine.
    """

    tokens: int
    heads: int
    dim: int
    queries: int
    method: str
    arithmetic: str
    seconds: float
    times_bf16: float
    low: float
    high: float
    peer: str
    wanted: float
    temporary_bytes: int
    wanted_bytes: int
    met: Literal["met", "missed", "peer"]
    cache_bytes: int
    compile_seconds: float
    device: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class AppendTime:
    """Appending a token inside a `jit` that donates the cache, at a long capacity and a short one.

    Attributes:
      method: its name.
      heads, dim: of the cache.
      tokens_short, tokens_long: the capacities.
      seconds_short, seconds_long: of a call, medians over rounds.
      ratio, low, high: long over short, the median over rounds and its quartiles.
      wanted: the ratio that is wanted at most.
      met: whether the median is within it.
      compile_seconds: of the long one.
      device: the machine.
    """

    method: str
    heads: int
    dim: int
    tokens_short: int
    tokens_long: int
    seconds_short: float
    seconds_long: float
    ratio: float
    low: float
    high: float
    wanted: float
    met: Verdict
    compile_seconds: float
    device: str
