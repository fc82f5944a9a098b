"""The family `kvquant`: fitted levels, ranges of keys by channel and of values by token."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from lowprec.kv.codes import Fitted
from lowprec.kv.nonuniform import NonuniformCode, half_range
from lowprec.kv.pair import PairSpec
from lowprec.kv.pair_cache import SIDES, PairCache
from lowprec.kv.rope import Rope
from lowprec.kv.samples import check_shape as check_shape
from lowprec.kv.samples import token_rows, whole_samples
from lowprec.kv.store import Layout
from lowprec.numerics.format import get_format
from lowprec.numerics.spec import check_spec

Sample = Mapping[str, np.ndarray]
Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KVQuantSpec(PairSpec):
    """KVQuant (arXiv 2401.18079), nuq with outliers: keys are kept as they are before RoPE.

    A cache of one layer: levels and ranges are a layer's own. Values are coded over all its heads.

    NaN, Inf and what is too large are outliers: they are kept as such in float16, where they are
    NaN or Inf, and the others stay finite, though of values fewer have a pair of their own. Keys
    whose outliers have no room are coded, and a NaN among these is an arbitrary finite number.

    Attributes:
      name: the entry's name.
      family: `kvquant`.
      bits: of a code.
      outliers: the share of numbers kept as float16 pairs with 16-bit places, both tails together.
        A token has room for that share of its numbers, rounded up for each tail, and all of it is
        stored; keys that have more beyond their channels' ranges are coded instead, at the range's
        end.
      sinks: first tokens kept in float16.
      iterations: of the k-means that finds levels, at the latest.
    """

    name: str
    family: Literal["kvquant"] = "kvquant"
    bits: int
    outliers: float
    sinks: int
    iterations: int
    before_rope: ClassVar[bool] = True

    def __post_init__(self) -> None:
        what = f"method {self.name!r}"
        check_spec(what, self)
        for name, least in (("sinks", 0), ("iterations", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{what}: {name} = {getattr(self, name)} must be at least {least}")
        self.layouts()

    @property
    def calibrated(self) -> bool:
        """See `Spec.calibrated`."""
        return True

    def without_window(self) -> Self:
        """See `Spec.without_window`."""
        return dataclasses.replace(self, sinks=0)

    def layouts(self) -> tuple[Layout, Layout]:
        """See `PairSpec.layouts`."""
        keys, values = (
            Layout(
                code=NonuniformCode(bits=self.bits, outliers=self.outliers, per=per),
                exact=get_format("float16"),
                sinks=self.sinks,
            )
            for per in ("channel", "token")
        )
        return keys, values

    def init(
        self,
        fitted: Fitted,
        batch: int,
        heads: int,
        dim: int,
        length: int,
        *,
        rope: Rope | None = None,
    ) -> PairCache:
        """See `KVMethod.init`."""
        if fitted:
            check_shape(self.name, fitted["keys"]["offset"].shape, (heads, dim))
        return super().init(fitted, batch, heads, dim, length, rope=rope)

    def fit(self, samples: Sequence[Sample]) -> Fitted:
        """Ranges of the keys' channels and the levels of keys and of values.

        A channel's range ends at the percentiles that leave half of `outliers` beyond either end;
        a token of values is scaled by such ends of its own. Levels are the means of weighted
        k-means of the scaled numbers within [-1, 1], the first `sinks` tokens left out.

        Args:
          samples: with `k_before_rope` and `v` (batch, heads, tokens, dim), of one size of heads
            and dim, and gradients of the loss, `k_grad` and `v_grad`, of the same shapes: their
            squares (Fisher information) are the weights. Without them, in any sample, all weights
            are 1.

        Raises:
          ValueError: a sample lacks keys or values, has Inf or NaN or other heads than the first;
            gradients of other shapes; a channel's range that float16 does not hold; too few
            different numbers.
        """
        found = {}
        for side, name, grad in zip(
            SIDES, ("k_before_rope", "v"), ("k_grad", "v_grad"), strict=True
        ):
            data = whole_samples(self.name, samples, name)
            weights = [np.ones(x.shape) for x in data]
            if all(grad in sample for sample in samples):
                slopes = whole_samples(self.name, samples, grad)
                weights = [np.square(x.astype(np.float64)) for x in slopes]
            shapes = [[x.shape for x in each] for each in (data, weights)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"`samples`: {grad} of the shapes {shapes[1]} is not that of {name}, of "
                    f"{shapes[0]}"
                )
            found[side] = self._fit_side(side, data, weights)
        return found

    def _fit_side(
        self, side: str, data: list[np.ndarray], weights: list[Floats]
    ) -> dict[str, np.ndarray]:
        heads, dim = data[0].shape[1], data[0].shape[3]
        rows = np.concatenate([token_rows(x) for x in data])
        axis = 0 if side == "keys" else 1
        percents = 50 * self.outliers, 100 - 50 * self.outliers
        lower, upper = np.percentile(rows, percents, axis=axis, keepdims=True)
        width = (upper - lower) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (rows - (upper + lower) / 2) / width
        counted = np.concatenate(
            [
                np.broadcast_to(np.arange(x.shape[2]) >= self.sinks, x.shape[::2]).ravel()
                for x in data
            ]
        )
        kept = (np.abs(z) <= 1) & counted[:, None]
        weight = np.concatenate([token_rows(x) for x in weights])[kept]
        levels = k_means(z[kept].astype(np.float64), weight, 1 << self.bits, self.iterations)
        found = {"levels": levels.astype(np.float32)}
        if side == "keys":
            found |= self._channels(lower.reshape(heads, dim), upper.reshape(heads, dim))
        return found

    def _channels(self, lower: np.ndarray, upper: np.ndarray) -> dict[str, np.ndarray]:
        """The ends of channels (heads, dim), half their sum and their difference, float16."""
        with np.errstate(over="ignore", invalid="ignore"):
            ends = lower.astype(np.float16), upper.astype(np.float16)
            offset, half_width = half_range(*ends)
        found = {"lower": ends[0], "upper": ends[1], "offset": offset, "width": half_width}
        infinite = ~np.logical_and.reduce([np.isfinite(x) for x in found.values()])
        if infinite.any():
            head, channel = np.argwhere(infinite)[0]
            raise ValueError(
                f"`samples`: k_before_rope of the heads {np.flatnonzero(infinite.any(1)).tolist()} "
                f"has channels such as {channel} of head {head}, {lower[head, channel]:.4g} to "
                f"{upper[head, channel]:.4g}: float16, in which the method {self.name} keeps their "
                f"ends, sum and difference, holds {np.finfo(np.float16).max:.0f} at most. Divide "
                f"keys by a power of two and multiply queries by it"
            )
        return found

    def nbytes(self, fitted: Fitted, *, kv_heads: int, dim: int, length: int | None) -> float:
        """See `Spec.nbytes`: all room for outliers; levels and ranges, a layer's, do not count."""
        del fitted
        return super().nbytes({}, kv_heads=kv_heads, dim=dim, length=length)


def k_means(z: Floats, weights: Floats, count: int, iterations: int) -> Floats:
    """`count` ascending means of weighted k-means of numbers, float64.

    The better of what two starts lead to: equally filled parts, and equal parts of the range. On
    the host; the same numbers give the same means.

    Raises:
      ValueError: fewer different numbers of a weight above 0 than means.

    Example:
      >>> k_means(np.array([0.0, 1.0, 4.0, 6.0]), np.array([1.0, 1.0, 3.0, 1.0]), 2, 50)
      array([0.5, 4.5])
    """
    order = np.argsort(z, kind="stable")
    z, weights = z[order], weights[order]
    distinct = len(np.unique(z[weights > 0]))
    if distinct < count:
        raise ValueError(f"`samples` have {distinct} different numbers; {count} are needed")
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    moment = np.concatenate([[0.0], np.cumsum(weights * z)])
    parts = (np.arange(count) + 0.5) / count
    starts = (np.interp(parts * mass[-1], mass[1:], z), z[0] + (z[-1] - z[0]) * parts)
    fits = [_iterated(z, mass, moment, start, iterations) for start in starts]
    errors = [np.sum(weights * (z - np.repeat(x, np.diff(_cells(z, x)))) ** 2) for x in fits]
    return fits[int(np.argmin(errors))]


def _iterated(z: Floats, mass: Floats, moment: Floats, means: Floats, iterations: int) -> Floats:
    """Cells end halfway between means, means become those of their cells; empty ones stay."""
    for _ in range(iterations):
        cells = _cells(z, means)
        weight = np.diff(mass[cells])
        sums = np.diff(moment[cells])
        following = np.where(weight > 0, sums / np.where(weight > 0, weight, 1.0), means)
        if np.array_equal(following, means):
            break
        means = following
    return means


def _cells(z: Floats, means: Floats) -> NDArray[np.int64]:
    inner = np.searchsorted(z, (means[1:] + means[:-1]) / 2, side="right")
    return np.concatenate([[0], inner, [len(z)]])
