"""The section on modelled throughput: tables there and back, titles, what is committed."""

import dataclasses
import re
import tomllib
from pathlib import Path

import polars as pl
import pytest

from lowprec.kv import get_kv_method
from lowprec.report import kv_throughput_best_figure as best_drawing
from lowprec.report import kv_throughput_bound_figure as bound_drawing
from lowprec.report import kv_throughput_figure as drawing
from lowprec.report import kv_throughput_host_figure as host_drawing
from lowprec.report import kv_throughput_published_figure as published_drawing
from lowprec.report import stored, style, words
from lowprec.report.kv_throughput import (
    TABLES,
    Results,
    host_best,
    kv_throughput_section,
    kv_throughput_tables,
    read_kv_throughput,
    write_kv_throughput,
)
from lowprec.study import kv_throughput as study
from lowprec.study import kv_throughput_host as host
from lowprec.throughput.architecture import get_architecture
from lowprec.throughput.devices import get_device, get_link
from lowprec.throughput.fit import fit

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "reports" / "kv_throughput"
CONFIG = tomllib.loads((ROOT / "experiments" / "kv_throughput.toml").read_text())
INTERVAL = re.compile(r"(\S+) \((\S+) to (\S+)\)")
RECORD = {
    "command": "python experiments/kv_throughput.py",
    "date": "2026-01-02",
    "seconds": 3,
    "settings": {"memory_share": 0.86, "layer_microseconds": 38.0},
}


@pytest.fixture(scope="module")
def results() -> Results:
    """Two devices, three methods and two contexts of the model itself."""
    fitted, llama = fit(), get_architecture("llama_3_8b")
    found = [x for x in study.methods(CONFIG) if x.name in ("bf16", "nvfp4", "kivi_2bit")]
    devices = [get_device("h100"), get_device("b200")]
    throughput = [
        row
        for device in devices
        for row in study.throughput_rows(
            device, llama, found, fitted, contexts=[4096, 32768], batch_context=32768
        )
    ]
    attention = [
        study.attention_row(
            device, llama, study.cost(x, llama, device, 32768), fitted, context=32768
        )
        for device in devices
        for x in found
    ]
    forms = [
        row
        for name in ("h800", "h20")
        for row in study.form_rows(CONFIG["form"], get_device(name), fitted, context=32768)
    ]
    pair = devices[0], get_link("pcie_5"), llama
    tiers = [
        row
        for read in (32768, 2048)
        for row in host.host_rows(*pair, found[1:], fitted, context=32768, read=read)
    ]
    return Results.from_rows(
        RECORD,
        throughput=throughput,
        attention=attention,
        forms=forms,
        host=tiers,
        recompute=list(host.recompute_rows(*pair, found, fitted, prompts=[512, 8192])),
        published=list(study.published_rows(fitted)),
        constants=list(study.constant_rows(devices)),
    )


def digits(text: str) -> int:
    """Significant ones, zeros at the ends of a whole number not counted."""
    return len(text.replace(",", "").replace(".", "").lstrip("0").rstrip("0"))


@pytest.mark.slow
def test_there_and_back(results: Results, tmp_path: Path) -> None:
    assert read_kv_throughput(tmp_path) is None
    written = write_kv_throughput(results, tmp_path)
    found = read_kv_throughput(tmp_path)
    assert found == written and found is not None
    assert len(found.figures) == len(list((tmp_path / "figures").iterdir())) == 9
    for figure in found.figures:
        assert figure.name.startswith("kv_throughput_")
        assert "odelled" in figure.wide and "odelled" in figure.narrow
    (tmp_path / "host.csv").unlink()
    with pytest.raises(ValueError, match=r"host.csv: there is no such file; experiments/kv_"):
        read_kv_throughput(tmp_path)


def test_no_rows_no_figure_and_no_finding() -> None:
    nothing = Results.from_rows({}, **dict.fromkeys(TABLES, ()))
    section = kv_throughput_section(nothing)
    assert section.figures == [] and section.findings == []


def titles(results: Results) -> dict[str, str]:
    frames = results.frames
    return {
        "best": best_drawing.best_title(frames["throughput"]),
        "context": drawing.context_title(frames["throughput"]),
        "batch": drawing.batch_title(frames["throughput"]),
        "bounds": bound_drawing.bounds_title(frames["attention"]),
        "forms": bound_drawing.forms_title(frames["forms"]),
        "tiers": host_drawing.tiers_title(frames["host"]),
        "fetched": host_drawing.fetched_title(frames["recompute"]),
    }


def test_titles_say_modelled_and_follow_the_data(results: Results) -> None:
    found = titles(results)
    assert all(title.startswith("Modelled: ") for title in found.values())
    assert "at 32,768 tokens" in found["context"] and "nvfp4" in found["context"]
    assert "times slower on the H20" in found["forms"]
    twice = results.frames["throughput"].with_columns(
        tokens_per_second=pl.when(pl.col("method") == "bf16")
        .then(pl.col("tokens_per_second") * 100)
        .otherwise(pl.col("tokens_per_second"))
    )
    assert "bf16 decodes 1.0 (" in drawing.context_title(twice)
    slower = results.frames["forms"].with_columns(
        ns=pl.when(pl.col("form") == "latent, bf16").then(50.0).otherwise(pl.col("ns"))
    )
    assert "slower on the H800" in bound_drawing.forms_title(slower)


def test_the_published_title_counts_what_is_held_out(results: Results) -> None:
    frame = results.frames["published"]
    title = published_drawing.published_title(frame)
    held = frame.filter(pl.col("role") == "held out")
    assert f"against {len(held)} other published figures" in title
    fewer = frame.filter(pl.col("device") != "h800")
    assert published_drawing.published_title(fewer) != title
    whole, inside = published_drawing.covered(frame)
    assert whole == inside == 4
    assert published_drawing.percent(-0.05) == f"{words.MINUS}5.0 %"


def test_numbers_have_two_digits_and_an_interval(results: Results) -> None:
    row = {"tokens_per_second": 1865.0, "low": 1234.0, "high": 2049.0}
    assert drawing.spanned(row, "tokens_per_second") == "1,900 (1,200 to 2,000)"
    found = kv_throughput_tables(results.frames)
    modelled = 0
    for table in found:
        for column, (heading, _) in enumerate(table.columns):
            if "modelled" in heading or heading.endswith(", ns"):
                modelled += 1
                assert "odelled" in heading + table.title and table.rows
                for cell in (row[column] for row in table.rows):
                    found = INTERVAL.fullmatch(cell)
                    assert found is not None and all(digits(x) <= 2 for x in found.groups()), cell
    assert modelled == 11
    assert [digits(x) for x in ("1,900", "0.0047", "1.85", "128,000")] == [2, 2, 3, 3]


def test_what_is_best_is_best(results: Results) -> None:
    frame = results.frames["throughput"]
    best = best_drawing.best_rows(frame)
    assert len(best) == 4
    for row in best.to_dicts():
        some = drawing.at(frame, device=row["device"], context=row["context"], fill="largest")
        assert row["tokens_per_second"] == some["tokens_per_second"].max()
        assert row["method"] in row["tied"]
        (plain,) = drawing.at(some, method="bf16").to_dicts()
        assert row["tokens_per_second_plain"] == plain["tokens_per_second"]
        assert (row["low_plain"], row["high_plain"]) == (plain["low"], plain["high"])
        assert (some["high"] >= row["low"]).sum() == len(row["tied"])
    faster = [row["low"] > row["high_plain"] for row in best.to_dicts()]
    assert best_drawing.beats_plain(best) == sum(faster)
    alone = best.with_columns(high_plain=pl.lit(None, dtype=pl.Float64))
    assert best_drawing.beats_plain(alone) == len(best)


def test_the_matrix_of_the_fastest_names_them(results: Results) -> None:
    frame = results.frames["throughput"]
    picture = best_drawing.best(frame)
    assert picture is not None
    (axes,) = picture.figure.axes
    cells = [text.get_text().split("\n") for text in axes.texts]
    best = best_drawing.best_rows(frame).to_dicts()
    assert [cell[0] for cell in cells] == [row["method"] for row in best]
    assert [cell[1] for cell in cells] == [drawing.two(row["tokens_per_second"]) for row in best]
    assert [patch.get_alpha() == best_drawing.SOLID for patch in axes.patches] == [
        row["low"] > row["high_plain"] for row in best
    ]
    assert axes.get_xlabel() == "context, thousand tokens"


def test_arms_of_the_host(results: Results) -> None:
    frame = results.frames["host"]
    best = host_best(frame)
    assert set(best["arm"]) == set(host_drawing.ARMS)
    away = best.filter(pl.col("place") == "host")
    assert (away["away"] > 0).all()
    compressed = host_drawing.arm(frame, "all on the device, compressed")
    assert set(compressed["stored"]) == {"kivi_2bit"}


def test_pictures_are_drawn_in_both_widths(results: Results) -> None:
    wide = drawing.largest_batches(results.frames["throughput"])
    narrow = drawing.largest_batches(results.frames["throughput"], narrow=True)
    assert wide is not None and narrow is not None
    assert wide.figure.get_figwidth() == style.WIDE
    assert narrow.figure.get_figwidth() == style.NARROW


def committed(name: str) -> pl.DataFrame:
    found = stored.read_table(COMMITTED / f"{name}.csv", TABLES[name], "")
    assert found is not None and len(found)
    return found


def test_committed_tables_are_what_the_model_gives() -> None:
    again = stored.frame(list(study.published_rows(fit())), study.PublishedRow)
    assert committed("published").equals(again)
    fitted = fit()
    forms = [
        row
        for name in CONFIG["devices"]
        for row in study.form_rows(
            CONFIG["form"], get_device(name), fitted, context=CONFIG["batch_context"]
        )
    ]
    assert committed("forms").equals(stored.frame(forms, study.AttentionRow))


def test_committed_bits_are_those_of_the_catalogue() -> None:
    rows = committed("throughput").filter(pl.col("architecture") == "llama_3_8b")
    for name, context in (("kivi_2bit", 1024), ("kivi_2bit", 131072), ("kvquant_3bit", 2048)):
        wanted = get_kv_method(name).bits_per_element(context)
        found = drawing.at(rows, method=name, context=context)["bits_per_element"]
        assert len(found) and found.unique().to_list() == [round(wanted, 3)]


def test_committed_rows_are_of_every_device_and_hold_their_intervals() -> None:
    rows = committed("throughput")
    assert set(rows["device"]) == set(CONFIG["devices"])
    keys = ["device", "architecture", "method", "context", "fill", "batch"]
    assert rows.select(keys).is_unique().all()
    for name in ("throughput", "host"):
        frame = committed(name)
        assert (frame["low"] <= frame["tokens_per_second"]).all()
        assert (frame["tokens_per_second"] <= frame["high"]).all()
    some = rows.filter(pl.col("batch") > 0)
    assert (some["tokens_per_second"] > 0).all()
    nothing = rows.filter(pl.col("batch") == 0)
    assert set(nothing["bound"]) == {"does not fit"}


def test_rows_hold_what_their_dataclasses_say() -> None:
    for row in TABLES.values():
        assert {x.name for x in dataclasses.fields(row)} == set(stored.schema(row))
