"""Captured products summed again: their operands, and errors against exact fractions."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.gemm import gemm, get_recipe
from lowprec.models.capture import LayerOperands
from lowprec.scaling import quantize
from lowprec.study.training_replay import (
    ENGINE,
    NEVER,
    PROMOTED,
    product_of,
    replay_rows,
    some_rows,
    summed_by_engine,
)


def layer(tokens: int, depth: int, out: int) -> LayerOperands:
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
    return LayerOperands(layer="some", x=draw(tokens, depth), w=draw(depth, out),
                         dy=draw(tokens, out))  # fmt: skip


def test_operands_of_the_three_roles() -> None:
    one = layer(3, 5, 2)
    shapes = {role: tuple(x.shape for x in product_of(one, role))
              for role in ("fprop", "dgrad", "wgrad")}  # fmt: skip
    assert shapes == {
        "fprop": ((3, 5), (5, 2)), "dgrad": ((3, 2), (2, 5)), "wgrad": ((5, 3), (3, 2)),
    }  # fmt: skip


def test_only_sums_longer_than_a_promotion_are_replayed() -> None:
    assert list(replay_rows([layer(8, 128, 8)], 0)) == []
    recipe = get_recipe("fp8_tensor")
    assert summed_by_engine(recipe, NEVER).promote_every is None
    assert summed_by_engine(recipe, PROMOTED).promote_every == 128
    assert summed_by_engine(recipe, NEVER).engine.name == ENGINE


def test_some_rows_have_the_amax_of_all_of_them() -> None:
    a = np.random.default_rng(0).normal(size=(100, 7)).astype(np.float32)
    a[41, 3] = -9
    some = some_rows(a, 10)
    assert some.shape == (11, 7) and -9 in some and len(np.unique(some, axis=0)) == 11
    assert np.array_equal(some[0], a[0]) and np.array_equal(some[-1], a[-1])
    assert np.array_equal(some_rows(a, 100), a) and np.array_equal(some_rows(a, 999), a)
    whole, part = (quantize(jnp.asarray(x), "fp8_tensor") for x in (a, some))
    rows = [int(np.flatnonzero((a == x).all(1))[0]) for x in some]
    assert np.array_equal(np.asarray(whole.codes)[rows], part.codes)


@pytest.mark.slow
def test_promotion_takes_most_of_the_engines_error_away() -> None:
    one = layer(4, 1024, 4)
    rows = {(row.recipe, row.promote_every): row for row in replay_rows([one], 7)}
    assert set(rows) == {
        ("recipe:deepseek_v3", 128), ("recipe:fp8_tensor", 128), ("recipe:fp8_tensor", 0),
    }  # fmt: skip
    for row in rows.values():
        assert (row.step, row.role, row.m, row.k, row.n) == (7, "fprop", 4, 1024, 4)
        assert 0.01 < row.quantization < 0.06 and row.added < 0.02 * row.quantization * 10
    never, often = rows["recipe:fp8_tensor", 0], rows["recipe:fp8_tensor", 128]
    assert 0 < 3 * often.added < never.added < 0.01 and never.largest > never.added


@pytest.mark.slow
def test_the_reference_is_the_sum_of_the_quantized_operands_in_fractions() -> None:
    one = layer(2, 256, 3)
    a, b = product_of(one, "fprop")
    exact = np.asarray(gemm(a, b, get_recipe("fp8_tensor_exact"), out_dtype=jnp.float32))
    left, right = (quantize(jnp.asarray(x), "fp8_tensor") for x in (a, b))
    left, right = (np.asarray(x.dequantize()) for x in (left, right))
    for i in range(2):
        for j in range(3):
            total = sum(
                Fraction(float(x)) * Fraction(float(y))
                for x, y in zip(left[i], right[:, j], strict=True)
            )
            assert exact[i, j] == np.float32(float(total))
