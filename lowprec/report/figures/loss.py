"""What a recipe costs the model: the increase of its loss over bf16, with intervals."""

import math

import polars as pl
from matplotlib.axes import Axes

from lowprec.report import comparisons, style, words

KINDS: dict[str, style.Look] = {
    "weights": {"color": "#0072b2", "marker": "s"},
    "activations": {"color": "#d55e00", "marker": "^"},
    "both": {"color": "#1f2430", "marker": "o"},
}
_OTHER: style.Look = {"color": "#6b6b6b", "marker": "D"}


def loss_increase(model: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """Points with 95 % intervals, a row for each recipe and what of it is quantized."""
    rows = lossy_models(model)
    if rows.is_empty():
        return None
    groups = [frame for _, frame in rows.group_by("recipe", maintain_order=True)]
    title = loss_title(model)
    with style.look(narrow):
        tall = (0.3 if narrow else 0.26) * len(rows) + 0.22 * len(groups)
        figure = style.start(narrow, 1.5 + tall, 2.0 + tall, title)
        axes = figure.subplots()
        kinds = _draw(axes, groups)
        _floors(axes, model)
        _scale(axes, rows, narrow)
        axes.set_xlabel(
            "increase over recipe:bf16, bits per byte\n(95 % interval)"
            if narrow
            else "increase of the loss over recipe:bf16, bits per byte (95 % interval); "
            "right: rank, ties shared"
        )
        handles = [style.handle(kind, KINDS.get(kind, _OTHER)) for kind in kinds]
        style.legend(figure, handles, narrow)
    return style.Picture(figure=figure, title=title, sentence=_sentence(rows))


def lossy_models(model: pl.DataFrame) -> pl.DataFrame:
    """The rows of everything but the baselines, the least increase first, recipes together."""
    rows = model.filter(
        ~pl.col("recipe").is_in(comparisons.BASELINES), pl.col("increase").is_finite()
    )
    full = pl.col("increase").filter(pl.col("quantized") == "both").first()
    rows = rows.with_columns(
        order=pl.coalesce(full, pl.col("increase").max()).over("recipe"),
        kind=pl.col("quantized").replace_strict({"weights": 0, "activations": 1}, default=2),
    )
    return rows.sort("order", "recipe", "kind", maintain_order=True).drop("order", "kind")


def resolved(row: dict[str, float]) -> bool:
    """Whether an interval excludes zero."""
    return row["low"] > 0 or row["high"] < 0


def loss_title(model: pl.DataFrame) -> str:
    """What the cheapest and the dearest recipe cost where most is quantized."""
    rows = lossy_models(model)
    full = rows.filter(pl.col("quantized") == "both")
    full = full if len(full) else rows
    cheapest, dearest = full.row(0, named=True), full.row(-1, named=True)
    what = {"both": "weights and activations"}.get(full["quantized"][0], full["quantized"][0])
    first = f"Quantizing {what} with {cheapest['recipe']} costs {_cost(cheapest)}"
    if cheapest == dearest:
        return first
    return f"{first}, with {dearest['recipe']} {_cost(dearest)}"


def _cost(row: dict[str, float]) -> str:
    cost = f"{words.signed(row['increase'], 4)} bits per byte"
    return cost if resolved(row) else f"{cost} (not resolved)"


def _draw(axes: Axes, groups: list[pl.DataFrame]) -> list[str]:
    """The rows; returns what was quantized, in the order met."""
    position, ticks, names, kinds = 0.0, [], [], {}
    for group in groups:
        first = position
        for row in group.iter_rows(named=True):
            look = KINDS.get(row["quantized"], _OTHER)
            kinds[row["quantized"]] = None
            axes.hlines(position, row["low"], row["high"], color=look["color"], linewidth=2)
            face = look["color"] if resolved(row) else "white"
            axes.plot(row["increase"], position, **look, markersize=6.5, markerfacecolor=face)
            axes.annotate(
                words.label(row["rank"] or "", 9),
                (1.0, position),
                (4, 0),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                va="center",
                color=look["color"],
                annotation_clip=False,
            )
            position += 1
        ticks.append((first + position - 1) / 2)
        names.append(words.label(group["recipe"][0], 24))
        position += 0.8
    axes.set_yticks(ticks, names)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_ylim(position - 1.1, -0.7)
    return list(kinds)


def _floors(axes: Axes, model: pl.DataFrame) -> None:
    axes.axvline(0, color=style.INK, linewidth=1.1, linestyle=":")
    floats = model.filter(pl.col("recipe") == comparisons.FLOAT32, pl.col("increase").is_finite())
    names = [(0.0, comparisons.BF16)]
    if len(floats):
        at = float(floats["increase"][0])
        axes.axvline(at, color=style.INK, linewidth=1.1, linestyle="--")
        names = [(0.0, f"{comparisons.BF16} (dotted), {comparisons.FLOAT32} (dashed)")]
    for at, name in names:
        axes.annotate(
            name, (at, 1), (0, 3), xycoords=axes.get_xaxis_transform(), textcoords="offset points"
        )


def _scale(axes: Axes, rows: pl.DataFrame, narrow: bool) -> None:
    """A linear axis, or powers of ten on both sides of a linear middle where the range needs it."""
    sizes = sorted(abs(value) for value in rows["increase"] if value)
    if not sizes or sizes[-1] < 40 * sizes[len(sizes) // 4]:
        axes.margins(x=0.08)
        if narrow:
            axes.locator_params(axis="x", nbins=4)
        return
    least = math.floor(math.log10(sizes[len(sizes) // 4]))
    most = math.floor(math.log10(max(abs(v) for key in ("low", "high") for v in rows[key])))
    axes.set_xscale("symlog", linthresh=10.0**least, linscale=1.1 if narrow else 0.6)
    lowest = min(rows["low"])
    powers = [10.0**power for power in range(most, least - 1, -2 if narrow else -1)][::-1]
    below = [] if narrow else [-power for power in powers if -power >= 3 * lowest]
    ticks = [*below, 0.0, *powers]
    axes.set_xticks(ticks, [words.significant(tick, 1) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(min(1.5 * lowest, -0.3 * 10.0**least), 1.3 * max(rows["high"]))


def _sentence(rows: pl.DataFrame) -> str:
    open_count = sum(not resolved(row) for row in rows.iter_rows(named=True))
    documents = words.counted(max(rows["documents"]), "document")
    text = words.counted(max(rows["bytes"]), "byte")
    unresolved = f"{open_count} of {words.counted(len(rows), 'increase')}"
    verb = "is" if open_count == 1 else "are"
    tail = f"; {unresolved} {verb} not resolved from zero (hollow)" if open_count else ""
    return (
        f"Increase of the loss over bf16 on {documents} of {text} with 95 % paired bootstrap "
        f"intervals over documents{tail}; the number at the right is the rank, shared where "
        "intervals overlap."
    )
