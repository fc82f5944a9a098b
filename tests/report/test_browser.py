"""The site in a browser: it loads without a word on the console, and what is clicked does its work.

Needs Chromium and the package playwright of the extra `test`; skipped where one is missing.
"""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import lowprec
from lowprec.numerics import get_format
from lowprec.report import explorer, words, write_report
from lowprec.report.anatomy import read_anatomy
from tests.report import synthetic
from tests.report.test_explorer import inputs, literal

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: the site is not opened"
)
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
COMMITTED = Path(__file__).parents[2] / "reports"
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 375, "height": 800}
PAGES = ("index.html", "formats.html", "gemm.html")
CAST = ("float8_e4m3fn", "float4_e2m1fn", "nf4")
"""Formats whose casts are compared: with NaN, without, and a table."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium: the site is not opened in a browser"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison, and an experiment beside it."""
    out = tmp_path_factory.mktemp("browser") / "out"
    shutil.copytree(COMMITTED / "anatomy", out / "anatomy")
    assert read_anatomy(out / "anatomy") is not None
    write_report(synthetic.results(products=synthetic.products(layers=3)), out)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that may neither complain nor ask for anything but files."""
    said: list[str] = []
    context = browser.new_context(viewport=WIDE, color_scheme="light")
    opened = context.new_page()
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on(
        "request",
        lambda asked: None if asked.url.startswith(("file:", "data:")) else said.append(asked.url),
    )
    yield opened
    context.close()
    assert said == []


@pytest.mark.parametrize("name", PAGES)
def test_pages_load_and_fit_a_phone(site: Path, page: Any, name: str) -> None:
    for size in (WIDE, NARROW):
        page.set_viewport_size(size)
        page.goto((site / name).as_uri())
        assert page.locator("h1").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    drawn = page.locator(".drawing svg:visible")
    for place in range(drawn.count()):
        box = drawn.nth(place).bounding_box()
        assert box is not None and 0 < box["width"] <= NARROW["width"]


def test_the_theme_is_the_systems_then_the_buttons(site: Path, page: Any) -> None:
    page.goto((site / "gemm.html").as_uri())
    colours = (
        "[document.body, document.querySelector('.drawing')]"
        ".map((x) => getComputedStyle(x).backgroundColor)"
    )
    light = page.evaluate(colours)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(colours)
    assert light == ["rgb(251, 251, 252)", "rgb(255, 255, 255)"]
    assert dark == ["rgb(20, 23, 29)", "rgb(26, 30, 38)"]
    text = "getComputedStyle(document.querySelector('.drawing .wide svg text')).fill"
    assert page.evaluate(text) == "rgb(228, 231, 236)"
    button = page.get_by_role("button", name="Switch to light colours")
    button.focus()
    page.keyboard.press("Enter")
    assert page.evaluate(colours) == light
    # The choice goes with the reader to another page.
    page.get_by_role("link", name="Formats", exact=True).click()
    page.wait_for_url("**/formats.html")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light[0]


def column(page: Any, place: int) -> list[str]:
    return page.locator(
        f"#tables table >> nth=0 >> tbody tr:visible td:nth-child({place})"
    ).all_inner_texts()


def test_headings_sort_by_mouse_and_keyboard(site: Path, page: Any) -> None:
    page.goto((site / "gemm.html").as_uri())
    table = page.locator("#tables table").first
    head = table.get_by_role("columnheader", name="bits per byte")
    place = table.locator("th").all_inner_texts().index("bits per byte") + 1
    before = column(page, place)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    values = [float(x) for x in column(page, place)]
    assert values == sorted(values) and len(values) == len(before) > 3
    head.get_by_role("button").focus()
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(x) for x in column(page, place)] == values[::-1]
    assert table.locator("th[aria-sort]").count() == 1


def test_a_box_filters_rows(site: Path, page: Any) -> None:
    page.goto((site / "gemm.html").as_uri())
    bar = page.locator("#anatomy .filter").first
    rows = page.locator("#anatomy table tbody tr:visible")
    every = rows.count()
    bar.get_by_role("searchbox").fill("nvfp4 TOWARD_zero")
    kept = rows.all_inner_texts()
    assert 0 < len(kept) < every
    assert all("nvfp4" in text.lower() and "toward_zero" in text for text in kept)
    assert bar.locator("output").inner_text() == f"{len(kept)} of {every} rows"
    bar.get_by_role("searchbox").fill("")
    assert rows.count() == every


def result(page: Any, mode: str) -> list[str]:
    """The cells of a mode's row in the explorer."""
    row = page.locator("#explorer-modes tbody tr").filter(
        has=page.get_by_role("cell", name=mode, exact=True)
    )
    return row.locator("td").all_inner_texts()


def test_the_explorer_answers_what_is_typed_and_chosen(site: Path, page: Any) -> None:
    page.goto((site / "formats.html").as_uri())
    page.get_by_label("Format", exact=True).select_option("float8_e4m3fn")
    number = page.get_by_label("Number", exact=True)
    number.fill("464")
    assert "tie" in result(page, "nearest_even")[5] and result(page, "nearest_even")[1] == "448"
    assert result(page, "nearest_away")[1] == "448"
    page.get_by_label("Overflow").select_option("nonsaturating")
    assert result(page, "nearest_even")[1:3] == ["448", "0x7e"]
    assert result(page, "nearest_away")[1:3] == ["NaN", "0x7f"]
    assert result(page, "toward_zero")[1] == "448"
    number.fill("-0")
    assert result(page, "nearest_even")[1:3] == [f"{words.MINUS}0", "0x80"]
    page.get_by_role("button", name="NaN").click()
    assert result(page, "nearest_even")[1] == "NaN"
    number.fill("what")
    assert number.get_attribute("aria-invalid") == "true"
    assert "no number" in page.locator("#explorer-said").inner_text()
    number.fill("1/3")
    page.get_by_label("Format", exact=True).select_option("float4_e2m1fn")
    assert "66.6667 % of the way from 0 to 0.5" in page.locator("#explorer-said").inner_text()
    assert page.locator("#explorer-values tbody tr").count() == 16
    page.get_by_label("Beside it").select_option("bfloat16")
    assert page.locator("#explorer-steps polyline").count() == 2
    page.get_by_label("Format", exact=True).select_option("float32")
    assert 256 < page.locator("#explorer-values tbody tr").count() < 600


@pytest.mark.parametrize("name", CAST)
def test_the_explorer_gives_the_bits_of_casts(site: Path, page: Any, name: str) -> None:
    """Results in the page, of every mode under one policy and of every policy, beside the casts."""
    page.goto((site / "formats.html").as_uri())
    fmt = get_format(name)
    x = np.unique(
        np.array([x for x in inputs(fmt) if abs(x) < 1e38 or not math.isfinite(x)], np.float32)
    )
    x = np.concatenate([x, np.array([-0.0], np.float32)])
    ways = [(mode, "nonsaturating") for mode in explorer.MODES]
    ways += [("nearest_even", "saturate"), ("nearest_even", "saturate_finite")]
    given = ",".join(literal(float(value)) for value in x)
    found = page.evaluate(
        f"{json.dumps(ways)}.map(([mode, policy]) => [{given}].map((x) => {{ const one ="
        f" treated(FORMATS.get({json.dumps(name)}), DATA.modes, x, mode, policy);"
        " return [one.code, Object.is(one.value, -0) ? '-0' : String(one.value)]; }))"
    )
    for (mode, policy), answers in zip(ways, found, strict=True):
        codes = lowprec.encode(jnp.asarray(x), fmt, rounding=mode, overflow=policy)  # type: ignore[arg-type] - names of modes
        values = lowprec.cast(jnp.asarray(x), fmt, rounding=mode, overflow=policy)  # type: ignore[arg-type] - names of modes
        np.testing.assert_array_equal(np.array([code for code, _ in answers]), np.asarray(codes))
        shown = np.array([float(value) for _, value in answers], np.float32)
        bits, wanted = shown.view(np.uint32), np.asarray(values).view(np.uint32)
        nan = np.isnan(shown)
        np.testing.assert_array_equal(bits[~nan], wanted[~nan])
        np.testing.assert_array_equal(nan, np.isnan(np.asarray(values)))
