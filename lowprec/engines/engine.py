"""A matrix engine as a value: how the products of one dot product are summed."""

import dataclasses
import functools
from typing import Literal

from lowprec import catalogue
from lowprec.numerics.format import Format, get_format

Reproducibility = Literal["bit_exact", "same_backend", "statistical"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """How sum(a * b) + c is computed; frozen and hashable.

    Attributes:
      name: the entry's name.
      accumulation: `sequential` (k ascending from c; each product is rounded to the output format,
        then added) or `native` (the machine's own float32 dot product over tiles).
      output: the format of the accumulator and the result.
      reproducibility: `bit_exact` on every backend, or `same_backend`: the same bits on one machine
        and version.
      tile: rows, contraction and columns of `native`'s tiles.
    """

    name: str
    accumulation: Literal["sequential", "native"]
    output: Format
    reproducibility: Reproducibility
    tile: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.output, Format) or self.output.name != "float32":
            raise ValueError(f"engine {self.name!r}: output must be float32, got {self.output!r}")
        if (self.accumulation == "native") != (self.tile is not None):
            raise ValueError(f"engine {self.name!r}: `tile` belongs to accumulation = 'native'")
        if self.tile is not None and min(self.tile) < 1:
            raise ValueError(f"engine {self.name!r}: tile = {self.tile}; sizes are at least 1")


_RESOLVERS = {Format: get_format}


def list_engines() -> tuple[str, ...]:
    """The names of the catalogue's engines, sorted.

    Example:
      >>> "fp32" in list_engines()
      True
    """
    return catalogue.names("engines")


@functools.cache
def _catalogued(name: str) -> Engine:
    return catalogue.read("engines", name, Engine, _RESOLVERS).value


def get_engine(engine: str | Engine) -> Engine:
    """Finds an engine by name or path to a TOML file, or passes an `Engine` through.

    Raises:
      ValueError: no engine has that name; near matches are listed.
      TypeError: `engine` is neither a string nor an `Engine`.

    Example:
      >>> get_engine("native").reproducibility
      'same_backend'
    """
    if isinstance(engine, Engine):
        return engine
    if not isinstance(engine, str):
        raise TypeError(
            f"`engine` must be an engine's name, a path to a TOML file or an Engine, "
            f"got {type(engine)}"
        )
    if catalogue.is_path(engine):
        return catalogue.read("engines", engine, Engine, _RESOLVERS).value
    return _catalogued(engine)
