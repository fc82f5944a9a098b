"""Latent caches: real bytes, the bits of each writer, and attention over what they keep."""

import dataclasses
import functools
import itertools
import tomllib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec import catalogue
from lowprec.kv import KVMethod, Schedule, get_kv_method, list_kv_methods
from lowprec.kv.latent import LatentCache
from lowprec.numerics import get_format
from tests.helpers import assert_bits_equal
from tests.kv import latent_oracle as oracle
from tests.kv.latent_oracle import Floats, latent_spec

NAMES = [x for x in list_kv_methods() if catalogue.raw_value("kv", x, "family") == "latent"]
FAST = ("mla_fp8_656",)
"""The others compile long; test_latent_fixtures.py has one in pages."""
SLOW = ("mla_nvfp4",)
"""Of those that compile long, this stands for the others, which are thorough."""

BATCH, CAPACITY, COUNT = 2, 12, 9
CUTS = (3, 3, 1, 1, 1)
WRITERS = [x for x in NAMES if x.startswith("mla_fp8_656")]
DEEPSEEK_V3 = {"layers": 61, "kv_heads": 1, "dim": 576}


def graded(names: list[str]) -> list[Any]:
    slow, thorough = pytest.mark.slow, pytest.mark.thorough
    return [
        pytest.param(x, marks=[slow] * (x not in FAST) + [thorough] * (x not in (*FAST, *SLOW)))
        for x in names
    ]


@functools.cache
def method_of(name: str) -> KVMethod:
    """The entry, with pages of four tokens where it has pages, so that a few tokens fill them."""
    spec = latent_spec(name)
    if spec.record.page > 1:
        spec = dataclasses.replace(spec, record=dataclasses.replace(spec.record, page=4))
    return KVMethod(spec=spec)


@functools.cache
def tokens(name: str) -> tuple[Floats, Floats]:
    """Latents and rotary keys: ordinary tokens, and some at the ends of what scales can be."""
    spec, rng = latent_spec(name), np.random.default_rng(5)
    latent = rng.normal(size=(BATCH, COUNT, spec.latent_dim)).astype(np.float32)
    latent *= np.exp(rng.normal(size=spec.latent_dim)).astype(np.float32)
    latent[0, 1] = 0
    latent[0, 2] *= 1e-7
    latent[0, 3] *= 1e3
    latent[0, 4] = np.round(latent[0, 4] * 2) / 4  # ties
    latent[0, 5, :64] = -0.0
    rope = rng.normal(size=(BATCH, COUNT, spec.rope_dim)).astype(np.float32)
    rope[0, 1] = 0
    rope[0, 3] *= 200
    return oracle.bfloat16(latent), oracle.bfloat16(rope)


@functools.cache
def appending(name: str) -> tuple[Any, list[int]]:
    """`append` under `jit`, and for each of its traces how many tokens it takes."""
    traces: list[int] = []

    def append(cache: LatentCache, latent: jax.Array, k_rope: jax.Array) -> LatentCache:
        traces.append(latent.shape[1])
        return method_of(name).append(cache, latent, k_rope)

    return jax.jit(append), traces


def filled(name: str, cuts: tuple[int, ...], append: Any) -> LatentCache:
    latent, rope = tokens(name)
    spec = latent_spec(name)
    cache = method_of(name).init(BATCH, spec.latent_dim, spec.rope_dim, CAPACITY)
    start = 0
    for size in cuts:
        piece = slice(start, start + size)
        cache, start = append(cache, latent[:, piece], rope[:, piece]), start + size
    return cache


@functools.cache
def prefilled(name: str) -> LatentCache:
    return filled(name, CUTS, appending(name)[0])


def rows_of(name: str, pages: np.ndarray, count: int) -> np.ndarray:
    """The bytes of tokens (batch, count, bytes), heads and tails put together."""
    spec = method_of(name).spec
    page, total = spec.record.page, latent_spec(name).sizes  # type: ignore[attr-defined] - of a subclass
    width = spec.record.token_bytes(total(spec.latent_dim, spec.rope_dim))  # type: ignore[attr-defined] - of a subclass
    if page == 1:
        assert pages.shape[2] == width
        return pages[:, :COUNT]
    tail = 8
    heads = pages[:, :, : page * (width - tail)].reshape(pages.shape[0], -1, width - tail)
    tails = pages[:, :, page * (width - tail) : page * width].reshape(pages.shape[0], -1, tail)
    return np.concatenate([heads, tails], axis=-1)[:, :COUNT]


# Bytes


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_holds(name: str) -> None:
    table = tomllib.loads((catalogue.folder() / "kv" / f"{name}.toml").read_text())
    claimed = table["claims"]["bytes_per_token_layer"]
    spec, method = latent_spec(name), get_kv_method(name)
    dim = spec.latent_dim + spec.rope_dim
    assert method.latent and table["cite"]["revision"]
    assert method.bytes_per_token(layers=1, kv_heads=1, dim=dim) == claimed
    assert method.bits_per_element() == 8 * claimed / dim
    assert set(table["claims"]) == {"bytes_per_token_layer"}


def test_bytes_of_a_token_in_deepseek_v3() -> None:
    for name, expected in (
        ("mla_bf16", 70272),
        ("mla_fp8_656", 40016),
        ("mla_nvfp4", 26352),
        ("mla_nvfp4_368", 22448),
    ):
        assert get_kv_method(name).bytes_per_token(**DEEPSEEK_V3) == expected
        assert get_kv_method(name).bytes_per_token(**DEEPSEEK_V3, length=1000) == expected


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_a_length_are_those_of_the_arrays(name: str) -> None:
    spec, method = latent_spec(name), get_kv_method(name)
    for length in (64, 100):
        cache = method.init(1, spec.latent_dim, spec.rope_dim, length)
        assert cache.pages.dtype == jnp.uint8
        dim = spec.latent_dim + spec.rope_dim
        total = method.bytes_per_token(layers=1, kv_heads=1, dim=dim, length=length) * length
        assert total == pytest.approx(cache.nbytes, rel=1e-12)
    # 100 tokens take two pages, each filled up to a multiple of 576 bytes.
    assert name != "mla_fp8_584" or cache.pages.shape == (1, 2, 65 * 576)


def test_figures_of_nonsense_are_refused() -> None:
    method = get_kv_method("mla_fp8_656")
    with pytest.raises(ValueError, match=r"`kv_heads` = 8: all heads share one latent; .* 576"):
        method.bytes_per_token(layers=61, kv_heads=8, dim=128)
    with pytest.raises(ValueError, match=r"`dim` = 64 must be latent_dim \+ rope_dim"):
        method.bytes_per_token(layers=61, kv_heads=1, dim=64)


# Writers


@pytest.mark.parametrize("name", graded(NAMES))
def test_bytes_are_those_of_the_writer(name: str) -> None:
    latent, rope = tokens(name)
    found = rows_of(name, np.asarray(prefilled(name).pages), COUNT)
    for sequence in range(BATCH):
        for token in range(COUNT):
            expected = oracle.record(name, latent[sequence, token], rope[sequence, token])
            assert found[sequence, token].tobytes() == expected, (name, sequence, token)
    assert len(np.unique(found)) > 100


@pytest.mark.parametrize("name", graded(NAMES))
def test_one_by_one_and_outside_jit_the_same_bytes_are_kept(name: str) -> None:
    append, traces = appending(name)
    expected = np.asarray(prefilled(name).pages)
    steps = filled(name, (1,) * COUNT, append)
    assert int(steps.length) == COUNT
    assert_bits_equal(steps.pages, expected)
    eager = filled(name, (3, 3, 3), method_of(name).append)
    assert_bits_equal(eager.pages, expected)
    # Whatever the length of the cache, a number of tokens is compiled once.
    assert sorted(set(traces)) == sorted(traces)


@pytest.mark.parametrize("name", graded(NAMES))
def test_reading_gives_the_values_of_the_bytes(name: str) -> None:
    cache, spec = prefilled(name), latent_spec(name)
    latent, rope = (np.asarray(x) for x in jax.jit(method_of(name).read)(cache))
    assert latent.shape == (BATCH, CAPACITY, spec.latent_dim) and not latent[:, COUNT:].any()
    assert rope.shape == (BATCH, CAPACITY, spec.rope_dim) and not rope[:, COUNT:].any()
    if name == "mla_fp8_584":  # see test_latent_fixtures.py
        errors = np.abs(latent[:, :COUNT] - tokens(name)[0])
        assert np.all(errors <= np.abs(tokens(name)[0]) / 16 + 2.0**-13 * 2**-10 * 1e3)
        assert_bits_equal(rope[:, :COUNT], tokens(name)[1])
        return
    for sequence in range(BATCH):
        stored = np.asarray(cache.pages)[sequence, :COUNT]
        expected = oracle.values(name, stored, spec.latent_dim, spec.rope_dim)
        assert_bits_equal(latent[sequence, :COUNT], expected[0])
        assert_bits_equal(rope[sequence, :COUNT], expected[1])


@functools.cache
def written(name: str, amax: float) -> bytes:
    """A record of latents of one magnitude, by the oracle."""
    latent = np.full(512, amax, np.float32) * np.tile(np.array([1, -0.3], np.float32), 256)
    return oracle.record(name, oracle.bfloat16(latent), np.zeros(64, np.float32))


def test_the_writers_of_656_bytes_differ() -> None:
    """Each pair on a latent that is named here; the entries are held to the oracle above."""
    assert len(WRITERS) == 4
    # Powers of two or not; / 448 against * (1 / 448); 1e-4 before or after that, or not at all.
    apart = {1.0: 2, 3.0: 3, 2.0**-10: 3, 1e-30: 4}
    for amax, distinct in apart.items():
        assert len({written(name, amax) for name in WRITERS}) == distinct, amax
    for one, other in itertools.combinations(WRITERS, 2):
        assert any(written(one, amax) != written(other, amax) for amax in apart)


def test_numbers_are_rounded_to_bfloat16_first() -> None:
    """Even where float32 numbers would make other codes."""
    latent, rope = tokens("mla_fp8_656")
    cache = method_of("mla_fp8_656").init(BATCH, 512, 64, CAPACITY)
    between = (latent * np.float32(1 + 2**-10)).astype(np.float32)
    assert not np.array_equal(between, latent)
    once = appending("mla_fp8_656")[0](cache, between[:, :1], rope[:, :1])
    assert_bits_equal(once.pages[:, :1], prefilled("mla_fp8_656").pages[:, :1])


def test_a_scale_rounded_to_bfloat16_changes_what_is_read() -> None:
    """FlashMLA's kernel against its tests, on scales that are no powers of two."""
    spec = latent_spec("mla_fp8_656_vllm")
    kernel = dataclasses.replace(spec, scale_operand=get_format("bfloat16"))
    part, kernel_part = spec.parts[0], kernel.parts[0]
    x = jnp.asarray(tokens("mla_fp8_656")[0][:1, :1])
    found = jax.jit(part.encode)(x)
    one, other = (jax.jit(lambda y, p=p: p.decode(y, 512))(found) for p in (part, kernel_part))
    scales = np.asarray(found["latent_scales"]).view(np.float32)
    ratio = oracle.bfloat16(scales) / scales
    np.testing.assert_allclose(other, one * np.repeat(ratio, 128, axis=-1), rtol=1e-6)
    assert not np.array_equal(one, other)


# Attention


def dense(
    q: tuple[Any, ...], k: tuple[Any, ...], scale: float, *, everything: bool
) -> tuple[np.ndarray, np.ndarray]:
    """In float64: outputs, and log-sum-exp, of the newest tokens, each on those before it."""
    queries = np.concatenate(q, axis=-1).astype(np.float64)
    keys = np.concatenate(k, axis=-1).astype(np.float64)
    scores = np.einsum("bhqd,bkd->bhqk", queries, keys) * scale
    count, length = queries.shape[2], keys.shape[1]
    hidden = np.arange(length) > length - count + np.arange(count)[:, None]
    scores = np.where(hidden, -np.inf, scores)
    sums = np.logaddexp.reduce(scores, axis=-1)
    values = keys if everything else k[0].astype(np.float64)
    mixed = np.einsum("bhqk,bkd->bhqd", np.exp(scores - sums[..., None]), values)
    return mixed, sums


@pytest.mark.parametrize("name", graded(NAMES))
def test_attention_is_the_dense_one_on_what_is_read(name: str) -> None:
    spec, cache, rng = latent_spec(name), prefilled(name), np.random.default_rng(6)
    q = tuple(
        rng.normal(size=(BATCH, 3, 2, dim)).astype(np.float32) * np.float32(0.1)
        for dim in (spec.latent_dim, spec.rope_dim)
    )
    k = tuple(np.asarray(x)[:, :COUNT] for x in jax.jit(method_of(name).read)(cache))
    everything = name == "mla_fp8_584"
    expected, sums = dense(q, k, 0.05, everything=everything)
    # Twelve scores of ten thousand products at most: float32 sums within 2^-23 * 1e4 of the whole.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-4 * np.abs(k[0]).max())
    sink = np.array([-100.0, 0.5, 2.0], np.float32)
    shrunk = expected / (1 + np.exp(sink[:, None] - sums))[..., None]
    options: dict[str, Any] = {"scale": 0.05, "splits": 3, "schedule": Schedule(tile=4)}
    attend = jax.jit(lambda c, a, b, s: method_of(name).attend(c, a, b, sink=s, **options))
    close(attend(cache, *q, sink), shrunk)


def test_a_query_that_sees_nothing_gives_zero() -> None:
    cache = method_of("mla_bf16").init(1, 8, 4, 3)
    out = method_of("mla_bf16").attend(
        cache, np.ones((1, 2, 1, 8), np.float32), np.ones((1, 2, 1, 4), np.float32), scale=1.0
    )
    np.testing.assert_array_equal(out, np.zeros((1, 2, 1, 8)))


@pytest.mark.slow
def test_engines_take_operands_of_their_format() -> None:
    """Queries rounded to bfloat16 and then scaled, not the other way round."""
    rng = np.random.default_rng(9)
    cache = prefilled("mla_fp8_656")
    q = tuple(rng.normal(size=(BATCH, 2, 1, n)).astype(np.float32) for n in (512, 64))
    k = tuple(np.asarray(x)[:, :COUNT] for x in method_of("mla_fp8_656").read(cache))
    engines = {"qk_engine": "hopper.wgmma.bf16.fp32", "pv_engine": "hopper.wgmma.bf16.fp32"}
    got = jax.jit(lambda c, a, b: method_of("mla_fp8_656").attend(c, a, b, scale=0.0625, **engines))
    rounded = tuple(oracle.bfloat16(x) for x in q)
    expected, _ = dense(rounded, k, 0.0625, everything=False)
    # Weights are rounded to bfloat16 too: half a unit in the last place of 8 bits.
    np.testing.assert_allclose(
        got(cache, *q), expected, rtol=2**-8, atol=2.0**-8 * np.abs(k[0]).max()
    )


# Errors


def test_errors_name_what_was_given() -> None:
    method = get_kv_method("mla_bf16")
    cache = method.init(1, 8, 4, 3)
    x, r = np.ones((1, 2, 8), np.float32), np.ones((1, 2, 4), np.float32)
    for bad, message in (
        ({"latent_dim": 0}, "`latent_dim` = 0 must be at least 1"),
        ({"length": 0}, "`length` = 0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            method.init(**({"batch": 1, "latent_dim": 8, "rope_dim": 4, "length": 3} | bad))
    with pytest.raises(ValueError, match=r"`k_rope` of shape \(1, 2, 8\) must be \(1, tokens, 4\)"):
        method.append(cache, x, x)
    with pytest.raises(ValueError, match="`latent` has 2 tokens and `k_rope` 1; give the same"):
        method.append(cache, x, r[:, :1])
    with pytest.raises(ValueError, match="`extra` is not taken by the method mla_bf16"):
        method.append(cache, x, r, extra=x)
    with pytest.raises(ValueError, match="4 more tokens do not fit: the cache holds 0 of 3"):
        method.append(cache, np.ones((1, 4, 8), np.float32), np.ones((1, 4, 4), np.float32))
    q, q_rope = np.ones((1, 2, 1, 8), np.float32), np.ones((1, 2, 1, 4), np.float32)
    with pytest.raises(ValueError, match=r"`q_latent` \(1, 2, 1, 4\) and `q_rope` \(1, 2, 1, 4\)"):
        method.attend(cache, q_rope, q_rope, scale=1.0)
    with pytest.raises(ValueError, match=r"`sink` of shape \(3,\) must be a number or \(2,\)"):
        method.attend(cache, q, q_rope, scale=1.0, sink=np.ones(3))
    with pytest.raises(ValueError, match="`splits` = 0 must be at least 1"):
        method.attend(cache, q, q_rope, scale=1.0, splits=0)
    for size in (0, -5):
        for name in ("mla_bf16", "dsa"):
            with pytest.raises(ValueError, match=f"`length` = {size} must be at least 1"):
                get_kv_method(name).bits_per_element(size)
    paged = get_kv_method("mla_fp8_584")
    with pytest.raises(ValueError, match="tile = 100 must be a multiple of the 64 tokens of a"):
        paged.attend(paged.init(1, 8, 4, 3), q, q_rope, scale=1.0, schedule=Schedule(tile=100))


@pytest.mark.slow
def test_what_is_not_finite_takes_its_tile_along() -> None:
    """128 numbers of an FP8 latent and 16 of an NVFP4 one; rotary keys are each for themselves."""
    for name, tile, infinite in (("mla_fp8_656", 128, np.nan), ("mla_nvfp4", 16, 2688.0)):
        method = get_kv_method(name)
        read = jax.jit(lambda c, r, m=method: m.read(m.append(m.init(1, 512, 64, 3), c, r)))
        calm = np.random.default_rng(0).normal(size=(1, 3, 576)).astype(np.float32)
        before = np.concatenate(read(calm[..., :512], calm[..., 512:]), axis=-1)
        for given, want in ((np.nan, np.nan), (np.inf, infinite)):
            struck = calm.copy()
            struck[0, 1, [5, 520]] = given
            got = np.concatenate(read(struck[..., :512], struck[..., 512:]), axis=-1)[0, 1]
            np.testing.assert_array_equal(got[[5, 520]], [want, given])
            others = got[:tile][np.arange(tile) != 5]
            assert np.isnan(others).all() if np.isnan(want) else not others.any()
            np.testing.assert_array_equal(
                np.delete(got, [*range(tile), 520]), np.delete(before[0, 1], [*range(tile), 520])
            )


def test_an_overflowing_cache_reads_as_nan() -> None:
    method = method_of("mla_bf16")
    x, r = jnp.ones((1, 2, 8)), jnp.ones((1, 2, 4))
    step = jax.jit(lambda cache: method.append(cache, x, r))
    cache = step(step(method.init(1, 8, 4, 3)))
    assert np.isnan(method.read(cache)[0]).all() and np.isnan(method.read(cache)[1]).all()
    out = method.attend(cache, jnp.ones((1, 2, 1, 8)), jnp.ones((1, 2, 1, 4)), scale=1.0)
    assert np.isnan(out).all()


def test_tiles_that_a_record_cannot_order_are_refused() -> None:
    for name, message in (("mla_nvfp4", "multiple of 16"), ("mla_nvfp4_352", "multiple of 64")):
        with pytest.raises(ValueError, match=f"`latent_dim` = 24 must be a {message}"):
            get_kv_method(name).init(1, 24, 4, 3)


def test_a_record_that_lacks_a_part_is_refused() -> None:
    spec = latent_spec("mla_fp8_656")
    with pytest.raises(ValueError, match="needs each of latent, latent_scales, rope once"):
        dataclasses.replace(spec, record=dataclasses.replace(spec.record, head=("latent", "rope")))
    with pytest.raises(ValueError, match=r"'zeros.x' names no number of bytes; use such as"):
        dataclasses.replace(spec.record, head=("latent", "zeros.x"))
