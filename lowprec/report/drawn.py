"""The figures of the report for one object at a time, as notebooks want them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl

from lowprec.numerics import Format
from lowprec.report import accumulation_section, formats_section, ledger_figure, page, stored, style
from lowprec.report.accumulation import AccumulationResults
from lowprec.report.figures import code_use
from lowprec.report.figures.lattice import lattice
from lowprec.report.formats import FormatResults
from lowprec.report.results import Results
from lowprec.report.shown import Draw
from lowprec.scaling import QTensor
from lowprec.study.ledger_rows import LedgerRow, ledger_rows
from lowprec.study.ledger_terms import Ledger

Drawn = Mapping[str, tuple[Draw, tuple[Any, ...]]]
"""What can be drawn of an object, by name: a function, and the data it takes."""


def figure(shown: Any, name: str | None = None, *, narrow: bool = False) -> style.Picture:
    """The report's figure of an object: a `Picture`, which a notebook shows.

    | object | figures |
    |---|---|
    | `Format` | `lattice`: its values, and the steps between them |
    | `QTensor` | `code_use`: how its elements fall on the format's values |
    | `Ledger` | `ledger_parts`, `ledger_energy` |
    | `Results`, `FormatResults`, `AccumulationResults` | those of the page, by the same names |

    Args:
      shown: see above.
      name: which of its figures; by default the first that it has data for.
      narrow: drawn for a phone.

    Returns:
      `figure` (matplotlib's), `title` (the finding) and `sentence` (what is shown).

    Raises:
      TypeError: nothing is drawn of such an object.
      ValueError: it has no figure of that name, or no data for it.

    Example:
      >>> from lowprec.numerics import get_format
      >>> figure(get_format("float4_e2m1fn")).title[:52]
      'float4_e2m1fn: 7 positive values over 3.6 octaves, 0'
    """
    found = _figures(shown)
    if name is not None and name not in found:
        raise ValueError(
            f"`name` = {name!r}; of a {type(shown).__name__} there are {', '.join(found)}"
        )
    for draw, data in [found[name]] if name is not None else found.values():
        picture = draw(*data, narrow=narrow)
        if picture is not None:
            return picture
    raise ValueError(
        f"`shown`, a {type(shown).__name__}, has no data for {name or 'any of its figures'}"
    )


def _figures(shown: Any) -> Drawn:
    for kind, figures in _KINDS.items():
        if isinstance(shown, kind):
            return figures(shown)
    raise TypeError(
        f"`shown` is a {type(shown).__name__}; figures are drawn of a "
        f"{', '.join(kind.__name__ for kind in _KINDS)}"
    )


def _of_qtensor(q: QTensor) -> Drawn:
    element = q.block.element
    values = element.values
    if values is None:
        return {}
    codes, counts = np.unique(np.asarray(q.codes), return_counts=True)
    rows = {
        "layer": "a tensor",
        "operand": " x ".join(map(str, q.shape)),
        "block": f"block:{q.block.name}",
        "value": values[codes & element.code_mask],
        "count": counts.astype(np.int64),
    }
    return {"code_use": (code_use, (pl.DataFrame(rows).filter(pl.col("value").is_finite()),))}


def _of_ledger(ledger: Ledger) -> Drawn:
    frame = stored.frame(ledger_rows(ledger, source="", layer=""), LedgerRow)
    return {"ledger_parts": (ledger_figure.parts, (frame,)),
            "ledger_energy": (ledger_figure.energies, (frame,))}  # fmt: skip


def _of_results(results: Results) -> Drawn:
    return {
        name: (draw, (getattr(results, data),)) for name, (_, data, draw) in page.FIGURES.items()
    }


def _of_formats(results: FormatResults) -> Drawn:
    frames = results.frames()
    return {
        name: (draw, tuple(frames[table] for table in data))
        for name, (_, draw, data) in formats_section.FIGURES.items()
    }


def _of_accumulation(results: AccumulationResults) -> Drawn:
    return {
        name: (draw, (results.frames[data],))
        for name, (_, draw, data) in accumulation_section.FIGURES.items()
    }


_KINDS: Mapping[type, Callable[[Any], Drawn]] = {
    Format: lambda fmt: {"lattice": (lattice, (fmt,))},
    QTensor: _of_qtensor,
    Ledger: _of_ledger,
    Results: _of_results,
    FormatResults: _of_formats,
    AccumulationResults: _of_accumulation,
}
