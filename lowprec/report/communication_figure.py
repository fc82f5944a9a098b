"""Formats that move activations: error against bytes, LogFMT's lead, and the model's loss."""

from collections.abc import Sequence
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lowprec.report import style, words
from lowprec.study.communication_tensors import STAGES

PANELS = STAGES[:4]
Row = dict[str, Any]


def short(target: str) -> str:
    """An entry's name without what kind of entry it is."""
    return target.partition(":")[2]


def stage_rows(stages: pl.DataFrame) -> pl.DataFrame:
    """The rows of what is sent to experts and back."""
    return stages.filter(pl.col("stage").is_in(PANELS))


def error_by_bytes(stages: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Points: SQNR against the bytes of a token, a panel for what is sent where."""
    rows = stage_rows(stages)
    if rows.is_empty():
        return None
    title = error_title(stages)
    targets = rows["target"].unique(maintain_order=True).to_list()
    looks = style.styles(targets)
    with style.look(narrow):
        figure = style.start(narrow, 6.6, 12.5, title)
        grid = (4, 1) if narrow else (2, 2)
        panels = figure.subplots(*grid, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, stage in zip(panels, PANELS, strict=True):
            for row in rows.filter(pl.col("stage") == stage).to_dicts():
                ends = [[row["sqnr_db"] - row["low_db"]], [row["high_db"] - row["sqnr_db"]]]
                axes.errorbar(
                    row["bytes_per_token"] / 1000,
                    row["sqnr_db"],
                    yerr=ends,
                    **looks[row["target"]],
                    markersize=6.5,
                    linestyle="none",
                )
            axes.set_title(stage, loc="left")
        for axes in panels if narrow else panels[::2]:
            axes.set_ylabel("SQNR, dB")
        for axes in panels[-1:] if narrow else panels[2:]:
            axes.set_xlabel("kilobytes per token")
        handles = [style.handle(short(name), looks[name]) for name in targets]
        style.legend(figure, handles, narrow, columns=4)
    first = rows.row(0, named=True)
    sentence = (
        f"Means over layers and documents, 95 % intervals over {first['units']} documents (mostly "
        f"smaller than the points); bytes of a token of {first['channels']:,} channels, scales "
        "included. What is sent is bfloat16 before, whose own error is that of bfloat16."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def error_title(stages: pl.DataFrame) -> str:
    """What keeps most of a combined token in at most so many bytes, of 8 bits and of 12."""
    rows = stages.filter(pl.col("stage") == "combine").sort("sqnr_db", descending=True)
    if rows.is_empty():
        return "Formats that move activations"
    best = [rows.filter(pl.col("bits_per_element") <= bits).head(1) for bits in (8.5, 12.5)]
    cells = [
        f"{short(row['target'])} keeps {words.number(row['sqnr_db'], 1)} dB in "
        f"{words.number(row['bits_per_element'], 2)} bits"
        for row in pl.concat(best).unique("target", maintain_order=True).to_dicts()
    ]
    return f"Of what experts send back {words.listed(cells)}, the most of its size"


def leads(claims: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Points with intervals: dB by which a block's noise lies below another's, a line a stage."""
    rows = claims.filter(pl.col("measure") == "error")
    if rows.is_empty():
        return None
    title = leads_title(claims)
    places = rows["where"].unique(maintain_order=True).to_list()
    pairs = rows.select("target", "baseline").unique(maintain_order=True).rows()
    looks = style.styles([pair[1] for pair in pairs])
    with style.look(narrow):
        tall = 0.3 * len(places)
        figure = style.start(narrow, 1.6 + tall, 2.0 + tall, title)
        axes = figure.subplots()
        for row in rows.to_dicts():
            shift = 0.2 * (pairs.index((row["target"], row["baseline"])) - (len(pairs) - 1) / 2)
            place = places.index(row["where"]) + shift
            _interval(axes, row, place, looks[row["baseline"]])
        axes.axvline(0, color=style.INK, linewidth=0.9, zorder=1)
        axes.set_yticks(range(len(places)), places)
        axes.set_ylim(len(places) - 0.5, -0.5)
        axes.set_xlabel("lead in SQNR, dB")
        handles = [
            style.handle(f"{short(target)} over {short(baseline)}", looks[baseline])
            for target, baseline in pairs
        ]
        style.legend(figure, handles, narrow, columns=2)
    sentence = (
        f"Paired: the same tensors of the same {rows['units'].max()} documents or seeds, with 95 % "
        "intervals over these. The lower ones are synthetic tiles of 128."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def leads_title(claims: pl.DataFrame) -> str:
    """The span of leads over each baseline."""
    rows = claims.filter(pl.col("measure") == "error")
    cells = []
    for target, baseline in rows.select("target", "baseline").unique(maintain_order=True).rows():
        same = (pl.col("target") == target) & (pl.col("baseline") == baseline)
        found = rows.filter(same)["value"]
        span = f"{_signed(found.min())} to {_signed(found.max())} dB over {short(baseline)}"
        cells.append(span if cells else f"{short(target)} leads by {span}")
    return words.listed(cells)


def _signed(value: Any) -> str:
    return words.signed(float(value), 1)


def loss(rows: pl.DataFrame, *, near: float | None, narrow: bool = False) -> style.Picture | None:
    """Points with intervals: the increase of the loss, a line a format."""
    if rows.is_empty():
        return None
    title = loss_title(rows)
    names = rows["target"].to_list()
    with style.look(narrow):
        tall = 0.3 * len(names)
        figure = style.start(narrow, 1.6 + tall, 2.0 + tall, title)
        axes = figure.subplots()
        for place, row in enumerate(rows.to_dicts()):
            _percent(axes, row, place)
        axes.axvline(0, color=style.INK, linewidth=0.9, zorder=1)
        handles: list[Line2D] = []
        if near is not None:
            axes.axvline(100 * near, color=style.MUTED, linewidth=0.9, linestyle="--", zorder=1)
            label = f"{words.percent(near, 2)}: what DeepSeek-V3 calls within training's randomness"
            handles.append(Line2D([], [], color=style.MUTED, linestyle="--", label=label))
        axes.set_yticks(range(len(names)), [short(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("increase of the loss, %")
        axes.xaxis.set_major_locator(MaxNLocator(6 if narrow else 10))
        if handles:
            style.legend(figure, handles, narrow, columns=1)
    first = rows.row(0, named=True)
    sentence = (
        "Held-out loss of the small model with the outputs of attention and MLP, which are added "
        f"to the residual stream, sent in each format, over {short(first['baseline'])}: "
        f"{first['bytes']:,} bytes of {first['documents']} documents, over which the 95 % "
        "intervals are, paired. Nothing was trained with any of them."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def loss_title(rows: pl.DataFrame) -> str:
    """How many formats are told apart from the baseline, and which costs most."""
    resolved = rows.filter((pl.col("low") > 0) | (pl.col("high") < 0))
    top = rows.sort("relative", descending=True).row(0, named=True)
    return (
        f"Of {len(rows)} formats in the residual branches {len(resolved)} are told apart from "
        f"{short(top['baseline'])} by their loss; the most, {short(top['target'])}, costs "
        f"{words.percent(top['relative'], 2)}"
    )


def _interval(axes: Axes, row: Row, place: float, look: style.Look) -> None:
    ends = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
    axes.errorbar(row["value"], place, xerr=ends, **look, markersize=5, linestyle="none")


def _percent(axes: Axes, row: Row, place: float) -> None:
    value, low, high = (100 * row[name] for name in ("relative", "relative_low", "relative_high"))
    look = {"color": style.PALETTE[0], "marker": "o"}
    _interval(axes, {"value": value, "low": low, "high": high}, place, look)


def verdicts(claims: pl.DataFrame) -> Sequence[tuple[str, str, pl.DataFrame]]:
    """Each claim with the measure it is held against, and the rows of both."""
    keys = claims.select("claim", "measure").unique(maintain_order=True).rows()
    return [
        (claim, measure, claims.filter(pl.col("claim") == claim, pl.col("measure") == measure))
        for claim, measure in keys
    ]
