"""Figures of `lowprec diff`: tails of importance ratios, what they leave, and where it begins."""

from collections.abc import Callable, Mapping

import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from lowprec.report import style, words

LETTERS = 96
"""Of a line of the title."""
_LEAST = 1e-6
"""What lies below is not drawn."""


def apart(
    pairs: pl.DataFrame,
    sequences: pl.DataFrame,
    layers: pl.DataFrame,
    tail: pl.DataFrame,
    *,
    narrow: bool = False,
) -> style.Picture | None:
    """Three panels, a line a pair: tail of log ratios, effective sample size, error by layer."""
    differing = pairs.filter(~pl.col("identical"))
    if differing.is_empty():
        return None
    title, names = apart_title(pairs, sequences), differing["pair"].to_list()
    looks = style.styles(names)
    draws: Mapping[str, tuple[pl.DataFrame, Callable[[Axes, pl.DataFrame, style.Look], None]]] = {
        "tokens with a ratio further from 1": (tail, _tail),
        "samples lost": (sequences, _lost),
        "difference of the residual stream": (layers, _by_layer),
    }
    with style.look(narrow):
        below = 0.22 * len(names)
        tall = 2.7 + below / (1 if narrow else 2)
        figure = style.start(narrow, 1.6 + tall, 6.6 + below, title, LETTERS)
        panels = figure.subplots(*((3, 1) if narrow else (1, 3)), squeeze=False).ravel()
        for axes, (heading, (frame, draw)) in zip(panels, draws.items(), strict=True):
            for name in names:
                draw(axes, frame.filter(pl.col("pair") == name), looks[name])
            axes.set_title(heading, loc="left")
        _finish(panels[0], panels[1], panels[2])
        handles = [style.handle(name, looks[name]) for name in names]
        style.legend(figure, handles, narrow, columns=2)
    return style.Picture(figure=figure, title=title, sentence=_sentence(pairs, names))


def apart_title(pairs: pl.DataFrame, sequences: pl.DataFrame) -> str:
    """How many pairs are the same bits, and what is left of the longest sequences at the least."""
    same = pairs["identical"].sum()
    drawn = sequences.filter(pl.col("tokens") == "drawn")
    least = drawn.sort("ess").row(0, named=True)
    return (
        f"Of {words.counted(len(pairs), 'pair')} of sides {same} are the same bits; the most apart "
        f"leaves {words.percent(least['ess'])} of sequences of "
        f"{words.counted(least['length'], 'token')} as effective samples ({least['pair']})"
    )


def _sentence(pairs: pl.DataFrame, names: list[str]) -> str:
    tokens = pairs["tokens"].unique().sort().to_list()
    lengths = words.listed([f"{x:,}" for x in pairs["length"].unique().sort().to_list()])
    units = words.listed(pairs["unit"].unique().sort().to_list())
    left_out = len(pairs) - len(names)
    same = f" {words.counted(left_out, 'pair')} without any difference not drawn." * bool(left_out)
    return (
        "Left: the share of tokens whose ratio p_A / p_B has a logarithm of that magnitude or more "
        "(nats), tokens drawn from B after the text before them. Middle: 1 less the effective "
        "sample size of the ratios of runs of such tokens, as a share of the runs, with 95 % "
        f"intervals over {units}; few runs show less than many would. Right: Frobenius "
        "norm of A - B over that of A, behind each layer and of the logits. "
        f"{words.listed([f'{x:,}' for x in tokens])} tokens a pair, windows of {lengths} scored "
        f"tokens.{same}"
    )


def _tail(axes: Axes, rows: pl.DataFrame, look: style.Look) -> None:
    shown = rows.filter(pl.col("tokens") == "drawn", pl.col("magnitude") > 0)
    line = {"color": look["color"], "linewidth": 1.4}
    axes.plot(shown["magnitude"], shown["share"], **line, marker=look["marker"], markevery=6)


def _lost(axes: Axes, rows: pl.DataFrame, look: style.Look) -> None:
    shown = rows.filter(pl.col("tokens") == "drawn", pl.col("ess") < 1)
    lost = (1 - shown["ess"]).to_numpy()
    # An interval of few units may leave out its own estimate, and reach what no logarithm shows.
    below = (lost - (1 - shown["ess_high"]).to_numpy()).clip(0, 0.999 * lost)
    above = ((1 - shown["ess_low"]).to_numpy() - lost).clip(0)
    ends = [below, above]
    axes.errorbar(shown["length"], lost, yerr=ends, **look, linewidth=1.2, markersize=4)


def _by_layer(axes: Axes, rows: pl.DataFrame, look: style.Look) -> None:
    shown = rows.filter(pl.col("relative") > 0)
    places = [_place(x) for x in shown["layer"]]
    axes.plot(places, shown["relative"], **look, linewidth=1.4, markersize=4)


def _place(layer: str) -> str:
    return layer.removeprefix("layers.")


def _finish(tail: Axes, lost: Axes, by_layer: Axes) -> None:
    for axes in (tail, lost, by_layer):
        style.powers_of_ten(axes)
    tail.set_xscale("log")
    tail.set_xlim(left=_LEAST)
    tail.xaxis.set_major_locator(LogLocator(numticks=5))
    tail.xaxis.set_major_formatter(tail.yaxis.get_major_formatter())
    tail.xaxis.set_minor_locator(NullLocator())
    tail.set_xlabel("|log p_A / p_B|, nats")
    lost.set_ylim(bottom=max(_LEAST, lost.get_ylim()[0]))
    lost.set_xscale("log", base=4)
    lost.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    lost.xaxis.set_minor_locator(NullLocator())
    lost.set_xlabel("tokens of a sequence")
    by_layer.set_xlabel("layer, and logits")
