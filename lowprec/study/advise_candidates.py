"""What `advise` chooses from: the catalogue's recipes in a role, and combinations made of them.

A combination takes the block of one recipe for a and that of another for b, or changes one thing
of a block: tile, scale rule or element. It is summed by `native`: no hardware is known to run it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence

from lowprec.engines.engine import get_engine
from lowprec.gemm.recipe import (
    OperandPair,
    Recipe,
    Role,
    get_recipe,
    list_recipes,
    operand_bits,
)
from lowprec.numerics.format import Format, get_format
from lowprec.scaling.block import Block, get_block, list_blocks
from lowprec.study.compare import check_comparable

MEASURING_STICKS = ("_exact", "_minimum_error")
"""Endings of recipes that nothing runs: sums without error, and scales found by trying all."""
RULES = ("floor", "even", "ceil", "rceil")
"""Power-of-two rules that need nothing but themselves."""
TILES = (8, 256)
"""The shortest and the longest tile that is tried."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Candidate:
    """One way to compute a product; equal to itself alone.

    Attributes:
      recipe: as the role runs it (`Recipe.in_role`).
      depth: K of the layer's product, over which the scale of a whole row is spread.
      alike: names of other recipes that compute the same.
      made: whether it is a combination rather than an entry.
    """

    recipe: Recipe
    depth: int
    alike: tuple[str, ...] = ()
    made: bool = False

    @property
    def pair(self) -> OperandPair:
        """The operands."""
        return self.recipe.fprop

    @functools.cached_property
    def bits(self) -> float:
        """Bits per element, the mean over both operands, scales of tiles and of rows included."""
        return (stored_bits(self.pair.a, self.depth) + stored_bits(self.pair.b, self.depth)) / 2


def stored_bits(operand: Format | Block, depth: int) -> float:
    """Bits per element of a matrix whose rows are `depth` long; a scale of all of it is left out.

    `OperandPair.bits_per_element` knows no length, and counts nothing for the scale of a row.

    Example:
      >>> stored_bits(get_block("fp8_channel"), 128), stored_bits(get_block("mxfp4"), 128)
      (8.25, 4.25)
    """
    bits = operand_bits(operand)
    if not isinstance(operand, Block):
        return bits
    if operand.tile[1] == "all" and isinstance(operand.tile[0], int):
        bits += (operand.scale_format.bits + operand.offset_bits) / (operand.tile[0] * depth)
    if operand.tensor_scale == "row_amax":
        bits += float(get_format("float32").bits) / depth
    return bits


def entries() -> list[Recipe]:
    """The catalogue's recipes that operands alone are enough for, measuring sticks left out.

    Stochastic, prepared and delayed ones need a key, calibration or a history besides.

    Example:
      >>> names = [recipe.name for recipe in entries()]
      >>> "mxfp4" in names, "mxfp4_exact" in names, "nvfp4_training" in names
      (True, False, False)
    """
    found = [get_recipe(n) for n in list_recipes() if not n.endswith(MEASURING_STICKS)]
    return [recipe for recipe in found if _comparable(recipe)]


def _comparable(recipe: Recipe) -> bool:
    try:
        check_comparable(recipe)
    except ValueError:
        return False
    return True


def candidates(recipes: Sequence[Recipe], role: Role, depth: int) -> list[Candidate]:
    """Recipes as a role runs them, those that compute the same as one, under the first's name.

    Args:
      recipes: what to choose from.
      role: of the product.
      depth: its K, in wgrad all tokens of the layer.

    Raises:
      ValueError: a recipe that needs more than operands.

    Example:
      >>> two = [get_recipe("nvfp4"), get_recipe("nvfp4_rht16")]
      >>> [(x.recipe.name, x.bits) for x in candidates(two, "fprop", 64)]
      [('nvfp4', 4.5), ('nvfp4_rht16', 4.5)]
    """
    same: dict[Recipe, list[Recipe]] = {}
    for recipe in recipes:
        check_comparable(recipe)
        found = recipe.in_role(role)
        same.setdefault(_computation(found), []).append(found)
    return [
        Candidate(recipe=first, depth=depth, alike=tuple(recipe.name for recipe in others))
        for first, *others in same.values()
    ]


def _computation(recipe: Recipe) -> Recipe:
    """What a recipe in a role computes, whatever it is called."""
    settings: dict[str, object] = {"name": "", "delayed": None}
    if recipe.promote_every is None:
        settings["promotion"] = "fma"
    return dataclasses.replace(recipe, **settings)  # type: ignore[arg-type] - fields by name


def combinations(
    best: Sequence[Candidate], known: Sequence[Candidate], most_bits: float, *, changed: bool = True
) -> list[Candidate]:
    """Combinations of the blocks of the best candidates, and of blocks that differ in one thing.

    Args:
      best: around which to look.
      known: whose elements are tried, and which are not made again.
      most_bits: those with more are left out.
      changed: whether blocks that differ in one thing are tried too.

    Returns:
      Combinations, by name.
    """
    elements = {x.element for x in _blocks(known)}
    sides = [[getattr(x.pair, side) for x in best if _plain(x.pair)] for side in ("a", "b")]
    more = [_changed(side, elements) if changed else [] for side in sides]
    tried = [list(dict.fromkeys([*own, *new])) for own, new in zip(sides, more, strict=True)]
    there = {_computation(x.recipe) for x in known}
    made = [combined(a, b) for a, b in itertools.product(*tried) if _together(a, b)]
    depth = best[0].depth if best else 1
    new = [
        Candidate(recipe=recipe, depth=depth, made=True)
        for recipe in sorted(made, key=lambda recipe: recipe.name)
        if _computation(recipe) not in there
    ]
    return [x for x in new if x.bits <= most_bits]


def combined(a: Format | Block, b: Format | Block) -> Recipe:
    """A recipe of two operands that `native` multiplies in every role, put out in bfloat16.

    Example:
      >>> combined(get_block("mxfp8_e4m3"), get_block("mxfp4")).name
      'a_mxfp8_e4m3_b_mxfp4'
    """
    pair = OperandPair(a=a, b=b)
    return Recipe(
        name=f"both_{a.name}" if a == b else f"a_{a.name}_b_{b.name}",
        engine=get_engine("native"),
        fprop=pair,
        dgrad=pair,
        wgrad=pair,
        output=get_recipe("bf16").output,
    )


def _plain(pair: OperandPair) -> bool:
    """Whether the operands are all there is to a pair."""
    return not (pair.a_from or pair.b_from or pair.a_amax or pair.b_amax)


def _together(a: Format | Block, b: Format | Block) -> bool:
    """Whether both are transformed alike, or neither is."""
    own = [x.transform if isinstance(x, Block) else None for x in (a, b)]
    return own[0] == own[1]


def _blocks(best: Iterable[Candidate]) -> list[Block]:
    operands = [x for found in best for x in (found.pair.a, found.pair.b)]
    return [x for x in operands if isinstance(x, Block) and x.coding == "scaled"]


def _changed(operands: Iterable[Format | Block], elements: Iterable[Format]) -> list[Block]:
    """Every block with another tile, scale rule or element of as many bits."""
    found: list[Block] = []
    ordered = sorted(elements, key=lambda element: element.name)
    for block in dict.fromkeys(operands):
        if not isinstance(block, Block) or block.coding != "scaled":
            continue
        tiles: list[dict[str, object]] = [{"tile": tile} for tile in _tiles(block)]
        rules: list[dict[str, object]] = [
            {"scale_rule": x} for x in RULES if block.scale_rule in RULES
        ]
        same: list[dict[str, object]] = [
            {"element": x} for x in ordered if x.bits == block.element.bits
        ]
        found += [x for change in (*tiles, *rules, *same) if (x := _with(block, change))]
    return found


def _tiles(block: Block) -> list[tuple[int, int]]:
    rows, columns = block.tile
    if not isinstance(rows, int) or not isinstance(columns, int):
        return []
    sizes = [x for x in (columns // 2, columns * 2) if TILES[0] <= x <= TILES[1]]
    return [(size if rows == columns else rows, size) for size in sizes]


def _with(block: Block, change: dict[str, object]) -> Block | None:
    """A block with one thing changed: the catalogue's where it has that; None where none can be."""
    (field, value) = next(iter(change.items()))
    if value == getattr(block, field):
        return None
    shown = "x".join(map(str, value)) if isinstance(value, tuple) else getattr(value, "name", value)
    try:
        changed = dataclasses.replace(block, name=f"{block.name}_{field}_{shown}", **change)  # type: ignore[arg-type] - one field by name
    except ValueError:
        return None
    return _entries().get(dataclasses.replace(changed, name=""), changed)


@functools.cache
def _entries() -> dict[Block, Block]:
    """The catalogue's blocks by what they are, the first of equal ones."""
    found: dict[Block, Block] = {}
    for name in list_blocks():
        block = get_block(name)
        found.setdefault(dataclasses.replace(block, name=""), block)
    return found
