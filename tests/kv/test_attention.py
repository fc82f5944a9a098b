"""Attention over tiles: against float64 softmax attention, its identities, and its schedules."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lowprec.engines.engine import get_engine
from lowprec.engines.matmul import matmul
from lowprec.kv.attention import Products, Scales, attend_tiles, named_products, weigh
from lowprec.kv.schedule import Schedule
from lowprec.numerics.format import get_format
from lowprec.scaling.cast import cast
from tests.helpers import assert_bits_equal

E4M3 = get_format("float8_e4m3fn")
HOPPER = get_engine("hopper.wgmma.fp8.fp32")
UNIT = 2.0**-24
"""Of rounding float32 to nearest."""
HEADS, ROWS, TOKENS, DIM = 2, 3, 48, 16
Array = NDArray[np.float64]


class Head(NamedTuple):
    """q (1, heads, rows, dim), scaled already, k and v (1, heads, tokens, dim), float32."""

    q: NDArray[np.float32]
    k: NDArray[np.float32]
    v: NDArray[np.float32]


def drawn(seed: int, size: float = 1.0, tokens: int = TOKENS) -> Head:
    rng = np.random.default_rng(seed)
    shapes = (ROWS, tokens, tokens)
    q, k, v = (rng.standard_normal((1, HEADS, n, DIM)).astype(np.float32) for n in shapes)
    return Head(np.float32(size / math.sqrt(DIM)) * q, k, v)


@functools.partial(jax.jit, static_argnames=("schedule", "products", "splits"))
def _attend(
    head: Head,
    mask: jax.Array,
    first: jax.Array,
    last: jax.Array,
    scale: jax.Array | None,
    scales: tuple[jax.Array, jax.Array] | None,
    schedule: Schedule,
    products: Products,
    splits: int,
) -> jax.Array:
    size = schedule.tile
    ends = -head.k.shape[2] % size
    k, v = (jnp.pad(x, [(0, 0), (0, 0), (0, ends), (0, 0)]) for x in head[1:])
    mask = jnp.pad(mask, [(0, 0), (0, ends)])

    def tiles(x: jax.Array, axis: int = 2) -> Any:
        return lambda start: jax.lax.dynamic_slice_in_dim(x, start, size, axis)

    return attend_tiles(
        jnp.asarray(head.q),
        tiles(k),
        tiles(v),
        lambda places: jnp.take(mask, places, axis=1)[None, None],
        first=first,
        last=last,
        products=products,
        schedule=schedule,
        splits=splits,
        scale=scale,
        scales=None
        if scales is None
        else Scales(
            keys=lambda start: scales[0][:, :, :, start // size][..., None],
            values=lambda start: scales[1][:, :, :, start // size][..., None],
        ),
    )


def attend(
    head: Head,
    schedule: Schedule | None = None,
    *,
    mask: NDArray[np.bool_] | None = None,
    first: int = 0,
    products: Products | None = None,
    splits: int = 1,
    scale: Any = None,
    scales: Any = None,
) -> NDArray[np.float32]:
    tokens = head.k.shape[2]
    mask = np.ones((head.q.shape[2], tokens), bool) if mask is None else mask
    ends = jnp.int32(first), jnp.int32(tokens)
    how = schedule or Schedule(tile=16), products or Products(), splits
    return np.asarray(_attend(head, jnp.asarray(mask), *ends, scale, scales, *how))


def dense(head: Head, mask: NDArray[np.bool_] | None = None) -> tuple[Array, Array]:
    """Softmax attention in float64, and the same mean of |v|."""
    q, k, v = (x.astype(np.float64) for x in head)
    scores = q @ k.swapaxes(2, 3)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    p = np.exp(scores - scores.max(axis=3, keepdims=True))
    p /= p.sum(axis=3, keepdims=True)
    return p @ v, p @ np.abs(v)


def perturbed(head: Head, score: float) -> Array:
    """How far outputs move at most where scores move by `score`: weights by exp(2 score)."""
    return math.expm1(2 * score) * 2 * dense(head)[1]


def largest_score(head: Head) -> float:
    """Of sums of magnitudes, which bound the errors of scores."""
    return float((np.abs(head.q, dtype=np.float64) @ np.abs(head.k).swapaxes(2, 3)).max())


def bound(head: Head, mask: NDArray[np.bool_] | None = None) -> Array:
    """Of the float32 error of attention, an output each, to first order in `UNIT`.

    A score is a sum of dim products, each rounded at most dim times, so that it errs by dim + 1
    units of the sum of magnitudes; less the maximum it is rounded once more. The exponential errs
    by 4 units at most (XLA's polynomial, 2 ulp). Every score errs so and the maximum's, too, and
    the maximum moves through a factor exp(old - new) of each tile. Sums over tokens, of weights and
    of products, take one rounding a token and four a tile (rescaling, scales, adding).
    """
    tokens = head.k.shape[2]
    largest = largest_score(head)
    score = (DIM + 1) * UNIT * largest + 2 * UNIT * largest + 4 * UNIT
    relative = math.expm1(2 * score) + (tokens + 2) * 4 * UNIT
    return 2 * relative * dense(head, mask)[1]


def assert_within(one: Any, other: Any, limit: Array) -> None:
    """Fails where two outputs differ by more; and where the limit would let anything pass."""
    off = np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64))
    assert np.isfinite(off).all() and (off <= limit).all(), (off / limit).max()
    assert (limit < 0.01).all()


def causal(tokens: int, rows: int = ROWS) -> NDArray[np.bool_]:
    return np.arange(tokens) <= tokens - rows + np.arange(rows)[:, None]


@pytest.mark.parametrize("tile", [5, 16, 64])
@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_is_softmax_attention_whatever_the_tile_and_order(tile: int, order: Any) -> None:
    head, mask = drawn(0, 3.0, 50), causal(50)
    out = attend(head, Schedule(tile=tile, order=order), mask=mask)
    assert_within(out, dense(head, mask)[0], bound(head, mask))


@pytest.mark.parametrize("threshold", [0.5, 3.0, 20.0])
def test_is_softmax_attention_whatever_the_threshold(threshold: float) -> None:
    head = drawn(1, 3.0)
    out = attend(head, Schedule(tile=5, rescale_threshold=threshold))
    assert_within(out, dense(head)[0], bound(head))


@pytest.mark.parametrize("splits", [2, 3, 7])
def test_splits_combine_to_the_whole(splits: int) -> None:
    head, mask = drawn(2, 3.0), causal(TOKENS)
    out = attend(head, Schedule(tile=16), mask=mask, splits=splits)
    assert_within(out, dense(head, mask)[0], bound(head, mask))


def test_starts_at_the_tile_of_the_first_token() -> None:
    head = drawn(3)
    mask = np.broadcast_to(np.arange(TOKENS) >= 20, (ROWS, TOKENS))
    out = attend(head, Schedule(tile=16), mask=mask, first=20)
    assert_within(out, dense(head, mask)[0], bound(head, mask))


def test_rows_that_see_nothing_are_nan_and_disturb_no_other() -> None:
    head, mask = drawn(4), causal(TOKENS)
    blind = mask & (np.arange(ROWS) != 1)[:, None]
    for splits in (1, 2):
        out, whole = (attend(head, mask=x, splits=splits) for x in (blind, mask))
        assert np.isnan(out[:, :, 1]).all()
        assert_bits_equal(out[:, :, ::2], whole[:, :, ::2])
    # Nothing in the first tile is no maximum, not a maximum of zero.
    late = np.broadcast_to(np.arange(TOKENS) >= 32, (ROWS, TOKENS))
    low = head._replace(q=head.q * 40)
    for threshold in (0.0, 5.0):
        out = attend(low, Schedule(tile=16, rescale_threshold=threshold), mask=late)
        assert_within(out, dense(low, late)[0], bound(low, late))


SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.sampled_from([0.1, 1.0, 4.0])
FEW = settings(max_examples=20)


@FEW
@given(SEEDS, SIZES)
def test_removing_the_mean_of_keys_changes_nothing(seed: int, size: float) -> None:
    head = drawn(seed, size)
    shifted = head._replace(k=head.k - head.k.mean(axis=2, keepdims=True))
    # Each difference is rounded once: by a unit of |q| . |k - mean|.
    moved = perturbed(head, UNIT * largest_score(shifted))
    assert_within(attend(head), attend(shifted), bound(head) + bound(shifted) + moved)


@FEW
@given(SEEDS, SIZES)
def test_rotating_queries_and_keys_together_changes_nothing(seed: int, size: float) -> None:
    head = drawn(seed, size)
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((DIM, DIM)))[0]
    q, k = ((x.astype(np.float64) @ turn).astype(np.float32) for x in head[:2])
    turned = head._replace(q=q, k=k)
    # Both are rounded once, after a rotation in float64.
    moved = perturbed(head, 2 * UNIT * largest_score(turned))
    assert_within(attend(head), attend(turned), bound(head) + bound(turned) + moved)


@FEW
@given(SEEDS, SIZES)
def test_the_mean_of_values_can_be_added_afterwards(seed: int, size: float) -> None:
    head = drawn(seed, size)
    mean = head.v.mean(axis=2, keepdims=True)
    centred = head._replace(v=head.v - mean)
    # Values are rounded once where the mean is taken off, outputs once where it is added.
    rounding = UNIT * (dense(centred)[1] + 2 * np.abs(mean) + np.abs(head.v).max())
    limit = bound(head) + bound(centred) + rounding
    assert_within(attend(head), attend(centred) + mean, limit)


@FEW
@given(SEEDS, SIZES)
def test_a_rotation_of_values_can_be_undone_afterwards(seed: int, size: float) -> None:
    head = drawn(seed, size)
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((DIM, DIM)))[0]
    turned = head._replace(v=(head.v.astype(np.float64) @ turn).astype(np.float32))
    # The error of the turned outputs, and of rounding values, is turned back with them.
    there = (bound(turned) + UNIT * dense(turned)[1]) @ np.abs(turn.T)
    back = attend(turned).astype(np.float64) @ turn.T
    assert_within(attend(head), back, bound(head) + there)


@FEW
@given(SEEDS, SIZES)
def test_the_order_of_tokens_changes_nothing(seed: int, size: float) -> None:
    head = drawn(seed, size)
    order = np.random.default_rng(seed).permutation(TOKENS)
    shuffled = Head(head.q, head.k[:, :, order], head.v[:, :, order])
    assert_within(attend(head), attend(shuffled), 2 * bound(head))


@FEW
@given(SEEDS, SIZES)
def test_splits_change_nothing(seed: int, size: float) -> None:
    head = drawn(seed, size)
    assert_within(attend(head), attend(head, splits=3), 2 * bound(head))


def scored(scores: list[float], v: NDArray[np.float32]) -> Head:
    """One row with these scores."""
    k = np.zeros((1, 1, len(scores), DIM), np.float32)
    k[0, 0, :, 0] = scores
    q = np.zeros((1, 1, 1, DIM), np.float32)
    q[..., 0] = 1
    return Head(q, k, v[None, None])


@pytest.mark.parametrize(
    ("scale", "want"),
    # E4M3 has 1/1024 halfway to its least number, ties to even: zero. 0.07 * 256 = 17.92 -> 18.
    [(1.0, [1, 0.3125, 0.0703125, 0.0]), (256.0, [1, 0.3125, 18 / 256, 0.25 / 256])],
)
def test_weights_are_rounded_to_their_format(scale: float, want: list[float]) -> None:
    weights = [1.0, 0.3, 0.07, 2**-10]
    head = scored([math.log(w) for w in weights], np.eye(4, dtype=np.float32))
    how = Schedule(tile=4, weight_format=E4M3, weight_scale=scale)
    out = attend(head, how)[0, 0, 0]
    np.testing.assert_allclose(out, np.array(want) / sum(weights), rtol=1e-6, atol=0)
    after = attend(head, Schedule(**{**vars(how), "row_sum": "after"}))[0, 0, 0]
    np.testing.assert_allclose(after, np.array(want) / sum(want), rtol=1e-6, atol=0)


def test_of_equal_values_a_sum_of_rounded_weights_gives_back_the_value() -> None:
    head = drawn(5, 4.0)
    head = head._replace(v=np.full_like(head.v, 1.5))
    how: dict[str, Any] = dict(tile=16, weight_format=E4M3, weight_scale=256.0)
    after = attend(head, Schedule(row_sum="after", **how))
    # Numerator and denominator are the same sum in another order: a unit a token, and four a tile.
    np.testing.assert_allclose(after, 1.5, rtol=2 * (TOKENS + 16) * UNIT)
    before = attend(head, Schedule(row_sum="before", **how))
    assert np.abs(before / 1.5 - 1).max() > 1e-3


def test_a_stale_maximum_saturates_weights_that_the_row_sum_has_whole() -> None:
    """flash-attention issue 2716: offset 8 and threshold 4, in octaves, make up to 4096 of 448."""
    octaves = 3.9
    v = np.array([[0.0], [0.0], [1.0], [0.0]], np.float32)
    head = scored([0.0, -50.0, octaves * math.log(2), -50.0], v)
    how: dict[str, Any] = dict(tile=2, weight_format=E4M3, weight_scale=256.0)
    stale: dict[str, Any] = dict(rescale_threshold=4 * math.log(2), **how)
    grown = 2**octaves
    cases = (
        (Schedule(**how), grown / (1 + grown), 2**-4),
        (Schedule(**stale), (448 / 256) / (1 + grown), 1e-6),
        (Schedule(row_sum="after", **stale), (448 / 256) / (1 + 448 / 256), 1e-6),
        (Schedule(**{**stale, "weight_scale": 16.0}), grown / (1 + grown), 2**-4),
    )
    for schedule, want, within in cases:
        assert attend(head, schedule)[0, 0, 0, 0] == pytest.approx(want, rel=within)
    # Beyond the threshold the maximum moves.
    beyond = scored([0.0, -50.0, 4.1 * math.log(2), -50.0], v)
    assert attend(beyond, Schedule(**stale))[0, 0, 0, 0] == pytest.approx(
        2**4.1 / (1 + 2**4.1), rel=2**-4
    )


@pytest.mark.parametrize("format_", [None, E4M3])
def test_a_threshold_changes_no_bit_where_no_tile_or_every_tile_exceeds_it(format_: Any) -> None:
    head = drawn(6)
    falling, rising = (
        head._replace(k=head.k * 0.01 + step * np.arange(TOKENS)[:, None] * np.float32(1))
        for step in (np.float32(-0.2), np.float32(0.2))
    )
    q = np.abs(head.q)
    for one, threshold in ((falling, 2.0), (rising, 0.1)):
        case = one._replace(q=q, k=np.asarray(one.k, np.float32))
        plain, lazy = (
            attend(case, Schedule(tile=16, weight_format=format_, rescale_threshold=x))
            for x in (0.0, threshold)
        )
        assert_bits_equal(lazy, plain)
    between = rising._replace(q=q, k=np.asarray(rising.k, np.float32))
    stale = attend(between, Schedule(tile=16, weight_format=E4M3, rescale_threshold=50.0))
    assert not np.array_equal(stale, attend(between, Schedule(tile=16, weight_format=E4M3)))


def flat(tokens: int) -> Head:
    """Equal scores: every weight is 1, no maximum moves, and the row sum is the count."""
    rng = np.random.default_rng(7)
    v = np.asarray(cast(jnp.asarray(rng.random((tokens, DIM)), jnp.float32), E4M3))
    return scored([0.0] * tokens, v)


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_one_level_is_one_chain_through_the_engine(order: Any) -> None:
    head = flat(128)
    how = Schedule(tile=32, weight_format=E4M3, accumulation="engine", order=order)
    out = attend(head, how, products=Products(pv=HOPPER, pv_formats=(E4M3, E4M3)))
    parts = head.v[0, 0].reshape(4, 32, DIM)[:: 1 if order == "ascending" else -1]
    chain = matmul(
        np.ones((1, 128), np.float32), parts.reshape(128, DIM), engine=HOPPER, a_format=E4M3,
        b_format=E4M3,
    )  # fmt: skip
    assert_bits_equal(out[0, 0], np.asarray(chain) / np.float32(128))
    scaled = Schedule(**{**vars(how), "weight_scale": 256.0})
    assert_bits_equal(
        attend(head, scaled, products=Products(pv=HOPPER, pv_formats=(E4M3, E4M3))), out
    )


@pytest.mark.parametrize(("tile", "every"), [(32, None), (64, 32), (128, 32), (48, 32)])
def test_two_levels_start_each_part_from_zero(tile: int, every: int | None) -> None:
    head = flat(128)
    how = Schedule(tile=tile, weight_format=E4M3, promote_every=every)
    out = attend(head, how, products=Products(pv=HOPPER, pv_formats=(E4M3, E4M3)))
    cuts = [
        part for start in range(0, 128, tile) for part in range(start, start + tile, every or tile)
    ]
    total = np.zeros((1, DIM), np.float32)
    for low, high in zip(cuts, [*cuts[1:], 128], strict=True):
        if low >= 128:
            break
        v = head.v[0, 0, low : min(high, 128)]
        total = total + np.asarray(
            matmul(np.ones((1, len(v)), np.float32), v, engine=HOPPER, a_format=E4M3, b_format=E4M3)
        )
    assert_bits_equal(out[0, 0], total / np.float32(128))


def test_scales_are_those_of_numbers_divided_by_them() -> None:
    head = drawn(8)
    rng = np.random.default_rng(8)
    # Powers of two, so that nothing is rounded anywhere.
    keys, values = (np.exp2(rng.integers(-4, 5, (1, HEADS, 1, 3))).astype(np.float32) for _ in "kv")
    spread = [np.repeat(x[:, :, 0], 16, axis=2)[..., None] for x in (keys, values)]
    over = Head(head.q * 4, head.k / spread[0], head.v / spread[1])
    out = attend(over, scale=np.float32(0.25), scales=(keys, values))
    assert_bits_equal(out, attend(head))
    one_level = Schedule(tile=16, accumulation="engine")
    with pytest.raises(ValueError, match=r"`scales` of values need schedule\.accumulation"):
        attend(over, one_level, scale=np.float32(0.25), scales=(keys, values))


def test_engines_multiply_queries_and_keys_too() -> None:
    head = flat(64)
    k, v = np.full_like(head.k, 1.5), head.v.copy()
    k[:, :, 32:], v[:, :, 32:] = -1.5, -v[:, :, 32:]
    # 16 products are exact in Hopper's accumulator; 0.1055 is none of E4M3's numbers.
    case = Head(np.full_like(head.q, 0.1055), k, v)
    out = attend(case, Schedule(tile=32), products=Products(qk=HOPPER, qk_formats=(E4M3, E4M3)))
    coarse = case._replace(q=np.asarray(cast(jnp.asarray(case.q), E4M3)))
    want = dense(coarse)[0]
    assert_within(out, want, bound(coarse))
    assert np.abs(want - dense(case)[0]).max() > 10 * bound(case).max()


def test_weights_and_values_have_formats_of_their_own() -> None:
    head = flat(64)
    engine = get_engine("blackwell.tcgen05.f8f6f4.fp32")
    e2m1 = get_format("float4_e2m1fn")
    how = Schedule(tile=32, weight_format=E4M3)
    mixed = attend(
        head, how, products=named_products(pv_engine=engine, pv_formats=("float8_e4m3fn", "e2m1"))
    )
    coarse = head._replace(v=np.asarray(cast(jnp.asarray(head.v), e2m1)))
    both = {"pv": engine, "pv_formats": (E4M3, E4M3)}
    assert_bits_equal(mixed, attend(coarse, how, products=Products(**both)))
    assert not np.array_equal(mixed, attend(head, how, products=Products(**both)))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            {"pv_engine": HOPPER},
            r"`pv_engine` takes several formats \(float8_e4m3fn, float8_e5m2\)",
        ),
        (
            {"qk_engine": HOPPER, "qk_formats": ("float8_e4m3fn", "float4_e2m1fn")},
            r"`qk_formats` has float4_e2m1fn; `qk_engine` takes float8_e4m3fn, float8_e5m2",
        ),
        ({"pv_formats": ("float8_e4m3fn",) * 2}, r"`pv_formats` says what an engine takes"),
    ],
)
def test_formats_of_an_engine_are_named(named: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named_products(**named)


def test_weights_of_a_tile_by_hand() -> None:
    scores = jnp.asarray([[math.log(2.0), -jnp.inf], [-jnp.inf, -jnp.inf]], jnp.float32)
    before = jnp.asarray([0.0, -jnp.inf], jnp.float32)
    found = weigh(scores, before, Schedule(weight_scale=4.0))
    np.testing.assert_allclose(found.maximum, [math.log(2.0), -math.inf], rtol=1e-6)
    np.testing.assert_allclose(found.shrink, [0.5, 0.0], rtol=1e-6)
    np.testing.assert_allclose(found.rounded, [[4.0, 0.0], [0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tile": 0}, "`tile` = 0 must be at least 1"),
        ({"weight_scale": 0.0}, "`weight_scale` = 0.0 must be above 0"),
        ({"rescale_threshold": -1.0}, "`rescale_threshold` = -1.0 must be at least 0"),
        ({"promote_every": 0}, "`promote_every` = 0 must be from 1 to tile = 1024"),
        ({"promote_every": 64, "tile": 32}, "`promote_every` = 64 must be from 1 to tile = 32"),
        ({"promote_every": 32, "accumulation": "engine"}, "one level is never promoted"),
    ],
)
def test_schedules_that_cannot_be_say_why(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**fields)
