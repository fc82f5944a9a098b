"""The report's section on the proof of casts: what `make prove` and `make mutants` wrote."""

from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import stored, words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section

SCHEMAS: dict[str, dict[str, Any]] = {
    "formats": {
        "format": pl.String(),
        "bits": pl.Int64(),
        "rounding": pl.String(),
        "overflow": pl.String(),
        "inputs": pl.Int64(),
        "mismatches": pl.Int64(),
        "asked": pl.Int64(),
        "disagreements": pl.Int64(),
        "seconds": pl.Float64(),
    },
    "leading_bits": {"mantissa_bits": pl.Int64(), "inputs": pl.Int64(), "holds": pl.String()},
    "families": {
        "format": pl.String(),
        "modes_and_policies": pl.Int64(),
        "inputs": pl.Int64(),
        "mismatches": pl.Int64(),
    },
    "mutants": {"file": pl.String(), "outcome": pl.String()},
    "survivors": {
        "file": pl.String(),
        "line": pl.Int64(),
        "before": pl.String(),
        "after": pl.String(),
        "why": pl.String(),
    },
}
"""The columns that the section is made of, by table."""


def read_proof(folder: Path) -> Section | None:
    """The section of the tables in a folder; None where it has none of them.

    Raises:
      ValueError: a table lacks a column, or has another type in it.
    """
    tables = {name: _read(folder / f"{name}.csv", name) for name in SCHEMAS}
    if all(table.is_empty() for table in tables.values()):
        return None
    return proof_section(tables, stored.read_manifest(folder))


def _read(path: Path, name: str) -> pl.DataFrame:
    command = f"make {'mutants' if name in ('mutants', 'survivors') else 'prove'}"
    found = stored.read_frame(path, SCHEMAS[name], command)
    return pl.DataFrame(schema=SCHEMAS[name]) if found is None else found


def proof_section(tables: dict[str, pl.DataFrame], record: dict[str, Any]) -> Section:
    """The section of the proof's tables.

    Args:
      tables: by the names of `SCHEMAS`, with their columns.
      record: the manifest, empty where there is none.
    """
    formats = by_format(tables["formats"])
    found = (
        _casts(formats),
        _families(tables["leading_bits"], tables["families"]),
        _score(tables["mutants"], tables["survivors"]),
    )
    return Section(
        name="proof",
        heading="Proof: every cast, and what its tests notice",
        note=(
            "Codes are counted over all inputs between the exact oracle's thresholds, and asked "
            "for on both sides of every threshold and at zero, the largest values, Inf and NaN."
        ),
        command="make prove",
        date=str(record.get("date", "")),
        seconds=round(formats["seconds"].sum()),
        findings=[x for x in found if x is not None],
        figures=[],
        tables=[_formats_table(formats), _survivors_table(tables["survivors"])],
    )


def by_format(rows: pl.DataFrame) -> pl.DataFrame:
    """A row a format: its modes and policies counted, what is wrong with any of them summed.

    The seconds of a format are those of all its ways, which are swept together.
    """
    return rows.group_by("format", maintain_order=True).agg(
        pl.col("bits", "inputs", "seconds").first(),
        pl.len().alias("ways"),
        pl.col("asked").sum(),
        (pl.col("mismatches") + pl.col("disagreements")).sum().alias("wrong"),
    )


def _casts(formats: pl.DataFrame) -> Finding | None:
    if formats.is_empty():
        return None
    wrong, asked = (formats[column].sum() for column in ("wrong", "asked"))
    ways = words.listed(sorted({str(x) for x in formats["ways"]}))
    return Finding(
        text=(
            f"Casts to {len(formats)} formats are "
            f"{'right' if not wrong else 'WRONG'} on all {formats['inputs'][0]:,} float32 inputs, "
            f"in {ways} combinations of rounding mode and overflow policy each."
        ),
        evidence=f"{wrong} mismatches; {asked:,} codes asked of the exact oracle",
    )


def _families(leading: pl.DataFrame, members: pl.DataFrame) -> Finding | None:
    if members.is_empty():
        return None
    wrong = members["mismatches"].sum()
    widths = leading.filter(pl.col("holds").str.to_lowercase() == "true")["mantissa_bits"]
    evidence = f"{wrong} mismatches in {members['inputs'].sum():,} inputs"
    if len(widths):
        evidence += (
            f"; that leading bits and a sticky bit decide was swept over all inputs for "
            f"{len(set(widths))} mantissa widths, 0 to {widths.max()}"
        )
    return Finding(
        text=(
            f"All {len(members)} members of the P3109 family of 3 to 15 bits are "
            f"{'right' if not wrong else 'WRONG'} on one input of every kind that can differ."
        ),
        evidence=evidence,
    )


def _score(mutants: pl.DataFrame, survivors: pl.DataFrame) -> Finding | None:
    if mutants.is_empty():
        return None
    killed = len(mutants.filter(pl.col("outcome") == "killed"))
    unexplained = len(survivors.filter(pl.col("why").is_null()))
    return Finding(
        text=(
            f"The tests notice {killed} of {len(mutants)} small changes of the numeric core, "
            f"{100 * killed / len(mutants):.1f} %."
        ),
        evidence=(
            f"a seeded sample over {mutants['file'].n_unique()} files, oracles included; "
            f"{len(survivors)} went unnoticed, of which {unexplained} have no explanation below"
        ),
    )


def _formats_table(formats: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("format", False, lambda row: row["format"]),
        ("bits", True, lambda row: str(row["bits"])),
        ("modes and policies", True, lambda row: str(row["ways"])),
        ("inputs", True, lambda row: f"{row['inputs']:,}"),
        ("codes asked", True, lambda row: f"{row['asked']:,}"),
        ("wrong", True, lambda row: str(row["wrong"])),
        ("seconds", True, lambda row: words.number(row["seconds"])),
    ]
    return Table(
        name="formats",
        title="Every format over all float32 inputs",
        note="Seconds on one core, with other work beside it.",
        columns=[(heading, numeric) for heading, numeric, _ in columns],
        rows=[[cell(row) for _, _, cell in columns] for row in formats.iter_rows(named=True)],
    )


def _survivors_table(survivors: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("line", False, lambda row: f"{row['file']}:{row['line']}"),
        ("before", False, lambda row: row["before"] or words.DASH),
        ("after", False, lambda row: row["after"]),
        ("why no test fails", False, lambda row: row["why"] or "unexplained"),
    ]
    return Table(
        name="survivors",
        title="Changes that no test notices",
        note="By make mutants.",
        columns=[(heading, numeric) for heading, numeric, _ in columns],
        rows=[[cell(row) for _, _, cell in columns] for row in survivors.iter_rows(named=True)],
    )
