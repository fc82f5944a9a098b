"""What a comparison of recipes says: a figure a recipe and kind of operands, and the front."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowprec.gemm.recipe import Recipe, Role
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block
from lowprec.study import ratios
from lowprec.study.advise_candidates import stored_bits
from lowprec.study.gemm_recipes import UnitRow, alike
from lowprec.study.gemm_recipes_operands import CAPTURED
from lowprec.study.intervals import student_t
from lowprec.study.matmul_bound import least_rate

GAUSSIAN = "gaussian"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeRow:
    """A recipe on the products of one family, role and depth; 0 where depths differ.

    `sqnr_db`, `gain` and `residual_sqnr_db` are means over units, layers or seeds, and `_low` and
    `_high` the ends of 95 % intervals over them. `alike` is the first recipe that quantizes alike.
    Bits per element count the scales of tiles, and those of rows at K, the mean over units; a scale
    of a whole matrix counts nothing. `bits_per_element` is the mean over both operands. `front`
    says `on` where no recipe has more SQNR at as many bits or fewer, `tied` where one has, but the
    difference is not resolved, else `behind`; `behind_db` is the difference to the best of as many
    bits or fewer, paired by unit. `excess_bits` is what the recipe spends beyond the least rate of
    arXiv 2410.13780 at its error, of operands from N(0, 1) alone.
    """

    family: str
    role: str
    k: int
    recipe: str
    alike: str
    bits_per_element: float
    bits_a: float
    bits_b: float
    units: int
    sqnr_db: float
    sqnr_low: float
    sqnr_high: float
    gain: float
    gain_low: float
    gain_high: float
    residual_sqnr_db: float
    residual_low: float
    residual_high: float
    front: str
    behind_db: float
    behind_low: float
    behind_high: float
    excess_bits: float | None
    excess_low: float | None
    excess_high: float | None


def spread(values: ArrayLike) -> tuple[float, float, float]:
    """The mean over units, and its 95 % interval by Student's t.

    Example:
      >>> [round(x, 2) for x in spread([1.0, 2.0, 3.0])]
      [2.0, -0.48, 4.48]
    """
    x = np.asarray(values, np.float64)
    if not np.isfinite(x).all():
        return float(x.mean()), math.nan, math.nan
    found = ratios.mean(x)
    half = _quantile(x.size - 1) * found.standard_error
    return found.value, found.value - half, found.value + half


@functools.cache
def _quantile(degrees: int) -> float:
    return student_t(0.975, degrees)


def recipe_rows(units: Sequence[UnitRow], recipes: Sequence[Recipe]) -> list[RecipeRow]:
    """A row for every recipe and group of products, those that quantize alike included.

    Raises:
      ValueError: a group lacks a recipe, or has other units of it than of others.
    """
    groups = grouped(units)
    return [row for key, found in groups.items() for row in _group(*key, found, recipes)]


def grouped(units: Sequence[UnitRow]) -> dict[tuple[str, Role, int], list[UnitRow]]:
    """The products by family, role and depth, which is 0 where depths differ."""
    groups: dict[tuple[str, Role, int], list[UnitRow]] = {}
    for row in units:
        k = 0 if row.family == CAPTURED else row.k
        groups.setdefault((row.family, row.role, k), []).append(row)  # type: ignore[arg-type] - roles
    return groups


def _group(
    family: str, role: Role, k: int, units: Sequence[UnitRow], recipes: Sequence[Recipe]
) -> list[RecipeRow]:
    ways = {name: names[0] for names in alike(recipes, role).values() for name in names}
    found: dict[str, dict[str, UnitRow]] = {}
    for row in units:
        found.setdefault(row.pair, {})[row.unit] = row
    names = sorted({row.unit for row in units})
    short = [x for x in set(ways.values()) if sorted(found.get(x, {})) != names]
    if short:
        raise ValueError(
            f"{family} {role} K = {k} lacks {', '.join(sorted(short)[:5])} on some of "
            f"{len(names)} units"
        )
    depths = [row.k for row in next(iter(found.values())).values()]
    stored = {
        x.name: [mean_bits(getattr(getattr(x, role), side), depths) for side in "ab"]
        for x in recipes
    }
    bits = {name: sum(both) / 2 for name, both in stored.items()}
    sqnr = {x: np.array([found[x][unit].sqnr_db for unit in names]) for x in set(ways.values())}
    places = front(sqnr, {x: bits[x] for x in sqnr})
    rows = []
    for recipe in recipes:
        first = ways[recipe.name]
        own = [found[first][unit] for unit in names]
        state, behind = places[first]
        excess = _excess(own, bits[first]) if family == GAUSSIAN else (None, None, None)
        measured = {
            **_columns("sqnr_db", "sqnr", [x.sqnr_db for x in own]),
            **_columns("gain", "gain", [x.gain for x in own]),
            **_columns("residual_sqnr_db", "residual", [x.residual_sqnr_db for x in own]),
        }
        rows.append(
            RecipeRow(
                family=family,
                role=role,
                k=k,
                recipe=f"recipe:{recipe.name}",
                alike=f"recipe:{first}",
                bits_per_element=bits[recipe.name],
                bits_a=stored[recipe.name][0],
                bits_b=stored[recipe.name][1],
                units=len(own),
                front=state,
                behind_db=behind[0],
                behind_low=behind[1],
                behind_high=behind[2],
                excess_bits=excess[0],
                excess_low=excess[1],
                excess_high=excess[2],
                **measured,
            )
        )
    return rows


def mean_bits(operand: Format | Block, depths: Sequence[int]) -> float:
    """Bits per element of an operand of products of these depths, row scales included.

    Example:
      >>> from lowprec.scaling.block import get_block
      >>> mean_bits(get_block("fp8_channel"), [128, 256]), mean_bits(get_block("mxfp4"), [128, 256])
      (8.1875, 4.25)
    """
    return sum(stored_bits(operand, k) for k in depths) / len(depths)


def _columns(name: str, stem: str, values: Sequence[float]) -> dict[str, float]:
    value, low, high = spread(values)
    return {name: value, f"{stem}_low": low, f"{stem}_high": high}


def _excess(
    rows: Sequence[UnitRow], bits: float
) -> tuple[float, float, float] | tuple[None, None, None]:
    """Bits beyond the bound, from the mean squared error and its interval; None without error."""
    # The bound falls as the rate grows, and so the excess grows with the error.
    error, low, high = spread([row.product_error for row in rows])
    if error == 0:
        return None, None, None
    return bits - least_rate(error), bits - least_rate(max(low, 0.0)), bits - least_rate(high)


def front(
    sqnr: Mapping[str, NDArray[np.float64]], bits: Mapping[str, float]
) -> dict[str, tuple[str, tuple[float, float, float]]]:
    """Where each recipe stands to the Pareto front of mean SQNR over bits.

    Args:
      sqnr: dB of every unit, by recipe.
      bits: per element.

    Returns:
      `on`, `tied` or `behind`, and by how many dB with a 95 % interval, to the best of as many bits
      or fewer.

    Example:
      >>> sqnr = {"a": np.array([20.0, 21.0, 22.0]), "b": np.array([18.0, 19.1, 20.0])}
      >>> front(sqnr, {"a": 4.25, "b": 4.5})["b"][0], front(sqnr, {"a": 4.5, "b": 4.25})["b"][0]
      ('behind', 'on')
    """
    means = {name: float(x.mean()) for name, x in sqnr.items()}
    out = {}
    for name, own in sqnr.items():
        rivals = [x for x in sqnr if bits[x] <= bits[name]]
        best = max(rivals, key=lambda x: (means[x], -bits[x], x == name))
        if best == name or (means[best], bits[best]) == (means[name], bits[name]):
            out[name] = "on", (0.0, 0.0, 0.0)
            continue
        if not math.isfinite(means[best]):
            # Nothing is lost with fewer bits.
            lost = 0.0 if means[name] == means[best] else math.inf
            out[name] = "behind", (lost, lost, lost)
            continue
        gap = spread(sqnr[best] - own)
        out[name] = "behind" if gap[1] > 0 else "tied", gap
    return out
