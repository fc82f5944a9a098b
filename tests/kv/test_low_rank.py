"""Palu-like caches: bases against weights' own decomposition, stored bits, ranks, bytes, RoPE."""

import dataclasses
import functools
import tomllib
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lowprec import catalogue
from lowprec.kv import KVMethod, Rope, get_kv_method
from lowprec.kv.low_rank import LowRankSpec
from lowprec.numerics import get_format
from lowprec.scaling import get_block
from tests.helpers import assert_bits_equal
from tests.kv import slow_kivi
from tests.kv.slow_norm_split import half_products

F, H = np.float32, np.float16
HEADS, DIM, HIDDEN = 4, 8, 24
SPEC = LowRankSpec(name="small", ratio=0.5, head_group=2, latents=get_format("bfloat16"))
"""Two groups of 16 numbers, of rank 8."""

INTEGERS = dataclasses.replace(
    SPEC, latents=get_block("int4_kivi_g32"), element=get_format("uint3"), rotation="hadamard"
)
FINE = dataclasses.replace(SPEC, latents=get_format("float16"))


@functools.cache
def layer() -> tuple[np.ndarray, np.ndarray]:
    """A layer's weights (numbers, hidden) and hidden states (tokens, hidden) of falling sizes."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(200, HIDDEN)) * 0.8 ** np.arange(HIDDEN)
    return rng.normal(size=(HEADS * DIM, HIDDEN)), states @ rng.normal(size=(HIDDEN, HIDDEN))


@functools.cache
def tokens() -> np.ndarray:
    """What the layer makes of the states, (1, heads, tokens, dim)."""
    weights, states = layer()
    return (states @ weights.T).reshape(1, 200, HEADS, DIM).swapaxes(1, 2).astype(F)


@functools.cache
def fitted(spec: LowRankSpec = SPEC) -> KVMethod:
    k = tokens()
    return KVMethod(spec=spec).fit([{"k_before_rope": k, "v": k[:, :, ::-1]}])


@functools.cache
def coding(spec: LowRankSpec = SPEC) -> Any:
    code, own = spec.code, fitted(spec).ready()["keys"]
    return jax.jit(lambda x: code.code(x, own)), jax.jit(lambda p: code.decode(p, DIM, own))


def groups(x: np.ndarray, each: int = 2) -> np.ndarray:
    """(1, heads, tokens, dim) as (groups, tokens, numbers)."""
    _, heads, count, dim = x.shape
    rows = x[0].reshape(heads // each, each, count, dim)
    return rows.swapaxes(1, 2).reshape(heads // each, count, each * dim)


def loss(spec: LowRankSpec) -> float:
    encode, decode = coding(spec)
    k = tokens()
    return float(np.linalg.norm(np.asarray(decode(encode(k))) - k) / np.linalg.norm(k))


# What is fitted


def test_values_are_those_of_the_whitened_weights() -> None:
    """from_linear_whiten: W S = U s V^T with S S^T the states' second moment, L = U sqrt(s), R."""
    weights, states = layer()
    scaling = np.linalg.cholesky(states.T @ states)
    rebuilt = []
    for w in weights.reshape(2, 2 * DIM, HIDDEN):
        u, s, vt = np.linalg.svd(w @ scaling, full_matrices=False)
        left = u[:, :8] * np.sqrt(s[:8])
        right = np.sqrt(s[:8])[:, None] * (vt[:8] @ np.linalg.inv(scaling))
        rebuilt.append(states @ right.T @ left.T)
    encode, decode = coding(FINE)
    got = groups(np.asarray(decode(encode(tokens()))))
    # Latents have float16's 11 bits.
    assert np.linalg.norm(got - rebuilt) < 2**-11 * np.linalg.norm(rebuilt)
    kept = np.linalg.norm(rebuilt) / np.linalg.norm(tokens())
    assert 0.5 < kept < 1 - 1e-4


def test_bases_split_singular_values_as_palu_does() -> None:
    own = fitted(FINE).ready()["keys"]
    for down, up, rows in zip(own["down"], own["up"], groups(tokens()), strict=True):
        assert np.allclose(up @ down, np.eye(8), atol=1e-5)
        sizes = np.linalg.svd(rows.astype(float), compute_uv=False)[:8]
        assert np.allclose(np.sum(up.astype(float) ** 2, axis=1), sizes, rtol=1e-5)
        assert np.allclose(np.sum((rows @ down.astype(float)) ** 2, axis=0), sizes, rtol=1e-4)
    turned, plain = fitted(INTEGERS).ready()["keys"], fitted(FINE).ready()["keys"]
    for name in ("up", "down"):
        sizes = [np.linalg.norm(x[name]) for x in (turned, plain)]
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-6)
    products = [np.einsum("gnr,grm->gnm", x["down"], x["up"]) for x in (turned, plain)]
    assert np.allclose(*products, atol=1e-5)
    # Hadamard evens out what the first directions have more of.
    spread = [np.linalg.norm(groups(tokens()) @ x["down"], axis=1) for x in (turned, plain)]
    assert np.ptp(np.log(spread[0])) < np.ptp(np.log(spread[1]))


# What is stored


def test_latents_are_stored_as_the_slow_way() -> None:
    encode, _ = coding()
    k, own = tokens()[:, :, :20], fitted().ready()["keys"]
    got = np.asarray(encode(k)["codes"]).view(ml_dtypes.bfloat16)[0]
    want = [half_products(x, down) for x, down in zip(groups(k), own["down"], strict=True)]
    # A group's eight numbers lie in two heads' rows.
    rows = got.reshape(2, 2, 20, 4).swapaxes(1, 2).reshape(2, 20, 8)
    assert_bits_equal(rows.astype(F), np.stack(want).astype(ml_dtypes.bfloat16).astype(F))


@pytest.mark.slow
def test_integers_are_stored_as_the_slow_way() -> None:
    encode, decode = coding(INTEGERS)
    k, own = tokens()[:, :, :20], fitted(INTEGERS).ready()["keys"]
    parts = encode(k)
    codes = np.asarray(parts["codes"])[0].reshape(2, 2, 20, 2).swapaxes(1, 2).reshape(2, 20, 4)
    for group in range(2):
        latents = half_products(groups(k)[group], own["down"][group]).astype(H)
        want, scale, low = slow_kivi.coded(latents, 3)
        # Eight codes of three bits are three bytes; the fourth is there for two equal rows.
        assert_bits_equal(codes[group, :, :3], slow_kivi.packed(want, 3))
        assert not codes[group, :, 3].any()
        for name, each in (("scales", scale), ("offsets", low)):
            assert_bits_equal(np.asarray(parts[name])[0, group].view(H).astype(F), each.astype(F))
        values = slow_kivi.values(want, scale, low).astype(float) @ own["up"][group].astype(float)
        assert np.allclose(groups(np.asarray(decode(parts)))[group], values, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.thorough
def test_one_by_one_and_uncompiled_the_bits_are_the_same() -> None:
    method, k = fitted(), tokens()
    step: Any = jax.jit(lambda cache, k, v: method.append(cache, k, v))
    once = step(method.init(1, HEADS, DIM, 12), k[:, :, :9], k[:, :, 9:18])
    cache = method.init(1, HEADS, DIM, 12)
    for i in range(9):
        cache = step(cache, k[:, :, i : i + 1], k[:, :, 9 + i : 10 + i])
    assert step._cache_size() == 2
    with jax.disable_jit():
        own = method.ready()["keys"]
        eager = SPEC.code.code(jnp.asarray(k[:, :, :9]), own)
    assert_bits_equal(np.asarray(once.keys.parts["codes"])[:, :, :9], eager["codes"])
    for side in ("keys", "values"):
        one, other = (getattr(x, side).parts["codes"] for x in (once, cache))
        assert_bits_equal(one, other)


# What is read


@pytest.mark.slow
def test_errors_fall_with_the_rank() -> None:
    ratios = (0.25, 0.5, 0.75)
    losses = [loss(dataclasses.replace(FINE, ratio=ratio)) for ratio in ratios]
    assert losses[0] > 1.5 * losses[1] > 1.5 * 1.5 * losses[2]
    # What is left out is what the singular values say.
    for ratio, found in zip(ratios, losses, strict=True):
        sizes = np.linalg.svd(groups(tokens()).astype(float), compute_uv=False)
        left = np.sqrt(np.sum(sizes[:, int(16 * ratio) :] ** 2) / np.sum(sizes**2))
        assert found == pytest.approx(left, rel=0.02)


@pytest.mark.slow
def test_a_wider_group_loses_no_more_at_one_ratio() -> None:
    losses = [loss(dataclasses.replace(FINE, head_group=each)) for each in (1, 2, 4)]
    assert losses[0] > losses[1] > losses[2]
    # Of fewer heads than a group, all of them: four at most here.
    one, other = (dataclasses.replace(FINE, head_group=each).code for each in (4, 9))
    assert one.sizes(HEADS, DIM) == other.sizes(HEADS, DIM)


@pytest.mark.slow
@pytest.mark.thorough
def test_errors_fall_with_the_bits() -> None:
    by_bits = [
        loss(dataclasses.replace(INTEGERS, element=get_format(f"uint{bits}"))) for bits in (2, 3, 4)
    ]
    assert by_bits[0] > by_bits[1] > by_bits[2] > loss(SPEC)


@pytest.mark.slow
def test_keys_turn_on_reading_and_attention_is_of_what_is_read() -> None:
    method, rope, k = fitted(), Rope(), tokens()
    v = k[:, :, ::-1]
    step = jax.jit(lambda cache, k, v: method.append(cache, k, v))
    cache = method.init(1, HEADS, DIM, 40, rope=rope)
    for piece in (slice(0, 30), slice(30, 31)):
        cache = step(cache, k[:, :, piece], v[:, :, piece])
    keys, values = (np.asarray(x)[:, :, :31] for x in method.read(cache))
    encode, decode = coding()
    straight = jnp.asarray(decode(encode(k)))[:, :, :31]
    assert np.allclose(keys, np.asarray(rope.turn(straight, jnp.arange(31))), atol=1e-4)
    q = np.random.default_rng(3).normal(size=(1, 8, 1, DIM)).astype(F) / 8
    keys, values = (np.repeat(x.astype(float), 2, 1) for x in (keys, values))
    scores = np.einsum("bhqd,bhsd->bhqs", q, keys) / np.sqrt(DIM)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("bhqs,bhsd->bhqd", weights / weights.sum(-1, keepdims=True), values)
    assert np.allclose(np.asarray(method.attend(cache, q)), mixed, rtol=1e-4, atol=1e-3)


# Bytes and words


@pytest.mark.parametrize(
    ("name", "rank_bits"),
    [
        ("palu_50", 16 * 256),
        pytest.param("palu_50_4bit", 1056, marks=pytest.mark.slow),
        pytest.param("palu_50_3bit", 800, marks=pytest.mark.slow),
    ],
)
def test_claims_and_bytes_are_those_of_the_arrays(name: str, rank_bits: int) -> None:
    """Of a group of four heads: latents of rank 256, and a scale and minimum of 16 bits."""
    table = tomllib.loads((catalogue.folder() / "kv" / f"{name}.toml").read_text())
    method = get_kv_method(name)
    bits = table["claims"]["bits_per_element"]
    assert method.bits_per_element() == bits == rank_bits / 512 and table["cite"]["revision"]
    assert method.bits_per_element(100) == bits
    assert method.bytes_per_token(layers=32, kv_heads=8, dim=128) == 65536 * bits / 8


def test_bytes_of_a_length_are_those_of_the_arrays() -> None:
    cache = fitted().init(1, HEADS, DIM, 21)
    assert cache.nbytes == 2 * 21 * HEADS * 4 * 2
    total = fitted().bytes_per_token(layers=3, kv_heads=HEADS, dim=DIM, length=21) * 21
    assert total == pytest.approx(3 * cache.nbytes, rel=1e-12)


def test_what_does_not_fit_is_said() -> None:
    k, method = tokens(), KVMethod(spec=SPEC)
    with pytest.raises(ValueError, match=r"one has \['k', 'v'\] and lacks 'k_before_rope'"):
        method.fit([{"k": k, "v": k}])
    with pytest.raises(ValueError, match="v has Inf or NaN, to which the method small cannot"):
        method.fit([{"k_before_rope": k, "v": np.full_like(k, np.inf)}])
    with pytest.raises(ValueError, match=r"v of shape \(1, 2, 200, 8\) beside \(1, 4, 200, 8\)"):
        method.fit([{"k_before_rope": k, "v": x} for x in (k, k[:, :2])])
    with pytest.raises(ValueError, match="k_before_rope spans 3 directions of a group of 16 "):
        method.fit([{"k_before_rope": k[:, :, :3], "v": k}])
    with pytest.raises(ValueError, match="has to be fitted first"):
        method.init(1, HEADS, DIM, 8)
    with pytest.raises(ValueError, match="was fitted to 2 groups of 16 numbers, and needs 1 of 16"):
        fitted().init(1, 2, DIM, 8)
    with pytest.raises(ValueError, match="`heads` = 3: `head_group` = 2 must divide it"):
        fitted().init(1, 3, DIM, 8)
    odd = dataclasses.replace(INTEGERS, ratio=0.75)
    with pytest.raises(ValueError, match="has the rank 12, and rotation = 'hadamard' needs"):
        KVMethod(spec=odd).fit([{"k_before_rope": k, "v": k}])
    with pytest.raises(ValueError, match="`element` = uint3 is of a block, and latents = bfloat16"):
        dataclasses.replace(SPEC, element=get_format("uint3"))
    with pytest.raises(ValueError, match="`ratio` = 0\\.0; above 0 and at most 1"):
        dataclasses.replace(SPEC, ratio=0.0)
    with pytest.raises(ValueError, match="`head_group` = 0: at least 1"):
        dataclasses.replace(SPEC, head_group=0)
