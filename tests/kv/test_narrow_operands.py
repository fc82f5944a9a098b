"""Caches whose numbers go to engines of 8 bits: elements are multiplied, scales come after."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.engines.matmul import matmul
from lowprec.kv import Schedule, get_kv_method
from lowprec.numerics.format import get_format
from lowprec.scaling.cast import cast
from tests.helpers import assert_bits_equal

E4M3 = get_format("float8_e4m3fn")
HOPPER = "hopper.wgmma.fp8.fp32"
PRODUCTS: dict[str, Any] = {
    "qk_engine": HOPPER,
    "qk_formats": ("float8_e4m3fn", "float8_e4m3fn"),
}
VALUES: dict[str, Any] = {
    "pv_engine": HOPPER,
    "pv_formats": ("float8_e4m3fn", "float8_e4m3fn"),
    "schedule": Schedule(tile=32, weight_format=E4M3),
}
HEADS, TOKENS, DIM = 2, 40, 32


def drawn(seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries of four heads, keys and values, whose size differs by token."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((1, 2 * HEADS, 1, DIM))
    k, v = rng.standard_normal((2, 1, HEADS, TOKENS, DIM)) * np.exp(
        rng.standard_normal((TOKENS, 1))
    )
    # There are three, which a generator does not tell.
    return tuple(jnp.asarray(x, jnp.float32) for x in (q, k, v))  # type: ignore[return-value]


def through(name: str, k: jax.Array, v: jax.Array) -> tuple[Any, Any]:
    """A fitted method, and its cache of these."""
    method = get_kv_method(name).fit([{"k": np.asarray(k), "v": np.asarray(v)}])
    return method, method.append(method.init(1, HEADS, DIM, TOKENS), k, v)


def test_scores_are_of_elements_and_scaled_after() -> None:
    q, k, v = drawn()
    method, cache = through("fp8_token", k, v)
    out = method.attend(cache, q, **PRODUCTS)
    scale = jnp.maximum(jnp.abs(k).max(-1) / 448, 1e-6)
    elements = cast(k * (1 / scale)[..., None], E4M3)
    rows = cast(q, E4M3).reshape(1, HEADS, 2, DIM)
    scores = matmul(rows, elements.swapaxes(-1, -2), engine=HOPPER, a_format=E4M3, b_format=E4M3)
    scores = np.asarray(scores * np.float32(DIM**-0.5) * scale[:, :, None], np.float64)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    values = np.asarray(method.read(cache)[1], np.float64)
    want = (weights / weights.sum(-1, keepdims=True)) @ values
    # Float32 sums of 40 products: their own rounding, and that of exp and the sum of weights.
    room = 64 * 2.0**-24 * np.abs(values).max()
    np.testing.assert_allclose(np.asarray(out).reshape(want.shape), want, rtol=0, atol=room)
    # Not degenerate: rounding queries moves the output by far more than that.
    exact = np.asarray(method.attend(cache, q)).reshape(want.shape)
    assert np.abs(exact - want).max() > 100 * room


def test_keys_of_twice_the_size_and_half_the_queries_are_the_same() -> None:
    q, k, v = drawn(1)
    method, cache = through("fp8_token", k, v)
    _, doubled = through("fp8_token", 2 * k, v)
    # Subnormal codes of queries have no half: there are none.
    q = jnp.where(jnp.abs(q) < 0.125, 0.125, q)
    assert_bits_equal(
        method.attend(cache, q, **PRODUCTS), method.attend(doubled, q / 2, **PRODUCTS)
    )


@pytest.mark.parametrize("name", ["fp8_tensor_calibrated", "fp8_head"])
@pytest.mark.parametrize("accumulation", ["tile", "engine"])
def test_the_output_follows_the_size_of_values(name: str, accumulation: Any) -> None:
    q, k, v = drawn(2)
    how = Schedule(tile=32, weight_format=E4M3, accumulation=accumulation)
    outputs = []
    for factor in (1.0, 2.0**13, 2.0**-13):
        method, cache = through(name, k, factor * v)
        out = method.attend(cache, q, **PRODUCTS | VALUES | {"schedule": how})
        outputs.append(out / factor)
    assert_bits_equal(outputs[0], outputs[1])
    assert_bits_equal(outputs[0], outputs[2])
    exact = method.attend(cache, q) / factor
    error = float(jnp.linalg.norm(outputs[0] - exact) / jnp.linalg.norm(exact))
    assert 1e-3 < error < 0.1


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("kivi_2bit", PRODUCTS, "keys of the method kivi_2bit: the newest or the first tokens"),
        ("nvfp4", PRODUCTS, "keys of the method nvfp4: the block .* has no single scale a token"),
        ("int4_token", PRODUCTS, "keys of the method int4_token: the block .* has no single scale"),
        ("turboquant_4bit", PRODUCTS, "turboquant_4bit: values are not numbers of a narrow format"),
        ("fp8_token", VALUES, "values of the method fp8_token have a scale a token"),
    ],
)
def test_what_an_engine_cannot_be_handed_is_refused(
    name: str, given: dict[str, Any], message: str
) -> None:
    q, k, v = drawn(4)
    method, cache = through(name, k, v)
    with pytest.raises(ValueError, match=message):
        method.attend(cache, q, **given)
    wide = {side: "hopper.wgmma.bf16.fp32" for side in ("qk_engine", "pv_engine")}
    assert np.isfinite(method.attend(cache, q, **wide)).all()


def test_a_cache_is_read_by_the_method_that_made_it() -> None:
    q, k, v = drawn(5)
    _, cache = through("int8_token", k, v)
    other = get_kv_method("fp8_token")
    message = "made by the method int8_token, not by fp8_token"
    for call in (
        lambda: other.attend(cache, q),
        lambda: other.read(cache),
        lambda: other.append(cache, k[:, :, :1], v[:, :, :1]),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("row_sum", ["before", "after"])
@pytest.mark.parametrize("weights", [None, "float8_e4m3fn", "float4_e2m1fn"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_infinite_scores_give_nan_whatever_weights_are_rounded_to(
    row_sum: Any, weights: str | None, bad: float
) -> None:
    q, k, v = drawn(6)
    q = jnp.abs(q)
    method, cache = through("bf16", k.at[0, 0, 7].set(bad), v)
    how = Schedule(
        tile=16, row_sum=row_sum, weight_format=None if weights is None else get_format(weights)
    )
    out = np.asarray(method.attend(cache, q, schedule=how)).reshape(HEADS, -1)
    assert np.isnan(out[0]).all() and np.isfinite(out[1]).all()
