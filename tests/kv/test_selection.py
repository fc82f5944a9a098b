"""Chosen tokens: which, in which bits, in how many bytes, and attention over them."""

import dataclasses
import functools
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lowprec import catalogue
from lowprec.kv import KVMethod, Rope, get_kv_method, list_kv_methods
from lowprec.kv.expected_attention import ExpectedAttention
from lowprec.kv.heavy_hitters import HeavyHitters
from lowprec.kv.key_difference import KeyDifference
from lowprec.kv.key_norm import KeyNorm
from lowprec.kv.pair import PairSpec
from lowprec.kv.rules import Rule
from lowprec.kv.selection import SelectionCache, SelectionSpec
from lowprec.kv.snapkv import SnapKV
from lowprec.kv.streaming import Streaming
from lowprec.kv.tova import Tova
from tests.helpers import assert_bits_equal
from tests.kv.selection_reference import Reference, Unclear

HEADS, Q_HEADS, DIM = 2, 4, 32
NAMES = [x for x in list_kv_methods() if catalogue.raw_value("kv", x, "family") == "selection"]
RULES: dict[str, Rule] = {
    "streaming": Streaming(sinks=2),
    "h2o": HeavyHitters(recent=3, over_queries="sum"),
    "observed": HeavyHitters(recent=0, over_queries="mean"),
    "snapkv": SnapKV(window=4, kernel=3),
    "expected": ExpectedAttention(sinks=2, future=20),
    "tova": Tova(),
    "key_norm": KeyNorm(),
    "key_difference": KeyDifference(),
}
EVICTING = [name for name, rule in RULES.items() if rule.evicts]


def fast(names: Any, *chosen: str) -> list[Any]:
    """The others are slow tests: every rule is a program of its own to compile."""
    return [pytest.param(x, marks=[pytest.mark.slow] * (x not in chosen)) for x in names]


def method_of(rule: str, decode: str, store: str = "bf16", budget: int = 12) -> KVMethod:
    kept = get_kv_method(store).spec
    assert isinstance(kept, PairSpec)
    spec = SelectionSpec(name=rule, rule=RULES[rule], store=kept, budget=budget, decode=decode)  # type: ignore[arg-type] - on purpose
    return KVMethod(spec=spec)


def tokens(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, k, v of one sequence, in numbers that bfloat16 holds: that store gives them back."""
    rng = np.random.default_rng(seed)
    q = 1.5 * rng.normal(size=(1, Q_HEADS, count, DIM))
    k, v = rng.normal(size=(2, 1, HEADS, count, DIM))
    return tuple(x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in (q, k, v))  # type: ignore[return-value] - three


@functools.cache
def stepping(method: KVMethod) -> Any:
    return jax.jit(lambda cache, q, k, v: method.append(cache, k, v, q=q))


def filled(
    method: KVMethod, cuts: tuple[int, ...], seed: int = 0, **options: Any
) -> SelectionCache:
    """A cache of sum(cuts) tokens, appended in pieces of those sizes."""
    q, k, v = tokens(sum(cuts), seed)
    cache, start = method.init(1, HEADS, DIM, sum(cuts), **options), 0
    for size in cuts:
        piece = slice(start, start + size)
        cache = stepping(method)(cache, *(x[:, :, piece] for x in (q, k, v)))
        start += size
    return cache


def as_numbers(cache: SelectionCache) -> np.ndarray:
    """Kept keys of the store bf16, (heads, kept, dim) float32."""
    codes = np.asarray(cache.pair.keys.parts["codes"])[0, :, : int(cache.kept)]
    return codes.view(ml_dtypes.bfloat16).astype(np.float32)


def positions(cache: SelectionCache) -> np.ndarray:
    return np.asarray(cache.positions)[0, :, : int(cache.kept)]


@pytest.mark.parametrize("rule", fast(RULES, "snapkv", "expected"))
@settings(max_examples=4)
@given(st.integers(0, 2**32), st.sampled_from([30, 31]))
def test_a_prompt_keeps_what_plain_numpy_keeps(rule: str, seed: int, count: int) -> None:
    method, theta = method_of(rule, "keep"), 10000.0
    rope = Rope(theta=theta) if rule == "expected" else None
    q, k, v = tokens(count, seed)
    reference = Reference(RULES[rule], HEADS, evict=False, theta=theta if rope else None)
    try:
        reference.append(12, q[0], k[0], v[0])
    except Unclear:
        assume(False)
    cache = filled(method, (count,), seed, rope=rope)
    np.testing.assert_array_equal(positions(cache), reference.positions)
    kept = np.take_along_axis(k[0], reference.positions[..., None], axis=1)
    assert_bits_equal(as_numbers(cache), kept)


@pytest.mark.parametrize("rule", fast(EVICTING, "h2o", "tova"))
@settings(max_examples=4)
@given(st.integers(0, 2**32), st.sampled_from([(20, 1, 1, 1), (1,) * 20, (1, 1, 20)]))
def test_tokens_that_come_later_keep_what_plain_numpy_keeps(
    rule: str, seed: int, cuts: tuple[int, ...]
) -> None:
    q, k, v = tokens(sum(cuts), seed)
    reference, start = Reference(RULES[rule], HEADS, evict=True), 0
    try:
        for size in cuts:
            piece = slice(start, start + size)
            reference.append(12, q[0, :, piece], k[0, :, piece], v[0, :, piece])
            start += size
    except Unclear:
        assume(False)
    cache = filled(method_of(rule, "evict"), cuts, seed)
    assert cache.capacity == 12 and int(cache.length) == sum(cuts)
    np.testing.assert_array_equal(positions(cache), reference.positions)


def test_another_budget_of_h2o_is_shared_as_the_entrys() -> None:
    """1024 of 2048 are for the newest: so are 4 of 8, and a quarter of a short text can be kept."""
    method, (q, k, v) = get_kv_method("h2o"), tokens(30)
    reference = Reference(HeavyHitters(recent=4, over_queries="sum"), HEADS, evict=True)
    reference.append(8, q[0], k[0], v[0])
    cache = filled(method, (30,), budget=8)
    assert cache.capacity == 8
    np.testing.assert_array_equal(positions(cache), reference.positions)
    # The entry's own budget is the source's.
    assert isinstance(method.spec, SelectionSpec) and method.spec.rule.always == 1024
    assert method.init(1, HEADS, DIM, 4096).capacity == 2048
    # Windows and sinks of other rules are of one size.
    with pytest.raises(ValueError, match="`budget` = 8 must be at least 32"):
        get_kv_method("snapkv").init(1, HEADS, DIM, 30, budget=8)


def test_many_queries_are_added_block_by_block() -> None:
    method = method_of("h2o", "evict", budget=40)
    q, k, v = tokens(300)
    reference = Reference(RULES["h2o"], HEADS, evict=True)
    reference.append(40, q[0], k[0], v[0])
    cache = filled(method, (300,))
    np.testing.assert_array_equal(positions(cache), reference.positions)
    got = [x.got for x in reference.held]
    # Three hundred float32 sums of weights up to 1.
    np.testing.assert_allclose(np.asarray(cache.memory)[0], got, rtol=1e-4)


@pytest.mark.parametrize("store", fast(["bf16", "int4_token", "nvfp4"], "bf16"))
def test_a_window_holds_the_same_bits_however_tokens_come(store: str) -> None:
    """Codes that stay are moved, never decoded and made anew."""
    method = method_of("streaming", "evict", store)
    once, steps = filled(method, (30,)), filled(method, (17, *(1,) * 13))
    for one, other in zip(jax.tree.leaves(once), jax.tree.leaves(steps), strict=True):
        assert_bits_equal(one, other)
    np.testing.assert_array_equal(positions(once)[0], [0, 1, *range(20, 30)])


@pytest.mark.parametrize("store", fast(["kivi_2bit", "int4_token"], "kivi_2bit"))
def test_what_is_kept_is_then_quantized(store: str) -> None:
    method, kept = method_of("snapkv", "keep", store), get_kv_method(store)
    cache = filled(method, (20, 1, 1), prompt=20)
    assert cache.capacity == 14
    _, k, v = tokens(22)
    index = positions(cache)[None, :, :, None]
    np.testing.assert_array_equal(index[0, :, -2:, 0], [[20, 21]] * HEADS)
    append = jax.jit(lambda cache, k, v: kept.append(cache, k, v))
    own = kept.init(1, HEADS, DIM, 14)
    for piece in (slice(0, 12), slice(12, 13), slice(13, 14)):
        own = append(own, *(np.take_along_axis(x, index, axis=2)[:, :, piece] for x in (k, v)))
    for one, other in zip(jax.tree.leaves(cache.pair), jax.tree.leaves(own), strict=True):
        assert_bits_equal(one, other)


@pytest.mark.parametrize(
    ("rule", "decode", "store"),
    [
        ("h2o", "evict", "bf16"),
        pytest.param("h2o", "evict", "int4_token", marks=pytest.mark.slow),
        pytest.param("snapkv", "keep", "int4_token", marks=pytest.mark.slow),
    ],
)
def test_a_budget_for_all_tokens_is_the_store_itself(rule: str, decode: str, store: str) -> None:
    method, plain = method_of(rule, decode, store, budget=64), get_kv_method(store)
    q, k, v = tokens(20)
    cache, own = filled(method, (15, 4, 1)), plain.init(1, HEADS, DIM, 20)
    append = jax.jit(lambda cache, k, v: plain.append(cache, k, v))
    for piece in (slice(0, 15), slice(15, 19), slice(19, 20)):
        own = append(own, k[:, :, piece], v[:, :, piece])
    for one, other in zip(jax.tree.leaves(cache.pair), jax.tree.leaves(own), strict=True):
        assert_bits_equal(one, other)
    attended = [
        jax.jit(lambda c, q, m=m: m.attend(c, q))(c, q[:, :, -3:])
        for m, c in ((method, cache), (plain, own))
    ]
    # Another mask, but the same products: a sum of the machine's may still be cut otherwise.
    np.testing.assert_allclose(*attended, rtol=1e-5, atol=1e-6)


def test_attention_sees_kept_tokens_up_to_the_query() -> None:
    method = method_of("key_norm", "keep")
    q, k, v = tokens(40)
    cache = filled(method, (40,))
    kept = positions(cache)
    for causal in (True, False):
        out = jax.jit(lambda c, q, causal=causal: method.attend(c, q, causal=causal))(cache, q)
        for head in range(Q_HEADS):
            at = kept[head // 2]
            logits = (q[0, head] @ k[0, head // 2, at].T) / np.sqrt(DIM)
            if causal:
                logits = np.where(at <= np.arange(40)[:, None], logits, -np.inf)
            blind = np.isinf(logits).all(axis=1)
            weights = np.exp(logits[~blind] - logits[~blind].max(axis=1, keepdims=True))
            wanted = weights / weights.sum(axis=1, keepdims=True) @ v[0, head // 2, at]
            assert blind.sum() == (kept[head // 2].min() if causal else 0)
            assert np.isnan(out[0, head, blind]).all()
            np.testing.assert_allclose(out[0, head, ~blind], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "decode"), [("h2o", "evict"), ("snapkv", "keep")])
def test_eager_and_jit_store_the_same_bits(rule: str, decode: str) -> None:
    method = method_of(rule, decode, "int4_token")
    q, k, v = tokens(21)
    extra = {} if decode == "evict" else {"prompt": 20}
    cache = method.init(1, HEADS, DIM, 21, **extra)
    for piece in (slice(0, 20), slice(20, 21)):
        cache = method.append(cache, k[:, :, piece], v[:, :, piece], q=q[:, :, piece])
    jitted = filled(method, (20, 1), **extra)
    assert_bits_equal(cache.positions, jitted.positions)
    for one, other in zip(jax.tree.leaves(cache.pair), jax.tree.leaves(jitted.pair), strict=True):
        assert_bits_equal(one, other)


def test_lengths_are_traced() -> None:
    method, traces = method_of("tova", "evict"), []
    q, k, v = tokens(30)

    @jax.jit
    def step(cache: SelectionCache, q: Any, k: Any, v: Any) -> tuple[SelectionCache, jax.Array]:
        traces.append(1)
        cache = method.append(cache, k, v, q=q)
        return cache, method.attend(cache, q)

    cache, outs = method.init(1, HEADS, DIM, 30), []
    for i in range(30):
        cache, out = step(cache, *(x[:, :, i : i + 1] for x in (q, k, v)))
        outs.append(np.asarray(out))
    assert len(traces) == 1 and not np.isnan(outs).any()

    def body(cache: SelectionCache, new: Any) -> tuple[SelectionCache, jax.Array]:
        return step(cache, *(x[:, :, None] for x in new))

    line = [np.moveaxis(x, 2, 0) for x in (q, k, v)]
    scanned, _ = jax.lax.scan(body, method.init(1, HEADS, DIM, 30), line)
    assert_bits_equal(scanned.positions, cache.positions)


@pytest.mark.parametrize("rule", ["key_norm", "key_difference"])
def test_the_order_of_tokens_does_not_matter_to_keys_alone(rule: str) -> None:
    q, k, v = tokens(40, seed=3)
    order = np.random.default_rng(1).permutation(40)
    method = method_of(rule, "keep")
    empty = method.init(1, HEADS, DIM, 40)
    one = positions(stepping(method)(empty, q, k, v))
    other = positions(stepping(method)(empty, q, k[:, :, order], v[:, :, order]))
    assert (one != other).any()
    np.testing.assert_array_equal(one, np.sort(order[other], axis=-1))


def test_positions_are_those_that_are_given() -> None:
    method = method_of("streaming", "evict")
    q, k, v = tokens(3)
    empty = method.init(1, HEADS, DIM, 20)

    @jax.jit
    def run(cache: SelectionCache, at: np.ndarray) -> tuple[SelectionCache, jax.Array]:
        cache = method.append(cache, k[:, :, :2], v[:, :, :2], positions=at)
        cache = method.append(cache, k[:, :, 2:], v[:, :, 2:])
        return cache, method.attend(cache, np.repeat(q[:, :, :1], 7, axis=2))

    cache, seen = run(empty, np.array([5, 9]))
    assert int(cache.length) == 11
    np.testing.assert_array_equal(positions(cache), [[5, 9, 10]] * HEADS)
    # Queries stand at 4 to 10: the first sees nothing, the next four see the first token alone.
    assert np.isnan(seen[:, :, 0]).all()
    values = np.repeat(v[:, :, :1], Q_HEADS // HEADS, axis=1)
    np.testing.assert_allclose(seen[:, :, 1:5], np.repeat(values, 4, axis=2), rtol=1e-6)
    assert (seen[:, :, 5] != seen[:, :, 4]).any() and (seen[:, :, 6] != seen[:, :, 5]).any()
    for wrong, message in (
        (np.array([10]), "must ascend, from the cache's length 11 on"),
        (np.array([11, 12]), r"must be integers \(1,\)"),
        (np.array([11.0]), "must be integers"),
    ):
        with pytest.raises(ValueError, match=message):
            method.append(cache, k[:, :, :1], v[:, :, :1], positions=wrong)


def test_a_nan_stays_to_be_seen() -> None:
    method = method_of("key_norm", "keep")
    q, k, v = tokens(40)
    k[0, 1, 7, 3] = np.nan
    cache = stepping(method)(method.init(1, HEADS, DIM, 40), q, k, v)
    assert 7 in positions(cache)[1]
    assert np.isnan(method.read(cache)[0]).sum() == 1


@pytest.mark.parametrize("name", NAMES)
def test_an_entrys_bits_are_those_claimed(name: str) -> None:
    method, claims = get_kv_method(name), catalogue.lookup("kv", name).claims
    assert method.bits_per_element() == claims["bits_per_element"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [100, 4096])
def test_bytes_are_those_of_the_arrays(name: str, length: int) -> None:
    spec = get_kv_method(name).spec
    assert isinstance(spec, SelectionSpec)
    cache = jax.eval_shape(lambda: get_kv_method(name).init(1, 8, 128, length))
    arrays = jax.tree.leaves(cache)
    every = sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in arrays) - 2 * 4  # two lengths
    assert spec.nbytes({}, kv_heads=8, dim=128, length=length) == every
    slots = length * (1 - spec.removed) if spec.removed is not None else spec.budget
    assert slots is not None
    kept = min(length, max(int(slots), spec.rule.always))
    own = spec.store.nbytes({}, kv_heads=8, dim=128, length=kept)
    noted = spec.rule.remembers and spec.decode == "evict"
    assert every == own + 8 * kept * (8 if noted else 4)


def test_bytes_of_a_cache_are_its_arrays() -> None:
    for name in ("h2o", "snapkv_kivi_2bit"):
        cache = get_kv_method(name).init(2, 2, 64, 100)
        assert cache.nbytes == sum(x.nbytes for x in jax.tree.leaves(cache)) - 2 * 4


def test_more_than_there_is_room_for() -> None:
    method = method_of("key_norm", "keep")
    q, k, v = tokens(14)
    cache = filled(method, (13,))
    with pytest.raises(ValueError, match=r"1 more tokens do not fit: the cache keeps 12 of 12"):
        method.append(cache, k[:, :, 13:], v[:, :, 13:])
    full = stepping(method)(cache, *(x[:, :, 13:] for x in (q, k, v)))
    assert np.isnan(method.read(full)[0]).all()
    assert np.isnan(method.attend(full, q[:, :, -1:])).all()
    with pytest.raises(ValueError, match=r"the cache keeps \? of 6"):
        stepping(method)(method.init(1, HEADS, DIM, 6), *(x for x in tokens(13)))


def test_what_does_not_fit_is_refused_in_words() -> None:
    h2o, snapkv = method_of("h2o", "evict"), method_of("snapkv", "keep")
    q, k, v = tokens(20)
    cache = h2o.init(1, HEADS, DIM, 20)
    window = get_kv_method("kivi_2bit").spec
    assert isinstance(window, PairSpec)
    wrong: list[tuple[Any, str]] = [
        (lambda: h2o.append(cache, k, v), "`q` is missing: the method h2o chooses tokens by quer"),
        (lambda: snapkv.append(snapkv.init(1, HEADS, DIM, 20), k, v), "`q` is missing"),
        (lambda: h2o.append(cache, k, v, q=q[:, :, :3]), "`q` has 3 tokens, `k` 20"),
        (lambda: h2o.append(cache, k, v, q=q[:, :3]), r"`q` of shape \(1, 3, 20, 32\) must be"),
        (lambda: h2o.append(cache, k, v[:, :, :3], q=q), "differ in shape"),
        (lambda: h2o.append(cache, k, v, q=q, extra=k), "`extra` is not taken by the method h2o"),
        (lambda: h2o.init(1, HEADS, DIM, 0), "`length` = 0 must be at least 1"),
        (lambda: h2o.init(1, HEADS, DIM, 20, prompt=3), "keeps its budget at any time; leave it"),
        (lambda: snapkv.init(1, HEADS, DIM, 20, prompt=21), "must be from 0 to `length` = 20"),
        (lambda: snapkv.init(1, HEADS, DIM, 20, rope=Rope()), "looks at none; leave it out"),
        (lambda: snapkv.init(1, HEADS, DIM, 20, budget=2), "`budget` = 2 must be at least 4"),
        (lambda: changed(h2o, removed=0.5), "give one of both"),
        (lambda: changed(h2o, budget=None), "give one of both"),
        (lambda: changed(h2o, budget=None, removed=1.0), "must be from 0 to below 1"),
        (lambda: changed(h2o, budget=2), "`budget` = 2 must be at least 3, which the rule heavy"),
        (lambda: changed(snapkv, decode="evict"), "chooses within a prompt alone"),
        (lambda: changed(h2o, store=window), "replaces single tokens, but the store kivi_2bit"),
        (lambda: SnapKV(window=4, kernel=4), "and the kernel odd"),
        (lambda: Streaming(sinks=-1), "`sinks` = -1 must be at least 0"),
        (lambda: HeavyHitters(recent=-1, over_queries="sum"), "`recent` = -1 must be at least 0"),
        (lambda: ExpectedAttention(sinks=0, future=0), "`future` = 0 at least 1"),
    ]
    for call, message in wrong:
        with pytest.raises(ValueError, match=message):
            call()


def changed(method: KVMethod, **fields: Any) -> KVMethod:
    assert isinstance(method.spec, SelectionSpec)
    return KVMethod(spec=dataclasses.replace(method.spec, **fields))


def test_a_users_file_names_its_store(tmp_path: Any) -> None:
    path = tmp_path / "mine.toml"
    text = (
        'name = "mine"\nfamily = "selection"\nstore = "STORE"\nbudget = 9\ndecode = "keep"\n'
        '[rule]\nkind = "snapkv"\nwindow = 4\nkernel = 3\n'
    )
    path.write_text(text.replace("STORE", "kivi_2bit"))
    spec = get_kv_method(str(path)).spec
    assert isinstance(spec, SelectionSpec)
    assert spec.store == get_kv_method("kivi_2bit").spec and spec.rule == SnapKV(window=4, kernel=3)
    path.write_text(text.replace("STORE", "mla_bf16"))
    with pytest.raises(ValueError, match="'mla_bf16' is no KV method that keeps keys and values"):
        get_kv_method(str(path))


def test_a_calibrated_store_is_fitted_to_all_tokens() -> None:
    method, plain = method_of("key_norm", "keep", "fp8_head"), get_kv_method("fp8_head")
    _, k, v = tokens(40)
    with pytest.raises(ValueError, match="has to be fitted first"):
        method.init(1, HEADS, DIM, 40)
    fitted = method.fit([{"k": k, "v": v}])
    assert fitted.fitted is not None and plain.fit([{"k": k, "v": v}]).fitted is not None
    empty = fitted.init(1, HEADS, DIM, 40)
    cache = jax.jit(lambda method, cache: method.append(cache, k, v))(fitted, empty)
    wanted = np.take_along_axis(k, positions(cache)[None, :, :, None], axis=2)
    # Half a step of e4m3's three bits of mantissa, at most.
    np.testing.assert_allclose(fitted.read(cache)[0], wanted, rtol=2**-4, atol=2**-8)
