"""What the figures of accumulation share: panels, curves with intervals and bounds, settings."""

import re
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lowprec.report import style, words

HOPPER, LENGTH, PROMOTED = 13, 32, 128
"""The width, step and promotion interval of DeepSeek-V3's products on Hopper."""
DEPTH = 4096
LETTERS = 92
"""In a line of a title: digits and capitals are wide."""
ERROR = "relative error of sums"
NORM = "error |y - x| / |x|, |·| the root of the sum of squares"
BOUNDS: tuple[tuple[str, str, Any], ...] = (
    ("deterministic bound", "deterministic_bound", (0, (5, 2))),
    ("probabilistic bound", "probabilistic_bound", (0, (1, 1.5))),
)
"""Both bounds: their name, their column, and how they are dashed."""
BOUNDS_SENTENCE = (
    "Bounds are of the same norm: dashed always holds, dotted (97.8 % of errors) where they have "
    "mean zero, which truncation has not where all signs are equal."
)
_CLOSE = 1e-12
"""Errors below are drawn there: a logarithm has no zero."""


def setting(figure: Figure, narrow: bool, rows: pl.DataFrame, *, depth: str, length: str) -> None:
    """K, L, numbers, norm and seeds of a figure, above its legend.

    Args:
      rows: of the figure, with `outputs`, `seeds` and `seed`.
      depth, length: K and L.
    """
    row = rows.row(0, named=True)
    note(
        figure,
        narrow,
        f"K = {depth} products a sum, L = {length} products a step; E4M3 numbers as named above "
        f"each panel; {NORM} over {words.counted(row['outputs'], 'sum')} of "
        f"{words.counted(row['seeds'], 'seed')} from {row['seed']} on",
    )


def note(figure: Figure, narrow: bool, text: str) -> None:
    """Small print above the legend that the figure has, unbroken between a number and its noun."""
    text = re.sub(r" = |(?<=\d) (?=s(?:um|eed)s?\b)", lambda x: x[0].replace(" ", "\u00a0"), text)
    lines = textwrap.wrap(text, 56 if narrow else 140, break_on_hyphens=False)
    (legend,) = figure.legends
    legend.set_title("\n".join(lines))
    legend.get_title().set(fontsize=7.5 if narrow else 8.5, color=style.MUTED)


def panels(rows: pl.DataFrame, narrow: bool, heading: str) -> tuple[Figure, list[Axes], list[str]]:
    """A panel for each distribution, named above it."""
    names = rows["distribution"].unique(maintain_order=True).to_list()
    columns = 1 if narrow else 2
    lines = -(-len(names) // columns)
    figure = style.start(narrow, 1.5 + 2.8 * lines, 2.7 + 2.3 * lines, heading, LETTERS)
    shared: dict[str, Any] = {"squeeze": False, "sharey": True}
    grid = list(figure.subplots(lines, columns, **shared).flatten())
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(grid, names, strict=False):
        axes.set_title(words.label(name), loc="left")
    return figure, grid[: len(names)], names


def label(grid: Sequence[Axes], narrow: bool, across: str, up: str) -> None:
    """Names the axes at the left and at the bottom."""
    columns = 1 if narrow else 2
    for axes in grid[::columns]:
        axes.set_ylabel(up)
    for axes in grid[-columns:]:
        axes.set_xlabel(across)


def bounds(axes: Axes, rows: pl.DataFrame, across: str, color: str) -> None:
    """Both bounds of a curve in its colour."""
    for _, column, dashes in BOUNDS:
        axes.plot(rows[across], rows[column], color=color, linestyle=dashes, linewidth=1.1)


def bound_handles(color: str = style.INK) -> list[Line2D]:
    """The legend's entries of both bounds."""
    return [line(name, {"color": color}, dashes) for name, _, dashes in BOUNDS]


def with_bars(
    axes: Axes,
    rows: pl.DataFrame,
    across: str,
    column: str,
    look: style.Look,
    *,
    sign: int = 1,
    hollow: bool = False,
) -> None:
    """A curve with intervals; a gain whose interval holds zero, and what is zero, is left out."""
    stem = {"relative_error": "relative"}.get(column, column)
    ends = sorted([f"{stem}_low", f"{stem}_high"], reverse=sign > 0)
    value, low, high = (sign * rows[x].to_numpy() for x in (column, *reversed(ends)))
    low, high = np.minimum(low, high), np.maximum(low, high)
    kept = np.where(low > _CLOSE, value, np.nan)
    bars = np.nan_to_num(np.array([value - low, high - value]))
    drawn = axes.errorbar(
        rows[across], kept, yerr=bars, **look, linestyle="-", markersize=4.2, linewidth=1.3,
        elinewidth=1.0,
    )  # fmt: skip
    if hollow:
        drawn.lines[0].set_markerfacecolor("white")


def powers_of_two(axes: Axes, depths: list[int], narrow: bool) -> None:
    """A logarithmic axis of K."""
    axes.set_xscale("log", base=2)
    shown = depths[::2] if narrow else depths
    axes.set_xticks(shown, [str(k) for k in shown])
    axes.set_xticks([], minor=True)


def line(name: str, look: style.Look, dashes: Any = "-", *, hollow: bool = False) -> Line2D:
    """The legend's entry of a curve."""
    face: dict[str, Any] = {"markerfacecolor": "white"} if hollow else {}
    return Line2D([], [], **look, **face, linestyle=dashes, markersize=5, label=words.label(name))


def only(rows: pl.DataFrame, name: str, every: int) -> pl.DataFrame:
    """The rows of a distribution and a promotion interval."""
    return rows.filter(pl.col("distribution") == name, pl.col("promote_every") == every)


def at(rows: pl.DataFrame, name: str, bits: int, every: int, k: int | None = None) -> pl.DataFrame:
    """So with a width, and a depth where there is one."""
    found = only(rows, name, every).filter(pl.col("fraction_bits") == bits)
    return found if k is None else found.filter(pl.col("k") == k)
