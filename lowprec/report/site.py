"""The report as a site: an overview and a page for each subject, of the tables in a directory."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from lowprec.report import explorer, tables
from lowprec.report.accumulation import read_accumulation
from lowprec.report.accumulation_section import accumulation_section
from lowprec.report.advise import read_advice
from lowprec.report.anatomy import read_anatomy
from lowprec.report.attention_schedule import read_attention_schedule
from lowprec.report.binary_expansion import read_expansion
from lowprec.report.bit_equality import read_bit_equality
from lowprec.report.cast_speed import read_cast_speed
from lowprec.report.communication import read_communication
from lowprec.report.diff import read_diff
from lowprec.report.engine_evidence import read_engine_evidence
from lowprec.report.engine_speed import read_speed
from lowprec.report.findings import findings
from lowprec.report.formats import read_formats
from lowprec.report.formats_section import format_section
from lowprec.report.gemm_recipes import read_recipes
from lowprec.report.gemm_throughput import read_gemm_throughput
from lowprec.report.kv import read_kv
from lowprec.report.kv_speed import read_kv_speed
from lowprec.report.kv_throughput import read_kv_throughput
from lowprec.report.ledger import read_ledger
from lowprec.report.page import FIGURES, Group, Headline, Page, asked, render_page, show
from lowprec.report.prepare import read_prepare
from lowprec.report.proof import read_proof
from lowprec.report.recipe_speed import read_recipe_speed
from lowprec.report.results import Results
from lowprec.report.section import Section
from lowprec.report.shown import Shown, standalone
from lowprec.report.study_killed import read_study_killed
from lowprec.report.study_sections import read_study
from lowprec.report.training import read_training

OVERVIEW, FORMATS, RECIPES = "index.html", "formats.html", "gemm.html"
Read = Callable[[Path], Section | None]


def _formats(folder: Path) -> Section | None:
    found = read_formats(folder)
    return None if found is None else format_section(found)


def _accumulation(folder: Path) -> Section | None:
    found = read_accumulation(folder)
    return None if found is None else accumulation_section(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A page of the site: its file, what links call it, what it is about, and what stands on it.

    Attributes:
      parts: folders of tables, each with the function that reads it, in the page's order.
    """

    file: str
    label: str
    about: str
    parts: tuple[tuple[str, Read], ...]


SUBJECTS: tuple[Subject, ...] = (
    Subject(
        file=FORMATS,
        label="Formats",
        about="What values a format has, how numbers are rounded to them, and what scales cost.",
        parts=(("formats", _formats),),
    ),
    Subject(
        file=RECIPES,
        label="Recipes",
        about="What products lose under a recipe, in which part of it, and what a choice is worth.",
        parts=(
            ("ledger", read_ledger),
            ("anatomy", read_anatomy),
            ("gemm_recipes", read_recipes),
            ("binary_expansion", read_expansion),
            ("prepare", read_prepare),
            ("communication", read_communication),
            ("advise", read_advice),
        ),
    ),
    Subject(
        file="accumulation.html",
        label="Accumulation",
        about="How many bits a sum must keep, and how often it must be promoted.",
        parts=(("accumulation", _accumulation),),
    ),
    Subject(
        file="training.html",
        label="Training",
        about="Whether a model notices the recipe it learns or runs under.",
        parts=(
            ("training", read_training),
            ("diff", read_diff),
        ),
    ),
    Subject(
        file="kv.html",
        label="KV caches",
        about="What caches of fewer bits lose, and what the order of attention's arithmetic does.",
        parts=(
            ("kv", read_kv),
            ("attention_schedule", read_attention_schedule),
        ),
    ),
    Subject(
        file="throughput.html",
        label="Throughput",
        about="What a recipe or a cache buys, modelled on hardware; and how fast emulation is.",
        parts=(
            ("gemm_throughput", read_gemm_throughput),
            ("kv_throughput", read_kv_throughput),
            ("throughput", read_cast_speed),
            ("throughput", read_speed),
            ("throughput/recipes", read_recipe_speed),
            ("throughput/kv", read_kv_speed),
        ),
    ),
    Subject(
        file="studies.html",
        label="Studies",
        about="Products of whole grids of settings, with means over seeds.",
        parts=(("study", read_study),),
    ),
    Subject(
        file="evidence.html",
        label="Evidence",
        about="Why the bits are believed: proofs, captured silicon, independent models, mutants.",
        parts=(
            ("proof", read_proof),
            ("engines", read_engine_evidence),
            ("bit_equality", read_bit_equality),
            ("study_killed", read_study_killed),
        ),
    ),
)
"""The pages of the site after the overview; one without sections is not written."""


def write_report(results: Results, out: Path) -> Path:
    """Writes tables, figures, the manifest and the site into the directory `out`.

    The directory is made where it is missing, its parent is not. The pages have a section of every
    experiment whose tables lie in a folder of `out`, see `SUBJECTS`; without any the comparison
    stands on the first page. The same results give the same bytes in every file; measured times are
    in `timings.*` and in tables of the pages alone.

    Returns:
      The path of the first page, index.html.

    Raises:
      ValueError: the parent of `out` is missing, or `out` is a file.
      OSError: `out` cannot be written.
    """
    out = Path(out)
    if not out.parent.is_dir():
        raise ValueError(f"cannot write a report to {out}: {out.parent} is not a directory")
    if out.exists() and not out.is_dir():
        raise ValueError(f"cannot write a report to {out}: it is a file")
    try:
        out.mkdir(exist_ok=True)
        tables.write_tables(results, out)
        return write_site(results, out, experiments(out))
    except OSError as error:
        raise OSError(f"cannot write the report to {out}: {error}") from error


def experiments(out: Path, without: Collection[str] = ()) -> dict[str, list[Section]]:
    """The sections of the experiments whose tables lie in a directory, by the page's file.

    Args:
      out: the directory.
      without: folders that are passed over.
    """
    return {
        subject.file: [
            dataclasses.replace(section, folder=folder)
            for folder, read in subject.parts
            if folder not in without and (section := read(out / folder)) is not None
        ]
        for subject in SUBJECTS
    }


def write_site(results: Results | None, out: Path, sections: Mapping[str, list[Section]]) -> Path:
    """Writes the pages, and the figures of a comparison; returns the path of the first page.

    Pages and figures of an earlier report that this one lacks are removed.

    Args:
      results: of a comparison, if there is one.
      out: the directory, which is there.
      sections: of experiments, by the page's file.
    """
    drawn = out / "figures"
    shown = [] if results is None else [show(name, results) for name in FIGURES]
    if results is not None:
        drawn.mkdir(exist_ok=True)
    for name, figure in zip(FIGURES, shown, strict=False):
        path = drawn / f"{name}.svg"
        path.unlink(missing_ok=True)
        if figure is not None:
            path.write_text(standalone(figure.wide), encoding="utf-8")
    found = pages(results, [figure for figure in shown if figure is not None], sections)
    labels = {subject.file: subject.label for subject in SUBJECTS} | {OVERVIEW: "Overview"}
    for file in labels.keys() - {page.file for page in found}:
        (out / file).unlink(missing_ok=True)
    links = [(page.file, labels[page.file]) for page in found]
    for page in found:
        (out / page.file).write_text(render_page(page, links), encoding="utf-8")
    return out / OVERVIEW


def pages(
    results: Results | None, shown: Sequence[Shown], sections: Mapping[str, list[Section]]
) -> list[Page]:
    """The pages of a site, the overview first."""
    alone = not any(sections.values())
    overview = Page(
        file=OVERVIEW,
        heading=_question(results),
        title=f"lowprec: {_question(results)}",
        headlines=[] if alone else _headlines(results, sections),
        results=results,
        figures=shown if alone else (),
        in_full=alone,
    )
    others = [
        Page(
            file=subject.file,
            heading=subject.label,
            title=f"lowprec: {subject.label}",
            about=subject.about,
            explorer=explorer.formats_json() if subject.file == FORMATS else "",
            sections=sections.get(subject.file, ()),
            results=results if _has_comparison(subject, alone) else None,
            figures=shown if _has_comparison(subject, alone) else (),
        )
        for subject in SUBJECTS
        if subject.file == FORMATS
        or sections.get(subject.file)
        or (results is not None and _has_comparison(subject, alone))
    ]
    return [overview, *others]


def _has_comparison(subject: Subject, alone: bool) -> bool:
    return subject.file == RECIPES and not alone


def _question(results: Results | None) -> str:
    return "What low precision loses and buys" if results is None else f"Which {asked(results)}"


def _headlines(results: Results | None, sections: Mapping[str, list[Section]]) -> list[Group]:
    """The first finding of every section, and all of the comparison's, by page."""
    groups = []
    for subject in SUBJECTS:
        found = [
            Headline(
                text=section.findings[0].text,
                href=f"{subject.file}#{section.name}",
                label=section.heading.partition(":")[0],
            )
            for section in sections.get(subject.file, ())
            if section.findings
        ]
        if subject.file == RECIPES and results is not None:
            href, label = f"{subject.file}#findings", "Findings"
            compared = findings(results)
            found = [Headline(text=x.text, href=href, label=label) for x in compared] + found
        if subject.file == FORMATS:
            text = f"{len(explorer.names())} formats: values, steps, and how numbers are rounded."
            found.append(Headline(text=text, href=f"{FORMATS}#explorer", label="Explorer"))
        if found:
            groups.append(
                Group(
                    anchor=subject.file.removesuffix(".html"),
                    label=subject.label,
                    about=subject.about,
                    file=subject.file,
                    headlines=found,
                )
            )
    return groups
