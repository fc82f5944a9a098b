"""Chosen recipes as TOML files that `gemm`, `linear` and `compare` take: one recipe a layer.

A layer's recipe has in each role what was chosen there. What no file of the catalogue holds, such
as a combination's block, becomes a file beside, in the folder `parts`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowprec import catalogue
from lowprec.engines.engine import Engine, get_engine
from lowprec.gemm.recipe import ROLES, OperandPair, Promotion, Recipe, Role, get_recipe
from lowprec.numerics.format import Format, get_format, names_format
from lowprec.scaling.block import Block, get_block, list_blocks

PARTS, PREFIX = "parts", "advice_"
_OWN = ("engine", "scales", "output", "promote_every")
"""What a role may set in place of the recipe's own; the last cannot be unset there."""


def layer_recipes(layer: str, chosen: Mapping[Role, Recipe]) -> list[Recipe]:
    """One recipe with what was chosen in each role; a role without a choice is bfloat16's.

    Where roles differ in what a recipe has only once (how partial sums are promoted, and their
    order), there is a recipe for each group of roles that agree, named after its roles.

    Args:
      layer: what to name it after.
      chosen: recipes as their roles run them (`Recipe.in_role`).

    Raises:
      ValueError: nothing was chosen.

    Example:
      >>> own = {role: get_recipe(n).in_role(role) for role, n in
      ...        (("fprop", "mxfp4"), ("dgrad", "deepseek_v3"))}
      >>> [both] = layer_recipes("fc", own)
      >>> both.name, both.fprop.a.name, both.dgrad.a.name, both.wgrad.a.name
      ('advice_fc', 'mxfp4', 'fp8_1x128', 'bfloat16')
    """
    if not chosen:
        raise ValueError(f"nothing was chosen for layer {layer}, so there is no recipe to write")
    groups: dict[tuple[Any, ...], dict[Role, Recipe]] = {}
    for role in ROLES:
        if role in chosen:
            groups.setdefault(_shared(chosen[role]), {})[role] = chosen[role]
    free = groups.pop((None, "sequential"), {})
    if free or not groups:
        # What is never promoted goes with whatever else there is.
        key = next((key for key in groups if key[1] == "sequential"), (None, "sequential"))
        groups[key] = groups.get(key, {}) | free
    name = f"{PREFIX}{safe(layer)}"
    return [
        _joined(name if len(groups) == 1 else "_".join((name, *own)), own)
        for own in groups.values()
    ]


def _shared(recipe: Recipe) -> tuple[str | None, str]:
    """What all roles of a recipe have in common."""
    return (None if recipe.promote_every is None else recipe.promotion), recipe.order


def _joined(name: str, chosen: Mapping[Role, Recipe]) -> Recipe:
    first = next(iter(chosen.values()))
    plain = get_recipe("bf16")
    pairs = {role: _pair(chosen.get(role) or plain.in_role(role), first) for role in ROLES}
    promoted: list[Promotion] = [
        x.promotion for x in chosen.values() if x.promote_every is not None
    ]
    return Recipe(
        name=name,
        engine=first.engine,
        scales=first.scales,
        output=first.output,
        promotion=promoted[0] if promoted else "fma",
        order=first.order,
        fprop=pairs["fprop"],
        dgrad=pairs["dgrad"],
        wgrad=pairs["wgrad"],
    )


def _pair(recipe: Recipe, first: Recipe) -> OperandPair:
    """A recipe's operands, with what the recipe sets unlike the first one."""
    own = {name: getattr(recipe, name) for name in _OWN}
    same = [name for name in _OWN[:-1] if own[name] == getattr(first, name)]
    return dataclasses.replace(recipe.fprop, **(own | dict.fromkeys(same)))


def safe(name: str) -> str:
    """A name that any file can have.

    Example:
      >>> safe("x @ w"), safe("layers.0.mlp.down")
      ('x_w', 'layers.0.mlp.down')
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("_.") or "layer"


def write_recipes(
    chosen: Mapping[str, Mapping[Role, Recipe]], out: Path, reasons: Mapping[str, Sequence[str]]
) -> list[Path]:
    """Writes the recipes of every layer into a directory, which is made where it is missing.

    Args:
      chosen: by layer and role.
      out: the directory.
      reasons: by layer, lines that stand above its recipe as comments.

    Returns:
      The paths of the recipes, each of which works wherever a recipe's name does.

    Raises:
      ValueError: two layers' names are the same once they are made names of files.
    """
    recipes = [(layer, x) for layer, own in chosen.items() for x in layer_recipes(layer, own)]
    names = [recipe.name for _, recipe in recipes]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two layers would be written to {name}.toml; rename one of them")
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for layer, recipe in recipes:
        path = out / f"{recipe.name}.toml"
        comments = "".join(f"# {line}\n" for line in reasons.get(layer, ()))
        path.write_text(comments + recipe_toml(recipe, out), encoding="utf-8")
        paths.append(path)
    return paths


def read_recipes(folder: Path) -> dict[str, Recipe]:
    """By layer, the recipes for the forward product that `write_recipes` wrote into a folder.

    Raises:
      ValueError: there are none, or one is malformed.

    Example:
      >>> chosen = {"fc": {"fprop": get_recipe("mxfp4").in_role("fprop")}}
      >>> _ = write_recipes(chosen, Path("/tmp/advice"), {})
      >>> read_recipes(Path("/tmp/advice"))["fc"].fprop.a.name
      'mxfp4'
    """
    found: dict[str, Recipe] = {}
    for path in sorted(folder.glob(f"{PREFIX}*.toml")):
        layer, roles = path.stem.removeprefix(PREFIX), set[str]()
        while layer.rpartition("_")[2] in ROLES:
            layer, _, role = layer.rpartition("_")
            roles.add(role)
        if not roles or ROLES[0] in roles:
            found[layer] = get_recipe(str(path))
    if not found:
        raise ValueError(f"{folder}: holds no recipes, {PREFIX}LAYER.toml of lowprec advise --out")
    return found


def recipe_toml(recipe: Recipe, folder: Path) -> str:
    """A recipe as the text of a file in a folder, where what it needs beside it is written."""
    return _toml(recipe, lambda part: _qualified(part) or _reference(part, folder, f"{PARTS}/"))


def _qualified(part: Engine | Block | Format) -> str | None:
    """`block:NAME` or `format:NAME` of an operand whose name the catalogue has for both."""
    name = _named(part)
    if name is None or isinstance(part, Engine):
        return None
    both = names_format(name) and name in list_blocks()
    return f"{'block' if isinstance(part, Block) else 'format'}:{name}" if both else None


Reference = Callable[[Engine | Block | Format], str]


def _toml(spec: Any, refer: Reference) -> str:
    """A dataclass as TOML: what differs from its defaults, tables inline."""
    return "".join(f"{key} = {_value(value, refer)}\n" for key, value in _set_fields(spec))


def _set_fields(spec: Any) -> list[tuple[str, Any]]:
    fields = [(x, getattr(spec, x.name)) for x in dataclasses.fields(spec)]
    return [(x.name, value) for x, value in fields if value is not None and value != x.default]


def _value(value: Any, refer: Reference) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case int() | float():
            return repr(value)
        case tuple():
            return f"[{', '.join(_value(item, refer) for item in value)}]"
        case Engine() | Block() | Format():
            return f'"{refer(value)}"'
    inner = ", ".join(f"{key} = {_value(item, refer)}" for key, item in _set_fields(value))
    return f"{{ {inner} }}"


def _reference(part: Engine | Block | Format, folder: Path, place: str) -> str:
    """The catalogue's name of a part; else the path, from `place`, of a file that is written."""
    if (named := _named(part)) is not None:
        return named
    kind = type(part).__name__.lower()
    name = f"{kind}_{safe(part.name)}.toml"
    (folder / PARTS).mkdir(parents=True, exist_ok=True)
    text = _toml(part, lambda inner: _reference(inner, folder, ""))
    (folder / PARTS / name).write_text(text, encoding="utf-8")
    return place + name


def _named(part: Engine | Block | Format) -> str | None:
    """The name by which the catalogue has a part, if it does."""
    find: Callable[[str], Any] = {Engine: get_engine, Block: get_block, Format: get_format}[
        type(part)
    ]
    if catalogue.is_path(part.name):
        return None
    try:
        found = find(part.name)
    except ValueError:
        return None
    if found != part:
        return None
    return (
        f"block:{part.name}" if isinstance(part, Block) and names_format(part.name) else part.name
    )
