"""The results of experiments/communication.py as files, and the report's section on them."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import communication_figure as drawing
from lowprec.report import shown, stored, words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section
from lowprec.study.communication import SentRow, StageRow
from lowprec.study.communication_claims import ClaimRow
from lowprec.study.communication_loss import LossRow

SCRIPT = "experiments/communication.py"
TABLES: Mapping[str, type] = {
    "rows": SentRow,
    "stages": StageRow,
    "loss": LossRow,
    "claims": ClaimRow,
}
"""Every table by name, with the rows it holds."""
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Results:
    """The tables by name, one frame each, and the manifest."""

    frames: Mapping[str, pl.DataFrame]
    manifest: dict[str, Any]

    @classmethod
    def from_rows(cls, manifest: dict[str, Any], **rows: Sequence[Any]) -> "Results":
        """The frames of rows, by the names of `TABLES`."""
        frames = {name: stored.frame(rows[name], row) for name, row in TABLES.items()}
        return cls(frames=frames, manifest=manifest)


def write_communication(results: Results, out: Path) -> Section:
    """Writes tables, `manifest.json` and figures into a directory; returns the section."""
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in results.frames.items():
        frame.write_csv(out / f"{name}.csv")
    stored.write_manifest(results.manifest, out)
    section = communication_section(results)
    shown.write_figures(section.figures, out)
    return section


def read_communication(folder: Path) -> Section | None:
    """The section of what `write_communication` wrote; None where the folder has no table.

    Raises:
      ValueError: a table is missing, lacks a column, or has another type in it.
    """
    found = {
        name: stored.read_table(folder / f"{name}.csv", row, SCRIPT) for name, row in TABLES.items()
    }
    if all(frame is None for frame in found.values()):
        return None
    frames = {name: frame for name, frame in found.items() if frame is not None}
    missing = [f"{name}.csv" for name in TABLES if name not in frames]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}; {SCRIPT} writes it anew")
    return communication_section(Results(frames=frames, manifest=stored.read_manifest(folder)))


def communication_section(results: Results) -> Section:
    """The section of these results, its figures drawn anew."""
    frames, record = results.frames, results.manifest
    near = record.get("settings", {}).get("near")
    loss = functools.partial(drawing.loss, near=near)
    drawn = (
        shown.show(
            "communication_error",
            "Error by bytes",
            "stages",
            drawing.error_by_bytes,
            frames["stages"],
        ),
        shown.show(
            "communication_leads", "LogFMT against FP8", "claims", drawing.leads, frames["claims"]
        ),
        shown.show("communication_loss", "Loss of the model", "loss", loss, frames["loss"]),
    )
    return Section(
        name="communication",
        heading="Communication: formats that move activations",
        note=(
            "What the layers of the small model would send to experts and back, forward and "
            "backward, quantized in the formats that move activations between devices."
        ),
        command=str(record.get("command", "")),
        date=str(record.get("date", "")),
        seconds=int(record.get("seconds", 0)),
        findings=_findings(frames),
        figures=[figure for figure in drawn if figure is not None],
        tables=[
            _claim_table(frames["claims"]),
            _stage_table(frames["stages"]),
            _loss_table(frames["loss"]),
        ],
    )


def _findings(frames: Mapping[str, pl.DataFrame]) -> list[Finding]:
    found = []
    stages = drawing.stage_rows(frames["stages"])
    if not stages.is_empty():
        combine = stages.filter(pl.col("stage") == "combine").sort("bytes_per_token")
        cells = [
            f"{drawing.short(row['target'])} {words.number(row['bytes_per_token'], 0)} bytes, "
            f"{words.number(row['sqnr_db'], 1)} dB"
            for row in combine.to_dicts()
        ]
        found.append(
            Finding(
                text=f"{drawing.error_title(stages)}.",
                evidence=f"a token of what is sent back, in order of size: {'; '.join(cells)}",
            )
        )
    found += [_verdict(*given) for given in drawing.verdicts(frames["claims"])]
    if not frames["loss"].is_empty():
        cells = [
            f"{drawing.short(row['target'])} {_relative(row)}" for row in frames["loss"].to_dicts()
        ]
        found.append(
            Finding(text=f"{drawing.loss_title(frames['loss'])}.", evidence="; ".join(cells))
        )
    return found


_MEASURES = {
    "error": "by error on the tensors sent",
    "loss": "by the loss of the small model, which was not trained so",
    "gain": "by gain",
}


def _verdict(claim: str, measure: str, rows: pl.DataFrame) -> Finding:
    """A claim, and where it holds."""
    cells = [f"{row['where']} {_value(row)}: {row['verdict']}" for row in rows.to_dicts()]
    counts = rows.group_by("verdict", maintain_order=True).len().rows()
    tally = words.listed([f"{verdict} in {count} of {len(rows)}" for verdict, count in counts])
    if len(rows) == 1:
        tally = rows["verdict"][0]
    return Finding(
        text=f"Published: {claim}. Here, {_MEASURES[measure]}: {tally}.",
        evidence=f"{'; '.join(cells)} (95 % intervals, paired where two are compared)",
    )


def _value(row: Row) -> str:
    if row["measure"] == "error":
        low, high = (words.signed(row[end], 2) for end in ("low", "high"))
        return f"{words.signed(row['value'], 2)} dB ({low} to {high})"
    digits = 3 if row["measure"] == "loss" else 4
    value, low, high = (_percent(row[name], digits) for name in ("value", "low", "high"))
    text = f"{value} ({low} to {high})"
    if row["measure"] == "gain":
        text += f", in logarithmic space {_percent(row['baseline_value'], digits)}"
    return text


def _percent(share: float, digits: int) -> str:
    return f"{words.signed(100 * share, digits)} %"


def _relative(row: Row) -> str:
    ends = (_percent(row[f"relative{end}"], 3) for end in ("", "_low", "_high"))
    return "{} ({} to {})".format(*ends)


def _claim_table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("published", False, lambda row: row["claim"]),
        ("entry", False, lambda row: row["target"]),
        ("against", False, lambda row: row["baseline"] or "none"),
        ("measured", False, lambda row: f"{row['measure']}, {row['where']}"),
        ("value (95 %)", True, _value),
        ("verdict", False, lambda row: row["verdict"]),
    ]
    note = (
        "Of arXiv 2505.09343, section 3.2. The authors trained dense models of about 7 billion "
        "parameters with the outputs of residual branches quantized; here tensors of a trained "
        "small model are quantized, and its loss is measured without training it so. E4M3 and E5M2 "
        "have a power-of-two scale in each 1x128 tile here; how theirs were scaled is not said."
    )
    return Table.of("claims", "What is published of LogFMT", note, columns, frame)


def _stage_table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("sent", False, lambda row: row["stage"]),
        ("format", False, lambda row: row["target"]),
        ("bits/element", True, lambda row: words.number(row["bits_per_element"], 3)),
        ("bytes/token", True, lambda row: words.number(row["bytes_per_token"], 0)),
        ("SQNR, dB", True, lambda row: words.number(row["sqnr_db"], 2)),
        ("95 %", True, lambda row: " to ".join(
            words.number(row[end], 2) for end in ("low_db", "high_db"))),
        ("tensors, least to most", True, lambda row: " to ".join(
            words.number(row[end], 1) for end in ("least_db", "most_db"))),
        ("gain", True, lambda row: words.percent(row["gain"], 3)),
        ("flushed to zero", True, lambda row: words.percent(row["flushed"], 3)),
        ("relative error, rms", True, lambda row: words.percent(row["relative_rms"], 2)),
    ]  # fmt: skip
    note = (
        "SQNR: means over tensors and documents, or seeds of synthetic tiles of 128; against the "
        "float32 values that were rounded to bfloat16 before. Gradients are of a mean over all "
        "bytes, so that an entry that clamps amax (at 1e-4 or 1e-5) does so there. Bytes are of "
        "DeepSeek-V3's tokens, scales included; rows.csv has every tensor, with the largest "
        "relative error of what is not flushed."
    )
    return Table.of("stages", "Formats by what is sent", note, columns, frame)


def _loss_table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("format", False, lambda row: row["target"]),
        ("bits per byte", True, lambda row: words.number(row["bits_per_byte"], 5)),
        ("increase", True, lambda row: words.signed(row["increase"], 5)),
        ("95 %", True, lambda row: " to ".join(
            words.signed(row[end], 5) for end in ("low", "high"))),
        ("of the loss (95 %)", True, _relative),
    ]  # fmt: skip
    note = (
        "Held-out loss with the outputs of attention and MLP sent in the format, over the same "
        "sent in bfloat16; intervals over documents, paired."
    )
    return Table.of("loss", "Loss by format", note, columns, frame)
