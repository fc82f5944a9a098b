"""Bit equality with torch's casts and torchao's MX blocks, where they are right."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import lowprec as lp
from lowprec.numerics import get_format
from lowprec.numerics.codec import encode_bits
from lowprec.scaling import get_block
from tests.helpers import as_bits, assert_bits_equal, edges, floats, random_words
from tests.scaling.helpers import changed

pytestmark = pytest.mark.slow

torch: Any = pytest.importorskip("torch", reason="needs the extra `torch`")

CASTS = (
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "bfloat16",
    "float16",
)
RULES = ("floor", "even", "ceil", "rceil")
ELEMENTS = {
    "mxfp8_e4m3": "float8_e4m3fn",
    "mxfp8_e5m2": "float8_e5m2",
    "mxfp6_e2m3": "fp6_e2m3",
    "mxfp6_e3m2": "fp6_e3m2",
    "mxfp4": "float4_e2m1fn_x2",
}


@pytest.mark.parametrize("name", CASTS)
def test_casts_within_the_range(name: str) -> None:
    """What lies past the largest value follows torch's version: see its overflow, 2.12 and 2.13."""
    fmt = get_format(name)
    bits = np.concatenate([edges(fmt), random_words(1 << 12)]).astype(np.uint32)
    bits = bits[np.abs(floats(bits)) <= fmt.max]
    want = torch.from_numpy(floats(bits)).to(getattr(torch, name))
    width = torch.uint8 if fmt.bits == 8 else torch.uint16
    got = encode_bits(jnp.asarray(bits), fmt, "nearest_even", "saturate")
    assert_bits_equal(got, want.view(width).numpy(), fmt=fmt, inputs=floats(bits))
    assert len(np.unique(np.asarray(got))) > 200


def blocks_of_normals() -> np.ndarray:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(48, 64)) * np.exp2(rng.integers(-60, 60, (48, 1)))
    # Rows whose largest value lies at a power of two, or just below or above it, or on a tie.
    ends = np.float32(2.0) ** rng.integers(-20, 20, 24)
    ends[8:16] = np.nextafter(ends[8:16], np.float32(0))
    ends[16:] = np.nextafter(ends[16:], np.float32(np.inf))
    x[:24] = x[:24] / np.abs(x[:24]).max(axis=1, keepdims=True) * ends[:, None] * 0.9
    x[:24, ::32] = ends[:, None]
    return x.astype(np.float32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ELEMENTS)
def test_torchao_microscaling(name: str, rule: str) -> None:
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor", reason="needs torchao")
    element = getattr(torch, ELEMENTS[name], ELEMENTS[name])
    x = blocks_of_normals()
    mode = mx.ScaleCalculationMode(rule)
    scales, codes = mx.to_mx(torch.from_numpy(x), element, 32, scaling_mode=mode)
    want = codes.view(torch.uint8).numpy()
    if name == "mxfp4":
        want = np.stack([want & 15, want >> 4], axis=-1).reshape(x.shape)
    block = get_block(name)
    block = changed(name, scale_rule=rule) if block.scale_rule != rule else block
    q = lp.quantize(x, block)
    assert_bits_equal(np.asarray(q.scales), scales.view(torch.uint8).numpy())
    assert_bits_equal(np.asarray(q.codes), want, fmt=block.element, inputs=x)
    assert len(np.unique(want)) > min(12, 1 << (block.element.bits - 1))
    assert as_bits(x).size == want.size
