"""The section on casts' speed says what was met and what was not."""

from pathlib import Path

import polars as pl
import pytest

from lowprec.report.cast_speed import cast_speed_section, read_cast_speed

COMMITTED = Path(__file__).parents[2] / "reports" / "throughput"


def goals() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "operation": ["cast", "encode"],
            "ours": ["plain", "plain"],
            "other": ["torch", "XLA"],
            "verdict": ["met", "missed"],
            "at_least": [8.0, 2.0],
            "ratio": [9.5, 1.25],
            "low": [8.5, 1.0],
            "high": [10.0, 1.5],
        }
    )


def test_what_is_missed_is_named() -> None:
    section = cast_speed_section(goals())
    [finding] = section.findings
    assert finding.text.startswith("1 of 2 goals")
    assert finding.evidence == "missed: encode beside XLA: 1.25 (1 to 1.5), 2 wanted"
    assert section.tables[0].rows[0] == ["cast", "plain", "torch", "9.5", "8.5 to 10", "8", "met"]
    assert cast_speed_section(goals().head(1)).findings[0].evidence == "none missed"


def test_the_committed_table(tmp_path: Path) -> None:
    assert read_cast_speed(COMMITTED) is not None and read_cast_speed(tmp_path) is None
    goals().drop("low").write_csv(tmp_path / "goals.csv")
    with pytest.raises(ValueError, match="lacks the columns low"):
        read_cast_speed(tmp_path)
