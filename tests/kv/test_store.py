"""A cache's stores: the same bits however tokens come, exact windows, real bytes."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowprec as lp
from lowprec.kv import KVMethod, Rope, get_kv_method
from lowprec.kv.codes import Fitted, Parts, PlainCode
from lowprec.kv.kivi import KiviSpec
from lowprec.kv.pair import PairCache, PairSpec
from lowprec.kv.store import Layout
from lowprec.numerics.format import get_format
from lowprec.scaling import get_block
from tests.helpers import STRICT, assert_bits_equal

BATCH, HEADS, DIM, CAPACITY = 2, 2, 32, 40
SPEC = KiviSpec(name="small", block=get_block("int2_kivi_g32"), group=4, residual=8)
SMALL = KVMethod(spec=SPEC)
"""KIVI with a window of 8 tokens, so that forty tokens fill it several times."""

PLAIN = get_kv_method("bf16")
WITHOUT_WINDOW = KVMethod(spec=dataclasses.replace(SPEC, residual=0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(PlainCode):
    """Numbers as they are, two tokens a unit."""

    @property
    def group(self) -> int:  # type: ignore[override] - a constant there
        return 2

    def encode(self, x: jax.Array, fitted: Fitted) -> Parts:
        codes = super().encode(x, fitted)["codes"]
        return {"codes": codes.reshape(*x.shape[:2], x.shape[2] // 2, 2 * x.shape[3])}

    def decode(self, parts: Parts, dim: int, fitted: Fitted) -> jax.Array:
        codes = parts["codes"]
        return super().decode({"codes": codes.reshape(*codes.shape[:2], -1, dim)}, dim, fitted)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheapSpec(PairSpec):
    """Windows of every sort around codes that are only rounded."""

    name: str = "cheap"

    def layouts(self) -> tuple[Layout, Layout]:
        half, rounded = get_format("float16"), get_format("bfloat16")
        keys = Layout(code=Pairs(format=rounded), exact=half, keep=1, step=6)
        return keys, Layout(code=PlainCode(format=rounded), exact=half, keep=4, sinks=3)


CHEAP = KVMethod(spec=CheapSpec())


def tokens(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    k = rng.normal(size=(BATCH, HEADS, count, DIM)) * np.exp(rng.normal(size=DIM))
    return k.astype(np.float32), rng.normal(size=k.shape).astype(np.float32)


@functools.cache
def stepping(method: KVMethod) -> Any:
    return jax.jit(lambda cache, k, v: method.append(cache, k, v))


def filled(method: KVMethod, cuts: tuple[int, ...], seed: int = 0) -> PairCache:
    """A cache of sum(cuts) tokens, appended in pieces of those sizes."""
    k, v = tokens(sum(cuts), seed)
    cache, start = method.init(BATCH, HEADS, DIM, CAPACITY), 0
    for size in cuts:
        piece = slice(start, start + size)
        cache = stepping(method)(cache, k[:, :, piece], v[:, :, piece])
        start += size
    return cache


def visible(method: KVMethod, cache: PairCache) -> list[np.ndarray]:
    """What can be read: units below the boundary, waiting tokens, sinks."""
    spec, length, seen = method.spec, int(cache.length), []
    for layout, store in zip(spec.layouts(), (cache.keys, cache.values), strict=True):  # type: ignore[attr-defined] - of a subclass
        boundary = int(layout.boundary(jnp.int32(length)))
        seen += [np.asarray(x)[:, :, : boundary // layout.code.group] for x in store.parts.values()]
        if store.recent is not None:
            seen.append(np.asarray(store.recent)[:, :, : length - boundary].astype(np.float32))
    return seen


@pytest.mark.parametrize(
    ("method", "count"),
    [(PLAIN, 40), (SMALL, 25), (WITHOUT_WINDOW, 25)],
    ids=["plain", "kivi", "kivi_without_window"],
)
def test_one_token_at_a_time_stores_what_all_at_once_do(method: KVMethod, count: int) -> None:
    once, steps = filled(method, (count,)), filled(method, (1,) * count)
    assert int(once.length) == int(steps.length) == count
    for one, other in zip(visible(method, once), visible(method, steps), strict=True):
        assert_bits_equal(one, other)


@settings(max_examples=20)
@given(st.lists(st.sampled_from([1, 5, 11]), min_size=1, max_size=7).filter(lambda x: sum(x) <= 40))
def test_pieces_of_any_size_store_the_same(cuts: list[int]) -> None:
    """The windows' bookkeeping, on a code that takes no time to compile."""
    steps, pieces = filled(CHEAP, (1,) * sum(cuts)), filled(CHEAP, tuple(cuts))
    for one, other in zip(visible(CHEAP, steps), visible(CHEAP, pieces), strict=True):
        assert_bits_equal(one, other)


def test_another_length_compiles_nothing() -> None:
    step: Any = jax.jit(lambda cache, k, v: SMALL.append(cache, k, v))
    cache = SMALL.init(BATCH, HEADS, DIM, CAPACITY)
    k, v = tokens(1)
    for _ in range(12):
        cache = step(cache, k, v)
    assert step._cache_size() == 1


@pytest.mark.slow
def test_eager_jit_and_strict_store_the_same_bits() -> None:
    k, v = tokens(13)
    empty = SMALL.init(BATCH, HEADS, DIM, CAPACITY)
    eager = SMALL.append(empty, k, v)
    compiled = stepping(SMALL)(empty, k, v)
    strict = stepping(SMALL).lower(empty, k, v).compile(compiler_options=STRICT)(empty, k, v)
    for other in (compiled, strict):
        for one, two in zip(jax.tree.leaves(eager), jax.tree.leaves(other), strict=True):
            assert_bits_equal(np.asarray(one), np.asarray(two))


def test_kivis_windows_hold_the_newest_tokens() -> None:
    k, v = tokens(21)
    cache = filled(SMALL, (1,) * 21)
    keys, values = SMALL.read(cache)
    exact_k, exact_v = k.astype(np.float16).astype(np.float32), v.astype(np.float16)
    # Keys: 16 coded, 5 wait. Values: the newest 9 (8, and the one that came last) are exact.
    assert_bits_equal(np.asarray(keys)[:, :, 16:21], exact_k[:, :, 16:])
    assert not np.array_equal(np.asarray(keys)[:, :, 15], exact_k[:, :, 15])
    assert_bits_equal(np.asarray(values)[:, :, 12:21], exact_v[:, :, 12:].astype(np.float32))
    assert not np.array_equal(np.asarray(values)[:, :, 11], exact_v[:, :, 11])
    assert not np.asarray(keys)[:, :, 21:].any() and not np.asarray(values)[:, :, 21:].any()


def test_coded_keys_are_the_blocks_over_tokens() -> None:
    k, _ = tokens(25)
    keys, _ = WITHOUT_WINDOW.read(filled(WITHOUT_WINDOW, (25,)))
    block = dataclasses.replace(get_block("int2_kivi_g32"), tile=(1, 4))
    half = jnp.asarray(k).astype(jnp.float16)
    want = lp.quantize(half[:, :, :24], block, axis=-2).dequantize()
    assert_bits_equal(np.asarray(keys)[:, :, :24], np.asarray(want))


@pytest.mark.parametrize("method", [PLAIN, SMALL, WITHOUT_WINDOW], ids=["plain", "kivi", "w0"])
def test_bytes_are_those_of_the_arrays(method: KVMethod) -> None:
    cache = method.init(1, HEADS, DIM, CAPACITY)
    each = method.bytes_per_token(layers=3, kv_heads=HEADS, dim=DIM, length=CAPACITY)
    assert each * CAPACITY == 3 * cache.nbytes
    bits = method.bits_per_element(CAPACITY, kv_heads=HEADS, dim=DIM)
    assert bits == 8 * cache.nbytes / (2 * HEADS * DIM * CAPACITY)


def test_kivis_bits() -> None:
    assert get_kv_method("kivi_2bit").bits_per_element() == 3.0
    # 128 keys and 129 values of 16 bits beside codes for all.
    window = (128 + 129) / 2 * 16 / 4096
    assert get_kv_method("kivi_2bit").bits_per_element(4096) == 3.0 + window


def test_more_tokens_than_there_is_room_for() -> None:
    k, v = tokens(30)
    cache = filled(PLAIN, (30,))
    with pytest.raises(ValueError, match="30 more tokens do not fit: the cache holds 30 of 40"):
        PLAIN.append(cache, k, v)
    over = stepping(PLAIN)(cache, k, v)
    assert np.isnan(np.asarray(PLAIN.read(over)[0])).all()
    assert np.isnan(np.asarray(PLAIN.attend(over, k[:, :, :1]))).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 2, 1, 16), r"`k` of shape \(2, 2, 1, 16\) must be \(2, 2, tokens, 32\)"),
        ((2, 2, 0, 32), r"`k` of shape \(2, 2, 0, 32\)"),
        ((2, 32), r"`k` of shape \(2, 32\)"),
    ],
)
def test_shapes_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    cache = SMALL.init(BATCH, HEADS, DIM, CAPACITY)
    with pytest.raises(ValueError, match=message):
        SMALL.append(cache, np.zeros(shape, np.float32), np.zeros((2, 2, 1, 32), np.float32))


def test_other_bad_arguments() -> None:
    with pytest.raises(ValueError, match="`length` = 0 must be at least 1"):
        SMALL.init(1, 1, 32, 0)
    cache = SMALL.init(BATCH, HEADS, DIM, CAPACITY)
    one, two = (np.zeros((BATCH, HEADS, n, DIM), np.float32) for n in (1, 2))
    with pytest.raises(ValueError, match="differ in shape"):
        SMALL.append(cache, one, two)
    with pytest.raises(ValueError, match="`positions` is not taken by the method small"):
        SMALL.append(cache, one, one, positions=np.arange(1))
    with pytest.raises(TypeError, match="`k`"):
        SMALL.append(cache, one.astype(np.int32), one)
    with pytest.raises(ValueError, match="`q` of shape"):
        SMALL.attend(cache, np.zeros((BATCH, 3, 1, DIM), np.float32))
    with pytest.raises(ValueError, match="residual = 6 must be a multiple of group = 4"):
        dataclasses.replace(SPEC, residual=6)
    with pytest.raises(ValueError, match="no KV method is named 'kivi_2bits'; did you mean"):
        get_kv_method("kivi_2bits")
    with pytest.raises(TypeError, match="`method` must be a KV method's name"):
        get_kv_method(3)  # type: ignore[arg-type] - on purpose


def test_rope_turns_pairs() -> None:
    with pytest.raises(ValueError, match="of which there are 5; use an even `dim`"):
        Rope().turn(jnp.ones((1, 5)), jnp.arange(1))


def test_bfloat16_keeps_subnormals_and_specials() -> None:
    x = np.array([1e-39, -0.0, np.inf, np.nan] * 8, np.float32).reshape(1, 1, 1, 32)
    cache = PLAIN.append(PLAIN.init(1, 1, 32, 4), x, x)
    keys, _ = PLAIN.read(cache)
    want = x.astype(get_format("bfloat16").dtype).astype(np.float32)
    assert_bits_equal(np.asarray(keys)[:, :, :1], want)
    assert want[0, 0, 0, 0] != 0
