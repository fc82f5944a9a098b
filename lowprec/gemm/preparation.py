"""What a recipe does to a weight beforehand, as values: smoothing, rotation, GPTQ, low rank.

A preparation is the part of a recipe that is fitted, or drawn, once for each weight. It names no
format: the blocks are those of the recipe's fprop operands.
"""

import dataclasses
from typing import Literal

from lowprec.numerics.format import Format
from lowprec.numerics.rounding import is_stochastic
from lowprec.numerics.spec import check_spec
from lowprec.scaling.block import Block
from lowprec.scaling.codings import Transform


@dataclasses.dataclass(frozen=True, kw_only=True)
class Smoothing:
    """x / s and s * w, which leaves the product as it was: s one factor a channel (place along K).

    Attributes:
      method: `smoothquant` (arXiv 2211.10438, equation 4): s = max|x|^strength /
        max|w|^(1 - strength), with max|w| and s at least `least`. `awq` (arXiv 2306.00978, section
        3.2): s = m^ratio / sqrt(max * min of m^ratio), where m is the mean of |x| over its own
        largest, and m and m^ratio are at least `least`; the ratio is that of the smallest loss on
        a grid, the first of equals.
      strength: of `smoothquant`, from 0 (all difficulty stays in x) to 1.
      ratios: of `awq`: how many, evenly spaced from 0.
      endpoint: of `awq`: whether ratio 1 is the last of them, or would be the next.
      loss: of `awq`, of the weight's error e once s is divided out again: `weighted`, the mean of
        (mean|x| * e)^2, or `output`, the squared error of the product with all calibration rows.
      least: see `method`.
    """

    method: Literal["smoothquant", "awq"]
    strength: float | None = None
    ratios: int | None = None
    endpoint: bool = True
    loss: Literal["weighted", "output"] = "weighted"
    least: float

    def __post_init__(self) -> None:
        check_spec("smoothing", self)
        smoothquant = self.method == "smoothquant"
        _check(
            "smoothing",
            (
                smoothquant == (self.strength is not None),
                "strength is for method = 'smoothquant', which needs it",
            ),
            (
                smoothquant != (self.ratios is not None),
                "ratios is for method = 'awq', which needs it",
            ),
            (
                self.strength is None or 0 <= self.strength <= 1,
                f"strength = {self.strength}; from 0 to 1",
            ),
            (self.ratios is None or self.ratios >= 2, f"ratios = {self.ratios}; at least 2"),
            (
                not smoothquant or (self.endpoint and self.loss == "weighted"),
                "endpoint and loss are for method = 'awq'",
            ),
            (self.least > 0, f"least = {self.least}; above 0, or a channel would vanish"),
        )

    @property
    def grid(self) -> tuple[float, ...]:
        """The ratios that `awq` tries.

        Example:
          >>> Smoothing(method="awq", ratios=5, least=1e-4).grid
          (0.0, 0.25, 0.5, 0.75, 1.0)
        """
        if self.ratios is None:
            return ()
        steps = self.ratios - 1 if self.endpoint else self.ratios
        return tuple(i / steps for i in range(self.ratios))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotation:
    """An orthogonal matrix between both operands: Q x and Q w along K, in blocks of `size`.

    Attributes:
      kind: `hadamard`: Q = H D / sqrt(size), H in Sylvester order, D a diagonal of signs.
        `orthogonal`: uniform over all orthogonal matrices, drawn from `seed`.
      size: of a block; 0 is the largest power of two that divides K, or all of K (`orthogonal`).
      seed: of the K signs of D; None leaves them out.
    """

    kind: Literal["hadamard", "orthogonal"]
    size: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        check_spec("rotation", self)
        _check(
            "rotation",
            (self.size >= 0, f"size = {self.size}; at least 0"),
            (
                self.kind == "orthogonal" or self.size & (self.size - 1) == 0,
                f"size = {self.size}; a hadamard rotation's is a power of two",
            ),
            (
                self.kind == "hadamard" or self.seed is not None,
                "kind = 'orthogonal' needs a seed",
            ),
        )

    def transform(self, depth: int) -> Transform:
        """The rotation of an axis of `depth`, as the transform that does it.

        Example:
          >>> Rotation(kind="hadamard").transform(704).size
          64
        """
        if self.kind == "orthogonal":
            return Transform(kind="orthogonal", size=self.size or depth, seed=self.seed)
        signs = "given" if self.seed is not None else ()
        return Transform(kind="hadamard", size=self.size or depth & -depth, signs=signs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gptq:
    """GPTQ (arXiv 2210.17323): columns are rounded in turn, later ones make up for the errors.

    A column is all weights of one place along K. With H the mean of x x^T over calibration rows,
    plus `damping` times the mean of its diagonal, and U the upper Cholesky factor of its inverse,
    the error e = (w_k - q_k) / U_kk is taken off the later columns as U_kj e. Columns that
    calibration never reached (H_kk = 0) become zero, and their H_kk 1, as in the source; the mean
    for the damping is taken before that, as qwix does and the source does not.

    Attributes:
      damping: see above.
      columns: how many columns are finished before the others are updated; of the bits of the
        result it changes float64 rounding alone, but for scales = "start".
      order: `natural`, or `activation`: by falling H_kk, the earlier of equals first.
      scales: what a tile's scale is made for: its weights as `updated` when its first column is
        reached; as they were at the `start` of the columns that are finished together (the
        source's code, the same for tiles of whole such steps); or the `original` weights (static
        groups; needed for order = "activation" where tiles do not span K).
    """

    damping: float = 0.01
    columns: int = 128
    order: Literal["natural", "activation"] = "natural"
    scales: Literal["updated", "start", "original"] = "updated"

    def __post_init__(self) -> None:
        check_spec("gptq", self)
        _check(
            "gptq",
            (self.damping >= 0, f"damping = {self.damping}; at least 0"),
            (self.columns >= 1, f"columns = {self.columns}; at least 1"),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank:
    """A product of two thin matrices beside the quantized one: y = x q(w) + (x A) B.

    Attributes:
      rank: columns of A and rows of B.
      of: `error`: A B is nearest to w - q(w) (LQER, arXiv 2402.02446). `weight`: A B is nearest to
        w itself, and w - A B is quantized (SVDQuant, arXiv 2411.05007).
      weighting: in which norm: `none`, the Frobenius norm; `magnitude`, rows multiplied by the mean
        of |x| (L2QER); `output`, the error of the product with all calibration rows
        (QERA, arXiv 2410.06040), its second moments damped by `damping`.
      damping: a fraction of the mean of their diagonal, of `output` alone.
      format: of A, B, and x as the two products take it.
    """

    rank: int
    of: Literal["error", "weight"]
    weighting: Literal["none", "magnitude", "output"] = "none"
    damping: float | None = None
    format: Literal["bfloat16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        check_spec("low_rank", self)
        _check(
            "low_rank",
            (self.rank >= 1, f"rank = {self.rank}; at least 1"),
            (
                (self.weighting == "output") == (self.damping is not None),
                "damping is for weighting = 'output', which needs it",
            ),
            (self.damping is None or self.damping >= 0, f"damping = {self.damping}; at least 0"),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to a weight before its product, in this order; frozen and hashable.

    Attributes:
      smoothing: factors between x and w.
      rotation: of both.
      gptq: how the weight is rounded; None rounds each number to its own nearest.
      low_rank: of the weight before it is rounded, or of the error after.
    """

    smoothing: Smoothing | None = None
    rotation: Rotation | None = None
    gptq: Gptq | None = None
    low_rank: LowRank | None = None

    def __post_init__(self) -> None:
        check_spec("prepare", self)
        steps = (self.smoothing, self.rotation, self.gptq, self.low_rank)
        _check("prepare", (any(step is not None for step in steps), "an empty table; name a step"))

    @property
    def fitted(self) -> bool:
        """Whether it takes calibration data."""
        weighted = self.low_rank is not None and self.low_rank.weighting != "none"
        return self.smoothing is not None or self.gptq is not None or weighted

    @property
    def reproducibility(self) -> Literal["bit_exact", "same_backend"]:
        """`bit_exact` for a Hadamard rotation alone, else as one machine's float64 LAPACK."""
        drawn = self.rotation is not None and self.rotation.kind == "orthogonal"
        return "same_backend" if self.fitted or self.low_rank or drawn else "bit_exact"

    def check_weight(self, target: Format | Block) -> None:
        """ValueError where a weight of this format or block cannot be prepared so."""
        if not isinstance(target, Block):
            return
        awq = self.smoothing is not None and self.smoothing.method == "awq"
        of_error = self.low_rank is not None and self.low_rank.of == "error"
        transform, where = target.transform, f"prepare of {target.name}"
        signs = transform is not None and transform.needs == "signs"
        random = is_stochastic(target.rounding) or target.eden is not None or signs
        _check(
            where,
            (
                not random or not (awq or of_error or self.gptq is not None),
                "the block draws random numbers, so that no rounding can be fitted to",
            ),
        )
        if self.gptq is None:
            return
        _check(
            where,
            (target.coding != "logarithmic", "logarithmic codes have no scale for gptq to hold"),
            (
                transform is None or transform.kind in ("hadamard", "orthogonal"),
                "its transform depends on the weight; gptq takes a hadamard or orthogonal one",
            ),
            (
                self.gptq.order == "natural"
                or self.gptq.scales == "original"
                or target.tile[1] == "all",
                "order = 'activation' takes the columns of tiles apart: it needs scales = "
                "'original'",
            ),
        )


def _check(where: str, *rules: tuple[bool, str]) -> None:
    for holds, message in rules:
        if not holds:
            raise ValueError(f"{where}: {message}")
