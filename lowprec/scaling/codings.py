"""What a block does beside scaling, as values: codings other than scaled ones, and transforms."""

import dataclasses
import math
from typing import Literal

import numpy as np

from lowprec.numerics.spec import check_spec

Arithmetic = Literal["float32", "float16"]
_MOST_OCTAVES = 107
"""Below the smallest float32, 2^-149, so many fit into an int32 in units of 2^-23 octave."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Affine:
    """Integers q from 0 to m = 2^bits - 1 between a tile's smallest and largest value.

    With low and high the ends of the range and s = (high - low) / m, every operation rounded to
    nearest even in `arithmetic`, left to right as written, and q clamped to [0, m]:

    | `zero_point` | code | value | `offsets` holds |
    |---|---|---|---|
    | `minimum` | round((x - low) / s) | q * s + low | low |
    | `integer` | round(x / s) + z, z = round(-low / s) | s * (q - z) | z |
    | `offset` | round(x * e - o), e = m * (1 / (high - low)), o = low * e | (q + o) / e | o |
    | `packed` | round(x * (1 / s) + z), z = round(-low / s) in [0, m] | (q - z) * s' | nothing |

    `packed` keeps z in the low mantissa bits of the float32 scale, and s' is the scale without
    them. The scales hold s, e or the packed scale. A NaN quotient gives the code 0.

    Attributes:
      zero_point: see above.
      arithmetic: the type of x and of every result; float32 x is rounded to it first.
      add_half: rounds v by truncating v + 0.5, or v - 0.5 below zero, after that sum was rounded.
        The block's rounding is then `toward_zero`.
      fused: a product and the sum or difference behind it are rounded once, in coding and decoding.
      with_zero: the range is widened to hold 0.
      clip_ratio: both ends are multiplied by it in float32, then rounded to `arithmetic`.
      min_range, min_scale: high - low, and s, are raised to this.
      zero_range: low = high = 0 is widened to -1 and 1 (`unit`), or left to the arithmetic.
      round_offset: of `offset`: o is rounded to an integer and clamped to [-m, 0].
      nan: a NaN makes its whole tile NaN (`propagate`), or counts for nothing (`ignore`).
      nan_value_zero: values that are NaN or infinite become 0.
      offset_bits: bits of an offset as stored, 0 where it is part of the scale.
    """

    zero_point: Literal["minimum", "integer", "offset", "packed"]
    arithmetic: Arithmetic
    add_half: bool = False
    fused: bool = False
    with_zero: bool = False
    clip_ratio: float = 1.0
    min_range: float = 0.0
    min_scale: float = 0.0
    zero_range: Literal["arithmetic", "unit"] = "arithmetic"
    round_offset: bool = False
    nan: Literal["propagate", "ignore"] = "propagate"
    nan_value_zero: bool = False
    offset_bits: int

    def __post_init__(self) -> None:
        check_spec("affine", self)
        largest = float(np.finfo(self.arithmetic).max)
        for holds, message in (
            (0 < self.clip_ratio <= 1, "clip_ratio must be above 0 and at most 1"),
            (
                0 <= self.min_range <= largest and 0 <= self.min_scale <= largest,
                f"min_range and min_scale must be from 0 to {largest}, {self.arithmetic}'s largest",
            ),
            (
                not self.fused or (self.zero_point != "integer" and self.arithmetic == "float32"),
                "fused = true is for float32 arithmetic and no zero_point = 'integer'",
            ),
            (
                self.zero_point == "offset" or not self.round_offset,
                "round_offset = true needs zero_point = 'offset'",
            ),
            (
                (self.zero_point == "packed") == (self.offset_bits == 0),
                "offset_bits = 0 and zero_point = 'packed' go together",
            ),
            (
                self.zero_point != "packed" or self.arithmetic == "float32",
                "zero_point = 'packed' needs arithmetic = 'float32'",
            ),
        ):
            if not holds:
                raise ValueError(f"affine: {message} (got {self!r})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logarithmic:
    """LogFMT-nBit: a sign and an index K on a ladder of powers of two between amin and amax.

    With N = 2^(n-1) and log2 and exp2 the fixed-point polynomials below, L1 = log2 amax,
    L0 = max(log2 amin, L1 - octaves) and s = (L1 - L0) / (N - 2), the index K from 1 to N - 1 means
    2^(L0 + (K - 1) s), and 0 means 0.

    Attributes:
      octaves: how far the ladder reaches at most.
      zeros: whether zeros count in amin (`included`, which then is 0) or not (`excluded`).
      log2_coefficients: of a polynomial P with log2(1 + t) = P(t), t in [0, 1): constant first, in
        units of 2^-30.
      exp2_coefficients: of a polynomial with 2^f = P(f), f in [0, 1), in units of 2^-30.
      midpoint_coefficients: of a polynomial in w = u^2 with log2(cosh(u ln 2 / 2)) = w P(w), u in
        [0, 2): how far above its logarithmic centre the midpoint of two levels u octaves apart is,
        in units of 2^-30.
    """

    octaves: int
    zeros: Literal["excluded", "included"] = "excluded"
    log2_coefficients: tuple[int, ...]
    exp2_coefficients: tuple[int, ...]
    midpoint_coefficients: tuple[int, ...]

    def __post_init__(self) -> None:
        check_spec("logarithmic", self)
        if not 1 <= self.octaves <= _MOST_OCTAVES:
            raise ValueError(f"logarithmic: octaves = {self.octaves}; from 1 to {_MOST_OCTAVES}")
        for name in ("log2", "exp2", "midpoint"):
            given = getattr(self, f"{name}_coefficients")
            if not given or any(not -(1 << 31) <= x < 1 << 31 for x in given):
                raise ValueError(
                    f"logarithmic: {name}_coefficients = {given}; one or more int32, constant first"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eden:
    """MS-EDEN: round to nearest, then scales corrected by EDEN's factor and rounded stochastically.

    Attributes:
      group: how many elements along the contraction axis share a correction
        sum(y^2) / sum(y * q), y scaled and q quantized; a multiple of the tile.
      weights: of the tiles in both sums: `scale` takes y and q times their tile's 8-bit scale X
        (their own size, as EDEN's factor has it), `none` as they are, which leaves a bias where a
        group's tiles have different scales.
      largest_scale: what the largest 8-bit scale is before the correction, which needs room above.
      scale_override: the factor by which every scale is larger than the one that just avoids
        clipping; below 1 large values are clipped.
    """

    group: int
    largest_scale: float
    scale_override: float
    weights: Literal["none", "scale"]

    def __post_init__(self) -> None:
        check_spec("eden", self)
        if self.group < 1:
            raise ValueError(f"eden: group = {self.group}; at least 1, a multiple of the tile")
        for name in ("largest_scale", "scale_override"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"eden: {name} = {value}; finite and above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
    """What happens to a tensor before it is quantized, and is undone after it is dequantized.

    Attributes:
      kind: `hadamard`: y = H (d * x) / sqrt(size) in blocks of `size` along the contraction axis, H
        in Sylvester order, d the signs. `orthogonal`: y = Q x, Q random. `smoothing`: y = x / s,
        s positive, one a channel (place along the contraction axis). `mean`: y = x - m, m the mean
        over the axis across of each channel.
      size: of `hadamard` a power of two, and of `orthogonal`: block along the contraction axis.
      signs: of `hadamard`: +1 or -1, `size` of them; empty for none, `given` for an argument.
      seed: of `orthogonal`.
      inverse: of `smoothing`: y = x * s, as the other operand of a product needs it.
      output: what y is rounded to before its largest magnitude is taken.
    """

    kind: Literal["hadamard", "orthogonal", "smoothing", "mean"]
    size: int = 0
    signs: tuple[int, ...] | Literal["given"] = ()
    seed: int | None = None
    inverse: bool = False
    output: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        check_spec("transform", self)
        blocks = self.kind in ("hadamard", "orthogonal")
        for holds, message in (
            (
                self.size >= 1 if blocks else self.size == 0,
                "`hadamard` and `orthogonal` need size >= 1, others none",
            ),
            (
                self.kind != "hadamard" or self.size & (self.size - 1) == 0,
                f"a hadamard transform's size is a power of two, not {self.size}",
            ),
            (self.kind == "hadamard" or not self.signs, "signs are for kind = 'hadamard'"),
            (
                self.signs in ((), "given") or len(self.signs) == self.size,
                f"{len(self.signs)} signs for size = {self.size}",
            ),
            (
                self.signs == "given" or all(sign in (1, -1) for sign in self.signs),
                "signs are 1 or -1",
            ),
            (
                (self.kind == "orthogonal") == (self.seed is not None),
                "kind = 'orthogonal' and a seed go together",
            ),
            (self.seed is None or self.seed >= 0, f"seed = {self.seed}; at least 0"),
            (self.kind == "smoothing" or not self.inverse, "inverse is for kind = 'smoothing'"),
        ):
            if not holds:
                raise ValueError(f"transform: {message}")

    @property
    def needs(self) -> str | None:
        """The argument that `quantize` needs for it: `signs`, `smoothing` or None."""
        if self.kind == "smoothing":
            return "smoothing"
        return "signs" if self.signs == "given" else None
