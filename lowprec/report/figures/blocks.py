"""SQNR against bits per element of block scalings alone: one tensor, or some, without a product."""

import math

import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lowprec.report import comparisons, style, words

BASELINES = ("format:float32", "format:bfloat16")
"""What is drawn as a line: the types that tensors come in."""


def tensor_errors(tensors: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """A point for each block scaling, named beside it: the median tensor and the quartiles."""
    rows = tensors.filter(pl.col("sqnr_db").is_finite(), ~pl.col("block").is_in(BASELINES))
    floors = {
        name: comparisons.median(tensors.filter(pl.col("block") == name)["sqnr_db"])
        for name in BASELINES
    }
    if rows.is_empty():
        return None
    points = (
        rows.group_by("block")
        .agg(
            pl.col("bits_per_element").median().alias("bits"),
            pl.col("sqnr_db").median().alias("middle"),
            pl.col("sqnr_db").quantile(0.25, "linear").alias("low"),
            pl.col("sqnr_db").quantile(0.75, "linear").alias("high"),
        )
        .sort("bits", "middle", "block")
    )
    title = _title(points)
    with style.look(narrow):
        figure = style.start(narrow, 5.2, 3.6 + 0.19 * len(points), title)
        axes = figure.subplots()
        _draw(axes, points, floors, narrow)
        axes.set_xlabel("bits per element, scales included")
        axes.set_ylabel("SQNR, dB")
        if narrow:
            # No room beside the points: a legend names them, the best first.
            looks = style.styles(points["block"])
            names = points.sort("middle", descending=True)["block"]
            handles = [style.handle(name, looks[name]) for name in names]
            style.legend(figure, handles, narrow)
    return style.Picture(figure=figure, title=title, sentence=_sentence(rows, floors))


def _draw(axes: Axes, points: pl.DataFrame, floors: dict[str, float | None], narrow: bool) -> None:
    looks = style.styles(points["block"])
    for row in points.iter_rows(named=True):
        look = looks[row["block"]]
        axes.vlines(row["bits"], row["low"], row["high"], color=look["color"], linewidth=2)
        axes.plot(
            row["bits"], row["middle"], **look, markersize=7, markeredgecolor="white", zorder=3
        )
    half = floors["format:bfloat16"]
    known = [] if half is None or not math.isfinite(half) else [half]
    ends = [*points["low"], *points["high"], *known]
    room = max(max(ends) - min(ends), 1.0)
    axes.set_ylim(min(ends) - 0.1 * room, max(ends) + 0.15 * room)
    least, most = min(points["bits"]), max(points["bits"])
    span = max(most - least, 1.0)
    # Names stand right of their points.
    axes.set_xlim(least - 0.06 * span, most + (0.06 if narrow else 0.26) * span)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if not narrow:
        _name(axes, points, 0.038 * (1.25 * room), span, looks)
    for (name, value), dashes in zip(floors.items(), ("--", ":"), strict=True):
        style.floor_line(axes, value, name, dashes)


def _name(
    axes: Axes, points: pl.DataFrame, gap: float, span: float, looks: dict[str, style.Look]
) -> None:
    """Names the points of a cluster in a column right of it, apart from each other."""
    clusters: list[list[dict[str, float]]] = []
    for row in points.iter_rows(named=True):
        if clusters and row["bits"] - clusters[-1][-1]["bits"] < 0.15 * span:
            clusters[-1].append(row)
        else:
            clusters.append([row])
    for cluster in clusters:
        cluster.sort(key=lambda row: row["middle"])
        right = max(row["bits"] for row in cluster) + 0.035 * span
        for row, height in zip(cluster, spread([r["middle"] for r in cluster], gap), strict=True):
            color = looks[str(row["block"])]["color"]
            axes.annotate(
                words.label(str(row["block"]), 28),
                (row["bits"], row["middle"]),
                (right, height),
                va="center",
                arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkB": 4},
            )


def spread(heights: list[float], gap: float) -> list[float]:
    """Ascending heights moved as little as needed to lie `gap` apart.

    Example:
      >>> spread([1.0, 1.0, 9.0], 2.0)
      [0.0, 2.0, 9.0]
    """
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _bottom(groups[-1], gap) < _top(groups[-2], gap) + gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_bottom(group, gap) + gap * index for group in groups for index in range(len(group))]


def _bottom(group: list[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _top(group: list[float], gap: float) -> float:
    return _bottom(group, gap) + gap * (len(group) - 1)


def _title(points: pl.DataFrame) -> str:
    best = points.sort("middle", descending=True).row(0, named=True)
    least = points.filter(pl.col("bits") == points["bits"].min()).sort("middle").row(-1, named=True)
    lead = f"{best['block']} keeps {_at(best)}"
    return lead if best == least else f"{lead}, {least['block']} {_at(least)}"


def _at(row: dict[str, float]) -> str:
    return f"{words.number(row['middle'])} dB at {words.number(row['bits'], 2)} bits"


def _sentence(rows: pl.DataFrame, floors: dict[str, float | None]) -> str:
    names = comparisons.in_order(rows["name"])
    which = words.label(names[0], 60) if len(names) == 1 else words.counted(len(names), "tensor")
    lines = [
        f"{name} {'exact' if value == math.inf else f'at {words.number(value)} dB'}"
        for name, value in floors.items()
        if value is not None
    ]
    tail = f"; the lines are the floors, {words.listed(lines)}" if lines else ""
    what = "SQNR" if len(names) == 1 else "Median SQNR, with the interquartile range,"
    return f"{what} of quantizing {which} with each block scaling{tail}."
