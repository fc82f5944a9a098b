"""The page: whole, self-contained, safe against hostile names, the same when written again."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from lowprec.report import Results, write_report
from lowprec.report.findings import findings, scope
from lowprec.report.results import SCHEMAS
from tests.report import synthetic

VOID = {"meta", "link", "br", "hr", "img", "input"}
HOSTILE = '<script>alert("x")</script>$\\frac{$ & \x07层 id="q" url(#'
FEW = 7
PAGES = {"index.html", "formats.html"}
"""Of a comparison without experiments."""


class Page(HTMLParser):
    """Checks that tags balance, and collects ids, links and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def small(**changes: object) -> Results:
    return synthetic.results(products=synthetic.products(layers=FEW), **changes)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("report") / "out"
    assert write_report(small(), out) == out / "index.html"
    yield out


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page((report / "index.html").read_text(encoding="utf-8"))


def test_page_is_balanced_and_ids_are_unique(page: Page) -> None:
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("h1") == 1 and page.tags.count("svg") == 8


def test_page_needs_nothing_beside_it(report: Path, page: Page) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    assert page.tags.count("script") == 2 and "@import" not in text and "@font-face" not in text
    assert "default-src 'none'" in text
    for link in page.links:
        assert ":" not in link or link == "data:,", link
        if link.startswith("#"):
            assert link[1:] in page.ids, link
        elif link != "data:,":
            assert (report / link).is_file(), link
    assert "width=device-width" in text and "color-scheme: light dark" in text


def test_page_shows_findings_sources_and_times(report: Path, page: Page) -> None:
    text = " ".join(page.words)
    assert 3 <= len(findings(small())) <= 5
    for finding in findings(small()):
        assert finding.text in text
    assert "lowprec compare --preset quick --out out" in text
    assert "OCP Microscaling Formats (MX) Specification" in text
    assert "bit_exact" in text and "same_backend" in text
    assert "94.50" in text and "versions.jax" in text


def test_files_are_complete(report: Path) -> None:
    names = {f"{name}.{kind}" for name in SCHEMAS for kind in ("csv", "parquet")}
    figures = {f"figures/{name}.svg" for name in ("sqnr_by_bits", "sqnr_by_layer")}
    figures |= {"figures/loss_increase.svg", "figures/code_use.svg"}
    assert set(contents(report)) == names | figures | {"manifest.json", *PAGES}
    manifest = json.loads((report / "manifest.json").read_text())
    assert list(manifest) == sorted(manifest) and manifest["versions"]["jax"] == "0.10.0"


@pytest.mark.slow
@pytest.mark.parametrize(
    "results", [synthetic.lone_tensor, pytest.param(small, marks=pytest.mark.slow)]
)
def test_a_second_run_writes_the_same_bytes(
    results: Callable[..., Results], tmp_path: Path
) -> None:
    # Other times may change the tables of times and the page's, nothing else.
    slower = pl.DataFrame({"step": ["capture", "products"], "seconds": [13.0, 94.5]})
    once, again = tmp_path / "once", tmp_path / "again"
    write_report(results(), once)
    write_report(dataclasses.replace(results(), timings=slower), again)
    first, second = contents(once), contents(again)
    assert any(name.endswith(".svg") for name in first)
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"timings.csv", "timings.parquet", "index.html"}
    page = first["index.html"].replace(b"12.25", b"13.00")
    assert page == second["index.html"]


def test_tables_read_back_exactly(report: Path) -> None:
    for name, frame in small().frames().items():
        read = pl.read_csv(report / f"{name}.csv", schema=frame.schema)
        assert_frame_equal(read, frame, check_exact=True)
        assert_frame_equal(pl.read_parquet(report / f"{name}.parquet"), frame, check_exact=True)


def test_extreme_floats_read_back_exactly(tmp_path: Path) -> None:
    values = [float("inf"), float("-inf"), float("nan"), 5e-324, 0.1, -0.0, 1.7976931348623157e308]
    steps = ["a,b", 'quo"te', "line\nbreak", "", "é", " pad ", "x"]
    timings = pl.DataFrame({"step": steps, "seconds": values})
    nothing = pl.DataFrame()
    results = synthetic.results(
        products=nothing, model=nothing, histogram=nothing, cards=nothing, timings=timings
    )
    write_report(results, tmp_path)
    read = pl.read_csv(tmp_path / "timings.csv", schema=timings.schema)
    assert_frame_equal(read, timings, check_exact=True)
    assert str(read["seconds"].to_list()) == str(values)


@pytest.mark.slow
def test_hostile_names_are_text(tmp_path: Path) -> None:
    hostile = pl.lit(HOSTILE)
    products = synthetic.products(layers=2).with_columns(
        layer=pl.concat_str(hostile, "layer"), source=hostile
    )
    results = synthetic.results(
        products=products.with_columns(recipe=pl.col("recipe") + "<b>"),
        tensors=synthetic.tensors().with_columns(name=hostile, block=pl.col("block") + "<i>"),
        cards=synthetic.cards().with_columns(tensor=hostile),
        model=synthetic.model().with_columns(rank=hostile),
        histogram=synthetic.histogram().with_columns(layer=hostile, operand=hostile),
        timings=pl.DataFrame({"step": [HOSTILE], "seconds": [1.0]}),
        manifest={HOSTILE: [HOSTILE, {"a": HOSTILE}]},
        command=f"lowprec {HOSTILE}",
    )
    text = write_report(results, tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and not {"b", "i"} & set(page.tags) and page.tags.count("script") == 2
    assert any("<script>alert" in words for words in page.words)


def test_a_lone_tensor_and_then_nothing(tmp_path: Path) -> None:
    page = Page(write_report(synthetic.lone_tensor(), tmp_path).read_text(encoding="utf-8"))
    text = " ".join(page.words)
    assert page.tags.count("svg") == 2 and not page.open
    assert "Which low-precision block scaling loses how much" in text
    assert "keeps the most, 31." in text
    assert (tmp_path / "figures" / "sqnr_by_block.svg").exists()
    # The figures of an earlier run are removed.
    nothing = pl.DataFrame()
    write_report(
        synthetic.results(products=nothing, model=nothing, histogram=nothing, cards=nothing),
        tmp_path,
    )
    assert not list((tmp_path / "figures").iterdir())


def test_nothing_at_all_is_still_a_page(tmp_path: Path) -> None:
    empty = pl.DataFrame()
    results = Results(
        products=empty,
        tensors=empty,
        cards=empty,
        model=empty,
        histogram=empty,
        timings=empty,
        manifest={},
        command="lowprec compare",
    )
    page = Page(write_report(results, tmp_path).read_text(encoding="utf-8"))
    assert "svg" not in page.tags and not page.open
    assert pl.read_csv(tmp_path / "products.csv").columns == list(SCHEMAS["products"])


def test_findings_follow_the_data() -> None:
    plain = [finding.text for finding in findings(small())]
    assert any(text.startswith("wgrad loses 1.") and "than fprop" in text for text in plain)
    lifted = synthetic.products(lift={"mxfp4": 12.0}, layers=FEW)
    other = [finding.text for finding in findings(synthetic.results(products=lifted))]
    assert plain[1] != other[1] and other[1].startswith("recipe:mxfp4 keeps")


def test_few_layers_resolve_nothing() -> None:
    few = synthetic.results(products=synthetic.products(layers=3))
    texts = {finding.text: finding.evidence for finding in findings(few)}
    roles = next(text for text in texts if text.startswith("wgrad loses"))
    assert roles.endswith("not resolved.") and "too few" in texts[roles]


def test_scope_and_partial_runs(tmp_path: Path) -> None:
    manifest = {
        "device": {"kind": "cpu", "cores": 2},
        "settings": {"preset": {"name": "quick", "seed": 3}, "complete": False},
        "catalogue": [{"kind": "blocks", "name": "mxfp4", "sha256": "abc"}],
    }
    nothing = pl.DataFrame()
    results = synthetic.results(
        products=nothing, model=nothing, histogram=nothing, manifest=manifest
    )
    assert {"device cpu", "preset quick", "seed 3"} <= set(scope(results))
    text = write_report(results, tmp_path).read_text(encoding="utf-8")
    assert "Partial results" in text and "catalogue.blocks.mxfp4.sha256" in text


def test_missing_columns_and_wrong_types_are_named() -> None:
    with pytest.raises(ValueError, match="`products` lacks the columns gain"):
        synthetic.results(products=synthetic.products(layers=1).drop("gain"))
    with pytest.raises(ValueError, match="`timings` holds a column of another type"):
        synthetic.results(timings=pl.DataFrame({"step": ["a"], "seconds": ["long"]}))
    further = synthetic.model().with_columns(extra=pl.lit(1))
    assert synthetic.results(model=further).model.columns[-1] == "extra"


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    results = synthetic.lone_tensor()
    with pytest.raises(ValueError, match="missing is not a directory"):
        write_report(results, tmp_path / "missing" / "out")
    taken = tmp_path / "taken"
    taken.write_text("a file")
    with pytest.raises(ValueError, match=r"taken: it is a file"):
        write_report(results, taken)
    # A file where a folder must be, since root may write to read-only directories.
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "figures").write_text("a file")
    with pytest.raises(OSError, match="out"):
        write_report(results, tmp_path / "out")
