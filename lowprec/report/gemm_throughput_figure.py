"""Modelled layers: tokens per second by recipe, and tensor against expert parallelism, by batch."""

from collections.abc import Sequence
from typing import Any

import polars as pl
from matplotlib.axes import Axes

from lowprec.report import style, words
from lowprec.report.kv_throughput_figure import at, spanned, title_of, two
from lowprec.throughput.links import NODE

Row = dict[str, Any]
EXPERTS = "deepseek_v3"
PLAIN = "bf16"
ENDS, MANY = (8, 1024), 128
"""Tokens of an expert that titles speak of: few and most for recipes, many for splits."""
PADDED = ("h20", "h800")
"""Devices whose products of few tokens are compared: the first has the faster memory."""
SPLITS = {
    ("expert", "quantized"): "experts whole, FP8 dispatch",
    ("expert", "bfloat16"): "experts whole, bf16 dispatch",
    ("tensor", "quantized"): "experts cut, FP8 gathered",
}


def recipes(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Rates of a node's experts over bfloat16's by batch, a line a recipe, a panel a device."""
    rows = _node(frame)
    if rows.is_empty():
        return None
    title = recipes_title(frame)
    names = [x for x in rows["recipe"].unique(maintain_order=True) if x != PLAIN]
    looks = style.styles(names)
    with style.look(narrow):
        figure, panels = _panels(rows, narrow, title)
        for axes, device in panels:
            here = at(rows, device=device)
            for name in names:
                some = at(here, recipe=name).sort("batch")
                axes.plot(some["batch"], some["times"], **looks[name], markersize=4)
            axes.axhline(1, color=style.INK, linewidth=0.9, zorder=1)
            _axis(axes, device)
        panels[0][0].set_ylabel("times bf16's rate, modelled")
        style.legend(figure, [style.handle(name, looks[name]) for name in names], narrow, columns=4)
    sentence = (
        f"The routed experts of one layer of DeepSeek-V3 on {NODE} devices, whole experts on each, "
        "tokens sent as the recipe quantizes them and back in bfloat16: tokens per second through "
        "that layer over those of bf16 there. Intervals, of published ratios, stand in the table "
        "and the title. Recipes that a device has no instruction for are promoted or dequantized. "
        "Modelled, not measured."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def recipes_title(frame: pl.DataFrame) -> str:
    """The fastest recipe on two devices at few and at many tokens, over bfloat16."""
    rows, told = _node(frame), []
    for batch in ENDS:
        cells = []
        for device in ("h800", "b200"):
            some = at(rows, device=device, batch=batch)
            if not some.is_empty():
                best = some.sort("times", descending=True).row(0, named=True)
                gain = spanned(best, "times", "times")
                where = f"{best['recipe']} on the {title_of(device)}"
                cells.append(f"{where}, {gain} times bf16's rate")
        if cells:
            told.append(f"at {batch} tokens to an expert {words.listed(cells)}")
    return f"Modelled, the fastest recipe: {'; '.join(told)}" if told else "Modelled"


def padding(frame: pl.DataFrame) -> str:
    """How much longer products of few tokens take on a device of slow tensor cores; or nothing."""
    slow, fast = (
        at(_node(frame), recipe=EXPERTS, batch=ENDS[0], device=x)["products"] for x in PADDED
    )
    if slow.is_empty() or fast.is_empty():
        return ""
    names = [title_of(x) for x in PADDED]
    return (
        f"; under {EXPERTS}, products of {ENDS[0]} tokens to an expert take the {names[0]} "
        f"{two(slow[0] / fast[0])} times as long as the {names[1]}, whose memory is slower, for "
        "their tiles are padded to 64 rows"
    )


def _node(frame: pl.DataFrame) -> pl.DataFrame:
    """Whole experts on one node, tokens sent quantized."""
    return at(frame, architecture=EXPERTS, split="expert", dispatch="quantized", devices=NODE)


def splits(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Time of an expert layer over batch by split and dispatch, over the fastest of them."""
    rows = at(frame, architecture=EXPERTS, recipe=EXPERTS, devices=NODE)
    if rows.is_empty():
        return None
    title = splits_title(frame)
    looks = style.styles(SPLITS.values())
    with style.look(narrow):
        figure, panels = _panels(rows, narrow, title)
        for axes, device in panels:
            here = at(rows, device=device)
            for (split, dispatch), name in SPLITS.items():
                some = at(here, split=split, dispatch=dispatch).sort("batch")
                axes.plot(some["batch"], some["over_least"], **looks[name], markersize=4)
            _axis(axes, device)
        panels[0][0].set_ylabel("time over the least, modelled")
        handles = [style.handle(name, looks[name]) for name in SPLITS.values()]
        style.legend(figure, handles, narrow, columns=3)
    sentence = (
        f"The routed experts of one layer of DeepSeek-V3 under its recipe on {NODE} devices, time "
        "over the least of the three. Cut, every device reads a share of all experts, and the "
        "tokens of all; products of few columns fill its tiles worse. Nothing overlaps with a "
        "link. No published figure says how far these ratios err; the intervals of the times, in "
        "layers.csv, are wider than they are. Modelled, not measured."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def splits_title(frame: pl.DataFrame) -> str:
    """What cutting experts, and what bfloat16 dispatch, cost at many tokens."""
    rows = at(frame, architecture=EXPERTS, recipe=EXPERTS, devices=NODE, batch=MANY)
    cells = []
    for device in ("h800", "h20", "b200"):
        here = at(rows, device=device)
        base = at(here, split="expert", dispatch="quantized")
        cut, plain = at(here, split="tensor"), at(here, split="expert", dispatch="bfloat16")
        if base.is_empty() or cut.is_empty() or plain.is_empty():
            continue
        least = base["over_least"][0]
        worse = [two(x["over_least"][0] / least) for x in (cut, plain)]
        cells.append(f"{' and '.join(worse)} on the {title_of(device)}")
    if not cells:
        return "Modelled"
    return (
        f"Modelled: at {MANY} tokens to an expert, cutting experts among devices, or sending bf16 "
        f"to whole ones, takes so many times as long as whole experts and FP8 dispatch: "
        f"{words.listed(cells)}"
    )


def _panels(rows: pl.DataFrame, narrow: bool, title: str) -> tuple[Any, Sequence[tuple[Axes, str]]]:
    devices = rows["device"].unique(maintain_order=True).to_list()
    figure = style.start(narrow, 4.2, 3.0 + 2.0 * len(devices), title)
    grid = (len(devices), 1) if narrow else (1, len(devices))
    panels = figure.subplots(*grid, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[-1:] if narrow else panels:
        axes.set_xlabel("tokens to an expert")
    return figure, list(zip(panels, devices, strict=True))


def _axis(axes: Axes, device: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 8, 64, 512], ["1", "8", "64", "512"])
    axes.minorticks_off()
    axes.set_title(title_of(device).removesuffix(" SXM").removesuffix(" HGX"), loc="left")
