"""KVQuant: stored bits against a second writing in NumPy, fitting, outliers' room, bytes, order."""

import dataclasses
import functools
import math
import tomllib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec import catalogue
from lowprec.kv import KVMethod, Rope, get_kv_method
from lowprec.kv.kvquant import KVQuantSpec, k_means
from lowprec.kv.nonuniform import NOWHERE, NonuniformCode
from lowprec.numerics.packing import unpack
from lowprec.scaling.codebook import lloyd_max
from tests.helpers import assert_bits_equal

F, H = np.float32, np.float16
HEADS, DIM = 2, 32
SPEC = KVQuantSpec(name="small", bits=2, outliers=0.05, sinks=1, iterations=50)
"""64 numbers a token: room for two outliers at either end."""


@functools.cache
def tokens(count: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Keys whose channels differ in mean and size, with some far out; values with outliers."""
    rng = np.random.default_rng(seed)
    shape = (1, HEADS, count, DIM)
    own = np.random.default_rng(99)
    k = rng.standard_t(3, shape) * np.exp(own.normal(size=(HEADS, 1, DIM)))
    k += 3 * own.normal(size=(HEADS, 1, DIM))
    return k.astype(F), rng.standard_t(3, shape).astype(F)


@functools.cache
def fitted(spec: KVQuantSpec = SPEC) -> KVMethod:
    k, v = tokens(400, 1)
    return KVMethod(spec=spec).fit([{"k_before_rope": k, "v": v}])


@functools.cache
def coding(side: int) -> Any:
    method = fitted()
    layout = SPEC.layouts()[side]
    own = method.ready()[("keys", "values")[side]]
    return (
        jax.jit(lambda x: layout.code.code(x, own)),
        jax.jit(lambda parts: layout.code.decode(parts, DIM, own)),
    )


def flat(x: Any) -> np.ndarray:
    """A token's numbers of all heads in one row."""
    x = np.asarray(x)
    return x.swapaxes(1, 2).reshape(x.shape[2], -1)


def slow_codes(z: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return np.argmin([np.abs(z - level) for level in levels], axis=0).astype(np.uint8)


def slow_values(codes: np.ndarray, levels: np.ndarray, offset: Any, width: Any) -> np.ndarray:
    return (levels[codes] * width + offset).astype(H).astype(F)


def unpacked(parts: Any) -> np.ndarray:
    return flat(unpack(parts["codes"], "uint2", DIM))


def test_keys_are_coded_as_the_slow_way() -> None:
    """simquant_module_quantizer.py: get_outliers with cap, quant_fn_nuq_recon, token by token."""
    k, _ = tokens()
    own = fitted().ready()["keys"]
    encode, decode = coding(0)
    parts = encode(k)
    lower, upper = own["lower"].ravel(), own["upper"].ravel()
    offset, width = (upper + lower) / H(2), (upper - lower) / H(2)
    x, levels = flat(k), own["levels"]
    z = (x - offset.astype(F)) / width.astype(F)
    codes = slow_codes(z, levels)
    assert_bits_equal(unpacked(parts), codes)
    want = slow_values(codes, levels, offset.astype(F), width.astype(F))
    counts = []
    for row, (numbers, scaled) in enumerate(zip(x, z, strict=True)):
        above = [i for i in np.argsort(-scaled, kind="stable") if numbers[i] > upper[i]]
        below = [i for i in np.argsort(scaled, kind="stable") if numbers[i] < lower[i]]
        counts += [len(above), len(below)]
        for i in (*above[:2], *below[:2]):
            want[row, i] = numbers[i].astype(H)
        places = np.asarray(parts["places"])[0, 0, row]
        assert places.tolist() == [*(above + [NOWHERE] * 2)[:2], *(below + [NOWHERE] * 2)[:2]]
    assert_bits_equal(flat(decode(parts)), want)
    # Some have no outlier, and some more than there is room for, which are coded at the end.
    assert min(counts) == 0 and max(counts) > 2


def test_values_are_coded_as_the_slow_way() -> None:
    """get_outliers_dynamic and quant_fn_nuq_recon: the quantiles are those of all heads."""
    _, v = tokens()
    levels = fitted().ready()["values"]["levels"]
    encode, decode = coding(1)
    parts = encode(v)
    x = flat(v)
    outside = (x >= np.quantile(x, 0.975, axis=1)[:, None]) | (
        x <= np.quantile(x, 0.025, axis=1)[:, None]
    )
    assert (outside.sum(1) == 4).all()
    inside = np.where(outside, np.median(x, axis=1)[:, None], x)
    high, low = inside.max(1, keepdims=True).astype(F), inside.min(1, keepdims=True).astype(F)
    offset, width = (high + low) / F(2), (high - low) / F(2)
    codes = slow_codes((x - offset) / width, levels)
    assert_bits_equal(unpacked(parts), codes)
    want = np.where(outside, x.astype(H), slow_values(codes, levels, offset, width)).astype(F)
    assert_bits_equal(flat(decode(parts)), want)
    assert_bits_equal(np.asarray(parts["scales"])[0, 0], np.concatenate([offset, width], axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("side", [0, 1])
def test_one_by_one_and_uncompiled_the_bits_are_the_same(side: int) -> None:
    x = tokens()[side][:, :, :5]
    encode, decode = coding(side)
    at_once = encode(x)
    layout, own = SPEC.layouts()[side], fitted().ready()[("keys", "values")[side]]
    with jax.disable_jit():
        eager = layout.code.code(jnp.asarray(x), own)
        back = layout.code.decode(eager, DIM, own)
    for name, want in at_once.items():
        assert_bits_equal(eager[name], want)
    assert_bits_equal(back, decode(at_once))
    for i in range(3):
        for name, alone in encode(x[:, :, i : i + 1]).items():
            assert_bits_equal(alone, at_once[name][:, :, i : i + 1])


def test_a_channel_of_one_number_is_kept() -> None:
    k, v = tokens(400, 1)
    k = k.copy()
    k[:, :, :, 3] = 1.5
    method = KVMethod(spec=SPEC).fit([{"k_before_rope": k, "v": v}])
    own, code = method.ready()["keys"], SPEC.layouts()[0].code
    read = np.asarray(code.decode(code.code(jnp.asarray(k[:, :, :4]), own), DIM, own))
    assert (read[..., 3] == 1.5).all() and np.isfinite(read).all()


def test_ranges_are_percentiles_and_levels_lie_within() -> None:
    k, v = tokens(400, 1)
    own = fitted().ready()
    want = np.percentile(k, (2.5, 97.5), axis=(0, 2)).astype(H)
    assert_bits_equal(own["keys"]["lower"], want[0])
    assert_bits_equal(own["keys"]["upper"], want[1])
    for side in ("keys", "values"):
        levels = own[side]["levels"]
        assert levels.dtype == np.float32 and (np.diff(levels) > 0).all()
        assert -1 <= levels[0] < levels[-1] <= 1
    # Several samples are one.
    parts = [
        {"k_before_rope": x[0], "v": x[1]}
        for x in ((k[:, :, :150], v[:, :, :150]), (k[:, :, 150:], v[:, :, 150:]))
    ]
    both = KVMethod(spec=dataclasses.replace(SPEC, sinks=0)).fit(parts).ready()
    one = (
        KVMethod(spec=dataclasses.replace(SPEC, sinks=0))
        .fit([{"k_before_rope": k, "v": v}])
        .ready()
    )
    assert_bits_equal(both["keys"]["levels"], one["keys"]["levels"])


def test_gradients_weigh() -> None:
    k, v = tokens(400, 1)
    heavy = np.where(k > np.median(k, axis=(0, 2), keepdims=True), 10.0, 0.1).astype(F)
    plain = fitted().ready()
    sample = {"k_before_rope": k, "v": v, "k_grad": heavy, "v_grad": np.ones_like(v)}
    weighed = KVMethod(spec=SPEC).fit([sample]).ready()
    # More weight above the median: more levels there; equal weights change nothing.
    assert weighed["keys"]["levels"].mean() > plain["keys"]["levels"].mean() + 0.1
    assert np.allclose(weighed["values"]["levels"], plain["values"]["levels"], atol=1e-6)
    assert_bits_equal(weighed["keys"]["lower"], plain["keys"]["lower"])
    with pytest.raises(ValueError, match=r"v_grad of the shapes .* is not that of v"):
        KVMethod(spec=SPEC).fit([sample | {"v_grad": heavy[:, :, :7]}])


def test_k_means_is_lloyd_max_where_weights_are_equal() -> None:
    z = np.random.default_rng(0).normal(size=20000)
    got = k_means(z, np.ones(z.size), 8, 2000)
    assert np.abs(got - np.array(lloyd_max(z, 3).table)).max() < 2e-3
    doubled = k_means(np.repeat(z[:500], 2), np.ones(1000), 4, 100)
    assert np.allclose(doubled, k_means(z[:500], np.full(500, 2.0), 4, 100), atol=1e-9)
    with pytest.raises(ValueError, match="have 3 different numbers; 4 are needed"):
        k_means(np.array([1.0, 2.0, 3.0, 3.0, 9.0]), np.array([1.0, 1, 1, 1, 0]), 4, 10)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_tokens_bytes_are_those_of_the_arrays(bits: int) -> None:
    """The paper's b + 0.33 is of pairs that there are, of 32 heads: 0.01 of 32 bits, and ranges."""
    method = get_kv_method(f"kvquant_{bits}bit")
    lines = tomllib.loads((catalogue.folder() / "kv" / f"{method.name}.toml").read_text())
    assert method.bits_per_element() == lines["claims"]["bits_per_element"] == bits + 0.40625
    # 42 pairs for 40.96, and 64 bits of a token's range, in values alone.
    wide = method.bits_per_element(kv_heads=32)
    assert wide == bits + 42 * 32 / 4096 + 64 / 4096 / 2
    assert round(wide - 42 * 32 / 4096 + 0.01 * 32, 2) == bits + 0.33
    # What a longer cache takes more for each token that is added.
    sizes = [method.spec.init({}, 1, 8, 128, tokens).nbytes for tokens in (300, 100)]
    assert sizes[0] - sizes[1] == 200 * method.bytes_per_token(layers=1, kv_heads=8, dim=128)


def test_room_for_outliers_counts() -> None:
    method = get_kv_method("kvquant_3bit")
    # 6 pairs at either end for 5.12, and one exact token of 2 bytes a number.
    of_tokens = 100 * 2 * (3 * 1024 / 8 + 12 * 4) + 100 * 8
    assert method.bits_per_element(100) * 2 * 1024 * 100 / 8 == of_tokens + 2 * 2 * 1024
    cache = method.spec.init({}, 1, 8, 128, 100)
    assert cache.nbytes == of_tokens + 2 * 2 * 1024
    assert NonuniformCode(bits=3, outliers=0.01, per="token").tail(4096) == 21


@pytest.mark.parametrize(("size", "shift"), [(1e7, 0.0), (2e4, 5e4)])
def test_ranges_that_float16_does_not_hold_are_refused(size: float, shift: float) -> None:
    """An end beyond 65504, or two whose sum is: keys would be read as 0 or NaN."""
    k, v = tokens(40)
    k = k / np.abs(k).max()
    loud = k.copy()
    loud[:, 1] = loud[:, 1] * size + shift
    with pytest.raises(ValueError, match=r"k_before_rope of the heads \[1\] .* of head 1"):
        KVMethod(spec=SPEC).fit([{"k_before_rope": loud, "v": v}])
    # As the message says, a power of two less is taken.
    small = KVMethod(spec=SPEC).fit([{"k_before_rope": loud / 1024, "v": v}]).ready()["keys"]
    assert all(np.isfinite(x).all() for x in small.values())
    # Values have ranges of their own, in float32.
    assert KVMethod(spec=SPEC).fit([{"k_before_rope": k, "v": loud}]).fitted is not None


@pytest.mark.slow
def test_the_first_token_is_exact_and_keys_turn_on_reading() -> None:
    method, rope = fitted(), Rope()
    k, v = tokens()
    cache = method.init(1, HEADS, DIM, 48, rope=rope)
    step = jax.jit(lambda cache, k, v: method.append(cache, k, v))
    for piece in (slice(0, 20), slice(20, 40)):
        cache = step(cache, k[:, :, piece], v[:, :, piece])
    keys, values = (np.asarray(x) for x in method.read(cache))
    want = np.asarray(coding(0)[1](coding(0)[0](k)))
    want = want.copy()
    want[:, :, 0] = k[:, :, 0].astype(H)
    turned = np.asarray(rope.turn(jnp.asarray(want), jnp.arange(40)))
    assert np.allclose(keys[:, :, :40], turned, atol=1e-5)
    assert_bits_equal(values[:, :, 0], v[:, :, 0].astype(H).astype(F))
    assert not np.array_equal(values[:, :, 1], v[:, :, 1])
    q = np.random.default_rng(3).normal(size=(1, 4, 1, DIM)).astype(F)
    scores = np.repeat(keys[:, :, :40], 2, 1) @ q.swapaxes(-1, -2) / math.sqrt(DIM)
    weights = np.exp(scores - scores.max(2, keepdims=True))
    mixed = np.sum(weights * np.repeat(values[:, :, :40], 2, 1), 2) / weights.sum(2)
    assert np.allclose(np.asarray(method.attend(cache, q))[:, :, 0], mixed, atol=1e-5)


@pytest.mark.slow
def test_before_rope_keys_lose_less() -> None:
    """(iv): channels have fixed means before RoPE, which turns them into ranges."""
    rng = np.random.default_rng(5)
    means = rng.normal(size=(2, 1, 64)) * 2
    k = (means + rng.normal(size=(1, 2, 1024, 64))).astype(F)
    v = rng.normal(size=k.shape).astype(F)
    turned = np.asarray(Rope().turn(jnp.asarray(k), jnp.arange(1024)))
    losses = {}
    spec = get_kv_method("kvquant_3bit").spec
    for name, keys in (("before", k), ("after", turned)):
        method = KVMethod(spec=spec).fit([{"k_before_rope": keys[:, :, :512], "v": v[:, :, :512]}])
        read = method.read(
            method.append(method.init(1, 2, 64, 512), keys[:, :, 512:], v[:, :, 512:])
        )
        error = np.asarray(read[0], np.float64) - keys[:, :, 512:]
        losses[name] = np.linalg.norm(error) / np.linalg.norm(keys[:, :, 512:])
    assert losses["after"] > 1.1 * losses["before"]


def test_what_does_not_fit_is_said() -> None:
    k, v = tokens()
    with pytest.raises(ValueError, match="one has \\['k', 'v'\\] and lacks 'k_before_rope'"):
        KVMethod(spec=SPEC).fit([{"k": k, "v": v}])
    with pytest.raises(ValueError, match="v has Inf or NaN"):
        KVMethod(spec=SPEC).fit([{"k_before_rope": k, "v": np.full_like(v, np.nan)}])
    with pytest.raises(ValueError, match="was fitted to 2 heads of 32 numbers"):
        fitted().init(1, 3, 32, 8)
    with pytest.raises(ValueError, match="has to be fitted first"):
        KVMethod(spec=SPEC).init(1, 2, 32, 8)
    with pytest.raises(ValueError, match=r"`outliers` = 1\.5; between 0 and 1"):
        dataclasses.replace(SPEC, outliers=1.5)
    with pytest.raises(ValueError, match="sinks = -1 must be at least 0"):
        dataclasses.replace(SPEC, sinks=-1)
    with pytest.raises(ValueError, match="a token of 131072 numbers in all heads"):
        NonuniformCode(bits=2, outliers=0.01, per="token").tail(131072)
