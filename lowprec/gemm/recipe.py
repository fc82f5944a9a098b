"""A GEMM recipe as a value: what becomes of both operands in each role, and how they are summed."""

import dataclasses
import functools
import typing
from typing import Any, Literal

from lowprec import catalogue
from lowprec.engines.engine import Engine, get_engine
from lowprec.gemm.preparation import Preparation
from lowprec.numerics import html
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.rounding import is_stochastic
from lowprec.numerics.spec import check_spec
from lowprec.scaling.block import Block, get_format_or_block

Role = Literal["fprop", "dgrad", "wgrad"]
ROLES: tuple[Role, ...] = typing.get_args(Role)
Promotion = Literal["fma", "multiply_fma", "multiply_add", "multiply_multiply_add"]
ScalePlace = Literal["operands", "promotion", "output", "engine"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperandPair:
    """What becomes of the operands of one role, and what this role does unlike the recipe.

    Attributes:
      a, b: a block scaling, or a plain number format.
      a_from, b_from: what the operand was rounded to before, in its own type and along its other
        axis: the copy that another role multiplies, from which this one starts. None starts from
        the operand as it is.
      a_amax, b_amax: what a block with amax_source = "given" is scaled by: `mean`, the mean
        magnitude of a tile, which spans K; `history`, the largest magnitude that the tensor had in
        earlier steps, as the recipe's [delayed] says and `linear` remembers.
      engine, promote_every, scales, output: in place of the recipe's.
    """

    a: Format | Block
    b: Format | Block
    a_from: Format | Block | None = None
    b_from: Format | Block | None = None
    a_amax: Literal["mean", "history"] | None = None
    b_amax: Literal["mean", "history"] | None = None
    engine: Engine | None = None
    promote_every: int | None = None
    scales: ScalePlace | None = None
    output: Format | None = None

    def __post_init__(self) -> None:
        check_spec("operands", self)
        for side in ("a", "b"):
            copy, found = getattr(self, f"{side}_from"), getattr(self, f"{side}_amax")
            if isinstance(copy, Block) and (draws(copy) or copy.transform):
                raise ValueError(
                    f"{side}_from = {copy.name} draws random numbers or transforms; a copy that "
                    f"another role starts from does neither"
                )
            static = [x for x in (getattr(self, side), copy) if takes_amax(x)]
            if bool(static) != (found is not None):
                raise ValueError(
                    f"{side}_amax = {found or 'mean'!r} and a block with amax_source = 'given' go "
                    f"together; {side} is {getattr(self, side).name}"
                )
            if found == "history":
                _check_history(side, getattr(self, side), copy)
                continue
            for block in static:
                if block.tile not in (("all", "all"), (1, "all")):
                    raise ValueError(
                        f"{side}_amax = 'mean' needs tiles of whole rows or tensors, and "
                        f"{block.name} has {block.tile}"
                    )

    @property
    def bits_per_element(self) -> float:
        """The mean over both operands, scales included."""
        return (operand_bits(self.a) + operand_bits(self.b)) / 2

    @property
    def transforms_cancel(self) -> bool:
        """Whether both operands are turned alike along K, which leaves their product as it was.

        Then the turned values are multiplied; else a transform is undone before the product.
        """
        a, b = (x.transform if isinstance(x, Block) else None for x in (self.a, self.b))
        if a is None or b is None or a.kind not in ("hadamard", "orthogonal"):
            return False
        return dataclasses.replace(a, output=b.output) == b


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delayed:
    """Delayed scaling: how the largest magnitudes of earlier steps become the next step's scale.

    Attributes:
      algorithm: `max`: the largest of the history; `most_recent`: the last one.
      margin: scales leave so many powers of two above the largest magnitude.
    """

    algorithm: Literal["max", "most_recent"] = "max"
    margin: int = 0

    def __post_init__(self) -> None:
        check_spec("delayed", self)
        if not -64 <= self.margin <= 64:
            raise ValueError(f"margin = {self.margin}; from -64 to 64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a GEMM and its two gradients are computed; frozen and hashable.

    Attributes:
      name: the entry's name.
      engine: how a product is summed.
      fprop, dgrad, wgrad: the operands of x @ w, dy @ w^T and x^T @ dy, and what a role sets in
        place of the recipe's own.
      promote_every: the sum over every so many k is added to a float32 total; None sums all of K in
        the engine.
      promotion: `fma`: total = fma(fl(sa * sb), partial, total); `multiply_fma`:
        total = fma(fl(partial * sa), sb, total); `multiply_add`:
        total = fl(total + fl(fl(sa * sb) * partial)); `multiply_multiply_add`:
        total = fl(total + fl(fl(partial * sa) * sb)).
      order: `sequential`: K ascending in one sum. `split_k.<parts>`: K in at most so many parts of
        equally many whole instructions (or promotions), each summed from zero, and the sums added
        in float32, first to last. `stream_k.<workers>`: the
        steps of all 128 x 128 tiles of the output, one tile after the other, are dealt to workers
        in equal runs; where a run ends inside a tile, its sum is added as a part.
      scales: where the scales of tiles are applied: to the `operands` before the product, at each
        `promotion`, to the `output` (for scales that span the contraction axis), or by the
        `engine`, as block scales of its own. One that takes block scales is handed them whatever
        stands here. Tensor scales multiply the output.
      output: the format of the result.
      delayed: what becomes of the history, where an operand is scaled by it; needs `linear`.
      prepare: what fprop's weight is taken through first, by `lowprec.prepare`; a product of a
        weight as it is is then refused.
    """

    name: str
    engine: Engine
    fprop: OperandPair
    dgrad: OperandPair
    wgrad: OperandPair
    promote_every: int | None = None
    promotion: Promotion = "fma"
    scales: ScalePlace = "operands"
    order: str = "sequential"
    output: Format
    delayed: Delayed | None = None
    prepare: Preparation | None = None

    def __post_init__(self) -> None:
        check_spec(f"recipe {self.name!r}", self)
        split_of(self.order)
        if self.prepare is not None:
            self._check_prepare(self.prepare)
        if self.takes_history and self.delayed is None:
            raise ValueError(
                f"recipe {self.name!r}: an operand with amax = 'history' needs a table [delayed], "
                f"such as algorithm = 'max'"
            )
        if self.output.name not in ("float32", "bfloat16", "float16"):
            raise ValueError(
                f"recipe {self.name!r}: output must be float32, bfloat16 or float16, "
                f"got {self.output.name}"
            )
        if self.promote_every is not None and self.promote_every < 1:
            raise ValueError(
                f"recipe {self.name!r}: promote_every = {self.promote_every}; at least 1"
            )
        if self.order.startswith("stream_k") and self.promote_every is None:
            whole = self.engine.accumulation in ("tree", "compensated", "native")
            if whole or (self.engine.accumulation == "exact" and not self.engine.fused_length):
                raise ValueError(
                    f"recipe {self.name!r}: engine {self.engine.name!r} sums all of K at once, "
                    f"which order = {self.order!r} cannot cut; use split_k.<parts>, or "
                    f"promote_every"
                )
        if self.scales == "engine" and not self.engine.scale_formats:
            raise ValueError(
                f"recipe {self.name!r}: scales = 'engine', and {self.engine.name!r} takes no "
                f"block scales; blackwell.tcgen05.mxf8f6f4.fp32 does"
            )
        for role in ROLES:
            for side in ("a", "b"):
                self._check_place(role, side)
            if own_settings(getattr(self, role)):
                self.in_role(role)

    def _check_prepare(self, preparation: Preparation) -> None:
        pair = self.fprop
        if pair.b_from is not None or pair.b_amax is not None:
            raise ValueError(
                f"recipe {self.name!r}: [prepare] starts from the weight as it is; leave out "
                f"fprop's b_from and b_amax"
            )
        try:
            preparation.check_weight(pair.b)
        except ValueError as error:
            raise ValueError(f"recipe {self.name!r}: {error}") from None

    def _check_place(self, role: Role, side: str) -> None:
        pair = getattr(self, role)
        operand = getattr(pair, side)
        if not isinstance(operand, Block):
            return
        along, engine = operand.tile[1], pair.engine or self.engine
        every = pair.promote_every or self.promote_every
        scaled_by = "engine" if engine.scale_formats else pair.scales or self.scales
        where = f"recipe {self.name!r}: {role}.{side} = {operand.name}"
        if operand.transform and operand.transform.needs == "smoothing":
            raise ValueError(
                f"{where} has a transform that takes `smoothing`, which a recipe has no place for"
            )
        if operand.coding != "scaled" and scaled_by != "operands":
            raise ValueError(
                f"{where} has no scales that a product could be multiplied by (its coding is "
                f"{operand.coding!r}): it takes scales = 'operands', not {scaled_by!r}"
            )
        if operand.transform and scaled_by != "operands" and not pair.transforms_cancel:
            raise ValueError(
                f"{where} has a transform that the other operand has not: it is undone before the "
                f"product, which takes scales = 'operands', not {scaled_by!r}"
            )
        if scaled_by == "output" and along != "all":
            raise ValueError(
                f"{where} scales tiles of {along} along K; scales = 'output' needs 'all'"
            )
        if scaled_by == "promotion" and along != "all" and every is None:
            raise ValueError(f"{where}: scales = 'promotion' needs promote_every")
        if scaled_by == "promotion" and along != "all" and along % (every or along):
            raise ValueError(
                f"{where} scales tiles of {along} along K, which promote_every = {every} does not "
                f"divide"
            )

    def _repr_html_(self) -> str:
        bits = {role: f"{getattr(self, role).bits_per_element:g}" for role in ROLES}
        figures = {f"{role}, bits_per_element": x for role, x in bits.items()}
        return html.spec(self, "recipe", "recipes", get_recipe, figures)

    def in_role(self, role: Role) -> "Recipe":
        """The recipe as one role runs it: with what the role sets, and its operands in all three.

        Example:
          >>> get_recipe("te_current").in_role("dgrad").promote_every
          128
        """
        return _in_role(self, role)

    @property
    def scale_place(self) -> ScalePlace:
        """Where scales are applied: `engine` where that takes block scales, else `scales`."""
        return "engine" if self.engine.scale_formats else self.scales

    @property
    def stochastic(self) -> bool:
        """Whether anything is drawn at random for any operand, which takes a `key`."""
        operands = [getattr(getattr(self, role), side) for role in ROLES for side in ("a", "b")]
        return any(isinstance(x, Block) and draws(x) for x in operands)

    @property
    def takes_history(self) -> bool:
        """Whether an operand is scaled by its history, for which `linear` has `amax_history`."""
        pairs = [getattr(self, role) for role in ROLES]
        return any("history" in (pair.a_amax, pair.b_amax) for pair in pairs)


def _check_history(side: str, operand: Any, copy: Format | Block | None) -> None:
    """Raises ValueError unless one number scales the operand, and only the operand."""
    if takes_amax(copy):
        raise ValueError(
            f"{side}_amax = 'history' is of the operand itself, and {side}_from = "
            f"{getattr(copy, 'name', '')} takes an amax of its own; use another block there"
        )
    if operand.tile != ("all", "all") and operand.tensor_scale != "amax":
        raise ValueError(
            f"{side}_amax = 'history' needs tiles of whole tensors or tensor_scale = 'amax', and "
            f"{operand.name} has tiles {operand.tile}"
        )


def takes_amax(operand: Format | Block | None) -> bool:
    """Whether an operand's scales are made for a given amax, not a measured one."""
    return isinstance(operand, Block) and operand.amax_source == "given"


def draws(block: Block) -> bool:
    """Whether a block rounds elements or scales stochastically, or turns by random signs."""
    signs = block.transform is not None and block.transform.needs == "signs"
    return is_stochastic(block.rounding) or block.eden is not None or signs


def own_settings(pair: OperandPair) -> dict[str, Any]:
    """What a role sets in place of the recipe's own."""
    names = ("engine", "promote_every", "scales", "output")
    return {name: value for name in names if (value := getattr(pair, name)) is not None}


@functools.cache
def _in_role(recipe: Recipe, role: Role) -> Recipe:
    pair = getattr(recipe, role)
    settings = own_settings(pair)
    plain = dataclasses.replace(pair, **dict.fromkeys(settings))
    return dataclasses.replace(recipe, **settings, fprop=plain, dgrad=plain, wgrad=plain)


def split_of(order: str) -> tuple[str, int]:
    """An order's kind, and into how many parts it cuts.

    Raises:
      ValueError: there is no such order.
    """
    kind, _, count = order.partition(".")
    if order == "sequential":
        return order, 1
    if kind not in ("split_k", "stream_k") or not count.isdigit() or int(count) < 1:
        raise ValueError(
            f"order = {order!r}; use sequential, split_k.<parts> or stream_k.<workers>, such as "
            f"split_k.4"
        )
    return kind, int(count)


def operand_bits(operand: Format | Block) -> float:
    """Bits per element of an operand, scales included."""
    return operand.bits_per_element if isinstance(operand, Block) else float(operand.bits)


_RESOLVERS = {
    Engine: get_engine,
    Format: get_format,
    Format | Block: get_format_or_block,
    Format | Block | None: get_format_or_block,
}


def list_recipes() -> tuple[str, ...]:
    """The names of the catalogue's recipes, sorted.

    Example:
      >>> "deepseek_v3" in list_recipes()
      True
    """
    return catalogue.names("recipes")


@functools.cache
def _catalogued(name: str) -> Recipe:
    return catalogue.read("recipes", name, Recipe, _RESOLVERS).value


def get_recipe(recipe: str | Recipe) -> Recipe:
    """Finds a recipe by name or path to a TOML file, or passes a `Recipe` through.

    Raises:
      ValueError: no recipe has that name; near matches are listed.
      TypeError: `recipe` is neither a string nor a `Recipe`.

    Example:
      >>> get_recipe("deepseek_v3").promote_every
      128
    """
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str):
        raise TypeError(
            f"`recipe` must be a recipe's name, a path to a TOML file or a Recipe, "
            f"got {type(recipe)}"
        )
    if catalogue.is_path(recipe):
        return catalogue.read("recipes", recipe, Recipe, _RESOLVERS).value
    return _catalogued(recipe)
