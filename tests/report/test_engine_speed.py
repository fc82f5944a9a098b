"""The section on the speed of engines: its goals, its figure, and the page."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lowprec.report import write_report
from lowprec.report.engine_speed import SCHEMA, read_speed, speed_section
from lowprec.report.figures import engine_speed
from lowprec.report.stored import MANIFEST
from tests.report import synthetic
from tests.report.test_page import Page

COMMITTED = Path(__file__).parents[2] / "reports" / "throughput"


def rows(power: float, *sizes: int, met: str = "met") -> pl.DataFrame:
    """Times that grow as a power of M N K."""
    found = [
        {
            "size": size, "engine": "hopper.wgmma.fp8.fp32", "way": "plain",
            "seconds": 1e-9 * size ** (3 * power),
            "multiply_adds_per_second": 1e9 * size ** (3 - 3 * power),
            "times_float32": 12.0, "low": 11.0, "high": 13.0, "wanted": 25.0, "met": met,
            "compile_seconds": 1.0, "temporary_bytes": 1_000_000, "device": "cpu",
        }
        for size in sizes
    ]  # fmt: skip
    return pl.DataFrame(found, SCHEMA)


def test_title_has_the_power_of_the_data() -> None:
    assert "power 1.00 from 512 to 2048" in engine_speed.linear_title(rows(1, 256, 512, 1024, 2048))
    assert "power 1.20 from 256 to 512" in engine_speed.linear_title(rows(1.2, 512, 256))
    assert "emulates 1.00 billion multiply-adds a second" in engine_speed.linear_title(rows(1, 256))
    assert engine_speed.linear_cost(rows(1)) is None


def test_missed_goals_are_named() -> None:
    none = pl.DataFrame(schema=SCHEMA)
    both = pl.concat([rows(1, 256), rows(1, 512, met="missed")])
    (goals,) = speed_section(both, none, {}).findings
    assert goals.text.startswith("1 of 2 goals")
    assert "hopper.wgmma.fp8.fp32 at 512, plain: 12.0 times (11.0 to 13.0), 25 wanted" in (
        goals.evidence
    )
    record: dict[str, Any] = {"engines": {"date": "2026-11-23", "seconds": 3}}
    assert speed_section(both, none, record).date == "2026-11-23"
    # No date where one of the tables has none.
    assert speed_section(both, rows(1, 256), record).date == ""


def test_tables_that_are_wrong_are_named(tmp_path: Path) -> None:
    assert read_speed(tmp_path) is None
    rows(1, 256).drop("device").write_csv(tmp_path / "linear.csv")
    with pytest.raises(ValueError, match=r"linear\.csv lacks the columns device; python exp"):
        read_speed(tmp_path)


def test_committed_table_is_read() -> None:
    section = read_speed(COMMITTED)
    assert section is not None and len(section.tables[0].rows) > 20
    assert "goals" in section.findings[0].text


def test_page_has_the_section(tmp_path: Path) -> None:
    none = pl.DataFrame()
    results = synthetic.results(products=none, model=none, histogram=none, cards=none)
    folder = tmp_path / "throughput"
    (folder / "figures").mkdir(parents=True)
    rows(1, 256).write_csv(folder / "engines.csv")
    rows(1, 256, 512).write_csv(folder / "linear.csv")
    text = write_report(results, tmp_path).with_name("throughput.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and page.tags.count("svg") == 2 and "throughput" in page.ids
    for label in ("seconds a product", "multiply-adds of a product, M N K with M = N = K"):
        assert label in page.words
    for link in (link for link in page.links if link.startswith("throughput/")):
        assert link.endswith(".svg") or (tmp_path / link).is_file(), link
    (folder / MANIFEST).write_text(
        '{"engines": {"date": "2026-11-22"}, "linear": {"date": "2026-11-23"}}', encoding="utf-8"
    )
    again = write_report(results, tmp_path).with_name("throughput.html").read_text(encoding="utf-8")
    assert "2026-11-22 and 2026-11-23" in again and "throughput/manifest.json" in again
