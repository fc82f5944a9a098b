"""What each scale rule loses against the scale of least squared error."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lowprec.report import style, words

LEAST, FITTED = "minimum_error", "lloyd_max"
REACH = (-2.4, 1.6)
"""Decibels within which marks are drawn; what lies outside is written at the edge."""
RULES: dict[str, tuple[str, style.Look]] = {
    "floor": ("floor (OCP MX)", {"color": "#d55e00", "marker": "v"}),
    "even": ("even", {"color": "#0072b2", "marker": "s"}),
    "ceil": ("ceil", {"color": "#cc79a7", "marker": "^"}),
    "rceil": ("rceil", {"color": "#009e73", "marker": "o"}),
    "nearest_log2": ("nearest log2", {"color": "#e69f00", "marker": "P"}),
    "oas": ("overflow-aware", {"color": "#56b4e9", "marker": "D"}),
    "three_quarter": ("three-quarter", {"color": "#882255", "marker": "X"}),
    "amax": ("amax, E4M3 scale", {"color": "#6b6b6b", "marker": "p"}),
    "four_over_six (absolute)": ("4/6 by |e|", {"color": "#882255", "marker": "<"}),
    "four_over_six (squared)": ("4/6 by e²", {"color": "#882255", "marker": ">"}),
    FITTED: ("Lloyd-Max levels instead", {"color": style.INK, "marker": "*"}),
}
"""How every rule is named and drawn."""


def rule_losses(rules: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """A row for each element, a mark for each rule, at the decibels that it loses."""
    rows = rules.filter(pl.col("rule") != LEAST)
    if rows.is_empty():
        return None
    bases = rules["base"].unique(maintain_order=True).to_list()
    heading = title(rows)
    with style.look(narrow):
        tall = (0.62 if narrow else 0.44) * len(bases)
        figure = style.start(narrow, 1.7 + tall, 3.5 + tall, heading)
        axes = figure.subplots()
        _draw(axes, rows, bases, narrow)
        axes.axvline(0, color=style.INK, linewidth=1.1, linestyle=":", zorder=1)
        axes.set_xlabel(
            "SQNR lost to the best scale, dB\n(negative: better than it)"
            if narrow
            else "SQNR lost to the scale of least squared error, dB (negative: better than it)"
        )
        handles = [_handle(rule) for rule in RULES if rule in set(rows["rule"])]
        style.legend(figure, handles, narrow, columns=6)
    return style.Picture(figure=figure, title=heading, sentence=_sentence(rows))


def _draw(axes: Axes, rows: pl.DataFrame, bases: list[str], narrow: bool) -> None:
    for place, base in enumerate(bases):
        axes.axhline(place, color=style.GRID, linewidth=0.7, zorder=0)
        of_base = rows.filter(pl.col("base") == base)
        for row in of_base.filter(pl.col("loss_db").is_between(*REACH)).iter_rows(named=True):
            look = RULES[row["rule"]][1]
            # Rules that give the same scales would hide each other: the first is drawn larger.
            same = of_base.filter((pl.col("loss_db") - row["loss_db"]).abs() < 0.01)
            size = 7 + 4 * (len(same) - 1 - same["rule"].to_list().index(row["rule"]))
            size += 3 * (row["rule"] == FITTED)
            axes.plot(
                row["loss_db"], place, **look, markersize=size, markeredgecolor="white", zorder=3
            )
        _beyond(axes, of_base, place, narrow)
    axes.set_yticks(range(len(bases)), [words.label(base, 26) for base in bases])
    axes.set_ylim(len(bases) - 0.4, -0.6)
    axes.set_xlim(REACH[0] - 0.1, REACH[1] + 0.1)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def _beyond(axes: Axes, rows: pl.DataFrame, place: int, narrow: bool) -> None:
    """Writes the values that lie outside the axes at the edge that they lie beyond."""
    for low, at, align in ((True, REACH[0], "left"), (False, REACH[1], "right")):
        beyond = pl.col("loss_db") < REACH[0] if low else pl.col("loss_db") > REACH[1]
        found = rows.filter(beyond).sort("loss_db", descending=not low)
        cells = [
            f"{RULES[row['rule']][0].removesuffix(' levels instead')} "
            f"{words.number(row['loss_db'])}"
            for row in found.iter_rows(named=True)
        ]
        if not cells:
            continue
        text = ", ".join(cells)
        outside = not low and not narrow
        axes.annotate(
            f"← {text}" if low else f"→ {text}" if outside else f"{text} →",
            (at, place),
            # On a phone below the row, where no mark is; else at the edge, right of it outside.
            (0, -13) if narrow else (14 if outside else 0, 0),
            textcoords="offset points",
            va="center",
            ha="left" if outside else align,
            fontsize=7.5 if narrow else 8.5,
            color=style.MUTED,
            annotation_clip=False,
        )


def _handle(rule: str) -> Line2D:
    name, look = RULES[rule]
    return style.handle(name, look)


def worst_loss(rows: pl.DataFrame, kind: str) -> pl.DataFrame:
    """The most that each rule loses over the elements of a kind, the least first.

    Of elements with power-of-two scales, which a `floor` rule has; only rules that all of them
    have are compared.
    """
    rows = rows.filter((pl.col("rule") == "floor").any().over("base"), pl.col("kind") == kind)
    rows = rows.filter(~pl.col("rule").is_in([FITTED, LEAST]))
    bases = rows["base"].n_unique()
    common = rows.filter(pl.col("base").n_unique().over("rule") == bases)
    most = common.sort("loss_db", descending=True).unique("rule", maintain_order=True)
    return most.sort("loss_db")


def title(rows: pl.DataFrame) -> str:
    """The rule that loses least at worst, for floats and for integers."""
    best = {
        kind: found.row(0, named=True)
        for kind in ("floating", "integer")
        if len(found := worst_loss(rows, kind))
    }
    said = [
        f"{row['rule']} stays within {words.number(row['loss_db'], 2)} dB of the best scale on "
        f"{'floats' if kind == 'floating' else 'integers'}"
        for kind, row in best.items()
    ]
    lead = "No power-of-two rule suits every element: "
    return (lead if len({row["rule"] for row in best.values()}) > 1 else "") + words.listed(said)


def _sentence(rules: pl.DataFrame) -> str:
    numbers = words.counted(int(rules["numbers"][0]), "number")
    inside = rules.filter(pl.col("loss_db").is_between(*REACH))
    wide = max(inside["high"] - inside["low"]) / 2
    return (
        f"Independent N(0, 1), {numbers} in {rules['tensors'][0]} tensors, seed "
        f"{rules['seed'][0]}; SQNR pooled, rules paired on the same numbers. 95 % intervals are "
        f"at most {words.number(wide, 2)} dB to either side, within the marks. Rules that give "
        "the same scales are drawn inside each other; what lies beyond the axis is written at its "
        "edge. Lloyd-Max levels have the bits, the tile and the scale format of the block."
    )
