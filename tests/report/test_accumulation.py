"""The section on accumulation: tables there and back, findings from the data, figures, the page."""

from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from lowprec.report import stored, write_report
from lowprec.report.accumulation import (
    ROWS,
    AccumulationResults,
    read_accumulation,
    write_accumulation,
)
from lowprec.report.accumulation_section import FIGURES, accumulation_section, findings
from lowprec.report.figures import accumulation, accumulation_swamping
from tests.report import synthetic
from tests.report.test_page import Page

COMMITTED = Path(__file__).parents[2] / "reports" / "accumulation"


@pytest.fixture(scope="module")
def results() -> AccumulationResults:
    found = read_accumulation(COMMITTED)
    assert found is not None
    return found


def test_committed_results_are_whole_and_within_their_bounds(results: AccumulationResults) -> None:
    errors = results.frames["errors"]
    assert all(len(results.frames[name]) for name in ROWS)
    assert {"command", "date", "seconds", "catalogue", "versions"} <= set(results.manifest)
    keys = ["distribution", "fused_length", "fraction_bits", "promote_every", "k"]
    assert errors.select(keys).is_unique().all()
    # 4 distributions, 7 depths: 18 widths by 5 intervals, and 2 further lengths by 6 by 2.
    assert len(errors) == 4 * 7 * (18 * 5 + 2 * 6 * 2)
    assert (errors["worst_share"] <= 1).all() and (errors["relative_error"] >= 0).all()
    same_signs = errors.filter(pl.col("distribution") == "U(0,1)", pl.col("fraction_bits") <= 16)
    assert (same_signs["gain_high"] < 0).all()
    swamping = results.frames["swamping"]
    assert (swamping["worst_share"] <= 1).all()
    # The mean square holds the square of the mean.
    assert (swamping["relative_error"] >= (1 - swamping["ratio"]).abs()).all()
    assert (swamping["probabilistic_bound"] < swamping["deterministic_bound"]).all()
    failing = swamping.filter(pl.col("within_probabilistic") < pl.col("coverage"))
    assert set(failing["engine"]) == {accumulation_swamping.PLAIN}
    drawn = {path.stem for path in (COMMITTED / "figures").glob("*.svg")}
    assert drawn == set(FIGURES)


def test_tables_there_and_back(results: AccumulationResults, tmp_path: Path) -> None:
    write_accumulation(results, tmp_path)
    again = read_accumulation(tmp_path)
    assert again is not None and again.manifest == results.manifest
    for name, frame in results.frames.items():
        assert_frame_equal(frame, again.frames[name])
    assert read_accumulation(tmp_path / "nowhere") is None
    results.frames["front"].drop("cost").write_csv(tmp_path / "front.csv")
    with pytest.raises(ValueError, match="lacks the columns cost; experiments"):
        read_accumulation(tmp_path)


def test_no_rows_no_figure_and_no_finding() -> None:
    empty = AccumulationResults(
        frames={name: stored.frame([], row) for name, row in ROWS.items()}, manifest={}
    )
    section = accumulation_section(empty)
    assert section.figures == [] and section.findings == []


def test_titles_follow_the_data(results: AccumulationResults) -> None:
    errors = results.frames["errors"]
    (row,) = errors.filter(
        pl.col("distribution") == "U(0,1)", pl.col("fused_length") == 32, pl.col("k") == 4096,
        pl.col("fraction_bits") == 13, pl.col("promote_every") == 0,
    ).to_dicts()  # fmt: skip
    assert f"{row['relative_error'] * 100:.2f} %" in accumulation.depth_title(errors)
    less = errors.with_columns(pl.col("relative_error") / 2)
    assert accumulation.depth_title(less) != accumulation.depth_title(errors)
    assert accumulation.bits_title(less) == accumulation.bits_title(errors)
    sums = results.frames["swamping"]
    lost = 1 - sums.filter(pl.col("engine") == accumulation_swamping.PLAIN)["ratio"][-1]
    assert f"lose {lost * 100:.1f} %" in accumulation_swamping.title(sums)
    halved = sums.with_columns((pl.col("ratio") + 1) / 2)
    assert f"lose {lost * 50:.1f} %" in accumulation_swamping.title(halved)
    worse = errors.with_columns(worst_share=pl.lit(1.5))
    changed = AccumulationResults(
        frames={**results.frames, "errors": worse}, manifest=results.manifest
    )
    assert any(x.text.startswith("Errors exceed their") for x in findings(changed))


@pytest.mark.slow
def test_page_has_the_section_where_results_lie_beside_it(
    results: AccumulationResults, tmp_path: Path
) -> None:
    none = pl.DataFrame()
    small = synthetic.results(products=none, model=none, histogram=none, cards=none)
    assert 'id="accumulation"' not in write_report(small, tmp_path).read_text(encoding="utf-8")
    write_accumulation(results, tmp_path / "accumulation")
    text = write_report(small, tmp_path).with_name("accumulation.html").read_text(encoding="utf-8")
    page = Page(text)
    # K, L, numbers, norm, seeds and both bounds stand in every figure, wide and narrow.
    for said in ("L = ", "64 seeds", "deterministic bound", "probabilistic bound", "error"):
        drawn = text.replace("\u00a0", " ").split("<svg ")[1:]
        assert sum(said in part for part in drawn) == 2 * len(FIGURES), said
    assert not page.open and len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 2 * len(FIGURES) and "accumulation" in page.ids
    assert "python experiments/accumulation.py" in " ".join(page.words)
    for link in (link for link in page.links if link.startswith("accumulation/")):
        assert link.endswith(".svg") or (tmp_path / link).is_file(), link
