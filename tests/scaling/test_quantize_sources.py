"""`quantize` against NumPy transcriptions of the sources, on random normal data, bit for bit."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from lowprec.scaling import get_block, quantize
from tests.helpers import as_bits, assert_bits_equal
from tests.scaling.helpers import changed, slow_if

Floats = NDArray[np.float32]
F32 = np.float32
E4M3, E2M1 = ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn


class Source(NamedTuple):
    """Codes, scales (codes or float32), tensor scale and decoded values of a transcription."""

    codes: NDArray[np.uint8]
    scales: np.ndarray
    tensor_scale: float
    values: np.ndarray


def normal(*shape: int, spread: float = 2.0) -> Floats:
    """Normal numbers whose rows and columns differ in size."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=shape) * np.exp(spread * rng.normal(size=(shape[0], 1)))
    return (x * np.exp(spread * rng.normal(size=shape[1]))).astype(F32)


def tiles(x: Floats, rows: int, columns: int) -> Floats:
    """(R, C) to (R / rows, rows, C / columns, columns)."""
    return x.reshape(x.shape[0] // rows, rows, x.shape[1] // columns, columns)


def amax_of(tiled: Floats) -> Floats:
    return np.abs(tiled).max(axis=(1, 3), keepdims=True)


def as_codes(x: np.ndarray, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return x.view(np.uint8).reshape(shape)


def deepseek(x: Floats, rows: int, columns: int) -> Source:
    """DeepSeek-V3, inference/kernel.py: s = max(amax, 1e-4) / 448, y = x / s."""
    tiled = tiles(x, rows, columns)
    scale = np.maximum(amax_of(tiled), F32(1e-4)) / F32(448.0)
    codes = (tiled / scale).astype(E4M3)
    values = (codes.astype(F32) * scale).reshape(x.shape)
    return Source(as_codes(codes, x.shape), scale[:, 0, :, 0], 1.0, values)


def te_current_scaling(x: Floats) -> Source:
    """TransformerEngine, compute_scale_from_amax: s = 448 / amax; the inverse is 1 / s."""
    scale = F32(448.0) / np.abs(x).max()
    codes = np.clip(x * scale, F32(-448), F32(448)).astype(E4M3)
    inverse = F32(1.0) / scale
    values = codes.astype(F32) * inverse
    return Source(as_codes(codes, x.shape), np.full((1, 1), inverse), 1.0, values)


def te_block_scaling(x: Floats, rows: int) -> Source:
    """TransformerEngine, scale_from_amax_tensor with pow_2_scales: the mantissa of s is cleared."""
    tiled = tiles(x, rows, 128)
    amax = amax_of(tiled)
    with np.errstate(all="ignore"):
        scale = np.minimum(F32(448.0) / amax, np.finfo(F32).max)
        scale = np.where((amax == 0) | ~np.isfinite(amax), F32(1.0), scale).astype(F32)
        scale = (as_bits(scale) & np.uint32(0xFF800000)).view(F32)
        codes = np.clip(tiled * scale, -448, 448).astype(E4M3)
        inverse = F32(1.0) / scale
        values = (codes.astype(F32) * inverse).reshape(x.shape)
    stored = (as_bits(inverse) >> 23).astype(np.uint8)[:, 0, :, 0]
    return Source(as_codes(codes, x.shape), stored, 1.0, values)


def modelopt_channel(x: Floats) -> Source:
    """Model-Optimizer, scaled_e4m3 along rows: 448 / amax, and 1 where amax <= 2^-24."""
    amax = np.abs(x).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        scale = np.where(amax <= F32(2.0**-24), F32(1.0), F32(448.0) / amax)
    codes = np.clip(x * scale, F32(-448), F32(448)).astype(E4M3)
    inverse = F32(1.0) / scale
    return Source(as_codes(codes, x.shape), inverse, 1.0, codes.astype(F32) * inverse)


def floor_exponent(amax: Floats, _: type, top: int) -> NDArray[np.int64]:
    """OCP MX 1.0, 6.3: the largest power of two in amax, by frexp."""
    return np.frexp(amax)[1].astype(np.int64) - 1 - top


def rceil_exponent(amax: Floats, dtype: type, top: int) -> NDArray[np.int64]:
    """TransformerEngine, float_to_e8m0 of amax * (1 / MAX): exponent, plus 1 with any mantissa."""
    largest = F32(ml_dtypes.finfo(dtype).max)
    bits = as_bits(amax * (F32(1.0) / largest)).astype(np.int64)
    return (bits >> 23) - 127 + ((bits & 0x7FFFFF) != 0)


def even_exponent(amax: Floats, dtype: type, top: int) -> NDArray[np.int64]:
    """torchao, ScaleCalculationMode.EVEN: half a unit added to the bits, mantissa masked."""
    half = 1 << (23 - ml_dtypes.finfo(dtype).nmant - 1)
    return ((as_bits(amax).astype(np.int64) + half) >> 23) - 127 - top


def ceil_exponent(amax: Floats, _: type, top: int) -> NDArray[np.int64]:
    """torchao, ScaleCalculationMode.CEIL."""
    bits = as_bits(amax).astype(np.int64)
    return (bits >> 23) - 127 + ((bits & 0x7FFFFF) != 0) - top


def microscaling(x: Floats, dtype: type, exponents: Callable[..., NDArray[np.int64]]) -> Source:
    """P = Q(clip(x / X)) in tiles of 32; ml_dtypes rounds to nearest even."""
    info = ml_dtypes.finfo(dtype)
    tiled = tiles(x, 1, 32)
    top = int(np.frexp(F32(info.max))[1]) - 1
    exponent = np.clip(exponents(amax_of(tiled), dtype, top), -127, 127)
    scale = np.ldexp(F32(1.0), exponent).astype(F32)
    codes = np.clip(tiled / scale, -F32(info.max), F32(info.max)).astype(dtype)
    values = (codes.astype(F32) * scale).reshape(x.shape)
    stored = (exponent + 127).astype(np.uint8)[:, 0, :, 0]
    return Source(as_codes(codes, x.shape), stored, 1.0, values)


def te_nvfp4(x: Floats) -> Source:
    """TransformerEngine, core_nvfp4.cuh, every operation in float32 in its order."""
    tiled = tiles(x, 1, 16)
    encode = F32(448.0 * 6.0) / np.abs(x).max()
    scale = (amax_of(tiled) * (encode * (F32(1.0) / F32(6.0)))).astype(E4M3)
    decode = F32(1.0) / encode
    with np.errstate(divide="ignore"):
        back = np.minimum(F32(1.0) / (scale.astype(F32) * decode), np.finfo(F32).max)
    codes = (tiled * back).astype(E2M1)
    values = (codes.astype(F32) * scale.astype(F32) * decode).reshape(x.shape)
    return Source(as_codes(codes, x.shape), scale.view(np.uint8)[:, 0, :, 0], decode, values)


MX = {
    "mxfp8_e4m3": ml_dtypes.float8_e4m3fn,
    "mxfp8_e5m2": ml_dtypes.float8_e5m2,
    "mxfp6_e2m3": ml_dtypes.float6_e2m3fn,
    "mxfp6_e3m2": ml_dtypes.float6_e3m2fn,
    "mxfp4": ml_dtypes.float4_e2m1fn,
}


def assert_source(x: Floats, name: str, want: Source) -> None:
    q = quantize(jnp.asarray(x), name)
    assert len(np.unique(want.codes)) > min(8, 2 ** get_block(name).element.bits // 2)
    tensor_scale = 1.0 if q.tensor_scale is None else float(q.tensor_scale.item())
    assert tensor_scale == want.tensor_scale
    assert_bits_equal(np.asarray(q.scales), want.scales)
    assert_bits_equal(np.asarray(q.codes), want.codes, inputs=x)
    assert_bits_equal(np.asarray(q.dequantize()), want.values, inputs=x)


def test_deepseek_tiles_of_1_by_128() -> None:
    x = normal(24, 512)
    x[3] *= F32(1e-9)  # below the clamp of amax
    want = deepseek(x, 1, 128)
    assert want.scales.min() == F32(1e-4) / F32(448)
    assert_source(x, "fp8_1x128", want)


def test_deepseek_tiles_of_128_by_128() -> None:
    x = normal(256, 384)
    x[:128, :128] *= F32(1e-12)  # below the clamp of amax
    want = deepseek(x, 128, 128)
    assert want.scales.min() == F32(1e-4) / F32(448)
    assert_source(x, "fp8_128x128", want)


def test_transformer_engine_current_scaling() -> None:
    for seed_scale in (1.0, 0.37, 3e-30, 1.7e30):
        x = (normal(24, 512) * F32(seed_scale)).astype(F32)
        assert_source(x, "fp8_tensor", te_current_scaling(x))


def test_model_optimizer_per_channel() -> None:
    x = normal(24, 512)
    x[3] *= F32(1e-12)  # below 2^-24: unscaled
    assert_source(x, "fp8_channel", modelopt_channel(x))


@pytest.mark.parametrize(
    ("name", "rows"),
    [("fp8_1x128_te_pow2", 1), pytest.param("fp8_128x128_te_pow2", 128, marks=pytest.mark.slow)],
)
def test_transformer_engine_block_scaling(name: str, rows: int) -> None:
    # A tile each: around powers of two of amax / 448, all sizes, zeros, Inf, NaN and subnormals.
    near = [np.float32(448.0 * 2.0**power) for power in (-130, -20, 0, 100)]
    largest = [np.nextafter(x, to, dtype=F32) for x in near for to in (F32(0), x, F32(np.inf))]
    largest += [F32(x) for x in (0.0, np.inf, np.nan, 1e-45, 2.0**-126, 3e-39, 3.4e38, 1.0)]
    x = normal(rows * len(largest), 128, spread=0.2).clip(-4, 4).reshape(len(largest), rows, 128)
    finite = np.where(np.isfinite(largest), largest, F32(1)).astype(F32)
    x = (x / F32(4) * finite[:, None, None]).astype(F32)
    x[:, 0, 0] = largest
    x = x.reshape(-1, 128)
    want = te_block_scaling(x, rows)
    assert {0, 127} < set(want.scales.ravel().tolist()) and len(np.unique(want.scales)) > 8
    assert_source(x, name, want)


@pytest.mark.parametrize("name", slow_if(MX, set(MX) - {"mxfp4", "mxfp8_e5m2"}))
def test_ocp_microscaling(name: str) -> None:
    x = normal(24, 512)
    assert_source(x, name, microscaling(x, MX[name], floor_exponent))


@pytest.mark.parametrize("name", slow_if(MX, set(MX) - {"mxfp6_e2m3", "mxfp8_e4m3"}))
def test_transformer_engine_microscaling(name: str) -> None:
    x = normal(24, 512)
    assert_source(x, f"{name}_rceil", microscaling(x, MX[name], rceil_exponent))


@pytest.mark.parametrize(("rule", "exponents"), [("even", even_exponent), ("ceil", ceil_exponent)])
@pytest.mark.parametrize("name", slow_if(["mxfp8_e5m2", "mxfp6_e2m3", "mxfp4"], ["mxfp8_e5m2"]))
def test_torchao_microscaling(name: str, rule: str, exponents: Callable) -> None:
    x = normal(24, 512)
    want = microscaling(x, MX[name], exponents)
    q = quantize(jnp.asarray(x), changed(name, scale_rule=rule))
    assert_bits_equal(np.asarray(q.scales), want.scales)
    assert_bits_equal(np.asarray(q.codes), want.codes, inputs=x)
    assert_bits_equal(np.asarray(q.dequantize()), want.values, inputs=x)


@functools.cache
def e4m3_midpoints() -> Floats:
    """Values halfway between neighbouring e4m3 codes."""
    values = np.arange(127, dtype=np.uint8).view(E4M3).astype(F32)
    return (values[1:] + values[:-1]) / F32(2)


@pytest.mark.slow
def test_transformer_engine_nvfp4_scales_at_their_ties() -> None:
    # Tiles whose scale amax * S / 6 lies within some ulps of a tie, where the order of the float32
    # operations decides: (amax / 6) * S, which others compute, gives other codes.
    others = 0
    for largest in (1.0, 2.7, 3.3, 5.9, 1000.1):
        encode = F32(2688.0) / F32(largest)
        centres = as_bits(e4m3_midpoints() * F32(6.0) / encode).astype(np.int64)
        near = (centres[:, None] + np.arange(-3, 4)).astype(np.uint32).view(F32).ravel()
        amax = np.concatenate([np.minimum(near, F32(largest)), [F32(largest)]])
        x = np.repeat(amax[:, None], 16, axis=1)
        want = te_nvfp4(x)
        q = quantize(jnp.asarray(x), "nvfp4")
        assert_bits_equal(np.asarray(q.scales), want.scales)
        assert_bits_equal(np.asarray(q.codes), want.codes, inputs=x)
        other = ((amax / F32(6.0)) * encode).astype(E4M3).view(np.uint8)
        others += int(np.sum(other != want.scales[:, 0]))
    assert others > 50


def test_transformer_engine_nvfp4() -> None:
    x = normal(24, 512, spread=1.0)
    assert_source(x, "nvfp4", te_nvfp4(x))
    coarse = x.astype(ml_dtypes.bfloat16).astype(F32)  # ties
    assert_source(coarse, "nvfp4", te_nvfp4(coarse))
