"""The front of error against the cost proxy: what a step's bits buy."""

import math

import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lowprec.report import style, words
from lowprec.report.figures import accumulation_parts as parts
from lowprec.report.figures.accumulation import times
from lowprec.report.figures.accumulation_parts import HOPPER

PLACES: dict[str, style.Look] = {
    "never promoted": {"color": "#d55e00"},
    "promoted": {"color": "#0072b2"},
}
SHAPES = {8: "^", 16: "s", 32: "o"}
"""Markers by the length of a step."""


def error_cost_front(front: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """A panel for each distribution: every engine's error over its cost, and those on the front."""
    if front.is_empty():
        return None
    heading = title(front)
    names = front["distribution"].unique(maintain_order=True).to_list()
    with style.look(narrow):
        columns = 1 if narrow else 2
        lines = -(-len(names) // columns)
        figure = style.start(narrow, 1.5 + 3.2 * lines, 2.9 + 2.7 * lines, heading, parts.LETTERS)
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flatten()
        for axes in grid[len(names) :]:
            axes.set_visible(False)
        for axes, name in zip(grid, names, strict=False):
            _panel(axes, front.filter(pl.col("distribution") == name), narrow)
            axes.set_title(words.label(name), loc="left")
        for axes in grid[::columns]:
            axes.set_ylabel(parts.ERROR)
        for axes in grid[max(0, len(names) - columns) : len(names)]:
            axes.set_xlabel("cost proxy, bits a product")
        style.legend(figure, _handles(front), narrow, columns=4)
        lengths = sorted(set(front["fused_length"]))
        lengths = words.listed([str(length) for length in lengths])
        parts.setting(figure, narrow, front, depth=str(front["k"][0]), length=lengths)
    sentence = (
        "The proxy counts a multiplexer, a full adder or a "
        "flip-flop as one bit: aligners and normalizer, adder tree, register, and promotion's "
        "float32 register and its share of a float32 adder, over the products of a step; it is no "
        "area, and leaves out moving sums between units. Filled points are on the front, some "
        "labelled with F / N_C, N_C the promotion interval; rings are Hopper's 13 bits, alone and "
        f"promoted every 128. {parts.BOUNDS_SENTENCE}"
    )
    return style.Picture(figure=figure, title=heading, sentence=sentence)


def _panel(axes: Axes, rows: pl.DataFrame, narrow: bool) -> None:
    kinds = rows.with_columns(promoted=pl.col("promote_every") > 0)
    for key, group in kinds.group_by("promoted", "fused_length", "on_front", maintain_order=True):
        promoted, length, best = key
        look = PLACES["promoted" if promoted else "never promoted"]
        axes.plot(
            group["cost"],
            group["relative_error"],
            marker=SHAPES.get(int(str(length)), "D"),
            linestyle="none",
            markersize=5.5 if best else 3.8,
            markerfacecolor=look["color"] if best else "white",
            markeredgewidth=0.8,
            alpha=1.0 if best else 0.55,
            zorder=3 if best else 2,
            **look,
        )
    best = rows.filter("on_front").sort("cost")
    axes.plot(best["cost"], best["relative_error"], color=style.INK, linewidth=0.9, zorder=1)
    parts.bounds(axes, best, "cost", style.MUTED)
    hopper = rows.filter(
        pl.col("fraction_bits") == HOPPER,
        pl.col("fused_length") == max(rows["fused_length"]),
        pl.col("promote_every").is_in([0, 128]),
    )
    axes.plot(hopper["cost"], hopper["relative_error"], "o", markersize=12, markerfacecolor="none",
              markeredgecolor=style.INK, linestyle="none", zorder=4)  # fmt: skip
    style.powers_of_ten(axes)
    axes.margins(x=0.12)
    last = math.inf
    for row in best.iter_rows(named=True):
        # A label for each 0.8 decades, so that they keep apart.
        if math.log10(row["relative_error"]) > last - 0.8:
            continue
        last = math.log10(row["relative_error"])
        axes.annotate(
            _label(row), (row["cost"], row["relative_error"]), (-5, -3),
            textcoords="offset points", ha="right", va="top", fontsize=7.5, color=style.INK,
        )  # fmt: skip


def _label(row: dict[str, int]) -> str:
    every = row["promote_every"]
    return f"{row['fraction_bits']}/{every}" if every else f"{row['fraction_bits']}"


def _handles(front: pl.DataFrame) -> list[Line2D]:
    handles = [
        Line2D([], [], marker="o", linestyle="none", label=name, **look)
        for name, look in PLACES.items()
    ]
    handles += [
        Line2D([], [], marker=SHAPES.get(length, "D"), linestyle="none", color=style.MUTED,
               label=f"steps of {length}")
        for length in sorted(set(front["fused_length"]))
    ]  # fmt: skip
    handles.append(Line2D([], [], color=style.INK, linewidth=0.9, label="front"))
    return handles + parts.bound_handles(style.MUTED)


def title(front: pl.DataFrame) -> str:
    """What the widths of 13 bits cost with and without promotion, and what that buys."""
    rows = front.filter(
        pl.col("fraction_bits") == HOPPER, pl.col("fused_length") == max(front["fused_length"])
    )
    plain = rows.filter(pl.col("promote_every") == 0)
    promoted = rows.filter(pl.col("promote_every") == 128)
    if plain.is_empty() or promoted.is_empty():
        return "Error against the cost of a step"
    more = promoted["cost"][0] / plain["cost"][0] - 1
    said = [
        f"{times(a / b)} on {name}"
        for name, a, b in zip(
            plain["distribution"], plain["relative_error"], promoted["relative_error"], strict=True
        )
    ]
    best = front.filter("on_front")
    promoting = len(best.filter(pl.col("promote_every") > 0))
    return (
        f"Promotion every 128 adds {words.percent(more, 1)} to the bits of a 13-bit step and "
        f"divides the error by {words.listed(said)}; {promoting} of {len(best)} engines on the "
        "fronts promote"
    )
