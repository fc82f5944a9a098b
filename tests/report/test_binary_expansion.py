"""The section on binary weights: its table there and back, the verdict, the figure."""

import dataclasses
from pathlib import Path

import polars as pl
import pytest

from lowprec.report import binary_expansion_figure, stored, words
from lowprec.report.binary_expansion import expansion_section, read_expansion, write_expansion
from lowprec.study.binary_expansion import METHODS, ExpansionRow

COMMITTED = Path(__file__).parents[2] / "reports" / "binary_expansion"


def rows() -> list[ExpansionRow]:
    """Integers gain 6 dB a bit, greedy sums 2 and refitted ones 4."""
    gains = {"binary, greedy": 2.0, "binary, refitted": 4.0}
    return [
        ExpansionRow(
            source=source, method=method, n=n, k=64.0, bits_per_element=n + 0.5, additions=63.0,
            multiplications=64.0, units=3, sqnr_db=gains.get(method, 6.0) * n, sqnr_low=1.0,
            sqnr_high=2.0, product_db=None, product_low=None, product_high=None,
            over_integer_db=None if method == "INT-N, best clip" else 1.0, over_low=None,
            over_high=None,
        )
        for source in ("captured", "gaussian")
        for method in METHODS
        for n in range(1, 9)
    ]  # fmt: skip


def test_the_verdict_follows_the_data() -> None:
    frame = stored.frame(rows(), ExpansionRow).filter(pl.col("source") == "captured")
    assert binary_expansion_figure.verdict(frame) == (
        "8 greedy binary weights keep 16.0 dB of captured weights, no more than INT3: 2.0 dB each "
        "from the fourth on; refitted, 32.0 dB, no more than INT6"
    )
    better = [dataclasses.replace(row, sqnr_db=99.0) for row in rows() if row.n == 8]
    better = [x for x in better if x.method == "binary, greedy"] + [
        x for x in rows() if x.method != "binary, greedy"
    ]
    frame = stored.frame(better, ExpansionRow).filter(pl.col("source") == "gaussian")
    assert "gaussian weights, more than INT8; refitted" in binary_expansion_figure.verdict(frame)


@pytest.mark.slow
def test_there_and_back(tmp_path: Path) -> None:
    assert read_expansion(tmp_path) is None
    written = write_expansion(rows(), {"seconds": 3}, tmp_path)
    assert read_expansion(tmp_path) == written and written.seconds == 3
    assert len(written.figures) == 1 and (tmp_path / "figures" / "binary_expansion.svg").is_file()
    assert len(written.findings) == 2 and len(written.tables[0].rows) == 2 * 6 * len(METHODS)


def test_no_rows_no_figure_and_no_finding() -> None:
    section = expansion_section(stored.frame([], ExpansionRow), {})
    assert section.figures == [] and section.findings == [] and section.tables[0].rows == []


def test_committed_rows_are_whole() -> None:
    found = stored.read_table(COMMITTED / "rows.csv", ExpansionRow, "x")
    assert found is not None and words.counted(len(found), "row")
    assert set(found["source"]) == {"captured", "gaussian"} and set(found["method"]) == set(METHODS)
    assert found.select("source", "method", "n").is_unique().all()
    assert found["sqnr_db"].is_between(0, 110).all()
    one = found.filter(pl.col("n") == 1, pl.col("source") == "gaussian")["sqnr_db"]
    # A sign and the mean magnitude leave 1 - 2 / pi of a normal number's energy.
    assert one.is_between(-1, 4.5).all() and max(one) > 4.3
