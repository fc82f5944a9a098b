"""The section on the proof: what is wrong is counted and said; the committed tables are read."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lowprec.report import write_report
from lowprec.report.proof import SCHEMAS, by_format, proof_section, read_proof
from lowprec.report.stored import MANIFEST
from tests.report import synthetic
from tests.report.test_page import Page

COMMITTED = Path(__file__).parents[2] / "reports" / "proof"


def frames(mismatches: int = 0, disagreements: int = 0) -> dict[str, pl.DataFrame]:
    """Two formats, three ways each, with so much wrong in the last of the first."""
    rows = [
        {
            "format": name, "bits": 4, "rounding": rounding, "overflow": "saturate",
            "inputs": 1 << 32, "asked": 10, "mismatches": 0, "disagreements": 0, "seconds": 2.5,
        }
        for name in ("one", "two")
        for rounding in ("nearest_even", "toward_zero", "to_odd")
    ]  # fmt: skip
    rows[2] |= {"mismatches": mismatches, "disagreements": disagreements}
    tables: dict[str, list[dict[str, Any]]] = {
        "formats": rows,
        "leading_bits": [{"mantissa_bits": n, "inputs": 1 << 32, "holds": "True"} for n in (0, 1)],
        "families": [
            {"format": "binary3p1se", "modes_and_policies": 21, "inputs": 99, "mismatches": 0}
        ],
        "mutants": [{"file": "a.py", "outcome": x} for x in ("killed", "killed", "survived")],
        "survivors": [{"file": "a.py", "line": 3, "before": "x", "after": "y", "why": "equal"}],
    }
    return {name: pl.DataFrame(found, SCHEMAS[name]) for name, found in tables.items()}


def test_what_is_wrong_is_said() -> None:
    right = proof_section(frames(), {"date": "2026-11-23"})
    casts, family, score = right.findings
    assert casts.text.startswith("Casts to 2 formats are right on all 4,294,967,296 float32 inputs")
    assert "in 3 combinations" in casts.text and casts.evidence.startswith("0 mismatches; 60 codes")
    assert "All 1 members" in family.text and "2 mantissa widths, 0 to 1" in family.evidence
    assert "2 of 3 small changes" in score.text and "66.7 %" in score.text
    assert (right.seconds, right.date) == (5, "2026-11-23")
    for wrong in ({"mismatches": 7}, {"disagreements": 7}):
        casts = proof_section(frames(**wrong), {}).findings[0]
        assert "formats are WRONG" in casts.text and casts.evidence.startswith("7 mismatches")
        assert by_format(frames(**wrong)["formats"])["wrong"].to_list() == [7, 0]


def test_tables_that_are_wrong_are_named(tmp_path: Path) -> None:
    assert read_proof(tmp_path) is None
    frames()["survivors"].drop("why").write_csv(tmp_path / "survivors.csv")
    with pytest.raises(ValueError, match=r"survivors\.csv lacks the columns why; make mutants"):
        read_proof(tmp_path)


def test_page_has_the_section_where_results_lie_beside_it(tmp_path: Path) -> None:
    none = pl.DataFrame()
    results = synthetic.results(products=none, model=none, histogram=none, cards=none)
    folder = tmp_path / "proof"
    folder.mkdir()
    for name, frame in frames().items():
        frame.write_csv(folder / f"{name}.csv")
    (folder / MANIFEST).write_text('{"date": "2026-11-23"}', encoding="utf-8")
    page = Page(
        write_report(results, tmp_path).with_name("evidence.html").read_text(encoding="utf-8")
    )
    assert not page.open and "proof" in page.ids
    assert "why no test fails" in page.words
    for link in (link for link in page.links if link.startswith("proof/")):
        assert (tmp_path / link).is_file(), link


def test_the_committed_tables() -> None:
    """The whole catalogue, nothing wrong, and every survivor explained."""
    section = read_proof(COMMITTED)
    assert section is not None
    texts = " ".join(finding.text for finding in section.findings)
    assert "WRONG" not in texts
    mutants = pl.read_csv(COMMITTED / "mutants.csv")
    killed = (mutants["outcome"] == "killed").sum()
    assert killed >= 0.9 * len(mutants) and len(mutants) >= 300
    survivors = pl.read_csv(COMMITTED / "survivors.csv")
    assert len(survivors) == (mutants["outcome"] != "killed").sum()
    assert survivors["why"].null_count() == 0
