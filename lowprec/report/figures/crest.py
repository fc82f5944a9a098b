"""Integers against floats of equal bits as blocks grow more peaked."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lowprec.report import style, words

FAMILIES: dict[str, tuple[str, style.Look]] = {
    "generalised_normal": ("generalised normal", {"color": "#0072b2", "marker": "o"}),
    "student_t": ("Student's t", {"color": "#d55e00", "marker": "s"}),
    "outlier": ("normal with one outlier", {"color": "#009e73", "marker": "^"}),
}


def crest_crossings(
    crest: pl.DataFrame, crossings: pl.DataFrame, *, narrow: bool = False
) -> style.Picture | None:
    """A panel for each pair of blocks: the integer's lead against the crest factor."""
    if crest.is_empty():
        return None
    pairs = crest["pair"].unique(maintain_order=True).to_list()
    heading = title(crossings)
    with style.look(narrow):
        columns = 1 if narrow else 2
        lines = -(-len(pairs) // columns)
        figure = style.start(narrow, 1.2 + 2.75 * lines, 1.6 + 2.3 * lines, heading)
        grid = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes in grid[len(pairs) :]:
            axes.set_visible(False)
        for axes, pair in zip(grid, pairs, strict=False):
            of_pair = pl.col("pair") == pair
            _panel(axes, crest.filter(of_pair), crossings.filter(of_pair))
        for axes in grid[::columns]:
            axes.set_ylabel("integer's lead, dB")
        for axes in grid[max(0, len(pairs) - columns) : len(pairs)]:
            axes.set_xlabel("mean crest factor of blocks, max / rms")
        handles = [style.handle(name, look) for name, look in FAMILIES.values()]
        predicted = Line2D([], [], color=style.INK, linestyle="--", linewidth=1.2)
        predicted.set_label("predicted (arXiv 2510.25602)")
        published = Line2D([], [], color=style.INK, linestyle=":", linewidth=1.2)
        published.set_label("published crossing")
        style.legend(figure, [*handles, predicted, published], narrow, columns=5)
    return style.Picture(figure=figure, title=heading, sentence=_sentence(crest))


def _panel(axes: Axes, rows: pl.DataFrame, crossings: pl.DataFrame) -> None:
    first = crossings.row(0, named=True)
    limit = first["limit"]
    for family, (_, look) in FAMILIES.items():
        points = rows.filter(pl.col("family") == family).sort("crest")
        axes.errorbar(
            points["crest"],
            points["difference_db"],
            yerr=(points["high"] - points["low"]) / 2,
            **look,
            markersize=4.5,
            linewidth=1.2,
            elinewidth=1.0,
        )
    axes.axhline(0, color=style.INK, linewidth=0.9)
    low, high = axes.get_ylim()
    start = float(min(rows["crest"]))
    curve = rows.sort("crest")
    axes.plot(
        curve["crest"],
        curve["predicted_db"],
        color=style.INK,
        linestyle="--",
        linewidth=1.2,
        zorder=1,
    )
    axes.set_ylim(low, high)
    axes.set_xlim(min(start - 0.1, first["published"] - 0.1), limit + 0.15)
    axes.axvline(limit, color=style.MUTED, linewidth=0.8)
    note = f"√{round(limit**2)}: no block beyond"
    if first["published"] > limit:
        note += f"\npublished crossing at {words.number(first['published'], 2)} →"
    axes.annotate(
        note,
        (limit, 0.97),
        (-4, 0),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        ha="right",
        va="top",
        color=style.MUTED,
        fontsize=8,
    )
    names = " against ".join(
        words.label(rows[column][0].removeprefix("block:"), 24)
        for column in ("integer", "floating")
    )
    axes.set_title(names, loc="left")
    if first["published"] <= limit:
        axes.axvline(first["published"], color=style.INK, linestyle=":", linewidth=1.2)


def title(crossings: pl.DataFrame) -> str:
    """The crest factors below which integers win, pair by pair."""
    said = []
    for pair in crossings["pair"].unique(maintain_order=True):
        rows = crossings.filter(pl.col("pair") == pair)
        downs = rows.filter(pl.col("outcome") == "integer to float")["crest"].to_list()
        if downs:
            ends = [words.number(end, 2) for end in (min(downs), max(downs))]
            span = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
            said.append(f"{pair} below {span}")
        elif all(outcome.startswith("integer") for outcome in rows["outcome"]):
            said.append(f"{pair} at every crest factor")
        else:
            said.append(f"{pair} at none")
    return f"Integers beat floats of equal bits: {words.listed(said)}"


def _sentence(crest: pl.DataFrame) -> str:
    blocks = words.counted(int(min(crest["blocks"])), "block")
    return (
        "Lead of the integer block in squared error over energy, averaged over blocks of equal "
        f"weight; at least {blocks} a point, both blocks on the same numbers, bars 95 % "
        "intervals. Each point is a distribution: a shape of the generalised normal, degrees of "
        "freedom of Student's t, or normal numbers with one outlier of a given size. Sizes of "
        "blocks vary within a binade."
    )
