"""The section on modelled products: tables there and back, titles, what is committed."""

import tomllib
from pathlib import Path

import polars as pl
import pytest

from lowprec.report import gemm_throughput_exchange_figure as exchange_drawing
from lowprec.report import gemm_throughput_figure as drawing
from lowprec.report import gemm_throughput_published_figure as published_drawing
from lowprec.report import stored
from lowprec.report.gemm_throughput import (
    TABLES,
    Results,
    best_layers,
    gemm_throughput_section,
    gemm_throughput_tables,
    read_gemm_throughput,
    write_gemm_throughput,
)
from lowprec.study import gemm_exchange as exchange
from lowprec.study import gemm_throughput as study
from lowprec.throughput.architecture import get_architecture
from lowprec.throughput.devices import get_device
from lowprec.throughput.gemm_fit import gemm_fit

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "reports" / "gemm_throughput"
CONFIG = tomllib.loads((ROOT / "experiments" / "gemm_throughput.toml").read_text())
RECORD = {
    "command": "python experiments/gemm_throughput.py",
    "date": "2026-01-02",
    "seconds": 3,
    "settings": {"memory_share": 0.95, "products_share": 0.87, "link_share": 0.78,
                 "kernel_microseconds": 5.2, "cache_bytes_a_cycle": 70.0,
                 "collective_microseconds": 11.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def results() -> Results:
    """Three devices, two recipes and two batches of the model itself."""
    fit = gemm_fit()
    devices = [get_device(x) for x in ("h800", "h20", "b200")]
    layers = [
        row
        for device in devices
        for row in study.expert_rows(
            device,
            get_architecture("deepseek_v3"),
            ["bf16", "deepseek_v3"],
            fit,
            devices=[8],
            batches=[8, 128, 1024],
        )
    ]
    sizes = {x: CONFIG["training"][x] for x in ("m", "n", "k")}
    roles = [row for x in devices for row in study.role_rows(x, ["bf16", "nvfp4"], fit, **sizes)]
    return Results.from_rows(
        RECORD,
        layers=layers,
        roles=roles,
        exchange=[row for x in devices for row in exchange.exchange_rows(x, fit)],
        trades=[row for x in devices for row in exchange.trade_rows(x, CONFIG["trade"], fit)],
        published=list(study.gemm_published_rows(fit)),
    )


@pytest.mark.slow
@pytest.mark.thorough
def test_there_and_back(results: Results, tmp_path: Path) -> None:
    assert read_gemm_throughput(tmp_path) is None
    written = write_gemm_throughput(results, tmp_path)
    found = read_gemm_throughput(tmp_path)
    assert found == written and found is not None
    assert len(found.figures) == len(list((tmp_path / "figures").iterdir())) == 4
    for figure in found.figures:
        assert figure.name.startswith("gemm_throughput_")
        assert "odelled" in figure.wide and "odelled" in figure.narrow
    (tmp_path / "trades.csv").unlink()
    with pytest.raises(ValueError, match=r"trades.csv: there is no such file; experiments/gemm_"):
        read_gemm_throughput(tmp_path)


def test_no_rows_no_figure_and_no_finding() -> None:
    nothing = Results.from_rows({}, **dict.fromkeys(TABLES, ()))
    section = gemm_throughput_section(nothing)
    assert section.figures == [] and section.findings == []


def test_titles_say_modelled_and_follow_the_data(results: Results) -> None:
    frames = results.frames
    found = [
        drawing.recipes_title(frames["layers"]),
        drawing.splits_title(frames["layers"]),
        exchange_drawing.exchange_title(frames["exchange"]),
    ]
    assert all(title.startswith("Modelled") for title in found)
    assert "deepseek_v3 on the H800 SXM" in found[0]
    assert "take the H20" in drawing.padding(frames["layers"])
    assert drawing.padding(frames["layers"].filter(pl.col("device") != "h20")) == ""
    faster = frames["layers"].with_columns(
        times=pl.when(pl.col("recipe") == "bf16").then(100.0).otherwise(pl.col("times"))
    )
    assert "bf16 on the H800 SXM, 100 (" in drawing.recipes_title(faster)
    held = frames["published"].filter(pl.col("role") == "held out")
    title = published_drawing.published_title(frames["published"])
    assert f"against {len(held)} other published figures" in title
    whole, inside = published_drawing.covered(frames["published"])
    assert whole == len(held) and inside > 0.8 * whole


def test_what_is_best_is_best(results: Results) -> None:
    frame = results.frames["layers"]
    best = best_layers(frame)
    assert set(best["batch"]) == {8, 1024} and len(best) == 3 * 2
    for row in best.to_dicts():
        some = frame.filter((pl.col("device") == row["device"]) & (pl.col("batch") == row["batch"]))
        assert row["tokens_per_second"] == some["tokens_per_second"].max()
        assert row["recipe"] in row["tied"]
    tables = {x.name: x for x in gemm_throughput_tables(results.frames)}
    column = [heading for heading, _ in tables["layers"].columns].index("tokens/s a device")
    assert all(" to " in row[column] for row in tables["layers"].rows)
    assert set(tables) == {"published", "layers", "roles", "trades"}


def test_committed_figures_are_what_the_model_gives(results: Results) -> None:
    found = stored.read_table(COMMITTED / "published.csv", TABLES["published"], "")
    again = results.frames["published"]
    assert found is not None and found["figure"].to_list() == again["figure"].to_list()
    assert found["role"].to_list() == again["role"].to_list()
    # Two digits of a fit: the last may differ from machine to machine.
    assert (found["miss"] - again["miss"]).abs().max() < 0.03  # type: ignore[operator]
    trades = stored.read_table(COMMITTED / "trades.csv", TABLES["trades"], "")
    assert trades is not None and set(trades["device"]) == set(CONFIG["devices"])
    layers = stored.read_table(COMMITTED / "layers.csv", TABLES["layers"], "")
    assert layers is not None
    assert (layers["low"] <= layers["tokens_per_second"]).all()
    assert (layers["tokens_per_second"] <= layers["high"]).all()
