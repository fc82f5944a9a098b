"""The report's section on formats and scale rules, from the tables that an experiment wrote."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from lowprec.report import shown, words
from lowprec.report.digest import Column, Row, Table
from lowprec.report.figures import crest, matmul_bound, nvfp4_rounding, scale_rules
from lowprec.report.findings import Finding
from lowprec.report.formats import FormatResults
from lowprec.report.section import Section

FIGURES: Mapping[str, tuple[str, shown.Draw, tuple[str, ...]]] = {
    "scale_rule_loss": ("What scale rules lose", scale_rules.rule_losses, ("rules",)),
    "nvfp4_rounding": ("NVFP4 by its rounding", nvfp4_rounding.squared_errors, ("rounding",)),
    "crest_crossings": (
        "Integers against floats by crest factor",
        crest.crest_crossings,
        ("crest", "crossings"),
    ),
    "bits_above_bound": (
        "Bits above the bound for Gaussian products",
        matmul_bound.excess_bits,
        ("bound", "gaussian"),
    ),
}
"""Every figure by name: its heading, its function, and the tables it is drawn from."""


def format_section(results: FormatResults) -> Section:
    """The section of these results, its figures drawn anew."""
    return Section(
        name="formats",
        heading="Formats and scale rules",
        note="Numbers of a known distribution, not of a model.",
        command=str(results.manifest.get("command", "")),
        date=str(results.manifest.get("date", "")),
        seconds=int(results.manifest.get("seconds", 0)),
        findings=findings(results),
        figures=draw(results),
        tables=tables(results),
    )


def draw(results: FormatResults) -> list[shown.Shown]:
    """The figures that the tables have rows for."""
    frames = results.frames()
    drawn = [
        shown.show(name, heading, data[0], function, *(frames[table] for table in data))
        for name, (heading, function, data) in FIGURES.items()
    ]
    return [figure for figure in drawn if figure is not None]


def findings(results: FormatResults) -> list[Finding]:
    """The findings, each computed from the tables, with what it rests on."""
    makers = (_rules, _levels, _rounding, _crossings, _bound, _published)
    return [found for maker in makers if (found := maker(results)) is not None]


def _over(frame: pl.DataFrame) -> str:
    row = frame.row(0, named=True)
    return (
        f"{words.counted(row['numbers'], 'number')} from N(0, 1) in {row['tensors']} tensors, seed "
        f"{row['seed']}"
    )


def _rules(results: FormatResults) -> Finding | None:
    rows = results.rules.filter(pl.col("rule") != scale_rules.LEAST)
    if rows.is_empty():
        return None
    cells = [
        f"{row['rule']} {words.number(row['loss_db'], 2)} ({row['base'].removeprefix('block:')}, "
        f"{words.number(row['low'], 2)} to {words.number(row['high'], 2)})"
        for kind in ("floating", "integer")
        for row in scale_rules.worst_loss(rows, kind).iter_rows(named=True)
    ]
    unresolved = [
        f"{row['base'].removeprefix('block:')} {row['rule']}"
        for row in rows.filter(pl.col("outcome") == "not resolved").iter_rows(named=True)
    ]
    tail = f". Not resolved from no loss: {words.listed(unresolved)}" if unresolved else ""
    return Finding(
        text=f"{scale_rules.title(rows)}.",
        evidence=(
            f"SQNR, {_over(rows)}; the most that each rule loses over floats, then integers, dB "
            f"with paired 95 % intervals: {'; '.join(cells)}{tail}"
        ),
    )


def _levels(results: FormatResults) -> Finding | None:
    rows = results.rules.filter(pl.col("rule") == scale_rules.FITTED)
    if rows.is_empty():
        return None
    ordered = rows.sort("loss_db")
    most, least = ordered.row(0, named=True), ordered.row(-1, named=True)
    return Finding(
        text=(
            f"At equal bits Lloyd-Max levels keep {words.number(-most['loss_db'], 2)} dB more than "
            f"{most['base']} at its best scales, and {words.number(-least['loss_db'], 2)} dB more "
            f"than {least['base']}: what the choice of element costs on normal numbers."
        ),
        evidence=(
            f"SQNR, {_over(rows)}, levels fitted to other numbers; paired 95 % intervals "
            f"{words.signed(-most['high'], 3)} to {words.signed(-most['low'], 3)} dB and "
            f"{words.signed(-least['high'], 3)} to {words.signed(-least['low'], 3)} dB"
        ),
    )


def _rounding(results: FormatResults) -> Finding | None:
    rows = results.rounding
    if rows.is_empty():
        return None
    cells = [
        f"{row['target'].removeprefix('block:')} "
        f"{words.signed(row['more_noise_low'], 2)} to {words.signed(row['more_noise_high'], 2)} dB"
        for row in rows.iter_rows(named=True)
        if row["target"] != rows["target"][0]
    ]
    gains = [
        f"{row['target'].removeprefix('block:')} {words.percent(row['gain'], 3)} "
        f"({words.percent(row['gain_standard_error'], 3)})"
        for row in rows.iter_rows(named=True)
        if row["target"] in (nvfp4_rounding.NEAREST, *nvfp4_rounding.RANDOM)
    ]
    return Finding(
        text=f"{nvfp4_rounding.title(rows)}.",
        evidence=(
            f"mean squared error, {_over(rows)}; noise over that of {rows['target'][0]}, paired "
            f"95 % intervals: {'; '.join(cells)}. Gain and its standard error: {'; '.join(gains)}"
        ),
    )


def _crossings(results: FormatResults) -> Finding | None:
    rows = results.crossings
    if rows.is_empty():
        return None
    found = rows.filter(pl.col("crest").is_not_null())
    cells = [
        f"{row['pair']} {crest.FAMILIES[row['family']][0]} {words.number(row['crest'], 2)} "
        f"({words.number(row['low'], 2)} to {words.number(row['high'], 2)})"
        for row in found.iter_rows(named=True)
    ]
    exact = [
        f"{row['pair']} {words.number(row['predicted'], 2)} and "
        f"{words.number(row['predicted_exact'], 2)}"
        for row in rows.unique("pair", maintain_order=True).iter_rows(named=True)
    ]
    predicted = (
        "equations 13 and 14 of arXiv 2510.25602 give, as printed and with the integers' true "
        f"largest value, {', '.join(exact)}"
    )
    beyond = rows.filter(pl.col("published") > pl.col("limit")).unique("pair", maintain_order=True)
    notes = [
        f"the published crossing of {row['pair']}, {words.number(row['published'], 2)}, lies "
        f"beyond √{round(row['limit'] ** 2)} = {words.number(row['limit'], 2)}, the most that a "
        "block of that size can have"
        for row in beyond.iter_rows(named=True)
    ]
    return Finding(
        text=f"{crest.title(rows)}.",
        evidence="; ".join(
            [f"crossings with 95 % intervals: {', '.join(cells) or 'none'}", predicted, *notes]
        ),
    )


def _bound(results: FormatResults) -> Finding | None:
    if results.bound.is_empty():
        return None
    rows = matmul_bound.kinds(results.bound, results.gaussian)
    rows = rows.filter(pl.col("bits_per_element") <= matmul_bound.CEILING)
    if rows.is_empty():
        return None
    best = matmul_bound.best_by_bits(rows)
    cells = [
        f"{row['target'].partition(':')[2]} {words.number(row['excess_bits'], 2)} of "
        f"{words.number(row['bits_per_element'], 2)} "
        f"({words.number(row['excess_low'], 2)} to {words.number(row['excess_high'], 2)})"
        for row in best.iter_rows(named=True)
    ]
    return Finding(
        text=f"{matmul_bound.title(rows)}.",
        evidence=(
            f"relative squared Frobenius error of {results.bound['products'][0]} products; the "
            f"best of each whole number of bits but for levels fitted to these numbers, with 95 % "
            f"intervals: {'; '.join(cells)}"
        ),
    )


def _published(results: FormatResults) -> Finding | None:
    rows = results.published
    if rows.is_empty():
        return None
    missed = rows.filter(~pl.col("reproduced"))
    cells = [
        f"{row['target']} {_measured(row['measure'], row['published'])}, here "
        f"{_measured(row['measure'], row['ours'])}"
        for row in missed.iter_rows(named=True)
    ]
    text = f"{len(rows) - len(missed)} of {len(rows)} quoted errors are reproduced"
    evidence = "errors within half a unit of their last place and the sampling error of both"
    evidence += f"; not: {'; '.join(cells)}" if cells else ""
    pairs = results.crossings["pair"].unique(maintain_order=True).to_list()
    met = [pair for pair in pairs if _meets(results.crossings.filter(pl.col("pair") == pair))]
    if pairs:
        text += f", and {len(met)} of {len(pairs)} published crossings"
        printed = results.crossings.unique("pair", maintain_order=True)
        cells = [f"{r['pair']} {r['published']}" for r in printed.iter_rows(named=True)]
        evidence += (
            f"; crossings ({', '.join(cells)}, arXiv 2510.25602) within the 95 % interval of a "
            "distribution and half a unit"
        )
    return Finding(text=f"{text}.", evidence=evidence)


def _meets(rows: pl.DataFrame) -> bool:
    """Whether the published crossing of a pair lies where a curve of ours crosses."""
    half = 0.005
    inside = (pl.col("published") >= pl.col("low") - half) & (
        pl.col("published") <= pl.col("high") + half
    )
    return not rows.filter(inside).is_empty()


def _measured(measure: str, value: float) -> str:
    if measure == "sqnr_db":
        return f"{words.number(value, 2)} dB"
    return words.significant(value, 4)


def tables(results: FormatResults) -> list[Table]:
    """The tables of the section."""
    return [
        _table("published", _PUBLISHED, results.published),
        _table("earlier", _EARLIER, results.earlier),
        _table("rounding", _ROUNDING, results.rounding),
        _table("crossings", _CROSSINGS, results.crossings),
        _table("rules", _RULES, results.rules),
        _table("gaussian", _GAUSSIAN, results.gaussian.sort("sqnr_db", descending=True)),
        _table("bound", _BOUND, results.bound.sort("excess_bits")),
    ]


@dataclasses.dataclass(frozen=True)
class _Layout:
    title: str
    note: str
    columns: list[Column]


def _table(name: str, layout: _Layout, frame: pl.DataFrame) -> Table:
    rows = [[cell(row) for _, _, cell in layout.columns] for row in frame.iter_rows(named=True)]
    headings = [(heading, numeric) for heading, numeric, _ in layout.columns]
    return Table(name=name, title=layout.title, note=layout.note, columns=headings, rows=rows)


def _text(name: str) -> Callable[[Row], str]:
    return lambda row: str(row[name]) or words.DASH


def _number(name: str, digits: int) -> Callable[[Row], str]:
    return lambda row: words.number(row[name], digits)


def _significant(name: str, digits: int = 4) -> Callable[[Row], str]:
    return lambda row: words.significant(row[name], digits)


def _interval(low: str, high: str, digits: int) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        if row[low] is None:
            return words.DASH
        return f"{words.number(row[low], digits)} to {words.number(row[high], digits)}"

    return cell


def _yes(name: str, otherwise: str) -> Callable[[Row], str]:
    return lambda row: "yes" if row[name] else otherwise


def _either(digits: int, name: str) -> Callable[[Row], str]:
    """A figure of `published`, in dB or as a squared error."""

    def cell(row: dict[str, Any]) -> str:
        if row["measure"] == "sqnr_db":
            return words.number(row[name], digits)
        return words.significant(row[name], 4)

    return cell


_PUBLISHED = _Layout(
    "Quoted figures beside ours",
    "SQNR in dB or mean squared error on independent N(0, 1). A figure counts as reproduced where "
    "it differs by no more than half a unit of its last place and the sampling error of both.",
    [
        ("entry", False, _text("target")),
        ("measure", False, _text("measure")),
        ("published", True, _either(2, "published")),
        ("ours", True, _either(3, "ours")),
        ("difference", True, _either(3, "difference")),
        ("allowed", True, _either(3, "allowed")),
        ("reproduced", False, _yes("reproduced", "no")),
        ("source", False, _text("source")),
    ],
)
_EARLIER = _Layout(
    "Figures of earlier runs of this project",
    "SQNR in dB on independent N(0, 1), as a NumPy transcription of the sources had it before this "
    "library; nothing that others published. Within: by half a unit of the last place and the "
    "sampling error of both.",
    [
        ("entry", False, _text("target")),
        ("earlier", True, _number("earlier", 2)),
        ("now", True, _number("ours", 3)),
        ("difference", True, _number("difference", 3)),
        ("allowed", True, _number("allowed", 3)),
        ("within", False, _yes("within", "no")),
    ],
)
_ROUNDING = _Layout(
    "NVFP4 by its rounding",
    "Mean squared error on independent N(0, 1), and the noise over that of round-to-nearest, "
    "paired. The gain is the least-squares slope minus 1: 0 for what is unbiased.",
    [
        ("entry", False, _text("target")),
        ("squared error", True, _significant("mean_squared_error")),
        ("published", True, _significant("published", 3)),
        ("more noise, dB", True, lambda row: words.signed(row["more_noise_db"], 2)),
        ("95 % interval", True, _interval("more_noise_low", "more_noise_high", 3)),
        ("gain", True, lambda row: words.percent(row["gain"], 3)),
        ("its standard error", True, lambda row: words.percent(row["gain_standard_error"], 3)),
    ],
)
_CROSSINGS = _Layout(
    "Where integers and floats of equal bits cross",
    "Crest factor, max / rms averaged over blocks, at which the two have the same error; published "
    "and predicted are figure 3 and equations 13 and 14 of arXiv 2510.25602, the latter also with "
    "the integers' true largest value.",
    [
        ("pair", False, _text("pair")),
        ("numbers", False, lambda row: crest.FAMILIES[row["family"]][0]),
        ("better", False, _text("outcome")),
        ("crossing", True, _number("crest", 3)),
        ("95 % interval", True, _interval("low", "high", 3)),
        ("seen from", True, _number("crest_from", 2)),
        ("to", True, _number("crest_to", 2)),
        ("predicted", True, _number("predicted", 2)),
        ("with the true integers", True, _number("predicted_exact", 2)),
        ("published", True, _number("published", 2)),
        ("largest possible", True, _number("limit", 2)),
    ],
)
_RULES = _Layout(
    "Scale rules against the scale of least squared error",
    "SQNR lost on independent N(0, 1), paired on the same numbers; negative where the entry is "
    "better. Lloyd-Max levels replace the elements at equal bits.",
    [
        ("element of", False, _text("base")),
        ("rule", False, _text("rule")),
        ("bits/element", True, _number("bits_per_element", 2)),
        ("SQNR, dB", True, _number("sqnr_db", 3)),
        ("loss, dB", True, _number("loss_db", 3)),
        ("95 % interval", True, _interval("low", "high", 3)),
        ("outcome", False, _text("outcome")),
    ],
)
_GAUSSIAN = _Layout(
    "Every block and format on normal numbers",
    "Independent N(0, 1) in tensors of 128 x 128, contracted along rows; SQNR pooled over all "
    "numbers with an interval over tensors, gain with White's standard error, and what remains "
    "without the gain.",
    [
        ("entry", False, _text("target")),
        ("rule", False, _text("scale_rule")),
        ("rounding", False, _text("rounding")),
        ("bits/element", True, _number("bits_per_element", 3)),
        ("SQNR, dB", True, _number("sqnr_db", 2)),
        ("95 % interval", True, _interval("sqnr_low", "sqnr_high", 2)),
        ("gain", True, lambda row: words.percent(row["gain"], 3)),
        ("its standard error", True, lambda row: words.percent(row["gain_standard_error"], 3)),
        ("after gain, dB", True, _number("residual_sqnr_db", 2)),
        ("squared error", True, _significant("mean_squared_error", 3)),
        ("origin", False, _text("origin")),
    ],
)
_BOUND = _Layout(
    "Bits above the bound for Gaussian products",
    "Relative squared error of products of two quantized N(0, 1) matrices; the rate at which no "
    "scheme has less (arXiv 2410.13780); and the bits beyond it.",
    [
        ("entry", False, _text("target")),
        ("bits/element", True, _number("bits_per_element", 3)),
        ("product error", True, _significant("product_error", 3)),
        ("rate of the bound", True, _number("rate", 3)),
        ("bits above", True, _number("excess_bits", 3)),
        ("95 % interval", True, _interval("excess_low", "excess_high", 3)),
    ],
)
