"""QJL: stored bits against a second writing in NumPy, its estimate of scores, bytes, bias."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.kv import KVMethod, get_kv_method
from lowprec.kv.qjl import QjlSpec, SignSketchCode
from lowprec.numerics.packing import unpack
from lowprec.scaling import get_block
from tests.helpers import assert_bits_equal
from tests.kv.slow_norm_split import half_products, tree_norm

F, H = np.float32, np.float16
DIM, GROUP = 16, 8
CODE = SignSketchCode(group=GROUP, outliers=3, size=32, outlier_size=24)
SPEC = QjlSpec(
    name="small",
    group=GROUP,
    outliers=3,
    size=32,
    outlier_size=24,
    values=get_block("int2_kivi_g32"),
    buffer=16,
)


def keys(count: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    """Some channels far larger than others."""
    rng = np.random.default_rng(seed)
    loud = np.where(np.arange(dim) % 7 == 2, 6.0, 1.0)
    return (rng.normal(size=(1, 2, count, dim)) * loud).astype(F)


@functools.cache
def coding(code: SignSketchCode = CODE, dim: int = DIM) -> Any:
    return jax.jit(lambda x: code.code(x, {})), jax.jit(lambda p: code.decode(p, dim, {}))


def test_codes_are_the_slow_ones() -> None:
    """qjl_quant_kernel.cu: sketched_keys and sketched_outliers, bit by bit."""
    k = keys(24)
    parts = coding()[0](k)
    matrix = CODE.matrix(DIM)
    for head in range(2):
        for unit in range(3):
            group = k[0, head, unit * GROUP : (unit + 1) * GROUP]
            lengths = tree_norm(np.ascontiguousarray(group.T))[:, 0]
            places = np.argsort(-lengths, kind="stable")[:3]
            assert np.asarray(parts["places"])[0, head, unit].tolist() == places.tolist()
            mask = np.isin(np.arange(DIM), places)
            outer, inner = np.where(mask, group, F(0)), np.where(mask, F(0), group)
            for name, part, rows in (("codes", inner, 32), ("outlier_codes", outer, 24)):
                want = half_products(part, matrix[:rows].T) > 0
                got = unpack(parts[name][0, head, unit], "uint1", GROUP * rows)
                assert_bits_equal(got, want.astype(np.uint8).ravel())
            for name, part in (("norms", group), ("outlier_norms", outer)):
                assert_bits_equal(parts[name][0, head, unit], tree_norm(part)[:, 0].astype(H))


def test_a_product_with_what_is_read_is_the_estimate() -> None:
    """qjl_gqa_score_kernel.cu: both sums over signs, each by its norm and its own size."""
    k = keys(16, seed=1)
    parts = coding()[0](k)
    read = np.asarray(coding()[1](parts), np.float64)
    matrix = CODE.matrix(DIM).astype(np.float64)
    q = np.random.default_rng(5).normal(size=DIM)
    for token in range(16):
        unit, row = divmod(token, GROUP)
        places = np.asarray(parts["places"])[0, 1, unit]
        outer = np.where(np.isin(np.arange(DIM), places), q, 0.0)
        score = 0.0
        length, length_out = (
            float(np.asarray(parts[name]).view(H)[0, 1, unit, row])
            for name in ("norms", "outlier_norms")
        )
        length_in = math.sqrt(length**2 - length_out**2)
        for name, rows, part, size in (
            ("codes", 32, q - outer, length_in),
            ("outlier_codes", 24, outer, length_out),
        ):
            bits = np.asarray(unpack(parts[name][0, 1, unit], "uint1", GROUP * rows))
            signs = 2.0 * bits.reshape(GROUP, rows)[row] - 1
            score += math.sqrt(math.pi / 2) / rows * size * (matrix[:rows] @ part) @ signs
        assert math.isclose(read[0, 1, token] @ q, score, rel_tol=1e-4, abs_tol=1e-5)


@pytest.mark.slow
def test_estimates_are_right_on_average() -> None:
    """Along the key itself, where a bias would show: the mean over keys is 1."""
    code = SignSketchCode(group=32, outliers=2, size=128, outlier_size=64)
    k = np.random.default_rng(2).normal(size=(1, 2, 640, 64)).astype(F)
    encode, decode = coding(code, 64)
    read = np.asarray(decode(encode(k)), np.float64)
    along = np.sum(read * k, axis=-1) / np.sum(k.astype(np.float64) ** 2, axis=-1)
    half_width = 4 * np.std(along) / math.sqrt(along.size)
    # E |u| of a coordinate of a unit vector is above that of a normal one by 1 / (4 dim).
    assert abs(np.mean(along) - 1) < half_width + 1 / (4 * 60)
    assert half_width < 0.02 and np.std(along) > 0.02
    # pi/2 * 62/128 - about a third for orthogonal rows: far more than Lloyd-Max of four bits.
    error = np.sum((read - k) ** 2) / np.sum(k.astype(np.float64) ** 2)
    assert 0.2 < error < math.pi / 2 * 62 / 128


@pytest.mark.slow
def test_without_the_outliers_apart_scores_are_worse() -> None:
    """Two channels of 20 times the size: apart they do not drown the signs of the others."""
    k = np.random.default_rng(3).normal(size=(1, 1, 256, 32)).astype(F)
    k[..., [4, 9]] *= 20
    errors = []
    for channels in (2, 1):
        code = SignSketchCode(group=32, outliers=channels, size=64, outlier_size=64)
        encode, decode = coding(code, 32)
        read = np.asarray(decode(encode(k)), np.float64)
        quiet = np.setdiff1d(np.arange(32), [4, 9])
        errors.append(np.mean((read - k)[..., quiet] ** 2))
    assert errors[1] > 10 * errors[0]


def test_bytes_are_the_tables() -> None:
    """kv_cache: keys of 4.27 bits, 5.27 in the first layers, values of 3."""
    for name, keys_bits in (("qjl", 4.265625), ("qjl_initial_layers", 5.265625)):
        method = get_kv_method(name)
        assert method.bits_per_element() == (keys_bits + 3) / 2
    mean = (15 * 5.265625 + 17 * 4.265625) / 32
    assert round((mean + 3) / 2, 1) == 3.9


@pytest.mark.slow
def test_a_cache_holds_its_buffer_exactly() -> None:
    method = KVMethod(spec=SPEC)
    k = np.concatenate([keys(41), keys(41, seed=9)], axis=-1)
    v = np.random.default_rng(1).normal(size=k.shape).astype(F)
    step = jax.jit(lambda cache, k, v: method.append(cache, k, v))
    once = step(method.init(1, 2, 32, 48), k, v)
    cache = method.init(1, 2, 32, 48)
    for i in range(41):
        cache = step(cache, k[:, :, i : i + 1], v[:, :, i : i + 1])
    read = [np.asarray(x) for x in method.read(once)]
    for one, other in zip(read, method.read(cache), strict=True):
        assert_bits_equal(one, np.asarray(other))
    # Two buffers of 16 are coded, 9 keys wait; of values the newest 16 are exact.
    assert_bits_equal(read[0][:, :, 32:41], k[:, :, 32:].astype(H).astype(F))
    assert not np.array_equal(read[0][:, :, 31], k[:, :, 31].astype(H))
    assert_bits_equal(read[1][:, :, 25:41], v[:, :, 25:].astype(H).astype(F))
    assert not np.array_equal(read[1][:, :, 24], v[:, :, 24].astype(H))
    code = SPEC.layouts()[0].code
    half = jnp.asarray(k[:, :, :32].astype(H).astype(F))
    assert_bits_equal(read[0][:, :, :32], code.decode(code.code(half, {}), 32, {}))


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="`size` = 20 and `outlier_size` = 8 must be multiples"):
        SignSketchCode(group=8, outliers=1, size=20, outlier_size=8)
    with pytest.raises(ValueError, match="a head's 3 numbers: `outliers` = 3 channels need more"):
        CODE.encode(jnp.zeros((1, 1, 8, 3)), {})
    with pytest.raises(ValueError, match="buffer = 20 must be a multiple of group = 8"):
        QjlSpec(**{**{x: getattr(SPEC, x) for x in SPEC.__dataclass_fields__}, "buffer": 20})
