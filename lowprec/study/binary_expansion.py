"""Weights as sums of binary ones, W = sum of alpha_i B_i, against integers of as many bits.

Each output channel has its own alphas, and N binary weights for each of its own. Multiplying by
them takes N additions where a weight takes one multiplication: N K - 1 an output with K inputs, and
N multiplications by the alphas. An N-bit integer added bit by bit takes as many.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowprec.metrics import sqnr_db
from lowprec.scaling.codebook import lloyd_max
from lowprec.study.gemm_recipes_front import spread

Weights = NDArray[np.float64]
ALTERNATING = 8
"""Up to how many binary weights signs are fitted again: 2^N sums are sorted for each channel."""
_ROUNDS = 4
_SCALE_BITS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpansionRow:
    """One way to write weights in N bits, on weights of one source.

    `sqnr_db` is that of the weights and `product_db` that of a captured layer's fprop with its x as
    it is; means over units, layers or seeds, with 95 % intervals. `over_integer_db` is the SQNR of
    the weights less that of INT-N with the clip of least squared error, paired by unit.
    `bits_per_element` counts a float32 for every alpha or scale of a channel; additions and
    multiplications are those of one output of a channel with K inputs, means over units.
    """

    source: str
    method: str
    n: int
    k: float
    bits_per_element: float
    additions: float
    multiplications: float
    units: int
    sqnr_db: float
    sqnr_low: float
    sqnr_high: float
    product_db: float | None
    product_low: float | None
    product_high: float | None
    over_integer_db: float | None
    over_low: float | None
    over_high: float | None


class Unit(NamedTuple):
    """A weight matrix, and what it is multiplied with where that is known.

    Attributes:
      name: of the layer or the seed.
      w: (channels, K) float64.
      x: (tokens, K) float64, or None.
    """

    name: str
    w: Weights
    x: Weights | None


def greedy(w: Weights, count: int) -> Iterator[Weights]:
    """Sums of 1, 2, ... binary weights, each fitted to what the last one left.

    B_i = sign(r) and alpha_i = mean |r| of each channel's residual r, the least-squares alpha of
    those signs (XNOR-Net, arXiv 1603.05279; residual expansion as in HORQ, arXiv 1708.08687).
    sign(0) = 1; alphas are rounded to float32.

    Args:
      w: (channels, K).
      count: how many.

    Example:
      >>> [x.tolist() for x in greedy(np.array([[3.0, -1.0, 1.0, -3.0]]), 2)]
      [[[2.0, -2.0, 2.0, -2.0]], [[3.0, -1.0, 1.0, -3.0]]]
    """
    total = np.zeros_like(w)
    for _ in range(count):
        rest = w - total
        total = total + _float32(np.abs(rest).mean(1, keepdims=True)) * _signs(rest)
        yield total


def refitted(w: Weights, count: int) -> Iterator[Weights]:
    """The same, all alphas of a channel fitted again by least squares with each new sign.

    As in network sketching (arXiv 1706.02021): the next signs are those of what is left then.
    """
    total, signs = np.zeros_like(w), np.empty((w.shape[0], 0, w.shape[1]))
    for _ in range(count):
        signs = np.concatenate([signs, _signs(w - total)[:, None]], 1)
        total = _combined(_fitted(w, signs), signs)
        yield total


def alternating(w: Weights, count: int) -> Iterator[Weights]:
    """Signs and alphas in turns: signs of the nearest sum, then least squares, four times.

    As in alternating multi-bit quantization (arXiv 1802.00150), from where `refitted` ends. At most
    `ALTERNATING` binary weights.
    """
    start = refitted(w, count)
    signs = np.empty((w.shape[0], 0, w.shape[1]))
    before = np.zeros_like(w)
    for _ in range(min(count, ALTERNATING)):
        signs = np.concatenate([signs, _signs(w - before)[:, None]], 1)
        before = next(start)
        own = signs
        for _ in range(_ROUNDS):
            alphas = _fitted(w, own)
            own = _nearest(w, alphas)
        yield _combined(_fitted(w, own), own)


def integer(w: Weights, count: int) -> Iterator[Weights]:
    """Symmetric integers of 2, 3, ... bits, the largest weight at the largest; 1 bit is `greedy`'s.

    A sign alone has no largest weight to keep.
    """
    yield from greedy(w, 1)
    for bits in range(2, count + 1):
        yield _rounded(w, bits, np.abs(w).max(1, keepdims=True))


def clipped_integer(w: Weights, count: int) -> Iterator[Weights]:
    """Symmetric integers, each channel's largest at the best of 64 parts of its largest weight."""
    largest = np.abs(w).max(1, keepdims=True)
    yield from greedy(w, 1)
    for bits in range(2, count + 1):
        best, least = np.zeros_like(w), np.full((w.shape[0], 1), np.inf)
        for part in np.linspace(1 / 64, 1, 64):
            found = _rounded(w, bits, part * largest)
            error = np.sum((w - found) ** 2, 1, keepdims=True)
            best, least = np.where(error < least, found, best), np.minimum(error, least)
        yield best


def fitted_levels(w: Weights, count: int) -> Iterator[Weights]:
    """Lloyd-Max levels of N(0, 1) times each channel's root mean square; at most 8 bits."""
    normal = np.random.default_rng(0).standard_normal(1 << 18)
    scale = _float32(np.sqrt(np.mean(w * w, 1, keepdims=True)))
    for bits in range(1, min(count, 8) + 1):
        levels = np.array(lloyd_max(normal, bits).table, np.float64)
        middles = (levels[1:] + levels[:-1]) / 2
        safe = np.where(scale == 0, 1, scale)
        yield levels[np.searchsorted(middles, w / safe)] * scale


METHODS: Mapping[str, Callable[[Weights, int], Iterator[Weights]]] = {
    "binary, greedy": greedy,
    "binary, refitted": refitted,
    "binary, alternating": alternating,
    "INT-N": integer,
    "INT-N, best clip": clipped_integer,
    "Lloyd-Max": fitted_levels,
}
"""Every way to write a weight in N bits."""
BASELINE = "INT-N, best clip"


def _float32(x: Weights) -> Weights:
    return x.astype(np.float32).astype(np.float64)


def _signs(x: Weights) -> Weights:
    return np.where(x < 0, -1.0, 1.0)


def _fitted(w: Weights, signs: Weights) -> Weights:
    """Least-squares alphas (channels, N) of signs (channels, N, K); the shortest where many are."""
    gram = signs @ signs.transpose(0, 2, 1)
    right = np.einsum("cnk,ck->cn", signs, w)
    return _float32(np.einsum("cij,cj->ci", np.linalg.pinv(gram, hermitian=True), right))


def _combined(alphas: Weights, signs: Weights) -> Weights:
    return np.einsum("cn,cnk->ck", alphas, signs)


def _nearest(w: Weights, alphas: Weights) -> Weights:
    """The signs (channels, N, K) of the sum nearest to each weight, of all 2^N of a channel."""
    count = alphas.shape[1]
    patterns = 1.0 - 2.0 * ((np.arange(1 << count)[:, None] >> np.arange(count)) & 1)
    sums = alphas @ patterns.T
    order = np.argsort(sums, 1, kind="stable")
    out = np.empty((len(w), count, w.shape[1]))
    for channel, (own, places) in enumerate(zip(w, order, strict=True)):
        levels = sums[channel, places]
        found = places[np.searchsorted((levels[1:] + levels[:-1]) / 2, own)]
        out[channel] = patterns[found].T
    return out


def _rounded(w: Weights, bits: int, largest: Weights) -> Weights:
    top = 2 ** (bits - 1) - 1
    step = _float32(largest / top)
    safe = np.where(step == 0, 1, step)
    return step * np.clip(np.rint(w / safe), -top, top)


def expansion_rows(source: str, units: Sequence[Unit], count: int) -> list[ExpansionRow]:
    """The rows of all methods on some weights, from 1 to `count` bits.

    Args:
      source: what the weights are.
      units: two or more.
      count: the most bits.
    """
    errors: dict[tuple[str, int], list[float]] = {}
    products: dict[tuple[str, int], list[float]] = {}
    for unit in units:
        y = None if unit.x is None else unit.x @ unit.w.T
        for name, method in METHODS.items():
            for n, w in enumerate(method(unit.w, count), start=1):
                errors.setdefault((name, n), []).append(sqnr_db(w, unit.w))
                if y is not None and unit.x is not None:
                    products.setdefault((name, n), []).append(sqnr_db(unit.x @ w.T, y))
    depth = float(np.mean([unit.w.shape[1] for unit in units]))
    share = float(np.mean([1 / unit.w.shape[1] for unit in units]))
    return [
        _row(source, place, depth, share, errors, products.get(place)) for place in sorted(errors)
    ]


def _row(
    source: str,
    place: tuple[str, int],
    depth: float,
    share: float,
    errors: Mapping[tuple[str, int], Sequence[float]],
    product: Sequence[float] | None,
) -> ExpansionRow:
    method, n = place
    binary = method.startswith("binary")
    own, base = np.array(errors[place]), np.array(errors[BASELINE, n])
    nothing = (None, None, None)
    sqnr, seen = spread(own), nothing if product is None else spread(product)
    over = nothing if method == BASELINE else spread(own - base)
    return ExpansionRow(
        source=source,
        method=method,
        n=n,
        k=depth,
        bits_per_element=n + (n if binary else 1) * _SCALE_BITS * share,
        additions=(n if binary else 1) * depth - 1,
        multiplications=float(n) if binary else depth,
        units=len(own),
        sqnr_db=sqnr[0],
        sqnr_low=sqnr[1],
        sqnr_high=sqnr[2],
        product_db=seen[0],
        product_low=seen[1],
        product_high=seen[2],
        over_integer_db=over[0],
        over_low=over[1],
        over_high=over[2],
    )


def gaussian_units(count: int, shape: tuple[int, int], seed: int) -> list[Unit]:
    """Weights from N(0, 1), a unit a seed."""
    draw = lambda i: np.random.default_rng([seed, i]).standard_normal(shape)
    return [Unit(f"seed {i}", draw(i), None) for i in range(count)]
