"""The section on advice: its table there and back, titles from the data, the figure, the page."""

import dataclasses
import math
from pathlib import Path

import polars as pl
import pytest

from lowprec.report import advise_figure, stored, words, write_report
from lowprec.report.advise import advice_section, read_advice, write_advice
from lowprec.study.advise_rows import AdviceRow
from tests.report import synthetic
from tests.report.test_page import Page

COMMITTED = Path(__file__).parents[2] / "reports" / "advise"
ROW = AdviceRow(
    source="s", goal="within 4.5 bits", layer="fc", role="fprop", m=64, k=32, n=8,
    depth=32, tokens=64, groups=8, recipe="recipe:mxfp4", made=False, block_a="block:mxfp4",
    block_b="block:mxfp4", engine="engine:native", bits_per_element=4.25, select_db=17.0,
    sqnr_db=17.2, low_db=16.9, high_db=17.5, runner_up="recipe:other", runner_up_bits=4.25,
    gap_db=1.5, gap_low_db=1.2, gap_high_db=1.8, considered=30, combined=0, reason="because",
)  # fmt: skip


def rows() -> list[AdviceRow]:
    """Two products under two goals; a combination, and a product that nothing satisfies."""
    named = {"recipe": "recipe:a_b", "made": True, "sqnr_db": 19.0, "combined": 20}
    better = dataclasses.replace(ROW, role="wgrad", depth=512, **named, low_db=18.0, high_db=20.0)
    fine = {"goal": "at least 30 dB", "sqnr_db": 31.0, "low_db": 30.5, "high_db": 31.5}
    above = dataclasses.replace(ROW, **fine, bits_per_element=8.25)
    none = dataclasses.replace(
        ROW,
        goal="at least 30 dB",
        role="wgrad",
        depth=512,
        recipe="",
        sqnr_db=math.nan,
        runner_up="",
    )
    return [ROW, better, above, none]


def frame() -> pl.DataFrame:
    return stored.frame(rows(), AdviceRow)


def test_titles_and_findings_follow_the_data() -> None:
    assert advise_figure.choices_title(frame()) == (
        "Within 4.5 bits: 2 of 2 products keep 17.2 to 19.0 dB in 4.25 bits; "
        "at least 30 dB: 1 of 2 products keep 31.0 dB in 8.25 bits"
    )
    section = advice_section(frame(), {})
    assert section.note.endswith(
        " In wgrad products contract 32 tokens at a time, and bits per element spread the scale of "
        "a row over 512."
    )
    forward = advice_section(frame().filter(pl.col("role") == "fprop"), {})
    assert "wgrad" not in forward.note
    texts = [finding.text for finding in section.findings]
    assert "in 1 of 3 choices." in texts[1] and "recipe:a_b 1" in section.findings[1].evidence
    assert f"moves by {words.signed(0.2, 2)} to {words.signed(14.0, 2)} dB" in texts[2]
    assert section.findings[2].evidence.startswith("2 of 3 figures")
    assert [row[3] for row in section.tables[0].rows] == [
        "recipe:mxfp4",
        "recipe:a_b *",
        "recipe:mxfp4",
        "none",
    ]


def test_no_rows_no_figure_and_no_finding() -> None:
    section = advice_section(frame().clear(), {})
    assert section.figures == [] and section.findings == [] and section.tables == []


@pytest.mark.slow
def test_there_and_back_and_on_the_page(tmp_path: Path) -> None:
    out = tmp_path / "advise"
    assert read_advice(out) is None
    record = {"command": "python experiments/advise_elsewhere.py", "date": "2026-01-02"}
    written = write_advice(rows(), record, out)
    assert read_advice(out) == written and written.command == record["command"]
    assert [path.name for path in (out / "figures").iterdir()] == ["advice_choices.svg"]
    text = (
        write_report(synthetic.results(), tmp_path)
        .with_name("gemm.html")
        .read_text(encoding="utf-8")
    )
    assert '<section id="advise">' in text and 'href="advise/advice.csv"' in text
    assert not Page(text).open
    frame().drop("goal").write_csv(out / "advice.csv")
    with pytest.raises(ValueError, match=r"lacks the columns goal; experiments/advise_elsewhere"):
        read_advice(out)


def test_what_is_committed_keeps_to_its_goals() -> None:
    found = stored.read_table(COMMITTED / "advice.csv", AdviceRow, "the experiment")
    assert found is not None and set(found["role"]) == {"fprop", "dgrad", "wgrad"}
    within = found.filter(pl.col("goal") == "within 4.5 bits")
    assert len(within) > 8 and (within["bits_per_element"] <= 4.5).all()
    assert within["sqnr_db"].is_between(8, 40).all()
    assert (within["low_db"] < within["high_db"]).all()
    above = found.filter(pl.col("goal") == "at least 30 dB")
    assert len(above) == len(within) and (above["select_db"] >= 30).all()
    assert (above["considered"] > 16).all()
