"""Power-of-two scale rules where they go wrong: at 2^k, at MAX * 2^k, among subnormals."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.scaling import Block, QTensor, get_block, oracle, quantize
from tests.helpers import UInts, as_bits, assert_bits_equal, floats
from tests.scaling.helpers import MX_ELEMENTS, changed, slow_if

pytestmark = pytest.mark.slow

RULES = ("floor", "even", "ceil", "rceil")
MAX_FINITE = 0x7F7FFFFF

# What amax / X reaches, [low, high) for floor and even, (low, high] for ceil and rceil, by hand
# from the rules' definitions and the elements' largest values.
REACH = {
    "mxfp8_e4m3": ((256, 512), (248, 496), (128, 256), (224, 448)),
    "mxfp8_e5m2": ((32768, 65536), (30720, 61440), (16384, 32768), (28672, 57344)),
    "mxfp6_e3m2": ((16, 32), (15, 30), (8, 16), (14, 28)),
    "mxfp6_e2m3": ((4, 8), (3.875, 7.75), (2, 4), (3.75, 7.5)),
    "mxfp4": ((4, 8), (3.5, 7), (2, 4), (3, 6)),
}


@functools.cache
def adversarial_amax() -> UInts:
    """2^k, MAX * 2^k and midpoints of the mantissa times 2^k, each +-1 ulp, all k; subnormals."""
    mantissas = {0} | {int(2**23 * x) for x in (0.5, 0.75, 0.875, 0.9375, 0.96875)}
    powers = np.arange(0, 255, dtype=np.int64) << 23
    centres = np.concatenate([powers + mantissa for mantissa in mantissas])
    subnormal = np.concatenate([1 << np.arange(23), 3 << np.arange(22)])
    near = np.concatenate([centres - 1, centres, centres + 1, subnormal - 1, subnormal + 1])
    return np.unique(np.clip(near, 0, MAX_FINITE)).astype(np.uint32)


@functools.cache
def with_rule(name: str, rule: str) -> Block:
    return changed(name, scale_rule=rule)


@functools.cache
def found(name: str, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Scale codes and element codes of tiles of one element each, its magnitude amax."""
    q = quantize(jnp.asarray(floats(adversarial_amax()))[:, None], with_rule(name, rule))
    return np.asarray(q.scales)[:, 0], np.asarray(q.codes)[:, 0]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", slow_if(MX_ELEMENTS, MX_ELEMENTS[1:4]))
def test_scale_is_exact(name: str, rule: str) -> None:
    amax = adversarial_amax()
    block = with_rule(name, rule)
    want = [oracle.tile_scale(int(bits), None, block).stored for bits in amax]
    assert_bits_equal(found(name, rule)[0], np.array(want, np.uint8), inputs=floats(amax))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", slow_if(MX_ELEMENTS, MX_ELEMENTS[1:4]))
def test_scaled_amax_lies_in_the_rules_range(name: str, rule: str) -> None:
    scales, _ = found(name, rule)
    inside = (scales > 0) & (scales < 254)
    assert inside.sum() > 3000
    reached = floats(adversarial_amax()).astype(np.float64) * 2.0 ** (127.0 - scales)
    low, high = REACH[name][RULES.index(rule)]
    if rule in ("floor", "even"):
        assert np.all((low <= reached[inside]) & (reached[inside] < high))
        assert reached[inside].min() == low
    else:
        assert np.all((low < reached[inside]) & (reached[inside] <= high))
        assert reached[inside].max() == high


@pytest.mark.parametrize("name", slow_if(MX_ELEMENTS, MX_ELEMENTS[1:4]))
def test_floor_even_ceil_are_ordered_and_within_one_step(name: str) -> None:
    floor, even, ceil = (found(name, rule)[0].astype(int) for rule in ("floor", "even", "ceil"))
    assert np.all((floor <= even) & (even <= ceil) & (ceil <= floor + 1))
    assert np.any(floor < even) and np.any(even < ceil)


@pytest.mark.parametrize("name", slow_if(MX_ELEMENTS, MX_ELEMENTS[1:4]))
def test_rceil_never_saturates_and_floor_does(name: str) -> None:
    largest = get_block(name).element.max
    amax = floats(adversarial_amax()).astype(np.float64)
    rceil, floor = (2.0 ** (found(name, rule)[0] - 127.0) * largest for rule in ("rceil", "floor"))
    assert np.all(amax <= rceil)
    assert np.any(amax > floor)


@pytest.mark.parametrize("rule", RULES)
def test_tiny_amax_is_clamped_to_the_smallest_scale(rule: str) -> None:
    scales, codes = found("mxfp8_e4m3", rule)
    amax = floats(adversarial_amax()).astype(np.float64)
    tiny = amax < 2.0**-120
    assert np.all(scales[tiny] == 0) and tiny.sum() > 90
    want = amax[tiny] * 2.0**127
    steps = get_block("mxfp8_e4m3").element.values
    assert steps is not None
    nearest = np.abs(steps[:127][None, :] - want[:, None]).min(axis=1)
    assert np.all(np.abs(steps[codes[tiny]] - want) == nearest)


@pytest.mark.parametrize("name", ["mxfp8_e4m3"])
def test_every_scale_code_decodes(name: str) -> None:
    block = get_block(name)
    one = block.element.values
    assert one is not None
    code = int(np.flatnonzero(one == 1.0)[0])
    codes = jnp.full((256, 1), code, jnp.uint8)
    q = QTensor(codes=codes, scales=jnp.arange(256, dtype=jnp.uint8)[:, None], block=block)
    want = np.array([math.ldexp(1.0, k - 127) for k in range(255)] + [math.nan], np.float32)
    assert_bits_equal(as_bits(q.dequantize())[:, 0], as_bits(want))
