"""What changing one ingredient of a recipe does to its error, coloured by the term that moves."""

import functools
from collections.abc import Mapping
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lowprec.report import style, words
from lowprec.report.ledger_figure import GROUPS
from lowprec.study.anatomy import CAPTURED, TOTAL

COLOURS: Mapping[str, str] = dict(zip(GROUPS, style.PALETTE, strict=True))
MARKERS = {"fprop": "o", "dgrad": "s", "wgrad": "^"}
KEYS = ["base", "ingredient", "value", "source", "role"]
NONE = "none"


def moves(frame: pl.DataFrame) -> pl.DataFrame:
    """A row for each change, source and role: the whole change, and the group that moves most."""
    of = {term: group for group, terms in GROUPS.items() for term in terms}
    changed = frame.filter(pl.col("ingredient") != NONE)
    groups = (
        changed.filter(pl.col("term") != TOTAL)
        .with_columns(group=pl.col("term").replace_strict(of))
        .group_by(*KEYS, "group", maintain_order=True)
        .agg(group_moved=pl.col("moved").sum())
        .sort(pl.col("group_moved").abs(), descending=True, maintain_order=True)
        .group_by(KEYS, maintain_order=True)
        .first()
    )
    total = changed.filter(pl.col("term") == TOTAL)
    return total.join(groups, on=KEYS, maintain_order="left")


def draw_of(base: str) -> Any:
    """The function that draws one base's figure."""
    return functools.partial(changes, base=base)


def changes(frame: pl.DataFrame, *, base: str, narrow: bool = False) -> style.Picture | None:
    """Points with intervals: the change of the whole error in dB, a line a change."""
    rows = moves(frame.filter(pl.col("base") == base))
    if rows.is_empty():
        return None
    title = changes_title(rows)
    lines = rows.select("ingredient", "value").unique(maintain_order=True).rows()
    sources = rows["source"].unique(maintain_order=True).to_list()
    with style.look(narrow):
        tall = 0.3 * len(lines)
        figure = style.start(narrow, 1.7 + tall, 2.4 + 1.15 * tall * len(sources), title)
        grid = (len(sources), 1) if narrow else (1, len(sources))
        panels = figure.subplots(*grid, sharey=True, sharex=narrow, squeeze=False).ravel()
        for axes, source in zip(panels, sources, strict=True):
            _panel(axes, rows.filter(pl.col("source") == source), lines, narrow)
            axes.set_title(f"{source} operands", loc="left")
            axes.set_xlabel("change of the error's energy, dB")
        panels[0].invert_yaxis()
        present = set(rows["group"])
        handles = [
            Line2D([], [], color=colour, linewidth=6, label=group)
            for group, colour in COLOURS.items()
            if group in present
        ]
        handles += [
            Line2D([], [], marker=marker, color=style.INK, linestyle="none", label=role)
            for role, marker in MARKERS.items()
        ]
        style.legend(figure, handles, narrow, columns=5)
    counts = [
        words.counted(rows.filter(pl.col("source") == source)["units"][0], noun)
        for source, noun in zip(sources, ("captured layer", "seed"), strict=False)
    ]
    sentence = (
        f"One ingredient of {base} changed at a time; means over {words.listed(counts)} with 95 % "
        "intervals, paired with the recipe as it is. To the left the error is smaller. The colour "
        "is of the term whose part of the error moves most."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def _panel(axes: Axes, rows: pl.DataFrame, lines: list[tuple[str, str]], narrow: bool) -> None:
    roles = rows["role"].unique(maintain_order=True).to_list()
    for row in rows.iter_rows(named=True):
        if row["change_db"] is None:
            continue
        aside = roles.index(row["role"]) - (len(roles) - 1) / 2
        place = lines.index((row["ingredient"], row["value"])) + 0.25 * aside
        colour = COLOURS[row["group"]]
        axes.plot([row["change_low"], row["change_high"]], [place] * 2, color=colour, lw=1.4)
        axes.plot(
            row["change_db"], place, MARKERS[row["role"]], color=colour, markersize=4.5,
            markeredgecolor="white", markeredgewidth=0.4,
        )  # fmt: skip
    axes.axvline(0, color=style.INK, linewidth=0.9, zorder=1)
    last, labels = "", []
    for place, (ingredient, value) in enumerate(lines):
        if ingredient != last and place:
            axes.axhline(place - 0.5, color=style.MUTED, linewidth=0.5)
        last = ingredient
        labels.append(words.label(f"{ingredient}: {value}", 26 if narrow else 44))
    axes.set_yticks(range(len(lines)), labels)
    axes.set_ylim(-0.6, len(lines) - 0.4)
    axes.grid(axis="y", visible=False)


def changes_title(rows: pl.DataFrame) -> str:
    """Which resolved change lowers the error on captured fprop operands most, which raises it."""
    own = rows.filter(
        pl.col("source") == CAPTURED, pl.col("role") == "fprop", pl.col("change_db").is_not_null()
    ).sort("change_db")
    if own.is_empty():
        return f"{rows['base'][0]} with one ingredient changed"
    lower, higher = own.filter(pl.col("change_high") < 0), own.filter(pl.col("change_low") > 0)
    said = [
        f"{name(row)} {verb} the error most, "
        f"{words.signed(row['change_db'], 1)} dB ({row['group']})"
        for verb, some, place in (("lowers", lower, 0), ("raises", higher, -1))
        if len(some)
        for row in [some.row(place, named=True)]
    ]
    missing = [
        f"none {verb} it beyond its interval"
        for verb, some in (("lowers", lower), ("raises", higher))
        if some.is_empty()
    ]
    text = f"Of {len(own)} changes to {own['base'][0]}, {words.listed(said + missing)}"
    engines = own.filter(pl.col("ingredient") == "engine")
    if len(engines):
        largest = max(abs(x) for x in engines["change_db"])
        amount = "less than 0.01" if largest < 0.005 else words.number(largest, 2)
        text += f"; another engine moves it by {amount} dB at most"
    return text.replace("less than 0.01 dB at most", "less than 0.01 dB")


def name(row: Mapping[str, Any]) -> str:
    """A change in words.

    Example:
      >>> name({"ingredient": "tile", "value": "64"})
      'tile 64'
    """
    return f"{row['ingredient']} {row['value']}"
