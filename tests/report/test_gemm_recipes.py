"""The section on all recipes: its table there and back, fronts, titles, figures."""

import dataclasses
from pathlib import Path

import polars as pl
import pytest

from lowprec.report import gemm_recipes_figure, stored
from lowprec.report.gemm_recipes import (
    findings,
    read_recipes,
    recipes_section,
    write_recipes,
)
from lowprec.study.gemm_recipes_budget import BudgetRow
from lowprec.study.gemm_recipes_front import RecipeRow

COMMITTED = Path(__file__).parents[2] / "reports" / "gemm_recipes"
BITS = {
    "mxfp4": 4.25,
    "mxfp4_exact": 4.25,
    "nvfp4": 4.5,
    "mxfp6": 6.25,
    "mxfp8": 8.25,
    "bf16": 16.0,
}
SQNR = {"mxfp4": 16.0, "mxfp4_exact": 16.0, "nvfp4": 19.0, "mxfp6": 28.0, "mxfp8": 27.0}


def rows() -> list[RecipeRow]:
    """Six recipes on four kinds of operands; mxfp8 is behind mxfp6 but on captured ones."""
    kinds = (
        ("captured", "fprop", 0),
        ("gaussian", "fprop", 64),
        ("card", "fprop", 64),
        ("card", "fprop", 128),
    )
    out = []
    for family, role, k in kinds:
        for name, bits in BITS.items():
            value = SQNR.get(name, float("inf")) + (0.5 if k == 128 else 0.0)
            ahead = name == "mxfp8" and family == "captured"
            state = "behind" if name == "mxfp8" and not ahead else "on"
            gaussian = family == "gaussian"
            out.append(
                RecipeRow(
                    family=family, role=role, k=k, recipe=f"recipe:{name}",
                    alike=f"recipe:{name.removesuffix('_exact')}", bits_per_element=bits,
                    bits_a=bits, bits_b=bits, units=3, sqnr_db=value + 2 * ahead,
                    sqnr_low=value - 0.1, sqnr_high=value + 0.1, gain=-0.01, gain_low=-0.02,
                    gain_high=0.0, residual_sqnr_db=value, residual_low=value, residual_high=value,
                    front=state, behind_db=0.0, behind_low=0.0, behind_high=0.0,
                    excess_bits=bits - 3 if gaussian else None, excess_low=None, excess_high=None,
                )
            )  # fmt: skip
    return out


def leads(low: float = 0.5, unresolved: int = 0) -> list[BudgetRow]:
    """The best of those within 4.5 and 8.5 bits."""
    keys = dict.fromkeys((row.family, row.role, row.k) for row in rows())
    return [
        BudgetRow(
            family=family, role=role, k=k, budget=budget, alike=best, runner_up=other, lead_db=1.0,
            lead_low=low, lead_high=1.5, unresolved=unresolved,
        )
        for family, role, k in keys
        for budget, best, other in (
            (4.5, "recipe:nvfp4", "recipe:mxfp4"),
            (8.5, "recipe:mxfp8" if family == "captured" else "recipe:mxfp6", "recipe:nvfp4"),
        )
    ]  # fmt: skip


def test_recipes_that_quantize_alike_are_one_point() -> None:
    found = gemm_recipes_figure.distinct(stored.frame(rows(), RecipeRow))
    own = found.filter(pl.col("family") == "captured")
    assert own["label"].to_list() == ["mxfp4 (+1)", "nvfp4", "mxfp6", "mxfp8"]


def test_titles_and_the_best_follow_the_data() -> None:
    frame = stored.frame(rows(), RecipeRow)
    assert gemm_recipes_figure.fronts_title(frame) == (
        "Of the ways to quantize, 4 of 4 on captured fprop and 3 of 4 on Gaussian operands keep "
        "most for their bits; 3 do on both"
    )
    best = gemm_recipes_figure.best(frame, stored.frame(leads(), BudgetRow))
    best = best.filter(pl.col("family") != "card")
    assert best["label"].to_list() == ["nvfp4", "mxfp8", "nvfp4", "mxfp6"]
    assert best["rival"].to_list() == ["mxfp4", "nvfp4"] * 2


@pytest.mark.parametrize(
    ("low", "unresolved", "said", "count"),
    [
        (0.5, 0, "dB (18.9 to 19.1), 1.00 dB (0.50 to 1.50) ahead of mxfp4;", 4),
        (0.5, 2, "1.00 dB (0.50 to 1.50) ahead of mxfp4, but not resolved from 2 others;", 0),
        (-0.5, 1, "dB (18.9 to 19.1), not resolved from mxfp4;", 0),
        (0.0, 3, "dB (18.9 to 19.1), not resolved from mxfp4 and 2 more;", 0),
    ],
)
def test_a_lead_is_said_to_be_resolved_or_not(
    low: float, unresolved: int, said: str, count: int
) -> None:
    frame = stored.frame(rows(), RecipeRow)
    best = gemm_recipes_figure.best(frame, stored.frame(leads(low, unresolved), BudgetRow))
    found = findings(frame, best)[1]
    assert found.text == (
        "Within 4.5 bits the most SQNR is kept, of 4 kinds of operands, by nvfp4 on 4; the lead "
        f"over all others is resolved on {count}."
    )
    assert said in found.evidence
    assert found.evidence.startswith("chosen and reported on the same units, paired by unit: ")


@pytest.mark.slow
def test_there_and_back(tmp_path: Path) -> None:
    assert read_recipes(tmp_path) is None
    record = {"seconds": 3, "settings": {"left_out": {"te_delayed": "delayed"}}}
    written = write_recipes(rows(), leads(-0.5, 1), [], record, tmp_path)
    assert read_recipes(tmp_path) == written and len(written.figures) == 2
    assert "1 recipe with prepared weights or delayed scales" in written.note
    assert "not resolved" in written.figures[1].sentence
    texts = [finding.text for finding in written.findings]
    assert texts[0] == (
        "On the front of SQNR over bits on all 4 kinds of fprop operands: mxfp4, mxfp6, nvfp4 and "
        "mxfp4_exact."
    )
    assert "1.25 of its 4.25 bits" in texts[2]
    assert "changes by 0.50 dB in the median of recipes, at most +0.50" in texts[3]
    assert len(written.tables[0].rows) == 4 + 3 + 3 + 3


def test_no_rows_no_figure_and_no_finding() -> None:
    section = recipes_section(stored.frame([], RecipeRow), stored.frame([], BudgetRow), {})
    assert section.figures == [] and section.findings == [] and section.tables[0].rows == []


def test_committed_rows_are_whole() -> None:
    found = stored.read_table(COMMITTED / "rows.csv", RecipeRow, "x")
    assert found is not None
    keys = ["family", "role", "k"]
    assert found.select(*keys, "recipe").is_unique().all()
    assert found.group_by(keys).len()["len"].n_unique() == 1 and found["recipe"].n_unique() > 100
    families = set(found["family"])
    assert {"captured", "card", "gaussian", "laplace", "student_t"} <= families
    assert min(found.filter(pl.col("front") == "on").group_by(keys).len()["len"]) >= 4
    # No product of Gaussian matrices has less error than the bound at its bits.
    gaussian = found.filter(pl.col("family") == "gaussian")
    assert min(gaussian["excess_bits"].drop_nulls()) > 0
    assert dataclasses.fields(RecipeRow)[0].name == found.columns[0]
