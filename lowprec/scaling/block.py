"""A block scaling as a value: element format, tile that shares a scale, and the scale's rule."""

import dataclasses
import functools
import typing
from typing import Literal

import numpy as np

from lowprec import catalogue
from lowprec.numerics import html
from lowprec.numerics.codec import within_float32
from lowprec.numerics.format import Format, aliases, get_format, list_formats, names_format
from lowprec.numerics.rounding import Overflow, Rounding, is_stochastic
from lowprec.numerics.spec import check_spec
from lowprec.scaling.codings import Affine, Eden, Logarithmic, Transform

TileSize = int | Literal["all"]
PowerOfTwoRule = Literal["floor", "even", "ceil", "rceil", "oas", "nearest_log2", "three_quarter"]
ScaleRule = Literal[PowerOfTwoRule, "amax", "four_over_six", "minimum_error", "range"]
ScaleArithmetic = Literal[
    "divide",
    "reciprocal_max",
    "multiply_inverse",
    "encode_scale",
    "two_level",
    "two_level_divide_first",
    "two_level_divide",
    "two_level_inverse",
]
Nonfinite = Literal["propagate", "unit_scale", "largest_scale", "largest_scale_for_inf"]
Coding = Literal["scaled", "affine", "logarithmic"]
_FLOAT32 = np.finfo(np.float32)
_LARGEST = float(_FLOAT32.max)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """Elements of one format in tiles that share a scale; frozen and hashable.

    With E = floor(log2 amax), EMAX and MAX the exponent and value of the element's largest number,
    and X the scale that a value is multiplied by on decoding, the rules are

    | `scale_rule` | X |
    |---|---|
    | `floor` | 2^(E - EMAX) |
    | `even` | the same, with E after rounding amax to the element's mantissa, ties up |
    | `ceil` | 2^(ceil(log2 amax) - EMAX) |
    | `rceil` | 2^ceil(log2(amax / MAX)) |
    | `oas` | 2^floor(log2 bf16((amax / MAX) * oas_factor)), overflow-aware scaling |
    | `nearest_log2` | 2^round(log2(amax / MAX)), the logarithm exact |
    | `three_quarter` | 2^(E - EMAX) * 4/3; the constant 4/3 is the `tensor_scale` of the result |
    | `amax` | amax / MAX, as `scale_arithmetic` says |
    | `four_over_six` | of the scale of `amax` and 1.5 times it, that of the smaller `error` |
    | `minimum_error` | of all scales, the smallest with the smallest squared error |

    the first seven for power-of-two scales. Every operation of `scale_arithmetic` is a float32 one,
    rounded to nearest even, in the order written; with g the largest magnitude of the tensor (or
    row), SMAX the largest scale, and fmt() the rounding to `scale_format`:

    | `scale_arithmetic` | X | what is encoded | tensor scale |
    |---|---|---|---|
    | `divide` | fmt(amax / MAX) | x / X | |
    | `reciprocal_max` | fmt(amax * (1 / MAX)) | x / X | |
    | `multiply_inverse` | fmt(amax / MAX) | x * (1 / X) | |
    | `encode_scale` | 1 / S, S = MAX / amax | x * S | |
    | `two_level` | fmt(amax * (S * (1 / MAX))) | x * (1 / (X * T)) | T = 1 / S |
    | `two_level_divide_first` | fmt((amax / MAX) * S) | the same | T = 1 / S |
    | `two_level_divide` | fmt(amax / (MAX * T)) | x / (X * T) | T = g / (SMAX * MAX) |
    | `two_level_inverse` | fmt((amax / MAX) / T) | x * ((1 / T) / X) | T = g / (SMAX * MAX) |

    where S = SMAX * MAX / g. An infinite S or 1 / (X * T) becomes the largest float32; where g or S
    is 0, S is 1.

    Attributes:
      name: the entry's name.
      element: the element format.
      tile: (rows, columns) that share a scale; the second runs along the contraction axis. `all`
        spans an axis, and `["all", "all"]` the whole array.
      scale_format: the format of X. Of more than 8 bits, X is stored as a float32.
      scale_rule, scale_arithmetic: see above.
      scale_rounding: of fmt(), above SMAX saturating.
      min_amax: amax is raised to this value.
      unit_scale_amax: an amax at or below this, or an X that is 0 before fmt(), gives the scale 1;
        an X that fmt() rounds to 0 does not, nor an X of NaN, from 0 / 0 in a tensor of zeros.
      min_scale: X is raised to this before fmt().
      guard: amax is scaled to MAX * guard instead of MAX, and g to SMAX * MAX * guard: the room
        that keeps stochastic rounding from clipping. Taken as a float32.
      nonfinite: a tile with Inf or NaN gets the scale that the arithmetic gives, which is NaN for
        power-of-two scales (`propagate`), 1 (`unit_scale`), the largest (`largest_scale`), or the
        largest for Inf and NaN for NaN (`largest_scale_for_inf`).
      oas_factor: of `oas`.
      error: of `four_over_six`: the tile's sum of `absolute` or `squared` errors.
      tensor_scale: `amax` or `row_amax` where a float32 scale of the whole tensor, or of each row
        (all of the contraction axis), multiplies the others.
      tensor_scale_max: SMAX in S or T, by default the largest scale of `scale_format`.
      amax_source: `given` where scales come from the argument `amax` of `quantize` alone.
      rounding, random_bit_count, overflow: of the elements.
      coding: `scaled`: a value is element * scale. `affine`: integers between the tile's smallest
        and largest value, as the table [affine] says. `logarithmic`: levels evenly spaced in the
        logarithm, as [logarithmic] says. The scale rule of both is `range`.
      transform: what is done to the tensor before, and undone after, as [transform] says.
      eden: corrections of the scales that make the block quantizer unbiased, as [eden] says.
    """

    name: str
    element: Format
    tile: tuple[TileSize, TileSize]
    scale_format: Format
    scale_rule: ScaleRule
    scale_arithmetic: ScaleArithmetic = "divide"
    scale_rounding: Rounding = "nearest_even"
    min_amax: float = 0.0
    unit_scale_amax: float | None = None
    min_scale: float | None = None
    guard: float = 1.0
    nonfinite: Nonfinite = "propagate"
    oas_factor: float | None = None
    error: Literal["absolute", "squared"] | None = None
    tensor_scale: Literal["none", "amax", "row_amax"] = "none"
    tensor_scale_max: float | None = None
    amax_source: Literal["measured", "given"] = "measured"
    rounding: Rounding = "nearest_even"
    random_bit_count: int | None = None
    overflow: Overflow = "saturate"
    coding: Coding = "scaled"
    affine: Affine | None = None
    logarithmic: Logarithmic | None = None
    transform: Transform | None = None
    eden: Eden | None = None

    def __post_init__(self) -> None:
        for field in ("element", "scale_format"):
            if not isinstance(getattr(self, field), Format):
                raise TypeError(
                    f"block {self.name!r}: {field} must be a Format, got {getattr(self, field)!r}; "
                    f"use lowprec.get_format"
                )
        check_spec(f"block {self.name!r}", self)
        rules = (*self._range_rules(), *self._coding_rules())
        if self.coding == "scaled":
            rules += (*self._scaling_rules(), *self._element_rules())
        for holds, message in rules:
            if not holds:
                raise ValueError(f"block {self.name!r}: {message}")

    def _repr_html_(self) -> str:
        figures = {"bits_per_element": self.bits_per_element, "element max": self.element.max}
        return html.spec(self, "block", "blocks", get_block, figures)

    def _range_rules(self) -> tuple[tuple[bool, str], ...]:
        """Where numbers must lie."""
        scale, unit = self.scale_format, self.unit_scale_amax
        top, least, count = self.tensor_scale_max, self.min_scale, self.random_bit_count
        return (
            (
                all(size == "all" or size >= 1 for size in self.tile),
                f"tile sizes are 'all' or at least 1, not {self.tile}",
            ),
            (
                0 <= self.min_amax < _LARGEST and 0.5 <= self.guard <= 1,
                f"min_amax is at least 0 and guard from 0.5 to 1, not {self.min_amax} and "
                f"{self.guard}; min_amax lies below float32's largest number",
            ),
            (
                unit is None or 0 <= unit < _LARGEST,
                f"unit_scale_amax = {unit}; from 0 to below float32's largest number",
            ),
            (
                top is None or 0 < top <= scale.max,
                f"tensor_scale_max = {top}; above 0 and at most {scale.max}, the largest scale of "
                f"{scale.name}",
            ),
            (
                least is None or 0 <= least <= scale.max,
                f"min_scale = {least}; from 0 to {scale.max}, the largest scale of {scale.name}",
            ),
            (
                self.oas_factor is None
                or float(_FLOAT32.smallest_subnormal) <= self.oas_factor <= _LARGEST,
                f"oas_factor = {self.oas_factor}; a float32 above 0",
            ),
            (
                count is None or 1 <= count <= 32,
                f"random_bit_count = {count}; from 1 to 32",
            ),
            (
                within_float32(scale),
                f"float32 does not hold all values of scale_format = {scale.name}; it does those "
                f"of bfloat16 and of any format with less range",
            ),
        )

    def _element_rules(self) -> tuple[tuple[bool, str], ...]:
        """What a scaled block's arithmetic takes of its element and its scale format."""
        element, scale = self.element, self.scale_format
        unit = self.unit_scale_amax is not None or self.nonfinite == "unit_scale"
        return (
            (
                element.max > 0,
                f"the element {element.name} has no positive value to scale to",
            ),
            (
                within_float32(element) and element.max >= float(_FLOAT32.smallest_normal),
                f"float32 does not hold all values of the element {element.name}, of which the "
                f"largest must be a normal one: scales and values are float32; it does hold those "
                f"of bfloat16 and of any format with less range",
            ),
            (
                self.scale_rule != "even" or element.mantissa_bits is not None,
                "scale_rule = 'even' needs an element with mantissa bits, not a table",
            ),
            (
                self.scale_rule != "even"
                or element.table is not None
                or element.mantissa_bits - (not element.exponent_bits) <= 22,
                f"scale_rule = 'even' needs an element of at most 22 mantissa bits, and "
                f"{element.name} has {element.mantissa_bits}",
            ),
            (
                not unit or _has_one(scale),
                f"unit_scale_amax and nonfinite = 'unit_scale' store a scale of 1, which "
                f"scale_format = {scale.name} does not have",
            ),
        )

    def _scaling_rules(self) -> tuple[tuple[bool, str], ...]:
        """What must hold of a scaled block."""
        rule, arithmetic, scale = self.scale_rule, self.scale_arithmetic, self.scale_format
        powers = typing.get_args(PowerOfTwoRule)
        return (
            (
                rule not in powers or self.power_of_two,
                f"the rules {', '.join(powers)} need a scale format without mantissa bits",
            ),
            (
                rule not in ("amax", "four_over_six") or not self.power_of_two,
                f"scale_rule = {rule!r} needs a scale format with mantissa bits",
            ),
            (
                not self.power_of_two or (scale.zero == "none" and not scale.signed),
                "power-of-two scales need an unsigned scale format without zero, such as E8M0",
            ),
            (
                not self.power_of_two or arithmetic == "divide",
                f"scale_arithmetic = {arithmetic!r} is for scales with mantissa bits",
            ),
            (
                not self.power_of_two or (self.min_scale is None and self.guard == 1.0),
                "min_scale and guard are for scales with mantissa bits",
            ),
            (
                self.scale_rounding == "nearest_even" or not self.power_of_two,
                "scale_rounding is for scales with mantissa bits: a rule rounds powers of two",
            ),
            (
                self.scale_rounding != "to_odd" and not is_stochastic(self.scale_rounding),
                f"scale_rounding = {self.scale_rounding!r} is not for scales: use a nearest or a "
                f"directed mode",
            ),
            (
                (self.tensor_scale == "none") == (not arithmetic.startswith("two_level")),
                "tensor_scale = 'amax' or 'row_amax' and scale_arithmetic = 'two_level...' go "
                "together",
            ),
            (
                not arithmetic.startswith("two_level") or scale.bits <= 8,
                f"scale_arithmetic = {arithmetic!r} needs a scale format of 8 bits",
            ),
            (
                arithmetic != "encode_scale" or scale.name == "float32",
                "scale_arithmetic = 'encode_scale' needs scale_format = 'float32'",
            ),
            (
                self.tensor_scale_max is None or self.tensor_scale != "none",
                "tensor_scale_max needs a tensor_scale",
            ),
            (
                self.tensor_scale != "row_amax" or self.tile[0] == 1,
                "tensor_scale = 'row_amax' needs tiles of one row",
            ),
            (
                self.guard == 1.0 or rule == "amax",
                "guard needs scale_rule = 'amax'",
            ),
            (
                self.nonfinite != "propagate" or scale.has_nan,
                f"nonfinite = 'propagate' needs a scale format with NaN, and {scale.name} has none",
            ),
            (
                not self.nonfinite.startswith("largest") or self.power_of_two,
                f"nonfinite = {self.nonfinite!r} is for power-of-two scales",
            ),
            (
                (rule == "oas") == (self.oas_factor is not None),
                "oas_factor is for 'oas', and it needs one",
            ),
            (
                (rule == "four_over_six") == (self.error is not None),
                "error is for scale_rule = 'four_over_six', and it needs one",
            ),
            (
                rule != "four_over_six" or arithmetic == "two_level_divide_first",
                "scale_rule = 'four_over_six' needs scale_arithmetic = 'two_level_divide_first'",
            ),
            (
                rule != "minimum_error" or (scale.bits <= 8 and self.min_scale is None),
                "scale_rule = 'minimum_error' needs a scale format of 8 bits and no min_scale",
            ),
        )

    def _coding_rules(self) -> tuple[tuple[bool, str], ...]:
        scaled = self.coding == "scaled"
        return (
            (
                (self.coding == "affine") == (self.affine is not None)
                and (self.coding == "logarithmic") == (self.logarithmic is not None),
                "coding = 'affine' and a table [affine] go together, and so with logarithmic",
            ),
            (
                scaled == (self.scale_rule != "range"),
                "scale_rule = 'range' is for coding = 'affine' or 'logarithmic', and they for it",
            ),
            (scaled or self.tensor_scale == "none", f"{self.coding} tiles have no tensor scale"),
            (
                scaled or self.scale_format.name in ("float32", "bfloat16", "float16"),
                f"{self.coding} tiles need scale_format = float32, bfloat16 or float16",
            ),
            (
                scaled or self.element.exponent_bits == 0,
                f"{self.coding} codes are integers, and {self.element.name} is none",
            ),
            (
                self.logarithmic is None or 6 <= self.element.bits <= 16,
                "logarithmic codes have from 6 to 16 bits",
            ),
            (
                self.logarithmic is None
                or (self.element.signed and self.element.encoding == "sign_magnitude"),
                f"logarithmic codes are a sign and a magnitude, and those of {self.element.name} "
                f"are not",
            ),
            (
                self.affine is None
                or (not self.element.signed and self.element.max == self.element.code_mask),
                f"affine codes are unsigned integers from 0 up, such as uint4, and those of "
                f"{self.element.name} are not",
            ),
            (
                self.affine is None or not self.affine.add_half or self.rounding == "toward_zero",
                "affine add_half = true needs rounding = 'toward_zero'",
            ),
            (
                self.affine is None or self.affine.zero_point != "packed" or self.element.bits <= 4,
                f"zero_point = 'packed' has room for 4 bits, and {self.element.name} has "
                f"{self.element.bits}",
            ),
            (
                self.logarithmic is None or self.logarithmic.octaves < (1 << self.element.bits) - 4,
                f"a step between levels is below 2 octaves, which {self.element.bits} bits are too "
                f"few for",
            ),
            (
                self.eden is None
                or (self.tensor_scale == "amax" and self.eden.group % self._columns == 0),
                "[eden] needs tensor_scale = 'amax' and a group of whole tiles of one row",
            ),
            (
                self.eden is None or self.eden.largest_scale <= self.scale_format.max,
                f"[eden] has a largest_scale above {self.scale_format.max}, that of "
                f"{self.scale_format.name}",
            ),
        )

    @property
    def _columns(self) -> int:
        """The length of a tile of one row; what divides no group where it is none."""
        rows, columns = self.tile
        return columns if rows == 1 and columns != "all" else 1 << 31

    @property
    def reproducibility(self) -> Literal["bit_exact", "same_backend"]:
        """`bit_exact`, or `same_backend` where a transform is a matrix product of the backend."""
        orthogonal = self.transform is not None and self.transform.kind == "orthogonal"
        return "same_backend" if orthogonal else "bit_exact"

    @property
    def offset_bits(self) -> int:
        """Bits that a tile stores beside codes and scale: a zero point, a minimum or an amin."""
        if self.affine is not None:
            return self.affine.offset_bits
        return self.scale_format.bits if self.logarithmic is not None else 0

    @property
    def power_of_two(self) -> bool:
        """Whether scales are powers of two."""
        return self.scale_format.mantissa_bits == 0

    @property
    def scale_bits_per_element(self) -> float:
        """Bits of scale and offset for each element of a full tile; 0 where it spans an axis."""
        rows, columns = self.tile
        if rows == "all" or columns == "all":
            return 0.0
        return (self.scale_format.bits + self.offset_bits) / (rows * columns)

    @property
    def bits_per_element(self) -> float:
        """Bits of element and scale in full tiles; a scale that spans an axis counts nothing."""
        return self.element.bits + self.scale_bits_per_element


def _has_one(fmt: Format) -> bool:
    """Whether 1 is among a format's values."""
    if fmt.table is not None:
        return 1.0 in fmt.table
    # Powers of two are, from the smallest positive value, which is one, to the largest.
    return fmt.magnitude(0 if fmt.zero == "none" else 1) <= 1.0 <= fmt.max


_RESOLVERS = {Format: get_format}


def list_blocks() -> tuple[str, ...]:
    """The names of the catalogue's block scalings, sorted.

    Example:
      >>> "nvfp4" in list_blocks()
      True
    """
    return catalogue.names("blocks")


@functools.cache
def _catalogued(name: str) -> Block:
    return catalogue.read("blocks", name, Block, _RESOLVERS).value


def get_block(block: str | Block) -> Block:
    """Finds a block scaling by name or path to a TOML file, or passes a `Block` through.

    Raises:
      ValueError: no block has that name; near matches are listed.
      TypeError: `block` is neither a string nor a `Block`.

    Example:
      >>> get_block("mxfp4").bits_per_element
      4.25
    """
    if isinstance(block, Block):
        return block
    if not isinstance(block, str):
        raise TypeError(
            f"`block` must be a block's name, a path to a TOML file or a Block, got {type(block)}"
        )
    if catalogue.is_path(block):
        return catalogue.read("blocks", block, Block, _RESOLVERS).value
    return _catalogued(block)


def get_format_or_block(name: str | Format | Block) -> Format | Block:
    """Finds a number format or a block scaling; a TOML file that has `element` is a block.

    `format:NAME` and `block:NAME` say which of the two is meant.

    Raises:
      ValueError: neither a format nor a block has that name, near matches being listed, or both
        have it.

    Example:
      >>> get_format_or_block("bfloat16").name, get_format_or_block("nvfp4").name
      ('bfloat16', 'nvfp4')
      >>> get_format_or_block("format:mxint8").bits
      8
      >>> get_format_or_block("block:mxint8").bits_per_element
      8.25
    """
    if isinstance(name, Block):
        return name
    if not isinstance(name, str):
        return get_format(name)
    kind, _, plain = name.partition(":")
    if kind in ("format", "block") and plain:
        return get_block(plain) if kind == "block" else get_format(plain)
    if catalogue.is_path(name):
        return get_block(name) if catalogue.has_key(name, "element") else get_format(name)
    if names_format(name):
        if name in list_blocks():
            raise ValueError(
                f"{name!r} is a format and a block; use 'format:{name}' or 'block:{name}'"
            )
        return get_format(name)
    if name not in list_blocks():
        raise ValueError(
            catalogue.unknown(
                "format or block", name, (*list_formats(), *aliases(), *list_blocks())
            )
        )
    return get_block(name)
