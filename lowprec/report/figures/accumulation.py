"""The error of accumulation against depth, width and promotion, beside its bounds."""

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
CHAINS: dict[tuple[int, int], tuple[str, style.Look]] = {
    (HOPPER, 0): ("13 bits, never promoted", {"color": "#d55e00", "marker": "o"}),
    (HOPPER, PROMOTED): ("13 bits, promoted every 128", {"color": "#0072b2", "marker": "s"}),
    (25, 0): ("25 bits, never promoted", {"color": "#009e73", "marker": "^"}),
}
"""The chains of `error_by_depth` by width and promotion interval."""
_FLOOR = 1e-9
_WIDTHS = (8, 10, 13, 16, 20, 25)
_ERROR = "relative error of sums"
_LETTERS = 92
"""In a line of a title: digits and capitals are wide."""
_CLOSE = 1e-12
"""Errors below are drawn there: a logarithm has no zero."""


def error_by_depth(errors: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """A panel for each distribution: the error over K beside both bounds."""
    rows = errors.filter(pl.col("fused_length") == LENGTH)
    if rows.is_empty():
        return None
    heading = depth_title(errors)
    with style.look(narrow):
        figure, grid, names = _panels(rows, narrow, heading)
        for axes, name in zip(grid, names, strict=True):
            for (bits, every), (_, look) in CHAINS.items():
                _chain(axes, _at(rows, name, bits, every).sort("k"), look)
            _powers(axes, sorted(set(rows["k"])), narrow)
        grid[0].set_ylim(_FLOOR, 2 * _top(rows))
        _label(grid, narrow, "products in a sum, K", _ERROR)
        handles = [_line(label, look, "-") for label, look in CHAINS.values()]
        handles.append(_line("deterministic bound", {"color": style.INK}, "--"))
        handles.append(_line("probabilistic bound", {"color": style.INK}, ":"))
        style.legend(figure, handles, narrow, columns=3)
    sentence = (
        "Root of the summed squared errors over that of the exact sums, of "
        f"{words.counted(rows['outputs'][0], 'sum')} in {rows['seeds'][0]} independent pairs of "
        "E4M3 matrices, against their exact product; 95 % intervals lie within the markers but "
        "where bars show. Bounds are of the same norm: dashed always holds, dotted (97.8 % of "
        "errors) where they have mean zero, which truncation has not where all signs are equal."
    )
    return style.Picture(figure=figure, title=heading, sentence=sentence)


def _top(rows: pl.DataFrame) -> float:
    """The largest bound that is drawn."""
    drawn = pl.any_horizontal(
        (pl.col("fraction_bits") == bits) & (pl.col("promote_every") == every)
        for bits, every in CHAINS
    )
    return max(rows.filter(drawn)["deterministic_bound"], default=1.0)


def depth_title(errors: pl.DataFrame) -> str:
    """What a chain and a promoted one lose on the first distribution."""
    name = errors["distribution"][0]
    cells = []
    for bits, every in CHAINS:
        row = _at(errors.filter(pl.col("fused_length") == LENGTH), name, bits, every, DEPTH)
        cells.append(words.percent(row["relative_error"][0], 2) if len(row) else words.DASH)
    chain, promoted, wide = cells
    return (
        f"On {name} a chain of {DEPTH} products at 13 bits loses {chain} of the sum, promoted "
        f"every 128 {promoted}, at 25 bits {wide}"
    )


def error_by_bits(errors: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Two panels over F: how much sums shrink, and what is left without that."""
    rows = errors.filter(pl.col("fused_length") == LENGTH, pl.col("k") == DEPTH)
    if rows.is_empty():
        return None
    heading = bits_title(errors)
    looks = _looks(rows)
    with style.look(narrow):
        figure = style.start(narrow, 4.6, 7.6, heading, _LETTERS)
        grid = figure.subplots(*((2, 1) if narrow else (1, 2)), sharex=True, sharey=True)
        for axes, column, label in zip(
            grid, ("gain", "residual"), ("shrinkage (gain, negated)", "residual"), strict=True
        ):
            for name, look in looks.items():
                for every, dashes in ((0, "-"), (PROMOTED, "--")):
                    of = _only(rows, name, every).sort("fraction_bits")
                    sign = -1 if column == "gain" else 1
                    _with_bars(axes, of, "fraction_bits", column, sign, look, dashes)
            axes.axvline(HOPPER, color=style.MUTED, linewidth=0.8)
            axes.annotate("Hopper FP8", (HOPPER, 0.98), (4, 0), va="top", color=style.MUTED,
                          xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                          fontsize=8)  # fmt: skip
            style.powers_of_ten(axes)
            axes.set_title(f"{label}, as a part of the sum", loc="left")
            axes.set_xticks(range(8, 26, 2 if not narrow else 4))
            if not narrow or column == "residual":
                axes.set_xlabel("fraction bits kept in a step, F")
        handles = [_line(name, look, "-") for name, look in looks.items()]
        handles.append(_line("never promoted", {"color": style.INK}, "-"))
        handles.append(_line("promoted every 128", {"color": style.INK}, "--"))
        style.legend(figure, handles, narrow)
    sentence = (
        f"Sums of {DEPTH} products, steps of {LENGTH}. Gain is the least-squares slope of sums on "
        "exact sums minus 1, the residual what is left without it, both as parts of the exact "
        "sums' norm, with 95 % intervals over seeds. Gains whose interval holds zero are left out. "
        "From F = 24 on the register stays at float32's 23 bits, and what a step keeps below them "
        "is cut toward zero."
    )
    return style.Picture(figure=figure, title=heading, sentence=sentence)


def bits_title(errors: pl.DataFrame) -> str:
    """How many more bits a chain needs for what promotion gives 13."""
    rows = errors.filter(pl.col("fused_length") == LENGTH, pl.col("k") == DEPTH)
    said = []
    for name in rows["distribution"].unique(maintain_order=True):
        bits = matching_bits(rows, name)
        said.append(f"{'more' if bits is None else bits} on {name}")
    return (
        "For the error of 13 bits promoted every 128, a chain that is never promoted must keep so "
        f"many bits: {words.listed(said)}"
    )


def matching_bits(rows: pl.DataFrame, name: str) -> int | None:
    """The least width whose unpromoted chain errs no more than 13 bits promoted every 128."""
    promoted = _at(rows, name, HOPPER, PROMOTED)
    if promoted.is_empty():
        return None
    wanted = promoted["relative_error"][0]
    enough = _only(rows, name, 0).filter(pl.col("relative_error") <= wanted)
    return None if enough.is_empty() else int(min(enough["fraction_bits"]))


def promotion_interval(errors: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """A panel for each distribution: the error over the promotion interval, a curve for each F."""
    if errors.is_empty():
        return None
    rows = errors.filter(pl.col("fused_length") == LENGTH, pl.col("k") == max(errors["k"]))
    heading = interval_title(errors)
    intervals = sorted(set(rows["promote_every"]) - {0})
    places = {every: place for place, every in enumerate([*intervals, 0])}
    with style.look(narrow):
        figure, grid, names = _panels(rows, narrow, heading)
        looks = {bits: {"color": c, "marker": m} for bits, c, m in zip(
            _WIDTHS, style.PALETTE, style.MARKERS, strict=False)}  # fmt: skip
        for axes, name in zip(grid, names, strict=True):
            for bits, look in looks.items():
                of = rows.filter(
                    pl.col("distribution") == name, pl.col("fraction_bits") == bits
                ).with_columns(
                    place=pl.col("promote_every").replace_strict(places, return_dtype=pl.Int64)
                )
                _with_bars(axes, of.sort("place"), "place", "relative_error", 1, look, "-")
            axes.set_xticks(range(len(places)), [*map(str, intervals), "never"])
            style.powers_of_ten(axes)
        _label(grid, narrow, "elements between promotions, N_C", _ERROR)
        handles = [_line(f"F = {bits}", look, "-") for bits, look in looks.items()]
        style.legend(figure, handles, narrow)
    sentence = (
        f"Sums of {max(errors['k'])} products, steps of {LENGTH}; every so many elements the chain "
        "is added to a float32 sum and begins again from zero. 95 % intervals over seeds. At "
        f"{LENGTH} each step is promoted, and what is left is the truncation within one step."
    )
    return style.Picture(figure=figure, title=heading, sentence=sentence)


def interval_title(errors: pl.DataFrame) -> str:
    """By what promotion divides the error at Hopper's width."""
    k = max(errors["k"])
    rows = errors.filter(pl.col("fused_length") == LENGTH, pl.col("k") == k)
    said = []
    for name in rows["distribution"].unique(maintain_order=True):
        promoted, never = (
            _at(rows, name, HOPPER, every)["relative_error"] for every in (PROMOTED, 0)
        )
        if len(promoted) and len(never):
            said.append(f"{times(never[0] / promoted[0])} on {name}")
    return (
        f"Over {k} products at 13 bits promotion every 128 divides the error by "
        f"{words.listed(said)}"
    )


def times(factor: float) -> str:
    """A factor with two digits or more, without a power of ten."""
    return words.number(factor, 1 if factor < 10 else 0)


def swamping(sums: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Sums over exact sums as they grow longer, a curve for each accumulator."""
    if sums.is_empty():
        return None
    heading = swamping_title(sums)
    names = sums["engine"].unique(maintain_order=True).to_list()
    looks: dict[str, style.Look] = {name: {"color": style.PALETTE[i], "marker": style.MARKERS[i]}
             for i, name in enumerate(names)}  # fmt: skip
    with style.look(narrow):
        figure = style.start(narrow, 4.2, 5.2, heading, _LETTERS)
        axes = figure.subplots()
        for name, look in looks.items():
            of = sums.filter(pl.col("engine") == name).sort("k")
            axes.plot(of["k"], of["ratio"], **look, markersize=5, linewidth=1.3)
        _powers(axes, sorted(set(sums["k"])), narrow)
        axes.set_ylim(0, 1.08)
        axes.set_xlabel("numbers in a sum, K")
        axes.set_ylabel("sum over the exact sum")
        style.legend(figure, [_line(n, x, "-") for n, x in looks.items()], narrow, columns=3)
    sentence = (
        f"Uniform numbers of mean 1 and standard deviation 1 in fp16 (1,6,9), mean over "
        f"{words.counted(sums['sums'][0], 'sum')}; 95 % intervals are within the markers. "
        "chunked.N.inner.outer sums N numbers from zero, then the sums of chunks."
    )
    return style.Picture(figure=figure, title=heading, sentence=sentence)


def swamping_title(sums: pl.DataFrame) -> str:
    """What the plain narrow sum keeps of the longest sum, and what chunks keep."""
    k = max(sums["k"])
    last = {row["engine"]: row["ratio"] for row in sums.filter(pl.col("k") == k).to_dicts()}
    plain = last.get("sequential.e6m9.nearest_even")
    chunks = last.get("chunked.64.e6m9.e6m9")
    return (
        f"Added one by one to fp16 (1,6,9), {k} numbers keep {words.percent(plain, 1)} of their "
        f"sum; in chunks of 64 {words.percent(chunks, 2)}"
    )


def _panels(rows: pl.DataFrame, narrow: bool, heading: str) -> tuple[Figure, list[Axes], list[str]]:
    names = rows["distribution"].unique(maintain_order=True).to_list()
    columns = 1 if narrow else 2
    lines = -(-len(names) // columns)
    figure = style.start(narrow, 1.2 + 2.7 * lines, 1.9 + 2.2 * lines, heading, _LETTERS)
    shared: dict[str, Any] = {"squeeze": False, "sharey": True}
    grid = list(figure.subplots(lines, columns, **shared).flatten())
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(grid, names, strict=False):
        axes.set_title(words.label(name), loc="left")
    return figure, grid[: len(names)], names


def _label(grid: Sequence[Axes], narrow: bool, across: str, up: str) -> None:
    columns = 1 if narrow else 2
    for axes in grid[::columns]:
        axes.set_ylabel(up)
    for axes in grid[-columns:]:
        axes.set_xlabel(across)


def _chain(axes: Axes, rows: pl.DataFrame, look: style.Look) -> None:
    _with_bars(axes, rows, "k", "relative_error", 1, look, "-")
    bounds: dict[str, Any] = {"deterministic_bound": "--", "probabilistic_bound": ":"}
    for column, dashes in bounds.items():
        axes.plot(rows["k"], rows[column], color=look["color"], linestyle=dashes, linewidth=1.2)
    style.powers_of_ten(axes)


def _with_bars(
    axes: Axes,
    rows: pl.DataFrame,
    across: str,
    column: str,
    sign: int,
    look: style.Look,
    dashes: Any,
) -> None:
    """A curve with intervals; a gain whose interval holds zero, and what is zero, is left out."""
    stem = {"relative_error": "relative"}.get(column, column)
    ends = sorted([f"{stem}_low", f"{stem}_high"], reverse=sign > 0)
    value, low, high = (sign * rows[x].to_numpy() for x in (column, *reversed(ends)))
    low, high = np.minimum(low, high), np.maximum(low, high)
    kept = np.where(low > _CLOSE, value, np.nan)
    bars = np.nan_to_num(np.array([value - low, high - value]))
    drawn = axes.errorbar(
        rows[across], kept, yerr=bars, **look, linestyle=dashes, markersize=4.2, linewidth=1.3,
        elinewidth=1.0,
    )  # fmt: skip
    if dashes == "--":
        drawn.lines[0].set_markerfacecolor("white")


def _powers(axes: Axes, depths: list[int], narrow: bool) -> None:
    axes.set_xscale("log", base=2)
    shown = depths[::2] if narrow else depths
    axes.set_xticks(shown, [str(k) for k in shown])
    axes.set_xticks([], minor=True)


def _line(label: str, look: style.Look, dashes: Any) -> Line2D:
    return Line2D([], [], **look, linestyle=dashes, markersize=5, label=words.label(label))


def _looks(rows: pl.DataFrame) -> dict[str, style.Look]:
    names = rows["distribution"].unique(maintain_order=True)
    return {
        name: {"color": style.PALETTE[i], "marker": style.MARKERS[i]}
        for i, name in enumerate(names)
    }


def _only(rows: pl.DataFrame, name: str, every: int) -> pl.DataFrame:
    return rows.filter(pl.col("distribution") == name, pl.col("promote_every") == every)


def _at(rows: pl.DataFrame, name: str, bits: int, every: int, k: int | None = None) -> pl.DataFrame:
    found = _only(rows, name, every).filter(pl.col("fraction_bits") == bits)
    return found if k is None else found.filter(pl.col("k") == k)
