"""The family `low_rank`: keys before RoPE and values in the leading directions of fitted bases."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from lowprec.kv.codes import Fitted
from lowprec.kv.low_rank_code import LowRankCode
from lowprec.kv.low_rank_samples import token_rows, whole_samples
from lowprec.kv.pair import SIDES, PairCache, PairSpec
from lowprec.kv.rope import Rope
from lowprec.kv.store import Layout
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.spec import check_spec
from lowprec.scaling.block import Block

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRankSpec(PairSpec):
    """Palu-like (arXiv 2407.21118): groups of heads share a basis, keys are turned when rebuilt.

    A cache sees keys and values, not the layer that makes them. Palu decomposes that layer's
    weights, W near L R, keeps R h of a token's hidden state h, and folds L of the values into the
    output projection; here keys and values themselves are projected and rebuilt. Of W whitened by
    the hidden states of a text (Palu's `from_linear_whiten`) L R h is the projection of W h on the
    leading eigenvectors of the second moment of W h over that text, which is what `fit` finds: the
    values that attention sees are those of Palu calibrated on the samples, while the weights saved
    and the time won are no matter of a cache. All groups have one rank, as under Palu's search
    method `uniform`; ranks by Fisher information need the model.

    Attributes:
      name: the entry's name.
      family: `low_rank`.
      ratio, head_group: see `LowRankCode`.
      latents: a format of 16 bits or fewer, or a block; a tile becomes a group's whole rank.
      element: what the block's codes are, in place of its own.
      rotation: `hadamard`: latents are turned by Sylvester's matrix over the root of the rank, in
        the bases already.

    Example:
      >>> import numpy as np
      >>> from lowprec.kv import get_kv_method
      >>> k = np.random.default_rng(0).normal(size=(1, 2, 64, 16)).astype(np.float32)
      >>> method = get_kv_method("palu_50").fit([{"k_before_rope": k, "v": k}])
      >>> cache = method.append(method.init(1, 2, 16, 64), k, k)
      >>> cache.nbytes, 2 * k.size * 2
      (4096, 8192)
    """

    name: str
    family: Literal["low_rank"] = "low_rank"
    ratio: float
    head_group: int
    latents: Format | Block
    element: Format | None = None
    rotation: Literal["none", "hadamard"] = "none"
    before_rope: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_spec(f"method {self.name!r}", self)
        if self.element is not None and isinstance(self.latents, Format):
            raise ValueError(
                f"method {self.name!r}: `element` = {self.element.name} is of a block, and latents "
                f"= {self.latents.name} is a format"
            )
        self.layouts()

    @property
    def calibrated(self) -> bool:
        """See `Spec.calibrated`."""
        return True

    @property
    def code(self) -> LowRankCode:
        """Of keys and of values alike."""
        latents = self.latents
        if isinstance(latents, Block):
            element = self.element or latents.element
            latents = dataclasses.replace(latents, element=element, tile=(1, "all"))
        return LowRankCode(latents=latents, ratio=self.ratio, head_group=self.head_group)

    def layouts(self) -> tuple[Layout, Layout]:
        """See `PairSpec.layouts`."""
        layout = Layout(code=self.code, exact=get_format("bfloat16"))
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
        groups, each, rank = self._sizes(heads, dim)
        if fitted and fitted["keys"]["down"].shape != (groups, each * dim, rank):
            found = fitted["keys"]["down"].shape
            raise ValueError(
                f"`heads` = {heads}, `dim` = {dim}: the method {self.name} was fitted to {found[0]}"
                f" groups of {found[1]} numbers, and needs {groups} of {each * dim}"
            )
        return super().init(fitted, batch, heads, dim, length, rope=rope)

    def fit(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Fitted:
        """Bases of keys and of values, by group of heads.

        With s_i the singular values of all tokens as rows, the largest first, and u_i the right
        singular vectors, `down` has the columns u_i / sqrt(s_i) and `up` the rows sqrt(s_i) u_i, as
        Palu splits singular values; then both are turned by `rotation`. On the host in float64,
        stored in float32: repeatable on one machine and version.

        Args:
          samples: with `k_before_rope` and `v` (batch, heads, tokens, dim), of one size of heads
            and dim.

        Raises:
          ValueError: a sample lacks keys or values, has Inf or NaN or other heads than the first;
            fewer tokens in all than the rank, or so alike that they span fewer directions.
        """
        found = {}
        for side, name in zip(SIDES, ("k_before_rope", "v"), strict=True):
            data = whole_samples(self.name, samples, name)
            groups, each, rank = self._sizes(data[0].shape[1], data[0].shape[3])
            bases = [self._bases(name, x, rank) for x in _grouped(data, groups, each)]
            down, up = (np.stack(x).astype(np.float32) for x in zip(*bases, strict=True))
            found[side] = {"down": down, "up": up}
        return found

    def nbytes(self, fitted: Fitted, *, kv_heads: int, dim: int, length: int | None) -> float:
        """See `Spec.nbytes`; the bases, one a layer, are not counted."""
        del fitted
        return super().nbytes({}, kv_heads=kv_heads, dim=dim, length=length)

    def _sizes(self, heads: int, dim: int) -> tuple[int, int, int]:
        groups, each, rank = self.code.sizes(heads, dim)
        if self.rotation == "hadamard" and rank & (rank - 1):
            raise ValueError(
                f"`heads` = {heads}, `dim` = {dim}: the method {self.name} has the rank {rank}, and"
                f" rotation = 'hadamard' needs a power of two; change `ratio` or `head_group`"
            )
        return groups, each, rank

    def _bases(self, name: str, rows: Floats, rank: int) -> tuple[Floats, Floats]:
        _, sizes, vectors = np.linalg.svd(rows, full_matrices=False)
        # Of directions that the data lacks nothing is known but rounding errors.
        spanned = int((sizes > sizes[0] * np.finfo(np.float64).eps * max(rows.shape)).sum())
        if spanned < rank:
            raise ValueError(
                f"`samples`: {name} spans {spanned} directions of a group of {rows.shape[1]} "
                f"numbers, and the method {self.name} keeps {rank}; give more, different tokens"
            )
        roots, basis = np.sqrt(sizes[:rank]), vectors[:rank].T
        down, up = basis / roots, (basis * roots).T
        if self.rotation == "none":
            return down, up
        turn = _sylvester(rank) / np.sqrt(rank)
        return down @ turn, turn.T @ up


def _sylvester(size: int) -> Floats:
    """Sylvester's Hadamard matrix of +1 and -1."""
    places = np.arange(size)
    return 1.0 - 2.0 * (np.bitwise_count(places[:, None] & places) % 2)


def _grouped(data: Sequence[np.ndarray], groups: int, each: int) -> list[Floats]:
    """Rows of a group's numbers, for each group."""
    rows = np.concatenate([token_rows(x) for x in data]).astype(np.float64)
    dim = data[0].shape[3]
    return [rows[:, i * each * dim : (i + 1) * each * dim] for i in range(groups)]
