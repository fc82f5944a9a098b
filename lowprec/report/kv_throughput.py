"""The results of experiments/kv_throughput.py as files, and the report's section on them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import kv_throughput_best_figure as best_drawing
from lowprec.report import kv_throughput_bound_figure as bound_drawing
from lowprec.report import kv_throughput_figure as drawing
from lowprec.report import kv_throughput_host_figure as host_drawing
from lowprec.report import kv_throughput_published_figure as published_drawing
from lowprec.report import shown, stored, words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.section import Section
from lowprec.study.kv_throughput import AttentionRow, ConstantRow, PublishedRow, ThroughputRow
from lowprec.study.kv_throughput_host import HostRow, RecomputeRow

SCRIPT = "experiments/kv_throughput.py"
TABLES: Mapping[str, type] = {
    "throughput": ThroughputRow,
    "attention": AttentionRow,
    "forms": AttentionRow,
    "host": HostRow,
    "recompute": RecomputeRow,
    "published": PublishedRow,
    "constants": ConstantRow,
}
"""Every table by name, with the rows it holds."""
Frames = Mapping[str, pl.DataFrame]
Row = dict[str, Any]
Tell = Callable[[pl.DataFrame], str]
"""What a table says, in words."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Results:
    """The tables by name, one frame each, and the manifest."""

    frames: Frames
    manifest: dict[str, Any]

    @classmethod
    def from_rows(cls, manifest: dict[str, Any], **rows: Sequence[Any]) -> "Results":
        """The frames of rows, by the names of `TABLES`."""
        frames = {name: stored.frame(rows[name], row) for name, row in TABLES.items()}
        return cls(frames=frames, manifest=manifest)


def write_kv_throughput(results: Results, out: Path) -> Section:
    """Writes tables, `manifest.json` and figures into a directory; returns the section."""
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in results.frames.items():
        stored.write_frame(frame, out / f"{name}.csv")
    stored.write_manifest(results.manifest, out)
    section = kv_throughput_section(results)
    shown.write_figures(section.figures, out)
    return section


def read_kv_throughput(folder: Path) -> Section | None:
    """The section of what `write_kv_throughput` wrote; None where the folder has no manifest.

    Raises:
      ValueError: a table is missing, lacks a column, or has another type in it.
    """
    frames = stored.read_tables(folder, TABLES, SCRIPT)
    if frames is None:
        return None
    return kv_throughput_section(Results(frames=frames, manifest=stored.read_manifest(folder)))


def kv_throughput_section(results: Results) -> Section:
    """The section of these results, its figures drawn anew."""
    frames, record = results.frames, results.manifest
    return Section(
        name="kv_throughput",
        heading="Decode throughput, modelled",
        note=(
            "What the bytes of a KV cache buy when decoding, from a model of each step's time: "
            "numbers of hardware that this project has not measured, to two digits and an "
            "interval. Bytes are those of the methods' arrays at each context, windows, sinks and "
            "metadata included; layers that a method leaves in 16 bits are not counted as such. "
            "Intervals of ratios set opposite ends against each other, and are the widest."
        ),
        command=str(record.get("command", "")),
        date=str(record.get("date", "")),
        seconds=int(record.get("seconds", 0)),
        findings=_findings(frames, record.get("settings", {})),
        figures=_figures(frames),
        tables=kv_throughput_tables(frames),
    )


def kv_throughput_tables(frames: Frames) -> list[Table]:
    """The tables of the section, written for reading."""
    return [
        _published_table(frames["published"]),
        _best_table(frames["throughput"]),
        _forms_table(frames["forms"]),
        _host_table(frames["host"]),
        _recompute_table(frames["recompute"]),
        _constants_table(frames["constants"]),
    ]


def _figures(frames: Frames) -> list[shown.Shown]:
    drawn = (
        ("published", "Published against modelled", "published", published_drawing.published),
        ("best", "The fastest method", "throughput", best_drawing.best),
        ("context", "Tokens per second by context", "throughput", drawing.by_context),
        ("batch", "Tokens per second by batch", "throughput", drawing.by_batch),
        ("largest", "Largest batch", "throughput", drawing.largest_batches),
        ("bounds", "What attention waits for", "attention", bound_drawing.bounds),
        ("forms", "Latent attention on an H800 and an H20", "forms", bound_drawing.forms),
        ("host", "A cache in the host's memory", "host", host_drawing.tiers),
        ("fetch", "Fetching against computing", "recompute", host_drawing.fetched),
    )
    found = [
        shown.show(f"kv_throughput_{name}", heading, data, draw, frames[data])
        for name, heading, data, draw in drawn
    ]
    return [figure for figure in found if figure is not None]


def _findings(frames: Frames, settings: Mapping[str, Any]) -> list[Finding]:
    told: list[tuple[str, Tell, Tell]] = [
        ("published", published_drawing.published_title, lambda frame: _fitted(frame, settings)),
        ("throughput", best_drawing.best_title, _resolved_words),
        ("throughput", drawing.context_title, _best_words),
        ("throughput", drawing.batch_title, _one_words),
        ("attention", bound_drawing.bounds_title, _bound_words),
        ("forms", bound_drawing.forms_title, _forms_words),
        ("host", host_drawing.tiers_title, _host_words),
        ("recompute", host_drawing.fetched_title, lambda _: "vLLM publishes 2 to 22 times"),
    ]
    return [
        Finding(text=f"{title(frames[name])}.", evidence=evidence(frames[name]))
        for name, title, evidence in told
        if not frames[name].is_empty()
    ]


def _fitted(frame: pl.DataFrame, settings: Mapping[str, Any]) -> str:
    terms = {
        "base": "weights and overhead",
        "memory": "reading the cache",
        "products": "tensor cores",
        "dequantization": "dequantization",
    }
    cells = [
        f"{name} {found}"
        for term, name in terms.items()
        if (found := published_drawing.miss_words(frame, term))
    ]
    share = words.percent(settings.get("memory_share"), 0)
    overhead = words.significant(settings.get("layer_microseconds"), 2)
    whole, inside = published_drawing.covered(frame)
    return (
        f"fitted: {share} of peak bandwidth, taken for all peaks, and {overhead} microseconds a "
        f"layer; published against modelled time, by term: {'; '.join(cells)}; "
        f"of {whole} figures of whole steps and prompts, used for nothing, {inside} are within the "
        "interval that these give"
    )


def _best_words(frame: pl.DataFrame) -> str:
    rows = drawing.at(best_drawing.best_rows(frame), architecture=drawing.MODEL)
    context = drawing.middle(frame)
    cells = [
        f"{drawing.title_of(row['device'])} {row['method']} "
        f"{drawing.spanned(row, 'tokens_per_second')}"
        for row in drawing.at(rows, context=context).to_dicts()
    ]
    return f"most tokens per second at the largest batch of {context:,}: {'; '.join(cells)}"


def _resolved_words(frame: pl.DataFrame) -> str:
    rows = drawing.at(best_drawing.best_rows(frame), architecture=drawing.MODEL)
    alone = int((rows["tied"].list.len() == 1).sum())
    return (
        f"by throughput alone, whatever a method loses; in {alone} of {len(rows)} no other "
        "method's interval overlaps that of the fastest"
    )


def _one_words(frame: pl.DataFrame) -> str:
    rows = drawing.at(frame, architecture=drawing.MODEL, device="h100", fill="one")
    some = rows.filter(pl.col("context") == pl.col("context").max())
    cells = [f"{row['method']} {drawing.spanned(row, 'tokens_per_second')}" for row in
             some.filter(pl.col("method").is_in(drawing.METHODS)).to_dicts()]  # fmt: skip
    at = f"{some['context'][0]:,} tokens" if len(some) else ""
    return f"tokens per second of one sequence on the H100 at {at}: {'; '.join(cells)}"


def _bound_words(frame: pl.DataFrame) -> str:
    unresolved = len(frame) - int(frame["resolved"].sum())
    return (
        f"the bound of {unresolved} of {len(frame)} pairs of method and device is not resolved: "
        "another term can be the longest within the intervals"
    )


def _forms_words(frame: pl.DataFrame) -> str:
    rows = frame.filter(pl.col("device").is_in(bound_drawing.COMPARED))
    cells = [
        f"{row['form']} on the {drawing.title_of(row['device'])} {drawing.spanned(row, 'ns')}"
        for row in rows.filter(
            pl.col("form").is_in([bound_drawing.GROUPED, bound_drawing.LATENT, "latent, fp8 656"])
        ).to_dicts()
    ]
    return f"nanoseconds a cached token and layer: {'; '.join(cells)}"


def _host_words(frame: pl.DataFrame) -> str:
    rows = host_best(host_drawing.longest(frame))
    cells = [
        f"{drawing.title_of(row['device'])} {row['arm']} "
        f"{drawing.spanned(row, 'tokens_per_second')}"
        for row in rows.filter(pl.col("read") == pl.col("read").min()).to_dicts()
    ]
    return f"tokens per second at the best batch, reading few tokens: {'; '.join(cells)}"


def host_best(frame: pl.DataFrame) -> pl.DataFrame:
    """The best batch of every arm, device, context and number of tokens read."""
    keys = ["device", "link", "context", "read"]
    found = []
    for (device, link, context, read), some in frame.group_by(keys, maintain_order=True):
        for name in host_drawing.ARMS:
            rows = host_drawing.arm(some, name)
            if name.startswith("rest"):
                rows = rows.filter(pl.col("away") > 0)
            if not rows.is_empty():
                best = rows.sort("tokens_per_second", "batch", descending=True).head(1)
                found.append(best.with_columns(arm=pl.lit(name)))
        del device, link, context, read
    return pl.concat(found) if found else frame.with_columns(arm=pl.lit(""))


def _published_table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("device", False, lambda row: drawing.title_of(row["device"])),
        ("figure", False, lambda row: row["figure"]),
        ("published", True, lambda row: f"{row['published']:g} {row['unit']}"),
        ("modelled", True, lambda row: drawing.spanned(row, "predicted", "predicted")),
        ("published time, against it", True, lambda row: published_drawing.percent(row["miss"])),
        ("role", False, lambda row: row["role"]),
        ("note", False, lambda row: row["note"]),
        ("source", False, lambda row: row["source"]),
    ]  # fmt: skip
    note = "Of speedups modelled over published. What is shown alone counts in no interval."
    return Table.of("published", "Published and modelled figures", note, columns, frame)


def _best_table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("model", False, lambda row: row["architecture"]),
        ("device", False, lambda row: drawing.title_of(row["device"])),
        ("context", True, lambda row: f"{row['context']:,}"),
        ("most tokens/s", False, lambda row: row["method"]),
        ("bits/number", True, lambda row: words.number(row["bits_per_element"], 2)),
        ("sequences", True, lambda row: drawing.whole(row["batch"])),
        ("tokens/s, modelled", True, lambda row: drawing.spanned(row, "tokens_per_second")),
        ("times bf16, modelled", True, _against_plain),
        ("bound", False, lambda row: row["bound"]),
        ("intervals that overlap it", False, lambda row: ", ".join(
            x for x in row["tied"] if x != row["method"]) or "none"),
    ]  # fmt: skip
    note = (
        "By throughput alone, whatever a method loses; at the largest batch that fits, weights as "
        "published. DeepSeek-V3: per device of 32 that share its weights, sequences of its own on "
        "each, what they send each other not counted. throughput.csv has all methods and batches."
    )
    return Table.of(
        "throughput", "The fastest method, modelled", note, columns, best_drawing.best_rows(frame)
    )


def _against_plain(row: Row) -> str:
    """A row's throughput over bfloat16's, with the widest interval; a dash where that is not."""
    if not row["tokens_per_second_plain"]:
        return words.DASH
    names = ("tokens_per_second", "low", "high")
    return drawing.times_words(row, {name: row[f"{name}_plain"] for name in names})


def _forms_table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("device", False, lambda row: drawing.title_of(row["device"])),
        ("cached", False, lambda row: row["form"]),
        ("bytes", True, lambda row: words.number(row["bytes"], 0)),
        ("flop/byte", True, lambda row: drawing.two(row["intensity"])),
        ("ridge", True, lambda row: drawing.two(row["ridge"])),
        ("memory, ns", True, lambda row: drawing.spanned(row, "memory_ns", "memory")),
        ("tensor cores, ns", True, lambda row: drawing.spanned(row, "products_ns", "products")),
        ("dequantization, ns", True, lambda row: drawing.spanned(
            row, "dequantization_ns", "dequantization")),
        ("attention, ns", True, lambda row: drawing.spanned(row, "ns")),
        ("bound", False, lambda row: row["bound"] + ("" if row["resolved"] else ", not resolved")),
    ]  # fmt: skip
    note = (
        "DeepSeek-V3's 128 heads over one cached token of one layer. Flop, bytes and ridge follow "
        "from shapes and peaks: no rate is in them, and no interval."
    )
    return Table.of("forms", "Attention by what is cached, modelled", note, columns, frame)


def _host_table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("device", False, lambda row: drawing.title_of(row["device"])),
        ("context", True, lambda row: f"{row['context']:,}"),
        ("read", True, lambda row: f"{row['read']:,}"),
        ("cache", False, lambda row: row["arm"]),
        ("sequences", True, lambda row: drawing.whole(row["batch"])),
        ("in the host", True, lambda row: drawing.whole(row["away"])),
        ("tokens/s, modelled", True, lambda row: drawing.spanned(row, "tokens_per_second")),
        ("bound", False, lambda row: row["bound"]),
    ]  # fmt: skip
    note = "The best batch of each, of the host's those with sequences there."
    return Table.of("host", "Device or host, modelled", note, columns, host_best(frame))


def _recompute_table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("device", False, lambda row: drawing.title_of(row["device"])),
        ("link", False, lambda row: row["link"]),
        ("method", False, lambda row: row["method"]),
        ("prompt", True, lambda row: f"{row['tokens']:,}"),
        ("fetch, s, modelled", True, lambda row: drawing.spanned(row, "fetch_seconds", "fetch")),
        ("compute, s, modelled", True, lambda row: drawing.spanned(
            row, "recompute_seconds", "recompute")),
        ("times, modelled", True, lambda row: drawing.spanned(row, "gain")),
    ]  # fmt: skip
    note = "Llama-3-8B; nothing else on the device or the link."
    return Table.of("recompute", "Fetch or compute, modelled", note, columns, frame)


def _constants_table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("of", False, lambda row: row["of"]),
        ("constant", False, lambda row: row["constant"].replace("_", " ")),
        ("value", True, lambda row: f"{row['value']:g}"),
        ("evidence", False, lambda row: row["evidence"]),
        ("source", False, lambda row: row["source"]),
        ("note", False, lambda row: row["note"]),
    ]
    note = "Peaks as their sources have them, dense and with float32 accumulation."
    return Table.of("constants", "Devices and links", note, columns, frame)
