"""The family `transform_coding`: principal components of all heads, large ones in more bits."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from lowprec.kv.codes import Fitted
from lowprec.kv.kvquant import check_shape
from lowprec.kv.low_rank_samples import token_rows, whole_samples
from lowprec.kv.pair import SIDES, PairCache, PairSpec
from lowprec.kv.rope import Rope
from lowprec.kv.store import Layout
from lowprec.kv.transform_coding_allocation import allocate, stream
from lowprec.kv.transform_coding_code import OVERHEAD, TransformCode
from lowprec.numerics.format import get_format
from lowprec.numerics.spec import check_spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformCodingSpec(PairSpec):
    """KVTC-like (arXiv 2511.01815): keys are kept as they are before RoPE, sinks and window exact.

    The paper concatenates all layers and codes a stored prompt at once; a cache here is of one
    layer, and a token is coded when it leaves the window, alone. What is allocated is the stream
    before DEFLATE; `transform_coding_size.entropy_coded_size` tells what DEFLATE makes of it.

    Attributes:
      name: the entry's name.
      family: `transform_coding`.
      ratio: see `TransformCode`; of coded tokens, before DEFLATE.
      sinks: first tokens kept in bfloat16, and left out of what bases are fitted to.
      window: newest tokens kept in bfloat16.
      group_sizes: how many neighbouring components may share a scale, a shift and a number of bits.
      most_bits: of a component, 1 to 8.

    Example:
      >>> import numpy as np
      >>> from lowprec.kv import get_kv_method
      >>> k = np.random.default_rng(0).normal(size=(1, 2, 200, 64)).astype(np.float32)
      >>> method = get_kv_method("kvtc_8x").fit([{"k_before_rope": k, "v": k}])
      >>> method.bits_per_element(kv_heads=2, dim=64)
      2.0
    """

    name: str
    family: Literal["transform_coding"] = "transform_coding"
    ratio: float
    sinks: int
    window: int
    group_sizes: tuple[int, ...]
    most_bits: int
    before_rope: ClassVar[bool] = True

    def __post_init__(self) -> None:
        what = f"method {self.name!r}"
        check_spec(what, self)
        for name in ("sinks", "window"):
            if getattr(self, name) < 0:
                raise ValueError(f"{what}: {name} = {getattr(self, name)} must be at least 0")
        if not self.group_sizes or min(self.group_sizes) < 1:
            raise ValueError(f"{what}: group_sizes = {self.group_sizes}: one or more, at least 1")
        if not 1 <= self.most_bits <= 8:
            raise ValueError(f"{what}: most_bits = {self.most_bits}; use 1 to 8")
        self.layouts()

    @property
    def calibrated(self) -> bool:
        """See `Spec.calibrated`."""
        return True

    @property
    def code(self) -> TransformCode:
        """Of keys and of values alike."""
        return TransformCode(ratio=self.ratio, least_group=min(self.group_sizes))

    def without_window(self) -> Self:
        """See `Spec.without_window`."""
        return dataclasses.replace(self, sinks=0, window=0)

    def layouts(self) -> tuple[Layout, Layout]:
        """See `PairSpec.layouts`."""
        exact = get_format("bfloat16")
        layout = Layout(code=self.code, exact=exact, keep=self.window, sinks=self.sinks)
        return layout, layout

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
        """See `KVMethod.init`; heads and dim are those that the method was fitted to."""
        if fitted:
            check_shape(self.name, fitted["keys"]["mean"].shape, (heads, dim))
        return super().init(fitted, batch, heads, dim, length, rope=rope)

    def fit(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Fitted:
        """Means, principal components and their bits, of keys and of values.

        The components of tokens behind each sample's sinks, all heads of a token in a row, are the
        right singular vectors of the rows less their mean; their variances go to `allocate`, with
        16 bits of each number over `ratio` to spend. On the host in float64, stored in float32:
        repeatable on one machine and version. Fewer tokens than numbers leave components that are
        zero.

        Args:
          samples: with `k_before_rope` and `v` (batch, heads, tokens, dim), of one size of heads
            and dim.

        Raises:
          ValueError: a sample lacks keys or values, has Inf or NaN or other heads than the first;
            fewer than two tokens behind the sinks; a budget that holds no group.
        """
        found = {}
        for side, name in zip(SIDES, ("k_before_rope", "v"), strict=True):
            data = whole_samples(self.name, samples, name)
            found[side] = self._fit_side(name, data)
        return found

    def _fit_side(self, name: str, data: Sequence[np.ndarray]) -> dict[str, NDArray]:
        heads, dim = data[0].shape[1], data[0].shape[3]
        rows = np.concatenate([token_rows(x[:, :, self.sinks :]) for x in data])
        if len(rows) < 2:
            raise ValueError(
                f"`samples`: {name} has {len(rows)} tokens behind the first {self.sinks} of each "
                f"sample; the method {self.name} is fitted to two or more"
            )
        mean, basis, variances = _principal(rows.astype(np.float64))
        length = 8 * heads * self.code.width(dim)
        groups = allocate(
            variances,
            length,
            sizes=self.group_sizes,
            most_bits=self.most_bits,
            overhead=OVERHEAD,
        )
        if not groups:
            raise ValueError(
                f"`heads` = {heads}, `dim` = {dim}: a ratio of {self.ratio} leaves a token "
                f"{length} bits, in which the method {self.name} has no group of components"
            )
        own = stream(groups, heads * dim, self.code.room(heads, dim), length)
        arrays = {"mean": mean.reshape(heads, dim), "basis": basis}
        return {key: x.astype(np.float32) for key, x in arrays.items()} | own._asdict()

    def nbytes(self, fitted: Fitted, *, kv_heads: int, dim: int, length: int | None) -> float:
        """See `Spec.nbytes`; means and bases, one a layer, are not counted."""
        del fitted
        return super().nbytes({}, kv_heads=kv_heads, dim=dim, length=length)


def _principal(rows: NDArray[np.float64]) -> tuple[NDArray, NDArray, NDArray]:
    """Mean, principal components as columns (numbers, numbers), and variances, largest first."""
    mean = rows.mean(axis=0)
    _, sizes, vectors = np.linalg.svd(rows - mean, full_matrices=False)
    count = rows.shape[1]
    missing = count - len(sizes)
    basis = np.pad(vectors.T, [(0, 0), (0, missing)])
    return mean, basis, np.pad(sizes**2 / len(rows), (0, missing))
