"""Bits that blocks spend beyond the bound for products of Gaussian matrices."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lowprec.report import style, words
from lowprec.report.figures.blocks import spread

KINDS: dict[str, style.Look] = {
    "floating point": {"color": "#0072b2", "marker": "o"},
    "integer": {"color": "#d55e00", "marker": "s"},
    "levels from a table (NF4, Lloyd-Max)": {"color": "#009e73", "marker": "^"},
    "logarithmic": {"color": "#882255", "marker": "D"},
    "stochastic rounding": {"color": "#cc79a7", "marker": "v"},
}
COMMON = ("block:mxfp4", "block:nvfp4", "block:mxfp8_e4m3_rceil", "block:fp8_1x128")
"""What is named beside the best and the worst."""
_FITTED = pl.col("target").str.contains("lloyd_max")
_LETTER = 0.065
"""The width of a letter of a name, in bits of the axis."""
CEILING = 13.0
"""Bits an element up to which blocks are drawn: 16-bit formats would halve the scale."""


def excess_bits(
    bound: pl.DataFrame, gaussian: pl.DataFrame, *, narrow: bool = False
) -> style.Picture | None:
    """A point for each block: its bits, and how many of them the bound does without."""
    rows = kinds(bound, gaussian).filter(pl.col("bits_per_element") <= CEILING)
    if rows.is_empty():
        return None
    heading = title(rows)
    with style.look(narrow):
        figure = style.start(narrow, 4.9, 4.6, heading)
        axes = figure.subplots()
        for kind, look in KINDS.items():
            points = rows.filter(pl.col("kind") == kind)
            axes.plot(
                points["bits_per_element"],
                points["excess_bits"],
                **look,
                linestyle="none",
                markersize=6.5,
                markeredgecolor="white",
            )
        top = 1.06 * max(rows["excess_bits"])
        axes.set_ylim(0, top)
        axes.set_xlim(min(rows["bits_per_element"]) - 0.3, CEILING - 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        if not narrow:
            _name(axes, rows, 0.05 * top)
        axes.set_xlabel("bits per element, scales included")
        axes.set_ylabel("bits above the bound")
        present = [kind for kind in KINDS if kind in set(rows["kind"])]
        handles = [style.handle(kind, KINDS[kind]) for kind in present]
        style.legend(figure, handles, narrow)
    return style.Picture(figure=figure, title=heading, sentence=_sentence(rows))


def kinds(bound: pl.DataFrame, gaussian: pl.DataFrame) -> pl.DataFrame:
    """The rows with `kind`, which says what their elements are."""
    described = gaussian.select("target", "element", "scale_rule", "rounding", "origin")
    element, rule = pl.col("element"), pl.col("scale_rule")
    kind = (
        pl.when(pl.col("rounding").str.starts_with("stochastic"))
        .then(pl.lit("stochastic rounding"))
        .when(rule == "logarithmic")
        .then(pl.lit("logarithmic"))
        .when(element.str.contains("^u?int|^mxint"))
        .then(pl.lit("integer"))
        .when(element.str.contains("^nf4|^lloyd_max|^binary$|^ternary$"))
        .then(pl.lit("levels from a table (NF4, Lloyd-Max)"))
        .otherwise(pl.lit("floating point"))
    )
    return bound.join(described, on="target", maintain_order="left").with_columns(kind=kind)


def best_by_bits(rows: pl.DataFrame) -> pl.DataFrame:
    """The row of least excess of each whole number of bits, fitted levels left out."""
    whole = rows.filter(~_FITTED).with_columns(bits=pl.col("bits_per_element").floor())
    ordered = whole.sort("excess_bits", "target").unique("bits", maintain_order=True)
    return ordered.sort("bits_per_element")


def _name(axes: Axes, rows: pl.DataFrame, gap: float) -> None:
    """Names the best and the worst block of every two bits, and the common ones."""
    whole = rows.filter(~_FITTED).with_columns(bits=(pl.col("bits_per_element") / 2).floor())
    for _, group in whole.group_by("bits", maintain_order=True):
        ends = group.sort("excess_bits")
        some = [ends.head(1), ends.filter(pl.col("target").is_in(COMMON))]
        named = pl.concat([*some, ends.tail(1)] if len(ends) > 3 else some).unique("target")
        named = named.sort("excess_bits", "target")
        right = max(group["bits_per_element"]) + 0.14
        # Names of the last points stand to their left: the axis ends on the other side.
        last = right > CEILING - 2
        place = min(group["bits_per_element"]) - 0.14 if last else right
        heights = spread(named["excess_bits"].to_list(), gap)
        for row, height in zip(named.iter_rows(named=True), heights, strict=True):
            height = max(height, gap / 2)
            room = 27 if last else _letters(rows, right, height, gap)
            color = KINDS[row["kind"]]["color"]
            axes.annotate(
                words.label(row["target"].partition(":")[2], room),
                (row["bits_per_element"], row["excess_bits"]),
                (place, height),
                ha="right" if last else "left",
                va="center",
                color=color,
                fontsize=7.5,
                arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkB": 3},
            )


def _letters(rows: pl.DataFrame, left: float, height: float, gap: float) -> int:
    """How many letters of a name fit between a place and the next marker at its height."""
    beside = (pl.col("excess_bits") - height).abs() < gap / 2
    after = rows.filter(beside, pl.col("bits_per_element") > left)["bits_per_element"].to_list()
    return max(5, min(27, int((min(after, default=CEILING) - left - 0.1) / _LETTER)))


def title(rows: pl.DataFrame) -> str:
    """The catalogue's block that comes closest to the bound, and what 8-bit ones spend."""
    known = rows.filter(pl.col("target").str.starts_with("block:"), pl.col("origin") == "catalogue")
    if known.is_empty():
        return "Bits above the bound for Gaussian products"
    ordered = known.sort("excess_bits", "target")
    eight = ordered.filter(pl.col("bits_per_element").is_between(7.5, 8.5))
    common = eight.filter(pl.col("target").is_in(COMMON))
    least = ordered.row(0, named=True)
    said = (
        f"Of the catalogue's blocks {least['target'].removeprefix('block:')} comes closest to the "
        f"bound for Gaussian products, {words.number(least['excess_bits'], 2)} of its "
        f"{words.number(least['bits_per_element'], 2)} bits above it"
    )
    if eight.is_empty() or common.is_empty():
        return said
    best, plain = eight.row(0, named=True), common.row(-1, named=True)
    return (
        f"{said}; of those of 8 bits {best['target'].removeprefix('block:')} spends "
        f"{words.number(best['excess_bits'], 2)}, {plain['target'].removeprefix('block:')} "
        f"{words.number(plain['excess_bits'], 2)}"
    )


def _sentence(rows: pl.DataFrame) -> str:
    row = rows.row(0, named=True)
    return (
        f"Products of independent N(0, 1) matrices, {row['a']} x {row['n']} by {row['n']} x "
        f"{row['b']}, both operands quantized; squared Frobenius error over n a b, "
        f"{row['products']} products, seed {row['seed']}. The bound is the least error of any "
        "scheme with as many bits an entry (arXiv 2410.13780). 95 % intervals are at most "
        f"{words.number(max(rows['excess_high'] - rows['excess_low']) / 2, 2)} bits to a side. "
        "Named: the best and the worst of every two bits, and common ones."
    )
