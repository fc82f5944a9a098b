"""The catalogue's methods of keys and values in blocks: claims, bytes, and the bits they store."""

import functools
import tomllib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec import catalogue
from lowprec.kv import KVMethod, get_kv_method, list_kv_methods
from lowprec.kv.blocks import BlocksSpec
from lowprec.kv.codes import BlockCode, Code, as_stored, from_stored
from lowprec.kv.pair import SIDES, PairCache, PairSpec
from lowprec.kv.store import Layout
from lowprec.numerics import get_format
from lowprec.scaling import quantize
from tests.helpers import as_bits, assert_bits_equal

FAMILIES = ("blocks", "kivi")
NAMES = [x for x in list_kv_methods() if catalogue.raw_value("kv", x, "family") in FAMILIES]
FAST = ("fp8_head", "nvfp4_modelopt_tokens")
"""One calibrated, and one whose values wait for their tile; the others take long to compile."""
FAST_CLAIMS = (*FAST, "bf16", "int4_token", "kivi_2bit", "quarot_4bit_simulated")

HEADS, DIM, CAPACITY, PREFILL, DECODE = 2, 64, 160, 133, 4
"""133 tokens fill KIVI's window of 128, and 137 are no whole number of tiles of 16."""

LLAMA_3_8B = {"layers": 32, "kv_heads": 8, "dim": 128}
# config.json: num_hidden_layers 28, num_key_value_heads 4, hidden_size 3584 of 28 heads.
QWEN_2_5_7B = {"layers": 28, "kv_heads": 4, "dim": 128}
BYTES = {
    "bf16": 131072,
    "fp8_tensor": 65536,
    "fp8_tensor_calibrated": 65536,
    "fp8_head": 65536,
    "fp8_token": 67584,
    "int8_token": 67584,
    "mxfp8": 67584,
    "int4_token": 34816,
    "int4_token_rht": 34816,
    "mxfp4": 34816,
    "nvfp4": 36864,
    "nvfp4_calibrated": 36864,
    "nvfp4_4over6": 36864,
    "nvfp4_modelopt_tokens": 36864,
    "kivi_2bit": 24576,
    "kivi_2bit_g64": 20480,
    "kivi_2bit_g128": 18432,
    "kivi_2bit_w0": 24576,
    "kivi_4bit": 40960,
    "kivi_4bit_g64": 36864,
    "kivi_4bit_g128": 34816,
    "kivi_4bit_w0": 40960,
    "quarot_4bit": 34816,
    "quarot_4bit_simulated": 35840,
    "spinquant_4bit": 35840,
}
"""Of a token in Llama-3-8B: 65536 numbers, each with its share of scales and minima."""

SLOW = ("kivi_2bit", "nvfp4", "int4_token_rht")
"""Entries whose slow tests stand for those of their relatives, which are thorough."""


def graded(fast: tuple[str, ...]) -> list[Any]:
    """Every entry, all but some marked slow, and of these all but some thorough."""
    slow, thorough = pytest.mark.slow, pytest.mark.thorough
    return [
        pytest.param(x, marks=[slow] * (x not in fast) + [thorough] * (x not in (*fast, *SLOW)))
        for x in NAMES
    ]


@functools.cache
def tokens(heads: int = HEADS, dim: int = DIM) -> tuple[np.ndarray, np.ndarray]:
    """Keys with channels of different sizes and means, and values of tokens of different sizes."""
    rng = np.random.default_rng(7)
    shape = (1, heads, PREFILL + DECODE, dim)
    k = rng.normal(size=shape) * np.exp(rng.normal(size=dim)) + 2 * rng.normal(size=dim)
    v = rng.normal(size=shape) * np.exp(0.3 * rng.normal(size=shape[:3]))[..., None]
    return k.astype(np.float32), v.astype(np.float32)


@functools.cache
def method_of(name: str) -> KVMethod:
    """The entry, fitted where it has to be, to the first half of the tokens."""
    k, v = (x[:, :, : PREFILL // 2] for x in tokens())
    return get_kv_method(name).fit([{"k": k, "v": v}])


def spec_of(name: str) -> PairSpec:
    spec = get_kv_method(name).spec
    assert isinstance(spec, PairSpec)
    return spec


@functools.cache
def appending(name: str) -> tuple[Callable[..., PairCache], list[int]]:
    """The method's `append` under `jit`, and for each of its traces how many tokens it takes."""
    traces: list[int] = []

    def append(cache: PairCache, k: jax.Array, v: jax.Array) -> PairCache:
        traces.append(k.shape[2])
        return method_of(name).append(cache, k, v)

    return jax.jit(append), traces


def filled(name: str, cuts: tuple[int, ...], append: Callable[..., PairCache]) -> PairCache:
    """A cache after pieces of those sizes."""
    k, v = tokens()
    cache, start = method_of(name).init(1, HEADS, DIM, CAPACITY), 0
    for size in cuts:
        piece = slice(start, start + size)
        cache, start = append(cache, k[:, :, piece], v[:, :, piece]), start + size
    return cache


@functools.cache
def reading(name: str) -> Callable[[PairCache], tuple[jax.Array, jax.Array]]:
    return jax.jit(method_of(name).read)


@functools.cache
def prefilled(name: str) -> PairCache:
    """Under `jit`: a prompt, then one token after the other."""
    return filled(name, (PREFILL, *[1] * DECODE), appending(name)[0])


def stored(name: str, cache: PairCache) -> dict[str, np.ndarray]:
    """What is kept of the tokens, by side: units below the boundary, and the tokens that wait."""
    found, length = {}, int(cache.length)
    for side, layout in zip(SIDES, spec_of(name).layouts(), strict=True):
        store = getattr(cache, side)
        coded = int(layout.boundary(jnp.int32(length)))
        for part, array in store.parts.items():
            found[f"{side} {part}"] = np.asarray(array)[:, :, : coded // layout.code.group]
        if store.recent is not None:
            found[f"{side} recent"] = np.asarray(store.recent)[:, :, : length - coded]
    return found


def assert_same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype and array.shape == other[name].shape, name
        assert array.tobytes() == other[name].tobytes(), f"{name} differs"


# Claims and bytes


def test_every_entry_is_in_the_table() -> None:
    assert set(NAMES) == set(BYTES) and set(FAST) < set(NAMES)


@pytest.mark.parametrize("name", graded(FAST_CLAIMS))
def test_every_claim_holds(name: str) -> None:
    table = tomllib.loads((catalogue.folder() / "kv" / f"{name}.toml").read_text())
    claims = table["claims"]
    assert set(claims) == {"bits_per_element"} and table["cite"]["revision"]
    method, fewer = method_of(name), 28 * 4 / (32 * 8)
    assert method.bits_per_element() == claims["bits_per_element"]
    assert get_kv_method(name).bytes_per_token(**LLAMA_3_8B) == BYTES[name]
    assert method.bytes_per_token(**QWEN_2_5_7B) == BYTES[name] * fewer


@pytest.mark.parametrize("name", graded(FAST))
def test_bytes_of_a_length_are_those_of_the_arrays(name: str) -> None:
    method = method_of(name)
    for length in (CAPACITY, 97):
        cache = method.init(1, HEADS, DIM, length)
        # Of the memory itself, but for the length.
        held = sum(len(np.asarray(x).tobytes()) for x in jax.tree.leaves(cache) if x.ndim)
        assert cache.nbytes == held
        sizes = {"layers": 3, "kv_heads": HEADS, "dim": DIM, "length": length}
        assert method.bytes_per_token(**sizes) * length == pytest.approx(3 * held, rel=1e-12)
        bits = method.bits_per_element(length, kv_heads=HEADS, dim=DIM)
        assert bits * 2 * HEADS * DIM * length / 8 == pytest.approx(held, rel=1e-12)
        # Windows only add.
        own = method.bits_per_element(kv_heads=HEADS, dim=DIM)
        has_window = any(x.slots for x in spec_of(name).layouts())
        ragged = any(length % x.code.group for x in spec_of(name).layouts())
        assert bits > own if has_window or ragged else bits == own


def test_kivi_at_length_has_the_window_and_the_codes() -> None:
    """128 exact tokens of each side, and one slot more, beside the codes of all."""
    method, length = get_kv_method("kivi_2bit"), 4096
    window = 2 * 128 * 16 * (1 + 1 / (2 * 128)) / (2 * length)
    assert method.bits_per_element(length) == pytest.approx(3.0 + window)


# Bits


@pytest.mark.parametrize("name", graded(FAST[:1]))
def test_outside_jit_the_same_bits_are_stored(name: str) -> None:
    eager = filled(name, (PREFILL, *[1] * DECODE), method_of(name).append)
    assert_same_bits(stored(name, eager), stored(name, prefilled(name)))


@pytest.mark.parametrize("name", graded(FAST))
def test_one_by_one_stores_what_all_at_once_do(name: str) -> None:
    append, traces = appending(name)
    steps, once = filled(name, (1,) * (PREFILL + DECODE), append), prefilled(name)
    assert int(steps.length) == int(once.length) == PREFILL + DECODE
    assert_same_bits(stored(name, steps), stored(name, once))
    # Whatever the length of the cache, a number of tokens is compiled once.
    assert sorted(set(traces)) == sorted(traces)


@pytest.mark.parametrize("name", graded(FAST))
def test_codes_are_the_blocks_and_reading_decodes_them(name: str) -> None:
    """Stored codes, unpacked bit by bit, are those of `quantize`, and its values are read."""
    cache, method = prefilled(name), method_of(name)
    found, length, both = stored(name, cache), PREFILL + DECODE, reading(name)(cache)
    for index, (side, layout, x) in enumerate(
        zip(SIDES, spec_of(name).layouts(), tokens(), strict=True)
    ):
        read = np.asarray(both[index])
        assert not read[:, :, length:].any()
        if isinstance(layout.code, BlockCode):
            amax = (method.fitted or {}).get(side, {}).get("amax", layout.code.amax)
            codes, values = blockwise(layout, layout.code, x, amax)
            count = codes.shape[2]
            packed = found[f"{side} codes"]
            assert_bits_equal(unpacked(packed, layout.code, count), codes)
            assert len(np.unique(codes)) > (3 if layout.code.block.element.bits == 2 else 10)
        else:
            count = length
            exact = get_format("bfloat16")
            values = np.asarray(from_stored(as_stored(jnp.asarray(x), exact), exact))
        assert_bits_equal(read[:, :, :count], values[:, :, :count])
        if count < length:
            waiting = as_stored(jnp.asarray(x[:, :, count:length]), layout.exact)
            assert_bits_equal(read[:, :, count:length], from_stored(waiting, layout.exact))


def blockwise(
    layout: Layout, code: BlockCode, x: np.ndarray, amax: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and values of the coded tokens, head by head, as the block itself has them."""
    count = int(layout.boundary(jnp.int32(PREFILL + DECODE)))
    exact = np.asarray(from_stored(as_stored(jnp.asarray(x), layout.exact), layout.exact))
    # What waited was rounded to the exact format before it was coded.
    source = exact if layout.slots else x
    turned = code.turn(jnp.asarray(source[:, :, :count]), {})
    along = -1 if code.axis == "dim" else -2
    found = []
    for head in range(HEADS):
        own = np.ravel(amax)[head % np.size(amax)] if code.static else None
        found.append(quantize(turned[0, head], code.block, axis=along, amax=own))
    values = jnp.stack([q.dequantize() for q in found])[None]
    codes = np.stack([np.asarray(q.codes) for q in found])[None]
    return codes, np.asarray(code.turn_back(values, {}))


def unpacked(packed: np.ndarray, code: BlockCode, count: int) -> np.ndarray:
    """(1, heads, count, dim) codes from little-endian streams of bits, a unit after the other."""
    width, packed = code.block.element.bits, packed.view(np.uint8)
    if code.group > 1:
        # A byte has some tokens of one number.
        packed = packed.reshape(*packed.shape[:3], -1, DIM).swapaxes(-1, -2)
    bits = np.unpackbits(packed, axis=-1, bitorder="little")
    numbers = bits.reshape(*bits.shape[:-1], -1, width) @ (1 << np.arange(width))
    if code.group == 1:
        return numbers[..., :DIM].astype(np.uint8)
    return numbers.swapaxes(-1, -2).reshape(1, HEADS, count, DIM).astype(np.uint8)


@pytest.mark.parametrize("name", graded(FAST))
def test_attention_is_of_what_is_read_and_compiles_once(name: str) -> None:
    """Of what is read, whose error is that of so many bits: neither none nor all."""
    method, cache, traces = method_of(name), prefilled(name), []
    k, v = tokens()
    q = np.random.default_rng(8).normal(size=(1, 2 * HEADS, 1, DIM)).astype(np.float32)

    @jax.jit
    def attend(cache: PairCache, q: jax.Array) -> jax.Array:
        traces.append(q.shape)
        return method.attend(cache, q)

    out = attend(cache, q)
    bits = method.bits_per_element(kv_heads=HEADS, dim=DIM)
    bound = 0.9 if bits < 3.5 else 0.4 if bits < 6 else 0.1
    seen = [np.asarray(x)[:, :, : k.shape[2]] for x in reading(name)(cache)]
    for got, want in zip(seen, (k, v), strict=True):
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        assert 1e-4 < error < bound, (name, error)
    own = attention(q, *seen)
    assert np.linalg.norm(out - own) < 1e-3 * np.linalg.norm(own)
    attend(filled(name, (PREFILL,), appending(name)[0]), q)
    assert len(traces) == 1


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """In float64, every query on all tokens."""
    k, v = (np.repeat(x.astype(np.float64), q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ v


# What is special to an entry


def test_scales_of_static_entries_are_as_they_say() -> None:
    """1 without calibration; else the largest magnitude of the tensor, or of each head."""
    k, _ = tokens()
    half = np.abs(k[:, :, : PREFILL // 2])
    fitted = method_of("fp8_tensor_calibrated").fitted
    assert fitted is not None and float(fitted["keys"]["amax"]) == half.max()
    fitted = method_of("fp8_head").fitted
    assert fitted is not None
    np.testing.assert_array_equal(fitted["keys"]["amax"], half.max(axis=(0, 2, 3)))
    code = spec_of("fp8_tensor").layouts()[0].code
    x = np.zeros((1, 1, 1, 8), np.float32)
    x[..., :4] = [1.0, 500.0, -1e9, 0.013671875]
    values = np.asarray(code.decode(code.encode(jnp.asarray(x), {}), 8, {}))
    np.testing.assert_array_equal(values[0, 0, 0, :4], [1.0, 448.0, -448.0, 0.013671875])
    for name in ("nvfp4", "nvfp4_4over6", "nvfp4_modelopt_tokens"):
        layout = spec_of(name).layouts()[0].code
        assert isinstance(layout, BlockCode)
        known = quantize(jnp.zeros((1, 16)), layout.block, amax=layout.amax)
        assert known.tensor_scale is not None and float(known.tensor_scale[0, 0]) == 1.0


def test_what_exceeds_the_calibration_saturates() -> None:
    method = method_of("fp8_head")
    k, v = tokens()
    cache = method.init(1, HEADS, DIM, 1)
    read, _ = method.read(method.append(cache, 100 * k[:, :, :1], v[:, :, :1]))
    assert method.fitted is not None
    largest = method.fitted["keys"]["amax"]
    np.testing.assert_allclose(np.abs(read).max(axis=(0, 2, 3)), largest, rtol=1e-6)


def test_samples_that_no_scale_fits_are_refused() -> None:
    sample = np.full((1, 1, 1, 4), np.inf, np.float32)
    with pytest.raises(ValueError, match="k has Inf or NaN"):
        get_kv_method("fp8_head").fit([{"k": sample, "v": sample}])
    with pytest.raises(ValueError, match="has to be fitted first"):
        get_kv_method("fp8_head").init(1, 1, 4, 1)


def test_values_along_tokens_need_a_block() -> None:
    plain = get_format("bfloat16")
    with pytest.raises(ValueError, match=r"values_axis = 'tokens' needs a block, .* bfloat16"):
        BlocksSpec(name="mine", keys=plain, values=plain, values_axis="tokens")


def test_a_rotation_is_its_own_inverse_and_evens_out_a_channel() -> None:
    for name in ("int4_token_rht", "quarot_4bit"):
        code: Code = spec_of(name).layouts()[0].code
        x = jnp.zeros((1, 1, 1, 128)).at[..., 5].set(8.0)
        turned = np.asarray(code.turn(x, {}))
        np.testing.assert_allclose(np.abs(turned), 8 * 128**-0.5, rtol=1e-6)
        np.testing.assert_allclose(code.turn_back(jnp.asarray(turned), {}), x, atol=1e-5)
    signs = as_bits(spec_of("int4_token_rht").layouts()[0].code.turn(jnp.ones((1, 128)), {}))
    assert len(np.unique(signs)) > 4
