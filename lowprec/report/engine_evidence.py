"""The report's section on what engines rest on: captured bits, and an independent model's."""

from pathlib import Path

import polars as pl

from lowprec import catalogue
from lowprec.engines import get_engine
from lowprec.engines.engine import LEVELS
from lowprec.report import stored, words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section

COMMAND = "python experiments/engine_fixture.py"
SCHEMA: dict[str, pl.DataType] = {
    "engine": pl.String(),
    "evidence": pl.String(),
    "operands": pl.String(),
    "k": pl.Int64(),
    "dots": pl.Int64(),
    "mismatches": pl.Int64(),
    "zero_signs": pl.Int64(),
    "dropped_c": pl.Int64(),
}
"""The columns of mmasim.csv that the section is made of."""


def read_engine_evidence(folder: Path) -> Section | None:
    """The section of mmasim.csv in a folder and of the catalogue; None where there is no table.

    Raises:
      ValueError: the table lacks a column, or has another type in it.
    """
    dots = stored.read_frame(folder / "mmasim.csv", SCHEMA, COMMAND)
    return None if dots is None or dots.is_empty() else engine_evidence_section(dots)


def engine_evidence_section(dots: pl.DataFrame) -> Section:
    """The section of a table of dot products compared, with the columns of `SCHEMA`."""
    summed = by_engine(dots)
    return Section(
        name="engines",
        heading="Engines: what each rests on",
        note=(
            "Dot products of operands of every kind, from ordinary numbers to Inf and NaN, beside "
            "an independent model, PyPI's mmasim; and what the catalogue says of each engine."
        ),
        command=COMMAND,
        date="",
        seconds=0,
        findings=[_equality(summed), _levels()],
        figures=[],
        tables=[_dots_table(summed), _catalogue_table()],
    )


def by_engine(dots: pl.DataFrame) -> pl.DataFrame:
    """A row an engine: its dot products and differences summed over operands and lengths."""
    return dots.group_by("engine", "evidence", maintain_order=True).agg(
        pl.col("operands").n_unique(),
        pl.col("k").max(),
        pl.col("dots", "mismatches", "zero_signs", "dropped_c").sum(),
    )


def _equality(summed: pl.DataFrame) -> Finding:
    wrong = summed.filter(pl.col("mismatches") > 0)
    total = summed["dots"].sum()
    differ = "none differs" if wrong.is_empty() else f"{wrong['mismatches'].sum():,} differ"
    return Finding(
        text=(
            f"Of {total:,} dot products of {words.counted(len(summed), 'engine')} beside an "
            f"independent model {differ}."
        ),
        evidence=(
            f"{summed['dots'].min():,} or more of each engine, up to K = {summed['k'].max():,}; "
            f"NaNs count as equal whatever their bits"
        ),
    )


def _levels() -> Finding:
    """How many of the catalogue's engines rest on what."""
    found = [get_engine(name).evidence for name in catalogue.names("engines")]
    levels = [None if evidence is None else evidence.level for evidence in found]
    cells = [f"{levels.count(level)} {LEVELS[level]}" for level in LEVELS if level in levels]
    return Finding(
        text=f"Of the catalogue's {len(levels)} engines, {words.listed(cells)}.",
        evidence="within the domain of each, in the table below; of what lies outside it nothing "
        "is claimed",
    )


def _dots_table(summed: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("engine", False, lambda row: row["engine"]),
        ("evidence", False, lambda row: row["evidence"]),
        ("pairs of formats", True, lambda row: str(row["operands"])),
        ("largest K", True, lambda row: f"{row['k']:,}"),
        ("dot products", True, lambda row: f"{row['dots']:,}"),
        ("differ", True, lambda row: f"{row['mismatches']:,}"),
        ("in a zero's sign", True, lambda row: f"{row['zero_signs']:,}"),
    ]
    note = "Summed over operands and lengths."
    return Table.of("mmasim", "Engines beside an independent model", note, columns, summed)


def _catalogue_table() -> Table:
    rows = []
    for name in catalogue.names("engines"):
        engine = get_engine(name)
        evidence = engine.evidence
        level, domain, dispute = (
            (words.DASH,) * 3
            if evidence is None
            else (evidence.level, evidence.domain, evidence.dispute or words.DASH)
        )
        source = str(catalogue.lookup("engines", name).citation or "")
        rows.append([name, engine.reproducibility, level, domain, dispute, source])
    headings = ("engine", "class", "evidence", "seen on", "what sources dispute", "source")
    return Table(
        name="",
        title="The catalogue's engines",
        note="; ".join(f"{level}: {meaning}" for level, meaning in LEVELS.items()) + ".",
        columns=[(heading, False) for heading in headings],
        rows=rows,
    )
