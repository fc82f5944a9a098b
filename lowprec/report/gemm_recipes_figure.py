"""All recipes by bits and error, and the best of them within a budget, by kind of operands."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lowprec.report import style, words
from lowprec.study.advise_candidates import MEASURING_STICKS

SHOWN = (("captured", "fprop"), ("gaussian", "fprop"))
"""Families and roles whose fronts are drawn."""
CEILING = 12.5
"""Bits per element up to which recipes are drawn."""
_LOOKS: dict[str, style.Look] = {
    "on": {"color": "#0072b2", "marker": "o"},
    "tied": {"color": "#e69f00", "marker": "D"},
    "behind": {"color": "#6b6b6b", "marker": "."},
}
_MEANING = {"on": "on the front", "tied": "not resolved from it", "behind": "behind it"}


_OPEN: style.Look = {"marker": "o", "mfc": "white", "linestyle": "none"}


def operands(family: str, role: str, k: int) -> str:
    """What a row's operands are, in words.

    Example:
      >>> operands("captured", "wgrad", 0), operands("student_t", "fprop", 4096)
      ('captured wgrad', 'Student t')
      >>> operands("card", "fprop", 2048)
      'cards fprop K = 2048'
    """
    if family == "card":
        return f"cards {role} K = {k}"
    if family == "captured":
        return f"captured {role}"
    return family.replace("_", " ").capitalize()


def lossy(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows of recipes that lose something of the operands."""
    return frame.filter(pl.col("sqnr_db").is_finite())


def distinct(frame: pl.DataFrame) -> pl.DataFrame:
    """One row for recipes that quantize alike, with a `label`: the shortest name, and how many."""
    names = pl.col("recipe").str.strip_prefix("recipe:")
    keys = ["family", "role", "k", "alike"]
    labels = (
        lossy(frame)
        .with_columns(name=names)
        .sort(pl.col("name").str.len_chars(), "name")
        .group_by(keys, maintain_order=True)
        .agg(
            label=pl.col("name").first()
            + pl.when(pl.len() > 1).then(pl.format(" (+{})", pl.len() - 1)).otherwise(pl.lit(""))
        )
    )
    first = frame.unique(keys, keep="first", maintain_order=True)
    found = first.join(labels, on=keys, maintain_order="left")
    order = found.select("family", "role", "k").unique(maintain_order=True).with_row_index("group")
    return found.join(order, on=["family", "role", "k"], maintain_order="left").sort(
        "group", "bits_per_element", "sqnr_db", maintain_order=True
    )


def fronts(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """SQNR over bits, a point a way to quantize, those on the front named; a panel by operands."""
    rows = distinct(frame).filter(pl.col("bits_per_element") <= CEILING)
    found = [
        rows.filter(pl.col("family") == family, pl.col("role") == role) for family, role in SHOWN
    ]
    panels = [some for some in found if not some.is_empty()]
    if not panels:
        return None
    title = fronts_title(frame)
    with style.look(narrow):
        tall = len(panels)
        figure = style.start(narrow, 1.2 + 4.3 * tall, 1.6 + 4.4 * tall, title)
        grid = figure.subplots(tall, 1, sharex=True, squeeze=False).ravel()
        for axes, some in zip(grid, panels, strict=True):
            _panel(axes, some, narrow)
            row = some.row(0, named=True)
            name = operands(row["family"], row["role"], row["k"])
            axes.set_title(f"{name}, {words.counted(row['units'], _unit(row))}", loc="left")
            axes.set_ylabel("SQNR, dB")
        grid[-1].set_xlabel(
            "bits per element, mean of both operands, scales of tiles and rows included"
        )
        handles = [
            Line2D([], [], **look, linestyle="none", label=_MEANING[state])
            for state, look in _LOOKS.items()
        ]
        style.legend(figure, handles, narrow)
    sentence = (
        "Means over layers of the model or over seeds, with 95 % intervals; a point stands for all "
        "recipes that quantize alike, (+n) of them besides the one named. What engines add is left "
        "out. A diamond has less SQNR than another of as many bits or fewer, but paired by unit "
        "the difference is not resolved."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def _unit(row: dict[str, object]) -> str:
    return "layer" if row["family"] == "captured" else "seed"


def _panel(axes: Axes, rows: pl.DataFrame, narrow: bool) -> None:
    for state in reversed(_LOOKS):
        some = rows.filter(pl.col("front") == state)
        axes.plot(
            some["bits_per_element"],
            some["sqnr_db"],
            **_LOOKS[state],
            linestyle="none",
            markersize=6,
            alpha=0.8,
        )
    best = rows.filter(pl.col("front") == "on").sort("bits_per_element")
    axes.vlines(best["bits_per_element"], best["sqnr_low"], best["sqnr_high"], color="#0072b2")
    axes.step(best["bits_per_element"], best["sqnr_db"], where="post", color=style.INK, lw=0.8)
    low, high = min(rows["bits_per_element"]), max(rows["bits_per_element"])
    axes.set_xlim(low - (0.62 if narrow else 0.24) * (high - low), high + 0.3)
    bottom, top = min(rows["sqnr_db"]), max(rows["sqnr_db"])
    apart = 0.06 * (top - bottom)
    axes.set_ylim(bottom - apart, top + 3 * apart)
    at = -1e9
    # Above and to the left of a front there is nothing: there the names stand, moved upward.
    for row in best.sort("sqnr_db").iter_rows(named=True):
        at = max(at + apart, row["sqnr_db"] + 0.2 * apart)
        axes.annotate(
            row["label"],
            (row["bits_per_element"], row["sqnr_db"]),
            (row["bits_per_element"] - 0.02 * (high - low), at),
            ha="right",
            va="bottom",
            fontsize=6.5 if narrow else 8,
            arrowprops={"arrowstyle": "-", "color": style.MUTED, "linewidth": 0.5},
        )


def fronts_title(frame: pl.DataFrame) -> str:
    """How many are on each front, and how many on both."""
    found = {}
    for family, role in SHOWN:
        rows = distinct(frame).filter(
            pl.col("family") == family,
            pl.col("role") == role,
            pl.col("bits_per_element") <= CEILING,
        )
        if not rows.is_empty():
            on = set(rows.filter(pl.col("front") == "on")["alike"])
            found[operands(family, role, rows["k"][0])] = on, len(rows)
    said = [f"{len(on)} of {count} on {name}" for name, (on, count) in found.items()]
    text = f"Of the ways to quantize, {words.listed(said)} operands keep most for their bits"
    if len(found) < 2:
        return text
    return f"{text}; {len(set.intersection(*(on for on, _ in found.values())))} do on both"


def best(frame: pl.DataFrame, leads: pl.DataFrame) -> pl.DataFrame:
    """The rows of the winners of a table of `BudgetRow`, with their leads and the label `rival`."""
    keys = ["family", "role", "k"]
    sticks = [pl.col("recipe").str.ends_with(ending) for ending in MEASURING_STICKS]
    rows = distinct(frame.filter(~pl.any_horizontal(sticks)))
    rivals = rows.select(*keys, runner_up="alike", rival="label")
    return (
        leads.join(rows, on=[*keys, "alike"], maintain_order="left")
        .join(rivals, on=[*keys, "runner_up"], how="left", maintain_order="left")
        .sort("group", "budget")
    )


def budgets(rows: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """The best SQNR within some budgets of bits, of the rows of `best`, a line a kind of operands.

    Open markers have a rival from which the lead is not resolved.
    """
    if rows.is_empty():
        return None
    limits = sorted(set(rows["budget"]))
    groups = rows.select("family", "role", "k").unique(maintain_order=True).rows()
    title = budgets_title(rows)
    colours = dict(zip(limits, style.PALETTE, strict=False))
    with style.look(narrow):
        tall = 0.42 * len(groups)
        figure = style.start(narrow, 1.4 + tall, 1.8 + 1.25 * tall, title)
        axes = figure.subplots()
        for place, key in enumerate(groups):
            own = rows.filter(
                pl.col("family") == key[0], pl.col("role") == key[1], pl.col("k") == key[2]
            )
            for row in own.iter_rows(named=True):
                colour = colours[row["budget"]]
                axes.plot([row["sqnr_low"], row["sqnr_high"]], [place] * 2, color=colour, lw=2)
                fill = "white" if row["unresolved"] else colour
                axes.plot(row["sqnr_db"], place, "o", color=colour, mfc=fill, markersize=6)
                if narrow:
                    continue
                axes.annotate(
                    row["label"],
                    (row["sqnr_db"], place),
                    (0, 5),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    fontsize=7,
                )
        axes.set_yticks(range(len(groups)), [operands(*key) for key in groups])
        axes.set_ylim(len(groups) - 0.5, -0.8)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.09)
        axes.set_xlabel("SQNR, dB")
        handles = [
            Line2D([], [], marker="o", color=colour, label=f"at most {limit:g} bits")
            for limit, colour in colours.items()
        ]
        if rows["unresolved"].sum():
            handles.append(Line2D([], [], **_OPEN, color=style.MUTED, label="lead not resolved"))
        style.legend(figure, handles, narrow)
    sentence = (
        "The recipe of most SQNR within each budget of bits per element, the mean of both "
        "operands; means and 95 % intervals over layers or seeds. The best was chosen on the same "
        "operands that it is shown on. Where the marker is open, its lead over some other recipe "
        "within the budget, paired by layer or seed, is not resolved. Recipes that try all scales "
        "are left out."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def budgets_title(rows: pl.DataFrame) -> str:
    """How far apart the kinds of operands are at the least budget."""
    low = rows.filter(pl.col("budget") == min(rows["budget"])).sort("sqnr_db")
    worst, top = low.row(0, named=True), low.row(-1, named=True)
    name = lambda row: operands(row["family"], row["role"], row["k"])
    return (
        f"The best recipe within {low['budget'][0]:g} bits keeps "
        f"{words.number(worst['sqnr_db'], 1)} dB on {name(worst)} operands and "
        f"{words.number(top['sqnr_db'], 1)} dB on {name(top)} ones"
    )
