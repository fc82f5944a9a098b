"""Scales that are tried: Four Over Six as its source has it, and the smallest error of all."""

import functools
import itertools
from fractions import Fraction

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from lowprec.numerics import get_format
from lowprec.scaling import Block, get_block, quantize
from lowprec.scaling.candidates import halvings, search_window
from tests.helpers import as_bits, assert_bits_equal
from tests.scaling.helpers import assert_exact, changed

pytestmark = pytest.mark.slow

F32 = np.float32
E4M3, E2M1 = ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn
ELEMENT = {"mxfp4": E2M1, "mxfp8_e4m3": E4M3}


def normal(rows: int, columns: int, seed: int = 0, spread: float = 1.0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, columns)) * np.exp(spread * rng.normal(size=(rows, 1)))).astype(
        F32
    )


def te_4over6(
    x: NDArray[np.float32], squared: bool, rows: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """TransformerEngine, reference_nvfp4.py:524-648, in its order, in NumPy: scales and codes."""
    tiled = x.reshape(x.shape[0] // rows, rows, -1, 16).transpose(0, 2, 1, 3)
    largest = np.abs(x).max()
    encode = F32(256.0 * 6.0) / largest
    base = np.abs(tiled).max(axis=(2, 3)) / F32(6.0) * encode
    scales, codes, errors = [], [], []
    for wanted in (base, base * F32(1.5)):
        scale = np.minimum(wanted, F32(448.0)).astype(E4M3)
        back = F32(1.0) / (scale.astype(F32) * (F32(1.0) / encode))
        code = np.clip(tiled * back[..., None, None], -6, 6).astype(E2M1)
        total = np.zeros(tiled.shape[:3], F32)
        for i in range(16):
            value = code[..., i].astype(F32) * scale.astype(F32)[..., None]
            error = value * largest / F32(6.0 * 256.0) - tiled[..., i]
            total = total + (error * error if squared else np.abs(error))
        while total.shape[2] > 1:
            half = total.shape[2] // 2
            total = total[:, :, :half] + total[:, :, half:]
        scales.append(scale)
        codes.append(code)
        errors.append(total[..., 0])
    four = errors[1] < errors[0]
    assert 0.2 < four.mean() < 0.8
    code = np.where(four[..., None, None], codes[1].view(np.uint8), codes[0].view(np.uint8))
    return (
        np.where(four, scales[1].view(np.uint8), scales[0].view(np.uint8)),
        code.transpose(0, 2, 1, 3).reshape(x.shape),
    )


@pytest.mark.parametrize(
    ("name", "squared", "rows"),
    [
        ("nvfp4_4over6", False, 1),
        ("nvfp4_4over6_mse", True, 1),
        pytest.param("nvfp4_4over6", False, 16, marks=pytest.mark.slow),
    ],
)
def test_four_over_six(name: str, squared: bool, rows: int) -> None:
    block = changed(name, tile=(rows, 16))
    fine = normal(64, 256)
    if rows > 1:
        # Of so many elements 6 is best for normal ones; and 4 for those near 3/4 of the largest.
        near = np.random.default_rng(8).uniform(0.65, 0.85, fine.shape)
        near[::16, ::16] = 1
        fine = np.where(np.arange(256) // 16 % 2, normal(64, 256, spread=0.0), near).astype(F32)
    for x in (fine, fine.astype(ml_dtypes.bfloat16).astype(F32)):
        scales, codes = te_4over6(x, squared, rows)
        q = quantize(jnp.asarray(x), block)
        assert_bits_equal(np.asarray(q.scales), scales)
        assert_bits_equal(np.asarray(q.codes), codes, inputs=x)


def test_four_over_six_loses_less_than_six() -> None:
    x = normal(64, 256, 2, 0.0)
    loss = {
        name: np.mean((np.asarray(quantize(jnp.asarray(x), name).dequantize()) - x) ** 2)
        for name in ("nvfp4", "nvfp4_4over6", "nvfp4_4over6_mse", "nvfp4_minimum_error")
    }
    ladder = ("nvfp4_minimum_error", "nvfp4_4over6_mse", "nvfp4_4over6", "nvfp4")
    assert all(loss[a] < loss[b] for a, b in itertools.pairwise(ladder)), loss


def hard_tiles(tile: int) -> NDArray[np.float32]:
    """Tiles where clipping pays most: one outlier of any size above numbers between levels."""
    rng = np.random.default_rng(4)
    outlier = 2.0 ** rng.uniform(0, 6, (256, 1))
    rest = rng.choice([0.24, 0.7, 1.2, 1.7, 2.4, 3.4, 4.9], (256, 1)) * rng.uniform(
        0.9, 1.1, (256, tile - 1)
    )
    mixed = np.concatenate([outlier, rest], axis=1) * 2.0 ** rng.integers(-40, 40, (256, 1))
    return np.concatenate([mixed.astype(F32), normal(128, tile, spread=4.0)])


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8_e4m3"])
def test_no_scale_of_all_codes_has_a_smaller_error(name: str) -> None:
    x = hard_tiles(32)
    block = get_block(f"{name}_minimum_error")
    q = quantize(jnp.asarray(x), block)
    got = np.asarray(q.dequantize(), np.float64)
    wide, largest = x.astype(np.float64), block.element.max
    unit = np.abs(wide).max(axis=1, keepdims=True)
    chosen = (((got - wide) / unit) ** 2).sum(axis=1)
    best = np.full(len(x), np.inf)
    for code in range(255):
        scaled = np.clip(wide * 2.0 ** (127 - code), -largest, largest).astype(F32)
        back = scaled.astype(ELEMENT[name]).astype(np.float64) * 2.0 ** (code - 127)
        best = np.minimum(best, (((back - wide) / unit) ** 2).sum(axis=1))
    # The sums are float32 ones: a scale that is worse by less than that is as good.
    assert np.all(chosen <= best * (1 + 2.0**-18))
    clips = np.abs(got).max(axis=1) < np.abs(wide).max(axis=1) * 0.9
    assert clips.mean() > (0.05 if name == "mxfp4" else -1)


def test_no_e4m3_scale_has_a_smaller_error() -> None:
    x = hard_tiles(16)[:, :16]
    x = (x / np.abs(x).max(axis=1, keepdims=True) * np.exp(normal(len(x), 1))).astype(F32)
    q = quantize(jnp.asarray(x), "nvfp4_minimum_error")
    assert q.tensor_scale is not None
    tensor = q.tensor_scale.item()
    got, wide = np.asarray(q.dequantize(), np.float64), x.astype(np.float64)
    chosen = ((got - wide) ** 2).sum(axis=1)
    best = np.full(len(x), np.inf)
    for code in range(1, 127):
        scale = float(np.array(code, np.uint8).view(E4M3)) * tensor
        back = np.clip(wide / scale, -6, 6).astype(F32).astype(E2M1).astype(np.float64) * scale
        best = np.minimum(best, ((back - wide) ** 2).sum(axis=1))
    assert np.all(chosen <= best * (1 + 2.0**-18))


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8_e4m3"])
def test_every_rule_loses_at_least_as_much(name: str) -> None:
    x = normal(128, 32, 5, spread=2.0)

    def loss(block: str) -> NDArray[np.float64]:
        back = np.asarray(quantize(jnp.asarray(x), block).dequantize(), np.float64)
        return ((back - x) ** 2).sum(axis=1)

    least = loss(f"{name}_minimum_error")
    for rule in ("", "_even", "_ceil", "_rceil", "_oas", "_nearest_log2"):
        lost = loss(name + rule)
        assert np.all(least <= lost * (1 + 2.0**-18)), rule
        # E4M3 gains too little from a smaller scale: without clipping it loses least.
        if name == "mxfp8_e4m3" and rule == "_rceil":
            assert np.array_equal(least, lost)
        elif name == "mxfp4" or rule in ("", "_nearest_log2"):
            assert least.sum() < lost.sum(), rule


def test_equal_errors_give_the_smallest_scale() -> None:
    # Exact under the scales 1/2, 1 and 2 (as 4, 2 and 1): the smallest is 2^-1.
    x = jnp.array([[2.0, -1.0, 0.0, 2.0]])
    q = quantize(x, "mxfp4_minimum_error")
    assert q.scales.tolist() == [[126]]
    np.testing.assert_array_equal(q.dequantize(), x)


@pytest.mark.parametrize("name", ["float4_e2m1fn", "float6_e2m3fn", "float8_e4m3fn", "int4"])
@pytest.mark.parametrize("size", [1, 16, 32, 1000])
def test_halvings_by_the_definition(name: str, size: int) -> None:
    element = get_format(name)
    assert element.values is not None
    values = sorted({abs(float(x)) for x in element.values if abs(x) <= element.max})
    middles = [(Fraction(a + b) / 2, Fraction(b - a) / 2) for a, b in itertools.pairwise(values)]
    top = Fraction(element.max)

    def hopeless(k: int) -> bool:
        clip = top / 2**k
        gain = max(h**2 - max(x - clip, 0) ** 2 for x, h in middles)
        ends = [(x, h) for x, h in middles if x >= top / 2] + [(top / 2, Fraction(0))]
        loss = min((x - clip) ** 2 - h**2 for x, h in ends)
        return clip < top / 2 and size * gain < Fraction(999, 1000) * loss

    assert halvings(element, size) == next(k for k in range(1, 64) if hopeless(k))


def test_the_oracle_searches_too() -> None:
    """Where cutting the largest off loses less than a coarser grid, as it does in some tiles."""
    x, block = normal(24, 8, seed=3), changed("mxfp4_minimum_error", tile=(1, 8))
    assert_exact(as_bits(x), block)
    found, plain = (
        np.asarray(quantize(jnp.asarray(x), way).scales)
        for way in (block, changed("mxfp4_rceil", tile=(1, 8)))
    )
    assert 0 < np.mean(found < plain) < 1


def test_a_ragged_tile_has_the_scale_of_its_own_elements() -> None:
    block = changed("mxfp4_minimum_error", tile=(1, 4))
    x = jnp.asarray(normal(2, 5))
    q = quantize(x, block)
    padded = quantize(jnp.pad(x, [(0, 0), (0, 3)]), block)
    assert q.scales.shape == (2, 2)
    np.testing.assert_array_equal(q.scales, padded.scales)
    np.testing.assert_array_equal(q.codes, padded.codes[:, :5])
    assert_exact(as_bits(x), block)


def test_window_of_the_search() -> None:
    e2m1, e4m3 = get_format("float4_e2m1fn"), get_format("float8_e4m3fn")
    assert halvings(e4m3, 1) <= halvings(e4m3, 32) <= halvings(e4m3, 1024)
    assert halvings(e2m1, 32) <= 5 and halvings(e4m3, 32) <= 3
    assert search_window(get_block("mxfp4_minimum_error"), 32) == (-halvings(e2m1, 32), 0)
    # A codebook's multiples are no codebook's: all scales are tried.
    nf4 = changed("mxfp4_minimum_error", element=get_format("nf4"))
    assert search_window(nf4, 32) == (-254, 254)


@functools.cache
def _user_codebook() -> Block:
    return changed("mxfp4_minimum_error", element=get_format("nf4"), tile=(1, 4))


@pytest.mark.slow
def test_a_codebook_is_searched_whole() -> None:
    x = normal(16, 4, 6)
    q = quantize(jnp.asarray(x), _user_codebook())
    got = np.asarray(q.dequantize(), np.float64)
    levels = np.array(get_format("nf4").table)
    best = np.full(len(x), np.inf)
    for code in range(100, 150):
        grid = levels * 2.0 ** (code - 127)
        back = grid[np.abs(x[..., None] - grid).argmin(-1)]
        best = np.minimum(best, ((back - x) ** 2).sum(axis=1))
    assert np.all(((got - x) ** 2).sum(axis=1) <= best * (1 + 2.0**-18))
