"""What a recipe's product becomes on a device: instruction, promotion, and what is dequantized.

Formats, tiles, promotion interval and output are the recipe's own. A device that lacks them takes
the widest step down that keeps the numbers: block scales that no instruction of its applies are
applied at a promotion, formats that none of its multiplies are dequantized on the scalar units.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Literal, NamedTuple

from lowprec.engines.engine import Engine, get_engine, list_engines
from lowprec.gemm.recipe import OperandPair, Recipe, Role, get_recipe, operand_bits
from lowprec.numerics.format import Format, get_format
from lowprec.scaling.block import Block
from lowprec.throughput.cache import dequantization
from lowprec.throughput.devices import Device, Generation, ProductFormat
from lowprec.throughput.tiles import tiles_of

Operand = Format | Block
How = Literal["as written", "scaled at promotion", "dequantized"]
WIDTHS: dict[ProductFormat, int] = {"float4": 4, "float8": 8, "bfloat16": 16}
"""Bits of an operand of each product format."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe's product on a device.

    Attributes:
      recipe, role, device: names.
      product: the format whose rate counts.
      engine: the catalogue's engine that stands for the instruction; empty for integers, whose
        rate is taken to be that of float8.
      scaled: whether the instruction applies block scales.
      how: `as written`; `scaled at promotion`, where block scales are applied outside the
        instruction; `dequantized`, where an operand's format is converted first.
      left_bits, right_bits: of a stored element, scales included.
      left_cycles, right_cycles: of a multiprocessor, dequantizing an element; 0 for none.
      promote_every: k between promotions; None for none.
      promotion_operations: on each element of a tile at each promotion.
      output_bits: of an element of the result.
    """

    recipe: str
    role: Role
    device: str
    product: ProductFormat
    engine: str
    scaled: bool
    how: How
    left_bits: float
    right_bits: float
    left_cycles: float
    right_cycles: float
    promote_every: int | None
    promotion_operations: int
    output_bits: int


class _Choice(NamedTuple):
    """A product format with the engine that multiplies in it, and what is converted into it.

    `converted` says so of each operand. Its block scales go into a conversion to bfloat16; after
    one to 8 bits, which cannot hold them, they are applied at a promotion.
    """

    product: ProductFormat
    engine: Engine | None
    converted: tuple[bool, bool]


def plans(device: Device, recipe: str | Recipe, role: Role = "fprop") -> tuple[Plan, ...]:
    """The ways to a recipe's product on a device, of which a kernel takes the fastest.

    Raises:
      ValueError: no such recipe.

    Example:
      >>> from lowprec.throughput.devices import get_device
      >>> [found] = plans(get_device("b200"), "mxfp8")
      >>> found.product, found.engine, found.promote_every, found.how
      ('float8', 'blackwell.tcgen05.mxf8f6f4.fp32', None, 'as written')
      >>> plans(get_device("h800"), "deepseek_v3")[0].promote_every
      128
      >>> [(x.product, x.promote_every, x.how) for x in plans(get_device("h800"), "nvfp4")]
      [('float8', 16, 'dequantized'), ('bfloat16', None, 'dequantized')]
    """
    return _plans(device, get_recipe(recipe), role)


@functools.lru_cache(maxsize=4096)
def _plans(device: Device, recipe: Recipe, role: Role) -> tuple[Plan, ...]:
    found = recipe.in_role(role)
    return tuple(_plan(device, found, role, x) for x in _choices(device, found.fprop))


def _plan(device: Device, recipe: Recipe, role: Role, chosen: _Choice) -> Plan:
    pair = recipe.fprop
    sides: tuple[Operand, Operand] = (pair.a, pair.b)
    scaled = chosen.engine is not None and bool(chosen.engine.scale_formats)
    wide = any(chosen.converted) and chosen.product == "bfloat16"
    own = [] if recipe.promote_every is None or wide else [recipe.promote_every]
    lengths = [
        length
        for operand, converted in zip(sides, chosen.converted, strict=True)
        if not scaled
        and not (converted and wide)
        and (length := _scaled_length(operand)) is not None
    ]
    how: How = "as written"
    if any(chosen.converted):
        how = "dequantized"
    elif lengths and recipe.scales != "promotion":
        how = "scaled at promotion"
    left, right = (
        _cycles(operand, chosen.product, device.generation) if converted else 0.0
        for operand, converted in zip(sides, chosen.converted, strict=True)
    )
    return Plan(
        recipe=recipe.name,
        role=role,
        device=device.name,
        product=chosen.product,
        engine="" if chosen.engine is None else chosen.engine.name,
        scaled=scaled,
        how=how,
        left_bits=operand_bits(pair.a),
        right_bits=operand_bits(pair.b),
        left_cycles=left,
        right_cycles=right,
        promote_every=None if scaled else min([*lengths, *own], default=None),
        promotion_operations=_operations(pair, bool(lengths)),
        output_bits=recipe.output.bits,
    )


def _choices(device: Device, pair: OperandPair) -> Iterator[_Choice]:
    """The narrowest product that takes both operands as they are; then those that convert them."""
    sides = (pair.a, pair.b)
    elements = tuple(_element(x) for x in sides)
    for product in WIDTHS:
        engine = _engine(device, product, pair)
        if engine is not None and all(_takes(engine, x) for x in elements):
            yield _Choice(product, engine, (False, False))
            if engine.scale_formats or not any(_scaled_length(x) for x in sides):
                return
            break
    if all(_is_integer(x) for x in sides) and device.has("float8"):
        # Integers of 8 bits multiply at the rate of float8; narrower ones are unpacked first.
        yield _Choice("float8", None, (elements[0].bits < 8, elements[1].bits < 8))
        return
    narrow = _engine(device, "float8", None)
    if narrow is not None and all(_fits(x) for x in sides):
        one, other = (not _takes(narrow, x) for x in elements)
        if one or other:
            yield _Choice("float8", narrow, (one, other))
    wide = _engine(device, "bfloat16", None)
    one, other = (x.bits < 16 for x in elements)
    if one or other:
        yield _Choice("bfloat16", wide, (one, other))


def _fits(operand: Operand) -> bool:
    """Whether E4M3 or E5M2 hold an operand's elements: floats, and integers of few bits."""
    element = _element(operand)
    if isinstance(operand, Block) and operand.coding != "scaled":
        return False
    if not element.exponent_bits:
        # A zero point subtracted, a bit more: all of them within 2 ** (mantissa bits + 1).
        return element.bits <= get_format("float8_e4m3fn").mantissa_bits + 1
    return element.bits <= 8


def _element(operand: Operand) -> Format:
    return operand.element if isinstance(operand, Block) else operand


def _is_integer(operand: Operand) -> bool:
    element = _element(operand)
    scaled = not isinstance(operand, Block) or operand.coding == "scaled"
    return scaled and element.bits <= 8 and element.exponent_bits == 0


def _takes(engine: Engine, element: Format) -> bool:
    """Whether an engine multiplies an element; float32 is rounded to bfloat16 in passing."""
    wide = element.bits >= 16 and any(x.bits == 16 for x in engine.inputs)
    return wide or element in engine.inputs


def _engine(device: Device, product: ProductFormat, pair: OperandPair | None) -> Engine | None:
    """The device's engine of a product: one that applies the pair's block scales, or plain."""
    plain: Engine | None = None
    if not device.has(product):
        return None
    for prefix in tiles_of(device.generation).engines:
        for engine in _engines(prefix):
            if _product(engine) != product:
                continue
            if not engine.scale_formats:
                plain = plain or engine
            elif pair is not None and all(_applies(engine, x) for x in (pair.a, pair.b)):
                return engine
    return plain


@functools.cache
def _engines(prefix: str) -> tuple[Engine, ...]:
    """The float32 engines of a family; its bfloat16 one before others of 16 bits."""
    names = [x for x in list_engines() if x.startswith(prefix) and x.endswith(".fp32")]
    return tuple(get_engine(x) for x in names if "tf32" not in x)


def _product(engine: Engine) -> ProductFormat:
    """The product whose rate an engine has: that of its widest input."""
    widest = max(x.bits for x in engine.inputs)
    return next(x for x, bits in WIDTHS.items() if bits >= widest)


def _applies(engine: Engine, operand: Operand) -> bool:
    """Whether an engine applies an operand's block scales: their format, and whole blocks."""
    length = _scaled_length(operand)
    if length is None or not isinstance(operand, Block) or not engine.scale_block:
        return False
    scale = operand.scale_format
    alike = any(
        (x.exponent_bits, x.mantissa_bits) == (scale.exponent_bits, scale.mantissa_bits)
        for x in engine.scale_formats
    )
    return alike and length % engine.scale_block == 0


def _scaled_length(operand: Operand) -> int | None:
    """How many k share a scale; None where all do, or there is none."""
    if not isinstance(operand, Block) or operand.tile[1] == "all":
        return None
    return operand.tile[1]


def _cycles(operand: Operand, product: ProductFormat, generation: Generation) -> float:
    """Of a multiprocessor, turning an element into an operand of a product."""
    element = _element(operand)
    if element.bits == 8 and element.exponent_bits:
        kind = "float8_to_bfloat16"
    elif product == "float8" and element.exponent_bits:
        kind = "float4_to_float8"
    else:
        kind = "integer_or_table"
    return dequantization(kind, generation).cycles


def _operations(pair: OperandPair, scaled: bool) -> int:
    """An addition, or a fused one, and the product of two scales that differ by row and column."""
    rows = [x.tile[0] for x in (pair.a, pair.b) if isinstance(x, Block)]
    return 1 + (scaled and len(rows) == 2 and all(x == 1 for x in rows))
