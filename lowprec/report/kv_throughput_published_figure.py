"""What is published beside what the decode model predicts of it."""

import polars as pl
from matplotlib.axes import Axes

from lowprec.report import style, words
from lowprec.report.kv_throughput_figure import at, title_of, two

ROLES = {
    "fitted": "fitted",
    "held out": "held out, counts in the intervals",
    "shown": "held out, shown alone",
}


def times(frame: pl.DataFrame) -> pl.DataFrame:
    """The figures that are times or rates; speedups are no times."""
    return frame.filter(pl.col("unit") != "times")


def published(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Points: published over predicted time, a line a figure, coloured by its role."""
    rows = times(frame)
    if rows.is_empty():
        return None
    title = published_title(frame)
    looks = style.styles(ROLES)
    with style.look(narrow):
        tall = 0.26 * len(rows)
        figure = style.start(narrow, 1.8 + tall, 2.4 + tall, title)
        axes = figure.subplots()
        for place, row in enumerate(rows.to_dicts()):
            ends = [1 + row["low"], 1 + row["high"]]
            axes.plot(ends, [place] * 2, color=style.GRID, linewidth=6, zorder=1)
            axes.plot(1 + row["miss"], place, **looks[row["role"]], markersize=6, linestyle="none")
            if not narrow:
                _value(axes, place, f"{row['published']:g} {row['unit']}")
        axes.axvline(1, color=style.INK, linewidth=0.9, zorder=1)
        axes.set_xscale("log")
        ratios = [1 + miss for miss in rows["miss"]]
        axes.set_xlim(
            min(0.9, *ratios, *(1 + rows["low"])) / 1.05, max(ratios) * (1.1 if narrow else 2.6)
        )
        ticks = (1, 2, 5) if narrow else (1, 1.25, 1.5, 2, 3, 5)
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
        labels = [
            f"{title_of(row['device']).split()[0] if narrow else title_of(row['device'])}: "
            f"{words.label(row['figure'], 32) if narrow else row['figure']}"
            for row in rows.to_dicts()
        ]
        axes.set_yticks(range(len(rows)), labels, fontsize=6.5 if narrow else 9.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("published / modelled time")
        handles = [style.handle(label, looks[role]) for role, label in ROLES.items()]
        style.legend(figure, handles, narrow, columns=3)
    sentence = (
        "Right of the line: slower than modelled. Grey: the interval of the modelled time. What is "
        "published stands on the right where the figure is wide; rates are turned into times. One "
        "efficiency and one overhead are fitted on the H100's lines for Llama-3.1-8B; nothing else "
        "is. All other intervals span, term by term, the misses of what is fitted or held out and "
        "counts. Shown alone: a kernel that its authors call not optimized, and whole steps under "
        "load."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def _value(axes: Axes, place: int, text: str) -> None:
    axes.annotate(
        text,
        (0.995, place),
        xycoords=axes.get_yaxis_transform(),
        ha="right",
        va="center",
        color=style.MUTED,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        fontsize=8.5,
    )


def published_title(frame: pl.DataFrame) -> str:
    """How many figures are predicted, and the median and the range of their misses."""
    rows = at(times(frame), role="held out")
    if rows.is_empty():
        return "Modelled"
    least, middle, most = (
        percent(float(x))  # type: ignore[arg-type] - a number
        for x in (rows["miss"].min(), rows["miss"].median(), rows["miss"].max())
    )
    return (
        f"Modelled times, fitted on one device's lines, against {len(rows)} other published "
        f"figures: these differ from them by {least} to {most}, in the median {middle}"
    )


def covered(frame: pl.DataFrame) -> tuple[int, int]:
    """Figures of several terms together, and those of them within the interval."""
    whole = at(frame, term="whole")
    inside = whole.filter(pl.col("miss").is_between(pl.col("low"), pl.col("high")))
    return len(whole), len(inside)


def miss_words(frame: pl.DataFrame, term: str) -> str:
    """The range of a term's misses, as `-5.6 % to +67 %`."""
    rows = frame.filter(pl.col("term") == term, pl.col("role") != "shown")
    if rows.is_empty():
        return ""
    return f"{percent(rows['low'][0])} to {percent(rows['high'][0])}"


def percent(share: float) -> str:
    """A miss with its sign, to two digits.

    Example:
      >>> percent(0.041), percent(1.31)
      ('+4.1 %', '+130 %')
    """
    text = two(abs(100 * share))
    return f"{words.MINUS if share < 0 else '+' if share > 0 else ''}{text} %"
