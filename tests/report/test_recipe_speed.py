"""The section on the speed of recipes: its verdicts, and tables that are absent or broken."""

import dataclasses
from pathlib import Path

import pytest

from lowprec.report import stored
from lowprec.report.recipe_speed import keep_manifest, read_recipe_speed
from lowprec.throughput import GemmTime, TrainingTime

GEMM = GemmTime(
    size=2048, recipe="mxfp8", engine="native", way="plain", seconds=0.25, times_float32=1.75,
    low=1.5, high=2.25, wanted=2.0, met="met", compile_seconds=1.0, temporary_bytes=3_000_000,
    device="cpu",
)  # fmt: skip
STEP = TrainingTime(
    what="step", recipe="nvfp4", seconds=0.5, times_bf16=4.5, low=4.0, high=5.0, wanted=4.0,
    wanted_compile=60.0, met="missed", compile_seconds=70.0, temporary_bytes=0, device="cpu",
)  # fmt: skip


def test_nothing_measured_is_no_section(tmp_path: Path) -> None:
    assert read_recipe_speed(tmp_path) is None
    stored.write_table([], GemmTime, tmp_path / "gemm.csv")
    assert read_recipe_speed(tmp_path) is None


def test_goals_are_counted_and_the_missed_named(tmp_path: Path) -> None:
    slow = dataclasses.replace(GEMM, way="options", times_float32=2.5, met="missed")
    stored.write_table([GEMM, slow], GemmTime, tmp_path / "gemm.csv")
    stored.write_table([STEP], TrainingTime, tmp_path / "training_steps.csv")
    keep_manifest("gemm", {"date": "2026-01-01", "seconds": 60}, tmp_path)
    keep_manifest("training_steps", {"date": "2026-01-02", "seconds": 5}, tmp_path)
    section = read_recipe_speed(tmp_path)
    assert section is not None
    assert section.seconds == 65 and "2026-01-01" in section.date and "2026-01-02" in section.date
    products, steps = section.findings
    assert products.text.startswith("1 of 2 goals")
    assert "mxfp8 on native, options: 2.5 times, 2 wanted" in products.evidence
    assert steps.text.startswith("0 of 1 goals") and "step nvfp4: 4.5 times" in steps.evidence
    assert section.tables[0].rows[0][:5] == ["mxfp8 on native, plain", "0.25", "1.75",
                                             "1.50 to 2.25", "2"]  # fmt: skip
    assert len(section.tables[1].rows) == 1


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gemm.csv").write_text("size\n1\n")
    with pytest.raises(ValueError, match=r"lacks the columns .*throughput_gemm\.py writes it anew"):
        read_recipe_speed(tmp_path)
