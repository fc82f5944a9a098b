"""Tensors of tiles for a comparison of quantizers: one sort of tile each, the same on any machine.

Numbers are drawn as integers and scaled by IEEE operations alone, so that a seed gives the same
bits under every version of NumPy, and a stored answer belongs to inputs that can be drawn again.
"""

import dataclasses
import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lowprec.numerics.format import Format

Floats = NDArray[np.float32]
Bits = NDArray[np.uint32]
Rng = np.random.PCG64

BESIDE = " beside others"
"""What the name of a sort ends in where tiles of ordinary numbers share its tensor scale."""

_MOST_ELEMENTS = 256
"""Elements that a tile draws; a larger tile repeats them, which keeps what is stored small."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """What tiles are drawn for: their size and the element format whose edges they should meet."""

    rows: int
    columns: int
    element: Format


def _words(rng: Rng, *shape: int) -> NDArray[np.uint64]:
    return np.asarray(rng.random_raw(int(np.prod(shape))), np.uint64).reshape(shape)


def _bell(rng: Rng, *shape: int) -> NDArray[np.float64]:
    """Numbers near a normal distribution, each the exact sum of four integers of 32 bits."""
    words = _words(rng, 2, *shape)
    halves = (words >> np.uint64(32)).astype(np.int64) + (words & np.uint64(0xFFFFFFFF)).astype(
        np.int64
    )
    return (halves[0] + halves[1] - (1 << 33)).astype(np.float64)


def _integers(rng: Rng, low: int, high: int, *shape: int) -> NDArray[np.int64]:
    """Integers from low to high, both drawn."""
    return (_words(rng, *shape) % np.uint64(high - low + 1)).astype(np.int64) + low


def _moved(x: Floats, steps: NDArray[np.int64]) -> Floats:
    """Numbers moved by so many float32 numbers away from zero."""
    return (x.view(np.uint32).astype(np.int64) + steps).astype(np.uint32).view(np.float32)


def _power(exponents: NDArray[np.int64]) -> Floats:
    return np.ldexp(np.float64(1), exponents.astype(np.int32)).astype(np.float32)


def _with_largest(x: NDArray[np.float64], largest: Floats, rng: Rng) -> Floats:
    """Tiles (count, size) scaled below a magnitude, which one element of each then has."""
    count, size = x.shape
    top = np.maximum(np.abs(x).max(axis=1, keepdims=True), 1.0)
    out = (x / top * (0.998 * largest[:, None].astype(np.float64))).astype(np.float32)
    rows, places = np.arange(count), _integers(rng, 0, size - 1, count)
    out[rows, places] = np.where(_integers(rng, 0, 1, count) == 1, -largest, largest)
    return out


def _ordinary(tile: Tile, count: int, size: int, rng: Rng) -> Floats:
    scale = _power(_integers(rng, -44, -24, count))  # of integers near 2^32
    return (_bell(rng, count, size) * scale[:, None]).astype(np.float32)


def _bfloat16(tile: Tile, count: int, size: int, rng: Rng) -> Floats:
    """Ordinary numbers cut to 8 bits: under power-of-two scales many lie on ties."""
    bits = _ordinary(tile, count, size, rng).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def _spread(tile: Tile, count: int, size: int, rng: Rng) -> Floats:
    """Over 24 binades, so that most elements are subnormal or flushed."""
    x = _bell(rng, count, size) * _power(_integers(rng, -24, 0, count, size)).astype(np.float64)
    return _with_largest(x, _power(_integers(rng, -8, 8, count)), rng)


def _ties(tile: Tile, count: int, size: int, rng: Rng) -> Floats:
    """All midpoints of neighbouring values in turn, under a power of two.

    A float32 number nearer to zero in the first turn, as they are in the second, then farther.
    """
    values = tile.element.values
    assert values is not None
    held = np.unique(np.abs(values[np.isfinite(values)]))
    middles = ((held[1:] + held[:-1]) / 2).astype(np.float32)
    turns, places = np.divmod(np.arange(count * size).reshape(count, size), len(middles))
    chosen = _moved(middles[places], turns % 3 - 1)
    signed = np.where(_integers(rng, 0, 1, count, size) == 1, -chosen, chosen)
    signed[np.arange(count), _integers(rng, 0, size - 1, count)] = np.float32(tile.element.max)
    return signed * _power(_integers(rng, -3, 3, count))[:, None]


def _at(base: Callable[[Format], float], steps: int) -> Callable[[Tile, int, int, Rng], Floats]:
    """Tiles whose largest magnitude is `base` times a power of two, or float32 numbers beside."""

    def draw(tile: Tile, count: int, size: int, rng: Rng) -> Floats:
        exact = np.float32(base(tile.element)) * _power(_integers(rng, -12, 12, count))
        largest = _moved(exact, np.full(count, steps, np.int64))
        return _with_largest(_bell(rng, count, size), largest, rng)

    return draw


def _between(low: int, high: int) -> Callable[[Tile, int, int, Rng], Floats]:
    """Tiles whose largest magnitudes lie from 2^low to below 2^high, exponents evenly spaced."""

    def draw(tile: Tile, count: int, size: int, rng: Rng) -> Floats:
        mantissas = _moved(np.ones(count, np.float32), _integers(rng, 0, (1 << 23) - 1, count))
        exponents = low + np.arange(count) * (high - low) // count
        largest = np.ldexp(mantissas.astype(np.float64), exponents.astype(np.int32))
        return _with_largest(_bell(rng, count, size), largest.astype(np.float32), rng)

    return draw


def _zeros(tile: Tile, count: int, size: int, rng: Rng) -> Floats:
    """Zeros; in every second tile of both signs."""
    out = np.where(_integers(rng, 0, 1, count, size) == 1, np.float32(-0.0), np.float32(0))
    out[::2] = 0
    return out


def _with(special: float) -> Callable[[Tile, int, int, Rng], Floats]:
    def draw(tile: Tile, count: int, size: int, rng: Rng) -> Floats:
        out = _ordinary(tile, count, size, rng)
        sign = np.where(_integers(rng, 0, 1, count) == 1, np.float32(-1), np.float32(1))
        out[np.arange(count), _integers(rng, 0, size - 1, count)] = np.float32(special) * sign
        return out

    return draw


def _half_step(fmt: Format) -> float:
    """Where rounding to the element's mantissa carries into the next power of two."""
    return 2 - 2.0 ** -(fmt.mantissa_bits or 0) / 2


SORTS: dict[str, Callable[[Tile, int, int, Rng], Floats]] = {
    "ordinary": _ordinary,
    "bfloat16": _bfloat16,
    "24 binades": _spread,
    "ties": _ties,
    "amax below 2^k": _at(lambda fmt: 1.0, -1),
    "amax 2^k": _at(lambda fmt: 1.0, 0),
    "amax above 2^k": _at(lambda fmt: 1.0, 1),
    "amax below MAX 2^k": _at(lambda fmt: float(fmt.max), -1),
    "amax MAX 2^k": _at(lambda fmt: float(fmt.max), 0),
    "amax above MAX 2^k": _at(lambda fmt: float(fmt.max), 1),
    "amax below a carry": _at(_half_step, -1),
    "amax at a carry": _at(_half_step, 0),
    "amax 2^-45 to 2^-12": _between(-45, -12),
    "amax 2^-110 to 2^-46": _between(-110, -46),
    "amax 2^-126 to 2^-111": _between(-126, -111),
    "subnormal": _between(-146, -126),
    "zero": _zeros,
    "amax from 2^120": _between(120, 128),
    "Inf": _with(np.inf),
    "NaN": _with(np.nan),
}
"""Every sort of tile by name, with what draws (count, size) numbers of it."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Tensors of one shape, each of tiles of one sort.

    Attributes:
      x: float32 (tensors, rows, columns).
      sorts: the sort of each tensor.
      rows, columns: of a tile.
    """

    x: Floats
    sorts: tuple[str, ...]
    rows: int
    columns: int

    def tiles(self, elements: np.ndarray) -> np.ndarray:
        """Something for each element as (tensors, tile rows, tile columns, elements of a tile)."""
        count, height, width = elements.shape
        split = elements.reshape(
            count, height // self.rows, self.rows, width // self.columns, self.columns
        )
        return split.transpose(0, 1, 3, 2, 4).reshape(
            count, height // self.rows, width // self.columns, -1
        )


def draw_inputs(
    tile: Tile, grid: tuple[int, int], tensors: int, *, shared: bool, seed: int = 0
) -> Inputs:
    """Tensors of every sort.

    Args:
      tile: what a tile is.
      grid: rows and columns of tiles in a tensor.
      tensors: of each sort.
      shared: whether a scale spans the tensor: then every sort is also drawn for the first half of
        the columns of tiles alone, beside ordinary numbers, under its name and `BESIDE`.
      seed: another seed gives other tensors.

    Example:
      >>> from lowprec.numerics import get_format
      >>> tile = Tile(1, 32, get_format("float8_e4m3fn"))
      >>> draw_inputs(tile, (2, 4), 1, shared=False).x.shape
      (20, 2, 128)
    """
    found, sorts = [], []
    names = [(name, False) for name in SORTS]
    names += [(name, True) for name in SORTS if shared and name != "ordinary"]
    for name, beside in names:
        label = name + BESIDE * beside
        key = f"{tile.rows}x{tile.columns} {tile.element.name} {label} {seed}"
        rng = np.random.PCG64(zlib.crc32(key.encode()))
        count = tensors * grid[0] * grid[1]
        drawn = _drawn(SORTS[name], tile, count, rng).reshape(tensors, *grid, -1)
        if beside:
            others = _drawn(_ordinary, tile, count, rng).reshape(drawn.shape)
            drawn[:, :, grid[1] // 2 :] = others[:, :, grid[1] // 2 :]
        found.append(_assembled(drawn, tile))
        sorts += [label] * tensors
    return Inputs(np.concatenate(found), tuple(sorts), tile.rows, tile.columns)


def _drawn(
    draw: Callable[[Tile, int, int, Rng], Floats], tile: Tile, count: int, rng: Rng
) -> Floats:
    size = tile.rows * tile.columns
    with np.errstate(over="ignore", under="ignore"):
        small = draw(tile, count, min(size, _MOST_ELEMENTS), rng)
    repeats = -(-size // small.shape[1])
    return np.tile(small, (1, repeats))[:, :size]


def _assembled(drawn: Floats, tile: Tile) -> Floats:
    """(tensors, tile rows, tile columns, elements) to (tensors, rows, columns)."""
    count, height, width, _ = drawn.shape
    split = drawn.reshape(count, height, width, tile.rows, tile.columns)
    return split.transpose(0, 1, 3, 2, 4).reshape(count, height * tile.rows, width * tile.columns)
