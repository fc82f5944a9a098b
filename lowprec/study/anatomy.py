"""A recipe with one ingredient changed at a time, and what that does to each term of its error."""

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from lowprec.engines.engine import get_engine
from lowprec.gemm.recipe import ROLES, OperandPair, Recipe, Role, get_recipe
from lowprec.models.operands import Operands
from lowprec.numerics.format import Format, get_format
from lowprec.scaling.block import Block
from lowprec.scaling.codings import Transform
from lowprec.study.gemm_recipes_front import spread
from lowprec.study.gemm_recipes_operands import plain, student_t
from lowprec.study.ledger import ledger
from lowprec.study.ledger_terms import Ledger

CAPTURED, SYNTHETIC = "captured", "Student t"
TOTAL = "total"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """One ingredient of a recipe changed.

    Attributes:
      base: the recipe.
      ingredient, value: what is changed, and to what, in words.
      block: fields of all blocks that get other values; `tile` may be one number, which replaces
        every size above 1 that is no `all`.
      a, b: the same of one operand alone.
      recipe: fields of the recipe.
    """

    base: str
    ingredient: str
    value: str
    block: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    a: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    b: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def apply(self) -> Recipe:
        """The recipe with the change, under the change's name.

        Raises:
          ValueError: what the recipe or a block refuses, or a field that there is not.
        """
        base = get_recipe(self.base)
        name = f"{self.base}, {self.ingredient}: {self.value}"
        try:
            pairs = {role: self._pair(getattr(base, role)) for role in ROLES}
            fields = {key: _resolved(key, value) for key, value in self.recipe.items()}
            return dataclasses.replace(base, name=name, **pairs, **fields)
        except TypeError as error:
            raise ValueError(f"{name}: {error}") from error

    def _pair(self, pair: OperandPair) -> OperandPair:
        a, b = (
            _changed(operand, {**self.block, **own})
            for operand, own in ((pair.a, self.a), (pair.b, self.b))
        )
        return dataclasses.replace(pair, a=a, b=b)


def _changed(operand: Format | Block, fields: Mapping[str, Any]) -> Format | Block:
    if not isinstance(operand, Block) or not fields:
        return operand
    found = {key: _resolved(key, value) for key, value in fields.items()}
    size = found.get("tile")
    if isinstance(size, int):
        found["tile"] = tuple(x if x in (1, "all") else size for x in operand.tile)
    return dataclasses.replace(operand, **found)


def _resolved(key: str, value: Any) -> Any:
    if key == "engine":
        return get_engine(value)
    if key in ("element", "scale_format", "output"):
        return get_format(value)
    if key == "transform":
        return Transform(**value)
    return tuple(value) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is changed, and on what; see experiments/recipe_anatomy.toml.

    Attributes:
      seed: of synthetic operands, stochastic rounding, and of which outputs are looked at.
      documents, tokens: what is captured, and how many rows of it, evenly spaced, are used.
      layers: captured ones.
      outputs: of each product that are looked at.
      synthetic_seeds, vectors, depth: pairs of operands from Student's t with 3 degrees of freedom.
      change: in the order of the tables.
    """

    seed: int
    documents: int
    tokens: int
    layers: tuple[str, ...]
    outputs: int
    synthetic_seeds: int
    vectors: int
    depth: int
    change: tuple[Change, ...]


def read_config(path: Path) -> Config:
    """Reads what is changed.

    Raises:
      ValueError: a key that does not belong there, or one that is missing.
    """
    table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    try:
        changes = tuple(Change(**change) for change in table.pop("change"))
        layers = tuple(table.pop("layers"))
        return Config(change=changes, layers=layers, **table)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


class Product(NamedTuple):
    """The operands of one product, (M, K) and (K, N).

    Attributes:
      source: `CAPTURED` or `SYNTHETIC`.
      role: of the recipe that it is run in.
      unit: a layer or a seed.
    """

    source: str
    role: Role
    unit: str
    a: NDArray[np.float32]
    b: NDArray[np.float32]


def products(config: Config, layers: Sequence[Operands]) -> list[Product]:
    """What every recipe is taken apart on: the captured layers' three roles, and synthetic pairs.

    Raises:
      ValueError: a layer was not captured.
    """
    by_name = {layer.layer: layer for layer in layers}
    missing = [name for name in config.layers if name not in by_name]
    if missing:
        raise ValueError(f"layers = {missing}; captured are {', '.join(by_name)}")
    found = []
    for role in ROLES:
        for name in config.layers:
            a, b = _fewer(by_name[name], config.tokens).product(role)
            found.append(Product(CAPTURED, role, name, plain(a), plain(b)))
    for seed in range(config.synthetic_seeds):
        rng = np.random.default_rng([config.seed, seed])
        shape = config.vectors, config.depth
        a, b = plain(student_t(rng, shape)), plain(student_t(rng, shape))
        found.append(Product(SYNTHETIC, "fprop", f"seed {seed}", a, np.ascontiguousarray(b.T)))
    return found


def _fewer(layer: Operands, tokens: int) -> Operands:
    assert layer.x is not None and layer.dy is not None
    kept = np.arange(tokens) * len(layer.x) // tokens
    return Operands(layer.layer, x=layer.x[kept], w=layer.w, dy=layer.dy[kept])


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnatomyRow:
    """A term of the error of a recipe, with one ingredient changed or none, means over units.

    `contribution` is <term, error> over <error, error> of the base recipe on the same operands:
    over the terms, and for the base over itself, they sum to the whole error's energy over the
    base's. `moved` is the contribution less the base's, with a 95 % interval over units, layers or
    seeds, `decibels` the median energy over the exact product's. `change_db` is how much more
    energy the term has than in the base, for `total` with an interval; None where either is zero.
    The base has the ingredient `none`.
    """

    source: str
    role: str
    base: str
    ingredient: str
    value: str
    bits_per_element: float
    term: str
    units: int
    contribution: float
    moved: float
    moved_low: float
    moved_high: float
    decibels: float
    change_db: float | None
    change_low: float | None
    change_high: float | None


def base_of(change: Change) -> Change:
    """The recipe that a change is a change of, as no change."""
    return Change(base=change.base, ingredient="none", value="as published")


def ledgers(recipe: Recipe, on: Sequence[Product], config: Config) -> list[Ledger]:
    """The error of each product, term by term."""
    key = jax.random.key(config.seed) if recipe.stochastic else None
    return [
        ledger(
            x.a, x.b, recipe, role=x.role, key=key, outputs=config.outputs, seed=config.seed
        )
        for x in on
    ]  # fmt: skip


def anatomy_rows(
    change: Change, recipe: Recipe, found: Sequence[Ledger], base: Sequence[Ledger],
    on: Sequence[Product],
) -> Iterator[AnatomyRow]:  # fmt: skip
    """The rows of a changed recipe, paired with the base by product.

    Args:
      change: what was changed.
      recipe: with the change.
      found, base: of each product.
      on: the products.
    """
    groups: dict[tuple[str, Role], list[int]] = {}
    for i, product in enumerate(on):
        groups.setdefault((product.source, product.role), []).append(i)
    for (source, role), places in groups.items():
        for term in (*(x.name for x in base[0].terms), TOTAL):
            pairs = [(found[i][term], base[i][term], base[i].total.energy) for i in places]
            # part is over the recipe's own error.
            parts = np.array(
                [x.part * found[i].total.energy for (x, _, _), i in zip(pairs, places, strict=True)]
            )
            own = np.array([x.part * whole for _, x, whole in pairs])
            whole = np.array([whole for _, _, whole in pairs])
            moved = spread((parts - own) / whole)
            yield AnatomyRow(
                source=source,
                role=role,
                base=change.base,
                ingredient=change.ingredient,
                value=change.value,
                bits_per_element=getattr(recipe, role).bits_per_element,
                term=term,
                units=len(places),
                contribution=float(np.mean(parts / whole)),
                moved=moved[0],
                moved_low=moved[1],
                moved_high=moved[2],
                decibels=float(np.median([x.decibels for x, _, _ in pairs])),
                **_change(
                    [x.energy for x, _, _ in pairs], [x.energy for _, x, _ in pairs], term == TOTAL
                ),
            )


def _change(
    energies: Sequence[float], before: Sequence[float], whole: bool
) -> dict[str, float | None]:
    names = ("change_db", "change_low", "change_high")
    if min(*energies, *before) <= 0:
        return dict.fromkeys(names)
    found = spread(10 * np.log10(np.array(energies) / np.array(before)))
    return dict(zip(names, found if whole else (found[0], None, None), strict=True))
