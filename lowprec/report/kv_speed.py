"""The report's section on the speed of caches: what experiments/throughput_kv.py wrote."""

from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import stored, words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section
from lowprec.throughput import AppendTime, AttendTime

COMMAND = "python experiments/throughput_kv.py"


def read_kv_speed(folder: Path) -> Section | None:
    """The section of the tables in a folder; None where it has none of them.

    Raises:
      ValueError: a table lacks a column, or has another type in it.
    """
    attended = stored.read_table(folder / "attend.csv", AttendTime, COMMAND)
    appended = stored.read_table(folder / "append.csv", AppendTime, COMMAND)
    if attended is None or appended is None or attended.is_empty():
        return None
    record = stored.read_manifest(folder).get("kv", {})
    return Section(
        name="kv_speed",
        heading="Speed of KV caches",
        note=(
            "Times of emulation on one machine, which say nothing of the hardware that has the "
            "formats, and which no second run repeats."
        ),
        command=COMMAND,
        date=str(record.get("date", "")),
        seconds=int(record.get("seconds", 0)),
        findings=[_goals(attended), *_same(appended)],
        figures=[],
        tables=[_attend_table(attended), _append_table(appended)],
    )


def _subject(row: dict[str, Any]) -> str:
    return f"{row['method']} {row['arithmetic']}".strip()


def _goals(frame: pl.DataFrame) -> Finding:
    rows = frame.filter(pl.col("met") != "peer").to_dicts()
    missed = [
        f"{_subject(row)}: {words.number(row['times_bf16'], 2)} times, "
        f"{words.number(row['wanted'], 0)} wanted, temporaries of "
        f"{words.number(row['temporary_bytes'] / 1e6, 1)} MB, under "
        f"{words.number(row['wanted_bytes'] / 1e6, 1)} wanted"
        for row in rows
        if row["met"] == "missed"
    ]
    return Finding(
        text=(
            f"{len(rows) - len(missed)} of {len(rows)} goals for attention over packed caches, as "
            f"a multiple of the fastest over bfloat16, are met."
        ),
        evidence=f"median over rounds; missed: {'; '.join(missed) or 'none'}",
    )


def _same(frame: pl.DataFrame) -> list[Finding]:
    if frame.is_empty():
        return []
    rows = frame.to_dicts()
    cells = [
        f"{row['method']} {words.number(row['ratio'], 2)} times "
        f"({words.number(row['low'], 2)} to {words.number(row['high'], 2)})"
        for row in rows
    ]
    met = sum(row["met"] == "met" for row in rows)
    return [
        Finding(
            text=(
                f"Appending a token to {rows[0]['tokens_long']:,} tokens of room takes what it "
                f"takes at {rows[0]['tokens_short']:,}, for {met} of {len(rows)} methods."
            ),
            evidence=f"at most {rows[0]['wanted']:g} times, the cache given away: "
            f"{'; '.join(cells)}",
        )
    ]


def _attend_table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("method", False, _subject),
        ("milliseconds", True, lambda row: words.significant(1e3 * row["seconds"])),
        ("times bfloat16", True, lambda row: words.number(row["times_bf16"], 2)),
        ("quartiles", True, lambda row: " to ".join(
            words.number(row[end], 2) for end in ("low", "high"))),
        ("wanted", True, lambda row: words.number(row["wanted"] or None, 0)),
        ("result", False, lambda row: row["met"]),
        ("cache, MB", True, lambda row: words.number(row["cache_bytes"] / 1e6, 0)),
        ("temporaries, MB", True, lambda row: words.number(row["temporary_bytes"] / 1e6, 1)),
        ("compilation, s", True, lambda row: words.number(row["compile_seconds"])),
    ]  # fmt: skip
    row = frame.row(0, named=True)
    note = (
        f"A token of {row['queries']} query heads over {row['tokens']:,} tokens of {row['heads']} "
        f"heads of {row['dim']} on {words.label(row['device'])}. Peers are programs over bfloat16 "
        f"keys and values, of which the fastest, {row['peer']}, is 1."
    )
    return Table.of("kv_attend", "Attention over packed caches", note, columns, frame)


def _append_table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("method", False, lambda row: row["method"]),
        ("tokens of room", True, lambda row: f"{row['tokens_short']:,}, {row['tokens_long']:,}"),
        ("microseconds", True, lambda row: ", ".join(
            words.significant(1e6 * row[end]) for end in ("seconds_short", "seconds_long"))),
        ("ratio", True, lambda row: words.number(row["ratio"], 2)),
        ("quartiles", True, lambda row: " to ".join(
            words.number(row[end], 2) for end in ("low", "high"))),
        ("result", False, lambda row: row["met"]),
        ("compilation, s", True, lambda row: words.number(row["compile_seconds"])),
    ]  # fmt: skip
    note = "A token appended inside a jit that is given the cache to keep, each half full."
    return Table.of("kv_append", "Appending a token", note, columns, frame)
