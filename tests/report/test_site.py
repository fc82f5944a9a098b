"""The site: its pages and links, what the overview says, and that it is built again from tables."""

import dataclasses
import shutil
from pathlib import Path

import polars as pl
import pytest

from lowprec.report import Results, write_report
from lowprec.report.findings import findings
from lowprec.report.rebuild import read_results, rebuild
from lowprec.report.site import SUBJECTS, experiments, pages
from tests.report import synthetic
from tests.report.test_page import Page, contents
from tests.report.test_proof import frames

ROOT = Path(__file__).parents[2]
LIMIT = 5 * 2**20
"""Bytes of a page, which some hosts refuse beyond."""


def small() -> Results:
    return synthetic.results(products=synthetic.products(layers=3))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "out"
    (out / "proof").mkdir(parents=True)
    for name, frame in frames().items():
        frame.write_csv(out / "proof" / f"{name}.csv")
    write_report(small(), out)
    return out


def broken(folder: Path) -> list[str]:
    """Links of a report's pages that lead nowhere."""
    found = {path.name: Page(path.read_text(encoding="utf-8")) for path in folder.glob("*.html")}
    lost = []
    for name, page in found.items():
        assert not page.open and len(page.ids) == len(set(page.ids)), name
        for link in page.links:
            file, _, anchor = link.partition("#")
            if link == "data:,":
                continue
            there = (folder / file).is_file() if file else True
            ids = found[file or name].ids if (file or name) in found else [anchor]
            if not there or ":" in link or (anchor and anchor not in ids):
                lost.append(f"{name}: {link}")
    return lost


def test_pages_are_linked_and_every_link_leads_somewhere(report: Path) -> None:
    names = {path.name for path in report.glob("*.html")}
    assert names == {"index.html", "formats.html", "gemm.html", "evidence.html"}
    assert broken(report) == []
    for name in names:
        page = Page((report / name).read_text(encoding="utf-8"))
        assert names <= set(page.links) and page.tags.count("h1") == 1


def test_the_overview_has_the_findings_of_pages(report: Path) -> None:
    overview = Page((report / "index.html").read_text(encoding="utf-8"))
    said = " ".join(overview.words)
    for finding in findings(small()):
        assert finding.text in said
    [proof] = experiments(report)["evidence.html"]
    assert proof.findings[0].text in said and "evidence.html#proof" in overview.links
    assert "svg" not in overview.tags and "gemm.html#findings" in overview.links
    recipes = Page((report / "gemm.html").read_text(encoding="utf-8"))
    assert recipes.tags.count("svg") == 8 and "sources" in recipes.ids


def test_it_is_built_again_with_the_same_bytes(report: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(report, copy)
    before = contents(copy)
    shutil.rmtree(copy / "figures")
    for path in copy.glob("*.html"):
        path.write_text("stale")
    (copy / "training.html").write_text("of an earlier report")
    assert rebuild(copy) == copy / "index.html"
    assert contents(copy) == before
    # Without the experiment the comparison stands on the first page.
    rebuild(copy, without=["proof"])
    alone = {path.name for path in copy.glob("*.html")}
    assert alone == {"index.html", "formats.html"}
    assert "svg" in Page((copy / "index.html").read_text(encoding="utf-8")).tags


def test_experiments_alone_are_a_site(report: Path, tmp_path: Path) -> None:
    shutil.copytree(report / "proof", tmp_path / "proof")
    page = Page(rebuild(tmp_path).read_text(encoding="utf-8"))
    assert "What low precision loses and buys" in page.words and "manifest.json" not in page.links
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"proof", "index.html", "formats.html", "evidence.html"}


def test_results_are_read_back(report: Path) -> None:
    found = read_results(report)
    assert found is not None and found.command == small().command
    assert found.products.equals(small().products) and found.manifest == small().manifest


def test_what_cannot_be_built_is_said(report: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no directory .*missing"):
        rebuild(tmp_path / "missing")
    with pytest.raises(ValueError, match="has nothing to report"):
        rebuild(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot read the report in"):
        rebuild(tmp_path)
    shutil.copy(report / "manifest.json", tmp_path)
    (tmp_path / "products.parquet").write_text("no table")
    with pytest.raises(ValueError, match="cannot read the report in"):
        rebuild(tmp_path)


def test_sections_have_the_folder_of_their_tables(report: Path) -> None:
    [proof] = experiments(report)["evidence.html"]
    moved = dataclasses.replace(proof, folder="throughput/kv")
    sections = {subject.file: [moved] for subject in SUBJECTS[-1:]}
    assert proof.folder == "proof" and moved.folder == "throughput/kv"
    assert [page.file for page in pages(None, [], sections)][-1] == "evidence.html"


def test_files_and_labels_of_pages_differ() -> None:
    assert len({subject.file for subject in SUBJECTS}) == len(SUBJECTS)
    assert len({subject.label for subject in SUBJECTS}) == len(SUBJECTS)
    readers = [read for subject in SUBJECTS for _, read in subject.parts]
    assert len(readers) == len(set(readers))


def test_committed_pages_are_whole() -> None:
    folder = ROOT / "reports"
    found = list(folder.glob("*.html"))
    assert found and all(path.stat().st_size < LIMIT for path in found)
    assert broken(folder) == []


def test_empty_results_are_a_page(tmp_path: Path) -> None:
    nothing = pl.DataFrame()
    results = synthetic.results(
        products=nothing, tensors=nothing, cards=nothing, model=nothing, histogram=nothing
    )
    assert [page.file for page in pages(results, [], {})] == ["index.html", "formats.html"]
    assert broken(write_report(results, tmp_path / "out").parent) == []
