"""Modelled decode throughput: by context, by batch, and the largest batches."""

import math
from collections.abc import Sequence
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from lowprec.report import style, words
from lowprec.throughput.decode import USABLE
from lowprec.throughput.devices import get_device, list_devices
from lowprec.throughput.fit import two_digits

Row = dict[str, Any]
MODEL = "llama_3_8b"
DEVICES = ("h100", "h200", "h20", "b200", "rtx_4090", "rtx_5090")
"""Devices with a panel; the H800 decodes as the H100 does where nothing leaves the device."""
METHODS = ("bf16", "fp8_tensor", "nvfp4", "int4_token_rht", "kvquant_3bit", "kivi_2bit")
PLAIN = "bf16"
SHIFT = 0.07
"""The share of an octave between neighbouring series, so that their intervals can be told apart."""


def two(value: float) -> str:
    """A modelled number: two significant digits, written out.

    Example:
      >>> two(1865.0), two(47.4), two(3.52), two(0.4), two(0.0331), two(0.0)
      ('1,900', '47', '3.5', '0.40', '0.033', '0')
    """
    short = two_digits(value)
    if not math.isfinite(short) or short == 0:
        return words.number(short, 0)
    return words.number(short, max(0, 1 - math.floor(math.log10(abs(short)))))


def whole(count: int) -> str:
    """A modelled count, to two digits.

    Example:
      >>> whole(1), whole(185)
      ('1', '180')
    """
    return words.number(two_digits(float(count)), 0)


def spanned(row: Row, name: str, term: str = "") -> str:
    """A column of a row with its interval, as `1,900 (1,200 to 2,000)`.

    Args:
      row: of a table.
      name: of the column.
      term: what stands before `low` and `high` in the names of the interval's columns.
    """
    low, high = (row[f"{term}_{end}" if term else end] for end in ("low", "high"))
    return f"{two(row[name])} ({two(low)} to {two(high)})"


def times_words(top: Row, bottom: Row, name: str = "tokens_per_second") -> str:
    """One modelled number over another with the widest interval, as `4.8 (2.3 to 7.3)`.

    Example:
      >>> one, other = {"n": 8.0, "low": 6.0, "high": 9.0}, {"n": 2.0, "low": 1.0, "high": 2.0}
      >>> times_words(one, other, "n")
      '4.0 (3.0 to 9.0)'
    """
    low, high = top["low"] / bottom["high"], top["high"] / bottom["low"]
    return f"{two(top[name] / bottom[name])} ({two(low)} to {two(high)})"


def title_of(device: str) -> str:
    """What a figure calls a device: its title where the package knows it."""
    return get_device(device).title if device in list_devices() else device


def at(frame: pl.DataFrame, **values: Any) -> pl.DataFrame:
    """The rows with these values."""
    return frame.filter(*(pl.col(name) == value for name, value in values.items()))


def by_context(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Tokens per second over context at the largest batch, a line a method, a panel a device."""
    rows = at(frame, architecture=MODEL, fill="largest").filter(pl.col("batch") > 0)
    found = [name for name in DEVICES if not at(rows, device=name).is_empty()]
    if not found:
        return None
    title = context_title(frame)
    names = _methods(rows)
    with style.look(narrow):
        figure = style.start(narrow, 7.0, 4.0 + 2.0 * len(found), title, 92)
        grid = (len(found), 1) if narrow else (-(-len(found) // 3), 3)
        panels = figure.subplots(*grid, sharex=True, squeeze=False).ravel()
        for axes, device in zip(panels, found, strict=False):
            for place, name in enumerate(names):
                some = at(rows, device=device, method=name).sort("context")
                _series(axes, some, "context", place - len(names) / 2, _looks()[name])
            _context_axis(axes, rows["context"].unique().sort().to_list())
            log_ticks(axes)
            axes.set_title(title_of(device), loc="left")
        for axes in panels[len(found) :]:
            axes.set_visible(False)
        for axes in panels[:: grid[1]]:
            axes.set_ylabel("tokens/s, modelled")
        for axes in panels[-grid[1] :]:
            axes.set_xlabel("context, thousand tokens")
        style.legend(figure, [style.handle(name, _looks()[name]) for name in names], narrow)
    sentence = (
        "Llama-3-8B with bfloat16 weights and the largest batch that fits, all sequences together; "
        "a line ends where no sequence fits. Bars span the misses of published figures, see the "
        "figure of these. Modelled, not measured."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def context_title(frame: pl.DataFrame) -> str:
    """What the fastest method gains over bfloat16 on two devices, at the longest common context."""
    rows = at(frame, architecture=MODEL, fill="largest").filter(pl.col("batch") > 0)
    context, cells = middle(frame), []
    for device in ("h100", "b200"):
        some = at(rows, device=device, context=context)
        plain = at(some, method=PLAIN)
        if plain.is_empty():
            continue
        best = some.sort("tokens_per_second", "bits_per_element", descending=True).row(
            0, named=True
        )
        gain = times_words(best, plain.row(0, named=True))
        cells.append(
            f"on the {title_of(device)} {best['method']} decodes {gain} times what bf16 does"
        )
    return f"Modelled: at {context:,} tokens {words.listed(cells)}" if cells else "Modelled"


def by_batch(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Tokens per second over batch at one context, a line a method, a panel a device."""
    rows = at(frame, architecture=MODEL).filter(pl.col("batch") > 0)
    sizes = at(rows, fill="between")
    if sizes.is_empty():
        return None
    context = sizes["context"][0]
    rows = at(rows, context=context)
    found = [name for name in ("h100", "b200") if not at(rows, device=name).is_empty()]
    title = batch_title(frame)
    names = _methods(rows)
    with style.look(narrow):
        figure = style.start(narrow, 4.4, 3.0 + 2.4 * len(found), title)
        grid = (len(found), 1) if narrow else (1, len(found))
        panels = figure.subplots(*grid, sharey=True, squeeze=False).ravel()
        for axes, device in zip(panels, found, strict=True):
            for place, name in enumerate(names):
                some = at(rows, device=device, method=name).unique("batch").sort("batch")
                _series(axes, some, "batch", place - len(names) / 2, _looks()[name])
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            log_ticks(axes)
            axes.set_title(title_of(device), loc="left")
            axes.set_xlabel("sequences at once")
        for axes in panels[:: grid[1]]:
            axes.set_ylabel("tokens/s, modelled")
        style.legend(figure, [style.handle(name, _looks()[name]) for name in names], narrow)
    sentence = (
        f"Llama-3-8B at {context:,} tokens, up to the largest batch that fits. One sequence waits "
        "for the weights, whatever its cache. Bars are intervals; modelled, not measured."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def batch_title(frame: pl.DataFrame) -> str:
    """What the format of the cache buys one sequence, and a full batch."""
    rows = at(frame, architecture=MODEL, device="h100").filter(pl.col("batch") > 0)
    context, cells = middle(frame), []
    for fill, what in (("one", "one sequence"), ("largest", "the largest batch")):
        some = at(rows, fill=fill, context=context)
        plain = at(some, method=PLAIN)
        if not plain.is_empty():
            best = some.sort("tokens_per_second", "bits_per_element", descending=True).row(
                0, named=True
            )
            gain = times_words(best, plain.row(0, named=True))
            cells.append(f"{what} gains up to {gain} times")
    return (
        f"Modelled: of a smaller cache {words.listed(cells)} on the H100" if cells else "Modelled"
    )


def largest_batches(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """The largest batch over bytes a token, a line a device."""
    rows = at(frame, architecture=MODEL, fill="largest")
    if rows.is_empty():
        return None
    context = middle(frame)
    rows = at(rows, context=context).filter(pl.col("batch") > 0)
    found = [name for name in DEVICES if not at(rows, device=name).is_empty()]
    title = _largest_title(rows, context)
    looks = style.styles(found)
    with style.look(narrow):
        figure = style.start(narrow, 4.6, 5.4, title, 92)
        axes = figure.subplots()
        for name in found:
            some = at(rows, device=name).sort("bits_per_element")
            axes.plot(
                some["bits_per_element"], some["batch"], **looks[name], markersize=5, linewidth=1
            )
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel(f"bits an element at {context:,} tokens, windows and metadata included")
        axes.set_ylabel("sequences that fit, modelled")
        handles = [style.handle(title_of(name), looks[name]) for name in found]
        style.legend(figure, handles, narrow)
    sentence = (
        f"Llama-3-8B with bfloat16 weights at {context:,} tokens a sequence, in "
        f"{words.percent(USABLE, 0)} of the memory; a point a method. It follows from bytes alone: "
        "no rate is in it, and no interval."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def _largest_title(rows: pl.DataFrame, context: int) -> str:
    plain = at(rows, method=PLAIN)
    cells = [
        f"{whole(row['batch'])} on the {title_of(row['device'])}"
        for row in plain.filter(pl.col("device").is_in(["h100", "b200", "rtx_4090"])).to_dicts()
    ]
    if not cells:
        return "Modelled"
    least = rows.sort("bits_per_element").row(0, named=True)["method"]
    gains = at(rows, method=least).join(plain, on="device", suffix="_plain")
    ratios = [row["batch"] / row["batch_plain"] for row in gains.to_dicts()]
    return (
        f"Modelled: of sequences of {context:,} tokens in bf16 {words.listed(cells)} fit, in "
        f"{least} {two(min(ratios))} to {two(max(ratios))} times as many"
    )


def log_ticks(axes: Axes) -> None:
    """A logarithmic axis upward with the numbers 1, 2 and 5 of every decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.yaxis.set_minor_locator(NullLocator())


def middle(frame: pl.DataFrame) -> int:
    """The context that titles speak of: the one with all batches, else the middle one."""
    sizes = at(frame, fill="between")["context"]
    contexts = (sizes if len(sizes) else frame["context"]).unique().sort()
    return int(contexts[len(contexts) // 2])


def _methods(rows: pl.DataFrame) -> list[str]:
    found = set(rows["method"])
    return [name for name in METHODS if name in found]


def _looks() -> dict[str, style.Look]:
    """The same colour for a method in every figure of the section."""
    return style.styles(METHODS)


def _series(axes: Axes, rows: pl.DataFrame, over: str, shift: float, look: style.Look) -> None:
    """Points with intervals, joined, moved sideways by a small share of an octave."""
    if rows.is_empty():
        return
    value = rows["tokens_per_second"]
    ends = [value - rows["low"], rows["high"] - value]
    axes.errorbar(
        rows[over] * 2.0 ** (SHIFT * shift),
        value,
        yerr=[x.clip(lower_bound=0).to_list() for x in ends],
        **look,
        markersize=4,
        linewidth=1,
        elinewidth=0.7,
    )


def _context_axis(axes: Axes, contexts: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks([x for x in contexts[::2]], [f"{x // 1024}" for x in contexts[::2]])
    axes.minorticks_off()
