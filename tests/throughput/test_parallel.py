"""Layers on several devices: shapes of their products, what is sent, and sums."""

import pytest

from lowprec.throughput.architecture import get_architecture
from lowprec.throughput.devices import get_device
from lowprec.throughput.gemm_fit import GemmFit, gemm_fit
from lowprec.throughput.parallel import dense_layer, expert_layer

DEEPSEEK, LLAMA = get_architecture("deepseek_v3"), get_architecture("llama_3_70b")
H800 = get_device("h800")


@pytest.fixture(scope="module")
def fitted() -> GemmFit:
    return gemm_fit()


def test_both_splits_multiply_as_much(fitted: GemmFit) -> None:
    layers = [
        expert_layer(H800, DEEPSEEK, "deepseek_v3", fitted, split=split, devices=8, batch=64)
        for split in ("expert", "tensor")
    ]
    flop = 2 * 3 * 7168 * 2048 * 64 * 256 / 8
    for layer in layers:
        assert sum(x.shape.flop for x in layer.products) == flop
        assert layer.tokens == 64 * 256 / 8
        middle, low, high = layer.seconds
        assert low < middle < high
        assert layer.tokens_per_second.value == pytest.approx(layer.tokens / 8 / middle)
    whole, cut = layers
    assert whole.links[0].bytes == 256 * 8 * 7168 * 8.25 / 8 * 7 / 8
    assert cut.links[1].bytes == 2048 * 7168 * 2 * 7 / 8
    # Of experts that are cut, tiles are fewer columns, and as many rows are quantized on each.
    assert cut.seconds.value > whole.seconds.value


def test_quantized_dispatch_sends_less_and_quantizes_each_token_once(fitted: GemmFit) -> None:
    early, late = (
        expert_layer(H800, DEEPSEEK, "deepseek_v3", fitted, split="expert", devices=64,
                     batch=128, dispatch=dispatch)
        for dispatch in ("quantized", "bfloat16")
    )  # fmt: skip
    assert early.links[0].medium == "network"
    assert early.links[0].bytes == late.links[0].bytes * 8.25 / 16
    assert early.products[0].passes.seconds == 0 < late.products[0].passes.seconds
    assert late.sending.seconds == 0 < early.sending.seconds
    assert early.bound == "links" and early.seconds.value < late.seconds.value


def test_a_dense_layer_is_cut(fitted: GemmFit) -> None:
    one, four = (dense_layer(H800, LLAMA, "bf16", fitted, devices=n, batch=64) for n in (1, 4))
    flop = [sum(x.shape.flop for x in layer.products) for layer in (one, four)]
    assert flop[0] == 4 * flop[1]
    per_layer = LLAMA.attention_parameters + 3 * LLAMA.width * LLAMA.hidden
    assert flop[0] == 2 * 64 * per_layer
    assert one.transfers.seconds == 0 < four.transfers.seconds
    assert four.seconds.value < one.seconds.value < 4 * four.seconds.value


def test_what_cannot_be_split_is_refused(fitted: GemmFit) -> None:
    with pytest.raises(ValueError, match="llama_3_70b has no experts; use `dense_layer`"):
        expert_layer(H800, LLAMA, "bf16", fitted, split="expert", devices=8, batch=1)
    with pytest.raises(ValueError, match="`devices` = 3 do not divide 256 experts"):
        expert_layer(H800, DEEPSEEK, "bf16", fitted, split="expert", devices=3, batch=1)
    with pytest.raises(ValueError, match="deepseek_v3 has latent attention"):
        dense_layer(H800, DEEPSEEK, "bf16", fitted, devices=8, batch=1)
    with pytest.raises(ValueError, match="`devices` = 16 do not divide 64 heads, 8 of keys"):
        dense_layer(H800, LLAMA, "bf16", fitted, devices=16, batch=1)
