"""NVFP4's squared error by how it is rounded, beside the published figures."""

import polars as pl
from matplotlib.lines import Line2D

from lowprec.report import style, words

OURS, PUBLISHED = "#0072b2", "#d55e00"
NEAREST, SQUARED = "block:nvfp4", "block:nvfp4_4over6_mse"
RANDOM = ("block:nvfp4_stochastic_guarded", "block:nvfp4_ms_eden")


def squared_errors(rounding: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """A row for each rounding, least error first: ours, and what was published."""
    if rounding.is_empty():
        return None
    rows = rounding.sort("mean_squared_error")
    heading = title(rounding)
    with style.look(narrow):
        figure = style.start(narrow, 1.5 + 0.34 * len(rows), 2.4 + 0.36 * len(rows), heading)
        axes = figure.subplots()
        for place, row in enumerate(rows.iter_rows(named=True)):
            error = 1000 * row["mean_squared_error"]
            axes.hlines(place, 0, error, color=style.GRID, linewidth=5, zorder=1)
            axes.plot(error, place, "o", color=OURS, markersize=7, zorder=3)
            axes.annotate(
                words.number(error, 2),
                (error, place),
                (10, 0),
                textcoords="offset points",
                va="center",
                color=OURS,
            )
            if row["published"] is not None:
                axes.plot(
                    1000 * row["published"],
                    place,
                    "|",
                    color=PUBLISHED,
                    markersize=19,
                    markeredgewidth=2.5,
                    zorder=2,
                )
        names = [name.removeprefix("block:") for name in rows["target"]]
        axes.set_yticks(range(len(rows)), names)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, (1.3 if narrow else 1.14) * 1000 * max(rows["mean_squared_error"]))
        axes.set_xlabel(f"mean squared error on N(0, 1),{chr(10) if narrow else ' '}thousandths")
        ours = Line2D([], [], marker="o", color=OURS, linestyle="none", label="measured")
        theirs = Line2D(
            [], [], marker="|", color=PUBLISHED, linestyle="none", markersize=12,
            markeredgewidth=2.5, label="published (arXiv 2601.22813)",
        )  # fmt: skip
        style.legend(figure, [ours, theirs], narrow, columns=2)
    return style.Picture(figure=figure, title=heading, sentence=_sentence(rounding))


def title(rounding: pl.DataFrame) -> str:
    """What four over six gains and what unbiased rounding costs."""
    errors = dict(zip(rounding["target"], rounding["mean_squared_error"], strict=True))
    if not {NEAREST, SQUARED, *RANDOM} <= set(errors):
        least = rounding.sort("mean_squared_error").row(0, named=True)
        error = words.number(1000 * least["mean_squared_error"], 2)
        return f"{least['target']} has the least squared error, {error} thousandths"
    less = words.percent(1 - errors[SQUARED] / errors[NEAREST], 0)
    times, eden = (words.number(errors[name] / errors[NEAREST], 2) for name in RANDOM)
    return (
        f"Four over six takes {less} off NVFP4's squared error; guarded stochastic rounding "
        f"multiplies it by {times}, MS-EDEN by {eden}"
    )


def _sentence(rounding: pl.DataFrame) -> str:
    numbers = words.counted(int(rounding["numbers"][0]), "number")
    half = max((rounding["high"] - rounding["low"]) / rounding["mean_squared_error"]) / 2
    return (
        f"Independent N(0, 1), {numbers} in {rounding['tensors'][0]} tensors, seed "
        f"{rounding['seed'][0]}; the mean squared error and not the relative one. 95 % intervals "
        f"over tensors are at most {words.percent(half, 2)} to either side, within the dots. A "
        "dot without a bar has no published figure."
    )
