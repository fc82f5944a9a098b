"""Rows of the GEMM model: layers, roles, published figures, and what a bit is worth."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

from lowprec.models.operands import Operands
from lowprec.study import gemm_exchange as exchange
from lowprec.study import gemm_throughput as study
from lowprec.study.advise_times import layer_shape
from lowprec.throughput.architecture import get_architecture
from lowprec.throughput.devices import get_device
from lowprec.throughput.fit import two_digits
from lowprec.throughput.gemm_fit import GemmFit, gemm_fit
from lowprec.throughput.parallel import expert_layer

CONFIG = tomllib.loads(
    (Path(__file__).parents[2] / "experiments" / "gemm_throughput.toml").read_text()
)
DEEPSEEK = get_architecture("deepseek_v3")


@pytest.fixture(scope="module")
def fitted() -> GemmFit:
    return gemm_fit()


def test_rows_of_experts_have_every_split(fitted: GemmFit) -> None:
    device = get_device("h800")
    found = list(
        study.expert_rows(
            device, DEEPSEEK, ["deepseek_v3"], fitted, devices=[8, 64], batches=[8, 128]
        )
    )
    assert len(found) == 2 * 3 * 2
    assert {(x.split, x.dispatch) for x in found} == {
        ("expert", "quantized"),
        ("expert", "bfloat16"),
        ("tensor", "quantized"),
    }
    for row in found:
        assert row.low <= row.tokens_per_second <= row.high
        assert row.seconds_low <= row.seconds <= row.seconds_high
        parts = row.products + row.quantizing + row.links
        assert row.seconds == pytest.approx(parts, rel=0.1)
    for count, batch in ((8, 8), (64, 128)):
        ways = [x for x in found if (x.devices, x.batch) == (count, batch)]
        assert min(x.over_least for x in ways) == 1
        for row in ways:
            least = min(x.seconds for x in ways)
            assert row.over_least == pytest.approx(row.seconds / least, rel=0.1)
            assert row.times_low < row.times < row.times_high
    first = found[0]
    plain = expert_layer(device, DEEPSEEK, "bf16", fitted, split="expert", devices=8, batch=8)
    ratio = plain.seconds.value / first.seconds
    assert first.times == pytest.approx(ratio, rel=0.06)
    made = expert_layer(device, DEEPSEEK, "deepseek_v3", fitted, split="expert", devices=8, batch=8)
    assert first.seconds == two_digits(made.seconds.value) and first.bound == made.bound


def test_a_device_without_a_network_has_one_node(fitted: GemmFit) -> None:
    found = study.expert_rows(
        get_device("rtx_5090"), DEEPSEEK, ["bf16"], fitted, devices=[8, 64], batches=[1]
    )
    assert {x.devices for x in found} == {8}


def test_dense_layers_are_cut_as_their_heads_allow(fitted: GemmFit) -> None:
    device, qwen = get_device("h100"), get_architecture("qwen_2_5_7b")
    found = study.dense_rows(device, qwen, ["bf16"], fitted, devices=[1, 2, 4, 8], batches=[16])
    assert [x.devices for x in found] == [1, 2, 4]


def test_training_multiplies_three_times_as_much_in_three_roles(fitted: GemmFit) -> None:
    asked = {x: CONFIG["training"][x] for x in ("m", "n", "k")}
    found = list(study.role_rows(get_device("b200"), ["bf16", "nvfp4"], fitted, **asked))
    assert [x.role for x in found] == ["fprop", "dgrad", "wgrad"] * 2
    assert len({x.m * x.n * x.k for x in found}) == 1
    assert all(x.quantizing_us == 0 for x in found[:3])
    assert all(0 < x.quantizing_us < x.us and x.how == "as written" for x in found[3:])
    assert [x.plain_us for x in found[3:]] == [x.us for x in found[:3]]
    assert all(x.times_low == x.times_high == 1 for x in found[:3])
    assert all(x.times_low < 1 < x.times_high for x in found[3:])


def test_a_bit_is_worth_what_its_time_is(fitted: GemmFit) -> None:
    h800 = {x.where: x for x in exchange.exchange_rows(get_device("h800"), fitted)}
    assert set(h800) == {"memory", "node", "network"}
    seconds = 1 / 8 / (fitted.rates.link * 50e9)
    lanes = 128 * 132 * 1.6e9
    assert h800["network"].operations == two_digits(seconds * lanes)
    assert h800["memory"].operations < h800["node"].operations < h800["network"].operations
    for row in h800.values():
        assert row.low <= row.operations <= row.high and row.flop > row.operations
    assert "network" not in {
        x.where for x in exchange.exchange_rows(get_device("rtx_5090"), fitted)
    }


def test_a_trade_pays_where_its_bits_are_worth_more(fitted: GemmFit) -> None:
    found = {
        (row.device, row.trade): row
        for name in ("h800", "b200")
        for row in exchange.trade_rows(get_device(name), CONFIG["trade"], fitted)
    }
    unpacked = "KV: bf16 to fp8, unpacked"
    # FlashMLA counts 50 cycles a token there, more than reading it in bfloat16 takes.
    assert found["h800", unpacked].times < 1 and found["b200", unpacked].pays == "yes"
    sent = found["h800", "dispatch over the network: bf16 to fp8 1x128"]
    assert sent.pays == "yes" and sent.bits == 8 * 7.75
    for row in found.values():
        assert row.low <= row.times <= row.high
        verdict = "yes" if row.low > 1 else "no" if row.high < 1 else "not resolved"
        assert row.pays == verdict


def test_published_rows_say_why_they_do_not_count(fitted: GemmFit) -> None:
    found = list(study.gemm_published_rows(fitted))
    assert len(found) == len(fitted.misses)
    for row, miss in zip(found, fitted.misses, strict=True):
        assert row.miss == two_digits(miss.slower - 1) and row.low <= 0 <= row.high
        assert row.note or row.role != "shown"
        assert row.source and row.unit


def test_the_shape_of_a_layer_is_that_of_all_its_tokens() -> None:
    layer = Operands("fc", x=np.ones((4, 8)), w=np.ones((8, 2)), dy=np.ones((4, 2)))
    shapes = [layer_shape(layer, role, 64) for role in ("fprop", "dgrad", "wgrad")]
    assert [(x.m, x.n, x.k) for x in shapes] == [(64, 2, 8), (64, 8, 2), (8, 2, 64)]
