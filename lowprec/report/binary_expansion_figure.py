"""The error of weights by how many binary ones they are made of, beside integers."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from lowprec.report import style, words
from lowprec.study.binary_expansion import BASELINE, METHODS

GREEDY, REFITTED = "binary, greedy", "binary, refitted"


def _looks() -> dict[str, style.Look]:
    return {
        name: {"color": colour, "marker": marker}
        for name, colour, marker in zip(METHODS, style.PALETTE, style.MARKERS, strict=False)
    }


def errors(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """SQNR of the weights over N, a line a method, a panel for each source."""
    if frame.is_empty():
        return None
    sources, looks = frame["source"].unique(maintain_order=True).to_list(), _looks()
    title = verdict(frame.filter(pl.col("source") == sources[0]))
    with style.look(narrow):
        figure = style.start(narrow, 4.6, 1.9 + 2.9 * len(sources), title)
        grid = (len(sources), 1) if narrow else (1, len(sources))
        panels = figure.subplots(*grid, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, source in zip(panels, sources, strict=True):
            _panel(axes, frame.filter(pl.col("source") == source), looks)
            axes.set_title(f"{source} weights", loc="left")
        panels[0].set_ylabel("SQNR of the weights, dB")
        panels[-1].set_xlabel("N: binary weights for each weight, or bits")
        handles = [Line2D([], [], **look, markersize=5, label=name) for name, look in looks.items()]
        style.legend(figure, handles, narrow, columns=3)
    row = frame.row(0, named=True)
    sentence = (
        f"Means over {words.counted(row['units'], 'layer')} of the model and over seeds of "
        "Gaussian matrices; every method has its scales or factors by output channel."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def _panel(axes: Axes, rows: pl.DataFrame, looks: dict[str, style.Look]) -> None:
    for name, look in looks.items():
        some = rows.filter(pl.col("method") == name).sort("n")
        dashes = "-" if name.startswith("binary") else "--"
        axes.plot(some["n"], some["sqnr_db"], dashes, **look, markersize=4.5, linewidth=1.3)
    axes.xaxis.set_major_locator(MultipleLocator(2))


def verdict(rows: pl.DataFrame) -> str:
    """What the most greedy binary weights keep, as an integer's bits, and what one more adds."""
    source = rows["source"][0]
    greedy = rows.filter(pl.col("method") == GREEDY).sort("n")
    last = greedy.row(-1, named=True)
    said = (
        f"{last['n']} greedy binary weights keep {words.number(last['sqnr_db'], 1)} dB of "
        f"{source} weights, {_worth(rows, last)}"
    )
    if len(greedy) > 4:
        slope = (last["sqnr_db"] - greedy["sqnr_db"][3]) / (last["n"] - greedy["n"][3])
        said += f": {words.number(slope, 1)} dB each from the fourth on"
    other = rows.filter(pl.col("method") == REFITTED, pl.col("n") == last["n"])
    if len(other):
        row = other.row(0, named=True)
        said += f"; refitted, {words.number(row['sqnr_db'], 1)} dB, {_worth(rows, row)}"
    return said


def _worth(rows: pl.DataFrame, row: dict[str, float]) -> str:
    integers = rows.filter(pl.col("method") == BASELINE).sort("n")
    enough = integers.filter(pl.col("sqnr_db") >= row["sqnr_db"])
    if enough.is_empty():
        return f"more than INT{integers['n'][-1]}"
    return f"no more than INT{enough['n'][0]}"
