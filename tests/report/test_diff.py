"""The section on two ways to compute one model, of rows that are made up."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lowprec.report import diff_figure
from lowprec.report.diff import Results, diff_section, read_diff, write_diff
from lowprec.study.diff import Difference
from lowprec.study.diff_ratios import Compared, sequence_rows, tail_rows
from lowprec.study.diff_rows import DiffRow, LayerRow


def difference(pair: str, scale: float) -> Difference:
    """Log ratios that are drawn, so many times as large."""
    rng = np.random.default_rng(3)
    text, drawn = scale * rng.standard_normal((2, 4, 16))
    zeros, same = np.zeros_like(text), scale == 0
    compared = Compared(divergence=zeros, reverse=zeros, text=text, drawn=drawn, flipped=zeros > 0)
    numbers = {x.name: scale for x in dataclasses.fields(DiffRow) if x.type in (float, "float")}
    row = DiffRow(
        pair=pair, model="tiny", a="bf16", b="mxfp8", windows=4, length=16, tokens=64, units=4,
        unit="documents",
        flips=round(10 * scale), first_layer=None if same else 1,
        first_product=None if same else "layers.1.mlp.up", identical=same, **numbers,
    )  # fmt: skip
    names = ("layers.0", "layers.1", "logits")
    layers = [
        LayerRow(pair=pair, layer=x, differing=scale, relative=n * scale, largest=scale)
        for n, x in enumerate(names)
    ]
    return Difference(
        row=row,
        sequences=list(sequence_rows(pair, compared, np.arange(4), seed=0)),
        layers=layers,
        tail=list(tail_rows(pair, compared)),
    )


def results() -> Results:
    found = [difference("far", 0.3), difference("near", 0.001), difference("same", 0.0)]
    record = {"command": "python experiments/diff.py", "date": "2026-01-02", "seconds": 3}
    return Results.of(found, record)


def test_findings_and_the_title_follow_the_rows() -> None:
    frames = results().frames
    title = diff_figure.apart_title(frames["pairs"], frames["sequences"])
    assert title.startswith("Of 3 pairs of sides 1 are the same bits; the most apart leaves")
    assert title.endswith("of sequences of 16 tokens as effective samples (far)")
    section = diff_section(results())
    first, second, same = (x.text for x in section.findings)
    assert first.startswith("far: 3 of 64 tokens flip (30.00 %), mean KL 0.3 nats")
    assert "effective samples of sequences of 16 tokens >99.99 %." in second
    assert same == "same: the same bits in all 64 predictions."
    assert "first in layers.1.mlp.up" in section.findings[0].evidence
    assert len(section.tables[0].rows) == 3 and section.tables[0].rows[2][-1] == "none"
    assert "1 pair without any difference not drawn" in section.figures[0].sentence


def test_nothing_is_drawn_of_sides_that_are_the_same() -> None:
    found = Results.of([difference("same", 0.0)], {})
    assert diff_section(found).figures == []


@pytest.mark.slow
def test_there_and_back(tmp_path: Path) -> None:
    assert read_diff(tmp_path) is None
    written = write_diff(results(), tmp_path)
    assert read_diff(tmp_path) == written
    assert [path.stem for path in (tmp_path / "figures").iterdir()] == ["diff_apart"]
    (tmp_path / "tail.csv").unlink()
    with pytest.raises(ValueError, match=r"tail.csv: there is no such file; experiments/diff.py"):
        read_diff(tmp_path)
