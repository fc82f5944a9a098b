"""The section on formats: tables there and back, findings from the data, figures, the page."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib.text import Text
from polars.testing import assert_frame_equal

from lowprec.report import formats_section, style, write_report
from lowprec.report.figures import crest, matmul_bound, nvfp4_rounding, scale_rules
from lowprec.report.formats import ROWS, FormatResults, read_formats, write_formats
from lowprec.study.crest import FAMILIES
from tests.report import synthetic
from tests.report.test_page import Page

COMMITTED = Path(__file__).parents[2] / "reports" / "formats"
MANIFEST = {"command": "python experiments/formats.py", "date": "2026-01-02", "seconds": 3}
DEFAULTS: dict[Any, Any] = {str: "x", int: 64, float: 1.0, bool: True, float | None: 1.0}


def row(table: str, **values: Any) -> Any:
    fields = dataclasses.fields(ROWS[table])
    return ROWS[table](**{x.name: values.get(x.name, DEFAULTS[x.type]) for x in fields})


def rules(**losses: float) -> list[Any]:
    """A floating and an integer element under rules that lose so many dB, ten times on integers."""
    made = []
    for base, kind, factor in (("mxfp4", "floating", 1.0), ("mxint4", "integer", 10.0)):
        for rule, loss in {"minimum_error": 0.0, **losses}.items():
            db = factor * loss
            values = {"loss_db": db, "low": db - 0.01, "high": db + 0.01}
            outcome = "not resolved" if abs(db) < 0.01 else "worse"
            named = {"base": f"block:{base}", "kind": kind, "rule": rule, "outcome": outcome}
            made.append(row("rules", **named, **values))
    return made


def roundings() -> list[Any]:
    errors = {
        "nvfp4": 0.010,
        "nvfp4_4over6_mse": 0.008,
        "nvfp4_stochastic_guarded": 0.025,
        "nvfp4_ms_eden": 0.011,
    }
    return [
        row("rounding", target=f"block:{name}", mean_squared_error=error, low=error, high=error,
            published=0.0101 if name == "nvfp4" else None)
        for name, error in errors.items()
    ]  # fmt: skip


def crests() -> tuple[list[Any], list[Any]]:
    """MX8 that never crosses, and NV4 that does at 2.5."""
    points, crossings = [], []
    for pair, offset, limit in (("MX8", 10.0, math.sqrt(32)), ("NV4", 2.5, 4.0)):
        for family in FAMILIES:
            for place in (2.0, 3.0):
                lead = offset - place
                points.append(
                    row("crest", pair=pair, integer="block:i", floating="block:f", family=family,
                        crest=place, difference_db=lead, low=lead - 0.1, high=lead + 0.1)
                )  # fmt: skip
            at = 2.5 if pair == "NV4" else None
            named = {"pair": pair, "family": family, "crest": at, "low": at, "high": at}
            outcome = "integer throughout" if at is None else "integer to float"
            published = 7.55 if at is None else 2.502
            crossings.append(
                row("crossings", outcome=outcome, published=published, limit=limit, **named)
            )
    return points, crossings


def bounds() -> tuple[list[Any], list[Any]]:
    excess = {
        "block:nvfp4": (4.5, 1.1, "float4_e2m1fn", "nearest_even"),
        "block:nvfp4_stochastic": (4.5, 1.6, "float4_e2m1fn", "stochastic"),
        "block:lloyd_max_4bit_1x16": (4.5, 0.8, "lloyd_max_4bit", "nearest_even"),
        "block:int8_channel": (8.0, 1.0, "int8_symmetric", "nearest_even"),
        "block:mxfp8_e4m3_rceil": (8.25, 3.0, "float8_e4m3fn", "nearest_even"),
        "format:bfloat16": (16.0, 6.8, "bfloat16", "nearest_even"),
    }
    bound = [
        row("bound", target=name, bits_per_element=bits, excess_bits=above, excess_low=above - 0.01,
            excess_high=above + 0.01)
        for name, (bits, above, _, _) in excess.items()
    ]  # fmt: skip
    gaussian = [
        row("gaussian", target=name, element=element, rounding=rounding, scale_rule="amax",
            origin="fitted" if "lloyd" in name else "catalogue")
        for name, (_, _, element, rounding) in excess.items()
    ]  # fmt: skip
    return bound, gaussian


def results(**changes: Any) -> FormatResults:
    (points, crossings), (bound, gaussian) = crests(), bounds()
    published = [
        row("published", target="block:nvfp4", measure="sqnr_db", published=20.44, ours=20.43),
        row("published", target="block:mxfp4", measure="mean_squared_error", published=0.01,
            ours=0.02, reproduced=False),
    ]  # fmt: skip
    made = {
        "gaussian": gaussian,
        "published": published,
        "earlier": [row("earlier", target="block:nvfp4", within=False)],
        "rules": rules(rceil=0.2, even=0.3, floor=-0.0001),
        "rounding": roundings(),
        "crest": points,
        "crossings": crossings,
        "bound": bound,
    }
    return FormatResults.from_rows(manifest=MANIFEST, **(made | changes))


def text_of(picture: style.Picture | None) -> str:
    assert picture is not None
    found = picture.figure.findobj(Text)
    return "\n".join(text.get_text() for text in found if isinstance(text, Text))


def test_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    made = results()
    write_formats(made, tmp_path / "formats")
    again = read_formats(tmp_path / "formats")
    assert again is not None and again.manifest == MANIFEST
    for name, frame in made.frames().items():
        assert_frame_equal(frame, again.frames()[name])
    assert read_formats(tmp_path) is None


def test_a_table_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    write_formats(results(), tmp_path)
    path = tmp_path / "rules.csv"
    path.write_text(path.read_text().replace("loss_db", "loss"))
    with pytest.raises(ValueError, match=r"rules.csv.* loss_db.*formats.py writes it anew"):
        read_formats(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"cannot read .*rules.csv"):
        read_formats(tmp_path)


def test_findings_follow_the_data() -> None:
    text = [finding.text for finding in formats_section.findings(results())]
    assert text[0].startswith("floor stays within ")
    assert any(x.startswith("Four over six takes 20 % off NVFP4's squared error") for x in text)
    assert any("MX8 at every crest factor and NV4 below 2.50" in x for x in text)
    assert any(x.startswith("Of the catalogue's blocks int8_channel comes closest") for x in text)
    assert any("1.00 of its 8.00 bits above it; of those of 8 bits" in x for x in text)
    assert text[-1] == "1 of 2 quoted errors are reproduced, and 1 of 2 published crossings."
    turned = results(rules=rules(rceil=0.2, even=0.1, floor=0.3))
    assert formats_section.findings(turned)[0].text.startswith("even stays within 0.10 dB of the")


def test_what_is_not_resolved_or_not_reproduced_is_named() -> None:
    evidence = [finding.evidence for finding in formats_section.findings(results())]
    assert "Not resolved from no loss: mxfp4 floor and mxint4 floor" in evidence[0]
    assert "block:mxfp4 0.01, here 0.02" in evidence[-1]
    assert any("beyond √32 = 5.66" in x for x in evidence)


def test_rules_that_suit_no_other_kind_are_said_to() -> None:
    mixed = [
        dataclasses.replace(x, loss_db=0.05) if (x.kind, x.rule) == ("integer", "even") else x
        for x in rules(rceil=0.2, even=0.3, floor=0.4)
    ]
    title = formats_section.findings(results(rules=mixed))[0].text
    assert title.startswith("No power-of-two rule suits every element: rceil stays within 0.20 dB")


@pytest.mark.parametrize("narrow", [False, True])
def test_figures_say_their_finding(narrow: bool) -> None:
    made = results()
    pictures = {
        "rceil": scale_rules.rule_losses(made.rules, narrow=narrow),
        "thousandths": nvfp4_rounding.squared_errors(made.rounding, narrow=narrow),
        "√32": crest.crest_crossings(made.crest, made.crossings, narrow=narrow),
        "bits above the bound": matmul_bound.excess_bits(made.bound, made.gaussian, narrow=narrow),
    }
    for word, picture in pictures.items():
        text = text_of(picture)
        assert word in text and picture is not None
        assert picture.title.split()[0] in text and picture.sentence.endswith(".")


def test_what_lies_beyond_the_axis_is_written() -> None:
    made = results(rules=rules(rceil=0.2, ceil=3.0))
    text = text_of(scale_rules.rule_losses(made.rules))
    assert "→ ceil 3.0" in text and "→ ceil 30.0, rceil 2.0" in text


def test_names_of_points_lie_beside_markers_and_on_the_axes() -> None:
    """Against the committed tables, whose names once overprinted a marker and ran off the axes."""
    found = read_formats(COMMITTED)
    assert found is not None
    picture = matmul_bound.excess_bits(found.bound, found.gaussian)
    assert picture is not None
    figure, (axes,) = picture.figure, picture.figure.axes
    figure.canvas.draw()
    drawn = [line for line in axes.get_lines() if line.get_marker() not in ("", "None", None)]
    points = np.concatenate([line.get_transform().transform(line.get_xydata()) for line in drawn])
    names = [text for text in axes.texts if text.get_text()]
    assert len(names) > 8 and len(points) > 50
    for text in names:
        box = Text.get_window_extent(text)
        assert box.x1 <= axes.bbox.x1, text.get_text()
        inside = [box.padded(1).contains(x, y) for x, y in points]
        assert not any(inside), text.get_text()


def test_figures_of_earlier_runs_are_not_called_published() -> None:
    made = {table.name: table for table in formats_section.tables(results())}
    assert made["earlier"].title == "Figures of earlier runs of this project"
    assert made["earlier"].rows[0][-1] == "no" and len(made["published"].rows) == 2
    found = read_formats(COMMITTED)
    assert found is not None and found.earlier["within"].all() and len(found.earlier) == 22
    sources = set(found.published["source"])
    assert sources == {"arXiv 2601.22813 (Quartet II)", "Max 1960, table I"}


def test_no_rows_no_figure() -> None:
    tables = ("rules", "rounding", "crest", "crossings", "bound", "published", "earlier")
    empty = results(**{name: [] for name in tables})
    assert formats_section.draw(empty) == [] and formats_section.findings(empty) == []
    assert scale_rules.rule_losses(empty.rules) is None


def test_kinds_of_elements() -> None:
    made = results()
    kinds = matmul_bound.kinds(made.bound, made.gaussian)
    found = dict(zip(kinds["target"], kinds["kind"], strict=True))
    assert found["block:nvfp4_stochastic"] == "stochastic rounding"
    assert found["block:lloyd_max_4bit_1x16"].startswith("levels from a table")
    assert found["block:int8_channel"] == "integer"
    assert found["block:nvfp4"] == "floating point"


@pytest.mark.slow
def test_page_has_the_section_where_results_lie_beside_it(tmp_path: Path) -> None:
    none = pl.DataFrame()
    small = synthetic.results(products=none, model=none, histogram=none, cards=none)
    path = write_report(small, tmp_path).with_name("formats.html")
    assert 'id="formats"' not in path.read_text(encoding="utf-8")
    write_formats(results(), tmp_path / "formats")
    write_report(small, tmp_path)
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.open and len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 8 and "formats" in page.ids
    words = " ".join(page.words)
    assert "python experiments/formats.py" in words and "2026-01-02" in words
    assert "Scale rules against the scale of least squared error" in words
    links = [link for link in page.links if link.startswith("formats/")]
    assert len(links) > len(formats_section.FIGURES)
    for link in links:
        assert link.endswith(".svg") or (tmp_path / link).is_file(), link


def test_committed_results_are_whole() -> None:
    found = read_formats(COMMITTED)
    assert found is not None
    assert {"command", "date", "seconds", "catalogue", "versions"} <= set(found.manifest)
    assert json.dumps(found.manifest).count("sha256") > 50
    assert found.gaussian["numbers"].min() == 1 << 20
    assert found.crossings["pair"].n_unique() == 4
    # Nothing beats the bound, and nothing but fitted levels and rounding the best scale.
    assert (found.bound["excess_low"] > 0).all()
    better = found.rules.filter(pl.col("high") < 0)["rule"].unique().to_list()
    assert better == ["lloyd_max"]
    drawn = {path.stem for path in (COMMITTED / "figures").glob("*.svg")}
    assert drawn == set(formats_section.FIGURES)
