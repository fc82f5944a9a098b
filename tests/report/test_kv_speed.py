"""The section on the speed of caches: its verdicts, and tables that are absent or broken."""

import dataclasses
from pathlib import Path

import pytest

from lowprec.report import stored
from lowprec.report.kv_speed import read_kv_speed
from lowprec.throughput import AppendTime, AttendTime

ATTEND = AttendTime(
    tokens=32768, heads=8, dim=128, queries=32, method="nvfp4", arithmetic="", seconds=0.025,
    times_bf16=2.5, low=2.25, high=2.75, peer="whole", wanted=3.0, temporary_bytes=9_000_000,
    wanted_bytes=16_777_216, met="met", cache_bytes=38_000_000, compile_seconds=1.0, device="cpu",
)  # fmt: skip
PEER = dataclasses.replace(ATTEND, method="whole", times_bf16=1.0, wanted=0.0, met="peer")
APPEND = AppendTime(
    method="nvfp4", heads=8, dim=128, tokens_short=1024, tokens_long=65536, seconds_short=1e-4,
    seconds_long=1.05e-4, ratio=1.05, low=1.0, high=1.1, wanted=1.1, met="met",
    compile_seconds=2.0, device="cpu",
)  # fmt: skip


def test_nothing_measured_is_no_section(tmp_path: Path) -> None:
    assert read_kv_speed(tmp_path) is None
    stored.write_table([], AttendTime, tmp_path / "attend.csv")
    stored.write_table([], AppendTime, tmp_path / "append.csv")
    assert read_kv_speed(tmp_path) is None


def test_goals_are_counted_and_the_missed_named(tmp_path: Path) -> None:
    slow = dataclasses.replace(
        ATTEND, method="kivi_2bit", arithmetic="float16", times_bf16=4.5, wanted=4.0, met="missed"
    )
    stored.write_table([PEER, ATTEND, slow], AttendTime, tmp_path / "attend.csv")
    stored.write_table([APPEND], AppendTime, tmp_path / "append.csv")
    section = read_kv_speed(tmp_path)
    assert section is not None
    attended, appended = section.findings
    assert attended.text.startswith("1 of 2 goals")
    assert "kivi_2bit float16: 4.50 times, 4 wanted" in attended.evidence
    assert "nvfp4" not in attended.evidence
    assert "1 of 1 methods" in appended.text and "nvfp4 1.05 times" in appended.evidence
    assert [row[0] for row in section.tables[0].rows] == ["whole", "nvfp4", "kivi_2bit float16"]


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "attend.csv").write_text("tokens\n1\n")
    with pytest.raises(ValueError, match=r"lacks the columns .*throughput_kv\.py writes it anew"):
        read_kv_speed(tmp_path)
