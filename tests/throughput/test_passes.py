"""Passes that quantize, and what devices send each other."""

import pytest

from lowprec.gemm.recipe import list_recipes
from lowprec.scaling.block import get_block
from lowprec.throughput.devices import get_device
from lowprec.throughput.kernel import KernelRates
from lowprec.throughput.links import all_gather, all_reduce, all_to_all, medium
from lowprec.throughput.passes import quantize_pass, recipe_passes, works
from lowprec.throughput.tiles import Shape

RATES = KernelRates(
    memory=0.5, products=1.0, kernel_seconds=1e-6, cache_bytes=64.0, link=0.5,
    collective_seconds=1e-5,
)  # fmt: skip
SHAPE = Shape(m=1024, n=512, k=2048)


def test_a_pass_reads_and_writes_once_and_a_whole_tensor_twice() -> None:
    cases = {"fp8_1x128": (16 + 8.25, 1), "nvfp4": (32 + 4.5, 2), "fp8_tensor": (32 + 8.0, 2),
             "mxfp8_e4m3": (16 + 8.25, 1), "fp8_tensor_delayed": (16 + 8.0, 1)}  # fmt: skip
    for name, (bits, kernels) in cases.items():
        found = quantize_pass(get_block(name), 1000)
        assert found is not None
        assert (found.bytes, found.kernels) == (1000 * bits / 8, kernels), name
    twice = quantize_pass(get_block("mxfp8_e4m3"), 1000, copies=2)
    assert twice is not None and twice.bytes == 1000 * (16 + 16.5) / 8
    device = get_device("h100")
    assert twice.seconds(device, RATES) == pytest.approx(1e-6 + twice.bytes / (0.5 * 3.35e12))


def test_random_rounding_and_transforms_cost_work() -> None:
    plain, turned = (quantize_pass(get_block(x), 1) for x in ("nvfp4", "nvfp4_rht16_stochastic"))
    assert plain is not None and turned is not None
    extra = works()["stochastic"].cycles + 4 * works()["butterfly"].cycles
    assert turned.cycles == pytest.approx(plain.cycles + extra)


def test_only_what_is_not_stored_is_quantized() -> None:
    assert recipe_passes("bf16", "fprop", SHAPE) == ()
    [left] = recipe_passes("deepseek_v3", "fprop", SHAPE)
    assert left.elements == 1024 * 2048
    both = recipe_passes("deepseek_v3", "fprop", SHAPE, weights="quantized")
    assert [x.elements for x in both] == [1024 * 2048, 512 * 2048]
    assert recipe_passes("weight_only_int4_g128", "fprop", SHAPE) == ()
    assert len(recipe_passes("deepseek_v3", "wgrad", SHAPE)) == 2


@pytest.mark.parametrize("role", ["fprop", "dgrad", "wgrad"])
def test_every_recipe_has_passes_of_finite_cost(role: str) -> None:
    for name in list_recipes():
        # The role is one of the names that the parameters list.
        for found in recipe_passes(name, role, SHAPE, weights="quantized"):  # type: ignore[arg-type]
            assert found.bytes > 0 and found.cycles > 0


def test_collectives_move_their_bytes() -> None:
    h800 = get_device("h800")
    found = all_reduce(h800, 4, 1e6)
    assert found.medium == "nvlink" and found.bytes == 1.5e6
    assert found.seconds(RATES) == pytest.approx(1e-5 + 1.5e6 / 100e9)
    assert all_gather(h800, 4, 1e6).bytes == 0.75e6
    sent = all_to_all(h800, 16, tokens=10, copies=8, size=100.0)
    assert sent.medium == "network" and sent.bytes == 10 * 8 * 100 * 15 / 16
    assert all_reduce(h800, 1, 1e6).seconds(RATES) == 0
    assert medium(get_device("rtx_5090"), 8) == ("host link", 64e9)
    with pytest.raises(ValueError, match="`devices` = 16: no network between nodes of rtx_5090"):
        medium(get_device("rtx_5090"), 16)
