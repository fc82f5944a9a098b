"""The section on the anatomy of recipes: its table there and back, titles, figures."""

from pathlib import Path

import polars as pl
import pytest

from lowprec.report import anatomy_figure, stored, words
from lowprec.report.anatomy import anatomy_section, read_anatomy, write_anatomy
from lowprec.study.anatomy import CAPTURED, SYNTHETIC, TOTAL, AnatomyRow
from lowprec.study.ledger_terms import TERMS

COMMITTED = Path(__file__).parents[2] / "reports" / "anatomy"
CHANGES = {
    ("none", "as published"): 0.0,
    ("tile", "16"): -2.0,
    ("tile", "64"): 3.0,
    ("engine", "fp32"): 0.1,
}


def rows() -> list[AnatomyRow]:
    """A smaller tile takes from the grid of a, a larger one adds to clipping."""
    out = []
    for (ingredient, value), change in CHANGES.items():
        term = "a_grid" if change < 0 else "b_clipping"
        for source, role in ((CAPTURED, "fprop"), (CAPTURED, "wgrad"), (SYNTHETIC, "fprop")):
            for name in (*TERMS, TOTAL):
                moved = 0.1 * change if name in (term, TOTAL) else 0.0
                out.append(
                    AnatomyRow(
                        source=source, role=role, base="mxfp4", ingredient=ingredient, value=value,
                        bits_per_element=4.25, term=name, units=3, contribution=0.5 + moved,
                        moved=moved, moved_low=moved - 0.01, moved_high=moved + 0.01,
                        decibels=-20.0, change_db=change if name == TOTAL else None,
                        change_low=change - 0.5, change_high=change + 0.5,
                    )
                )  # fmt: skip
    return out


def test_titles_name_the_changes_and_the_terms_that_move() -> None:
    moves = anatomy_figure.moves(stored.frame(rows(), AnatomyRow))
    assert anatomy_figure.changes_title(moves) == (
        f"Of 3 changes to mxfp4, tile 16 lowers the error most, {words.MINUS}2.0 dB (grid of a) "
        "and tile 64 raises the error most, +3.0 dB (clipping); another engine moves it by 0.10 dB "
        "at most"
    )
    wide = moves.with_columns(change_low=pl.lit(-9.0), change_high=pl.lit(9.0))
    assert "none lowers it beyond its interval and none raises it" in (
        anatomy_figure.changes_title(wide)
    )
    assert len(moves) == 9 and set(moves["group"]) == {"grid of a", "clipping"}


@pytest.mark.slow
def test_there_and_back(tmp_path: Path) -> None:
    assert read_anatomy(tmp_path) is None
    written = write_anatomy(rows(), {"seconds": 3}, tmp_path)
    assert read_anatomy(tmp_path) == written and written.seconds == 3
    assert [x.name for x in written.figures] == ["anatomy_mxfp4"]
    assert len(written.tables[0].rows) == 3 and len(written.findings) == 1
    assert "1 of 3 changes are not resolved" in written.findings[0].evidence


def test_the_note_says_how_many_intervals_chance_would_resolve() -> None:
    """Three changes on three products; those of the engine hold zero."""
    note = anatomy_section(stored.frame(rows(), AnatomyRow), {}).note
    assert "of 9, 6 exclude zero, where about 0 would by chance" in note
    assert "exclude zero" not in anatomy_section(stored.frame([], AnatomyRow), {}).note


def test_committed_intervals_beside_chance() -> None:
    found = read_anatomy(COMMITTED)
    assert found is not None and "of 224, 87 exclude zero, where about 11 would" in found.note


def test_no_rows_no_figure_and_no_finding() -> None:
    section = anatomy_section(stored.frame([], AnatomyRow), {})
    assert section.figures == [] and section.findings == [] and section.tables[0].rows == []


def test_committed_rows_add_up() -> None:
    found = stored.read_table(COMMITTED / "rows.csv", AnatomyRow, "x")
    assert found is not None
    keys = ["base", "ingredient", "value", "source", "role"]
    assert found.select(*keys, "term").is_unique().all()
    terms = found.filter(pl.col("term") != TOTAL).group_by(keys).agg(pl.col("contribution").sum())
    total = found.filter(pl.col("term") == TOTAL)
    both = total.join(terms, on=keys, suffix="_sum")
    assert len(both) == len(total) > 150
    assert ((both["contribution"] / both["contribution_sum"] - 1).abs() < 1e-6).all()
    published = total.filter(pl.col("ingredient") == "none")
    assert (published["contribution"] == 1).all() and set(published["base"]) == {
        "mxfp4", "nvfp4", "deepseek_v3",
    }  # fmt: skip
