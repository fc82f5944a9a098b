"""The section on communication: tables there and back, titles from the data, what is committed."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from lowprec.report import communication_figure as drawing
from lowprec.report import stored, words, write_report
from lowprec.report.communication import (
    TABLES,
    Results,
    communication_section,
    read_communication,
    write_communication,
)
from lowprec.study.communication import SentRow, StageRow
from lowprec.study.communication_claims import ClaimRow
from lowprec.study.communication_loss import LossRow
from tests.report import synthetic
from tests.report.test_page import Page

COMMITTED = Path(__file__).parents[2] / "reports" / "communication"
TARGETS = {"format:bfloat16": (16.0, 55.0), "block:logfmt8_1x128": (8.25, 38.0)}


def results() -> Results:
    stages = [
        StageRow(
            stage=stage, target=target, channels=7168, bits_per_element=bits,
            bytes_per_token=7168 * bits / 8, tensors=4, units=14, sqnr_db=sqnr,
            low_db=sqnr - 0.1, high_db=sqnr + 0.2, least_db=sqnr - 1, most_db=sqnr + 1,
            gain=1e-4, flushed=0.0, relative_rms=0.01,
        )
        for target, (bits, sqnr) in TARGETS.items()
        for stage in (*drawing.PANELS, "normal")
    ]  # fmt: skip
    rows = [
        SentRow(
            stage=row.stage, tensor="layers.0", target=row.target, units=14, numbers=1792,
            sqnr_db=row.sqnr_db, gain=1e-4, gain_standard_error=1e-5, residual_sqnr_db=row.sqnr_db,
            flushed=0.0, relative_rms=0.01, largest_relative=0.02,
        )
        for row in stages
    ]  # fmt: skip
    loss = [
        LossRow(
            target="block:logfmt8_1x128", baseline="format:bfloat16", documents=14, bytes=7154,
            bits_per_byte=1.68, increase=0.002, low=0.001, high=0.003, relative=0.0012,
            relative_low=0.0006, relative_high=0.0018,
        )
    ]  # fmt: skip
    claims = [
        claim("error", "combine", 6.0, "reproduced"),
        claim("error", "normal", -2.0, "not reproduced"),
        claim("loss", "combine", 0.001, "not resolved"),
        claim("gain", "combine", 1e-6, "reproduced"),
    ]
    record = {
        "command": "python experiments/communication.py",
        "date": "2026-01-02",
        "seconds": 3,
        "settings": {"near": 0.0025},
    }
    return Results.from_rows(record, rows=rows, stages=stages, loss=loss, claims=claims)


def claim(measure: Any, where: str, value: float, verdict: Any) -> ClaimRow:
    return ClaimRow(
        claim=f"it is so by {measure}", target="block:logfmt8_1x128", baseline="block:e4m3",
        measure=measure, where=where, units=14, value=value, low=value - 0.1, high=value + 0.1,
        baseline_value=8e-5, verdict=verdict,
    )  # fmt: skip


@pytest.mark.slow
def test_there_and_back(tmp_path: Path) -> None:
    assert read_communication(tmp_path) is None
    written = write_communication(results(), tmp_path)
    found = read_communication(tmp_path)
    assert found == written and found is not None
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {
        "communication_error",
        "communication_leads",
        "communication_loss",
    }
    (tmp_path / "loss.csv").unlink()
    with pytest.raises(ValueError, match=r"lacks loss.csv; experiments/communication.py writes"):
        read_communication(tmp_path)


@pytest.mark.slow
def test_the_page_has_the_section(tmp_path: Path) -> None:
    write_communication(results(), tmp_path / "communication")
    text = (
        write_report(synthetic.results(), tmp_path)
        .with_name("gemm.html")
        .read_text(encoding="utf-8")
    )
    assert '<section id="communication">' in text and 'href="communication/claims.csv"' in text
    assert not Page(text).open


def test_titles_follow_the_data() -> None:
    frames = results().frames
    assert drawing.error_title(frames["stages"]) == (
        "Of what experts send back logfmt8_1x128 keeps 38.0 dB in 8.25 bits, the most of its size"
    )
    wide = frames["stages"].with_columns(bits_per_element=pl.col("bits_per_element") - 4)
    assert "bfloat16 keeps 55.0 dB in 12.00 bits" in drawing.error_title(wide)
    assert drawing.leads_title(frames["claims"]) == (
        f"logfmt8_1x128 leads by {words.MINUS}2.0 to +6.0 dB over e4m3"
    )
    assert drawing.loss_title(frames["loss"]) == (
        "Of 1 formats in the residual branches 1 are told apart from bfloat16 by their loss; the "
        "most, logfmt8_1x128, costs 0.12 %"
    )


def test_every_claim_has_a_verdict_in_the_findings() -> None:
    texts = [x.text for x in communication_section(results()).findings]
    assert any(
        x.endswith("sent: reproduced in 1 of 2 and not reproduced in 1 of 2.") for x in texts
    )
    assert any(x.endswith("not trained so: not resolved.") for x in texts)
    assert any(x.endswith("by gain: reproduced.") for x in texts)


def test_no_rows_no_figure_and_no_finding() -> None:
    nothing = Results.from_rows({}, **dict.fromkeys(TABLES, ()))
    section = communication_section(nothing)
    assert section.figures == [] and section.findings == []


def committed(name: str) -> pl.DataFrame:
    found = stored.read_table(COMMITTED / f"{name}.csv", TABLES[name], "")
    assert found is not None and len(found)
    return found


def test_committed_leads_are_differences_of_committed_ratios() -> None:
    stages = {(row["stage"], row["target"]): row for row in committed("stages").to_dicts()}
    claims = committed("claims").filter(pl.col("measure") == "error")
    assert set(claims["where"]) >= {"dispatch", "combine", "normal"}
    for row in claims.to_dicts():
        ours, theirs = (stages[row["where"], row[name]] for name in ("target", "baseline"))
        assert row["value"] == pytest.approx(ours["sqnr_db"] - theirs["sqnr_db"], abs=1e-6)
        assert ours["tensors"] == theirs["tensors"]


def test_committed_rows_are_of_every_format_and_not_degenerate() -> None:
    rows = committed("rows")
    assert rows.select("tensor", "target").is_unique().all()
    counts = rows.group_by("target").len()["len"].to_list()
    assert len(set(counts)) == 1 and len(counts) >= 10
    forward = rows.filter(pl.col("stage").is_in(["dispatch", "combine"]))
    assert forward["sqnr_db"].is_between(20, 60).all()
    assert forward.filter(pl.col("target") == "format:bfloat16")["sqnr_db"].min() > 50  # type: ignore[operator] - a number
    loss = committed("loss")
    assert (loss["low"] <= loss["increase"]).all() and (loss["bytes"] > 7000).all()
    assert np.all(loss["bits_per_byte"].is_between(1, 3).to_numpy())


def test_a_claim_row_holds_what_its_dataclass_says() -> None:
    assert {x.name for x in dataclasses.fields(ClaimRow)} == set(stored.schema(ClaimRow))
