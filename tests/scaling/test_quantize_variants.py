"""Variants of FP8 tiles and NVFP4 against NumPy transcriptions of their sources, bit for bit."""

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lowprec.numerics import get_format
from lowprec.scaling import quantize
from tests.helpers import as_bits, assert_bits_equal
from tests.scaling.helpers import changed
from tests.scaling.test_quantize_sources import (
    E2M1,
    E4M3,
    F32,
    Floats,
    Source,
    amax_of,
    as_codes,
    assert_source,
    normal,
    tiles,
)

pytestmark = pytest.mark.slow


def fp8(x: Floats, codes: Any, scale: Any) -> Source:
    values = (codes.astype(F32) * scale).reshape(x.shape)
    return Source(as_codes(codes, x.shape), scale[:, 0, :, 0], 1.0, values)


def deepseek_v32(x: Floats) -> Source:
    """DeepSeek-V3.2-Exp, kernel.py:20-78: s = max(amax, 1e-4) * (1 / 448), y = x / s."""
    tiled = tiles(x, 1, 128)
    scale = np.maximum(amax_of(tiled), F32(1e-4)) * (F32(1) / F32(448))
    return fp8(x, np.clip(tiled / scale, -448, 448).astype(E4M3), scale)


def deepgemm(x: Floats, rows: int) -> Source:
    """DeepGEMM, math.py: sf = amax.clamp(1e-4) / 448, x * (1 / sf)."""
    tiled = tiles(x, rows, 128)
    scale = np.maximum(amax_of(tiled), F32(1e-4)) / F32(448)
    return fp8(x, np.clip(tiled * (F32(1) / scale), -448, 448).astype(E4M3), scale)


def deepgemm_pow2(x: Floats) -> Source:
    """DeepGEMM, ceil_to_ue8m0 of sf: the exponent, plus one with any mantissa, within 1 to 254."""
    tiled = tiles(x, 1, 128)
    sf = np.maximum(amax_of(tiled), F32(1e-4)) / F32(448)
    bits = as_bits(sf).astype(np.int64)
    exponent = np.clip((bits >> 23) + ((bits & 0x7FFFFF) != 0), 1, 254)
    scale = (exponent << 23).astype(np.uint32).view(F32)
    found = fp8(x, (tiled * (F32(1) / scale)).astype(E4M3), scale)
    return found._replace(scales=exponent.astype(np.uint8)[:, 0, :, 0])


def encoded(x: Floats, eps: float) -> Source:
    """torchao in float64, TransformerEngine with eps 0: s = 448 / max(amax, eps), 1 / s."""
    tiled = tiles(x, 1, 128)
    amax = np.maximum(amax_of(tiled).astype(np.float64), eps)
    encode = (448.0 / amax).astype(F32)
    codes = np.clip(tiled * encode, -448, 448).astype(E4M3)
    return fp8(x, codes, F32(1) / encode)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("fp8_1x128_reciprocal", deepseek_v32),
        ("fp8_1x128_deepgemm", lambda x: deepgemm(x, 1)),
        ("fp8_1x128_deepgemm_pow2", deepgemm_pow2),
        ("fp8_1x128_pow2", deepgemm_pow2),
        ("fp8_1x128_torchao", lambda x: encoded(x, 1e-12)),
        ("fp8_1x128_te", lambda x: encoded(x, 0.0)),
        pytest.param("fp8_128x128_deepgemm", lambda x: deepgemm(x, 128), marks=pytest.mark.slow),
    ],
)
def test_fp8_tiles(name: str, source: Any) -> None:
    x = normal(128, 512)
    x[3] *= F32(1e-9)  # below the clamp of amax
    assert_source(x, name, source(x))


def test_the_orders_of_operations_differ() -> None:
    # DeepSeek-V3, V3.2 and DeepGEMM on the same numbers: other scales, other codes.
    x = normal(128, 512).astype(ml_dtypes.bfloat16).astype(F32)  # ties
    names = ("fp8_1x128", "fp8_1x128_reciprocal", "fp8_1x128_deepgemm")
    v3, v32, gemm = (quantize(jnp.asarray(x), name) for name in names)
    assert np.mean(np.asarray(v3.scales) != np.asarray(v32.scales)) > 0.3
    assert np.array_equal(v3.scales, gemm.scales)
    assert np.any(np.asarray(v3.codes) != np.asarray(gemm.codes))


def nvfp4(x: Floats, wanted: Floats, factor: Any, tensor: Any) -> Source:
    """Codes of x scaled by `factor(scale)`, and values as they are decoded."""
    tiled = tiles(x, 1, 16)
    scale = np.minimum(wanted, F32(448)).astype(E4M3)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = factor(tiled, scale.astype(F32))
    codes = np.clip(scaled, -6, 6).astype(E2M1)
    values = (codes.astype(F32) * scale.astype(F32) * tensor).reshape(x.shape)
    stored = scale.view(np.uint8)[:, 0, :, 0]
    return Source(as_codes(codes, x.shape), stored, float(np.max(tensor)), values)


def nvfp4_torchao(x: Floats) -> Source:
    """torchao, nvfp4_tensor.py:756-854, with a per-tensor scale."""
    tensor = np.abs(x).max() / F32(448.0 * 6.0)
    block = amax_of(tiles(x, 1, 16)) / F32(6)
    wanted = np.maximum(block / tensor, F32(2.0**-6))
    return nvfp4(x, wanted, lambda t, s: t * ((F32(1) / tensor) / s), tensor)


def nvfp4_torchao_single_level(x: Floats) -> Source:
    wanted = np.maximum(amax_of(tiles(x, 1, 16)) / F32(6), F32(2.0**-6))
    return nvfp4(x, wanted, lambda t, s: t * (F32(1) / s), F32(1))


def nvfp4_modelopt(x: Floats) -> Source:
    """Model-Optimizer, nvfp4_tensor.py:169-250."""
    tensor = np.abs(x).max() / F32(6.0 * 448.0)
    wanted = amax_of(tiles(x, 1, 16)) / (F32(6) * tensor)
    wanted = np.maximum(np.where(wanted == 0, F32(1), wanted), F32(2.0**-9))
    return nvfp4(x, wanted, lambda t, s: t / (s * tensor), tensor)


def nvfp4_jax(x: Floats) -> Source:
    """JAX, scaled_matmul_stablehlo.py:607-616: one level."""
    return nvfp4(x, amax_of(tiles(x, 1, 16)) / F32(6), lambda t, s: t / s, F32(1))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("nvfp4_torchao", nvfp4_torchao),
        ("nvfp4_torchao_single_level", nvfp4_torchao_single_level),
        ("nvfp4_modelopt", nvfp4_modelopt),
        ("nvfp4_jax", nvfp4_jax),
        pytest.param("nvfp4_qwix", nvfp4_jax, marks=pytest.mark.slow),
    ],
)
def test_nvfp4(name: str, source: Any) -> None:
    x = normal(64, 512, spread=1.0)
    if "jax" not in name and "qwix" not in name:
        x[5] = 0
        x[6] *= F32(1e-6)
    for given in (x, x.astype(ml_dtypes.bfloat16).astype(F32)):
        want = source(given)
        # -0 of a tile of zeros is what ml_dtypes makes of it too.
        assert_source(given, name, want)


def test_nvfp4_with_a_scale_for_each_row() -> None:
    x = normal(16, 256, spread=2.0)
    q = quantize(jnp.asarray(x), "nvfp4_row")
    assert q.tensor_scale is not None and q.tensor_scale.shape == (16, 1)
    for row in range(16):
        alone = quantize(jnp.asarray(x[row : row + 1]), "nvfp4")
        assert_bits_equal(np.asarray(q.codes)[row : row + 1], np.asarray(alone.codes))
        assert_bits_equal(np.asarray(q.tensor_scale)[row], np.asarray(alone.tensor_scale)[0])
    across = quantize(jnp.asarray(x.T), "nvfp4_row", axis=-2)
    assert across.tensor_scale is not None and across.tensor_scale.shape == (1, 16)
    assert_bits_equal(np.asarray(across.codes).T, np.asarray(q.codes))
    batch = quantize(jnp.asarray(x.reshape(2, 8, 256)), "nvfp4_row")
    assert batch.tensor_scale is not None and batch.tensor_scale.shape == (2, 8, 1)
    assert_bits_equal(np.asarray(batch.dequantize()).reshape(16, 256), np.asarray(q.dequantize()))
    given = quantize(jnp.asarray(x), "nvfp4_row", amax=np.abs(x).max(axis=1, keepdims=True))
    assert_bits_equal(np.asarray(given.codes), np.asarray(q.codes))
    assert q.nbytes == 16 * 256 // 2 + 16 * 16 + 16 * 4


def test_scales_in_bfloat16() -> None:
    x = normal(8, 256)
    block = changed("fp8_1x128", scale_format=get_format("bfloat16"))
    q = quantize(jnp.asarray(x), block)
    plain = np.maximum(amax_of(tiles(x, 1, 128)), F32(1e-4)) / F32(448)
    scale = plain.astype(ml_dtypes.bfloat16).astype(F32)
    codes = np.clip(tiles(x, 1, 128) / scale, -448, 448).astype(E4M3)
    assert_bits_equal(np.asarray(q.scales), scale[:, 0, :, 0])
    assert_bits_equal(np.asarray(q.codes), as_codes(codes, x.shape))
    assert q.nbytes == 8 * 256 + 16 * 2
