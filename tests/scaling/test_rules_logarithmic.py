"""The rules oas, nearest_log2 and three_quarter where they turn, against exact arithmetic."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.scaling import get_block, oracle, quantize
from tests.helpers import UInts, assert_bits_equal, floats
from tests.scaling.helpers import changed

pytestmark = pytest.mark.slow

FACTORS = {"mxfp4": 12 / 7, "mxfp8_e4m3": 60 / 31, "mxint8": 2.0}
MAX = {"mxfp4": 6.0, "mxfp8_e4m3": 448.0, "mxint8": 127 / 64}


@functools.cache
def turning_points() -> UInts:
    """Where a rule goes on by one, times powers of two, +-2 ulp; and subnormals, and specials."""
    points = [1.0, 7 / 4]
    for largest in MAX.values():
        points += [largest, largest * math.sqrt(2), largest / math.sqrt(2)]
    points += [MAX[name] / factor * (1 - 2**-9) for name, factor in FACTORS.items()]
    mantissas = np.array([math.frexp(x)[0] * 2 for x in points], np.float32).view(np.uint32)
    centres = ((mantissas & 0x7FFFFF)[:, None] + (np.arange(0, 255, 3) << 23)).ravel()
    near = np.concatenate([centres + step for step in (-2, -1, 0, 1, 2)])
    tiny = np.concatenate([1 << np.arange(23), [0, 3, 0x7F7FFFFF, 0x7F800000, 0x7FC00000]])
    return np.unique(np.clip(np.concatenate([near, tiny]), 0, 0x7FC00000)).astype(np.uint32)


@pytest.mark.parametrize("rule", ["oas", "nearest_log2", "three_quarter"])
@pytest.mark.parametrize("name", [*MAX])
def test_scale_is_exact(name: str, rule: str) -> None:
    factor = {"oas_factor": FACTORS[name]} if rule == "oas" else {}
    block = changed(name, tile=(1, 1), scale_rule=rule, **factor)
    amax = turning_points()
    got = np.asarray(quantize(jnp.asarray(floats(amax))[:, None], block).scales)[:, 0]
    want = [oracle.tile_scale(int(bits), None, block).stored for bits in amax]
    assert_bits_equal(got, np.array(want, np.uint8), inputs=floats(amax))
    inside = (got > 0) & (got < 254)
    reached = floats(amax)[inside].astype(np.float64) * 2.0 ** (127.0 - got[inside])
    largest = MAX[name]
    low, high = {
        # bfloat16 rounds up what lies within 2^-9 of a power of two below it.
        "oas": (largest / FACTORS[name] * (1 - 2**-9), 2 * largest / FACTORS[name]),
        "nearest_log2": (largest / math.sqrt(2), largest * math.sqrt(2)),
        "three_quarter": (2.0 ** math.floor(math.log2(largest)),) * 2,
    }[rule]
    high = 2 * low if rule == "three_quarter" else high
    assert low * (1 - 1e-6) <= reached.min() < low * 1.01
    assert high * 0.99 < reached.max() <= high * (1 + 1e-6)


def test_nearest_log2_turns_at_the_square_root_of_two() -> None:
    # 6 = M * 2^-21 with the 24-bit M = 3 * 2^22: below M / sqrt(2), a * 2^-21 rounds down.
    threshold = math.isqrt((3 << 22) ** 2 // 2)
    x = np.array([threshold, threshold + 1], np.float64) / 2**21
    assert np.all(x == x.astype(np.float32)) and 4.2426 < x[0] < 6 / math.sqrt(2) < x[1] < 4.2427
    q = quantize(jnp.asarray(x, jnp.float32)[:, None], changed("mxfp4_nearest_log2", tile=(1, 1)))
    assert np.asarray(q.scales)[:, 0].tolist() == [126, 127]


def test_three_quarter_decodes_to_multiples_of_four_thirds() -> None:
    x = jnp.array([[8.0, 1.0, -4.0, 0.0]])
    q = quantize(x, "mxfp4_three_quarter")
    # E = 3: X = 2 * 4/3, and 8 / (8/3) = 3.
    assert q.scales.tolist() == [[128]] and q.tensor_scale is not None
    assert q.tensor_scale.item() == np.float32(4 / 3)
    third = np.float32(4 / 3)
    np.testing.assert_array_equal(q.dequantize(), [[6 * third, third, -3 * third, 0]])
    # The constant is no datum of the tensor.
    assert q.bits_per_element == 4 + 8 / 4


def test_overflow_aware_scaling_of_e2m1_is_the_rule_even_but_for_bfloat16() -> None:
    # amax / 3.5 and rounding amax to one mantissa bit turn at the same point, 1.75 * 2^k.
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.exp(rng.normal(size=(4096, 1)) * 5), jnp.float32)
    oas, even = (
        np.asarray(quantize(x, changed(name, tile=(1, 1))).scales).astype(int)
        for name in ("mxfp4_oas", "mxfp4_even")
    )
    mantissa = np.frexp(np.asarray(x))[0] * 2
    assert np.all(np.isin(oas - even, (0, 1))) and np.any(oas > even)
    assert np.all(mantissa[oas != even] >= 1.75 * (1 - 2**-9))
    assert get_block("mxfp4_oas").oas_factor == 12 / 7
