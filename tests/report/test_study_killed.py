"""The section on killed studies says whether a point was lost and whether exports are equal."""

from pathlib import Path

import polars as pl
import pytest

from lowprec.report.study_killed import read_study_killed, study_killed_section


def runs() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "run": ["undisturbed", "killed"],
            "workers": [0, 2],
            "points": [2560, 2560],
            "killed": ["", "run at 770"],
            "stored": [2560, 2560],
            "done": [2560, 2560],
            "most_attempts": [1, 1],
            "sound": [True, True],
            "seconds": [64, 122],
            "export_sha256": ["ab" * 32, "ab" * 32],
        }
    )


def said(frame: pl.DataFrame) -> str:
    return study_killed_section(frame, {}).findings[0].text


def test_losses_and_differences_are_said() -> None:
    whole = "A study of 2,560 points run 2 ways, killed in 1, "
    assert said(runs()) == (
        f"{whole}neither loses nor doubles a point, and its exports are the same bytes."
    )
    lost = runs().with_columns(stored=pl.Series([2560, 2559]))
    assert "loses or doubles points" in said(lost)
    assert "loses or doubles points" in said(runs().with_columns(sound=pl.Series([True, False])))
    other = runs().with_columns(export_sha256=pl.Series(["ab", "cd"]))
    assert said(other).endswith("exports DIFFER.")
    assert study_killed_section(runs(), {}).tables[0].rows[1][2] == "run at 770"


def test_there_and_not_there(tmp_path: Path) -> None:
    assert read_study_killed(tmp_path) is None
    runs().write_csv(tmp_path / "runs.csv")
    section = read_study_killed(tmp_path)
    assert section is not None and "neither loses" in section.findings[0].text
    runs().drop("stored").write_csv(tmp_path / "runs.csv")
    with pytest.raises(ValueError, match="lacks the columns stored"):
        read_study_killed(tmp_path)
