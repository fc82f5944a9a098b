"""The report's section on accumulation, from the tables that an experiment wrote."""

import math
from collections.abc import Mapping
from typing import Any

import polars as pl

from lowprec.report import shown, words
from lowprec.report.accumulation import AccumulationResults
from lowprec.report.digest import Column, Table
from lowprec.report.figures import accumulation, accumulation_front, accumulation_swamping
from lowprec.report.figures.accumulation_parts import DEPTH, HOPPER, LENGTH, PROMOTED
from lowprec.report.findings import Finding
from lowprec.report.section import Section

FIGURES: Mapping[str, tuple[str, shown.Draw, str]] = {
    "accumulation_depth": ("Error by depth", accumulation.error_by_depth, "errors"),
    "accumulation_bits": ("Shrinkage and residual by bits", accumulation.error_by_bits, "errors"),
    "accumulation_promotion": (
        "Error by promotion interval",
        accumulation.promotion_interval,
        "errors",
    ),
    "accumulation_front": ("Error against cost", accumulation_front.error_cost_front, "front"),
    "accumulation_swamping": (
        "Swamping in fp16 (1,6,9)",
        accumulation_swamping.swamping,
        "swamping",
    ),
}
"""Every figure by name: its heading, its function, and the table it is drawn from."""


def accumulation_section(results: AccumulationResults) -> Section:
    """The section of these results, its figures drawn anew."""
    drawn = [
        shown.show(name, heading, data, function, results.frames[data])
        for name, (heading, function, data) in FIGURES.items()
    ]
    return Section(
        name="accumulation",
        heading="Accumulation: how many bits, and promoted when",
        note=(
            "Sums of products of E4M3 numbers of a known distribution, or drawn after captured "
            "cards, in engines that differ from Hopper's FP8 in their widths alone."
        ),
        command=str(results.manifest.get("command", "")),
        date=str(results.manifest.get("date", "")),
        seconds=int(results.manifest.get("seconds", 0)),
        findings=findings(results),
        figures=[figure for figure in drawn if figure is not None],
        tables=tables(results),
    )


def findings(results: AccumulationResults) -> list[Finding]:
    """The findings, each computed from the tables, with what it rests on."""
    makers = (_depth, _promotion, _bits, _gain, _bounds, _front, _published, _swamping)
    return [found for maker in makers if (found := maker(results.frames)) is not None]


Frames = Mapping[str, pl.DataFrame]


def _engine(errors: pl.DataFrame) -> pl.DataFrame:
    return errors.filter(pl.col("fused_length") == LENGTH)


def _scope(errors: pl.DataFrame) -> str:
    row = errors.row(0, named=True)
    return (
        f"E4M3 operands, {words.counted(row['outputs'], 'sum')} of {row['seeds']} seeds, 95 % "
        "intervals over seeds"
    )


def _span(row: dict[str, Any], name: str, stem: str) -> str:
    low, high = (words.percent(row[f"{stem}_{end}"], 3) for end in ("low", "high"))
    return f"{words.percent(row[name], 3)} ({low} to {high})"


def _depth(frames: Frames) -> Finding | None:
    errors = frames["errors"]
    if errors.is_empty():
        return None
    rows = _engine(errors).filter(
        pl.col("fraction_bits") == HOPPER,
        pl.col("promote_every").is_in([0, PROMOTED]),
        pl.col("k").is_in([DEPTH, max(errors["k"])]),
    )
    cells = [
        f"{row['distribution']} K = {row['k']} "
        f"{'promoted every 128' if row['promote_every'] else 'never promoted'} "
        f"{_span(row, 'relative_error', 'relative')}"
        for row in rows.iter_rows(named=True)
    ]
    return Finding(
        text=f"{accumulation.depth_title(errors)}.",
        evidence=f"|y - x| / |x|, {_scope(errors)}, 13 bits: {'; '.join(cells)}",
    )


def _promotion(frames: Frames) -> Finding | None:
    errors = frames["errors"]
    if errors.is_empty():
        return None
    rows = frames["promotion"].filter(
        pl.col("fused_length") == LENGTH,
        pl.col("fraction_bits") == HOPPER,
        pl.col("promote_every") == PROMOTED,
        pl.col("k") == max(errors["k"]),
    )
    cells = [
        f"{row['distribution']} {words.number(row['noise_db'], 1)} dB "
        f"({words.number(row['low'], 1)} to {words.number(row['high'], 1)})"
        for row in rows.iter_rows(named=True)
    ]
    return Finding(
        text=f"{accumulation.interval_title(errors)}.",
        evidence=f"{_scope(errors)}; squared error over that without, paired: {'; '.join(cells)}",
    )


def _bits(frames: Frames) -> Finding | None:
    errors = frames["errors"]
    if errors.is_empty():
        return None
    rows = _engine(errors).filter(pl.col("k") == max(errors["k"]))
    cells = [
        f"{name} {bits or 'none of them'}"
        for name in rows["distribution"].unique(maintain_order=True)
        for bits in [accumulation.matching_bits(rows, name)]
    ]
    return Finding(
        text=f"{accumulation.bits_title(errors)}.",
        evidence=f"{_scope(errors)}; at K = {max(errors['k'])}: {', '.join(cells)}",
    )


def _gain(frames: Frames) -> Finding | None:
    errors = frames["errors"]
    if errors.is_empty():
        return None
    rows = _engine(errors).filter(
        pl.col("k") == DEPTH,
        pl.col("fraction_bits") == HOPPER,
        pl.col("promote_every") == 0,
    )
    if rows.is_empty():
        return None
    shares = [
        f"{words.percent(row['gain'] ** 2 / row['relative_error'] ** 2, 0)} on "
        f"{row['distribution']}"
        for row in rows.iter_rows(named=True)
    ]
    cells = [
        f"{row['distribution']} gain {_span(row, 'gain', 'gain')}, residual "
        f"{_span(row, 'residual', 'residual')}"
        for row in rows.iter_rows(named=True)
    ]
    return Finding(
        text=(
            "Of the squared error of a 13-bit chain never promoted, shrinkage is "
            f"{words.listed(shares)}."
        ),
        evidence=f"K = {DEPTH}, {_scope(errors)}: {'; '.join(cells)}",
    )


def _bounds(frames: Frames) -> Finding | None:
    errors = frames["errors"]
    if errors.is_empty():
        return None
    worst = max(errors["worst_share"])
    chains = _engine(errors).filter(
        pl.col("fraction_bits") == HOPPER,
        pl.col("promote_every") == 0,
        pl.col("k") == DEPTH,
    )
    cells = [
        f"{row['distribution']} {words.percent(row['relative_error'], 2)} against "
        f"{words.percent(row['deterministic_bound'], 1)} and "
        f"{words.percent(row['probabilistic_bound'], 2)}, "
        f"{words.percent(row['within_probabilistic'], 1)} of errors within"
        for row in chains.iter_rows(named=True)
    ]
    short = errors.filter(pl.col("within_probabilistic") < pl.col("coverage"))
    names = short["distribution"].unique(maintain_order=True).to_list()
    said = words.listed(names) if names else "no distribution"
    return Finding(
        text=(
            f"{'No error exceeds its' if worst <= 1 else 'Errors exceed their'} deterministic "
            f"bound (at most {words.percent(worst, 0)} of it); "
            f"the probabilistic one, for errors of mean zero, fails on {said}."
        ),
        evidence=(
            f"{words.counted(len(errors), 'setting')}, of which {len(short)} have fewer errors "
            f"within than {words.percent(errors['coverage'][0], 1)}; 13 bits never promoted at "
            f"K = {DEPTH}, error against both bounds: {'; '.join(cells)}"
        ),
    )


def _front(frames: Frames) -> Finding | None:
    front = frames["front"]
    if front.is_empty():
        return None
    best = front.filter("on_front")
    cells = []
    for name in best["distribution"].unique(maintain_order=True):
        rows = best.filter(pl.col("distribution") == name).sort("cost")
        promoted = rows.filter(pl.col("promote_every") > 0)
        cells.append(
            f"{name} {len(promoted)} of {len(rows)}, from F = {min(rows['fraction_bits'])} to "
            f"{max(rows['fraction_bits'])}"
        )
    return Finding(
        text=f"{accumulation_front.title(front)}.",
        evidence=(
            f"a proxy of counted bits, not an area; K = {front['k'][0]}; engines on the front that "
            f"promote, of all on it: {'; '.join(cells)}"
        ),
    )


def _published(frames: Frames) -> Finding | None:
    rows = frames["published"]
    if rows.is_empty():
        return None
    first = rows.row(0, named=True)
    fits = rows.filter("fits")
    cells = [
        f"{row['distribution']}, F = {row['fraction_bits']}, {row['norm']}: "
        f"{words.percent(row['value'], 2)}"
        for row in fits.iter_rows(named=True)
    ]
    hopper = rows.filter(pl.col("fraction_bits") == HOPPER, pl.col("promote_every") == 0)
    found = hopper.filter("fits")
    settings = [f"{row['distribution']} ({row['norm']})" for row in found.to_dicts()]
    text = f"“Nearly 2 %” ({first['source']}) at K = {first['k']} comes out in "
    text += words.listed(settings) if settings else f"none of {len(hopper)} settings"
    text += " at 13 bits, never promoted."
    nearest = min(hopper.to_dicts(), key=lambda row: abs(math.log(row["value"] / row["most"])))
    largest = hopper.filter(pl.col("norm") == "max |y-x|/|x|")
    others = [
        f"{row['distribution']} {words.percent(row['value'], 1)}"
        for row in largest.iter_rows(named=True)
    ]
    median = rows.filter(
        pl.col("distribution") == first["distribution"],
        pl.col("norm") == "median |y-x|/|x|",
        pl.col("fraction_bits") == HOPPER,
    )
    medians = [
        f"{words.percent(row['value'], 2)} {'promoted' if row['promote_every'] else 'alone'}"
        for row in median.iter_rows(named=True)
    ]
    return Finding(
        text=text,
        evidence=(
            f"{len(rows)} settings, {words.percent(first['least'], 2)} to "
            f"{words.percent(first['most'], 2)} counted as nearly 2 %; those that fit: "
            f"{'; '.join(cells) or 'none'}. Nearest at 13 bits: {nearest['distribution']}, "
            f"{nearest['norm']}, {words.percent(nearest['value'], 2)}; where signs are random the "
            f"largest has no limit but the number of sums. Largest |y - x| / |x| at 13 bits: "
            f"{', '.join(others)}. Median of {first['distribution']}: {', '.join(medians)}"
        ),
    )


def _swamping(frames: Frames) -> Finding | None:
    rows = frames["swamping"]
    if rows.is_empty():
        return None
    cells = [
        f"{row['engine']} K = {row['k']} {words.number(row['ratio'], 4)} "
        f"({words.number(row['ratio_low'], 4)} to {words.number(row['ratio_high'], 4)}), error of "
        f"a sum {words.percent(row['relative_error'], 2)}"
        for row in rows.filter(pl.col("k").is_in([DEPTH, max(rows["k"])])).to_dicts()
    ]
    short = rows.filter(pl.col("within_probabilistic") < pl.col("coverage"))
    failing = [
        f"{name} from K = {min(short.filter(pl.col('engine') == name)['k'])} on"
        for name in short["engine"].unique(maintain_order=True)
    ]
    first = rows.row(0, named=True)
    return Finding(
        text=f"{accumulation_swamping.title(rows)}.",
        evidence=(
            f"uniform numbers of mean {first['mean']:g} and standard deviation "
            f"{first['standard_deviation']:g}, the figure of {first['source']} as we read it, not "
            f"verified; mean of sum over exact sum: {'; '.join(cells)}. Largest part that an error "
            f"is of its deterministic bound: {words.percent(max(rows['worst_share']), 0)}; the "
            f"probabilistic one fails on {words.listed(failing) or 'none'}"
        ),
    )


def tables(results: AccumulationResults) -> list[Table]:
    """The tables of the section, summed up; the files hold every row."""
    frames = results.frames
    errors = frames["errors"]
    shown_errors = errors.filter(
        pl.col("fused_length") == LENGTH,
        pl.col("k").is_in([1024, DEPTH, 16384]),
        pl.col("promote_every").is_in([0, PROMOTED]),
        pl.col("fraction_bits").is_in([8, 10, 13, 16, 20, 25]),
    )
    published = frames["published"].filter(pl.col("fraction_bits") == HOPPER)
    return [
        _table("errors", "Errors by width, depth and promotion", _ERRORS_NOTE, shown_errors, [
            ("numbers", False, lambda r: r["distribution"]),
            ("K", True, lambda r: str(r["k"])),
            ("F", True, lambda r: str(r["fraction_bits"])),
            ("N_C", True, _interval),
            ("gain", True, lambda r: words.percent(r["gain"], 4)),
            ("residual", True, lambda r: words.percent(r["residual"], 4)),
            ("relative error", True, lambda r: words.percent(r["relative_error"], 4)),
            ("95 % interval", True, lambda r: " to ".join(
                words.percent(r[f"relative_{end}"], 4) for end in ("low", "high"))),
            ("deterministic bound", True, lambda r: words.percent(r["deterministic_bound"], 3)),
            ("probabilistic bound", True, lambda r: words.percent(r["probabilistic_bound"], 3)),
        ]),
        _table("front", "The front of error against cost", _FRONT_NOTE,
               frames["front"].filter("on_front").sort("distribution", "cost"), [
            ("numbers", False, lambda r: r["distribution"]),
            ("L", True, lambda r: str(r["fused_length"])),
            ("F", True, lambda r: str(r["fraction_bits"])),
            ("N_C", True, _interval),
            ("shifters", True, lambda r: str(r["shifter_bits"])),
            ("adders", True, lambda r: str(r["adder_bits"])),
            ("register", True, lambda r: str(r["held_bits"])),
            ("promotion", True, lambda r: words.number(r["promotion_bits"], 0)),
            ("bits a product", True, lambda r: words.number(r["cost"], 1)),
            ("relative error", True, lambda r: words.percent(r["relative_error"], 4)),
        ]),
        _table("published", "Readings of a published error", _PUBLISHED_NOTE, published, [
            ("numbers", False, lambda r: r["distribution"]),
            ("N_C", True, _interval),
            ("norm", False, lambda r: r["norm"]),
            ("value", True, lambda r: words.percent(r["value"], 3)),
            ("nearly 2 %", False, lambda r: "yes" if r["fits"] else "no"),
        ]),
        _table("synthetic", "Numbers drawn after cards", _SYNTHETIC_NOTE, frames["synthetic"], [
            ("operand", False, lambda r: r["tensor"]),
            ("statistic", False, lambda r: r["statistic"]),
            ("captured", True, lambda r: words.significant(r["captured"], 4)),
            ("synthetic", True, lambda r: words.significant(r["synthetic"], 4)),
        ]),
    ]  # fmt: skip


def _interval(row: dict[str, Any]) -> str:
    return str(row["promote_every"]) if row["promote_every"] else "never"


def _table(name: str, title: str, note: str, frame: pl.DataFrame, columns: list[Column]) -> Table:
    rows = [[cell(row) for _, _, cell in columns] for row in frame.iter_rows(named=True)]
    headings = [(heading, numeric) for heading, numeric, _ in columns]
    return Table(name=name, title=title, note=note, columns=headings, rows=rows)


_ERRORS_NOTE = (
    "Steps of 32 products of E4M3 operands; gain is the slope of sums on exact sums minus 1, the "
    "residual what is left without it, both as parts of the exact sums' norm, as are both bounds."
)
_FRONT_NOTE = (
    "Engines that none beats in both. Bits of one step, as lowprec.study.accumulation_cost counts "
    "them, and of all over the products of a step: a proxy, no area."
)
_PUBLISHED_NOTE = (
    "DeepSeek-V3's report gives a maximum relative error of nearly 2 % at K = 4096 and names no "
    "numbers; 13 bits here, other widths in the file."
)
_SYNTHETIC_NOTE = (
    "Statistics of the captured operand and of numbers drawn after its card in the same shape. "
    "Heavy tails make the kurtosis of any one draw fall short; longer sums draw further channels."
)
