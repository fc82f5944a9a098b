"""The operands that a study names: distributions with their arguments, or the layers of a file."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowprec.catalogue import unknown
from lowprec.gemm.recipe import Role
from lowprec.models.operands import Operands
from lowprec.study.design_axes import Axis, Range, choice, real_range
from lowprec.study.point_operands import Drawn, Stored, stored_layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sketch:
    """One operand whose arguments may be those of a sample.

    Attributes:
      distribution: of `point_operands.DISTRIBUTIONS`.
      arguments: by name a number, or the name of the axis that it is drawn from.
    """

    distribution: str
    arguments: tuple[tuple[str, float | str], ...] = ()

    def drawn(self, values: Mapping[str, Any]) -> Drawn:
        """The operand with one combination's values."""
        given = {name: values[x] if isinstance(x, str) else x for name, x in self.arguments}
        return Drawn(distribution=self.distribution, arguments=tuple(sorted(given.items())))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FromFile:
    """A layer of a file and what it holds."""

    stored: Stored
    layer: Operands

    def shape(self, role: Role) -> dict[str, int]:
        """M, K and N of a role's product.

        Raises:
          ValueError: the layer lacks one of its operands.
        """
        a, b = self.layer.product(role)
        return {"m": a.shape[0], "k": a.shape[1], "n": b.shape[1]}


Pair = tuple[Sketch, Sketch] | FromFile
GAUSSIAN = (Sketch(distribution="gaussian"),) * 2


def read_operands(where: str, value: Any, folder: Path) -> dict[str, Axis]:
    """The axis `operands`, and one for every range among the arguments.

    Each is a distribution's name; a table with `distribution` and its arguments, for both operands;
    one with `a` and `b`, either of these each; or one with `file` (beside the study) and perhaps
    `layer`. A list in place of an argument makes as many alternatives.

    Raises:
      ValueError: none of these.
    """
    ranges: dict[str, Axis] = {}
    found: list[Pair] = []
    for number, entry in enumerate(value if isinstance(value, list) else [value]):
        here = f"{where}[{number}]"
        if isinstance(entry, Mapping) and "file" in entry:
            found += _layers(here, entry, folder)
        elif isinstance(entry, Mapping) and ("a" in entry or "b" in entry):
            for key in entry:
                if key not in ("a", "b"):
                    raise ValueError(f"{here}: {unknown('key', key, ('a', 'b'))}")
            if len(entry) != 2:
                raise ValueError(f"{here}: a and b go together")
            sides = [_sketches(f"{here}.{side}", entry[side], ranges) for side in "ab"]
            found += [(a, b) for a in sides[0] for b in sides[1]]
        else:
            found += [(sketch, sketch) for sketch in _sketches(here, entry, ranges)]
    return {"operands": choice(where, found), **ranges}


def _sketches(where: str, entry: Any, ranges: dict[str, Axis]) -> list[Sketch]:
    """The alternatives of one operand; ranges among its arguments are added to `ranges`."""
    table = {"distribution": entry} if isinstance(entry, str) else entry
    if not isinstance(table, Mapping) or not isinstance(table.get("distribution"), str):
        raise ValueError(
            f"{where} = {entry!r}; use a distribution's name, or a table with `distribution`, with "
            f"`a` and `b`, or with `file`"
        )
    options: dict[str, list[float | str]] = {}
    for name, value in table.items():
        if name == "distribution":
            continue
        if isinstance(value, Mapping):
            ranges[f"{where}.{name}"] = real_range(f"{where}.{name}", value)
            options[name] = [f"{where}.{name}"]
            continue
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(x, bool) or not isinstance(x, int | float) for x in numbers):
            raise ValueError(f"{where}: {name} = {value!r}; use a number, or a list of them")
        options[name] = numbers
    found = []
    for combination in itertools.product(*options.values()):
        arguments = tuple(zip(options, combination, strict=True))
        sketch = Sketch(distribution=table["distribution"], arguments=arguments)
        _check(where, sketch, ranges)
        found.append(sketch)
    return found


def _check(where: str, sketch: Sketch, ranges: Mapping[str, Axis]) -> None:
    """Names and numbers are looked at where they are read, not at the first point."""
    lows = {name: axis.low for name, axis in ranges.items() if isinstance(axis, Range)}
    try:
        sketch.drawn(lows)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _layers(where: str, entry: Mapping[str, Any], folder: Path) -> list[FromFile]:
    for key, value in entry.items():
        if key not in ("file", "layer"):
            raise ValueError(f"{where}: {unknown('key', key, ('file', 'layer'))}")
        if not isinstance(value, str):
            raise ValueError(f"{where}: {key} = {value!r}; use a text")
    found = stored_layers(folder / entry["file"])
    if "layer" in entry and entry["layer"] not in found:
        raise ValueError(f"{where}: {unknown('layer', entry['layer'], found)}")
    names = [entry["layer"]] if "layer" in entry else sorted(found)
    return [FromFile(stored=found[name][0], layer=found[name][1]) for name in names]
