"""The GEMM model against what is published: what is fitted, what is held out, and intervals."""

import dataclasses
import importlib
import statistics

import pytest

from lowprec.throughput.devices import beside, get_device, read_toml
from lowprec.throughput.gemm import modelled, times_faster
from lowprec.throughput.gemm_fit import GemmFit, gemm_fit
from lowprec.throughput.gemm_intervals import HELD
from lowprec.throughput.gemm_published import ProductFigure, product_figures
from lowprec.throughput.tiles import Shape


@pytest.fixture(scope="module")
def fitted() -> GemmFit:
    return gemm_fit()


def test_one_device_and_format_is_fitted() -> None:
    found = [x for x in product_figures() if x.role == "fitted"]
    assert {(x.device, x.recipe) for x in found} == {("h100", "bf16")} and len(found) > 20
    held = {x.device for x in product_figures() if x.role == "held out"}
    assert {"h100", "h800", "h20", "h200", "b200", "rtx_5090"} <= held
    assert not any(x.recipe == "bf16" and x.device == "h100" and x.role == "held out"
                   for x in product_figures())  # fmt: skip


def test_every_figure_names_its_source_and_why_it_does_not_count() -> None:
    content = read_toml(beside("gemm_published.toml"))
    for kind in ("products", "shares", "quantizers", "collectives"):
        for entry in content[kind]:
            assert entry["source"] in content["sources"]
            assert (entry["role"] != "shown") or entry["note"]
    used = {x["source"] for kind in ("products", "shares", "quantizers", "collectives")
            for x in content[kind]}  # fmt: skip
    assert used == set(content["sources"])


def test_rates_are_what_hardware_could_do(fitted: GemmFit) -> None:
    rates = fitted.rates
    assert 0.85 < rates.memory < 1 and 0.75 < rates.products < 1
    assert 1e-6 < rates.kernel_seconds < 1e-5 and 30 < rates.cache_bytes < 128
    assert 0.7 < rates.link < 0.9 and 5e-6 < rates.collective_seconds < 2e-5


def test_misses_are_small_where_it_was_fitted_and_bounded_where_not(fitted: GemmFit) -> None:
    own = [x.slower for x in fitted.misses if x.role == "fitted" and x.term != "link"]
    assert all(0.85 < x < 1.15 for x in own)
    held = [x.slower for x in fitted.misses if x.role == "held out"]
    assert len(held) > 100
    assert 0.9 < statistics.median(held) < 1.1
    inside = [0.6 < x < 1.6 for x in held]
    assert sum(inside) > 0.93 * len(inside)


def test_held_out_figures_set_no_rate(fitted: GemmFit, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = tuple(
        dataclasses.replace(x, value=2 * x.value) if x.role != "fitted" else x
        for x in product_figures()
    )
    # The package names the function as its file.
    fitting = importlib.import_module("lowprec.throughput.gemm_fit")
    monkeypatch.setattr(fitting, "product_figures", lambda: twice)
    again = gemm_fit.__wrapped__()
    assert again.rates == fitted.rates and again.ranges != fitted.ranges


def test_intervals_hold_what_they_say(fitted: GemmFit) -> None:
    assert set(fitted.ranges) == {"memory", "products", "passes", "link", "ratio"}
    assert all(low <= 1 <= high for low, high in fitted.ranges.values())
    # Made without a figure's own source they hold what is said, of times and of ratios.
    held = [x for x in fitted.misses if x.role == "held out"]
    assert fitted.left_out.figures == len(held)
    for check in (fitted.left_out, fitted.left_out_ratios):
        assert check.figures > 50 and check.inside >= HELD * check.figures
    # Nor was any of these seen when the model was written.
    assert fitted.unseen.figures > 50 and fitted.unseen.inside >= HELD * fitted.unseen.figures


def test_ratios_of_recipes_are_known_better_than_times(fitted: GemmFit) -> None:
    width = {term: high / low for term, (low, high) in fitted.ranges.items()}
    assert width["ratio"] < min(width["memory"], width["products"], width["passes"])
    found = times_faster("mxfp8", 2.0, 3.0, fitted)
    low, high = fitted.ranges["ratio"]
    assert found == (1.5, pytest.approx(1.5 / high), pytest.approx(1.5 / low))
    assert times_faster("bf16", 2.0, 2.0, fitted) == (1.0, 1.0, 1.0)


def test_deepgemm_is_predicted_for_large_and_small_batches(fitted: GemmFit) -> None:
    found = {
        (x.figure.shape.m, x.figure.shape.n, x.figure.shape.k): x.slower
        for x in fitted.misses
        if isinstance(x.figure, ProductFigure) and x.figure.name == "DeepGEMM, normal"
    }
    assert len(found) == 18
    assert found[4096, 7168, 16384] == pytest.approx(1, abs=0.15)
    assert found[64, 7168, 16384] == pytest.approx(1, abs=0.15)


def test_a_modelled_product_adds_up_and_spans(fitted: GemmFit) -> None:
    shape = Shape(m=4096, n=7168, k=2048)
    found = modelled("h800", "deepseek_v3", shape, fit=fitted)
    middle, low, high = found.seconds
    assert low < middle < high
    assert middle == found.product.seconds + found.passes.seconds
    assert found.teraflops.low == pytest.approx(shape.flop / high / 1e12)
    bare = modelled("h800", "deepseek_v3", shape, quantizing=False, fit=fitted)
    assert bare.seconds.value == found.product.seconds
    training = modelled("h800", "deepseek_v3", shape, weights="quantized", fit=fitted)
    assert training.passes.seconds > found.passes.seconds
    assert get_device("h800") == found.device
