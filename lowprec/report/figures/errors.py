"""SQNR against bits per element: what a recipe costs and what it keeps."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lowprec.report import comparisons, style, words


def error_by_bits(products: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """One point for each recipe in a panel for each role: the median layer and the quartiles."""
    rows = comparisons.with_series(products)
    lossy = comparisons.lossy(rows)
    if lossy.is_empty():
        return None
    quartiles = lossy.group_by("series", "role").agg(
        pl.col("bits_per_element").median().alias("bits"),
        pl.col("sqnr_db").median().alias("middle"),
        pl.col("sqnr_db").quantile(0.25, "linear").alias("low"),
        pl.col("sqnr_db").quantile(0.75, "linear").alias("high"),
    )
    roles, title = comparisons.roles(lossy), _title(lossy)
    with style.look(narrow):
        figure = style.start(narrow, 4.9, 1.2 + 2.3 * len(roles), title)
        shape = (len(roles), 1) if narrow else (1, len(roles))
        panels = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False).flatten()
        looks = style.styles(lossy["series"])
        names = comparisons.by_bits(rows)
        _limit(panels[0], quartiles, comparisons.floor(rows, comparisons.BF16))
        for axes, role in zip(panels, roles, strict=True):
            _panel(axes, quartiles.filter(pl.col("role") == role), names, looks)
            for baseline, dashes in ((comparisons.FLOAT32, "--"), (comparisons.BF16, ":")):
                style.floor_line(axes, comparisons.floor(rows, baseline, role), baseline, dashes)
            axes.set_title(role, loc="left")
        for axes in panels if narrow else panels[:1]:
            axes.set_ylabel("SQNR, dB")
        for axes in panels[-1:] if narrow else panels:
            axes.set_xlabel("bits per element, scales included")
        style.legend(figure, [style.handle(name, looks[name]) for name in names], narrow, 4)
    return style.Picture(figure=figure, title=title, sentence=_sentence(rows))


def _limit(axes: Axes, quartiles: pl.DataFrame, bf16: float | None) -> None:
    """Limits that hold the points and the bf16 floor, with room for its words."""
    ends = [*quartiles["low"], *quartiles["high"], *([] if bf16 is None else [bf16])]
    bits = quartiles["bits"].to_list()
    room = max(max(ends) - min(ends), 1.0)
    axes.set_ylim(min(ends) - 0.08 * room, max(ends) + 0.2 * room)
    axes.set_xlim(min(bits) - 0.5, max(bits) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def _panel(
    axes: Axes, points: pl.DataFrame, names: list[str], looks: dict[str, style.Look]
) -> None:
    for name in names:
        for row in points.filter(pl.col("series") == name).iter_rows(named=True):
            look = looks[name]
            axes.vlines(row["bits"], row["low"], row["high"], color=look["color"], linewidth=2)
            axes.plot(
                row["bits"], row["middle"], **look, markersize=7, markeredgecolor="white", zorder=3
            )


def _title(lossy: pl.DataFrame) -> str:
    pair = comparisons.lowest_bits(lossy)
    if pair is not None:
        return pair.title()
    name, role = comparisons.by_bits(lossy)[0], comparisons.roles(lossy)[0]
    one = lossy.filter((pl.col("series") == name) & (pl.col("role") == role))
    value, bits = (comparisons.median(one[key]) for key in ("sqnr_db", "bits_per_element"))
    return (
        f"{name} reaches {words.number(value)} dB in {role} at {words.number(bits, 2)} bits "
        "per element"
    )


def _sentence(rows: pl.DataFrame) -> str:
    layers = words.counted(rows["place"].n_unique(), "layer")
    floors = [
        f"{name} at {words.number(value)} dB"
        for name in comparisons.BASELINES
        if (value := comparisons.floor(rows, name)) is not None
    ]
    tail = f"; the lines are the floors, {words.listed(floors)} over all roles" if floors else ""
    return (
        f"Each point is the median SQNR of a recipe's products over {layers}, each bar their "
        f"interquartile range{tail}."
    )
