"""The method of most modelled tokens per second, by device and context."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from lowprec.report import style, words
from lowprec.report.kv_throughput_figure import MODEL, Row, at, title_of, two

KEYS = ["device", "architecture", "context"]
VALUES = ["tokens_per_second", "low", "high"]
SOLID, PALE = 0.6, 0.2


def best_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """The method of most tokens per second at the largest batch, by device, model and context.

    `tied` are the methods whose intervals overlap its own, itself among them; columns that end in
    `_plain` are of bfloat16, null where it does not fit.
    """
    rows = at(frame, fill="largest").filter(pl.col("batch") > 0)
    plain = rows.filter(pl.col("method").is_in(["bf16", "mla_bf16"]))
    best = rows.sort("tokens_per_second", "bits_per_element", descending=[True, True]).unique(
        KEYS, keep="first", maintain_order=True
    )
    near = rows.join(best.select(*KEYS, least="low"), on=KEYS, maintain_order="left").filter(
        pl.col("high") >= pl.col("least")
    )
    tied = near.group_by(KEYS, maintain_order=True).agg(tied=pl.col("method"))
    base = plain.select(*KEYS, *VALUES)
    return (
        best.join(tied, on=KEYS, maintain_order="left")
        .join(base, on=KEYS, how="left", maintain_order="left", suffix="_plain")
        .sort("architecture", "device", "context")
    )


def beats_plain(rows: pl.DataFrame) -> int:
    """In how many of `best_rows` bfloat16 is slower wherever both are in their intervals."""
    slower = (pl.col("low") > pl.col("high_plain")).fill_null(True)
    return len(rows.filter(slower))


def best(frame: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """A matrix: the fastest method and its tokens per second, by device and context."""
    rows = at(best_rows(frame), architecture=MODEL)
    if rows.is_empty():
        return None
    title = best_title(frame)
    devices = [x for x in frame["device"].unique(maintain_order=True) if x in set(rows["device"])]
    contexts = rows["context"].unique().sort().to_list()
    if narrow:
        contexts = contexts[1::2]
    looks = style.styles(rows["method"])
    with style.look(narrow):
        tall = (0.75 if narrow else 0.62) * len(devices)
        figure = style.start(narrow, 1.9 + tall, 2.3 + tall, title, 92)
        axes = figure.subplots()
        for row in rows.filter(pl.col("context").is_in(contexts)).to_dicts():
            place = contexts.index(row["context"]), devices.index(row["device"])
            _cell(axes, place, row, str(looks[row["method"]]["color"]), narrow)
        axes.set_xlim(-0.5, len(contexts) - 0.5)
        axes.set_ylim(len(devices) - 0.5, -0.5)
        axes.set_xticks(range(len(contexts)), [f"{x // 1024}" for x in contexts])
        axes.set_yticks(
            range(len(devices)),
            [title_of(x).removesuffix(" SXM").removesuffix(" 96 GB") for x in devices],
        )
        axes.set_xlabel("context, thousand tokens")
        axes.grid(False)
        for side in axes.spines.values():
            side.set_visible(False)
    sentence = (
        "Llama-3-8B with bfloat16 weights at the largest batch that fits: the method of most "
        "tokens per second of all sequences together, the number, and below it the interval; a "
        "colour a method. Full colour: bf16 is slower wherever both are in their intervals, or "
        "does not fit; pale: that is not resolved. The table has all methods whose intervals "
        "overlap. By throughput alone, whatever a method loses. Modelled, not measured."
    )
    return style.Picture(figure=figure, title=title, sentence=sentence)


def best_title(frame: pl.DataFrame) -> str:
    """Which methods are the fastest how often, and where bfloat16 is told from them."""
    rows = at(best_rows(frame), architecture=MODEL)
    if rows.is_empty():
        return "Modelled"
    counted = rows.group_by("method", maintain_order=True).len().sort("len", "method")
    cells = [f"{name} in {count}" for name, count in reversed(counted.rows())]
    return (
        f"Modelled: of {len(rows)} pairs of device and context the most tokens per second are of "
        f"{words.listed(cells)}; in {beats_plain(rows)} bf16 is slower anywhere in the intervals"
    )


def _cell(axes: Axes, place: tuple[int, int], row: Row, colour: str, narrow: bool) -> None:
    faster = row["high_plain"] is None or row["low"] > row["high_plain"]
    corner = place[0] - 0.48, place[1] - 0.46
    shade = SOLID if faster else PALE
    axes.add_patch(Rectangle(corner, 0.96, 0.92, color=colour, alpha=shade, linewidth=0))
    name = row["method"].replace("_", "_\n", 1) if narrow else row["method"]
    span = f"{two(row['low'])} to {two(row['high'])}"
    axes.annotate(
        f"{name}\n{two(row['tokens_per_second'])}\n{span}",
        place,
        ha="center",
        va="center",
        color=style.INK,
        fontsize=5.5 if narrow else 7.0,
    )
