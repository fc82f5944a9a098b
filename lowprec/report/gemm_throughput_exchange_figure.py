"""What a bit is worth in operations, by device and by what moves it."""

import polars as pl

from lowprec.report import style, words
from lowprec.report.kv_throughput_figure import at, log_ticks, spanned, title_of

WHERE = {"memory": "memory", "node": "link within a node", "network": "network between nodes"}


def exchange(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Scalar operations that take as long as moving a bit: a group a device, a point a medium."""
    if frame.is_empty():
        return None
    title = exchange_title(frame)
    devices = frame["device"].unique(maintain_order=True).to_list()
    looks = style.styles(WHERE)
    with style.look(narrow):
        figure = style.start(narrow, 4.0, 4.6, title)
        axes = figure.subplots()
        for place, device in enumerate(devices):
            for shift, where in enumerate(WHERE):
                for row in at(frame, device=device, where=where).to_dicts():
                    middle = row["operations"]
                    ends = [[middle - row["low"]], [row["high"] - middle]]
                    x = place + 0.2 * (shift - 1)
                    axes.errorbar(
                        x, middle, yerr=ends, **looks[where], markersize=6, capsize=2, linewidth=1
                    )
        log_ticks(axes)
        axes.set_xticks(range(len(devices)), [title_of(x).split(" SXM")[0] for x in devices])
        axes.set_xlim(-0.6, len(devices) - 0.4)
        axes.set_ylabel("operations a bit is worth, modelled")
        handles = [style.handle(name, looks[where]) for where, name in WHERE.items()]
        style.legend(figure, handles, narrow, columns=3)
    sentence = (
        "Operations of all scalar lanes in the time that one bit takes at the achieved bandwidth, "
        "with its interval. Saving a bit of every element for fewer operations pays where memory "
        "or the link is what a device waits for. Of an RTX 5090 the link is PCIe, through the "
        "host. Modelled, not measured."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def exchange_title(frame: pl.DataFrame) -> str:
    """A bit's worth in memory and on the network of one device, and the least in memory."""
    cells = []
    for where, name in WHERE.items():
        rows = at(frame, device="h800", where=where)
        if not rows.is_empty():
            unit = "" if cells else "scalar operations "
            place = f"in {name}" if where == "memory" else f"on the {name}"
            cells.append(f"{spanned(rows.row(0, named=True), 'operations')} {unit}{place}")
    memory = at(frame, where="memory")
    if not cells or memory.is_empty():
        return "Modelled"
    least = memory.sort("operations").row(0, named=True)
    return (
        f"Modelled: on the H800 a bit is worth {words.listed(cells)}; in memory least on the "
        f"{title_of(least['device'])}, {spanned(least, 'operations')}"
    )


def pays(frame: pl.DataFrame, trade: str) -> dict[str, list[str]]:
    """By verdict, the devices on which a trade pays, does not, or is not resolved."""
    rows = frame.filter(pl.col("trade") == trade)
    found: dict[str, list[str]] = {}
    for row in rows.to_dicts():
        found.setdefault(row["pays"], []).append(title_of(row["device"]))
    return found
