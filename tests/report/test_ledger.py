"""The section on the ledger: its table there and back, titles from the data, figures, the page."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lowprec.report import ledger_figure, stored, words, write_report
from lowprec.report.ledger import FIGURES, ledger_section, read_ledger, write_ledger
from lowprec.study.ledger_rows import LedgerRow
from lowprec.study.ledger_terms import TERMS
from tests.report import synthetic
from tests.report.test_page import Page

COMMITTED = Path(__file__).parents[2] / "reports" / "ledger"


def rows() -> list[LedgerRow]:
    """Two recipes, two roles and two layers; the grid of b is what is left to 1."""
    out = []
    for i, (recipe, role, layer) in enumerate(
        (recipe, role, layer)
        for recipe in ("fine", "coarse")
        for role in ("fprop", "wgrad")
        for layer in ("one", "two")
    ):
        found = {"a_grid": 0.3, "a_gain": 0.01 * i, "b_clipping": -0.02, "alignment": 1e-6}
        found |= {"b_grid": 1 - sum(found.values()), "total": 1.0}
        for term in (*TERMS, "total"):
            part = found.get(term, 0.0)
            out.append(
                LedgerRow(
                    source="captured",
                    layer=layer,
                    role=role,
                    recipe=f"recipe:{recipe}",
                    engine="engine:some",
                    m=8,
                    k=32,
                    n=4,
                    outputs=32,
                    term=term,
                    part=part,
                    share=part * part,
                    gain=-0.1 * part,
                    decibels=-20 + 20 * np.log10(abs(part)) if part else -np.inf,
                    energy=part * part,
                )
            )
    return out


def frame() -> pl.DataFrame:
    return stored.frame(rows(), LedgerRow)


@pytest.mark.slow
def test_there_and_back(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) is None
    record = {"command": "python experiments/ledger.py", "date": "2026-01-02", "seconds": 3}
    written = write_ledger(rows(), record, tmp_path)
    found = read_ledger(tmp_path)
    assert found is not None and found == written
    assert (found.command, found.seconds) == (record["command"], 3)
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == set(FIGURES)
    frame().drop("gain").write_csv(tmp_path / "terms.csv")
    with pytest.raises(ValueError, match="lacks the columns gain; experiments"):
        read_ledger(tmp_path)


def test_titles_follow_the_data() -> None:
    # The last two products have a gain of 0.06 and 0.07: 6.5 % of the error is a's gain.
    assert ledger_figure.parts_title(frame()) == (
        "In the mean over layers rounding to the grid is 95 % to 101 % of the error; the largest "
        "other part is gain in recipe:coarse, wgrad, 6 %"
    )
    assert f"alignment in recipe:fine, fprop: {words.MINUS}140 dB in the median over" in (
        ledger_figure.energies_title(frame())
    )
    assert "layers, 120 dB below the error" in ledger_figure.energies_title(frame())
    silent = frame().filter(pl.col("term") != "alignment")
    assert ledger_figure.energies_title(silent).endswith("add no error")


def test_groups_hold_every_term_once_and_add_up() -> None:
    drawn = [term for terms in ledger_figure.GROUPS.values() for term in terms]
    assert sorted(drawn) == sorted(TERMS)
    sums = ledger_figure.grouped(frame()).group_by("recipe", "role").agg(pl.col("part").sum())
    assert len(sums) == 4 and sums["part"].to_list() == pytest.approx([1.0] * 4)


def test_no_rows_no_figure_and_no_finding() -> None:
    section = ledger_section(frame().clear(), {})
    assert section.figures == [] and section.findings == [] and section.tables[0].rows == []


@pytest.mark.slow
def test_the_page_has_the_section(tmp_path: Path) -> None:
    write_ledger(rows(), {"command": "python experiments/ledger.py"}, tmp_path / "ledger")
    page = write_report(synthetic.results(), tmp_path).with_name("gemm.html")
    text = page.read_text(encoding="utf-8")
    assert '<section id="ledger">' in text and 'href="ledger/terms.csv"' in text
    assert not Page(text).open


def test_committed_terms_add_up_in_every_product() -> None:
    found = pl.read_csv(COMMITTED / "terms.csv", schema_overrides=stored.schema(LedgerRow))
    keys = ["recipe", "role", "layer"]
    assert found.select(*keys, "term").is_unique().all()
    parts = found.filter(pl.col("term") != "total").group_by(keys).agg(pl.col("part").sum())
    np.testing.assert_allclose(parts["part"].to_numpy(), 1, rtol=1e-9)
    roles, recipes = set(found["role"]), set(found["recipe"])
    assert roles == {"fprop", "dgrad", "wgrad"} and "recipe:deepseek_v3" in recipes
    total = found.filter(pl.col("term") == "total")
    assert len(total) == len(parts) and total["decibels"].is_between(-60, -5).all()
    hopper = found.filter(pl.col("engine").str.contains("hopper"), pl.col("term") == "alignment")
    assert (hopper["energy"] > 0).all()
