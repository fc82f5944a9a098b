"""A study as a file: grids and samples of products under recipes, expanded into points.

One TOML file has a `name`, and tables `[[grid]]` (every combination) and `[[sample]]` (drawn ones).
The keys of a table are its axes; experiments/study_example.toml says what each takes.
"""

import dataclasses
import functools
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lowprec import catalogue
from lowprec.catalogue import unknown
from lowprec.engines.engine import get_engine
from lowprec.gemm.gemm import check_engine, summation
from lowprec.gemm.recipe import ROLES, Promotion, Recipe, Role, get_recipe
from lowprec.numerics.format import get_format
from lowprec.study.design_axes import (
    Axis,
    choice,
    cube,
    every_combination,
    whole_numbers,
)
from lowprec.study.design_operands import GAUSSIAN, FromFile, read_operands
from lowprec.study.point import Point

RECIPES_OWN = "recipe"
"""The word for what the recipe itself says."""
NEVER = "never"
"""The word for `promote_every`: all of K in the engine."""
AXES = (
    "recipe",
    "engine",
    "role",
    "operands",
    "shape",
    "m",
    "k",
    "n",
    "promote_every",
    "promotion",
    "order",
    "output",
    "seed",
)
OWN_OF_SAMPLES = {"points": int, "method": str, "sample_seed": int}
PROMOTIONS: tuple[str, ...] = typing.get_args(Promotion)
_OVERRIDES = ("engine", "promote_every", "promotion", "order", "output")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A study as it was read.

    Attributes:
      name: of the study.
      path: of its file.
      points: by key; what several tables ask for is there once.
      left_out: combinations that cannot be computed, of tables with `skip_impossible = true`, by
        reason, with how many there are of each.
    """

    name: str
    path: Path
    points: Mapping[str, Point]
    left_out: Mapping[str, int]


def read_study(path: str | Path) -> Study:
    """Reads and expands a study; nothing is computed.

    Raises:
      ValueError: no TOML file, a key that does not belong there, a value that none takes, or a
        combination that cannot be computed in a table without `skip_impossible = true`.
      OSError: a file of operands cannot be read.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error
    for key in table:
        if key not in ("name", "grid", "sample"):
            raise ValueError(f"{path}: {unknown('key', key, ('name', 'grid', 'sample'))}")
    name = table.get("name", path.stem)
    if not isinstance(name, str):
        raise ValueError(f"{path}: name = {name!r}; use a text")
    points: dict[str, Point] = {}
    left_out: dict[str, int] = {}
    tables = [(kind, part) for kind in ("grid", "sample") for part in _tables(path, table, kind)]
    if not tables:
        raise ValueError(f"{path} has no [[grid]] and no [[sample]], so no points")
    for number, (kind, part) in enumerate(tables, start=1):
        where = f"{path}, [[{kind}]] {number}"
        for found in _expanded(part, where, path.parent, sample=kind == "sample"):
            if isinstance(found, Point):
                points.setdefault(found.key, found)
            else:
                left_out[found] = left_out.get(found, 0) + 1
    if not points:
        raise ValueError(f"{path}: no combination can be computed: {'; '.join(left_out)}")
    return Study(name=name, path=path, points=points, left_out=left_out)


def _tables(path: Path, table: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    found = table.get(kind, [])
    if not isinstance(found, list) or not all(isinstance(part, dict) for part in found):
        raise ValueError(f"{path}: write [[{kind}]], with two brackets: there may be several")
    return found


def _expanded(
    part: dict[str, Any], where: str, folder: Path, *, sample: bool
) -> Iterator[Point | str]:
    """The points of a table, or in place of one the reason why it cannot be computed."""
    own = {"skip_impossible": bool} | (OWN_OF_SAMPLES if sample else {})
    for key, value in part.items():
        if key not in AXES and key not in own:
            raise ValueError(f"{where}: {unknown('key', key, (*AXES, *own))}")
        if key in own and type(value) is not own[key]:
            raise ValueError(f"{where}: {key} = {value!r}; use a {own[key].__name__}")
    axes = _axes(part, where, folder)
    for number, values in enumerate(_combinations(part, axes, where, sample=sample)):
        try:
            yield _point(values)
        except ValueError as error:
            if not part.get("skip_impossible", False):
                raise ValueError(
                    f"{where}: point {number + 1}: {error}; skip_impossible = true leaves such "
                    f"combinations out"
                ) from error
            yield str(error)


def _combinations(
    part: Mapping[str, Any], axes: Mapping[str, Axis], where: str, *, sample: bool
) -> Iterator[dict[str, Any]]:
    if not sample:
        try:
            yield from every_combination(axes)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        return
    method, count = part.get("method", "sobol"), part.get("points", 0)
    if method not in ("sobol", "random"):
        raise ValueError(f"{where}: method = {method!r}; use 'sobol' or 'random'")
    if count < 1:
        raise ValueError(f"{where}: points = {count}; say how many to draw")
    for places in cube(method, count, len(axes), part.get("sample_seed", 0)):
        drawn = zip(axes.items(), places, strict=True)
        yield {name: axis.at(float(place)) for (name, axis), place in drawn}


def _axes(part: Mapping[str, Any], where: str, folder: Path) -> dict[str, Axis]:
    if "recipe" not in part:
        raise ValueError(f"{where}: missing recipe: names, or paths to TOML files")
    axes: dict[str, Axis] = {}
    for name in AXES:
        if name not in part:
            continue
        value, at = part[name], f"{where}: {name}"
        if name in ("m", "k", "n", "seed"):
            axes[name] = whole_numbers(at, value, least=0 if name == "seed" else 1)
        elif name == "operands":
            axes |= read_operands(at, value, folder)
        elif name == "shape":
            axes[name] = choice(at, _shapes(at, value))
        else:
            axes[name] = choice(at, _values(name, value, at, folder))
    axes.setdefault("role", choice("role", ["fprop"]))
    axes.setdefault("operands", choice("operands", [GAUSSIAN]))
    return axes


def _shapes(where: str, value: Any) -> list[tuple[int, ...]]:
    several = isinstance(value, list) and all(isinstance(x, list) for x in value)
    shapes = value if several else [value]
    for shape in shapes:
        sizes = shape if isinstance(shape, list) else []
        if len(sizes) != 3 or any(type(x) is not int or x < 1 for x in sizes):
            raise ValueError(f"{where} = {shape!r}; use [M, K, N], or several of them")
    return [tuple(shape) for shape in shapes]


def _values(name: str, value: Any, where: str, folder: Path) -> list[Any]:
    try:
        return [_value(name, x, folder) for x in (value if isinstance(value, list) else [value])]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def _value(name: str, value: Any, folder: Path) -> Any:
    """A value of an axis that is named by a text; None for the recipe's own."""
    if name == "promote_every" and type(value) is int:
        return value
    if not isinstance(value, str):
        raise ValueError(f"got {value!r}; use a text")
    if name in ("recipe", "engine") and catalogue.is_path(value):
        value = str(folder / value)
    if name == "recipe":
        return _runnable(get_recipe(value))
    if name == "role":
        return _one_of(value, ROLES)
    if value == RECIPES_OWN:
        return None
    if name == "engine":
        return get_engine(value)
    if name == "output":
        return get_format(value)
    if name == "promotion":
        return _one_of(value, PROMOTIONS)
    if name == "promote_every":
        return _one_of(value, (NEVER, RECIPES_OWN))
    return value


def _one_of(value: str, words: tuple[str, ...]) -> str:
    if value not in words:
        raise ValueError(f"got {value!r}; use one of {', '.join(words)}")
    return value


def _runnable(recipe: Recipe) -> Recipe:
    """ValueError for a recipe that needs more than operands."""
    needs = "a prepared weight" if recipe.prepare is not None else "a history of magnitudes"
    if recipe.prepare is not None or recipe.takes_history:
        raise ValueError(f"recipe {recipe.name!r} needs {needs} besides operands")
    return recipe


def _point(values: Mapping[str, Any]) -> Point:
    """The point of one combination.

    Raises:
      ValueError: it cannot be computed.
    """
    role = values["role"]
    overrides = tuple((name, values[name]) for name in _OVERRIDES if values.get(name) is not None)
    recipe = _chosen(values["recipe"], role, overrides)
    operands = values["operands"]
    sizes = [name for name in ("shape", "m", "k", "n") if name in values]
    if isinstance(operands, FromFile):
        if sizes:
            raise ValueError(
                f"{' and '.join(sizes)} belong to operands that are drawn; give {operands.stored} "
                f"a table of its own"
            )
        shape = operands.shape(role)
        # A layer is what it is: seeds are of stochastic rounding alone.
        seed = values.get("seed", 0) if recipe.stochastic else 0
        return Point(recipe=recipe, role=role, operands=operands.stored, seed=seed, **shape)
    if "shape" in sizes and len(sizes) > 1:
        raise ValueError("give either shape, or m, k and n")
    if sizes not in (["shape"], ["m", "k", "n"]):
        raise ValueError("missing shape = [M, K, N], or m, k and n")
    m, k, n = values["shape"] if sizes == ["shape"] else (values[name] for name in sizes)
    drawn = operands[0].drawn(values), operands[1].drawn(values)
    seed = values.get("seed", 0)
    return Point(recipe=recipe, role=role, m=m, k=k, n=n, operands=drawn, seed=seed)


@functools.cache
def _chosen(recipe: Recipe, role: Role, overrides: tuple[tuple[str, Any], ...]) -> Recipe:
    """The recipe in a role with what the study sets, where that can be computed."""
    changes = {name: None if value == NEVER else value for name, value in overrides}
    chosen = dataclasses.replace(recipe.in_role(role), **changes)
    check_engine(chosen.engine)
    summation(chosen, role)
    return chosen
