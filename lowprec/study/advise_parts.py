"""Products cut in two parts: what a recipe is chosen on, and what its error is reported on.

Tokens are cut into groups, even ones to choose on and odd ones to report. In fprop and dgrad they
are rows of one product; in wgrad they are contracted, and each group is a product of its own, of
fewer terms than the layer's: errors are those of the short sums, bits those of the layer's K.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lowprec.gemm.recipe import Role
from lowprec.models.array_checks import check_values
from lowprec.models.operands import ROLES, Operands, as_narrow

STRIPE = 128
"""Neighbouring columns that are sampled together, so that tiles of a weight stay whole."""
WHOLE = (128, 32)
"""Tokens that a group in wgrad is a multiple of, the first that fits: tiles of 128 and of 32."""
FEWEST = 4
"""Groups: an interval needs two of each part."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of the operands is multiplied.

    Attributes:
      tokens: at most so many of a layer, in groups that are spread evenly over all of them.
      outputs: at most so many columns of a weight or gradient that are not contracted, in stripes
        of 128 spread evenly; the contraction in fprop and dgrad is never cut.
      groups: into how many groups tokens are cut, an even number from 4 to 32; fewer in wgrad where
        they would be shorter than 128 tokens.
    """

    tokens: int = 2048
    outputs: int = 512
    groups: int = 16

    def __post_init__(self) -> None:
        if not FEWEST <= self.groups <= 32 or self.groups % 2:
            raise ValueError(f"`groups` = {self.groups}; an even number from {FEWEST} to 32")
        if self.tokens < FEWEST:
            raise ValueError(f"`tokens` = {self.tokens}; at least {FEWEST}")
        if self.outputs < 1:
            raise ValueError(f"`outputs` = {self.outputs}; at least 1")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """The products of one part.

    Attributes:
      pairs: (a, b) matrices (M, K) and (K, N): one pair, or in wgrad one for each group.
      exact: their float64 products.
      groups: how many groups the rows of each pair are, of equally many rows.
    """

    pairs: tuple[tuple[NDArray, NDArray], ...]
    exact: tuple[NDArray[np.float64], ...]
    groups: int

    @property
    def signal(self) -> NDArray[np.float64]:
        """The energy of the exact product in each group."""
        return self.energies(self.exact)

    def noise(self, results: Sequence[NDArray]) -> NDArray[np.float64]:
        """The energy of the error of products, pair by pair, in each group."""
        return self.energies(
            [y.astype(np.float64) - exact for y, exact in zip(results, self.exact, strict=True)]
        )

    def energies(self, matrices: Sequence[NDArray]) -> NDArray[np.float64]:
        """The sum of squares in each group."""
        return np.concatenate([np.square(x.reshape(self.groups, -1)).sum(1) for x in matrices])


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Product:
    """One product of a layer, to choose on and to report.

    Attributes:
      layer, role: which.
      select, report: its parts, of equal shapes and other tokens.
      shape: (M, K, N) of each pair.
      depth: K of the layer's own product, in wgrad all its tokens: what a row's scale is spread
        over. The pairs contract as many numbers, but in wgrad no more than a group has tokens.
      tokens: of each part.
    """

    layer: str
    role: Role
    select: Part
    report: Part
    shape: tuple[int, int, int]
    depth: int
    tokens: int


def cut(layer: Operands, role: Role, limits: Limits) -> Product:
    """A layer's product in one role, cut into both parts.

    Args:
      layer: with the two operands of the role.
      role: `fprop`, `dgrad` or `wgrad`.
      limits: how much is used.

    Raises:
      ValueError: too few tokens for two groups of each part, NaN or Inf, or a product of zeros.

    Example:
      >>> layer = Operands("fc", x=np.ones((64, 8), np.float32), w=np.ones((8, 2), np.float32))
      >>> product = cut(layer, "fprop", Limits(groups=4))
      >>> product.shape, product.tokens, product.select.signal.tolist()
      ((32, 8, 2), 32, [2048.0, 2048.0])
    """
    for name in ROLES[role]:
        check_values(f"{layer.layer}.{name}", getattr(layer, name))
    a, b = (as_narrow(x) for x in layer.product(role))
    if role == "wgrad":
        a, b = a[_sampled(a.shape[0], limits.outputs)], b[:, _sampled(b.shape[1], limits.outputs)]
        groups = _groups(b.shape[0], layer.layer, role, limits)
        parts = [_batches(a, b, groups[i::2]) for i in (0, 1)]
    else:
        b = b[:, _sampled(b.shape[1], limits.outputs)]
        groups = _groups(a.shape[0], layer.layer, role, limits)
        parts = [_rows(a, b, groups[i::2]) for i in (0, 1)]
    for part in parts:
        if not part.signal.sum() > 0:
            raise ValueError(
                f"layer {layer.layer}: the product {role} is zero on the tokens looked at, so no "
                f"error can be set against it; leave the layer out with `layers`, or the role"
            )
    first, second = parts[0].pairs[0]
    return Product(
        layer=layer.layer,
        role=role,
        select=parts[0],
        report=parts[1],
        shape=(*first.shape, second.shape[1]),
        depth=a.shape[1],
        tokens=sum(len(group) for group in groups[::2]),
    )


def _sampled(size: int, most: int) -> NDArray[np.intp]:
    """Indices of at most so many of an axis, in whole stripes where some are left out."""
    if size <= most:
        return np.arange(size)
    width = min(STRIPE, most)
    count = max(1, most // width)
    starts = np.linspace(0, size - width, count).astype(np.intp) // width * width
    return (np.unique(starts)[:, None] + np.arange(width)).ravel()


def _groups(tokens: int, layer: str, role: Role, limits: Limits) -> list[NDArray[np.intp]]:
    """The tokens of each group, spread evenly over all."""
    used, count, whole = min(tokens, limits.tokens), limits.groups, 1
    if role == "wgrad":
        count = max(FEWEST, min(count, used // WHOLE[0] // 2 * 2))
        whole = next((size for size in WHOLE if size <= used // count), WHOLE[-1])
    else:
        count = min(count, used // 2 * 2)
    length = used // max(count, 1) // whole * whole
    if count < FEWEST or not length:
        least = FEWEST * whole
        raise ValueError(
            f"layer {layer}: {used} tokens are too few to choose a recipe for {role} on some and "
            f"report it on others: {FEWEST} groups of {whole} are needed, {least} tokens"
            + ("; wgrad contracts tokens: leave it out with --role" if role == "wgrad" else "")
            + f"; record {least} tokens or more"
        )
    starts = [i * tokens // count for i in range(count)]
    return [np.arange(start, start + length) for start in starts]


def _rows(a: NDArray, b: NDArray, groups: Sequence[NDArray[np.intp]]) -> Part:
    rows = a[np.concatenate(groups)]
    return Part(pairs=((rows, b),), exact=(_exact(rows, b),), groups=len(groups))


def _batches(a: NDArray, b: NDArray, groups: Sequence[NDArray[np.intp]]) -> Part:
    pairs = tuple((np.ascontiguousarray(a[:, group]), b[group]) for group in groups)
    return Part(pairs=pairs, exact=tuple(_exact(*pair) for pair in pairs), groups=1)


def _exact(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    return a.astype(np.float64) @ b.astype(np.float64)
