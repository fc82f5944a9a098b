"""What attention waits for: by method and device, and by what a latent attention caches."""

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from lowprec.report import style, words
from lowprec.report.kv_throughput_figure import Row, at, times_words, title_of, two
from lowprec.throughput.devices import get_device, list_devices

COLOURS = {
    "cache memory": "#0072b2",
    "attention products": "#d55e00",
    "dequantization": "#009e73",
}
MEANING = {
    "cache memory": "reading the cache",
    "attention products": "tensor cores",
    "dequantization": "dequantization",
}
ON_PHONE = ("h100", "h20", "b200", "rtx_4090")
COMPARED = ("h800", "h20")
LATENT, GROUPED = "latent, bf16", "8 KV heads, bf16"


def bounds(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """A matrix: nanoseconds of attention by method and device, coloured by what binds."""
    if frame.is_empty():
        return None
    title = bounds_title(frame)
    devices = [x for x in frame["device"].unique(maintain_order=True) if x not in ("h800",)]
    if narrow:
        devices = [x for x in devices if x in ON_PHONE]
    names = frame["form"].unique(maintain_order=True).to_list()
    with style.look(narrow):
        figure = style.start(narrow, 1.6 + 0.45 * len(names), 2.4 + 0.42 * len(names), title)
        axes = figure.subplots()
        for line, name in enumerate(names):
            for column, device in enumerate(devices):
                for row in at(frame, device=device, form=name).to_dicts():
                    _cell(axes, column, line, row, narrow)
        axes.set_xlim(-0.5, len(devices) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xticks(
            range(len(devices)),
            [title_of(x).removesuffix(" SXM").removesuffix(" 96 GB") for x in devices],
        )
        axes.set_yticks(range(len(names)), names)
        axes.grid(False)
        for side in axes.spines.values():
            side.set_visible(False)
        handles = [
            Line2D([], [], color=COLOURS[name], marker="s", linestyle="none", label=MEANING[name])
            for name in COLOURS
            if name in set(frame["bound"])
        ]
        style.legend(figure, handles, narrow)
    sentence = (
        "Llama-3-8B: nanoseconds of attention over one cached token of one layer, of a cache of "
        f"{frame['context'][0]:,} tokens, and below them the interval. Full colour: no other term "
        "can be the longest with both anywhere in their intervals; pale: not resolved. The H800 is "
        "as the H100. Cycles of dequantization are counted for FP8 on Hopper and reasoned "
        "elsewhere, and are lower bounds. Modelled."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def bounds_title(frame: pl.DataFrame) -> str:
    """How many methods wait for dequantization on which devices."""
    some = frame.filter(pl.col("device") != "h800")
    unpacked = some.filter(pl.col("dequantization_ns") > 0)
    bound = at(unpacked, bound="dequantization")
    cells = []
    for device in ("h100", "h20", "b200", "rtx_4090"):
        one, all_ = at(bound, device=device), at(unpacked, device=device)
        if len(all_):
            cells.append(f"{len(one)} of {len(all_)} on the {title_of(device)}")
    return (
        "Modelled: of the methods that unpack, attention waits for dequantization in "
        f"{words.listed(cells)}"
        if cells
        else "Modelled"
    )


def forms(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Two panels: rooflines of two devices with what is cached on them; and nanoseconds."""
    rows = frame.filter(pl.col("device").is_in(COMPARED))
    if rows.is_empty():
        return None
    title = forms_title(frame)
    names = rows["form"].unique(maintain_order=True).to_list()
    looks = style.styles(COMPARED)
    with style.look(narrow):
        figure = style.start(narrow, 4.8, 8.4, title)
        left, right = figure.subplots(*((2, 1) if narrow else (1, 2)))
        for device in COMPARED:
            _roof(left, at(rows, device=device), looks[device]["color"])
        _numbered(left, at(rows, device=COMPARED[0]), names)
        left.set_xscale("log")
        left.set_yscale("log")
        for axis in (left.xaxis, left.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
        left.set_xlabel("flop per byte of cache")
        left.set_ylabel("TFLOPS of attention, modelled")
        for place, device in enumerate(COMPARED):
            some = at(rows, device=device)
            y = [names.index(name) + 0.24 * (place - 0.5) for name in some["form"]]
            ends = [some["ns"] - some["low"], some["high"] - some["ns"]]
            right.errorbar(
                some["ns"],
                y,
                xerr=[x.clip(lower_bound=0).to_list() for x in ends],
                **looks[device],
                markersize=5,
                linestyle="none",
            )
        right.set_yticks(
            range(len(names)), [f"{place + 1}  {name}" for place, name in enumerate(names)]
        )
        right.set_ylim(len(names) - 0.5, -0.5)
        right.set_xscale("log")
        right.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        right.set_xlabel("ns a cached token and layer, modelled")
        handles = [style.handle(title_of(name), looks[name]) for name in COMPARED]
        style.legend(figure, handles, narrow)
    sentence = (
        "DeepSeek-V3's 128 query heads. Left: rooflines at the fitted share of the peaks; numbers "
        "mark what is cached, as on the right, on the roof or below it where dequantization binds. "
        "Right: nanoseconds over one cached token of one layer. Modelled; FlashMLA publishes 660 "
        "TFLOPS of the latent in bfloat16 on an H800."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def forms_title(frame: pl.DataFrame) -> str:
    """How much faster the latent is than grouped heads on either device."""
    cells = []
    for device in COMPARED:
        found = [at(frame, device=device, form=name) for name in (GROUPED, LATENT)]
        if any(x.is_empty() for x in found):
            return "Modelled"
        grouped, latent = (x.row(0, named=True) for x in found)
        faster = latent["ns"] <= grouped["ns"]
        pair = (grouped, latent) if faster else (latent, grouped)
        word = "faster" if faster else "slower"
        cells.append(f"{times_words(*pair, 'ns')} times {word} on the {title_of(device)}")
    return f"Modelled: attention over the latent is {cells[0]} than over 8 KV heads, and {cells[1]}"


def _cell(axes: Axes, column: int, line: int, row: Row, narrow: bool) -> None:
    colour = COLOURS[row["bound"]]
    axes.add_patch(
        Rectangle(
            (column - 0.48, line - 0.46),
            0.96,
            0.92,
            color=colour,
            alpha=0.9 if row["resolved"] else 0.25,
            linewidth=0,
        )
    )
    ink = "white" if row["resolved"] else style.INK
    size = 6.5 if narrow else 8.0
    axes.annotate(
        f"{two(row['ns'])}\n{two(row['low'])} to {two(row['high'])}",
        (column, line),
        ha="center",
        va="center",
        color=ink,
        fontsize=size,
    )


def _roof(axes: Axes, rows: pl.DataFrame, colour: str) -> None:
    """A device's roofline at the modelled rates, and its points where attention stands."""
    first = rows.row(0, named=True)
    if first["device"] not in list_devices():
        return
    device = get_device(first["device"])
    memory = first["bytes"] / first["memory_ns"]  # GB/s, as modelled
    share = memory * 1e9 / device.bandwidth
    x = np.geomspace(0.5, 2000, 200)
    y = np.minimum(share * device.peak(), x * memory * 1e9) / 1e12
    axes.plot(x, y, color=colour, linewidth=1.2)
    axes.plot(
        rows["flop"] / rows["bytes"],
        rows["flop"] / rows["ns"] / 1e3,
        color=colour,
        marker="o",
        linestyle="none",
        markersize=5,
    )


def _numbered(axes: Axes, rows: pl.DataFrame, names: list[str]) -> None:
    for row in rows.to_dicts():
        axes.annotate(
            str(names.index(row["form"]) + 1),
            (row["flop"] / row["bytes"], row["flop"] / row["ns"] / 1e3),
            (0, 5),
            textcoords="offset points",
            ha="center",
        )
