"""What each preparation of a weight keeps over rounding it to nearest, with its interval."""

from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lowprec.report import style, words

HELD_OUT, IN_SAMPLE = "held_out", "in_sample"
_LOOKS: dict[str, dict[str, Any]] = {
    HELD_OUT: {"marker": "o", "color": style.PALETTE[0]},
    IN_SAMPLE: {"marker": "D", "color": style.PALETTE[1], "markerfacecolor": "white"},
}
_LABELS = {
    HELD_OUT: "other documents than it was fitted to",
    IN_SAMPLE: "in sample: the documents it was fitted to",
}


def preparation(row: dict[str, Any]) -> str:
    """Whose preparation it is."""
    return row["recipe"].removeprefix(f"{row['baseline']} + ")


def gains(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Points with intervals: the gain over rounding to nearest in dB, a line a preparation."""
    if frame.is_empty():
        return None
    groups = [
        (base, frame.filter(pl.col("baseline") == base).to_dicts())
        for base in frame["baseline"].unique(maintain_order=True)
    ]
    title = gains_title(frame)
    with style.look(narrow):
        tall = 0.24 * (len(frame) + len(groups))
        figure = style.start(narrow, 1.6 + tall, 1.9 + tall, title)
        axes = figure.subplots()
        _lines(axes, groups, narrow)
        axes.axvline(0, color=style.INK, linewidth=0.9, zorder=1)
        axes.set_xlabel("SQNR over rounding to nearest, dB")
        axes.grid(axis="y", visible=False)
        handles = [
            Line2D([], [], **_LOOKS[sample], linestyle="none", label=_LABELS[sample])
            for sample in frame["sample"].unique(maintain_order=True)
        ]
        style.legend(figure, handles, narrow, columns=2)
    layers = words.counted(frame.row(0, named=True)["layers"], "layer")
    sentence = (
        f"Means over {layers} of the SQNR of a prepared product less that of the recipe in the "
        "heading, which rounds to nearest; lines are 95 % intervals over layers, paired. Bits are "
        "those of a weight, low-rank matrices included."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def _lines(axes: Axes, groups: list[tuple[str, list[dict[str, Any]]]], narrow: bool) -> None:
    """A heading for each recipe, and its preparations below."""
    places: list[int] = []
    labels: list[str] = []
    place = 0
    for base, rows in groups:
        places.append(place)
        labels.append(f"{base}:")
        for row in rows:
            place += 1
            ends = [[row["gain_db"] - row["low_db"]], [row["high_db"] - row["gain_db"]]]
            axes.errorbar(
                row["gain_db"], place, xerr=ends, **_LOOKS[row["sample"]], markersize=5, capsize=0
            )
            places.append(place)
            bits = words.number(row["bits_per_element"], 1)
            labels.append(f"+ {preparation(row)}, {bits} bits")
        place += 1
    axes.set_yticks(places, [words.label(x, 30 if narrow else 50) for x in labels])
    for text in axes.get_yticklabels():
        if text.get_text().endswith(":"):
            text.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place, -1)


def gains_title(frame: pl.DataFrame) -> str:
    """What keeps most on other documents, and how many are told apart from no gain."""
    rows = frame.filter(pl.col("sample") == HELD_OUT)
    if rows.is_empty():
        return "Preparations, on what they were fitted to alone"
    top = rows.sort("gain_db", descending=True).row(0, named=True)
    better, worse = len(rows.filter(pl.col("low_db") > 0)), len(rows.filter(pl.col("high_db") < 0))
    return (
        f"Of {len(rows)} pairs of a recipe and a preparation {better} keep more than rounding to "
        f"nearest and {worse} less; the most is {words.signed(top['gain_db'], 1)} dB, "
        f"{preparation(top)} in {top['baseline']}"
    )
