"""The recipe of most SQNR within a budget of bits, and how far ahead of the others it is."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lowprec.study.advise_candidates import MEASURING_STICKS
from lowprec.study.gemm_recipes import UnitRow
from lowprec.study.gemm_recipes_front import RecipeRow, grouped, spread

BUDGETS = (4.5, 6.5, 8.5)
"""Bits per element."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BudgetRow:
    """What keeps the most SQNR within a budget, on the products of one family, role and depth.

    `alike` names the way to quantize as in `RecipeRow`, and `runner_up` that of the next most
    SQNR, None where there is no other. `lead_db` is the mean difference of the two, paired by
    unit, with its 95 % interval. `unresolved` counts the ways within the budget from which the
    interval of that difference contains 0, the runner-up among them. The winner is chosen on the
    same units, and the intervals do not allow for the choice.
    """

    family: str
    role: str
    k: int
    budget: float
    alike: str
    runner_up: str | None
    lead_db: float | None
    lead_low: float | None
    lead_high: float | None
    unresolved: int


def budget_rows(units: Sequence[UnitRow], rows: Sequence[RecipeRow]) -> list[BudgetRow]:
    """A row for every group of products and budget that some way to quantize is within.

    Measuring sticks, which nothing runs, are left out: exact sums, scales found by trying all. So
    is what loses nothing.

    Args:
      units: the products.
      rows: of all recipes on them, as `recipe_rows` gives.
    """
    out = []
    for (family, role, k), found in grouped(units).items():
        bits = {
            row.alike: row.bits_per_element
            for row in rows
            if (row.family, row.role, row.k) == (family, role, k)
            and np.isfinite(row.sqnr_db)
            and not row.recipe.endswith(MEASURING_STICKS)
        }
        by_way: dict[str, dict[str, float]] = {}
        for row in found:
            by_way.setdefault(f"recipe:{row.pair}", {})[row.unit] = row.sqnr_db
        names = sorted({row.unit for row in found})
        sqnr = {way: np.array([by_way[way][unit] for unit in names]) for way in bits}
        for budget in BUDGETS:
            within = {way: x for way, x in sqnr.items() if bits[way] <= budget}
            if within:
                fields = _ahead(within, bits)
                out.append(BudgetRow(family=family, role=role, k=k, budget=budget, **fields))
    return out


def _ahead(sqnr: Mapping[str, NDArray[np.float64]], bits: Mapping[str, float]) -> dict:
    """The fields of the best of some ways, the one of fewer bits where two are equal."""
    best, *others = sorted(sqnr, key=lambda way: (-sqnr[way].mean(), bits[way], way))
    leads = [spread(sqnr[best] - sqnr[way]) for way in others]
    lead, low, high = leads[0] if leads else (None, None, None)
    return {
        "alike": best,
        "runner_up": others[0] if others else None,
        "lead_db": lead,
        "lead_low": low,
        "lead_high": high,
        "unresolved": sum(low <= 0 for _, low, _ in leads),
    }
