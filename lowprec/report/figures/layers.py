"""SQNR by layer and role: where in the model the error arises."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lowprec.report import comparisons, style, words

LABELS = 48
"""The most layers that are named; of more, every so many."""


def error_by_layer(products: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """A dot for each layer and recipe, layers as rows in order, a panel for each role."""
    rows = comparisons.with_series(products)
    lossy = comparisons.lossy(rows)
    places = comparisons.in_order(lossy["place"])
    if len(places) < 2:
        return None
    roles, (title, sentence) = comparisons.roles(lossy), finding(lossy)
    with style.look(narrow):
        step = min(0.17 if narrow else 0.23, (6.5 if narrow else 11) / len(places))
        tall = max(1.2, step * len(places))
        figure = style.start(narrow, 1.9 + tall, 2.1 + (tall + 0.35) * len(roles), title)
        shape = (len(roles), 1) if narrow else (1, len(roles))
        panels = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False).flatten()
        looks = style.styles(lossy["series"])
        names = comparisons.by_bits(rows)
        positions = {place: index for index, place in enumerate(places)}
        for axes, role in zip(panels, roles, strict=True):
            _panel(axes, rows.filter(pl.col("role") == role), names, looks, positions)
            axes.set_title(role, loc="left")
            if (at := comparisons.floor(rows, comparisons.FLOAT32, role)) is not None:
                # Some 80 dB above all else: on the axis it would flatten them.
                off_scale = f"{comparisons.FLOAT32} {at:.1f} dB, off scale →"
                axes.set_title(off_scale, loc="right", fontsize=8)
        _name_layers(panels[0], places, narrow)
        for axes in panels[-1:] if narrow else panels:
            axes.set_xlabel("SQNR, dB")
        style.legend(figure, _handles(rows, names, looks), narrow, columns=5)
    return style.Picture(figure=figure, title=title, sentence=sentence)


def _panel(
    axes: Axes,
    rows: pl.DataFrame,
    names: list[str],
    looks: dict[str, style.Look],
    positions: dict[str, int],
) -> None:
    for name in names:
        points = rows.filter(pl.col("series") == name)
        where = [positions[place] for place in points["place"]]
        axes.plot(
            points["sqnr_db"],
            where,
            **looks[name],
            linestyle="none",
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.4,
            clip_on=False,
        )
    floor = rows.filter(pl.col("recipe") == comparisons.BF16, pl.col("place").is_in([*positions]))
    floor = floor.unique("place", maintain_order=True)
    where = [positions[place] for place in floor["place"]]
    axes.plot(floor["sqnr_db"], where, color=style.INK, linestyle=":", linewidth=1.1)


def _name_layers(axes: Axes, places: list[str], narrow: bool) -> None:
    """Names the rows, without the beginning that all names share up to a dot."""
    shared = _shared(places)
    every = -(-len(places) // LABELS)
    limit = 18 if narrow else 32
    names = [words.label(place.removeprefix(shared), limit) for place in places[::every]]
    axes.set_yticks(range(0, len(places), every), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(places) - 0.3, -0.7)
    if shared:
        axes.set_ylabel(f"layer ({words.label(shared, 24)}…)")
    else:
        axes.set_ylabel("layer")


def _shared(places: list[str]) -> str:
    """The beginning up to a dot that all names have."""
    first, last = min(places), max(places)
    same = next(
        i for i in range(len(first) + 1) if first[: i + 1] != last[: i + 1] or i == len(first)
    )
    return first[: first[:same].rfind(".") + 1]


def _handles(rows: pl.DataFrame, names: list[str], looks: dict[str, style.Look]) -> list[Line2D]:
    handles = [style.handle(name, looks[name]) for name in names]
    if comparisons.floor(rows, comparisons.BF16) is not None:
        floor = Line2D([], [], color=style.INK, linestyle=":", linewidth=1.1)
        floor.set_label(comparisons.BF16)
        handles.append(floor)
    return handles


def finding(lossy: pl.DataFrame) -> tuple[str, str]:
    """The layer that most recipes find hardest, and how far the layers lie apart."""
    worst = lossy.sort("sqnr_db", maintain_order=True).unique("series", maintain_order=True)
    votes = worst.group_by("place", "role", maintain_order=True).len().sort("len", descending=True)
    hardest = votes.sort("len", "place", "role", descending=[True, False, False]).row(0, named=True)
    spread = lossy.group_by("series").agg(
        (pl.col("sqnr_db").max() - pl.col("sqnr_db").min()).alias("spread")
    )
    series = words.counted(len(worst), "recipe")
    title = (
        f"{words.label(hardest['place'], 60)} in {hardest['role']} has the lowest SQNR for "
        f"{hardest['len']} of {series}"
    )
    if 2 * hardest["len"] <= len(worst) and len(worst) > 1:
        title = f"No product has the lowest SQNR for most of {series}"
    sentence = (
        f"SQNR of every product of {words.counted(lossy['place'].n_unique(), 'layer')} in the "
        f"model's order; a recipe's best and worst products lie "
        f"{words.number(comparisons.median(spread['spread']))} dB apart (median over {series})."
    )
    return title, sentence
