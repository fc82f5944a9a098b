"""GEAR: stored bits against a second writing in NumPy, its low-rank part, bytes, refusals."""

import dataclasses
import functools
import itertools
import tomllib
from typing import Any

import jax
import numpy as np
import pytest

from lowprec import catalogue
from lowprec.kv import KVMethod, get_kv_method
from lowprec.kv.fixed_order import normal
from lowprec.kv.gear import GearSpec
from lowprec.kv.gear_code import GearCode
from lowprec.kv.gear_low_rank import low_rank
from lowprec.scaling import get_block
from tests.helpers import assert_bits_equal
from tests.kv import slow_kivi
from tests.kv.slow_norm_split import half_products, tree_norm

F, H = np.float32, np.float16
HEADS, DIM, BUFFER = 2, 16, 8
SPEC = GearSpec(
    name="small",
    block=get_block("int2_kivi_g32"),
    keys_group=4,
    values_group=8,
    outliers=0.1,
    buffer=BUFFER,
    rank=2,
    iterations=2,
    seed=3,
)
"""One outlier at either end of a channel's 8 tokens, two at either end of a token's 32 numbers."""

METHOD = KVMethod(spec=SPEC)
SIDES = [0, pytest.param(1, marks=pytest.mark.slow)]


@functools.cache
def tokens(count: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Keys whose channels differ in mean and size, values with outliers, in float16's numbers."""
    rng = np.random.default_rng(0)
    shape = (1, HEADS, count, DIM)
    k = rng.normal(size=shape) * np.exp(rng.normal(size=DIM)) + 3 * rng.normal(size=DIM)
    v = rng.standard_t(3, shape)
    return k.astype(H).astype(F), v.astype(H).astype(F)


def code_of(side: int, spec: GearSpec = SPEC) -> GearCode:
    code = spec.layouts()[side].code
    assert isinstance(code, GearCode)
    return code


@functools.cache
def coding(side: int, spec: GearSpec = SPEC) -> Any:
    code = code_of(side, spec)
    return jax.jit(lambda x: code.code(x, {})), jax.jit(lambda p: code.decode(p, DIM, {}))


# A second writing


def tree_mean(x: np.ndarray) -> np.ndarray:
    """(n, 2^k) to (n, 1): sums of neighbours, sums of those, over the count."""
    total = x.astype(F)
    while total.shape[-1] > 1:
        total = total[:, 0::2] + total[:, 1::2]
    return total / F(x.shape[-1])


def slow_orthonormal(columns: np.ndarray) -> np.ndarray:
    basis = np.zeros_like(columns)
    for place in range(columns.shape[1]):
        column = columns[:, place : place + 1]
        for _ in range(2):
            column = column - half_products(basis, half_products(basis.T, column))
        basis[:, place : place + 1] = column / tree_norm(np.ascontiguousarray(column.T))
    return basis


def slow_factors(rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p = normal(rest.shape[1], SPEC.rank, (SPEC.seed, 0)).astype(F)
    q = p
    for _ in range(SPEC.iterations):
        q = slow_orthonormal(half_products(rest, slow_orthonormal(p)))
        p = half_products(rest.T, q)
    return q, p


def slow_tails(row: np.ndarray, tail: int) -> list[int]:
    return [*np.argsort(-row, kind="stable")[:tail], *np.argsort(row, kind="stable")[:tail]]


def slow_unit(x: np.ndarray, side: int) -> dict[str, np.ndarray]:
    """A buffer (heads, tokens, dim): what is stored of it, and its values."""
    vectors = x.transpose(0, 2, 1) if side == 0 else x.transpose(1, 0, 2)
    shape, tail = vectors.shape, (1, 2)[side]
    rows = vectors.reshape(HEADS * DIM if side == 0 else BUFFER, -1)
    places = np.array([slow_tails(row, tail) for row in rows])
    taken = np.take_along_axis(rows, places, 1)
    filled = rows.copy()
    np.put_along_axis(filled, places, np.broadcast_to(tree_mean(rows), places.shape), 1)
    groups = filled.reshape(-1, 4 if side == 0 else 8).astype(H)
    codes, scale, low = slow_kivi.coded(groups, 2)
    near = slow_kivi.values(codes, scale, low).astype(F).reshape(rows.shape)
    np.put_along_axis(near, places, taken, 1)
    back = (0, 2, 1) if side == 0 else (1, 0, 2)
    near = near.reshape(shape).transpose(back)
    factors = [slow_factors(x[head] - near[head]) for head in range(HEADS)]
    left, right = (np.stack(each).astype(H) for each in zip(*factors, strict=True))
    total = near
    for column in range(SPEC.rank):
        added = left[:, :, None, column].astype(F) * right[:, None, :, column].astype(F)
        total = total + added
    found = {"outliers": taken.astype(H), "places": places, "left": left, "right": right}
    return found | {"scales": scale, "offsets": low, "values": total}


@pytest.mark.parametrize("side", SIDES)
def test_buffers_are_coded_as_the_slow_way(side: int) -> None:
    """gearslkivi_channelQ_new and gearslkivi_tokenQ_new, buffer by buffer, in named arithmetic."""
    x = tokens()[side]
    encode, decode = coding(side)
    parts = {name: np.asarray(each) for name, each in encode(x).items()}
    values = np.asarray(decode(parts))
    for unit in range(3):
        span = slice(unit * BUFFER, (unit + 1) * BUFFER)
        want = slow_unit(x[0, :, span], side)
        for name in ("outliers", "left", "right"):
            got = parts[name][0, :, unit].view(H)
            assert_bits_equal(got.ravel().astype(F), want[name].ravel().astype(F))
        assert parts["places"].dtype == np.uint8
        assert parts["places"][0, :, unit].ravel().tolist() == want["places"].ravel().tolist()
        for name in ("scales", "offsets"):
            got = parts[name][0, :, unit].view(H).astype(F)
            each = want[name].astype(F)
            # Of keys a group of tokens after the other, each with its channels; ours are the same.
            if side == 0:
                each = each.reshape(HEADS, DIM, 2).swapaxes(1, 2)
            else:
                each = each.reshape(BUFFER, HEADS, 2).swapaxes(0, 1)
            assert_bits_equal(got.ravel(), each.ravel())
        assert_bits_equal(values[0, :, span], want["values"])


# The low-rank part


def exact_factors(rest: np.ndarray, rank: int, iterations: int, seed: int) -> np.ndarray:
    """fake_poweriteration_group in float64: QR in the last step alone."""
    p, e = normal(rest.shape[1], rank, (seed, 0)).astype(F).astype(float), rest.astype(float)
    q = p
    for step in range(iterations):
        if step == iterations - 1:
            p = np.linalg.qr(p).Q
        q = e @ p
        if step == iterations - 1:
            q = np.linalg.qr(q).Q
        p = e.T @ q
    return q @ p.T


def falling(seed: int, rows: int = 24, columns: int = 16) -> np.ndarray:
    """A matrix with singular values 1, 1/2, 1/4, ..."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(n, columns))).Q for n in (rows, columns))
    return ((left * 0.5 ** np.arange(columns)) @ right.T).astype(F)


def test_the_low_rank_part_is_that_of_power_iteration() -> None:
    rest = np.stack([falling(seed) for seed in range(3)])
    errors = []
    for rank in (1, 2, 4):
        q, p = (np.asarray(x) for x in low_rank(rest, rank=rank, iterations=3, seed=5))
        for e, one, other in zip(rest, q, p, strict=True):
            assert np.allclose(one.T @ one, np.eye(rank), atol=1e-6)
            assert np.allclose(one @ other.T, exact_factors(e, rank, 3, 5), atol=1e-5)
            left = np.linalg.norm(e - one @ other.T)
            best = np.sqrt(np.sum(0.25 ** np.arange(rank, 16)))
            # Three steps from an unlucky start leave more, but no less, than the best.
            assert best * (1 - 1e-5) <= left < 1.5 * best
        errors.append(np.linalg.norm(rest - q @ p.swapaxes(1, 2)))
    assert errors[0] > 1.5 * errors[1] > 1.5 * 2 * errors[2]


def test_nothing_left_gives_nothing() -> None:
    rest = np.zeros((2, 24, 16), F)
    rest[1, :, 0] = 1
    q, p = (np.asarray(x) for x in low_rank(rest, rank=2, iterations=3, seed=5))
    assert not q[0].any() and not p[0].any()
    # One direction, and a second one of rounding errors at most.
    assert np.allclose(q[1] @ p[1].T, rest[1], atol=1e-6)


# The method


@functools.cache
def appending() -> tuple[Any, list[int]]:
    traces: list[int] = []

    def append(cache: Any, k: Any, v: Any) -> Any:
        traces.append(k.shape[2])
        return METHOD.append(cache, k, v)

    return jax.jit(append), traces


def filled(cuts: tuple[int, ...], append: Any) -> Any:
    k, v = tokens()
    cache, start = METHOD.init(1, HEADS, DIM, 24), 0
    for size in cuts:
        cache = append(cache, k[:, :, start : start + size], v[:, :, start : start + size])
        start += size
    return cache


@pytest.mark.slow
@pytest.mark.thorough
def test_prefill_decode_and_eager_store_the_same_bits() -> None:
    append, traces = appending()
    once, steps = filled((21, 1), append), filled((1,) * 22, append)
    assert int(once.length) == 22 and len(set(traces)) == len(traces)
    eager = filled((21, 1), METHOD.append)
    for side in ("keys", "values"):
        for name, want in getattr(once, side).parts.items():
            for other in (steps, eager):
                got = getattr(other, side).parts[name]
                assert_bits_equal(np.asarray(got)[:, :, :2], np.asarray(want)[:, :, :2])
    k, v = METHOD.read(once)
    # Two buffers are coded, the third waits.
    for got, exact in zip((k, v), tokens(), strict=True):
        assert_bits_equal(np.asarray(got)[:, :, 16:22], exact[:, :, 16:22])
        assert not np.array_equal(np.asarray(got)[:, :, :16], exact[:, :, :16])
        assert not np.asarray(got)[:, :, 22:].any()


@pytest.mark.slow
def test_attention_is_of_what_is_read() -> None:
    cache = filled((22,), appending()[0])
    q = np.random.default_rng(3).normal(size=(1, 4, 1, DIM)).astype(F)
    k, v = (np.repeat(np.asarray(x)[:, :, :22], 2, 1).astype(float) for x in METHOD.read(cache))
    scores = np.einsum("bhqd,bhsd->bhqs", q, k) / np.sqrt(DIM)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("bhqs,bhsd->bhqd", weights / weights.sum(-1, keepdims=True), v)
    assert np.allclose(np.asarray(METHOD.attend(cache, q)), mixed, atol=1e-5)


@pytest.mark.slow
@pytest.mark.thorough
def test_rank_bits_and_outliers_each_lower_the_error() -> None:
    x = tokens()[1]
    losses = {}
    for bits, rank, outliers in itertools.product((2, 4), (0, 1, 2, 4), (0.0, 0.1)):
        changes = {"rank": rank, "outliers": outliers}
        block = get_block(f"int{bits}_kivi_g32")
        encode, decode = coding(1, dataclasses.replace(SPEC, block=block, **changes))
        losses[bits, rank, outliers] = np.linalg.norm(np.asarray(decode(encode(x))) - x)
    for (bits, rank, outliers), loss in losses.items():
        assert rank == 0 or loss < losses[bits, {1: 0, 2: 1, 4: 2}[rank], outliers]
        assert bits == 2 or loss < losses[2, rank, outliers]
        assert not outliers or loss < losses[bits, rank, 0.0]


# Bytes and words


@pytest.mark.parametrize("name", ["gear_2bit", pytest.param("gear_4bit", marks=pytest.mark.slow)])
def test_claims_and_bytes_are_those_of_the_arrays(name: str) -> None:
    table = tomllib.loads((catalogue.folder() / "kv" / f"{name}.toml").read_text())
    method = get_kv_method(name)
    bits = table["claims"]["bits_per_element"]
    assert method.bits_per_element() == bits and table["cite"]["revision"]
    backbone = {"gear_2bit": (2.5, 2.5), "gear_4bit": (4.5, 4.25)}[name]
    # Two of 64 and 22 of 1024 numbers with their places, and two factors of rank 2.
    apart, factors = (2 * 24 / 64, 22 * 32 / 1024), 2 * 16 * (64 + 128) / (64 * 128)
    assert bits == sum(b + o + factors for b, o in zip(backbone, apart, strict=True)) / 2
    assert method.bytes_per_token(layers=32, kv_heads=8, dim=128) == 65536 * bits / 8


def test_bytes_of_a_length_are_those_of_the_arrays() -> None:
    cache = METHOD.init(1, HEADS, DIM, 21)
    total = METHOD.bytes_per_token(layers=3, kv_heads=HEADS, dim=DIM, length=21) * 21
    assert total == pytest.approx(3 * cache.nbytes, rel=1e-12)
    # Three buffers, and the one that waits.
    keys = 3 * HEADS * (32 + 2 * DIM * 4 + DIM * 2 * 3 + (8 + 16) * 2 * 2)
    values = 3 * (HEADS * (32 + BUFFER * 2 * 4 + (8 + 16) * 2 * 2) + BUFFER * 4 * 3)
    assert cache.nbytes == keys + values + 2 * HEADS * BUFFER * DIM * 2


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="`buffer` = 6 must be a multiple of the 4 tokens"):
        dataclasses.replace(SPEC, buffer=6)
    with pytest.raises(ValueError, match="`outliers` = 1\\.0; from 0 to below 1"):
        dataclasses.replace(SPEC, outliers=1.0)
    with pytest.raises(ValueError, match="`rank` = -1: at least 0"):
        dataclasses.replace(SPEC, rank=-1)
    with pytest.raises(ValueError, match="values_group = 0 must be at least 1"):
        dataclasses.replace(SPEC, values_group=0)
    with pytest.raises(ValueError, match="`rank` = 9 is more than the smaller of them"):
        KVMethod(spec=dataclasses.replace(SPEC, rank=9)).init(1, HEADS, DIM, 8)
    with pytest.raises(ValueError, match="a vector of 131072 numbers"):
        code_of(1).tail(131072)
    assert METHOD.fit([]) is METHOD
