"""The results of experiments/kv_compare.py as files, and the report's section on them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import kv_figure as drawing
from lowprec.report import shown, stored, words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section
from lowprec.study.kv_compare import KvCollected
from lowprec.study.kv_keys import KvKeyRow
from lowprec.study.kv_rows import CacheRow, KvModelRow, TensorRow

SCRIPT = "experiments/kv_compare.py"
TABLES: Mapping[str, type] = {
    "caches": CacheRow,
    "tensors": TensorRow,
    "model": KvModelRow,
    "latent": KvModelRow,
    "keys": KvKeyRow,
}
"""Every table by name, with the rows it holds."""
LATENT_BASELINE = "kv:mla_bf16"
"""What other latents are compared with."""

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Results:
    """The tables by name, one frame each, and the manifest."""

    frames: Mapping[str, pl.DataFrame]
    manifest: dict[str, Any]

    @classmethod
    def of(cls, found: KvCollected, manifest: dict[str, Any]) -> "Results":
        """The frames of what has been found."""
        frames = {name: stored.frame(getattr(found, name), row) for name, row in TABLES.items()}
        return cls(frames=frames, manifest=manifest)


def write_kv(results: Results, out: Path) -> Section:
    """Writes tables, `manifest.json` and figures into a directory; returns the section."""
    for name, frame in results.frames.items():
        stored.write_frame(frame, out / f"{name}.csv")
    stored.write_manifest(results.manifest, out)
    section = kv_section(results)
    shown.write_figures(section.figures, out)
    return section


def read_kv(folder: Path) -> Section | None:
    """The section of what `write_kv` wrote; None where the folder has no table.

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
    return kv_section(Results(frames=frames, manifest=stored.read_manifest(folder)))


def kv_section(results: Results) -> Section:
    """The section of these results, its figures drawn anew."""
    frames, record = results.frames, results.manifest
    drawn = (
        shown.show(f"kv_{name}", heading, data, draw, frames[data], frames["caches"])
        for name, heading, data, draw in (
            ("loss", "Loss by bytes", "model", drawing.loss_by_bytes),
            ("errors", "Error by bits", "tensors", drawing.errors_by_bits),
        )
    )
    return Section(
        name="kv",
        heading="KV caches: every method on one bench",
        note=(
            "Caches are really packed, and their bits are those of the arrays: codes, scales, "
            "windows, sinks and padding. `NAME, window 0` is the method without the tokens that it "
            "exempts; of keys coded several together those that wait for the last remain."
        ),
        command=str(record.get("command", "")),
        date=str(record.get("date", "")),
        seconds=int(record.get("seconds", 0)),
        findings=_findings(frames),
        figures=[figure for figure in drawn if figure is not None],
        tables=_filled(
            _cache_table(frames["caches"]),
            _model_table("model", "Loss by method", frames["model"]),
            _model_table("latent", "Loss by method that keeps latents", frames["latent"]),
            _key_table(frames["keys"], record),
            _tensor_table(frames["tensors"]),
        ),
    )


def _filled(*tables: Table) -> list[Table]:
    """Those with rows: without a model with latents, say, there are none of it."""
    return [table for table in tables if table.rows]


def _findings(frames: Mapping[str, pl.DataFrame]) -> list[Finding]:
    found = []
    model = frames["model"].filter(pl.col("method") != drawing.BASELINE)
    if not model.is_empty():
        rows = model.filter(pl.col("mode") == "before_use").to_dicts()
        cells = [
            f"{drawing.short(row['method'])} {words.number(row['bits'], 2)} bits, {_increase(row)}"
            for row in drawing.front(rows, *drawing.LOSS)
        ]
        found.append(Finding(text=f"{drawing.loss_title(model)}.", evidence="; ".join(cells)))
        found += _windows(rows, drawing.origins(frames["caches"]))
    found += _latents(frames["latent"]) + _lost_keys(frames["keys"])
    tensors = drawing.summed(frames["tensors"]).filter(pl.col("output").is_not_null())
    for source in tensors["source"].unique(maintain_order=True).to_list():
        rows = tensors.filter(pl.col("source") == source).to_dicts()
        cells = [
            f"{drawing.short(row['method'])} {words.number(row['bits'], 2)} bits, "
            f"{words.percent(row['output'], 1)}"
            for row in drawing.front(rows, *drawing.ERROR)
        ]
        text = f"On {source} keys and values these have the least error of their size."
        found.append(Finding(text=text, evidence="; ".join(cells)))
    return found


def _latents(frame: pl.DataFrame) -> list[Finding]:
    """What formats of latents lose in the model that has them."""
    rows = frame.filter((pl.col("mode") == "before_use") & (pl.col("method") != LATENT_BASELINE))
    if rows.is_empty():
        return []
    worst = max(rows.to_dicts(), key=lambda row: row["increase"])
    cells = [
        f"{drawing.short(row['method'])} {words.number(row['bits'], 2)} bits, {_increase(row)}"
        for row in rows.sort("bits").iter_rows(named=True)
    ]
    text = (
        f"In the small model with latent attention no format of latents costs more than "
        f"{words.significant(worst['increase'], 2)} bits per byte "
        f"({drawing.short(worst['method'])})."
    )
    return [Finding(text=text, evidence="; ".join(cells))]


def _lost_keys(frame: pl.DataFrame) -> list[Finding]:
    """Through which methods the model finds fewer planted keys, at the greatest distance."""
    if frame.is_empty():
        return []
    found = []
    for model in frame["model"].unique(maintain_order=True).to_list():
        own = frame.filter(pl.col("model") == model)
        far = own.filter(pl.col("distance") == own["distance"].max()).to_dicts()
        fewer = [row for row in far if row["high"] < row["exact_bf16"]]
        cells = [
            f"{drawing.short(row['method'])} {words.number(row['bits'], 2)} bits, "
            f"{words.percent(row['exact'], 0)}"
            for row in sorted(fewer, key=lambda row: -row["exact"])
        ]
        row = far[0]
        text = (
            f"Of keys planted {row['distance']} bytes before, through {len(fewer)} of {len(far)} "
            f"methods the small model ({model}) finds fewer than the "
            f"{words.percent(row['exact_bf16'], 0)} through bfloat16."
        )
        found.append(Finding(text=text, evidence="; ".join(cells) or "none"))
    return found


def _windows(rows: Sequence[Row], origin: Mapping[str, str]) -> list[Finding]:
    """What methods lose without their windows, where both have been through the model."""
    known = {row["method"]: row for row in rows}
    pairs = [(known[whole], known[bare]) for bare, whole in origin.items()
             if bare in known and whole in known]  # fmt: skip
    if not pairs:
        return []
    more = sum(bare["increase"] > whole["increase"] for whole, bare in pairs)
    cells = [
        f"{drawing.short(whole['method'])} {words.percent(whole['exempt'], 1)} exempt, "
        f"{words.number(whole['bits'], 2)} bits, {_increase(whole)}; without "
        f"{words.number(bare['bits'], 2)} bits, {_increase(bare)}"
        for whole, bare in pairs
    ]
    text = f"Of {len(pairs)} methods with a window {more} lose more without it, at fewer bits."
    return [Finding(text=text, evidence=". ".join(cells))]


def _increase(row: Row) -> str:
    return _interval(row["increase"], row["low"], row["high"])


def _interval(middle: float, low: float, high: float) -> str:
    return f"{words.signed(middle, 4)} ({words.signed(low, 4)} to {words.signed(high, 4)})"


def _cache_table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("method", False, lambda row: row["method"]),
        ("family", False, lambda row: row["family"]),
        ("window 0 of", False, lambda row: row["window_0_of"] or words.DASH),
        ("bits/number", True, lambda row: words.number(row["bits"], 3)),
        ("bits at 32,768 tokens", True, lambda row: words.number(row["bits_at_length"], 3)),
        ("exempt at 32,768", True, lambda row: words.percent(row["exempt"], 2)),
        ("bytes/token, Llama-3-8B", True, lambda row: words.number(row["bytes_llama_3_8b"], 0)),
        ("bytes of the arrays", True, lambda row: f"{row['measured']:,}"),
    ]
    note = (
        "Bits of codes and metadata; then of the arrays of one layer of 8 heads of 128 numbers, "
        "with windows, sinks and padding; exempt is the share of tokens that stay in 16 bits "
        "there. Bytes of a token are without windows. Latent methods count one head, the latent "
        "and the rotary key of the models that their source serves."
    )
    return Table.of("caches", "What methods take", note, columns, frame)


def _model_table(name: str, title: str, frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("method", False, lambda row: row["method"]),
        ("mode", False, lambda row: drawing.MODE_NAMES[row["mode"]]),
        ("bits/number", True, lambda row: words.number(row["bits"], 3)),
        ("bytes/token", True, lambda row: words.number(row["bytes_per_token"], 0)),
        ("exempt", True, lambda row: words.percent(row["exempt"], 2)),
        ("bits per byte", True, lambda row: words.number(row["bits_per_byte"], 4)),
        ("increase (95 %)", True, _increase),
        ("KL median", True, lambda row: words.significant(row["kl_median"], 2)),
        ("KL 99 %", True, lambda row: words.significant(row["kl_percentile_99"], 2)),
        ("same likeliest byte", True, lambda row: words.percent(row["top1_agreement"], 2)),
    ]
    note = (
        "Held-out loss through the cache over that through a bfloat16 cache, on the same bytes: "
        "those behind the prompt, in both modes; intervals over documents, paired. KL in nats. "
        "Bits, bytes of all layers and the share of tokens that stay in 16 bits are those of a "
        "whole context; of a shorter one a window is a larger share. Layers that a method would "
        "leave in 16 bits are not left out here."
    )
    return Table.of(name, title, note, columns, frame)


def _key_table(frame: pl.DataFrame, record: Mapping[str, Any]) -> Table:
    columns: list[Column] = [
        ("method", False, lambda row: row["method"]),
        ("model", False, lambda row: row["model"]),
        ("bits/number", True, lambda row: words.number(row["bits"], 3)),
        ("distance, bytes", True, lambda row: str(row["distance"])),
        ("found whole", True, lambda row: words.percent(row["exact"], 0)),
        ("95 %", True, lambda row: " to ".join(
            words.percent(row[end], 0) for end in ("low", "high"))),
        ("of bfloat16", True, lambda row: words.percent(row["exact_bf16"], 0)),
        ("bits a digit", True, lambda row: words.number(row["bits_per_digit"], 3)),
        ("increase (95 %)", True, lambda row: _interval(
            row["increase"], row["increase_low"], row["increase_high"])),
    ]  # fmt: skip
    missing = [
        f"{model} at {distance} bytes ({words.percent(share, 0)})"
        for model, distance, share in record.get("unanswered", [])
    ]
    chance = ""
    if not frame.is_empty():
        row = frame.row(0, named=True)
        chance = (
            f" {row['cases']} keys of {row['digits']} hexadecimal digits at each distance; "
            f"guessing finds {row['chance_exact']:.1g} of them whole and takes "
            f"{row['chance_bits']:g} bits a digit."
        )
    note = (
        "A key planted in held-out text and asked for at the end of a window, every token through "
        "the cache (methods that choose tokens: behind an exact prompt, of which they keep a "
        f"quarter). Intervals: Wilson's, and paired by case.{chance} Left out, for bfloat16 finds "
        f"less than half there: {'; '.join(missing) or 'nothing'}."
    )
    return Table.of("keys", "Planted keys found", note, columns, frame)


def _tensor_table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("source", False, lambda row: row["source"]),
        ("method", False, lambda row: row["method"]),
        ("tokens", True, lambda row: f"{row['tokens']:,}"),
        ("bits/number", True, lambda row: words.number(row["bits"], 3)),
        ("exempt", True, lambda row: words.percent(row["exempt"], 2)),
        ("error of K", True, lambda row: words.percent(row["keys"], 2)),
        ("of V", True, lambda row: words.percent(row["values"], 2)),
        ("of scores, rms", True, lambda row: words.significant(row["scores"], 2)),
        ("KL of weights", True, lambda row: words.significant(row["divergence"], 2)),
        ("error of the output", True, lambda row: words.percent(row["output"], 2)),
        ("least to most", True, lambda row: " to ".join(
            words.percent(row[end], 2) for end in ("output_least", "output_most"))),
        ("samples", True, lambda row: str(row["samples"])),
    ]  # fmt: skip
    note = (
        "Relative Frobenius errors, medians over layers or draws, against float64 attention on "
        "the exact keys and values; the newest queries, after a prompt that fills the cache. "
        "Methods that choose tokens keep a quarter of them."
    )
    return Table.of("tensors", "Errors by method", note, columns, drawing.summed(frame))
