"""What is published of products, quantizers and collectives, beside what is modelled of it."""

import polars as pl

from lowprec.report import style, words
from lowprec.report.kv_throughput_figure import at, title_of
from lowprec.report.kv_throughput_published_figure import percent

ROLES = {
    "fitted": "fitted",
    "held out": "held out, counts in the intervals",
    "shown": "held out, shown alone",
}
TICKS = (0.5, 0.75, 1, 1.5, 2, 3)


def published(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Points: published over modelled time, a line a source and device, coloured by role."""
    if frame.is_empty():
        return None
    title = published_title(frame)
    looks = style.styles(ROLES)
    names = frame.select("device", "figure").unique(maintain_order=True).rows()
    with style.look(narrow):
        tall = 0.21 * len(names)
        figure = style.start(narrow, 1.8 + tall, 2.4 + tall, title)
        axes = figure.subplots()
        for place, (device, name) in enumerate(names):
            for row in at(frame, device=device, figure=name).to_dicts():
                look = looks[row["role"]]
                axes.plot(1 + row["miss"], place, **look, markersize=5, alpha=0.7, linestyle="none")
        axes.axvline(1, color=style.INK, linewidth=0.9, zorder=1)
        axes.set_xscale("log")
        ratios = [1 + miss for miss in frame["miss"]]
        axes.set_xlim(min(ratios) / 1.08, max(ratios) * 1.08)
        axes.set_xticks(TICKS, [f"{x:g}" for x in TICKS])
        axes.minorticks_off()
        labels = [
            f"{title_of(device).split()[0] if narrow else title_of(device)}: "
            f"{words.label(name, 26) if narrow else name}"
            for device, name in names
        ]
        axes.set_yticks(range(len(names)), labels, fontsize=6.0 if narrow else 9)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("published / modelled time")
        handles = [style.handle(label, looks[role]) for role, label in ROLES.items()]
        style.legend(figure, handles, narrow, columns=3)
    sentence = (
        "A point a shape; right of the line: slower than modelled. Rates are turned into times. "
        "Four rates are fitted on the H100's bf16 products, two on one all-reduce and DeepEP's "
        "NVLink; the form of the model was chosen with the other figures in sight. Shown alone: "
        "other power, kernels that their authors call untuned, and calls that find their operands "
        "in a cache."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def published_title(frame: pl.DataFrame) -> str:
    """How many figures are predicted, and where nine tenths of their misses and the rest lie."""
    rows = at(frame, role="held out")
    if rows.is_empty():
        return "Modelled"
    low, middle, high = (rows["miss"].quantile(q, "linear") for q in (0.05, 0.5, 0.95))
    least, most = rows["miss"].min(), rows["miss"].max()
    # polars gives aggregates of a column no number type.
    five = [percent(float(x)) for x in (low, high, middle, least, most)]  # type: ignore[arg-type]
    devices = rows["device"].n_unique()
    return (
        f"Fitted on the H100's bf16, modelled times are held against {len(rows)} other published "
        f"figures of {devices} devices: nine tenths of those differ from them by {five[0]} to "
        f"{five[1]}, in the median {five[2]}, at the ends {five[3]} and {five[4]}"
    )


def covered(frame: pl.DataFrame, role: str = "held out") -> tuple[int, int]:
    """Figures of a role, and those of them within their term's interval."""
    rows = at(frame, role=role)
    return len(rows), len(rows.filter(pl.col("miss").is_between(pl.col("low"), pl.col("high"))))


def miss_words(frame: pl.DataFrame, term: str) -> str:
    """The interval of a term, as `-15 % to +39 %`."""
    rows = at(frame, term=term)
    if rows.is_empty():
        return ""
    return f"{percent(rows['low'][0])} to {percent(rows['high'][0])}"
