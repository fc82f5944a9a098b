"""Promotion in floats against promotion on integers, and when floats are not enough."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowprec.engines import get_engine
from lowprec.gemm import gemm, get_recipe, promotion, summation
from lowprec.gemm.gemm import multiply_operands
from lowprec.gemm.operand import Operand
from lowprec.gemm.recipe import Recipe
from lowprec.numerics import float32, get_format
from lowprec.scaling import cast
from tests.helpers import assert_bits_equal
from tests.scaling.helpers import slow_if

PROMOTIONS = ("fma", "multiply_add", "multiply_multiply_add", "multiply_fma")
SHAPE = (64, 64)


def recipe(how: str, engine: str = "native") -> Recipe:
    changes = {"engine": get_engine(engine), "promotion": how, "promote_every": 32}
    return dataclasses.replace(get_recipe("deepseek_v3"), **changes)


@functools.cache
def both_ways(how: str, scales: int) -> jax.stages.Wrapped:
    """Both results on bits; of scales there are none, one of rows, or both."""

    def run(total: jax.Array, partial: jax.Array, rows: jax.Array, columns: jax.Array) -> object:
        given = rows if scales else None, columns if scales > 1 else None
        ways = (
            promotion.add_promoted(total, partial, *given, how, x) for x in (jnp.bool_(1), None)
        )
        return tuple(ways)

    return jax.jit(run)


def drawn(rng: np.random.Generator, shape: tuple[int, int], spread: int) -> np.ndarray:
    """Full significands of exponents within a spread, a tenth of them zeros of either sign."""
    x = rng.uniform(1, 2, shape) * np.exp2(rng.integers(-spread, spread + 1, shape))
    return (x * rng.choice([-1, 1], shape) * (rng.random(shape) > 0.1)).astype(np.float32)


@pytest.mark.parametrize("scales", [0, pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("how", slow_if(PROMOTIONS, PROMOTIONS[1:]))
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0, 1, 4, 12]))
def test_floats_are_integers(how: str, scales: int, seed: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    total, partial = drawn(rng, SHAPE, spread), drawn(rng, SHAPE, spread)
    rows = np.abs(drawn(rng, (SHAPE[0], 1), spread))
    columns = np.abs(drawn(rng, (1, SHAPE[1]), spread))
    # Half of the totals cancel all but some last places of what is added to them.
    factor = (rows if scales else np.float32(1)) * (columns if scales > 1 else np.float32(1))
    near = -(partial * factor) * rng.choice(
        np.array([1, 1 + 2**-23, 1 - 2**-20], np.float32), SHAPE
    )
    total = np.where(rng.random(SHAPE) < 0.5, near, total).astype(np.float32)
    bits = (x.view(np.uint32) for x in (total, partial, rows, columns))
    floats, integers = both_ways(how, scales)(*bits)
    assert_bits_equal(floats, integers)
    assert np.mean(np.asarray(integers) != total.view(np.uint32)) > 0.5


def operands(a_power: int, b_power: int, scale_powers: tuple[int, int]) -> tuple[Operand, Operand]:
    """Numbers of E4M3 and scales of 24 bits, both times powers of two."""
    rng = np.random.default_rng(0)
    shapes = ((16, 96), (96, 24))
    out = []
    for shape, own, power in zip(shapes, (a_power, b_power), scale_powers, strict=True):
        x = np.asarray(cast(rng.standard_normal(shape).astype(np.float32) * 100, "float8_e4m3fn"))
        scales = rng.uniform(1, 2, (1, shape[0] if not out else shape[1])).astype(np.float32)
        # numpy keeps subnormals, and turns to Inf what is too large.
        with np.errstate(all="ignore"):
            x = np.ldexp(x, own).astype(np.float32)
            scales = np.ldexp(scales, power).astype(np.float32)
        one = jnp.asarray(scales.T if not out else scales).view(jnp.uint32)
        out.append(Operand(jnp.asarray(x), one))
    return out[0], out[1]


POWERS = [
    *((0, 0, (power, 0)) for power in range(-149, 128, 12)),
    *((0, 0, (power, power)) for power in range(-74, 64, 6)),
    *((power, 0, (0, 0)) for power in range(-140, 120, 12)),
    *((power, power, (-power, -power)) for power in range(-66, 60, 6)),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "name", "every"),
    [*((how, "deepseek_v3", 128) for how in PROMOTIONS), ("fma", "mxfp8", 256)],
)
def test_tiles_of_native_are_promoted_as_its_products(
    how: str, name: str, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = jax.random.normal(jax.random.key(0), (530, 600))
    b = jax.random.normal(jax.random.key(1), (600, 140))
    changes = {"engine": get_engine("native"), "promotion": how, "promote_every": every}
    one = dataclasses.replace(get_recipe(name), **changes)
    got = gemm(a, b, one)
    monkeypatch.setattr(summation, "_in_tiles", lambda *given: False)
    jax.clear_caches()
    assert_bits_equal(got, gemm(a, b, one))
    exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    error = np.asarray(got, np.float64) - exact
    assert 0.001 < np.linalg.norm(error) / np.linalg.norm(exact) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("how", PROMOTIONS)
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_is_as_on_integers(
    bad: float, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = operands(0, -100, (0, 0))
    left = left._replace(values=left.values.at[3, 4].set(bad))
    one = recipe(how)
    got = jax.jit(lambda *given: multiply_operands(*given, one))(left, right)
    for module in (summation, importlib.import_module("lowprec.gemm.gemm")):
        monkeypatch.setattr(module, "within_range", lambda *given: None)
    jax.clear_caches()
    want = jax.jit(lambda *given: multiply_operands(*given, one))(left, right)
    assert_bits_equal(got, want)
    assert not np.isfinite(np.asarray(want, np.float32)).all()


@pytest.mark.slow
@pytest.mark.parametrize("how", PROMOTIONS)
def test_floats_are_used_where_they_are_right(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = recipe(how)
    run = jax.jit(lambda left, right: summation.sum_products(left, right, one))
    safe = jax.jit(lambda left, right: promotion.within_range(left, right, one.engine, 32))
    found = [(run(*operands(*x)), bool(safe(*operands(*x)))) for x in POWERS]
    monkeypatch.setattr(summation, "within_range", lambda *given: None)
    exact = jax.jit(lambda left, right: summation.sum_products(left, right, one))
    for powers, (got, _) in zip(POWERS, found, strict=True):
        assert_bits_equal(got, exact(*operands(*powers)))
    used = [safe for _, safe in found]
    assert 0.2 < np.mean(used) < 0.8 and used[POWERS.index((0, 0, (-5, 0)))]


def test_what_floats_cannot_do_is_left_to_integers() -> None:
    engine = get_engine("native")
    safe = lambda *powers: bool(promotion.within_range(*operands(*powers), engine, 32))  # type: ignore[arg-type] - three
    assert safe(0, 0, (0, 0)) and safe(0, 0, (-20, -20)) and safe(0, 0, (40, 40))
    assert not safe(0, 0, (-149, 0)) and not safe(-70, -70, (0, 0)) and not safe(60, 60, (0, 0))
    left, right = operands(0, 0, (0, 0))
    nothing = jnp.zeros_like(right.values)
    partners = (right, right._replace(values=right.values * 2.0**-100), Operand(nothing))
    for bad in (np.nan, np.inf):
        broken = left._replace(values=left.values.at[3, 4].set(bad))
        assert not any(promotion.within_range(broken, x, engine, 32) for x in partners)
    infinite = Operand(left.values, jnp.full((16, 1), float32.INFINITY, jnp.uint32))
    assert not any(promotion.within_range(infinite, x, engine, 32) for x in partners)
    zeros = Operand(jnp.zeros_like(left.values), jnp.zeros((16, 1), jnp.uint32))
    assert promotion.within_range(zeros, right, engine, 32)


def test_engines_that_may_overflow_below_float32_are_left_to_integers() -> None:
    left, right = operands(0, 0, (0, 0))
    narrow = dataclasses.replace(get_engine("fp32"), output=get_format("float16"))
    assert promotion.within_range(left, right, narrow, 32) is None
    codes = left._replace(block_scales=jnp.zeros((16, 3), jnp.uint8))
    assert promotion.within_range(codes, right, get_engine("native"), 32) is None
