"""What blocks, their codings and `quantize` refuse: numbers out of range, and arguments."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowprec as lp
from lowprec.numerics import Format, get_format
from lowprec.scaling import get_block, quantize
from lowprec.scaling.codings import Affine, Eden, Logarithmic, Transform
from tests.scaling.helpers import changed

E4M3, E11M4 = get_format("float8_e4m3fn"), get_format("e11m4")
POWERS = dataclasses.replace(
    get_format("float8_e8m0fnu"), name="powers", exponent_bits=5, bias=40
)  # from 2^-40 to 2^-10


def far(fmt: Format, bias: int) -> Format:
    return dataclasses.replace(fmt, name="far", bias=bias)


@pytest.mark.parametrize(
    ("name", "message", "changes"),
    [
        # Once NaN or Inf throughout, or a bare OverflowError, of ordinary tensors.
        ("fp8_1x128", "does not hold all values of the element e11m4", {"element": E11M4}),
        ("mxfp8_e4m3", "does not hold all values of the element e11m4", {"element": E11M4}),
        ("fp8_1x128", "all values of the element far", {"element": far(E4M3, 400)}),
        ("fp8_1x128", "the largest must be a normal one", {"element": far(E4M3, 142)}),
        (
            "mxfp8_e4m3",
            "all values of the element far",
            {"element": Format(name="far", exponent_bits=15, mantissa_bits=3, bias=16383)},
        ),
        (
            "mxfp4_even",
            "at most 22 mantissa bits, and float32 has 23",
            {"element": get_format("float32")},
        ),
        (
            "mxfp4",
            "all values of scale_format = far",
            {"scale_format": far(get_format("float8_e8m0fnu"), 400)},
        ),
        (
            "mxfp4",
            "a scale of 1, which scale_format = powers does not have",
            {"scale_format": POWERS, "unit_scale_amax": 0.0},
        ),
        (
            "mxfp4",
            "a scale of 1, which scale_format = powers does not have",
            {"scale_format": POWERS, "nonfinite": "unit_scale"},
        ),
        (
            "nvfp4",
            "tensor_scale_max = 1000000000.0; above 0 and at most 448.0",
            {"tensor_scale_max": 1e9},
        ),
        ("nvfp4", "tensor_scale_max = 0.0", {"tensor_scale_max": 0.0}),
        ("nvfp4", "tensor_scale_max = nan", {"tensor_scale_max": math.nan}),
        ("fp8_tensor", "unit_scale_amax = -1.0; from 0", {"unit_scale_amax": -1.0}),
        ("fp8_tensor", "unit_scale_amax = inf", {"unit_scale_amax": math.inf}),
        ("nvfp4_modelopt", "min_scale = -1.0; from 0 to 448.0", {"min_scale": -1.0}),
        ("nvfp4_modelopt", "min_scale = nan", {"min_scale": math.nan}),
        ("mxfp4_oas", "oas_factor = 0.0; a float32 above 0", {"oas_factor": 0.0}),
        ("mxfp4_oas", "oas_factor = nan", {"oas_factor": math.nan}),
        ("fp8_1x128", "not 3.5e+38 and 1.0; min_amax lies below", {"min_amax": 3.5e38}),
        ("fp8_1x128", "not nan and 1.0", {"min_amax": math.nan}),
        ("fp8_1x128", "tile sizes are 'all' or at least 1, not (1, -128)", {"tile": (1, -128)}),
        ("nvfp4_stochastic", "random_bit_count = 33; from 1 to 32", {"random_bit_count": 33}),
        ("int4_vllm_token", "room for 4 bits, and uint8 has 8", {"element": get_format("uint8")}),
        (
            "nvfp4_ms_eden",
            "largest_scale above 448.0",
            {"eden": Eden(group=128, largest_scale=449.0, scale_override=1.0, weights="none")},
        ),
        (
            "logfmt8_1x128",
            "below 2 octaves, which 6 bits are too few for",
            {
                "element": Format(name="six", exponent_bits=0, mantissa_bits=5, bias=-4),
                "logarithmic": Logarithmic(
                    octaves=60,
                    log2_coefficients=(1,),
                    exp2_coefficients=(1,),
                    midpoint_coefficients=(1,),
                ),
            },
        ),
    ],
)
def test_blocks(name: str, message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"block '{name}': .*" + re.escape(message)):
        dataclasses.replace(get_block(name), **changes)


def test_formats_at_the_ends_of_float32_are_taken() -> None:
    lowest, highest = far(E4M3, 133), far(E4M3, -112)
    for element in (get_format("bfloat16"), get_format("float32"), lowest, highest):
        assert changed("fp8_1x128", element=element).element.max > 0
    assert lowest.max >= 2.0**-126 and highest.max < 2.0**128
    integers = Format(name="wide", exponent_bits=0, mantissa_bits=23, bias=1)
    assert changed("mxfp4_even", element=integers).element.max == 1 - 2.0**-23
    assert changed("mxfp4", scale_format=dataclasses.replace(POWERS, bias=30), unit_scale_amax=0.0)
    assert changed("nvfp4_modelopt", scale_format=get_format("ue5m3")).unit_scale_amax == 0.0


@pytest.mark.parametrize(
    ("spec", "message", "changes"),
    [
        (get_block("int4_kivi_g32").affine, "must be from 0 to 65504.0", {"min_range": math.inf}),
        (get_block("int4_kivi_g32").affine, "0 to 65504.0, float16's", {"min_scale": 1e5}),
        (get_block("logfmt8_1x128").logarithmic, "octaves = 0; from 1 to 107", {"octaves": 0}),
        (
            get_block("logfmt8_1x128").logarithmic,
            "exp2_coefficients = (); one or more int32",
            {"exp2_coefficients": ()},
        ),
        (get_block("nvfp4_ms_eden").eden, "eden: group = -16; at least 1", {"group": -16}),
        (
            get_block("nvfp4_ms_eden").eden,
            "eden: largest_scale = nan; finite and above 0",
            {"largest_scale": math.nan},
        ),
        (get_block("nvfp4_ms_eden").eden, "scale_override = 0.0; finite", {"scale_override": 0.0}),
        (Transform(kind="smoothing"), "size >= 1, others none", {"size": -4}),
        (Transform(kind="orthogonal", size=4, seed=1), "seed = -1; at least 0", {"seed": -1}),
    ],
)
def test_codings(
    spec: Affine | Logarithmic | Eden | Transform, message: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(spec, **changes)


SMOOTHED = changed("mxfp4", transform=Transform(kind="smoothing"))
SIGNED = changed("mxfp4", transform=Transform(kind="hadamard", size=4, signs="given"))


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "`amax` = 1e+40 is not finite as a float32", {"amax": 1e40}),
        (ValueError, "`amax` = nan is not finite", {"amax": math.nan}),
        (TypeError, "`amax` = '3' holds <U1; use real numbers", {"amax": "3"}),
        (TypeError, "`amax` = True holds bool", {"amax": True}),
        (TypeError, "`axis` must be an integer, got None (NoneType)", {"axis": None}),
        (TypeError, "`axis` must be an integer, got -1.0 (float)", {"axis": -1.0}),
        (ValueError, "`signs` holds 0.5; use 1 and -1", {"signs": np.full(4, 0.5)}),
        (ValueError, "`signs` holds 0.0; use 1 and -1", {"signs": np.zeros(4, np.int32)}),
        (ValueError, "`signs` holds nan", {"signs": np.full(4, np.nan, np.float32)}),
        (TypeError, "holds bool; use real numbers", {"signs": np.ones(4, bool)}),
        (ValueError, "`smoothing` holds 0.0; use finite", {"smoothing": [1.0, 1.0, 1.0, 0.0]}),
        (ValueError, "`smoothing` holds -1.0", {"smoothing": np.array([1.0, -1.0, 1.0, 1.0])}),
        (ValueError, "`smoothing` holds nan", {"smoothing": [1.0, 1.0, 1.0, math.nan]}),
        (ValueError, "`smoothing` holds inf", {"smoothing": [1.0, 1.0, 1.0, 1e39]}),
        # 0 as a float32
        (ValueError, "`smoothing` holds 0.0", {"smoothing": [1.0, 1.0, 1.0, 1e-50]}),
    ],
)
def test_arguments(error: type[Exception], message: str, options: dict[str, Any]) -> None:
    block = SIGNED if "signs" in options else SMOOTHED if "smoothing" in options else "fp8_tensor"
    with pytest.raises(error, match=re.escape(message)):
        quantize(jnp.ones((1, 4)), block, **options)


@pytest.mark.parametrize(
    ("message", "loss"),
    [
        (
            "`amax`, the largest magnitude to scale by",
            lambda a: lp.cast(jnp.ones((1, 4)), "fp8_tensor_static", amax=a[0]).sum(),
        ),
        (
            "`amax`, the largest magnitude to scale by",
            lambda a: quantize(jnp.ones((1, 4)), "mxfp4", amax=a[0]).dequantize().sum(),
        ),
        (
            "`smoothing`, the factors of the transform",
            lambda s: lp.cast(jnp.ones((1, 4)), SMOOTHED, smoothing=s).sum(),
        ),
    ],
)
@pytest.mark.parametrize("transform", [jax.grad, lambda loss: jax.jit(jax.grad(loss))])
def test_gradients_that_would_be_zero(message: str, loss: Any, transform: Any) -> None:
    name = message.split("`")[1]
    with pytest.raises(ValueError, match=re.escape(message) + ".*" + re.escape(f"gradient({name}")):
        transform(loss)(jnp.full(4, 3.0))


def test_a_stopped_amax_raises_nothing() -> None:
    def loss(x: jax.Array) -> jax.Array:
        amax = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
        return jnp.sum(x * lp.cast(x, "fp8_tensor_static", amax=amax))

    # Traced, not run: what would be raised is raised then.
    assert jax.eval_shape(jax.grad(loss), jnp.ones((1, 2))).shape == (1, 2)
