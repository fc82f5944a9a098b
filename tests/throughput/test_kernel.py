"""Kernels, their tiles and what a recipe becomes on a device: terms against their formulas."""

import dataclasses
import math

import pytest

from lowprec.throughput.devices import get_device, list_devices
from lowprec.throughput.kernel import (
    LANES,
    KernelRates,
    kernel,
    operand_bytes,
    result_bytes,
)
from lowprec.throughput.plan import plans
from lowprec.throughput.tiles import Shape, cut, tiles_of

PEAKS = KernelRates(memory=1.0, products=1.0, kernel_seconds=0.0, cache_bytes=1e9)


def test_terms_are_their_formulas() -> None:
    device, shape = get_device("h800"), Shape(m=100, n=4096, k=7168, groups=3)
    rates = KernelRates(memory=0.5, products=0.25, kernel_seconds=2e-6, cache_bytes=50.0)
    found = kernel(device, plans(device, "deepseek_v3"), shape, rates)
    tile, plan = found.tile, found.plan
    assert tile.count == 3 * math.ceil(100 / tile.rows) * math.ceil(4096 / tile.columns)
    assert found.waves == math.ceil(tile.count / 132)
    clock, size = 1.6e9, tile.rows * tile.columns
    assert found.memory == pytest.approx(3 * 7168 * (100 * 8.25 + 4096 * 8.00195) / 8 / 1.675e12,
                                         rel=1e-4)  # fmt: skip
    rate = 1979e12 / 132 * 1.6 / 1.83 * 0.25
    assert found.products == pytest.approx(found.waves * 2 * size * 7168 / rate)
    assert found.promotion == pytest.approx(found.waves * 56 * size / LANES / clock)
    sides = tile.rows * plan.left_bits / 8, tile.columns * plan.right_bits / 8
    loaded = sum(sides) - max(sides) / 2
    assert found.cache == pytest.approx(found.waves * loaded * 7168 / 50 / clock)
    assert found.store == pytest.approx(3 * 100 * 4096 * 2 / 1.675e12)
    work = max(found.products, found.promotion, found.cache)
    main = (found.memory**4 + work**4) ** 0.25
    assert found.seconds == pytest.approx(2e-6 + main + found.store)
    assert found.teraflops == pytest.approx(shape.flop / found.seconds / 1e12)


def test_few_rows_fill_a_tile_of_hopper_and_less_of_blackwell() -> None:
    wanted = {"h20": 64, "b200": 16, "rtx_5090": 16}
    for name, rows in wanted.items():
        device = get_device(name)
        tiles = cut(device.generation, Shape(m=8, n=4096, k=4096), promoted=False)
        assert min(x.rows for x in tiles) == rows
    h20 = get_device("h20")
    times = [
        kernel(h20, plans(h20, "deepseek_v3"), Shape(m=m, n=24576, k=7168), PEAKS).products
        for m in (8, 64, 65)
    ]
    assert times[0] == times[1] < times[2]


def test_promotion_leaves_smaller_tiles() -> None:
    shape = Shape(m=4096, n=4096, k=4096)
    for generation in ("hopper", "blackwell", "ada", "rtx_blackwell"):
        limits = tiles_of(generation)
        for promoted, most in (
            (True, limits.promoted_accumulators),
            (False, limits.accumulators),
        ):
            tiles = cut(generation, shape, promoted=promoted)
            assert max(x.rows * x.columns for x in tiles) <= most
            assert all(x.count == x.down * x.across for x in tiles)


@pytest.mark.parametrize("device", list_devices())
def test_more_of_anything_takes_no_less(device: str) -> None:
    found, rates = get_device(device), dataclasses.replace(PEAKS, cache_bytes=64.0)
    for recipe in ("bf16", "deepseek_v3", "nvfp4"):
        ways = plans(found, recipe)
        base = Shape(m=48, n=1024, k=2048)
        least = kernel(found, ways, base, rates).seconds
        for more in ({"m": 96}, {"n": 2048}, {"k": 4096}, {"groups": 2}):
            assert kernel(found, ways, dataclasses.replace(base, **more), rates).seconds >= least
        slower = dataclasses.replace(rates, memory=0.5, products=0.5)
        assert kernel(found, ways, base, slower).seconds > least


def test_bytes_count_scales_and_the_result() -> None:
    device, shape = get_device("b200"), Shape(m=128, n=256, k=512, groups=2)
    [plan] = plans(device, "mxfp8")
    assert operand_bytes(plan, shape) == 2 * 512 * (128 + 256) * 8.25 / 8
    assert result_bytes(plan, shape) == 2 * 128 * 256 * 2


def test_recipes_become_what_a_device_has() -> None:
    h100, b200, ada = (get_device(x) for x in ("h100", "b200", "rtx_4090"))
    [own] = plans(b200, "nvfp4")
    assert (own.product, own.engine, own.how) == (
        "float4",
        "blackwell.tcgen05.nvf4.fp32",
        "as written",
    )
    first = plans(h100, "mxfp8")[0]
    assert (first.product, first.promote_every, first.how) == ("float8", 32, "scaled at promotion")
    # Scales of both operands differ by row and column there, and are multiplied first.
    assert first.promotion_operations == 2
    assert plans(h100, "deepseek_v3")[0].promotion_operations == 1
    [weights] = plans(h100, "weight_only_int4_g128")
    assert weights.product == "bfloat16" and weights.promote_every is None
    assert weights.left_cycles == 0 < weights.right_cycles
    assert plans(h100, "te_current", "dgrad")[0].promote_every == 128
    assert plans(h100, "te_current")[0].promote_every is None
    assert plans(ada, "int8_dynamic")[0].engine == ""
    assert {x.product for x in plans(h100, "nvfp4")} == {"float8", "bfloat16"}


def test_integers_of_few_bits_become_floats_of_eight() -> None:
    h200 = get_device("h200")
    assert {x.product for x in plans(h200, "a8w4_fp8_int4")} == {"float8", "bfloat16"}
    # Beside bfloat16 they become bfloat16, and integers of 8 bits fit no float of 8.
    assert {x.product for x in plans(h200, "weight_only_int4_g128")} == {"bfloat16"}
    assert {x.product for x in plans(h200, "ocp_e4m3_int8")} == {"bfloat16"}


def test_block_scaled_instructions_of_geforce_are_twice_as_fast() -> None:
    device, shape = get_device("rtx_5090"), Shape(m=4096, n=4096, k=4096)
    plain, scaled = (
        kernel(device, plans(device, x), shape, PEAKS) for x in ("fp8_tensor", "mxfp8")
    )
    assert not plain.plan.scaled and scaled.plan.scaled
    assert scaled.products == pytest.approx(plain.products / 2)
    b200 = get_device("b200")
    assert b200.peak("float8", scaled=True) == b200.peak("float8")


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="`m` = 0; a product's sizes are 1 or more"):
        Shape(m=0, n=1, k=1)
    with pytest.raises(ValueError, match=r"use shares within \(0, 1\]"):
        dataclasses.replace(PEAKS, memory=1.5)
    with pytest.raises(ValueError, match="no recipe is named"):
        plans(get_device("h100"), "deepseek_v9")
