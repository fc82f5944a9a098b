"""The headline findings of a report: each computed, each with what it rests on."""

import dataclasses

import polars as pl

from lowprec.report import comparisons, tables, words
from lowprec.report.figures import blocks, layers, loss
from lowprec.report.results import Results

_SCOPE = {
    "model": "model",
    "text": "text",
    "seed": "seed",
    "seeds": "seeds",
    "preset": "preset",
    "preset.name": "preset",
    "preset.seed": "seed",
    "device": "device",
    "device.kind": "device",
}
"""The manifest's keys, in it or in its settings, that say what a finding holds for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A sentence and its evidence: over what, and with which interval."""

    text: str
    evidence: str


def findings(results: Results) -> list[Finding]:
    """The findings that the data allow, at most five."""
    found: list[Finding | None] = []
    rows = comparisons.with_series(results.products)
    if len(comparisons.lossy(rows)):
        found += [_bits(rows), _roles(rows), _layer(rows), _gain(results.products)]
    if len(loss.lossy_models(results.model)):
        found.insert(0, _loss(results.model))
    if len(results.tensors) and not len(results.products):
        found += [_tensors(results.tensors)]
    return [finding for finding in found if finding is not None][:5]


def scope(results: Results) -> list[str]:
    """What the results are about, in a few phrases: sources, layers, shapes, text, seeds."""
    phrases = []
    products, model = results.products, results.model
    sources = [
        name
        for frame in (products, results.tensors, results.cards)
        for name in comparisons.in_order(frame["source"])
    ]
    if sources:
        phrases.append(words.listed([words.label(name, 60) for name in dict.fromkeys(sources)]))
    if len(products):
        layers = products.select("source", "layer").n_unique()
        shapes = products.select("m", "k", "n").n_unique()
        extents = ", ".join(_range(products[axis]) for axis in ("m", "k", "n"))
        phrases += [
            words.counted(layers, "layer"),
            f"{words.counted(shapes, 'shape')} (M, K, N: {extents})",
        ]
    elif len(results.tensors):
        count = results.tensors.select("source", "name").n_unique()
        phrases.append(words.counted(count, "tensor"))
    if len(model):
        documents = words.counted(max(model["documents"]), "document")
        phrases.append(f"{documents} of {words.counted(max(model['bytes']), 'byte')}")
    for key, value in tables.flat(results.manifest):
        name = _SCOPE.get(key.removeprefix("settings."))
        if name is not None and value:
            phrases.append(f"{name} {words.label(value, 60)}")
    return phrases


def is_partial(results: Results) -> bool:
    """Whether the manifest says that the run ended before it was complete."""
    lines = dict(tables.flat(results.manifest))
    return "False" in (lines.get("complete"), lines.get("settings.complete"))


def _range(values: pl.Series) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low}{words.DASH}{high}"


def _loss(model: pl.DataFrame) -> Finding:
    rows = loss.lossy_models(model)
    full = rows.filter(pl.col("quantized") == "both")
    full = full if len(full) else rows
    cells = [
        f"{row['recipe']} {words.signed(row['low'], 4)} to {words.signed(row['high'], 4)}"
        for row in ([full.row(0, named=True)] + [full.row(-1, named=True)] * (len(full) > 1))
    ]
    return Finding(
        text=f"{loss.loss_title(model)}.",
        evidence=f"95 % paired bootstrap intervals over documents: {'; '.join(cells)}",
    )


def _bits(rows: pl.DataFrame) -> Finding | None:
    pair = comparisons.lowest_bits(rows)
    return pair and Finding(text=f"{pair.title()}.", evidence=pair.evidence())


def _roles(rows: pl.DataFrame) -> Finding | None:
    """The hardest role against the easiest, paired over layers and recipes."""
    lossy, roles = comparisons.lossy(rows), comparisons.roles(rows)
    if len(roles) < 2:
        return None
    wide = lossy.group_by("series", "source", "layer", "role").agg(pl.col("sqnr_db").mean())
    medians = {
        role: comparisons.median(wide.filter(pl.col("role") == role)["sqnr_db"]) or 0.0
        for role in comparisons.roles(lossy)
    }
    hard, easy = min(medians, key=medians.__getitem__), max(medians, key=medians.__getitem__)
    left, right = (wide.filter(pl.col("role") == role) for role in (easy, hard))
    pairs = left.join(right, on=["series", "source", "layer"], suffix="_hard")
    # One value a layer: recipes of a layer share its operands and are no independent samples.
    gaps = pairs.with_columns(gap=pl.col("sqnr_db") - pl.col("sqnr_db_hard"))
    layers = gaps.group_by("source", "layer").agg(pl.col("gap").median())["gap"]
    middle, interval = comparisons.median(layers), comparisons.median_interval(layers.to_list())
    if middle is None:
        return None
    resolved = interval is not None and interval[0] > 0
    tail = "" if resolved else ", not resolved"
    text = f"{hard} loses {words.number(middle)} dB more than {easy}{tail}."
    if middle <= 0 or hard == easy:
        text = f"{hard} and {easy} differ by {words.number(abs(middle))} dB, not resolved."
    over = f"median over {words.counted(len(layers), 'layer')} of each layer's median recipe"
    if interval is not None:
        over += (
            f", 95 % interval {words.signed(interval[0], 2)} to {words.signed(interval[1], 2)} dB"
        )
    else:
        over += ", too few for an interval"
    return Finding(text=text, evidence=over)


def _layer(rows: pl.DataFrame) -> Finding | None:
    lossy = comparisons.lossy(rows)
    if lossy["place"].n_unique() < 2:
        return None
    text, evidence = layers.finding(lossy)
    return Finding(text=f"{text}.", evidence=evidence.removesuffix("."))


def _gain(products: pl.DataFrame) -> Finding | None:
    """The recipe whose results are most shrunk or stretched, which SQNR does not show."""
    rows = comparisons.with_series(products)
    rows = comparisons.lossy(rows).filter(
        pl.col("gain").is_finite(), pl.col("gain_standard_error").is_finite()
    )
    if rows.is_empty():
        return None
    medians = rows.group_by("series").agg(pl.col("gain").median(), pl.len())
    most = medians.sort(pl.col("gain").abs(), "series", descending=[True, False]).row(0, named=True)
    gains = rows.filter(pl.col("series") == most["series"])
    clear = gains.filter(pl.col("gain").abs() > 1.96 * pl.col("gain_standard_error"))
    interval = comparisons.median_interval(
        gains.group_by("source", "layer").agg(pl.col("gain").median())["gain"].to_list()
    )
    verb = "shrinks" if most["gain"] < 0 else "stretches"
    resolved = interval is not None and (interval[0] > 0 or interval[1] < 0)
    tail = "" if resolved else ", not resolved"
    return Finding(
        text=(
            f"{most['series']} {verb} products by {words.percent(abs(most['gain']), 2)}, the "
            f"largest median gain of {words.counted(len(medians), 'recipe')}{tail}."
        ),
        evidence=(
            f"the gain of {len(clear)} of {words.counted(most['len'], 'product')} lies beyond "
            "1.96 standard errors"
        ),
    )


def _tensors(tensors: pl.DataFrame) -> Finding | None:
    """The block scalings of least and most error."""
    rows = tensors.filter(pl.col("sqnr_db").is_finite(), ~pl.col("block").is_in(blocks.BASELINES))
    medians = rows.group_by("block").agg(
        pl.col("sqnr_db").median(), pl.col("bits_per_element").median()
    )
    if medians.is_empty():
        return None
    ordered = medians.sort("sqnr_db", "block", descending=[True, False])
    ends = [ordered.row(0, named=True), ordered.row(-1, named=True)][: len(ordered)]
    amount = ["the most", "the least"]
    listed = [
        f"{row['block']} keeps {which}, {words.number(row['sqnr_db'])} dB at "
        f"{words.number(row['bits_per_element'], 2)} bits per element"
        for row, which in zip(ends, amount, strict=False)
    ]
    names = rows.select("source", "name").n_unique()
    return Finding(
        text=f"Of {words.counted(len(ordered), 'block scaling')}, {words.listed(listed)}.",
        evidence=f"median SQNR over {words.counted(names, 'tensor')}",
    )
