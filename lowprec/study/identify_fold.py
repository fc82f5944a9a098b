"""What happens to an engine's sums: promotion, split-K, scales, and the output's rounding.

On arrays of any shape, in NumPy: its float32 product and sum are IEEE 754's, and a fused
multiply-add is made of float64 ones by rounding to odd first (Boldo and Melquiond, 2008).
"""

import dataclasses
import functools
import math

import ml_dtypes
import numpy as np

from lowprec.gemm.recipe import Promotion, split_of

_STEP = 32
"""The least k that split-K cuts at, where no instruction is longer."""


def fused_multiply_add(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """fl(x * y + z) of float32 arrays, rounded once to nearest even."""
    with np.errstate(all="ignore"):
        product = x.astype(np.float64) * y.astype(np.float64)  # exact: 48 bits
        addend = z.astype(np.float64)
        total = product + addend
        back = total - product
        error = (product - (total - back)) + (addend - back)
        bits = total.view(np.int64)
        # Where the sum is not exact and its last bit even, the odd neighbour on the error's side.
        inexact = (error != 0) & np.isfinite(total) & (bits & 1 == 0)
        step = np.where((error > 0) == (total > 0), 1, -1)
        return (bits + np.where(inexact, step, 0)).view(np.float64).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Above:
    """How an engine's sums are put together.

    Attributes:
      promote_every: k after which the engine's sum is added to a float32 total; None for never.
      promotion: how it is added, where scales are applied there.
      order: `sequential` or `split_k.<parts>`.
      scales: where they are applied: `nowhere`, at `promotion`, to the `output` (as one product,
        or `one by one`), to the `operands`, or by the `engine`.
      output: what the result is rounded to.
    """

    promote_every: int | None
    promotion: Promotion
    order: str
    scales: str
    output: str

    def chunk(self, k: int, instruction: int | None) -> int:
        """How many k the engine sums from zero."""
        if self.promote_every is not None:
            return self.promote_every
        step = max(_STEP, instruction or _STEP)
        _, parts = split_of(self.order)
        steps = math.ceil(k / step)
        return k if parts == 1 else math.ceil(steps / parts) * step

    def __str__(self) -> str:
        every = "no promotion" if self.promote_every is None else f"every {self.promote_every}"
        how = f" by {self.promotion}" if self.scales == "promotion" else ""
        return f"{every}{how}, {self.order}, scales: {self.scales}, output {self.output}"


@dataclasses.dataclass(frozen=True)
class Given:
    """What is known of some outputs: scales (tiles, outputs...) and c (outputs...), or None."""

    k: int
    a_scale: np.ndarray | None = None
    b_scale: np.ndarray | None = None
    c: np.ndarray | None = None


def fold(partials: np.ndarray, above: Above, given: Given) -> np.ndarray:
    """The results as float32 bits, from an engine's sums over chunks.

    Args:
      partials: float32 (chunks, outputs...); the only one has c in it already.
      above: what is done to them.
      given: scales and c of the same outputs.
    """
    chunks = len(partials)
    with np.errstate(all="ignore"):
        parts = _parts(above, chunks)
        sums = [_promoted(partials, part, above, given) for part in parts]
        total = sums[0]
        if len(parts) > 1 and given.c is not None:
            total = given.c + total
        for part in sums[1:]:
            total = total + part
        total = _scaled(total, above, given)
    return narrowed(total, above.output)


def _parts(above: Above, chunks: int) -> list[range]:
    _, count = split_of(above.order)
    if above.promote_every is None:
        return [range(index, index + 1) for index in range(chunks)]
    per_part = -(-chunks // count)
    return [range(first, min(first + per_part, chunks)) for first in range(0, chunks, per_part)]


def _promoted(partials: np.ndarray, part: range, above: Above, given: Given) -> np.ndarray:
    """The float32 total over a part's chunks."""
    if above.promote_every is None:
        return partials[part[0]]
    whole = len(part) == len(partials)
    total = np.zeros_like(partials[0]) if given.c is None or not whole else given.c
    for index in part:
        total = _added(total, partials[index], index, above, given)
    return total


def _added(
    total: np.ndarray, partial: np.ndarray, index: int, above: Above, given: Given
) -> np.ndarray:
    assert above.promote_every is not None
    a, b = given.a_scale, given.b_scale
    if above.scales != "promotion" or a is None or b is None:
        return total + partial
    tile = index * above.promote_every * len(a) // given.k
    if above.promotion == "multiply_multiply_add":
        return total + (partial * a[tile]) * b[tile]
    scale = a[tile] * b[tile]
    if above.promotion == "multiply_add":
        return total + scale * partial
    return fused_multiply_add(np.broadcast_to(scale, partial.shape), partial, total)


def _scaled(total: np.ndarray, above: Above, given: Given) -> np.ndarray:
    a, b = given.a_scale, given.b_scale
    if a is None or b is None or not above.scales.startswith("output"):
        return total
    if above.scales == "output, one by one":
        return (total * a[0]) * b[0]
    return (a[0] * b[0]) * total


def narrowed(x: np.ndarray, output: str) -> np.ndarray:
    """float32 bits of x rounded to an output type; every NaN is the same one."""
    dtype = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}[output]
    with np.errstate(all="ignore"):
        rounded = x.astype(dtype).astype(np.float32)
    return np.where(np.isnan(rounded), np.float32(np.nan), rounded).view(np.uint32)


@functools.cache
def choices(
    k: int, tiles: int | None, scale_places: tuple[str, ...], outputs: tuple[str, ...]
) -> tuple[Above, ...]:
    """Every way above the instruction that fits a depth and its scales, each once.

    Without scales at promotion all three kinds of it add alike, and count as `fma`.
    """
    found = []
    orders = ("sequential", *(f"split_k.{parts}" for parts in (2, 4, 8) if parts * _STEP <= k))
    for every in (None, 32, 64, 128, 256):
        if every is not None and every >= k:
            continue
        for place in scale_places:
            if place == "promotion" and (every is None or tiles is None or (k // tiles) % every):
                continue
            kinds: tuple[Promotion, ...] = ("fma", "multiply_add", "multiply_multiply_add")
            for kind in kinds if place == "promotion" else kinds[:1]:
                found += [Above(every, kind, x, place, y) for x in orders for y in outputs]
    return tuple(found)
