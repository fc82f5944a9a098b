"""KV methods: loss against bytes, and attention's error against bits."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lowprec.report import labels, style, words

Row = dict[str, Any]
BASELINE = "kv:bf16"
BITS = [1, 2, 3, 4, 6, 8, 12, 16]
WINDOWED = style.PALETTE[1]
LOSS, ERROR = ("bytes_per_token", "increase"), ("bits", "output")
"""Columns across and upward."""

SHARE = (
    "Squares with a name, and the stairs: no other method has less of both. Percents: the share of "
    "tokens that a window or sinks keep in 16 bits at this length; a line leads to the same method "
    "without them."
)
MODE_NAMES = {
    "before_use": "every token read through the cache",
    "exact_prefill": "the prompt read exactly",
}


def short(method: str) -> str:
    """A method's name without what kind of entry it is."""
    return method.partition(":")[2]


def front(rows: Sequence[Row], cost: str, loss: str) -> list[Row]:
    """Those of which no other has both less cost and less loss, by cost.

    >>> front([{"b": 1, "l": 2}, {"b": 2, "l": 3}, {"b": 3, "l": 1}], "b", "l")
    [{'b': 1, 'l': 2}, {'b': 3, 'l': 1}]
    """
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row[cost], row[loss])):
        if not best or row[loss] < best[-1][loss]:
            best.append(row)
    return best


def origins(caches: pl.DataFrame) -> dict[str, str]:
    """By the name of a method without its window, the method that has the window."""
    rows = caches.filter(pl.col("window_0_of").is_not_null())
    return dict(rows.select("method", "window_0_of").iter_rows())


def loss_by_bytes(
    model: pl.DataFrame, caches: pl.DataFrame, *, narrow: bool = False
) -> style.Picture | None:
    """Points with intervals: the increase of the loss against bytes of a token, a panel a mode."""
    rows = model.filter(pl.col("method") != BASELINE)
    modes = [mode for mode in MODE_NAMES if mode in rows["mode"].to_list()]
    if not modes:
        return None
    title = loss_title(rows)
    first = rows.row(0, named=True)
    with style.look(narrow):
        figure = style.start(narrow, 6.6, 5.4 * len(modes), title)
        grid = (len(modes), 1) if narrow else (1, len(modes))
        panels = figure.subplots(*grid, sharey=True, squeeze=False).ravel()
        drawn = []
        for axes, mode in zip(panels, modes, strict=True):
            drawn.append(_Panel(axes, rows.filter(pl.col("mode") == mode).to_dicts(), *LOSS))
            _loss_panel(drawn[-1], origins(caches))
            _bytes_axis(axes, first["bytes_per_token"] / first["bits"])
            axes.set_title(MODE_NAMES[mode], loc="left")
            axes.set_xlabel("bytes a token")
        for axes in panels if narrow else panels[:1]:
            axes.set_ylabel("increase of the loss, bits per byte")
        _legend(figure, caches, narrow)
        _name_points(figure, drawn, narrow)
    sentence = (
        f"The small model on {first['bytes']:,} bytes of {first['documents']} held-out documents, "
        f"windows of {first['context']} tokens, over the same model with an exact cache; 95 % "
        "intervals over documents. Bytes of all layers, those of the arrays at this length. "
        f"{SHARE}"
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


class _Panel(NamedTuple):
    """A panel's points, and the names of their columns across and upward."""

    axes: Axes
    rows: list[Row]
    cost: str
    loss: str


def _loss_panel(panel: _Panel, origin: Mapping[str, str]) -> None:
    best = _drawn_front(panel)
    _links(panel, origin)
    for row in panel.rows:
        chosen = row in best
        ends = [[row["increase"] - row["low"]], [row["high"] - row["increase"]]]
        panel.axes.errorbar(
            row[panel.cost],
            row["increase"],
            yerr=ends,
            elinewidth=0.8,
            **_look(row, chosen, origin),
        )
    axes = panel.axes
    axes.axhline(0, color=style.INK, linewidth=0.9, zorder=1)
    axes.set_yscale("symlog", linthresh=0.01)
    axes.yaxis.set_major_locator(FixedLocator([-0.01, 0, 0.01, 0.03, 0.1, 0.3, 1, 3]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _drawn_front(panel: _Panel) -> list[Row]:
    """The front's rows, once the stairs of it are drawn."""
    best = front(panel.rows, panel.cost, panel.loss)
    across, upward = ([row[name] for row in best] for name in (panel.cost, panel.loss))
    panel.axes.step(across, upward, where="post", color=style.PALETTE[4], linewidth=0.8, zorder=1)
    return best


def _look(row: Row, chosen: bool, origin: Mapping[str, str]) -> dict[str, Any]:
    """A square on the front, a circle elsewhere; hollow without the window, orange with it."""
    color = WINDOWED if row["exempt"] else style.PALETTE[0] if chosen else style.MUTED
    return {
        "color": color,
        "marker": "s" if chosen else "o",
        "markersize": 6 if chosen else 4,
        "markerfacecolor": "white" if row["method"] in origin else color,
        "zorder": 3 if chosen else 2,
    }


def _links(panel: _Panel, origin: Mapping[str, str]) -> None:
    """A line from every method with a window to the same without it."""
    found = {row["method"]: row for row in panel.rows}
    for bare, whole in origin.items():
        if bare in found and whole in found:
            ends = found[whole], found[bare]
            across, upward = ([row[name] for row in ends] for name in (panel.cost, panel.loss))
            panel.axes.plot(across, upward, color=WINDOWED, linewidth=0.8, zorder=1.5)


def _legend(figure: Figure, caches: pl.DataFrame, narrow: bool) -> None:
    """What hollow and orange points are, where there are any."""
    found = {"has a window": caches.filter(pl.col("exempt") > 0)["method"].to_list()}
    found["the same without it"] = list(origins(caches))
    looks: dict[str, style.Look] = {
        "has a window": {"color": WINDOWED, "marker": "o"},
        "the same without it": {
            "color": style.MUTED,
            "marker": "o",
            "markerfacecolor": "white",
        },
    }
    if not any(found.values()):
        return
    handles = [style.handle("no other has less of both", {"color": style.INK, "marker": "s"})]
    handles += [style.handle(name, looks[name]) for name, given in found.items() if given]
    style.legend(figure, handles, narrow)


def _name_points(figure: Figure, panels: Sequence[_Panel], narrow: bool) -> None:
    """Writes names of every panel's front and shares of windows, once all is where it stays."""
    figure.draw_without_rendering()
    for axes, rows, cost, loss in panels:
        best = front(rows, cost, loss)
        names = [(_called(row, row in best), (row[cost], row[loss])) for row in rows]
        others = [point for name, point in names if not name]
        labels.place(axes, [x for x in names if x[0]], others, 7.5 if narrow else 8.5)


def _called(row: Row, chosen: bool) -> str:
    """The name of a point of the front, with the share that a window exempts; of others that."""
    share = words.percent(row["exempt"], 0 if row["exempt"] >= 0.01 else 1)
    if not chosen:
        return share if row["exempt"] else ""
    return f"{short(row['method'])}, {share}" if row["exempt"] else short(row["method"])


def _bytes_axis(axes: Axes, each: float) -> None:
    """Bytes of a token below, bits of a number above: `each` bytes a bit."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_xlim()
    shown = [2.0**n for n in range(0, 40) if low <= 2.0**n <= high]
    shown += [1.5 * x for x in shown if 1.5 * x <= high]
    axes.xaxis.set_major_locator(FixedLocator(sorted(shown)))
    above = axes.secondary_xaxis(
        "top",
        functions=(functools.partial(np.multiply, 1 / each), functools.partial(np.multiply, each)),
    )
    above.xaxis.set_major_locator(FixedLocator(BITS))
    above.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    above.xaxis.set_minor_locator(NullLocator())
    above.set_xlabel("bits per number of K and V")


def _bits_axis(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(BITS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def loss_title(model: pl.DataFrame) -> str:
    """What loses least within so many bits, where every token is read through the cache."""
    rows = model.filter((pl.col("mode") == "before_use") & (pl.col("method") != BASELINE))
    if rows.is_empty():
        return "KV methods through the small model"
    cells = []
    for bits in (3.5, 4.6, 8.6):
        within = rows.filter(pl.col("bits") <= bits).sort("increase")
        if len(within):
            row = within.row(0, named=True)
            share = f" ({words.percent(row['exempt'], 0)} exempt)" if row["exempt"] >= 0.01 else ""
            cells.append(
                f"{short(row['method'])}{share} {words.signed(row['increase'], 4)} within "
                f"{bits:g} bits"
            )
    return f"Least loss of bits per byte: {words.listed(cells)}" if cells else "KV methods"


def errors_by_bits(
    tensors: pl.DataFrame, caches: pl.DataFrame, *, narrow: bool = False
) -> style.Picture | None:
    """Points: error of attention's output against bits, a panel a source."""
    rows = summed(tensors).filter(pl.col("output").is_not_null())
    sources = rows["source"].unique(maintain_order=True).to_list()
    if not sources:
        return None
    title = error_title(tensors)
    with style.look(narrow):
        figure = style.start(narrow, 6.2, 5.0 * len(sources), title)
        grid = (len(sources), 1) if narrow else (1, len(sources))
        panels = figure.subplots(*grid, squeeze=False).ravel()
        drawn = []
        for axes, source in zip(panels, sources, strict=True):
            some = rows.filter(pl.col("source") == source)
            drawn.append(_Panel(axes, some.to_dicts(), *ERROR))
            _error_panel(drawn[-1], origins(caches))
            axes.set_title(f"{source}, {some['tokens'].max():,} tokens", loc="left")
            axes.set_xlabel("bits per number of K and V")
        for axes in panels if narrow else panels[:1]:
            axes.set_ylabel("relative error of attention's output")
        _legend(figure, caches, narrow)
        _name_points(figure, drawn, narrow)
    sentence = (
        "Medians over layers or draws, lines from the least to the most; the newest queries on a "
        f"cache of so many tokens, and the bits of its arrays. {SHARE}"
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def _error_panel(panel: _Panel, origin: Mapping[str, str]) -> None:
    best = _drawn_front(panel)
    _links(panel, origin)
    for row in panel.rows:
        look = _look(row, row in best, origin)
        panel.axes.plot(
            [row["bits"]] * 2,
            [row["output_least"], row["output_most"]],
            color=style.PALETTE[4] if row in best else style.GRID,
            linewidth=1.0,
            zorder=1,
        )
        panel.axes.plot(row["bits"], row["output"], **look)
    _bits_axis(panel.axes)
    style.powers_of_ten(panel.axes)


def summed(tensors: pl.DataFrame) -> pl.DataFrame:
    """A row a method and source: medians over samples, and the ends of the output's errors."""
    return tensors.group_by("source", "method", maintain_order=True).agg(
        pl.col("tokens").first(),
        pl.col("bits", "exempt").first(),
        pl.col("keys", "values", "scores", "divergence", "output").median(),
        pl.col("output").min().alias("output_least"),
        pl.col("output").max().alias("output_most"),
        pl.len().alias("samples"),
    )


def error_title(tensors: pl.DataFrame) -> str:
    """The least errors of about 4.5 bits, by source."""
    rows = summed(tensors).filter(pl.col("output").is_not_null() & (pl.col("bits") <= 4.6))
    cells = []
    for source in rows["source"].unique(maintain_order=True).to_list():
        best = rows.filter(pl.col("source") == source).sort("output").row(0, named=True)
        cells.append(f"{short(best['method'])} ({words.percent(best['output'], 1)}, {source})")
    if not cells:
        return "Errors of attention under KV methods"
    return f"Least error of attention's output within 4.6 bits: {words.listed(cells)}"
