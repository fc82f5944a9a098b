"""KVTC-like caches: bits allocated by brute force too, streams bit by bit, both sizes, refusals."""

import dataclasses
import functools
import tomllib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lowprec import catalogue
from lowprec.kv import KVMethod, Rope, get_kv_method
from lowprec.kv.transform_coding import TransformCodingSpec
from lowprec.kv.transform_coding_allocation import allocate
from lowprec.kv.transform_coding_size import entropy_coded_size
from tests.helpers import assert_bits_equal
from tests.kv.slow_norm_split import half_products

F, H = np.float32, np.float16
HEADS, DIM = 2, 16
SPEC = TransformCodingSpec(
    name="small", ratio=4.0, sinks=2, window=4, group_sizes=(4, 8), most_bits=6
)
"""32 numbers of a token in 128 bits."""


@functools.cache
def tokens(seed: int = 0, count: int = 60) -> np.ndarray:
    """Keys or values with a mean and a falling spectrum in a basis of the seed's own."""
    rng, own = np.random.default_rng(seed), np.random.default_rng(seed + 100)
    basis = np.linalg.qr(own.normal(size=(32, 32))).Q
    sizes = 0.7 ** np.arange(32) * (1 + seed)
    rows = rng.normal(size=(count, 32)) * sizes @ basis + own.normal(size=32)
    return rows.reshape(1, count, HEADS, DIM).swapaxes(1, 2).astype(F)


@functools.cache
def fitted(spec: TransformCodingSpec = SPEC) -> KVMethod:
    return KVMethod(spec=spec).fit([{"k_before_rope": tokens(0), "v": tokens(1)}])


@functools.cache
def appending() -> tuple[Any, list[int]]:
    """`append` with the method as an argument, as a model's layers have it."""
    traces: list[int] = []

    def append(method: KVMethod, cache: Any, k: Any, v: Any) -> Any:
        traces.append(k.shape[2])
        return method.append(cache, k, v)

    return jax.jit(append), traces


def filled(cuts: tuple[int, ...], method: KVMethod | None = None) -> Any:
    method = fitted() if method is None else method
    cache, start = method.init(1, HEADS, DIM, 40), 0
    for size in cuts:
        span = slice(start, start + size)
        cache = appending()[0](method, cache, tokens(0)[:, :, span], tokens(1)[:, :, span])
        start += size
    return cache


# Who gets how many bits


def brute_force(values: np.ndarray, budget: int, sizes: tuple[int, ...], most: int) -> float:
    """The least error over every sequence of groups, overhead 3."""

    @functools.cache
    def least(start: int, left: int) -> float:
        found = float(values[start:].sum())
        for end in {min(start + size, len(values)) for size in sizes} - {start}:
            for bits in range(1, most + 1):
                cost = 3 + (end - start) * bits
                if cost <= left:
                    own = float(values[start:end].sum()) * 4.0**-bits
                    found = min(found, own + least(end, left - cost))
        return found

    return least(0, budget)


def error_of(found: tuple[Any, ...], values: np.ndarray) -> tuple[float, int]:
    start, error, cost = 0, 0.0, 0
    for size, bits in found:
        error += values[start : start + size].sum() * 4.0**-bits
        start, cost = start + size, cost + 3 + size * bits
    return error + values[start:].sum(), cost


@pytest.mark.parametrize("seed", range(3))
def test_no_other_allocation_leaves_less(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.sort(rng.exponential(size=7) ** 3)[::-1]
    errors = []
    for budget in (2, 9, 14, 20, 27, 40):
        found = allocate(values, budget, sizes=(1, 2, 4), most_bits=4, overhead=3)
        error, cost = error_of(found, values)
        assert cost <= budget
        assert error == pytest.approx(brute_force(values, budget, (1, 2, 4), 4), rel=1e-12)
        errors.append(error)
    assert errors == sorted(errors, reverse=True) and errors[0] == values.sum()


def test_equal_variances_share_a_scale_and_large_ones_get_more() -> None:
    assert allocate(np.ones(8), 8 * 2 + 3, sizes=(1, 2, 8), most_bits=8, overhead=3) == ((8, 2),)
    steep = allocate(4.0 ** -np.arange(8), 30, sizes=(1, 2), most_bits=8, overhead=2)
    bits = [own for size, own in steep for _ in range(size)]
    assert bits == sorted(bits, reverse=True) and bits[0] >= bits[-1] + 2
    # No bits are spent where nothing is left to gain.
    assert allocate([1.0, 0.0], 99, sizes=(1,), most_bits=3, overhead=2) == ((1, 3),)


# What is stored


def slow_tokens(rows: np.ndarray, own: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Each token's stream as text of its bits, and the components it stands for."""
    components = half_products(rows - own["mean"].reshape(-1), own["basis"])
    streams, values = [], np.zeros_like(components)
    numbers = [int(x) for x in np.unique(own["group"]) if x < len(own["largest"])]
    for row, found in zip(components, values, strict=True):
        text = ""
        for number in numbers:
            members = np.flatnonzero(own["group"] == number)
            low, high, top = row[members].min(), row[members].max(), own["largest"][number]
            shift, scale = H(low), H((high - low) / top)
            codes = np.clip(np.rint((row[members] - F(shift)) / F(scale)), 0, top).astype(int)
            found[members] = F(shift) + F(scale) * codes.astype(F)
            bits = int(np.log2(top + 1))
            for value, width in ((scale, 16), (shift, 16), *((code, bits) for code in codes)):
                whole = int(value.view(np.uint16)) if width == 16 else int(value)
                text += f"{whole:0{width}b}"[::-1]
        streams.append(text)
    return streams, values


@pytest.mark.parametrize("side", [0, 1])
def test_streams_are_the_slow_ones_and_are_read_back(side: int) -> None:
    cache, own = filled((37, 1)), fitted().ready()[("keys", "values")[side]]
    x = tokens(side)[:, :, :38].astype(ml_dtypes.bfloat16).astype(F)
    rows = x[0].swapaxes(0, 1).reshape(38, 32)
    store = (cache.keys, cache.values)[side]
    lines = np.asarray(store.parts["codes"])[0, :, :34].swapaxes(0, 1).reshape(34, -1)
    streams, components = slow_tokens(rows[:34], own)
    for got, want in zip(lines, streams, strict=True):
        bits = "".join(str(bit) for bit in np.unpackbits(got, bitorder="little"))
        assert len(bits) == 128 and bits[: len(want)] == want and "1" not in bits[len(want) :]
    values = components.astype(float) @ own["basis"].T.astype(float) + own["mean"].reshape(-1)
    read = np.asarray(fitted().read(cache)[side])
    flat = read[0].swapaxes(0, 1).reshape(40, 32)
    # Two sinks and a window of four are exact, the rest is what the streams say.
    assert np.allclose(flat[2:34], values[2:], atol=1e-5)
    assert_bits_equal(flat[[0, 1, 34, 35, 36, 37]], rows[[0, 1, 34, 35, 36, 37]])
    assert not flat[38:].any()
    error = np.linalg.norm(flat[2:34] - rows[2:34]) / np.linalg.norm(rows[2:34])
    assert 0.001 < error < 0.02


def test_prefill_and_decode_store_the_same_bits_and_compile_once() -> None:
    append, traces = appending()
    once, steps = filled((37, 1)), filled((1,) * 38)
    for side in ("keys", "values"):
        one, other = (np.asarray(getattr(x, side).parts["codes"])[:, :, :34] for x in (once, steps))
        assert_bits_equal(one, other)
    # Other bits for the components, as another layer has, are the same program.
    swapped = [{"k_before_rope": tokens(1), "v": np.round(tokens(0))}]
    other = KVMethod(spec=SPEC).fit(swapped)
    bits = [np.bincount(x.ready()["keys"]["symbol"]).tolist() for x in (other, fitted())]
    assert bits[0] != bits[1]
    filled((37, 1), other)
    assert sorted(traces) == [1, 37] and append._cache_size() == 2


@pytest.mark.slow
@pytest.mark.thorough
def test_uncompiled_the_bits_are_the_same() -> None:
    own, x = fitted().ready()["keys"], jnp.asarray(tokens(0)[:, :, :7])
    want = SPEC.code.code(x, own)["codes"]
    with jax.disable_jit():
        assert_bits_equal(SPEC.code.code(x, own)["codes"], want)


@pytest.mark.slow
def test_keys_turn_on_reading_and_attention_is_of_what_is_read() -> None:
    method, rope = fitted(), Rope()
    k, v = (tokens(side)[:, :, :31] for side in (0, 1))
    plain = method.append(method.init(1, HEADS, DIM, 40), k, v)
    cache = dataclasses.replace(plain, rope=rope)
    keys, values = (np.asarray(x)[:, :, :31] for x in method.read(cache))
    straight = jnp.asarray(np.asarray(method.read(plain)[0])[:, :, :31])
    assert np.allclose(keys, np.asarray(rope.turn(straight, jnp.arange(31))), atol=1e-5)
    q = np.random.default_rng(3).normal(size=(1, 4, 1, DIM)).astype(F)
    keys, values = (np.repeat(x.astype(float), 2, 1) for x in (keys, values))
    scores = np.einsum("bhqd,bhsd->bhqs", q, keys) / np.sqrt(DIM)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("bhqs,bhsd->bhqd", weights / weights.sum(-1, keepdims=True), values)
    assert np.allclose(np.asarray(method.attend(cache, q)), mixed, atol=1e-4)


@pytest.mark.slow
def test_errors_fall_with_the_bits() -> None:
    losses, x = [], tokens(0)
    for ratio in (8.0, 4.0, 2.0):
        spec = dataclasses.replace(SPEC, ratio=ratio, most_bits=8)
        own = fitted(spec).ready()["keys"]
        read = np.asarray(spec.code.decode(spec.code.code(jnp.asarray(x), own), DIM, own))
        losses.append(np.linalg.norm(read - x) / np.linalg.norm(x))
    assert losses[0] > 1.5 * losses[1] > 1.5 * 1.5 * losses[2]


def test_components_are_those_of_the_tokens_behind_the_sinks() -> None:
    own = fitted().ready()["keys"]
    rows = tokens(0)[0, :, 2:].swapaxes(0, 1).reshape(58, 32).astype(float)
    assert np.allclose(own["mean"].reshape(-1), rows.mean(0), atol=1e-6)
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
    found = own["basis"].T @ vectors[:, ::-1]
    assert np.allclose(np.abs(np.diag(found))[:8], 1, atol=1e-5)
    # A sample of fewer tokens than numbers has components that are zero.
    short = KVMethod(spec=SPEC).fit([{"k_before_rope": tokens(0)[:, :, :9], "v": tokens(1)}])
    assert np.linalg.matrix_rank(short.ready()["keys"]["basis"]) <= 7
    assert values[-1] > values[0]


# Bytes: those allocated, and those that DEFLATE leaves


@pytest.mark.parametrize("ratio", [8, 16])
def test_claims_and_bytes_are_those_of_the_arrays(ratio: int) -> None:
    table = tomllib.loads((catalogue.folder() / "kv" / f"kvtc_{ratio}x.toml").read_text())
    method = get_kv_method(f"kvtc_{ratio}x")
    bits = table["claims"]["bits_per_element"]
    assert method.bits_per_element() == bits == 16 / ratio and table["cite"]["note"]
    # 128 tokens and four wait or stay exact beside the codes of all.
    assert method.bits_per_element(4096) == bits + 132 * 16 / 4096
    assert method.bytes_per_token(layers=32, kv_heads=8, dim=128) == 65536 * bits / 8


def test_bytes_of_a_length_are_those_of_the_arrays() -> None:
    cache = fitted().init(1, HEADS, DIM, 21)
    assert cache.nbytes == 2 * HEADS * (21 * 8 + 6 * DIM * 2)
    total = fitted().bytes_per_token(layers=3, kv_heads=HEADS, dim=DIM, length=21) * 21
    assert total == pytest.approx(3 * cache.nbytes, rel=1e-12)
    assert SPEC.without_window().layouts()[0].slots == 0


def test_deflate_is_counted_beside_what_is_allocated() -> None:
    cache = filled((37, 1))
    found = entropy_coded_size(fitted(), cache)
    assert found.allocated_bytes == cache.nbytes
    # 38 tokens, of which two sinks and the window of four are exact.
    assert found.packed_bytes == 2 * 32 * HEADS * 8 and found.exact_bytes == 2 * 6 * 32 * 2
    assert (found.numbers, found.coded_numbers) == (2 * 38 * 32, 2 * 32 * 32)
    assert found.packed_ratio == SPEC.ratio
    total = 0
    for store in (cache.keys, cache.values):
        lines = np.asarray(store.parts["codes"])[0, :, 2:34].swapaxes(0, 1).tobytes()
        # A header of two bytes and a checksum of four are zlib's, not DEFLATE's.
        total += len(zlib.compress(lines, 9)) - 6
    assert found.deflated_bytes == total
    assert found.deflated_ratio == 2 * found.coded_numbers / total
    whole = 2 * found.numbers
    assert found.packed_ratio_with_exact == whole / (found.packed_bytes + found.exact_bytes)
    assert found.deflated_ratio_with_exact == whole / (total + found.exact_bytes)
    chunked = entropy_coded_size(fitted(), cache, chunk_bytes=64)
    assert chunked.packed_bytes == found.packed_bytes
    assert chunked.deflated_bytes > found.deflated_bytes


def test_deflate_of_other_methods() -> None:
    """Equal tokens vanish, random ones stay: of any method whose cache is a pair of layouts."""
    method = get_kv_method("bf16")
    rng = np.random.default_rng(0)
    sizes = []
    for x in (np.ones((1, 1, 200, 16)), rng.normal(size=(1, 1, 200, 16))):
        cache = method.append(method.init(1, 1, 16, 256), x.astype(F), x.astype(F))
        sizes.append(entropy_coded_size(method, cache))
    assert [x.packed_ratio for x in sizes] == [1.0, 1.0]
    assert sizes[0].deflated_ratio > 100 and 1 < sizes[1].deflated_ratio < 1.5
    assert sizes[0].allocated_bytes == 256 * 16 * 2 * 2


def test_what_does_not_fit_is_said() -> None:
    k, method = tokens(), KVMethod(spec=SPEC)
    with pytest.raises(ValueError, match=r"one has \['v'\] and lacks 'k_before_rope'"):
        method.fit([{"v": k}])
    with pytest.raises(ValueError, match="k_before_rope has Inf or NaN"):
        method.fit([{"k_before_rope": np.full_like(k, np.nan), "v": k}])
    with pytest.raises(ValueError, match="k_before_rope has 1 tokens behind the first 2 of each"):
        method.fit([{"k_before_rope": k[:, :, :3], "v": k}])
    tiny = KVMethod(spec=dataclasses.replace(SPEC, ratio=32.0, group_sizes=(8,)))
    with pytest.raises(ValueError, match=r"a ratio of 32\.0 leaves a token 16 bits, in which"):
        tiny.fit([{"k_before_rope": k, "v": k}])
    with pytest.raises(ValueError, match=r"`dim` = 16: a ratio of 64\.0 leaves a token of it no"):
        KVMethod(spec=dataclasses.replace(SPEC, ratio=64.0)).bits_per_element(dim=16)
    with pytest.raises(ValueError, match="has to be fitted first"):
        method.init(1, HEADS, DIM, 8)
    with pytest.raises(ValueError, match="was fitted to 2 heads of 16 numbers"):
        fitted().init(1, 4, 8, 8)
    for changes, message in (
        ({"window": -1}, "window = -1 must be at least 0"),
        ({"group_sizes": ()}, r"group_sizes = \(\): one or more"),
        ({"most_bits": 9}, "most_bits = 9; use 1 to 8"),
        ({"ratio": 0.0}, "`ratio` = 0.0 must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SPEC, **changes)
    empty = fitted().init(1, HEADS, DIM, 8)
    with pytest.raises(ValueError, match="holds 0 tokens, all of them exact"):
        entropy_coded_size(fitted(), empty)
    with pytest.raises(ValueError, match="`chunk_bytes` = 0 must be at least 1"):
        entropy_coded_size(fitted(), empty, chunk_bytes=0)
    with pytest.raises(TypeError, match="mla_bf16 keeps no keys and values in two layouts"):
        entropy_coded_size(get_kv_method("mla_bf16"), empty)
