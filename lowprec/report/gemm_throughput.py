"""The results of experiments/gemm_throughput.py as files, and the report's section on them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lowprec.report import gemm_throughput_exchange_figure as exchange_drawing
from lowprec.report import gemm_throughput_figure as drawing
from lowprec.report import gemm_throughput_published_figure as published_drawing
from lowprec.report import shown, stored, words
from lowprec.report.digest import Column, Table
from lowprec.report.findings import Finding
from lowprec.report.kv_throughput_figure import at, spanned, title_of, two
from lowprec.report.kv_throughput_published_figure import percent
from lowprec.report.section import Section
from lowprec.study.gemm_exchange import ExchangeRow, TradeRow
from lowprec.study.gemm_throughput import GemmPublishedRow, LayerRow, RoleRow

SCRIPT = "experiments/gemm_throughput.py"
TABLES: Mapping[str, type] = {
    "layers": LayerRow,
    "roles": RoleRow,
    "exchange": ExchangeRow,
    "trades": TradeRow,
    "published": GemmPublishedRow,
}
"""Every table by name, with the rows it holds."""
TERMS = {
    "memory": "kernels that wait for memory",
    "products": "kernels that wait for work",
    "passes": "quantizing",
    "link": "links",
}
RATIO = ("ratio_low", "ratio_high")
SHOWN = (1, 8, 64, 256, 1024)
"""Batches that the tables name."""
Frames = Mapping[str, pl.DataFrame]


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


def write_gemm_throughput(results: Results, out: Path) -> Section:
    """Writes tables, `manifest.json` and figures into a directory; returns the section."""
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in results.frames.items():
        stored.write_frame(frame, out / f"{name}.csv")
    stored.write_manifest(results.manifest, out)
    section = gemm_throughput_section(results)
    shown.write_figures(section.figures, out)
    return section


def read_gemm_throughput(folder: Path) -> Section | None:
    """The section of what `write_gemm_throughput` wrote; None where the folder has no manifest.

    Raises:
      ValueError: a table is missing, lacks a column, or has another type in it.
    """
    frames = stored.read_tables(folder, TABLES, SCRIPT)
    if frames is None:
        return None
    return gemm_throughput_section(Results(frames=frames, manifest=stored.read_manifest(folder)))


def gemm_throughput_section(results: Results) -> Section:
    """The section of these results, its figures drawn anew."""
    frames, record = results.frames, results.manifest
    return Section(
        name="gemm_throughput",
        heading="Throughput of recipes, modelled",
        note=(
            "How long products of a recipe take on hardware that this project has not measured, "
            "from a model of kernels, quantizing passes and links: to two digits and an interval "
            "that holds nine tenths of held-out published figures when made without their source. "
            "Ratios of two recipes have an interval of their own, of published ratios."
        ),
        command=str(record.get("command", "")),
        date=str(record.get("date", "")),
        seconds=int(record.get("seconds", 0)),
        findings=_findings(frames, record.get("settings", {})),
        figures=_figures(frames),
        tables=gemm_throughput_tables(frames),
    )


def gemm_throughput_tables(frames: Frames) -> list[Table]:
    """The tables of the section, written for reading."""
    return [
        _published_table(frames["published"]),
        _best_table(frames["layers"]),
        _roles_table(frames["roles"]),
        _trades_table(frames["trades"]),
    ]


def best_layers(frame: pl.DataFrame) -> pl.DataFrame:
    """The fastest recipe, split and dispatch by device, model, devices and batch.

    `tied` names the recipes that published ratios of two recipes would let be as fast.
    """
    keys = ["device", "architecture", "devices", "batch"]
    rows = frame.filter(pl.col("batch").is_in(SHOWN))
    best = rows.sort("tokens_per_second", descending=True).unique(
        keys, keep="first", maintain_order=True
    )
    reach = (frame["times"] / frame["times_low"]).max()
    near = rows.join(best.select(*keys, top="tokens_per_second"), on=keys).filter(
        pl.col("tokens_per_second") * reach >= pl.col("top")
    )
    tied = near.group_by(keys, maintain_order=True).agg(tied=pl.col("recipe").unique().sort())
    return best.join(tied, on=keys, how="left", maintain_order="left").sort(
        "architecture", "device", "devices", "batch"
    )


def _figures(frames: Frames) -> list[shown.Shown]:
    drawn = (
        ("published", "Published against modelled", "published", published_drawing.published),
        ("recipes", "Recipes by tokens to an expert", "layers", drawing.recipes),
        ("splits", "Splits and dispatch of experts", "layers", drawing.splits),
        ("exchange", "What a bit is worth", "exchange", exchange_drawing.exchange),
    )
    found = [
        shown.show(f"gemm_throughput_{name}", heading, data, draw, frames[data])
        for name, heading, data, draw in drawn
    ]
    return [figure for figure in found if figure is not None]


def _findings(frames: Frames, settings: Mapping[str, Any]) -> list[Finding]:
    told = [
        (
            frames["published"],
            published_drawing.published_title,
            lambda frame: _fitted(frame, settings),
        ),
        (frames["layers"], drawing.recipes_title, _recipe_words),
        (frames["layers"], drawing.splits_title, _split_words),
        (frames["roles"], _roles_words, _roles_evidence),
        (frames["exchange"], exchange_drawing.exchange_title, lambda _: _trade_words(frames)),
    ]
    return [
        Finding(text=f"{title(frame)}.", evidence=evidence(frame))
        for frame, title, evidence in told
        if not frame.is_empty()
    ]


def _fitted(frame: pl.DataFrame, settings: Mapping[str, Any]) -> str:
    cells = [
        f"{name} {found}"
        for term, name in TERMS.items()
        if (found := published_drawing.miss_words(frame, term))
    ]
    shares = [
        f"{words.percent(settings.get(key), 0)} of {name}"
        for key, name in (
            ("memory_share", "memory's bandwidth"),
            ("products_share", "the tensor cores at the clock that power leaves"),
            ("link_share", "a link"),
        )
    ]
    launch, cache, collective = (
        words.significant(settings.get(key), 2)
        for key in ("kernel_microseconds", "cache_bytes_a_cycle", "collective_microseconds")
    )
    least, most = (percent(settings[x]) if x in settings else words.DASH for x in RATIO)
    checked, unseen, ratios = (
        f"{settings.get(x + '_inside', words.DASH)} of {settings.get(x + '_figures', words.DASH)}"
        for x in ("left_out", "unseen", "left_out_ratios")
    )
    return (
        f"fitted: {words.listed(shares)}, {launch} microseconds a kernel, {cache} bytes a cycle "
        f"and multiprocessor from the cache, {collective} microseconds a collective; intervals of "
        f"published against modelled time: {'; '.join(cells)}; made without a figure's own source "
        f"they hold {checked} held-out figures, and made without all that were read when the "
        f"model's form was settled {unseen} of those; published ratios of two recipes' times "
        f"against modelled ones: {least} to {most}, which holds {ratios} without their own source"
    )


def _recipe_words(frame: pl.DataFrame) -> str:
    rows = best_layers(at(frame, architecture=drawing.EXPERTS, devices=drawing.NODE))
    cells = [
        f"{title_of(row['device'])} {row['recipe']} {spanned(row, 'tokens_per_second')}, waits for "
        f"{row['bound']}"
        for row in at(rows, batch=drawing.ENDS[-1]).to_dicts()
    ]
    return (
        f"tokens per second of a device through the experts of one layer, {drawing.ENDS[-1]} to "
        f"each: {'; '.join(cells)}{drawing.padding(frame)}"
    )


def _split_words(frame: pl.DataFrame) -> str:
    rows = at(frame, architecture=drawing.EXPERTS, recipe=drawing.EXPERTS, split="expert",
              dispatch="quantized", batch=drawing.MANY)  # fmt: skip
    cells = [
        f"{title_of(row['device'])} on {row['devices']} devices "
        f"{words.percent(row['links'] / row['seconds'], 0)}"
        for row in rows.to_dicts()
    ]
    return f"share of the layer's time that links take, not overlapped: {'; '.join(cells)}"


def _roles_words(frame: pl.DataFrame) -> str:
    cells = []
    for device, recipe in (("h100", "deepseek_v3"), ("b200", "te_mxfp8"), ("b200", "nvfp4")):
        rows = at(frame, device=device, recipe=recipe)
        if rows.is_empty():
            continue
        whole, quantizing = float(rows["us"].sum()), float(rows["quantizing_us"].sum())
        times = float(rows["plain_us"].sum()) / whole
        ends = (two(times * rows[x][0]) for x in ("times_low", "times_high"))
        cells.append(
            f"{recipe} {two(times)} ({' to '.join(ends)}) times as fast on the {title_of(device)}, "
            f"{words.percent(quantizing / whole, 0)} of it quantizing"
        )
    if not cells:
        return "Modelled"
    return (
        "Modelled: of a linear layer's three products, with all operands quantized anew and "
        f"compared with bf16, {words.listed(cells)}"
    )


def _roles_evidence(frame: pl.DataFrame) -> str:
    sizes = at(frame, role="fprop").row(0, named=True)
    return (
        f"{sizes['m']:,} tokens, {sizes['k']:,} inputs, {sizes['n']:,} outputs; each operand is "
        "read as bfloat16, once more where its whole tensor is scaled, and written in its format; "
        "fused into no other kernel"
    )


def _trade_words(frames: Frames) -> str:
    trades = frames["trades"]
    cells = []
    for trade in trades["trade"].unique(maintain_order=True):
        verdicts = exchange_drawing.pays(trades, trade)
        told = [f"{verdict} on {', '.join(names)}" for verdict, names in verdicts.items()]
        cells.append(f"{trade}: {'; '.join(told)}")
    return "whether a trade pays where its bits are what is waited for: " + ". ".join(cells)


def _published_table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("device", False, lambda row: title_of(row["device"])),
        ("figure", False, lambda row: row["figure"]),
        ("what", False, lambda row: row["recipe"]),
        ("size", True, _size),
        ("published", True, lambda row: f"{row['published']:.4g} {row['unit']}"),
        ("modelled", True, lambda row: two(row["modelled"])),
        ("published time, against it", True, lambda row: percent(row["miss"])),
        ("waits for", False, lambda row: row["bound"]),
        ("role", False, lambda row: row["role"]),
        ("note", False, lambda row: row["note"]),
        ("source", False, lambda row: row["source"]),
    ]
    note = "Products M x N x K, and groups; rates and times as their sources have them."
    return Table.of("published", "Published figures", note, columns, frame)


def _size(row: dict[str, Any]) -> str:
    if not row["k"]:
        return f"{row['m']:,}" if row["m"] else words.DASH
    groups = f" x {row['groups']}" if row["groups"] > 1 else ""
    return f"{row['m']} x {row['n']} x {row['k']}{groups}"


def _best_table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("model", False, lambda row: row["architecture"]),
        ("device", False, lambda row: title_of(row["device"])),
        ("devices", True, lambda row: str(row["devices"])),
        ("batch", True, lambda row: f"{row['batch']:,}"),
        ("fastest", False, lambda row: row["recipe"]),
        ("split", False, lambda row: row["split"]),
        ("tokens/s a device", True, lambda row: spanned(row, "tokens_per_second")),
        ("times bf16, split alike", True, lambda row: spanned(row, "times", "times")),
        ("links", True, lambda row: words.percent(row["links"] / row["seconds"], 0)),
        ("waits for", False, lambda row: row["bound"]),
        ("not resolved from it", False, lambda row: ", ".join(
            x for x in row["tied"] if x != row["recipe"]) or "none"),
    ]  # fmt: skip
    note = (
        "By time alone, whatever a recipe loses, and whether or not a model's weights fit. Batch: "
        "tokens to an expert, or of a dense layer on all devices. layers.csv has all recipes, "
        "splits and batches; modelled."
    )
    return Table.of("layers", "The fastest recipe and split", note, columns, best_layers(frame))


def _roles_table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("device", False, lambda row: title_of(row["device"])),
        ("recipe", False, lambda row: row["recipe"]),
        ("role", False, lambda row: row["role"]),
        ("product, us", True, lambda row: two(row["product_us"])),
        ("quantizing, us", True, lambda row: two(row["quantizing_us"])),
        ("together, us", True, lambda row: spanned(row, "us")),
        ("waits for", False, lambda row: row["bound"]),
        ("as", False, lambda row: row["how"]),
    ]
    note = "Modelled; both operands quantized for each product, in kernels of their own."
    return Table.of("roles", "The products of training", note, columns, frame)


def _trades_table(frame: pl.DataFrame) -> Table:
    columns: list[Column] = [
        ("device", False, lambda row: title_of(row["device"])),
        ("trade", False, lambda row: row["trade"]),
        ("bits saved", True, lambda row: words.number(row["bits"], 2)),
        ("operations spent", True, lambda row: two(row["operations"])),
        ("worth over spent", True, lambda row: spanned(row, "times")),
        ("pays", False, lambda row: row["pays"]),
    ]
    note = (
        "An element's bits, of all copies that move, against operations of the scalar units on it. "
        "Operations are reasoned, or counted by FlashMLA for FP8 on Hopper; modelled."
    )
    return Table.of("trades", "Bits against operations", note, columns, frame)
