"""A cache in the host's memory, modelled, and fetching a prompt's cache against computing it."""

import polars as pl
from matplotlib.axes import Axes

from lowprec.report import style, words
from lowprec.report.kv_throughput_figure import Row, at, log_ticks, spanned, times_words, title_of
from lowprec.throughput.devices import get_link, list_links

SHOWN = (("h100", "pcie_5"), ("gh200", "nvlink_c2c"), ("rtx_4090", "pcie_4"))
ARMS = {
    "all on the device, bf16": ("device", "bf16", ""),
    "all on the device, compressed": ("device", "*", ""),
    "rest in the host, sent in bf16": ("host", "bf16", "bf16"),
    "rest in the host, sent compressed": ("host", "bf16", "*"),
}
"""Where the cache is, how it is stored on the device and sent; `*` stands for what compresses."""


def tiers(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Tokens per second over sequences, a line an arm; panels by device and by tokens read."""
    rows = longest(frame)
    found = [pair for pair in SHOWN if not at(rows, device=pair[0], link=pair[1]).is_empty()]
    if not found:
        return None
    title = tiers_title(frame)
    reads = rows["read"].unique().sort(descending=True).to_list()
    looks = style.styles(ARMS)
    with style.look(narrow):
        tall = len(found) * len(reads)
        figure = style.start(narrow, 1.6 + 2.7 * len(reads), 3.0 + 2.0 * tall, title, 92)
        shape = (tall, 1) if narrow else (len(reads), len(found))
        panels = figure.subplots(*shape, sharex=True, squeeze=False).ravel()
        pairs = [(read, pair) for read in reads for pair in found]
        for axes, (read, (device, link)) in zip(panels, pairs, strict=True):
            some = at(rows, device=device, link=link, read=read)
            for name in ARMS:
                _line(axes, arm(some, name), looks[name])
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            log_ticks(axes)
            name = f"{title_of(device)}, {_link(link)}"
            axes.set_title(f"{name}\n{_reading(rows, read)}", loc="left")
        for axes in panels[:: shape[1]]:
            axes.set_ylabel("tokens/s, modelled")
        for axes in panels[-shape[1] :]:
            axes.set_xlabel("sequences at once")
        style.legend(figure, [style.handle(name, looks[name]) for name in ARMS], narrow, columns=2)
    sentence = (
        f"Llama-3-8B at {rows['context'][0]:,} tokens a sequence; compressed: {_compressed(rows)}. "
        "Sequences beyond those that fit on the device lie in the host's memory in bf16, and what "
        "a step reads of them crosses the link in that step, with nothing beside it; a line ends "
        "where both memories are full. What selecting tokens costs is not counted. Bars are "
        "intervals; modelled, not measured."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def tiers_title(frame: pl.DataFrame) -> str:
    """The best of the host against the best of the device, reading all tokens and a few."""
    rows = longest(frame)
    cells = []
    for read in rows["read"].unique().sort(descending=True):
        some = at(rows, device="h100", read=read)
        ours, theirs = (arm(some, name) for name in list(ARMS)[1::2])
        away = theirs.filter(pl.col("away") > 0)
        if ours.is_empty() or away.is_empty():
            return "Modelled"
        best, other = (
            x.sort("tokens_per_second", descending=True).row(0, named=True) for x in (ours, away)
        )
        what = _reading(rows, read).removeprefix("reads ")
        cells.append(f"{times_words(best, other)} times where a step reads {what}")
    lead = "a compressed cache all on the H100 decodes"
    return f"Modelled: against what the host sends compressed, {lead} {words.listed(cells)}"


def arm(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    """The rows of an arm; of several that compress the one with the fewest bytes, named last."""
    place, stored, sent = ARMS[name]
    some = at(rows, place=place)
    for column, wanted in (("stored", stored), ("sent", sent)):
        names = [x for x in some[column].unique(maintain_order=True) if x not in ("bf16", "")]
        wanted = names[-1] if wanted == "*" and names else wanted
        some = some.filter(pl.col(column).fill_null("") == wanted)
    return some.sort("batch")


def longest(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows of the longest context."""
    return frame.filter(pl.col("context") == pl.col("context").max())


def fetched(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """How many times faster fetching is than computing, over the prompt, a line a method."""
    found = [pair for pair in SHOWN if not at(frame, device=pair[0], link=pair[1]).is_empty()]
    if not found:
        return None
    title = fetched_title(frame)
    names = frame["method"].unique(maintain_order=True).to_list()
    looks = style.styles(names)
    with style.look(narrow):
        figure = style.start(narrow, 4.2, 2.0 + 2.2 * len(found), title)
        shape = (len(found), 1) if narrow else (1, len(found))
        panels = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (device, link) in zip(panels, found, strict=True):
            for place, name in enumerate(names):
                some = at(frame, device=device, link=link, method=name).sort("tokens")
                ends = [some["gain"] - some["low"], some["high"] - some["gain"]]
                axes.errorbar(
                    some["tokens"] * 2 ** (0.12 * place),
                    some["gain"],
                    yerr=[x.clip(lower_bound=0).to_list() for x in ends],
                    **looks[name],
                    markersize=4,
                    linewidth=1,
                    elinewidth=0.7,
                )
            axes.set_xscale("log", base=2)
            ticks = frame["tokens"].unique().sort().to_list()
            axes.set_xticks(ticks, [f"{x / 1024:g}" for x in ticks])
            axes.minorticks_off()
            log_ticks(axes)
            axes.axhline(1, color=style.INK, linewidth=0.9, zorder=1)
            axes.set_title(f"{title_of(device)}, {_link(link)}", loc="left")
            axes.set_xlabel("prompt, thousand tokens")
        for axes in panels[:: shape[1]]:
            axes.set_ylabel("computing / fetching, modelled")
        style.legend(figure, [style.handle(name, looks[name]) for name in names], narrow)
    sentence = (
        "Llama-3-8B: the time of computing a prompt's cache over that of fetching it from the "
        "host. Bars: products as slow as FlashMLA's slowest, the link as fast as specified. "
        "KIVI's window of 16-bit tokens weighs in a short prompt. Modelled; vLLM publishes 2 to 22 "
        "times for bf16 on an H100, decoding a token included."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def fetched_title(frame: pl.DataFrame) -> str:
    """The span of gains in bf16 on the H100."""
    rows = at(frame, device="h100", method="bf16").sort("tokens")
    if rows.is_empty():
        return "Modelled"
    first, last = rows.row(0, named=True), rows.row(-1, named=True)
    return (
        f"Modelled: fetching a prompt's bf16 cache over PCIe 5 is {spanned(first, 'gain')} "
        f"times faster than computing it on an H100 at {first['tokens']:,} tokens and "
        f"{spanned(last, 'gain')} times at {last['tokens']:,}"
    )


def _line(axes: Axes, rows: pl.DataFrame, look: style.Look) -> None:
    if rows.is_empty():
        return
    value = rows["tokens_per_second"]
    ends = [value - rows["low"], rows["high"] - value]
    axes.errorbar(
        rows["batch"],
        value,
        yerr=[x.clip(lower_bound=0).to_list() for x in ends],
        **look,
        markersize=4,
        linewidth=1,
        elinewidth=0.7,
    )


def _reading(rows: pl.DataFrame, read: int) -> str:
    return "reads all tokens" if read == rows["context"][0] else f"reads {read:,} tokens"


def _compressed(rows: pl.DataFrame) -> str:
    found: list[Row] = arm(rows, "all on the device, compressed").to_dicts()
    return found[0]["stored"] if found else ""


def _link(name: str) -> str:
    return get_link(name).title if name in list_links() else name
