"""A block scaling as a value: element format, tile that shares a scale, and the scale's rule."""

import dataclasses
import functools
from typing import Literal

from lowprec import catalogue
from lowprec.numerics.format import Format, aliases, get_format, list_formats
from lowprec.numerics.rounding import OVERFLOWS, ROUNDINGS, Overflow, Rounding, check_choice

TileSize = int | Literal["all"]
ScaleRule = Literal["amax", "floor", "even", "ceil", "rceil"]
ScaleArithmetic = Literal["divide", "encode_scale", "two_level"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """Elements of one format in tiles that share a scale; frozen and hashable.

    With E = floor(log2 amax), EMAX and MAX the exponent and value of the element's largest number,
    and X the scale that a value is multiplied by on decoding:

    Attributes:
      name: the entry's name.
      element: the element format.
      tile: (rows, columns) that share a scale; the second runs along the contraction axis. `all`
        spans an axis, and `["all", "all"]` the whole array.
      scale_format: the format of X, float32 or one of 8 bits.
      scale_rule: `amax` (X from amax / MAX), or for power-of-two scales `floor` (X = 2^(E - EMAX)),
        `even` (E after rounding amax to the element's mantissa, ties up), `ceil`
        (X = 2^(ceil(log2 amax) - EMAX)) or `rceil` (X = 2^ceil(log2(amax / MAX))).
      scale_arithmetic: of `amax`. `divide`: X = amax / MAX, and x / X is encoded. `encode_scale`:
        S = MAX / amax, x * S is encoded and X = 1 / S. `two_level`: a float32 scale for the tensor
        above scales of 8 bits, in the order of TransformerEngine's NVFP4 kernel. Every operation is
        a float32 one, rounded to nearest even.
      min_amax: amax is raised to this value.
      unit_scale_amax: an amax at or below this gives the scale 1.
      nonfinite: a tile with Inf or NaN gets the scale that the arithmetic gives (`propagate`) or 1
        (`unit_scale`). Power-of-two scales become NaN.
      tensor_scale: `amax` where a float32 scale of the whole tensor multiplies the others.
      rounding, random_bit_count, overflow: of the elements.
    """

    name: str
    element: Format
    tile: tuple[TileSize, TileSize]
    scale_format: Format
    scale_rule: ScaleRule
    scale_arithmetic: ScaleArithmetic = "divide"
    min_amax: float = 0.0
    unit_scale_amax: float | None = None
    nonfinite: Literal["propagate", "unit_scale"] = "propagate"
    tensor_scale: Literal["none", "amax"] = "none"
    rounding: Rounding = "nearest_even"
    random_bit_count: int | None = None
    overflow: Overflow = "saturate"

    def __post_init__(self) -> None:
        for field in ("element", "scale_format"):
            if not isinstance(getattr(self, field), Format):
                raise TypeError(
                    f"block {self.name!r}: {field} must be a Format, got {getattr(self, field)!r}; "
                    f"use lowprec.get_format"
                )
        check_choice("rounding", self.rounding, ROUNDINGS)
        check_choice("overflow", self.overflow, OVERFLOWS)
        for holds, message in (
            (
                all(size == "all" or size >= 1 for size in self.tile),
                "tile sizes are 'all' or at least 1",
            ),
            (
                self.scale_rule == "amax" or self.power_of_two,
                "the rules floor, even, ceil and rceil need a scale format without mantissa bits",
            ),
            (
                self.scale_rule != "amax" or not self.power_of_two,
                "scale_rule = 'amax' needs a scale format with mantissa bits",
            ),
            (
                (self.tensor_scale == "amax") == (self.scale_arithmetic == "two_level"),
                "tensor_scale = 'amax' and scale_arithmetic = 'two_level' go together",
            ),
            (
                self.scale_arithmetic == "two_level"
                or self.power_of_two
                or self.scale_format.name == "float32",
                "scales with mantissa bits are float32, or of 8 bits under a tensor scale",
            ),
            (
                self.scale_arithmetic != "two_level" or self.scale_format.bits <= 8,
                "scale_arithmetic = 'two_level' needs a scale format of 8 bits",
            ),
        ):
            if not holds:
                raise ValueError(f"block {self.name!r}: {message}")

    @property
    def power_of_two(self) -> bool:
        """Whether scales are powers of two."""
        return self.scale_format.mantissa_bits == 0

    @property
    def scale_bits_per_element(self) -> float:
        """Bits of scale for each element in a full tile; 0 where a tile spans an axis."""
        rows, columns = self.tile
        if rows == "all" or columns == "all":
            return 0.0
        return self.scale_format.bits / (rows * columns)

    @property
    def bits_per_element(self) -> float:
        """Bits of element and scale in full tiles; a scale that spans an axis counts nothing."""
        return self.element.bits + self.scale_bits_per_element


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


def _is_format(name: str) -> bool:
    return name in list_formats() or name.lower() in aliases()


def get_format_or_block(name: str | Format | Block) -> Format | Block:
    """Finds a number format or a block scaling; a TOML file that has `element` is a block.

    Raises:
      ValueError: neither a format nor a block has that name; near matches are listed.

    Example:
      >>> get_format_or_block("bfloat16").name, get_format_or_block("nvfp4").name
      ('bfloat16', 'nvfp4')
    """
    if isinstance(name, Block):
        return name
    if not isinstance(name, str) or _is_format(name):
        return get_format(name)
    if catalogue.is_path(name):
        return get_block(name) if catalogue.has_key(name, "element") else get_format(name)
    if name not in list_blocks():
        raise ValueError(
            catalogue.unknown(
                "format or block", name, (*list_formats(), *aliases(), *list_blocks())
            )
        )
    return get_block(name)
