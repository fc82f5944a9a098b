"""How scaled operands fall on a format's values: which codes a scaling uses."""

import math

import polars as pl
from matplotlib.axes import Axes

from lowprec import catalogue
from lowprec.report import comparisons, style, words
from lowprec.scaling import get_block

Panels = dict[str, dict[float, float]]
"""The share of elements by value, by block scaling."""
PANELS = 4
"""The most block scalings drawn."""
BARS = 40
"""The most values that get a bar each; more are drawn as one outline."""


def code_use(histogram: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """The share of elements on each value of the format, a panel for each block scaling."""
    rows = histogram.filter(pl.col("count") > 0)
    if rows.is_empty():
        return None
    first = rows.row(0, named=True)
    rows = rows.filter(pl.col("layer") == first["layer"], pl.col("operand") == first["operand"])
    blocks = comparisons.in_order(rows["block"])
    panels = {block: _shares(block, rows.filter(pl.col("block") == block)) for block in blocks}
    panels, others = _chosen(panels)
    where = f"{words.label(first['layer'], 60)} ({words.label(first['operand'], 24)})"
    title, sentence = _finding(panels, others, where)
    with style.look(narrow):
        columns = 1 if narrow else min(2, len(panels))
        lines = -(-len(panels) // columns)
        figure = style.start(narrow, 0.8 + 2.7 * lines, 1.0 + 2.3 * lines, title)
        grid = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        looks = style.styles(panels)
        for axes, (block, shares) in zip(grid, panels.items(), strict=False):
            _panel(axes, shares, looks[block]["color"], narrow)
            axes.set_title(words.label(block), loc="left")
            axes.set_ylabel("share of elements, %")
        for axes in grid[max(0, len(panels) - columns) : len(panels)]:
            axes.set_xlabel("value of the element's format, one step a code")
    return style.Picture(figure=figure, title=title, sentence=sentence)


def _shares(block: str, rows: pl.DataFrame) -> dict[float, float]:
    """The share of elements by value, with the values of the format that no element takes."""
    total = rows["count"].sum()
    counts = rows.group_by("value").agg(pl.col("count").sum())
    # -0 and 0 are one value here.
    shares = dict.fromkeys(_values(block), 0.0)
    for value, count in counts.iter_rows():
        shares[value + 0.0] = shares.get(value + 0.0, 0.0) + count / total
    return dict(sorted(shares.items()))


def _values(block: str) -> list[float]:
    """The finite values of a catalogued block's elements; none where the block is a user's own."""
    kind, _, name = block.rpartition(":")
    if kind not in ("", "block") or name not in catalogue.names("blocks"):
        return []
    values = get_block(name).element.values
    return [] if values is None else [float(v) + 0.0 for v in values if math.isfinite(v)]


def _panel(axes: Axes, shares: dict[float, float], color: str, narrow: bool) -> None:
    values, heights = list(shares), [100 * share for share in shares.values()]
    if len(values) <= BARS:
        axes.bar(range(len(values)), heights, color=color, width=0.78)
    else:
        edges = [index - 0.5 for index in range(len(values) + 1)]
        axes.stairs(heights, edges, fill=True, color=color)
    ticks = _ticks(values, 9 if narrow or len(values) > BARS else 15)
    axes.set_xticks(ticks, [_value(values[tick]) for tick in ticks])
    axes.grid(False, axis="x")
    axes.set_xlim(-0.8, len(values) - 0.2)


def _value(value: float) -> str:
    return words.significant(value, 2 if abs(value) < 10 else 4)


def _ticks(values: list[float], most: int) -> list[int]:
    """Positions to name: all, or evenly many on both sides of the middle."""
    if len(values) <= most:
        return list(range(len(values)))
    half, middle = most // 2, (len(values) - 1) // 2
    steps = [round(step * middle / half) for step in range(half + 1)]
    return sorted({p for s in steps for p in (middle - s, min(middle + s, len(values) - 1))})


def _chosen(panels: Panels) -> tuple[Panels, list[str]]:
    """The blocks to draw, those of the fewest values first, and the names of the others."""
    ordered = sorted(panels, key=lambda block: (len(panels[block]), block))
    return {block: panels[block] for block in ordered[:PANELS]}, ordered[PANELS:]


def _finding(panels: Panels, others: list[str], where: str) -> tuple[str, str]:
    zero = sorted(((shares.get(0.0, 0.0), block) for block, shares in panels.items()), reverse=True)
    ends = zero if len(zero) == 1 else [zero[0], zero[-1]]
    listed = words.listed([f"{words.percent(share)} with {block}" for share, block in ends])
    title = f"Elements of {where} that become zero: {listed}"
    details = []
    for block, shares in panels.items():
        top = shares[min(shares)] * (min(shares) < 0) + shares[max(shares)]
        entropy = -sum(share * math.log2(share) for share in shares.values() if share)
        details.append(
            f"{block} {words.percent(top)} and {words.number(entropy, 2)} bits on {len(shares)}"
        )
    rest = f" Not drawn: {words.listed(others)}." if others else ""
    return title, (
        "Share of scaled elements on each value; on the largest magnitude, and entropy on how "
        f"many values: {'; '.join(details)}.{rest}"
    )
