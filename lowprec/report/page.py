"""A page of HTML that loads nothing: headlines, findings, figures, tables, sources, manifest."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
import polars as pl

from lowprec.report import dark, digest, entries, figures, tables
from lowprec.report.findings import findings, is_partial, scope
from lowprec.report.results import SCHEMAS, Results
from lowprec.report.section import Section
from lowprec.report.shown import Draw, Shown
from lowprec.report.shown import show as show_figure

FIGURES: Mapping[str, tuple[str, str, Draw]] = {
    "sqnr_by_bits": ("Error against bits", "products", figures.error_by_bits),
    "sqnr_by_layer": ("Error by layer and role", "products", figures.error_by_layer),
    "loss_increase": ("Loss of the model", "model", figures.loss_increase),
    "code_use": ("Use of the format's values", "histogram", figures.code_use),
    "sqnr_by_block": ("Error of block scalings alone", "tensors", figures.tensor_errors),
}
"""Every figure of a comparison by name: its heading, the frame it is drawn from, its function."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Headline:
    """A finding as the overview has it: what was found, and where that stands in full."""

    text: str
    href: str
    label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """The headlines of one page of a site."""

    anchor: str
    label: str
    about: str
    file: str
    headlines: list[Headline]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """A page as it is written.

    Attributes:
      file: its name in the directory of the report.
      heading, title, about: what it says above all, in the browser's bar, and in a sentence.
      headlines: those of a site's other pages.
      explorer: the formats as JSON, for the page on which numbers are tried.
      sections: of experiments.
      results, figures: of a comparison; its findings, tables, sources and manifest follow.
      in_full: whether of a comparison more than its scope and command is shown.
    """

    file: str
    heading: str
    title: str
    about: str = ""
    headlines: Sequence[Group] = ()
    explorer: str = ""
    sections: Sequence[Section] = ()
    results: Results | None = None
    figures: Sequence[Shown] = ()
    in_full: bool = True


def show(name: str, results: Results) -> Shown | None:
    """A figure in both widths, or None where its data are missing."""
    heading, data, draw = FIGURES[name]
    return show_figure(name, heading, data, draw, getattr(results, data))


def asked(results: Results) -> str:
    """What a comparison is of, in a question."""
    lone = results.products.is_empty() and len(results.tensors)
    return f"low-precision {'block scaling' if lone else 'recipe'} loses how much"


def render(results: Results, shown: list[Shown], sections: Sequence[Section] = ()) -> str:
    """The text of a page on its own, of a comparison and of experiments."""
    question = asked(results)
    return render_page(
        Page(
            file="index.html",
            heading=f"Which {question}",
            title=f"lowprec: which {question.removeprefix('low-precision ')}",
            sections=sections,
            results=results,
            figures=shown,
        )
    )


def render_page(page: Page, links: Sequence[tuple[str, str]] = ()) -> str:
    """The text of a page.

    Args:
      page: what stands on it.
      links: files and labels of all pages of the site, the page's own too.
    """
    return _template().render(
        page=page,
        links=[{"file": file, "label": label} for file, label in links],
        comparison=None if page.results is None else _comparison(page.results, page.figures),
        colours=dark.colours(),
    )


def _comparison(results: Results, shown: Sequence[Shown]) -> dict[str, Any]:
    frames = results.frames()
    return {
        "command": results.command,
        "scope": scope(results),
        "findings": findings(results),
        "figures": shown,
        "tables": digest.page_tables(results),
        "timings": digest.timing_table(results.timings),
        "entries": entries.used_entries(results),
        "manifest": tables.flat(results.manifest),
        "partial": is_partial(results),
        "files": [(name, _rows(frames[name])) for name in SCHEMAS if len(frames[name])],
    }


def _rows(frame: pl.DataFrame) -> str:
    return f"{len(frame):,}"


def _inline(drawn: str) -> str:
    """An `<svg>` element within a page: in the page's colours; its own id may be a section's."""
    return dark.themed(re.sub(r'^<svg id="[^"]*" ', "<svg ", drawn))


@functools.cache
def _template() -> jinja2.Template:
    folder = files("lowprec.report").joinpath("templates")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = _inline
    return environment.get_template("page.html.jinja")
