"""Chosen blocks: those of a public implementation, and attention over their tokens."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.kv import KVMethod, get_kv_method
from lowprec.kv.block_selection import BlockSelectionSpec
from tests.helpers import assert_bits_equal

FIXTURE = Path(__file__).parent / "fixtures_selection" / "sources.npz"
"""By experiments/kv_selection_fixtures.py."""


@functools.cache
def fixture() -> dict[str, np.ndarray]:
    with np.load(FIXTURE) as file:
        return {name: file[name] for name in file.files if name.startswith("nsa.")}


def changed(**fields: Any) -> KVMethod:
    spec = get_kv_method("nsa").spec
    assert isinstance(spec, BlockSelectionSpec)
    return KVMethod(spec=dataclasses.replace(spec, **fields))


def small(**fields: Any) -> KVMethod:
    pooled, stride, block, chosen = fixture()["nsa.sizes"].tolist()
    return changed(pooled=pooled, stride=stride, block=block, **{"chosen": chosen, **fields})


def filled(method: KVMethod) -> Any:
    k = fixture()["nsa.k"]
    cache = method.init(*k.shape[:2], k.shape[3], k.shape[2] + 3)
    return jax.jit(lambda cache: method.append(cache, k, 1 + 0 * k + k[..., ::-1]))(cache)


def test_the_blocks_are_those_of_a_public_implementation() -> None:
    method = small()
    spec = method.spec
    assert isinstance(spec, BlockSelectionSpec)
    seen = jax.jit(lambda cache, q: spec.blocks({}, cache, q))(filled(method), fixture()["nsa.q"])
    theirs = fixture()["nsa.blocks"]
    wanted = (theirs[..., None] == np.arange(seen.shape[-1])).any(axis=2)
    np.testing.assert_array_equal(seen[0], wanted)
    assert 0 < wanted.sum() < wanted.size / 2


def test_attention_is_over_the_tokens_of_chosen_blocks() -> None:
    method, q = small(), fixture()["nsa.q"][:, :, -40:]
    cache = filled(method)
    out = jax.jit(lambda cache, q: method.attend(cache, q))(cache, q)
    k, v = (np.asarray(x) for x in jax.jit(method.read)(cache))
    tokens, block = fixture()["nsa.k"].shape[2], method.spec.block  # type: ignore[attr-defined] - of a subclass
    for head in range(q.shape[1]):
        for i in range(40):
            at = tokens - 40 + i
            blocks = fixture()["nsa.blocks"][head // 2, at]
            places = np.flatnonzero(np.isin(np.arange(at + 1) // block, blocks))
            logits = k[0, head // 2, places] @ q[0, head, i] / np.sqrt(q.shape[-1])
            weights = np.exp(logits - logits.max())
            wanted = weights / weights.sum() @ v[0, head // 2, places]
            np.testing.assert_allclose(out[0, head, i], wanted, rtol=1e-4, atol=1e-5)


def test_all_blocks_are_the_store_itself() -> None:
    method, plain = small(chosen=16), get_kv_method("bf16")
    q = fixture()["nsa.q"][:, :, -2:]
    cache = filled(method)
    both = [jax.jit(lambda c, q, m=m: m.attend(c, q))(cache, q) for m in (method, plain)]
    np.testing.assert_allclose(*both, rtol=1e-5, atol=1e-6)
    assert_bits_equal(method.read(cache)[0], plain.read(cache)[0])


def test_a_cache_shorter_than_a_window_is_seen_whole() -> None:
    method, plain = get_kv_method("nsa"), get_kv_method("bf16")
    x = np.random.default_rng(0).normal(size=(1, 2, 20, 16)).astype(np.float32)

    @jax.jit
    def run(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        cache = method.append(method.init(1, 2, 16, 20), x, x)
        return method.attend(cache, x), plain.attend(cache, x)

    np.testing.assert_allclose(*run(x), rtol=1e-5, atol=1e-6)


def test_bits_are_the_stores() -> None:
    assert get_kv_method("nsa").bits_per_element() == 16.0
    quantized = changed(store=get_kv_method("kivi_2bit").spec)
    assert quantized.bits_per_element() == 3.0
    assert quantized.bits_per_element(200) > 3.0  # a window of exact tokens


def test_what_does_not_fit_is_refused_in_words() -> None:
    method = small()
    cache = method.init(1, 2, 16, 40)
    for call, message in (
        (lambda: changed(pooled=24), "`pooled` = 24 and `block` = 64 must be multiples"),
        (lambda: changed(stride=0), "must be at least 1"),
        (
            lambda: changed(store=get_kv_method("kvquant_3bit").spec),
            "the store kvquant_3bit keeps keys before RoPE, and turns them by their place",
        ),
        (lambda: changed(chosen=2), "`chosen` = 2 must be at least `first` = 1"),
        (lambda: changed(newest=0), "`newest` = 0"),
        (lambda: method.attend(cache, jnp.ones((1, 2, 1, 16)), causal=False), "`causal` = False"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
