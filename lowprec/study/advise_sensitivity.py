"""Bits spread over the layers of a model by how much each of them, quantized alone, moved it.

`lowprec evaluate --sensitivity` measures the divergence that a recipe in one layer leaves of the
model's predictions. It is taken to grow with the energy of the layer's error, and the divergences
of layers to add up: both hold where errors are small, and neither is exact. A layer's sensitivity
is the measured divergence over the error, relative to the product, that the same recipe leaves of
the layer's operands; what another recipe would cost the model follows from its own error.
"""

import csv
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from lowprec.gemm.recipe import Recipe, get_recipe
from lowprec.models.operands import Operands
from lowprec.study.advise import Advice, run
from lowprec.study.advise_candidates import Candidate
from lowprec.study.advise_choice import Goal

ALL, KIND = "all", "recipe:"
SLACK = 1e-9
"""Bits that sums of float64 may be beyond a budget."""
Option = tuple[float, float, Candidate]
"""Bits, expected divergence, and the candidate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What a recipe in a single layer did to a model.

    Attributes:
      layer: a layer of the model, such as `layers.3`, or linear layers by name or pattern.
      recipe: by name.
      divergence: from bf16's predictions, in nats a token.
    """

    layer: str
    recipe: str
    divergence: float

    def covers(self, name: str) -> bool:
        """Whether a linear layer was among what was quantized.

        Example:
          >>> found = Measured(layer="layers.3", recipe="mxfp4", divergence=0.01)
          >>> found.covers("layers.3.mlp.up"), found.covers("layers.30.mlp.up")
          (True, False)
        """
        return fnmatchcase(name, self.layer) or name.startswith(f"{self.layer}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """Products with one recipe each, and what they are expected to cost the model.

    Attributes:
      found: what was chosen, in the order of the products.
      bits: per element, the mean over the elements of all weights.
      divergence: expected of all products together, in nats a token.
      even: the same where no product has more bits than the budget; infinite where some has no
        candidate within it.
    """

    found: list[Advice]
    bits: float
    divergence: float
    even: float


def read_sensitivity(path: Path) -> list[Measured]:
    """The recipes that were tried in single layers, from the CSV file of `lowprec evaluate`.

    Raises:
      ValueError: it is no such file, or nothing was tried in single layers.
      OSError: it cannot be read.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if not {"what", "layer", "kl_mean"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path}: needs the columns what, layer and kl_mean")
        found = [
            Measured(
                layer=row["layer"],
                recipe=row["what"].removeprefix(KIND),
                divergence=_number(path, row["kl_mean"]),
            )
            for row in rows
            if row["layer"] != ALL and row["what"].startswith(KIND) and " " not in row["what"]
        ]
    if not found:
        raise ValueError(
            f"{path}: has no recipe in a single layer; write it with lowprec evaluate --sensitivity"
        )
    return found


def _number(path: Path, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{path}: `kl_mean` = {text!r} must be a number of at least 0")
    return value


def sensitivities(
    found: Sequence[Advice], measured: Sequence[Measured], recipes: Mapping[str, Recipe]
) -> list[float]:
    """Of each product, the model's divergence over the product's relative error.

    Where several recipes were tried in a layer, the sum of their divergences over that of their
    errors. Where a whole layer of the model was quantized, its products share a sensitivity: all
    of them must be among `found`, or it comes out too large.

    Args:
      found: the products, forward only.
      measured: what was tried.
      recipes: by name, all that were tried.

    Raises:
      ValueError: a product that nothing was measured of.
    """
    own = [[x for x in measured if x.covers(y.product.layer)] for y in found]
    for advice, covering in zip(found, own, strict=True):
        if not covering:
            raise ValueError(
                f"nothing was measured of layer {advice.product.layer}; measured were "
                f"{', '.join(sorted({x.layer for x in measured}))}"
            )
    # Linear layers by name are closer than the layer that they are in.
    own = [_closest(covering) for covering in own]
    errors = dict.fromkeys(measured, 0.0)
    for advice, covering in zip(found, own, strict=True):
        part = advice.product.select
        for x in covering:
            noise = run(recipes[x.recipe], advice.product.role, part)
            errors[x] += float(noise.sum() / part.signal.sum())
    return [_over(sum(x.divergence for x in y), sum(errors[x] for x in y)) for y in own]


def _closest(covering: Sequence[Measured]) -> list[Measured]:
    longest = max(len(x.layer) for x in covering)
    return [x for x in covering if len(x.layer) == longest]


def _over(divergence: float, error: float) -> float:
    return divergence / error if error > 0 else 0.0


def spread(
    found: Sequence[Advice],
    layers: Iterable[Operands],
    weights: Sequence[float],
    budget_bits: float,
) -> Spread | None:
    """One candidate of each product's front, so that the model's divergence is expected least.

    From the cheapest of each product, the step that saves most divergence for its bits is taken
    until no other fits: the best there is but for the last steps, of which none fits any more.

    Args:
      found: fronts, as `advise` gives them without a goal.
      layers: the operands, whose weights' elements count.
      weights: the sensitivity of each product.
      budget_bits: bits per element, the mean over both operands, and over all weights' elements.

    Returns:
      What is chosen; None where even the cheapest candidates are above the budget.
    """
    elements = {x.layer: x.w.size for x in layers if x.w is not None}
    sizes = [elements[x.product.layer] for x in found]
    lines = [_line(x, weight) for x, weight in zip(found, weights, strict=True)]
    within = [[x for x in line if x[0] <= budget_bits] for line in lines]
    even = [min(own, key=lambda x: x[1]) for own in within] if all(within) else None
    chosen = _walked(lines, sizes, budget_bits)
    if chosen is None:
        return None
    if even is not None and _total(even) < _total(chosen):
        chosen = even
    return Spread(
        found=[
            dataclasses.replace(x, picked=(y[2],), goal=Goal(budget_bits=y[2].bits))
            for x, y in zip(found, chosen, strict=True)
        ],
        bits=sum(n * x[0] for n, x in zip(sizes, chosen, strict=True)) / sum(sizes),
        divergence=_total(chosen),
        even=math.inf if even is None else _total(even),
    )


def _walked(
    lines: Sequence[Sequence[Option]], sizes: Sequence[int], budget_bits: float
) -> list[Option] | None:
    """An option of each line, from the cheapest up; None where these are above the budget."""
    if not all(lines):
        return None
    places = [0] * len(lines)
    left = (budget_bits + SLACK) * sum(sizes)
    left -= sum(n * x[0][0] for n, x in zip(sizes, lines, strict=True))
    while left >= 0:
        steps = [
            (saved / (n * more), n * more, i, j)
            for i, (n, line) in enumerate(zip(sizes, lines, strict=True))
            for j in range(places[i] + 1, len(line))
            for more, saved in [_step(line[places[i]], line[j])]
            if n * more <= left and saved > 0
        ]
        if not steps:
            return [line[j] for line, j in zip(lines, places, strict=True)]
        _, cost, i, j = max(steps)
        places[i], left = j, left - cost
    return None


def _total(chosen: Sequence[Option]) -> float:
    return sum(x[1] for x in chosen)


def _line(found: Advice, weight: float) -> list[Option]:
    """The front, fewest bits first."""
    options = [(x.bits, weight * 10 ** (-found.scores[x] / 10), x) for x in found.picked]
    return sorted(options, key=lambda x: x[:2])


def _step(here: Option, there: Option) -> tuple[float, float]:
    """Bits per element more, and divergence less."""
    return there[0] - here[0], here[1] - there[1]


def spread_by(
    path: Path,
    found: Sequence[Advice],
    layers: Sequence[Operands],
    offered: Sequence[Recipe],
    budget_bits: float,
) -> Spread:
    """`spread` by the sensitivities of a file.

    Args:
      path: the CSV file of `lowprec evaluate --sensitivity`.
      found: fronts, as `advise` gives them without a goal, of forward products.
      layers: their operands.
      offered: recipes that the file may name beside the catalogue's.
      budget_bits: as in `spread`.

    Raises:
      ValueError: what `read_sensitivity` and `sensitivities` raise; a recipe that is unknown; no
        choice within the budget.
    """
    measured = read_sensitivity(path)
    own = {x.name: x for x in offered}
    recipes = {x.recipe: own.get(x.recipe) or get_recipe(x.recipe) for x in measured}
    made = spread(found, layers, sensitivities(found, measured, recipes), budget_bits)
    if made is None:
        raise ValueError(
            f"`budget_bits` = {budget_bits:g} is below the mean of the cheapest candidates"
        )
    return made
