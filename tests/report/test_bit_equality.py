"""The section on bit equality: there and back, what is unexplained said, the committed table."""

import dataclasses
from pathlib import Path

import polars as pl
import pytest

from lowprec.report.bit_equality import (
    CASES,
    bit_equality_section,
    by_comparison,
    read_bit_equality,
    write_cases,
)
from lowprec.report.stored import frame
from lowprec.study.bit_equality import Row
from lowprec.study.bit_equality_inputs import SORTS

COMMITTED = Path(__file__).parents[2] / "reports" / "bit_equality"


def row(block: str, sort: str, mismatches: int = 0, why: str = "", zero_signs: int = 0) -> Row:
    return Row(
        block=block, source="PyPI some 1.0", call="cast", file="some.py", compared="codes, scales",
        sort=sort, tiles=8, elements=256, mismatches=mismatches, scales=mismatches // 2,
        elements_differing=3 * mismatches, zero_signs=zero_signs, nan_codes=0, why=why,
        why_signs="it drops signs" if zero_signs else "",
    )  # fmt: skip


ROWS = [
    row("one", "ordinary"),
    row("one", "Inf"),
    row("two", "ordinary", zero_signs=2),
    row("two", "Inf", 4, "it forgets Inf"),
]


def test_there_and_back(tmp_path: Path) -> None:
    assert read_bit_equality(tmp_path) is None
    record = {"command": "python experiments/bit_equality.py", "date": "2026-01-02", "seconds": 3}
    written = write_cases(ROWS, record, tmp_path)
    assert read_bit_equality(tmp_path) == written
    assert (written.command, written.seconds) == (record["command"], 3)
    frame(ROWS, Row).drop("why").write_csv(tmp_path / f"{CASES}.csv")
    with pytest.raises(ValueError, match="lacks the columns why; experiments/bit_equality"):
        read_bit_equality(tmp_path)


def test_what_differs_is_counted_and_explained() -> None:
    section = bit_equality_section(frame(ROWS, Row), {})
    (finding,) = section.findings
    assert finding.text.startswith("1 of 2 comparisons find the source's bits on every tile")
    assert "12.5 % of all tiles, each explained below" in finding.text
    assert (
        "32 tiles, 1,024 elements, 1 source; 4 tiles differ, 2 more in the sign" in finding.evidence
    )
    assert "of a zero alone; 0 are unexplained" in finding.evidence
    blocks, differences = section.tables
    assert [x[0] for x in blocks.rows] == ["one", "two"]
    assert blocks.rows[1][4:] == ["16", "4", "2", "2", "Inf"]
    common = ["PyPI some 1.0", "cast", "two"]
    assert differences.rows == [
        [*common, "Inf", "bits", "4 of 8", "it forgets Inf"],
        [*common, "ordinary", "zeros' signs", "2 of 8", "it drops signs"],
    ]


def test_what_is_not_explained_is_said() -> None:
    rows = [*ROWS, row("two", "NaN", 5)]
    section = bit_equality_section(frame(rows, Row), {})
    assert "NOT ALL EXPLAINED" in section.findings[0].text
    assert "5 are unexplained" in section.findings[0].evidence
    assert [x[-1] for x in section.tables[1].rows].count("unexplained") == 1
    signs = dataclasses.replace(ROWS[2], why_signs="")
    section = bit_equality_section(frame([*ROWS, signs], Row), {})
    assert "2 are unexplained" in section.findings[0].evidence


def test_the_committed_table_has_every_sort_and_explains_everything() -> None:
    section = read_bit_equality(COMMITTED)
    assert section is not None and "each explained below" in section.findings[0].text
    cases = pl.read_csv(COMMITTED / f"{CASES}.csv")
    assert set(SORTS) <= set(cases["sort"])
    assert by_comparison(cases)["unexplained"].sum() == 0
    assert {field.name for field in dataclasses.fields(Row)} == set(cases.columns)
