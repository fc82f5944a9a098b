"""Quantizing N numbers takes the input, the output and one temporary of that size at most."""

import jax
import jax.numpy as jnp
import pytest

import lowprec as lp
from lowprec.scaling import QTensor

pytestmark = pytest.mark.slow

SHAPE = (2048, 1024)
NAMES = ["fp8_1x128", "fp8_128x128", "fp8_tensor", "mxfp8_e4m3", "mxfp4_rceil", "nvfp4"]


def temporaries(function, argument) -> float:
    """Temporary memory of a compiled function, in units of the tensor's float32 bytes."""
    analysis = jax.jit(function).lower(argument).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes / (4 * SHAPE[0] * SHAPE[1])


def scales_share(q: QTensor) -> float:
    """The tiles' own numbers, a few of each, in the same unit."""
    return 32 * q.scales.size / (4 * SHAPE[0] * SHAPE[1])


@pytest.mark.parametrize("name", NAMES)
def test_quantize_and_back(name: str) -> None:
    x = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    q = jax.eval_shape(lambda x: lp.quantize(x, name), x)
    limit = 1 + scales_share(q)
    assert temporaries(lambda x: lp.quantize(x, name), x) <= limit
    assert temporaries(lambda q: q.dequantize(), q) <= limit


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float4_e2m1fn", "int8"])
def test_cast_needs_none(name: str) -> None:
    x = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    assert temporaries(lambda x: lp.cast(x, name), x) == 0
    assert temporaries(lambda x: lp.encode(x, name), x) == 0
