"""Swamping: what long sums lose in narrow accumulators, beside their bounds."""

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lowprec.report import style, words
from lowprec.report.figures import accumulation_parts as parts

PLAIN, CHUNKS = "sequential.e6m9.nearest_even", "chunked.64.e6m9.e6m9"
_LOSS: style.Look = {"color": "#d55e00", "marker": "o"}
_ERROR: style.Look = {"color": "#0072b2", "marker": "s"}
_LOW, _HIGH = 1e-8, 100.0


def swamping(sums: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """A panel for each accumulator: the mean loss 1 - ratio, and the error beside its bounds."""
    if sums.is_empty():
        return None
    heading = title(sums)
    names = sums["engine"].unique(maintain_order=True).to_list()
    columns = 1 if narrow else 3
    lines = -(-len(names) // columns)
    with style.look(narrow):
        figure = style.start(narrow, 1.5 + 2.5 * lines, 2.7 + 1.9 * lines, heading, parts.LETTERS)
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flatten()
        for axes in grid[len(names) :]:
            axes.set_visible(False)
        plain = sums.filter(pl.col("engine") == PLAIN).sort("k")
        for axes, name in zip(grid, names, strict=False):
            _panel(axes, sums.filter(pl.col("engine") == name).sort("k"), plain)
            axes.set_title(words.label(name), loc="left")
            parts.powers_of_two(axes, sorted(set(sums["k"]))[:: 1 if narrow else 2], narrow)
        grid[0].set_ylim(_LOW, _HIGH)
        for axes in grid[::columns]:
            axes.set_ylabel("part of the sum")
        for axes in grid[max(0, len(names) - columns) : len(names)]:
            axes.set_xlabel("numbers in a sum, K")
        style.legend(figure, _handles(), narrow, columns=3)
        parts.note(figure, narrow, _setting(sums))
    sentence = (
        "chunked.N.inner.outer sums N numbers from zero, then the sums of chunks. The loss is 1 "
        "minus the mean of sum over exact sum, with 95 % intervals; hollow where sums are too "
        "large, left out where the interval holds zero (one in twenty misses it by chance). Dashed "
        "always holds, and leaves the panel where it grows exponentially; dotted holds for 97.8 % "
        "of errors that have mean zero, as stochastic rounding gives them. The distribution is "
        "that of the source's figure as we read it; not verified."
    )
    return style.Picture(figure=figure, title=heading, sentence=sentence)


def _setting(sums: pl.DataFrame) -> str:
    row = sums.row(0, named=True)
    depths = sums["k"]
    return (
        f"K = {min(depths)} to {max(depths)} numbers a sum, added one at a time (L = 1) but in "
        f"chunks; uniform, mean {row['mean']:g}, standard deviation {row['standard_deviation']:g}, "
        f"in fp16 (1,6,9); error: root mean square of (y - x) / x over "
        f"{words.counted(row['sums'], 'sum')} of "
        f"{words.counted(row['sums'], 'seed')} from {row['seed']} on"
    )


def _panel(axes: Axes, rows: pl.DataFrame, plain: pl.DataFrame) -> None:
    axes.plot(plain["k"], plain["relative_error"], color=style.GRID, linewidth=4, zorder=0)
    parts.with_bars(axes, rows, "k", "relative_error", _ERROR)
    parts.bounds(axes, rows, "k", _ERROR["color"])
    loss, low, high = (1 - rows[x].to_numpy() for x in ("ratio", "ratio_high", "ratio_low"))
    for sign in (1, -1):
        value, least, most = (loss, low, high) if sign == 1 else (-loss, -high, -low)
        kept = least > 0
        drawn = axes.errorbar(
            rows["k"].to_numpy()[kept], value[kept],
            yerr=np.array([value - least, most - value])[:, kept],
            **_LOSS, linestyle="none", markersize=6, elinewidth=1.2, zorder=3,
        )  # fmt: skip
        if sign == -1:
            drawn.lines[0].set_markerfacecolor("white")
    style.powers_of_ten(axes)


def _handles() -> list[Line2D]:
    return [
        parts.line("error of a sum", _ERROR),
        parts.line("mean loss, 1 - ratio", _LOSS, "none"),
        parts.line("mean excess, ratio - 1", _LOSS, "none", hollow=True),
        *parts.bound_handles(_ERROR["color"]),
        parts.line("error one by one, to nearest", {"color": style.GRID, "linewidth": 4}),
    ]


def title(sums: pl.DataFrame) -> str:
    """What the plain narrow sum loses of the longest sum, and what chunks lose."""
    k = max(sums["k"])
    last = {row["engine"]: row for row in sums.filter(pl.col("k") == k).to_dicts()}
    plain, chunks = last.get(PLAIN, {}), last.get(CHUNKS, {})
    lost = 1 - plain.get("ratio", float("nan"))
    return (
        f"Added one by one to fp16 (1,6,9), {k} numbers lose "
        f"{words.percent(lost, 1)} of their sum; in "
        f"chunks of 64 the error is {words.percent(chunks.get('relative_error'), 2)}"
    )
