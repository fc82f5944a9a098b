"""The section on engines: sums of the table, and the catalogue's own words."""

from pathlib import Path

import polars as pl
import pytest

from lowprec.engines import get_engine, list_engines
from lowprec.report.engine_evidence import engine_evidence_section, read_engine_evidence

COMMITTED = Path(__file__).parents[2] / "reports" / "engines"


def dots(mismatches: int = 0) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "engine": ["a", "a", "b"],
            "evidence": ["V", "V", "O"],
            "operands": ["x", "y", "x"],
            "k": [8, 24, 8],
            "dots": [1000, 2000, 500],
            "mismatches": [0, mismatches, 0],
            "zero_signs": [0, 0, 1],
            "dropped_c": [0, 0, 0],
        }
    )


def test_differences_are_summed_by_engine() -> None:
    section = engine_evidence_section(dots())
    assert section.findings[0].text.startswith("Of 3,500 dot products of 2 engines")
    assert section.findings[0].text.endswith("none differs.")
    assert section.tables[0].rows[0] == ["a", "V", "2", "24", "3,000", "0", "0"]
    assert engine_evidence_section(dots(7)).findings[0].text.endswith("7 differ.")


def test_every_engine_of_the_catalogue_stands_with_its_evidence() -> None:
    rows = {row[0]: row for row in engine_evidence_section(dots()).tables[1].rows}
    assert set(rows) == set(list_engines())
    evidence = get_engine("hopper.wgmma.fp8.fp32").evidence
    assert evidence is not None
    assert rows["hopper.wgmma.fp8.fp32"][2:4] == [evidence.level, evidence.domain]


def test_the_committed_table(tmp_path: Path) -> None:
    section = read_engine_evidence(COMMITTED)
    assert section is not None and "none differs" in section.findings[0].text
    assert read_engine_evidence(tmp_path) is None
    dots().drop("dots").write_csv(tmp_path / "mmasim.csv")
    with pytest.raises(ValueError, match=r"lacks the columns dots; python experiments/engine_fix"):
        read_engine_evidence(tmp_path)
