"""Engines that no kernel computes are refused where they are made, by message."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lowprec.engines import Engine, get_engine, matmul
from lowprec.numerics import get_format

FLOAT32 = get_format("float32")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("fp32", {"output_rounding": "toward_zero"}, "accumulates to nearest_even only"),
        ("fp32", {"scale_formats": (FLOAT32,), "scale_block": 32}, "takes no block scales"),
        ("ampere.mma.fp16.fp16", {"register": FLOAT32}, "holds more than output = float16"),
        ("ampere.mma.fp16.fp32", {"fraction_bits": None}, "needs fused_length and fraction_bits"),
        ("blackwell.tcgen05.mxf4.fp32", {"accumulator": "last"}, "c joins 'early'"),
        ("blackwell.tcgen05.mxf4.fp32", {"interleave": 2}, "belongs to accumulation = 'fused'"),
        ("blackwell.tcgen05.mxf4.fp32", {"fraction_bits": 41}, "at most 40"),
        (
            "blackwell.tcgen05.mxf4.fp32",
            {"group": 32, "scale_block": 16},
            "group = 32 must divide scale_block = 16",
        ),
        ("cdna3.mfma.fp16.fp32", {"second_fraction_bits": 20}, "from fraction_bits = 24"),
        ("cdna3.mfma.fp16.fp32", {"fused_length": 40}, "has 31 bits"),
        ("cdna2.mfma.fp16.fp32", {"fused_length": None}, "needs fused_length = 2 or 4"),
        ("chunked.8.e6m9.float32", {"outer_rounding": "toward_zero"}, "nearest_even only"),
    ],
)
def test_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(get_engine(name), **changes)


def test_a_truncating_engine_has_a_gradient() -> None:
    ones = jnp.ones((4, 1))
    loss = lambda a: matmul(a, ones, engine="ampere.mma.tf32.fp32").sum()
    assert jax.grad(loss)(jnp.full((1, 4), 1.1)).tolist() == [[1.0] * 4]


def test_stochastic_sums_draw_against_the_fraction_alone() -> None:
    # 1 + 2^-30 in steps of 2^-9: 14 random bits never reach the fraction, 2^-21 of a step.
    tiny = jnp.full((128, 1), 2.0**-15)
    engine = "sequential.e6m9.stochastic"
    out = matmul(tiny, tiny.T, jnp.ones((128, 128)), engine=engine, key=jax.random.key(0))
    assert (out == 1).all()
    half = matmul(
        tiny * 2, tiny.T * 2.0**4, jnp.ones((128, 128)), engine=engine, key=jax.random.key(1)
    )
    # 2^-25 is 2^-16 of a step: below 2^-14 too. 2^-10 is half of one.
    assert (half == 1).all()
    even = matmul(
        tiny * 2**4, tiny.T * 2.0**16, jnp.ones((128, 128)), engine=engine, key=jax.random.key(2)
    )
    share = float((even > 1).mean())
    # 16384 coins: five standard deviations.
    assert abs(share - 0.5) < 5 * 0.5 / 128


def test_c_must_broadcast() -> None:
    with pytest.raises(ValueError, match="the batch axes of `c`"):
        matmul(jnp.ones((2, 2, 3)), jnp.ones((2, 3, 2)), jnp.ones((3, 2, 2)), engine="fp32")


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (Engine(name="mine", output=FLOAT32, fused_length=4, fraction_bits=24), "needs inputs"),
        (Engine(name="mine", output=FLOAT32, accumulation="sequential"), "subnormals = 'flush'"),
        (
            Engine(
                name="mine",
                inputs=(get_format("float16"),) * 2,
                output=FLOAT32,
                register=get_format("float8_e4m3fn"),
                fused_length=4,
                fraction_bits=24,
            ),
            "sums cannot be rounded to float8_e4m3fn",
        ),
        (get_engine("sequential.float16.stochastic_odd"), "has 'stochastic' alone"),
        (get_engine("cdna4.mfma.fp8.fp32"), "has not been published"),
    ],
)
def test_not_computed(engine: Engine, message: str) -> None:
    key = jax.random.key(0) if "stochastic" in engine.output_rounding else None
    with pytest.raises(ValueError, match=message):
        matmul(jnp.ones((1, 1)), jnp.ones((1, 1)), engine=engine, key=key)
