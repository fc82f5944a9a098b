"""One number format: where its values lie, and how far apart they are."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lowprec.numerics import Format
from lowprec.report import style, words

DRAWN = 4096
"""The most values drawn, evenly many of them in every part; formats of 16 bits have more."""


def lattice(fmt: Format, *, narrow: bool = False) -> style.Picture | None:
    """The positive values on a logarithmic axis, and the step to the next over the value.

    None of a format of more than 16 bits, whose values are not listed, or without two positive
    values.
    """
    every = fmt.values
    if every is None:
        return None
    values = np.unique(every[np.isfinite(every) & (every > 0)])
    if len(values) < 2:
        return None
    steps = np.diff(values) / values[:-1]
    normal = values[:-1] >= (fmt.min_normal or values[0])
    title = _title(fmt, values, steps[normal])
    with style.look(narrow):
        figure = style.start(narrow, 4.2, 4.6, title)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3))
        shown = np.unique(np.linspace(0, len(values) - 1, DRAWN).astype(int))
        above.vlines(values[shown], 0, 1, color=style.PALETTE[0], linewidth=0.8)
        above.set_yticks([])
        above.set_ylabel("values")
        above.grid(False)
        shown = shown[:-1]
        below.plot(values[shown], 100 * steps[shown], color=style.PALETTE[0], linewidth=1.2)
        below.plot(values[shown], 100 * steps[shown], ".", color=style.PALETTE[0], markersize=3)
        below.set_ylabel("step to the next, %")
        below.set_ylim(bottom=0)
        _octaves(below, narrow)
    return style.Picture(figure=figure, title=title, sentence=_sentence(fmt, len(values)))


def _octaves(axes: Axes, narrow: bool) -> None:
    """A logarithmic axis whose ticks are powers of two."""
    axes.set_xscale("log", base=2)
    low, high = (math.log2(x) for x in axes.get_xlim())
    ticks = MaxNLocator(5 if narrow else 12, integer=True).tick_values(low, high)
    inside = [2.0**tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(inside, minor=False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.significant(value)))
    axes.minorticks_off()
    axes.set_xlabel("magnitude")


def _title(fmt: Format, values: np.ndarray, steps: np.ndarray) -> str:
    octaves = math.log2(values[-1] / values[0])
    text = (
        f"{words.label(fmt.name)}: {words.counted(len(values), 'positive value')} over "
        f"{words.number(octaves, 1)} octaves, {words.significant(values[0])} to "
        f"{words.significant(values[-1])}"
    )
    if not len(steps):
        return text
    kind = "steps between normal numbers" if fmt.exponent_bits else "steps"
    return f"{text}; {kind} from {words.percent(steps.min())} to {words.percent(steps.max())}"


def _sentence(fmt: Format, count: int) -> str:
    specials = [name for name, has in (("Inf", fmt.has_inf), ("NaN", fmt.has_nan)) if has]
    below = (
        f", subnormals below {words.significant(fmt.min_normal)}"
        if fmt.min_subnormal and (fmt.min_normal)
        else ""
    )
    some = f"; {DRAWN:,} of them drawn" if count > DRAWN else ""
    return (
        f"Each positive value{some}{below}; and the step to the next value over the value, twice "
        f"the largest error of rounding to nearest. It has {words.listed(specials) or 'no Inf'}"
        f"{'' if specials else ' and no NaN'}."
    )
