"""One HTML page that needs nothing beside it: findings, figures, tables, sources, manifest."""

import functools
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import jinja2
import polars as pl

from lowprec.report import digest, entries, figures, tables
from lowprec.report.accumulation import read_accumulation
from lowprec.report.accumulation_section import accumulation_section
from lowprec.report.advise import read_advice
from lowprec.report.anatomy import read_anatomy
from lowprec.report.attention_schedule import read_attention_schedule
from lowprec.report.binary_expansion import read_expansion
from lowprec.report.bit_equality import read_bit_equality
from lowprec.report.communication import read_communication
from lowprec.report.engine_speed import read_speed
from lowprec.report.findings import findings, is_partial, scope
from lowprec.report.formats import read_formats
from lowprec.report.formats_section import format_section
from lowprec.report.gemm_recipes import read_recipes
from lowprec.report.kv import read_kv
from lowprec.report.kv_speed import read_kv_speed
from lowprec.report.kv_throughput import read_kv_throughput
from lowprec.report.ledger import read_ledger
from lowprec.report.prepare import read_prepare
from lowprec.report.proof import read_proof
from lowprec.report.recipe_speed import read_recipe_speed
from lowprec.report.results import SCHEMAS, Results
from lowprec.report.section import Section
from lowprec.report.shown import Draw, Shown, standalone
from lowprec.report.shown import show as show_figure
from lowprec.report.training import read_training

FIGURES: Mapping[str, tuple[str, str, Draw]] = {
    "sqnr_by_bits": ("Error against bits", "products", figures.error_by_bits),
    "sqnr_by_layer": ("Error by layer and role", "products", figures.error_by_layer),
    "loss_increase": ("Loss of the model", "model", figures.loss_increase),
    "code_use": ("Use of the format's values", "histogram", figures.code_use),
    "sqnr_by_block": ("Error of block scalings alone", "tensors", figures.tensor_errors),
}
"""Every figure by name: its heading, the frame it is drawn from, and its function."""


def write_report(results: Results, out: Path) -> Path:
    """Writes tables, figures, the manifest and `index.html` into the directory `out`.

    The directory is made where it is missing, its parent is not. The page has a section of every
    experiment whose tables lie in a folder of `out`, as `experiments` finds them. The same results
    give the same bytes in every file; measured times are in `timings.*` and in tables of the page
    alone.

    Returns:
      The path of the page.

    Raises:
      ValueError: the parent of `out` is missing, or `out` is a file.
      OSError: `out` cannot be written.
    """
    out = Path(out)
    if not out.parent.is_dir():
        raise ValueError(f"cannot write a report to {out}: {out.parent} is not a directory")
    if out.exists() and not out.is_dir():
        raise ValueError(f"cannot write a report to {out}: it is a file")
    drawn = out / "figures"
    try:
        drawn.mkdir(parents=True, exist_ok=True)
        tables.write_tables(results, out)
        shown = [show(name, results) for name in FIGURES]
        for name, figure in zip(FIGURES, shown, strict=True):
            path = drawn / f"{name}.svg"
            path.unlink(missing_ok=True)
            if figure is not None:
                path.write_text(standalone(figure.wide), encoding="utf-8")
        page = out / "index.html"
        text = render(results, [f for f in shown if f is not None], experiments(out))
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OSError(f"cannot write the report to {out}: {error}") from error
    return page


def show(name: str, results: Results) -> Shown | None:
    """A figure in both widths, or None where its data are missing."""
    heading, data, draw = FIGURES[name]
    return show_figure(name, heading, data, draw, getattr(results, data))


def experiments(out: Path) -> list[Section]:
    """The sections of the experiments whose tables lie in a directory, in the page's order."""
    compared, studied = read_formats(out / "formats"), read_accumulation(out / "accumulation")
    found = (
        read_proof(out / "proof"),
        read_bit_equality(out / "bit_equality"),
        None if compared is None else format_section(compared),
        None if studied is None else accumulation_section(studied),
        read_ledger(out / "ledger"),
        read_anatomy(out / "anatomy"),
        read_recipes(out / "gemm_recipes"),
        read_expansion(out / "binary_expansion"),
        read_prepare(out / "prepare"),
        read_communication(out / "communication"),
        read_advice(out / "advise"),
        read_training(out / "training"),
        read_kv(out / "kv"),
        read_attention_schedule(out / "attention_schedule"),
        read_kv_throughput(out / "kv_throughput"),
        read_speed(out / "throughput"),
        read_recipe_speed(out / "throughput" / "recipes"),
        read_kv_speed(out / "throughput" / "kv"),
    )
    return [section for section in found if section is not None]


def render(results: Results, shown: list[Shown], sections: Sequence[Section] = ()) -> str:
    """The page's text."""
    frames = results.frames()
    return _template().render(
        command=results.command,
        subject="block scaling"
        if results.products.is_empty() and len(results.tensors)
        else "recipe",
        scope=scope(results),
        findings=findings(results),
        figures=shown,
        sections=sections,
        tables=digest.page_tables(results),
        timings=digest.timing_table(results.timings),
        entries=entries.used_entries(results),
        manifest=tables.flat(results.manifest),
        partial=is_partial(results),
        files=[(name, _rows(frames[name])) for name in SCHEMAS if len(frames[name])],
    )


def _rows(frame: pl.DataFrame) -> str:
    return f"{len(frame):,}"


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
    return environment.get_template("index.html.jinja")
