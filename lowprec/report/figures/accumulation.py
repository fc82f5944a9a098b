"""The error of accumulation against depth, width and promotion, beside its bounds."""

import polars as pl

from lowprec.report import style, words
from lowprec.report.figures import accumulation_parts as parts
from lowprec.report.figures.accumulation_parts import DEPTH, HOPPER, LENGTH, PROMOTED

CHAINS: dict[tuple[int, int], tuple[str, style.Look]] = {
    (HOPPER, 0): ("13 bits, never promoted", {"color": "#d55e00", "marker": "o"}),
    (HOPPER, PROMOTED): ("13 bits, promoted every 128", {"color": "#0072b2", "marker": "s"}),
    (25, 0): ("25 bits, never promoted", {"color": "#009e73", "marker": "^"}),
}
"""The chains of `error_by_depth` by width and promotion interval."""
_FLOOR = 1e-9
_WIDTHS = (8, 13, 20)
_PROMOTION: dict[int, tuple[str, style.Look]] = {
    0: ("never promoted", {"color": "#d55e00"}),
    PROMOTED: ("promoted every 128", {"color": "#0072b2"}),
}
"""The curves of `error_by_bits` by promotion interval."""
_PARTS = {"gain": ("shrinkage (gain, negated)", "o", -1), "residual": ("residual", "s", 1)}


def error_by_depth(errors: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """A panel for each distribution: the error over K beside both bounds."""
    rows = errors.filter(pl.col("fused_length") == LENGTH)
    if rows.is_empty():
        return None
    heading = depth_title(errors)
    depths = sorted(set(rows["k"]))
    with style.look(narrow):
        figure, grid, names = parts.panels(rows, narrow, heading)
        for axes, name in zip(grid, names, strict=True):
            for (bits, every), (_, look) in CHAINS.items():
                of = parts.at(rows, name, bits, every).sort("k")
                parts.with_bars(axes, of, "k", "relative_error", look)
                parts.bounds(axes, of, "k", look["color"])
            style.powers_of_ten(axes)
            parts.powers_of_two(axes, depths, narrow)
        grid[0].set_ylim(_FLOOR, 2 * _top(rows))
        parts.label(grid, narrow, "products in a sum, K", parts.ERROR)
        handles = [parts.line(label, look) for label, look in CHAINS.values()]
        style.legend(figure, [*handles, *parts.bound_handles()], narrow, columns=3)
        span = f"{depths[0]} to {depths[-1]}"
        parts.setting(figure, narrow, rows, depth=span, length=str(LENGTH))
    sentence = (
        "Errors of sums in independent pairs of matrices, against the exact product of their E4M3 "
        "numbers; 95 % intervals over seeds lie within the markers but where bars show. "
        f"{parts.BOUNDS_SENTENCE}"
    )
    return style.Picture(figure=figure, title=heading, sentence=sentence)


def _top(rows: pl.DataFrame) -> float:
    """The largest bound that is drawn."""
    drawn = pl.any_horizontal(
        (pl.col("fraction_bits") == bits) & (pl.col("promote_every") == every)
        for bits, every in CHAINS
    )
    return max(rows.filter(drawn)["deterministic_bound"], default=1.0)


def depth_title(errors: pl.DataFrame) -> str:
    """What a chain and a promoted one lose on the first distribution."""
    name = errors["distribution"][0]
    cells = []
    for bits, every in CHAINS:
        row = parts.at(errors.filter(pl.col("fused_length") == LENGTH), name, bits, every, DEPTH)
        cells.append(words.percent(row["relative_error"][0], 2) if len(row) else words.DASH)
    chain, promoted, wide = cells
    return (
        f"On {name} a chain of {DEPTH} products at 13 bits loses {chain} of the sum, promoted "
        f"every 128 {promoted}, at 25 bits {wide}"
    )


def error_by_bits(errors: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """A panel for each distribution over F: shrinkage, what is left without it, both bounds."""
    rows = errors.filter(pl.col("fused_length") == LENGTH, pl.col("k") == DEPTH)
    if rows.is_empty():
        return None
    heading = bits_title(errors)
    with style.look(narrow):
        figure, grid, names = parts.panels(rows, narrow, heading)
        for axes, name in zip(grid, names, strict=True):
            for every, (_, look) in _PROMOTION.items():
                of = parts.only(rows, name, every).sort("fraction_bits")
                for part, (_, marker, sign) in _PARTS.items():
                    parts.with_bars(
                        axes, of, "fraction_bits", part, look | {"marker": marker}, sign=sign,
                        hollow=part == "residual",
                    )  # fmt: skip
                parts.bounds(axes, of, "fraction_bits", look["color"])
            axes.axvline(HOPPER, color=style.MUTED, linewidth=0.8)
            axes.annotate("Hopper FP8", (HOPPER, 0.03), (3, 0), color=style.MUTED,
                          xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                          fontsize=8)  # fmt: skip
            style.powers_of_ten(axes)
            axes.set_xticks(range(8, 26, 2 if not narrow else 4))
        parts.label(grid, narrow, "fraction bits kept in a step, F", "part of the sum")
        handles = [parts.line(label, look | {"marker": "o"}) for label, look in _PROMOTION.values()]
        handles += [
            parts.line(label, {"color": style.INK, "marker": marker}, hollow=part == "residual")
            for part, (label, marker, _) in _PARTS.items()
        ]
        style.legend(figure, [*handles, *parts.bound_handles()], narrow, columns=3)
        parts.setting(figure, narrow, rows, depth=str(DEPTH), length=str(LENGTH))
    sentence = (
        "Gain is the least-squares slope of sums on exact sums minus 1, the residual what is left "
        "without it, both as parts of the exact sums' norm, with 95 % intervals over seeds; the "
        "error is the root of the sum of their squares, so that its bounds hold for either. Gains "
        "whose interval holds zero are left out. "
        "From F = 24 on the register stays at float32's 23 bits, and what a step keeps below them "
        f"is cut toward zero. {parts.BOUNDS_SENTENCE}"
    )
    return style.Picture(figure=figure, title=heading, sentence=sentence)


def bits_title(errors: pl.DataFrame) -> str:
    """How many more bits a chain needs for what promotion gives 13."""
    rows = errors.filter(pl.col("fused_length") == LENGTH, pl.col("k") == DEPTH)
    said = []
    for name in rows["distribution"].unique(maintain_order=True):
        bits = matching_bits(rows, name)
        said.append(f"{'more' if bits is None else bits} on {name}")
    return (
        f"For the error of 13 bits promoted every 128 at K = {DEPTH}, a chain that is never "
        f"promoted must keep so many bits: {words.listed(said)}"
    )


def matching_bits(rows: pl.DataFrame, name: str) -> int | None:
    """The least width whose unpromoted chain errs no more than 13 bits promoted every 128."""
    promoted = parts.at(rows, name, HOPPER, PROMOTED)
    if promoted.is_empty():
        return None
    wanted = promoted["relative_error"][0]
    enough = parts.only(rows, name, 0).filter(pl.col("relative_error") <= wanted)
    return None if enough.is_empty() else int(min(enough["fraction_bits"]))


def promotion_interval(errors: pl.DataFrame, *, narrow: bool = False) -> style.Picture | None:
    """A panel for each distribution: the error over the promotion interval, a curve for each F."""
    if errors.is_empty():
        return None
    rows = errors.filter(pl.col("fused_length") == LENGTH, pl.col("k") == max(errors["k"]))
    heading = interval_title(errors)
    intervals = sorted(set(rows["promote_every"]) - {0})
    places = {every: place for place, every in enumerate([*intervals, 0])}
    looks = {
        bits: {"color": color, "marker": marker}
        for bits, color, marker in zip(_WIDTHS, style.PALETTE, style.MARKERS, strict=False)
    }
    with style.look(narrow):
        figure, grid, names = parts.panels(rows, narrow, heading)
        for axes, name in zip(grid, names, strict=True):
            for bits, look in looks.items():
                of = rows.filter(
                    pl.col("distribution") == name, pl.col("fraction_bits") == bits
                ).with_columns(
                    place=pl.col("promote_every").replace_strict(places, return_dtype=pl.Int64)
                )
                of = of.sort("place")
                parts.with_bars(axes, of, "place", "relative_error", look)
                parts.bounds(axes, of, "place", look["color"])
            axes.set_xticks(range(len(places)), [*map(str, intervals), "never"])
            style.powers_of_ten(axes)
        parts.label(grid, narrow, "elements between promotions, N_C", parts.ERROR)
        handles = [parts.line(f"F = {bits}", look) for bits, look in looks.items()]
        style.legend(figure, [*handles, *parts.bound_handles()], narrow)
        parts.setting(figure, narrow, rows, depth=str(max(errors["k"])), length=str(LENGTH))
    sentence = (
        "Every so many elements the chain is added to a float32 sum and begins again from zero; at "
        f"{LENGTH} each step is promoted, and what is left is the truncation within one step. 95 % "
        f"intervals over seeds; the file has the other widths. {parts.BOUNDS_SENTENCE}"
    )
    return style.Picture(figure=figure, title=heading, sentence=sentence)


def interval_title(errors: pl.DataFrame) -> str:
    """By what promotion divides the error at Hopper's width."""
    k = max(errors["k"])
    rows = errors.filter(pl.col("fused_length") == LENGTH, pl.col("k") == k)
    said = []
    for name in rows["distribution"].unique(maintain_order=True):
        promoted, never = (
            parts.at(rows, name, HOPPER, every)["relative_error"] for every in (PROMOTED, 0)
        )
        if len(promoted) and len(never):
            said.append(f"{times(never[0] / promoted[0])} on {name}")
    return (
        f"Over {k} products at 13 bits promotion every 128 divides the error by "
        f"{words.listed(said)}"
    )


def times(factor: float) -> str:
    """A factor with two digits or more, without a power of ten."""
    return words.number(factor, 1 if factor < 10 else 0)
