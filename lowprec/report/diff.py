"""The results of `lowprec diff` and experiments/diff.py as files, and the report's section."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import diff_figure, shown, stored, words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section
from lowprec.study.diff import Difference
from lowprec.study.diff_ratios import CLIP
from lowprec.study.diff_rows import DiffRow, LayerRow, SequenceRow, TailRow

SCRIPT = "experiments/diff.py"
TABLES: Mapping[str, type] = {
    "pairs": DiffRow,
    "sequences": SequenceRow,
    "layers": LayerRow,
    "tail": TailRow,
}
"""Every table by name, with the rows it holds."""
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Results:
    """The tables by name, one frame each, and the manifest."""

    frames: Mapping[str, pl.DataFrame]
    manifest: dict[str, Any]

    @classmethod
    def of(cls, found: Sequence[Difference], manifest: dict[str, Any]) -> "Results":
        """The frames of pairs in their order."""
        rows: dict[str, list[Any]] = {
            "pairs": [x.row for x in found],
            "sequences": [row for x in found for row in x.sequences],
            "layers": [row for x in found for row in x.layers],
            "tail": [row for x in found for row in x.tail],
        }
        frames = {name: stored.frame(rows[name], row) for name, row in TABLES.items()}
        return cls(frames=frames, manifest=manifest)


def write_diff(results: Results, out: Path) -> Section:
    """Writes tables, `manifest.json` and the figure into a directory; returns the section."""
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in results.frames.items():
        stored.write_frame(frame, out / f"{name}.csv")
    stored.write_manifest(results.manifest, out)
    section = diff_section(results)
    shown.write_figures(section.figures, out)
    return section


def read_diff(folder: Path) -> Section | None:
    """The section of what `write_diff` wrote; None where the folder has no manifest.

    Raises:
      ValueError: a table is missing, lacks a column, or has another type in it.
    """
    frames = stored.read_tables(folder, TABLES, SCRIPT)
    if frames is None:
        return None
    return diff_section(Results(frames=frames, manifest=stored.read_manifest(folder)))


def diff_section(results: Results) -> Section:
    """The section of these results, its figure drawn anew."""
    frames, record = results.frames, results.manifest
    given = [frames[name] for name in TABLES]
    figure = shown.show("diff_apart", "How far apart", "tail", diff_figure.apart, *given)
    return Section(
        name="diff",
        heading="Trainer against server: how far apart are two ways to compute one model",
        note=(
            "Both sides run the same text through the same weights; all but products and attention "
            "to the cache is the same program. A is what is trained, B what draws the tokens."
        ),
        command=str(record.get("command", "")),
        date=str(record.get("date", "")),
        seconds=int(record.get("seconds", 0)),
        findings=[finding(row, frames["sequences"]) for row in frames["pairs"].to_dicts()],
        figures=[] if figure is None else [figure],
        tables=[pair_table(frames["pairs"]), sequence_table(frames["sequences"])],
    )


def finding(row: Row, sequences: pl.DataFrame) -> Finding:
    """What tells the sides of a pair apart, and what that leaves of sequences that B draws."""
    sides = f"A {row['a']}, B {row['b']}, on {row['model']}"
    if row["identical"]:
        text = f"{row['pair']}: the same bits in all {row['tokens']:,} predictions."
        return Finding(text=text, evidence=f"{sides}: no layer differs in any bit")
    drawn = sequences.filter(pl.col("pair") == row["pair"], pl.col("tokens") == "drawn")
    longest = drawn.sort("length").row(-1, named=True)
    return Finding(
        text=(
            f"{row['pair']}: {row['flips']:,} of {row['tokens']:,} tokens flip "
            f"({words.percent(row['flip_share'], 2)}), mean KL "
            f"{words.significant(row['kl_mean'], 2)} nats, effective samples of sequences of "
            f"{longest['length']:,} tokens {effective(longest['ess'])}."
        ),
        evidence=(
            f"{sides}; flips {_interval(row, 'flip', words.percent)}, KL {_interval(row, 'kl')}, "
            f"effective samples {_effective_interval(longest)} "
            f"({longest['sequences']} sequences); log p differs by "
            f"{words.significant(row['delta_magnitude'], 2)} on average and "
            f"{words.significant(row['delta_largest'], 2)} at most; first in {row['first_product']}"
        ),
    )


def units(pairs: pl.DataFrame) -> str:
    """What intervals are over."""
    return words.listed(pairs["unit"].unique().sort().to_list())


def effective(share: float) -> str:
    """An effective share in percent; one that is not whole is not rounded to 100.

    Example:
      >>> effective(0.99999), effective(1.0)
      ('>99.99 %', '100.00 %')
    """
    return ">99.99 %" if 0.99995 <= share < 1 else words.percent(share, 2)


def _effective_interval(row: Row) -> str:
    return f"{effective(row['ess_low'])} to {effective(row['ess_high'])}"


def _interval(row: Row, name: str, write: Any = words.significant) -> str:
    return f"{write(row[f'{name}_low'], 2)} to {write(row[f'{name}_high'], 2)}"


def pair_table(frame: pl.DataFrame) -> Table:
    """A line for each pair."""
    columns: list[Column] = [
        ("pair", False, lambda row: row["pair"]),
        ("A", False, lambda row: row["a"]),
        ("B", False, lambda row: row["b"]),
        ("model", False, lambda row: row["model"]),
        ("mean KL, nats", True, lambda row: words.significant(row["kl_mean"], 2)),
        ("95 %", True, lambda row: _interval(row, "kl")),
        ("median", True, lambda row: words.significant(row["kl_median"], 2)),
        ("99th percentile", True, lambda row: words.significant(row["kl_percentile_99"], 2)),
        ("|log p_A - log p_B|", True, lambda row: words.significant(row["delta_magnitude"], 2)),
        ("at most", True, lambda row: words.significant(row["delta_largest"], 2)),
        ("flips", True, lambda row: f"{row['flips']:,} of {row['tokens']:,}"),
        ("first difference", False, lambda row: row["first_product"] or "none"),
    ]
    note = (
        "KL over the whole vocabulary, of A to B; log p of the tokens that stand in the text; "
        "flips are tokens after which the most probable next token is another; intervals over "
        f"{units(frame)}. pairs.csv has all percentiles, layers.csv every layer."
    )
    return Table.of("pairs", "Pairs of sides", note, columns, frame)


def sequence_table(frame: pl.DataFrame) -> Table:
    """A line for each pair, source of tokens and length."""
    columns: list[Column] = [
        ("pair", False, lambda row: row["pair"]),
        ("tokens", False, lambda row: row["tokens"]),
        ("length", True, lambda row: f"{row['length']:,}"),
        ("sequences", True, lambda row: f"{row['sequences']:,}"),
        ("effective", True, lambda row: effective(row["ess"])),
        ("95 %", True, _effective_interval),
        ("least ratio", True, lambda row: words.significant(row["smallest"], 3)),
        ("1 %", True, lambda row: words.significant(row["percentile_1"], 3)),
        ("99 %", True, lambda row: words.significant(row["percentile_99"], 3)),
        ("99.9 %", True, lambda row: words.significant(row["percentile_999"], 3)),
        ("largest", True, lambda row: words.significant(row["largest"], 3)),
        ("clipped", True, lambda row: words.percent(row["outside"], 2)),
    ]
    note = (
        "Ratios p_A / p_B of the tokens of a run together. Drawn tokens are drawn from B, each "
        "after the text before it; those of the text nobody has drawn, and their ratios need not "
        f"be 1 on average. Clipped: ratios more than {CLIP} away from 1. Effective: (sum of "
        "ratios)^2 over the sum of their squares, over their count, which few sequences "
        "overestimate."
    )
    return Table.of("sequences", "Importance ratios", note, columns, frame)
