"""TurboQuant: stored bits against a slow second writing, published errors, bytes, bias."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from lowprec.kv import KVMethod, get_kv_method
from lowprec.kv.codes import BlockCode
from lowprec.kv.norm_split import NormSplitCode, sketch_matrix
from lowprec.kv.rotations import orthogonal_matrix
from lowprec.kv.turboquant import TurboQuantSpec
from lowprec.numerics.format import get_format
from lowprec.numerics.packing import unpack
from lowprec.scaling import get_block
from tests.helpers import assert_bits_equal
from tests.kv import slow_norm_split as slow
from tests.kv.test_fixed_order import EXACT, VLLM

F = np.float32
HADAMARD = NormSplitCode(
    bits=3, levels=VLLM, rotation="hadamard", epsilon=1e-8, norm_correction=1e-16
)
SKETCHED = NormSplitCode(bits=2, levels=EXACT, rotation="orthogonal", seed=5, sketch="gaussian")
PRESETS = {
    "turboquant_k8v4": (6.125, 50176),
    "turboquant_4bit": (4.1875, 34304),
    "turboquant_k3v4": (3.6875, 30208),
    "turboquant_3bit": (3.1875, 26112),
    "turboquant_paper_2_5": (2.5, 20480),
    "turboquant_paper_3_5": (3.5, 28672),
    "turboquant_prod": (4.1875, 34304),
    "turboquant_prod_orthogonal": (4.1875, 34304),
}


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def spec_of(name: str) -> TurboQuantSpec:
    spec = get_kv_method(name).spec
    assert isinstance(spec, TurboQuantSpec)
    return spec


@functools.cache
def coding(code: NormSplitCode) -> Any:
    return jax.jit(lambda x: code.code(x, {}))


@functools.cache
def decoding(code: NormSplitCode, dim: int) -> Any:
    return jax.jit(lambda parts: code.decode(parts, dim, {}))


def directions(code: NormSplitCode, x: np.ndarray) -> np.ndarray:
    """Decoded, turned directions and norms, float64: what `code` keeps of unit vectors."""
    return np.asarray(decoding(code, x.shape[-1])(coding(code)(x)), np.float64)


def levels(code: NormSplitCode, dim: int) -> np.ndarray:
    return np.array(code.table(dim).table, np.float32)


@pytest.mark.parametrize(("name", "want"), PRESETS.items())
def test_bytes_are_those_of_the_layouts(name: str, want: tuple[float, int]) -> None:
    method = get_kv_method(name)
    assert method.bits_per_element() == want[0]
    assert method.bytes_per_token(layers=32, kv_heads=8, dim=128) == want[1]


def test_a_cache_takes_as_many_bytes_as_it_says() -> None:
    method = get_kv_method("turboquant_3bit")
    cache = method.init(1, 2, 128, 10)
    assert cache.nbytes == 10 * 2 * 102


def test_the_first_and_last_layers_are_named() -> None:
    assert spec_of("turboquant_3bit").exact_layers == 2
    assert spec_of("turboquant_prod").exact_layers == 0


def test_codes_with_hadamard_are_the_slow_ones() -> None:
    x = numbers(1, 2, 9, 16) * F(3)
    x[0, 0, 3] = 0
    parts = coding(HADAMARD)(x)
    length = slow.tree_norm(x)
    direction = slow.butterflies(x / (length + F(1e-8)))
    codes = slow.coded(direction, levels(HADAMARD, 16))
    assert_bits_equal(unpack(parts["codes"], HADAMARD.table(16), 16), codes)
    assert_bits_equal(parts["norms"], length[..., 0].astype(np.float16))
    value = slow.corrected(levels(HADAMARD, 16)[codes], 1e-16)
    want = length.astype(np.float16).astype(F) * value
    assert_bits_equal(decoding(HADAMARD, 16)(parts), want)
    # Zeros lie on the middle midpoint, and go up.
    assert (codes[0, 0, 3] == 4).all()
    assert not want[0, 0, 3].any()


def test_codes_with_a_sketch_are_the_slow_ones() -> None:
    x = numbers(1, 1, 7, 12)
    parts = coding(SKETCHED)(x)
    length = slow.tree_norm(x)
    matrix = orthogonal_matrix(12, 5)
    direction = slow.half_products(x / length, matrix.T)
    codes = slow.coded(direction, levels(SKETCHED, 12))
    rest = direction - levels(SKETCHED, 12)[codes]
    sketch = sketch_matrix(12, 12, "gaussian", (5, 1))
    signs = slow.half_products(rest, sketch.T) > 0
    assert_bits_equal(unpack(parts["codes"], "int2", 12), codes)
    assert_bits_equal(unpack(parts["signs"], "uint1", 12), signs.astype(np.uint8))
    half = slow.tree_norm(rest).astype(np.float16)
    assert_bits_equal(parts["rests"], half[..., 0])
    mixed = slow.half_products(np.where(signs, F(1), F(-1)), sketch)
    residual = F(math.sqrt(math.pi / 2) / 12) * half.astype(F) * mixed
    want = length.astype(np.float16).astype(F) * (levels(SKETCHED, 12)[codes] + residual)
    assert_bits_equal(decoding(SKETCHED, 12)(parts), want)


@pytest.mark.slow
@pytest.mark.parametrize("code", [HADAMARD, SKETCHED], ids=["hadamard", "sketched"])
def test_operation_by_operation_the_bits_are_the_same(code: NormSplitCode) -> None:
    x = numbers(1, 2, 9, 16, seed=2) * F(3)
    at_once = coding(code)(x)
    with jax.disable_jit():
        eager = code.code(jnp.asarray(x), {})
        back = code.decode(eager, 16, {})
    for name, want in at_once.items():
        assert_bits_equal(eager[name], want)
    assert_bits_equal(back, decoding(code, 16)(at_once))


@pytest.mark.slow
def test_one_by_one_the_bits_are_the_same() -> None:
    x = numbers(1, 2, 9, 16, seed=2) * F(3)
    at_once = coding(HADAMARD)(x)
    for i in range(3):
        alone = coding(HADAMARD)(x[:, :, i : i + 1])
        for name, want in at_once.items():
            assert_bits_equal(alone[name], want[:, :, i : i + 1])


@pytest.mark.slow
def test_turning_keeps_products_and_comes_back() -> None:
    q, k = numbers(1, 1, 5, 16), numbers(1, 1, 5, 16, seed=1)
    for code in (HADAMARD, SKETCHED):
        turned = [np.asarray(code.turn(jnp.asarray(x), {}), np.float64) for x in (q, k)]
        assert np.allclose(
            turned[0] @ turned[1].swapaxes(-1, -2), q @ k.swapaxes(-1, -2), atol=1e-5
        )
        back = code.turn_back(jnp.asarray(turned[0], jnp.float32), {})
        assert np.allclose(back, q, atol=1e-6)


PUBLISHED_ERRORS = {1: (0.36, 0.005), 2: (0.117, 0.003), 3: (0.03, 0.005), 4: (0.009, 0.001)}
"""TurboQuant, Theorem 1: E |x - x^|^2 for |x| = 1, and how far its digits go."""


def sphere_moments(levels: NDArray[np.float64], dim: int) -> tuple[float, float]:
    """E |x^|^2 and E <x, x^> of levels over uniform unit vectors: integrals over one coordinate.

    A coordinate's density is proportional to (1 - x^2)^((dim - 3) / 2).
    """
    x = (np.arange(1 << 20) + 0.5) / (1 << 19) - 1
    density = (1 - x**2) ** ((dim - 3) / 2)
    density *= dim / density.sum()
    held = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]
    return float(density @ held**2), float(density @ (x * held))


@pytest.mark.slow
@pytest.mark.parametrize("bits", PUBLISHED_ERRORS)
def test_squared_errors_are_the_published_ones(bits: int) -> None:
    code = NormSplitCode(bits=bits, levels=EXACT, rotation="orthogonal")
    x = numbers(1, 1, 2000, 128)
    unit = (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(F)
    turned = unit[0, 0].astype(np.float64) @ orthogonal_matrix(128, 0).T
    found = directions(code, unit)[0, 0]
    published, reach = PUBLISHED_ERRORS[bits]
    error = np.mean(np.sum((found - turned) ** 2, axis=-1))
    assert abs(error - published) < reach
    # Of unit vectors of 128 the levels, normal numbers' means of cells, are not quite the means.
    square, product = sphere_moments(np.unique(found).astype(np.float64), 128)
    assert len(np.unique(found)) == 2**bits
    # Five standard errors; one bit has none, as all its squares are the same.
    for got, want in ((found**2, square), (found * turned, product)):
        sums = np.sum(got, axis=-1)
        assert abs(sums.mean() - want) < 5 * sums.std() / math.sqrt(len(sums)) + 1e-9, want
    assert error == pytest.approx(1 + square - 2 * product, rel=0.02)


@pytest.mark.slow
def test_correction_restores_the_norm() -> None:
    x = numbers(1, 1, 300, 64)
    unit = (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(F)
    lengths = {
        epsilon: np.linalg.norm(
            directions(dataclasses.replace(HADAMARD, norm_correction=epsilon), unit)[0, 0], axis=-1
        )
        for epsilon in (1e-16, None)
    }
    # A float16 norm is within 2^-11.
    assert np.abs(lengths[1e-16] - 1).max() < 2**-11 + 1e-5
    # Without it levels are too short: E |c|^2 = 1 - 0.0345.
    assert abs(np.mean(lengths[None] ** 2) - (1 - 0.0345)) < 0.01


@pytest.mark.parametrize("kind", [pytest.param("gaussian", marks=pytest.mark.slow), "orthogonal"])
def test_the_sketch_takes_away_the_bias(kind: Any) -> None:
    """<x, x^> over many directions, each as good as another rotation: 1 where there is no bias."""
    x = numbers(1, 1, 1500, 64, seed=3)
    unit = (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(F)
    plain = dataclasses.replace(SKETCHED, sketch=None)
    sketched = dataclasses.replace(SKETCHED, sketch=kind)
    turned = unit[0, 0].astype(np.float64) @ orthogonal_matrix(64, 5).T
    mean, half_width = {}, {}
    for name, code in (("plain", plain), ("sketched", sketched)):
        along = np.sum(turned * directions(code, unit)[0, 0], axis=-1)
        mean[name] = np.mean(along)
        half_width[name] = 4 * np.std(along) / math.sqrt(len(along))
    # S is one draw: the mean length of its normal rows is off by 1 / sqrt(2 * 64 * 64) or so.
    slack = 0.117 * 4 / math.sqrt(2 * 64 * 64) if kind == "gaussian" else 0.0
    assert abs(mean["sketched"] - 1) < half_width["sketched"] + slack + 0.117 / (4 * 64)
    assert abs(mean["plain"] - (1 - 0.1175)) < 0.01
    assert 1 - mean["plain"] > 5 * half_width["plain"]


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["gaussian", "orthogonal"])
def test_products_are_right_on_average_over_seeds(kind: Any) -> None:
    """One pair of vectors, other matrices each time: the mean's interval holds the product."""
    x, y = numbers(1, 1, 1, 16, seed=8), numbers(16, seed=9).astype(np.float64)
    found = []
    for seed in range(60):
        code = dataclasses.replace(SKETCHED, seed=seed, sketch=kind)
        parts = code.code(jnp.asarray(x), {})
        back = code.turn_back(code.decode(parts, 16, {}), {})
        found.append(float(np.asarray(back, np.float64)[0, 0, 0] @ y))
    want = float(x[0, 0, 0].astype(np.float64) @ y)
    assert abs(np.mean(found) - want) < 3 * np.std(found) / math.sqrt(60)
    assert len(set(found)) == 60


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "published"), [(2, 0.56), (3, 0.18), (4, 0.047)])
def test_errors_of_products_are_the_published_ones(bits: int, published: float) -> None:
    """TurboQuant, Theorem 2: E |<y, x> - <y, x^>|^2 = published / dim for unit x and y."""
    code = NormSplitCode(bits=bits - 1, levels=EXACT, rotation="orthogonal", sketch="gaussian")
    x = numbers(1, 1, 3000, 128)
    unit = (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(F)
    turned = unit[0, 0].astype(np.float64) @ orthogonal_matrix(128, 0).T
    y = numbers(3000, 128, seed=1).astype(np.float64)
    y /= np.linalg.norm(y, axis=-1, keepdims=True)
    errors = np.sum(y * (directions(code, unit)[0, 0] - turned), axis=-1) ** 2 * 128
    assert (
        abs(np.mean(errors) / published - 1)
        < 5 * np.std(errors) / np.mean(errors) / math.sqrt(3000) + 0.05
    )


@pytest.mark.slow
def test_normal_numbers_cost_what_the_notes_say() -> None:
    """(vii): three bits in groups of 32 beat Lloyd-Max over the row, four over the row do not."""
    x = numbers(1, 1, 400, 128)
    lloyd = {b: EXACT for b in (3, 4)}
    error = {}
    for bits, how in lloyd.items():
        code = NormSplitCode(bits=bits, levels=how, rotation="orthogonal")
        turned = x[0, 0].astype(np.float64) @ orthogonal_matrix(128, 0).T
        error[bits] = np.mean((directions(code, x)[0, 0] - turned) ** 2)
    ranged = {}
    for bits, size in ((3, 32), (4, 128)):
        block = get_block(f"int{bits}_turboquant_token")
        block = dataclasses.replace(block, tile=(1, size) if size < 128 else (1, "all"))
        code = BlockCode(block=block)
        parts = code.code(jnp.asarray(x), {})
        ranged[bits] = np.mean((np.asarray(code.decode(parts, 128, {}), np.float64) - x) ** 2)
    assert abs(error[3] - 0.0345) < 0.001 and abs(ranged[3] - 0.0281) < 0.001
    assert abs(error[4] - 0.0095) < 0.0003 and abs(ranged[4] - 0.0100) < 0.0003


def small(**others: Any) -> TurboQuantSpec:
    block = get_block("int3_turboquant_token")
    return TurboQuantSpec(name="small", keys=HADAMARD, values=block, **others)


@pytest.mark.slow
def test_a_cache_reads_what_its_codes_say() -> None:
    method = KVMethod(spec=small())
    k, v = numbers(1, 2, 6, 16), numbers(1, 2, 6, 16, seed=1)
    cache = method.append(method.init(1, 2, 16, 8), k, v)
    keys, values = (np.asarray(x) for x in method.read(cache))
    turned = decoding(HADAMARD, 16)(coding(HADAMARD)(k))
    assert_bits_equal(keys[:, :, :6], HADAMARD.turn_back(turned, {}))
    # Values: the float32 range over 7 steps, then float16 scale and minimum.
    low, high = v.min(-1, keepdims=True), v.max(-1, keepdims=True)
    scale = (high - low) / F(7)
    codes = np.minimum(((v - low) / scale + F(0.5)).astype(np.int32), 7)
    half = [x.astype(np.float16).astype(np.float64) for x in (scale, low)]
    want = (codes * half[0] + half[1]).astype(F)
    assert_bits_equal(values[:, :, :6], want)
    assert not keys[:, :, 6:].any() and not values[:, :, 6:].any()
    q = numbers(1, 4, 1, 16, seed=4)
    scores = np.repeat(keys[:, :, :6], 2, 1) @ q.swapaxes(-1, -2) / 4
    weights = np.exp(scores - scores.max(2, keepdims=True))
    want = np.sum(weights * np.repeat(values[:, :, :6], 2, 1), 2) / weights.sum(2)
    assert np.allclose(np.asarray(method.attend(cache, q))[:, :, 0], want, atol=2e-6)


@pytest.mark.slow
def test_keys_in_eight_bits_are_cast_and_saturate() -> None:
    method = get_kv_method("turboquant_k8v4")
    assert spec_of(method.name).keys == get_format("float8_e4m3fn")
    k = numbers(1, 1, 3, 16) * F(10)
    k[0, 0, 0, :3] = [449, -1e9, 0.3]
    cache = method.append(method.init(1, 1, 16, 3), k, k)
    read = np.asarray(method.read(cache)[0])
    assert read[0, 0, 0, :3].tolist() == [448.0, -448.0, 0.3125]
    assert cache.keys.parts["codes"].dtype == jnp.uint8


@pytest.mark.slow
def test_outlier_channels_are_those_of_the_samples() -> None:
    method = get_kv_method("turboquant_paper_2_5")
    k, v = numbers(1, 2, 200, 128), numbers(1, 2, 200, 128, seed=1)
    loud = np.random.default_rng(5).choice(128, 32, replace=False)
    k[:, 1, :, loud] *= 8
    with pytest.raises(ValueError, match="has to be fitted first"):
        method.init(1, 2, 128, 200)
    fitted = method.fit([{"k": k[:, :, :100], "v": v[:, :, :100]}])
    assert set(fitted.ready()["keys"]["channels"][1, :32].tolist()) == set(loud.tolist())
    cache = fitted.append(fitted.init(1, 2, 128, 200), k, v)
    keys = np.asarray(fitted.read(cache)[0], np.float64)
    errors = np.mean((keys - k) ** 2, axis=(0, 2))
    # Loud channels have three bits, 0.0345 of their own 64, quiet ones two, 0.1175 of 1.
    assert abs(np.mean(errors[1, loud]) / 64 - 0.0345) < 0.004
    quiet = np.setdiff1d(np.arange(128), loud)
    assert abs(np.mean(errors[1, quiet]) - 0.1175) < 0.012
    q = numbers(1, 4, 1, 128, seed=7) / F(8)
    scores = np.repeat(keys, 2, 1) @ q.swapaxes(-1, -2) / math.sqrt(128)
    weights = np.exp(scores - scores.max(2, keepdims=True))
    values = np.asarray(fitted.read(cache)[1])
    want = np.sum(weights * np.repeat(values, 2, 1), 2) / weights.sum(2)
    assert np.allclose(np.asarray(fitted.attend(cache, q))[:, :, 0], want, atol=1e-5)
    # Another token count compiles nothing and stores the same.
    alone = fitted.append(fitted.init(1, 2, 128, 200), k[:, :, :1], v[:, :, :1])
    for one, other in zip(jax.tree.leaves(alone.keys), jax.tree.leaves(cache.keys), strict=True):
        assert_bits_equal(one[:, :, :1], other[:, :, :1])


@pytest.mark.slow
def test_a_sketch_makes_attention_worse_at_equal_bits() -> None:
    """(v): unbiased scores vary more, and softmax sees the variance."""
    spec = spec_of("turboquant_prod")
    assert isinstance(spec.keys, NormSplitCode)
    plain = dataclasses.replace(spec.keys, bits=4, sketch=None)
    divergences = {}
    k, v = numbers(1, 2, 512, 128), numbers(1, 2, 512, 128, seed=1)
    # Scores of a deviation of 2.5.
    q = numbers(1, 2, 64, 128, seed=2) * F(2.5)
    for name, keys in (
        ("levels", plain),
        ("normal", spec.keys),
        ("orthogonal", dataclasses.replace(spec.keys, sketch="orthogonal")),
    ):
        method = KVMethod(spec=dataclasses.replace(spec, keys=keys))
        read = method.read(method.append(method.init(1, 2, 128, 512), k, v))[0]
        logs = [_log_softmax(q.astype(np.float64), np.asarray(x, np.float64)) for x in (k, read)]
        divergences[name] = np.mean(np.sum(np.exp(logs[0]) * (logs[0] - logs[1]), -1))
    assert divergences["orthogonal"] > 1.4 * divergences["levels"]
    assert divergences["normal"] > 1.8 * divergences["orthogonal"]


def _log_softmax(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    scores -= scores.max(-1, keepdims=True)
    return scores - np.log(np.sum(np.exp(scores), -1, keepdims=True))


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="a head's 12 numbers are no power of two"):
        HADAMARD.turn(jnp.zeros((1, 1, 1, 12)), {})
    with pytest.raises(ValueError, match="outlier_channels = 4 needs keys and values"):
        small(outlier_channels=4)
    with pytest.raises(ValueError, match="exact_layers = -1 must be at least 0"):
        small(exact_layers=-1)
    with pytest.raises(ValueError, match="`bits` = 9; use 1 to 8"):
        dataclasses.replace(HADAMARD, bits=9)
    split = TurboQuantSpec(name="wide", keys=SKETCHED, values=SKETCHED, outlier_channels=16)
    fitted = KVMethod(spec=split).fit([{"k": numbers(1, 1, 4, 16), "v": numbers(1, 1, 4, 16)}])
    with pytest.raises(ValueError, match="`outlier_channels` = 16 leaves no other channel"):
        fitted.init(1, 1, 16, 4)
    with pytest.raises(ValueError, match="v has Inf or NaN, to which the method wide"):
        KVMethod(spec=split).fit(
            [{"k": np.ones((1, 1, 1, 16)), "v": np.full((1, 1, 1, 16), np.inf)}]
        )
    with pytest.raises(ValueError, match="one has \\['k'\\] and lacks 'v'"):
        KVMethod(spec=split).fit([{"k": np.ones((1, 1, 1, 16))}])
