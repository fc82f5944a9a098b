"""The tiles that a product is cut into, one to a multiprocessor, and the waves that they make."""

import dataclasses
import functools
import math
from collections.abc import Iterator

from lowprec.catalogue import decode
from lowprec.throughput.devices import Generation, beside, read_toml


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Products of one shape in one kernel: `groups` times (m, k) x (k, n), as experts have them.

    Example:
      >>> Shape(m=64, n=4096, k=7168).flop
      3758096384
    """

    m: int
    n: int
    k: int
    groups: int = 1

    def __post_init__(self) -> None:
        for name in ("m", "n", "k", "groups"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"`{name}` = {value}; a product's sizes are 1 or more")

    @property
    def flop(self) -> int:
        """Of all groups, an addition and a multiplication for each of k."""
        return 2 * self.m * self.n * self.k * self.groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
    """The tiles of a generation, as `tiles.toml` has them, which says what the fields mean."""

    engines: tuple[str, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    swapped: bool
    accumulators: int
    promoted_accumulators: int
    sharing: int
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
    """Rows and columns of the output, and how many each side of the product is cut into.

    Attributes:
      rows, columns: of a tile, rows those of the left operand also where a kernel swaps the two.
      down, across: tiles along m and along n, of one group.
      count: tiles of all groups.
    """

    rows: int
    columns: int
    down: int
    across: int
    count: int


def tiles_of(generation: Generation) -> Tiles:
    """The tiles of a generation.

    Example:
      >>> tiles_of("hopper").rows
      (64, 128, 256)
    """
    return _registry()[generation]


@functools.lru_cache(maxsize=4096)
def cut(generation: Generation, shape: Shape, *, promoted: bool) -> tuple[Tile, ...]:
    """Every way to cut a product into tiles that a generation has.

    Args:
      generation: of the device.
      shape: of the product.
      promoted: whether a second sum is kept beside the tensor core's, which leaves smaller tiles.

    Example:
      >>> found = cut("hopper", Shape(m=8, n=4096, k=7168), promoted=True)
      >>> min(x.rows for x in found), max(x.rows * x.columns for x in found)
      (64, 20480)
      >>> min(x.rows for x in cut("blackwell", Shape(m=8, n=4096, k=7168), promoted=False))
      16
    """
    return tuple(_cut(tiles_of(generation), shape, promoted))


def _cut(found: Tiles, shape: Shape, promoted: bool) -> Iterator[Tile]:
    most = found.promoted_accumulators if promoted else found.accumulators
    for rows in found.rows:
        for columns in found.columns:
            if rows * columns <= most:
                yield _tile(shape, rows, columns)
                if found.swapped:
                    yield _tile(shape, columns, rows)


def _tile(shape: Shape, rows: int, columns: int) -> Tile:
    down, across = math.ceil(shape.m / rows), math.ceil(shape.n / columns)
    count = shape.groups * down * across
    return Tile(rows=rows, columns=columns, down=down, across=across, count=count)


@functools.cache
def _registry() -> dict[str, Tiles]:
    path = beside("tiles.toml")
    return {
        name: decode(entry, Tiles, where=f"{path}: {name}")
        for name, entry in read_toml(path).items()
    }
