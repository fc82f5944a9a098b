"""The section on KV caches: tables there and back, fronts, titles, names that cover nothing."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Annotation

from lowprec.report import kv_figure as drawing
from lowprec.report import stored, style, words
from lowprec.report.kv import TABLES, Results, kv_section, read_kv, write_kv
from lowprec.study.kv_compare import KvCollected
from lowprec.study.kv_keys import KvKeyRow
from lowprec.study.kv_rows import CacheRow, KvModelRow, TensorRow

SIZES = {"bf16": 16.0, "fp8": 8.0, "four": 4.5, "poor": 4.4, "three": 3.5, "two": 3.0}
LOSSES = {"bf16": 0.0, "fp8": -0.0002, "four": 0.004, "poor": 0.3, "three": 0.02, "two": 0.5}
EXEMPT = {"three": 0.25}
ORIGIN = {"two": "kv:three"}
RECORD = {"command": "python experiments/kv_compare.py", "date": "2026-01-02", "seconds": 3}


def model_rows() -> list[KvModelRow]:
    """Six methods in both modes, `poor` nowhere on the front but at its bits."""
    return [
        KvModelRow(
            method=f"kv:{name}",
            mode=mode,
            bits=SIZES[name],
            bytes_per_token=128 * SIZES[name],
            exempt=EXEMPT.get(name, 0.0),
            context=512,
            bits_per_byte=2 + share * LOSSES[name],
            increase=share * LOSSES[name],
            low=share * LOSSES[name] - 0.001,
            high=share * LOSSES[name] + 0.001,
            kl_median=abs(LOSSES[name]),
            kl_percentile_99=5 * abs(LOSSES[name]),
            top1_agreement=0.97,
            documents=3,
            bytes=700,
        )
        for name in SIZES
        for mode, share in (("before_use", 1.0), ("exact_prefill", 0.5))
    ]


def tensor_rows() -> list[TensorRow]:
    """Three samples of two sources; a method that chooses tokens reads none back."""
    return [
        TensorRow(
            method=f"kv:{name}",
            source=source,
            sample=f"layer {number}",
            tokens=512,
            bits=SIZES[name],
            exempt=EXEMPT.get(name, 0.0),
            keys=None if name == "two" else error,
            values=None if name == "two" else error,
            scores=error,
            divergence=error**2,
            output=error * (number + 1),
            queries=64,
        )
        for name in SIZES
        for source in ("captured", "synthetic")
        for number in range(3)
        for error in [2.0 ** -SIZES[name] * (3 if name == "poor" else 1)]
    ]


LATENTS = ("kv:mla_bf16", "kv:mla_bf16", "kv:mla_nvfp4", "kv:mla_nvfp4")


def key_rows() -> list[KvKeyRow]:
    """Of keys far away `two` finds fewer than bfloat16, and `four` not resolvably so."""
    return [
        KvKeyRow(
            method=f"kv:{name}",
            model="gqa",
            bits=SIZES[name],
            bytes_per_token=128 * SIZES[name],
            distance=distance,
            cases=32,
            digits=8,
            exact=exact,
            low=exact - 0.1,
            high=exact + 0.1,
            exact_bf16=0.9,
            bits_per_digit=2 * (1 - exact),
            increase=2 * (0.9 - exact),
            increase_low=1.5 * (0.9 - exact),
            increase_high=2.5 * (0.9 - exact),
            chance_exact=16.0**-8,
            chance_bits=4.0,
        )
        for distance in (64, 960)
        for name, exact in (("four", 0.85), ("two", 0.25 if distance == 960 else 0.9))
    ]


def test_latents_and_planted_keys_are_told_of(tmp_path: Path) -> None:
    record: dict[str, object] = {**RECORD, "unanswered": [["mla", 960, 0.25]]}
    section = write_kv(results(record, latent=True), tmp_path)
    # A section that is None fails the comparison.
    assert read_kv(tmp_path).findings == section.findings  # type: ignore[union-attr]
    latents, keys = section.findings[-4:-2]
    assert "costs more than 0.004 bits per byte (mla_nvfp4)" in latents.text
    assert latents.evidence == "mla_nvfp4 4.50 bits, +0.0040 (+0.0030 to +0.0050)"
    assert keys.text.startswith("Of keys planted 960 bytes before, through 1 of 2 methods")
    assert keys.evidence == "two 3.00 bits, 25 %"
    table = section.tables[3]
    assert len(table.rows) == 4 and "mla at 960 bytes (25 %)" in table.note
    assert "guessing finds 2e-10 of them whole and takes 4 bits a digit" in table.note
    assert table.rows[-1][3:7] == ["960", "25 %", "15 % to 35 %", "90 %"]


def results(record: dict[str, object] | None = None, latent: bool = False) -> Results:
    caches = [
        CacheRow(
            method=f"kv:{name}",
            family="blocks",
            window_0_of=ORIGIN.get(name),
            bits=bits,
            bits_at_length=bits + 0.01,
            length=32768,
            exempt=EXEMPT.get(name, 0.0),
            bytes_llama_3_8b=8192 * bits,
            measured=round(256 * bits * 32768),
        )
        for name, bits in SIZES.items()
    ]
    found = KvCollected(caches=caches, tensors=tensor_rows(), model=model_rows())
    if latent:
        found.latent = [
            dataclasses.replace(row, method=method)
            for row, method in zip(model_rows()[2:6], LATENTS, strict=True)
        ]
        found.keys = key_rows()
    return Results.of(found, dict(RECORD if record is None else record))


def test_tables_read_back(tmp_path: Path) -> None:
    written = write_kv(results(), tmp_path)
    read = read_kv(tmp_path)
    assert read is not None and read.tables == written.tables and read.findings == written.findings
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "kv_loss.svg",
        "kv_errors.svg",
    }
    assert (read.date, read.seconds, read.command) == ("2026-01-02", 3, RECORD["command"])
    assert [len(table.rows) for table in read.tables] == [6, 12, 12]
    # Bytes with thousands apart, what is missing as a dash.
    assert read.tables[0].rows[0][-2:] == ["131,072", "134,217,728"]
    (two,) = (row for row in read.tables[2].rows if row[:2] == ["captured", "kv:two"])
    assert two[5:7] == [words.DASH] * 2 and two[-2:] == ["12.50 % to 37.50 %", "3"]
    assert two[9] == "25.00 %"
    # Which method has the window, and what share of tokens it exempts.
    assert [row[2] for row in read.tables[0].rows if row[0] == "kv:two"] == ["kv:three"]
    assert {row[4] for row in read.tables[1].rows if row[0] == "kv:three"} == {"25.00 %"}


def test_nothing_and_half_of_it(tmp_path: Path) -> None:
    assert read_kv(tmp_path) is None
    write_kv(Results.of(KvCollected(), {}), tmp_path)
    empty = read_kv(tmp_path)
    assert empty is not None and not empty.figures and not empty.findings
    (tmp_path / "model.csv").unlink()
    with pytest.raises(ValueError, match=r"lacks model.csv; experiments/kv_compare.py writes it"):
        read_kv(tmp_path)


def test_a_front_is_of_what_nothing_beats() -> None:
    rows = [dataclasses.asdict(row) for row in model_rows() if row.mode == "before_use"]
    names = [drawing.short(row["method"]) for row in drawing.front(rows, "bits", "increase")]
    assert names == ["two", "three", "four", "fp8"]
    tied = [{"b": 1.0, "l": 2.0}, {"b": 1.0, "l": 1.0}, {"b": 2.0, "l": 1.0}]
    assert drawing.front(tied, "b", "l") == [tied[1]]


def test_titles_and_findings_follow_the_data() -> None:
    frame = stored.frame(model_rows(), KvModelRow)
    title = drawing.loss_title(frame)
    assert title == (
        "Least loss of bits per byte: three (25 % exempt) +0.0200 within 3.5 bits, four +0.0040 "
        f"within 4.6 bits and fp8 {words.MINUS}0.0002 within 8.6 bits"
    )
    assert drawing.loss_title(frame.head(0)) == "KV methods through the small model"
    errors = drawing.error_title(stored.frame(tensor_rows(), TensorRow))
    assert errors.endswith("within 4.6 bits: four (8.8 %, captured) and four (8.8 %, synthetic)")
    section = kv_section(results())
    assert section.findings[0].text == f"{title}."
    assert "two 3.00 bits, +0.5000 (+0.4990 to +0.5010)" in section.findings[0].evidence
    # bf16 is the measure of the loss, and a method among others on tensors.
    assert "bf16" not in section.findings[0].evidence and "bf16" in section.findings[2].evidence
    # `three` has a window, and `two` is what it is without.
    assert section.findings[1].text.startswith("Of 1 methods with a window 1 lose more without it")
    assert "three 25.0 % exempt, 3.50 bits, +0.0200" in section.findings[1].evidence
    assert "without 3.00 bits, +0.5000" in section.findings[1].evidence


@pytest.mark.parametrize("narrow", [False, True])
def test_names_cover_no_other_name(narrow: bool) -> None:
    frames = results().frames
    picture = drawing.loss_by_bytes(frames["model"], frames["caches"], narrow=narrow)
    assert picture is not None and "700 bytes of 3 held-out documents" in picture.sentence
    with style.look(narrow):
        picture.figure.draw_without_rendering()
        for axes in picture.figure.axes:
            assert axes.get_xlabel() == "bytes a token"
            names = [text for text in axes.texts if isinstance(text, Annotation)]
            assert {text.get_text() for text in names} == {"two", "three, 25 %", "four", "fp8"}
            boxes = [text.get_window_extent() for text in names]
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
            frame_box = axes.get_window_extent()
            assert all(frame_box.containsx(box.x0) and frame_box.containsx(box.x1) for box in boxes)
            shown = {tick.get_text() for tick in axes.get_yticklabels()}
            assert {"0", "0.01", "0.1"} <= shown or axes is not picture.figure.axes[0]


def test_a_line_leads_from_a_window_to_none() -> None:
    frames = results().frames
    assert drawing.origins(frames["caches"]) == {"kv:two": "kv:three"}
    for picture in (
        drawing.loss_by_bytes(frames["model"], frames["caches"]),
        drawing.errors_by_bits(frames["tensors"], frames["caches"]),
    ):
        assert picture is not None
        for axes in picture.figure.axes:
            links = [
                line
                for line in axes.lines
                if line.get_color() == drawing.WINDOWED and np.size(line.get_xdata()) == 2
            ]
            (link,) = [line for line in links if len(np.unique(line.get_xdata())) == 2]
            unit = 128 if axes.get_xlabel() == "bytes a token" else 1
            assert np.asarray(link.get_xdata()).tolist() == [3.5 * unit, 3.0 * unit]
        (legend,) = picture.figure.legends
        assert "the same without it" in {text.get_text() for text in legend.get_texts()}


def test_every_table_has_its_rows() -> None:
    frames = results().frames
    assert set(frames) == set(TABLES)
    summed = drawing.summed(frames["tensors"])
    assert len(summed) == 12
    (row,) = summed.filter(source="captured", method="kv:fp8").to_dicts()
    error = 2.0**-8
    assert (row["output_least"], row["output"], row["output_most"]) == (error, 2 * error, 3 * error)
