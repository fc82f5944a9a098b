"""The catalogue entries that a report's rows name, each with its citation and class."""

import dataclasses

import polars as pl

from lowprec import catalogue
from lowprec.engines import get_engine
from lowprec.report import comparisons
from lowprec.report.results import Results

_FOLDERS: dict[str, catalogue.Kind] = {
    "recipe": "recipes",
    "block": "blocks",
    "engine": "engines",
    "format": "elements",
    "element": "elements",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Used:
    """An entry as named in the rows; without a citation where it is not the catalogue's."""

    name: str
    citation: str
    note: str
    evidence: str


def used_entries(results: Results) -> list[Used]:
    """Every recipe, block, format and engine that the frames name, recipes first."""
    products = results.products
    named = dict.fromkeys(
        name
        for frame, column in (
            (products, "recipe"),
            (results.model, "recipe"),
            (products, "block_a"),
            (products, "block_b"),
            (results.tensors, "block"),
            (results.histogram, "block"),
            (products, "engine"),
        )
        for name in sorted(comparisons.in_order(frame[column].drop_nulls()))
    )
    order = list(_FOLDERS)
    kinds = {name: name.partition(":")[0] for name in named}
    ranked = sorted(named, key=lambda n: order.index(kinds[n]) if kinds[n] in order else 9)
    return [_used(name, products) for name in ranked]


def _used(qualified: str, products: pl.DataFrame) -> Used:
    kind, _, name = qualified.partition(":")
    folder = _FOLDERS.get(kind)
    if folder is None or name not in catalogue.names(folder):
        evidence = _evidence(kind, None, qualified, products)
        missing = "not in the catalogue: the user's own"
        return Used(name=qualified, citation=missing, note="", evidence=evidence)
    citation = catalogue.lookup(folder, name).citation
    return Used(
        name=qualified,
        citation=str(citation or ""),
        note=citation.note if citation else "",
        evidence=_evidence(kind, name, qualified, products),
    )


def _evidence(kind: str, name: str | None, qualified: str, products: pl.DataFrame) -> str:
    """Casts and scales are bit exact; an engine says its class, and a recipe's rows theirs."""
    if kind == "engine" and name is not None:
        return get_engine(name).reproducibility
    if kind == "recipe":
        rows = products.filter(pl.col("recipe") == qualified)
        return ", ".join(comparisons.in_order(rows["reproducibility"].drop_nulls()))
    return "bit_exact" if kind in ("block", "format", "element") else ""
