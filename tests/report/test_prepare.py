"""The section on preparations: its table there and back, titles from the data, the committed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lowprec.report import prepare_figure, stored, words, write_report
from lowprec.report.prepare import prepare_section, read_prepare, write_prepare
from lowprec.study.prepared import GainRow, PreparedRow
from tests.report import synthetic
from tests.report.test_page import Page

COMMITTED = Path(__file__).parents[2] / "reports" / "prepare"
RECORD = {
    "command": "python experiments/prepare.py",
    "date": "2026-01-02",
    "seconds": 3,
    "settings": {
        "fitted_on_part": "calibrate",
        "reported_on_part": "report",
        "calibration_documents": ["a.py", "b.py"],
        "report_documents": ["c.py"],
        "calibration_tokens": 4096,
        "report_tokens": 2048,
    },
}


def row(donor: str, gain: float, sample: str = "held_out", half: float = 0.5) -> GainRow:
    return GainRow(
        baseline="recipe:mxfp4", recipe=f"recipe:mxfp4 + {donor}", sample=sample, layers=15,
        seeds=1, baseline_db=16.0, recipe_db=16.0 + gain, gain_db=gain, low_db=gain - half,
        high_db=gain + half, worst_db=gain - 1, bits_per_element=4.25,
    )  # fmt: skip


ROWS = [row("gptq", 2.0), row("rotated", -1.0), row("awq", 0.1), row("gptq", 3.5, "in_sample")]


def frame() -> pl.DataFrame:
    return stored.frame(ROWS, GainRow)


@pytest.mark.slow
def test_there_and_back(tmp_path: Path) -> None:
    assert read_prepare(tmp_path) is None
    written = write_prepare(ROWS, RECORD, tmp_path)
    assert read_prepare(tmp_path) == written
    assert [path.stem for path in (tmp_path / "figures").iterdir()] == ["prepare_gains"]


@pytest.mark.slow
def test_the_page_has_the_section(tmp_path: Path) -> None:
    write_prepare(ROWS, RECORD, tmp_path / "prepare")
    text = (
        write_report(synthetic.results(), tmp_path)
        .with_name("gemm.html")
        .read_text(encoding="utf-8")
    )
    assert '<section id="prepare">' in text and 'href="prepare/gains.csv"' in text
    assert not Page(text).open


def test_titles_follow_the_data() -> None:
    assert prepare_figure.gains_title(frame()) == (
        "Of 3 pairs of a recipe and a preparation 1 keep more than rounding to nearest and 1 less; "
        "the most is +2.0 dB, gptq in recipe:mxfp4"
    )
    fitted = frame().filter(pl.col("sample") == "in_sample")
    assert prepare_figure.gains_title(fitted).endswith("fitted to alone")


def test_findings_keep_the_samples_apart() -> None:
    section = prepare_section(frame(), RECORD)
    texts = [x.text for x in section.findings]
    assert texts[1].startswith("1 pair")
    assert len(texts) == 3
    assert "seem to keep +1.50 to +1.50 dB more than they do" in texts[2]
    assert "4,096 tokens of 2 documents of the part `calibrate`" in section.note
    assert "2,048 tokens of 1 document of the part `report`" in section.note


def test_bits_that_preparations_take_are_found() -> None:
    dear = dataclasses.replace(row("lqer", 3.0), bits_per_element=7.5)
    texts = [x.text for x in prepare_section(stored.frame([*ROWS, dear], GainRow), {}).findings]
    assert "keep +3.0 to +3.0 dB and take 3.2 to 3.2 bits a weight more" in texts[2]


def test_no_rows_no_figure_and_no_finding() -> None:
    section = prepare_section(frame().clear(), {})
    assert section.figures == [] and section.findings == [] and section.tables[0].rows == []


def manifest() -> dict[str, Any]:
    return json.loads((COMMITTED / "manifest.json").read_text(encoding="utf-8"))


def test_committed_figures_are_of_other_documents_than_were_fitted_to() -> None:
    settings = manifest()["settings"]
    assert (settings["fitted_on_part"], settings["reported_on_part"]) == ("calibrate", "report")
    fitted, reported = (set(settings[f"{x}_documents"]) for x in ("calibration", "report"))
    assert fitted and reported and not fitted & reported


def test_committed_gains_are_those_of_the_committed_products() -> None:
    gains = stored.read_table(COMMITTED / "gains.csv", GainRow, "")
    products = stored.read_table(COMMITTED / "products.csv", PreparedRow, "")
    assert gains is not None and products is not None
    assert products["sqnr_db"].is_between(3, 60).all()
    layers = set(manifest()["settings"]["layers"])
    held_out = gains.filter(pl.col("sample") == "held_out")
    assert len(held_out) == 26 and set(products["layer"]) == layers
    by_layer = products.group_by("recipe", "layer").agg(pl.col("sqnr_db").mean())
    by_recipe = by_layer.group_by("recipe").agg(pl.col("sqnr_db").mean())
    means: dict[str, float] = dict(by_recipe.rows())
    for found in held_out.to_dicts():
        difference = means[found["recipe"]] - means[found["baseline"]]
        assert found["gain_db"] == pytest.approx(difference, abs=1e-6), words.DASH
        assert found["low_db"] <= found["gain_db"] <= found["high_db"]
        assert found["layers"] == len(layers) == 15
