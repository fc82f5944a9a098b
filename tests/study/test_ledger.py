"""The ledger: term by term against fractions, its sums, the bits of `gemm`, and what it refuses."""

import dataclasses
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

import lowprec as lp
from lowprec.gemm import gemm, get_recipe, list_recipes
from lowprec.gemm.gemm import summation
from lowprec.study.ledger import ledger
from lowprec.study.ledger_operand import read_sides
from lowprec.study.ledger_terms import TERMS, Ledger
from tests.helpers import assert_bits_equal, graded
from tests.study.ledger_oracle import exact_ledger, in_role

KEY = jax.random.key(5)
FAST = {("deepseek_v3", None)}


def operands(m: int = 2, k: int = 160, n: int = 2, seed: int = 0) -> tuple[Any, Any]:
    """Normal operands whose columns differ in size, with an outlier, a zero and a tiny number."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(m, k)) * np.exp(0.5 * rng.normal(size=k))
    a[0, 7] *= 20
    a[-1, :2] = [0.0, 2.0**-140]
    b = rng.normal(size=(k, n)) / np.exp(0.5 * rng.normal(size=(k, 1)))
    return a.astype(np.float32), b.astype(np.float32)


HALF = lp.OperandPair(a=lp.get_format("float16"), b=lp.get_format("float16"))
CASES: list[tuple[str, str | None, str, dict[str, Any]]] = [
    ("deepseek_v3", None, "fprop", {}),
    ("nvfp4", None, "fprop", {}),
    ("deepseek_v3_inference", None, "fprop", {}),
    ("te_blockwise", None, "wgrad", {}),
    ("deepseek_v3", "fp32", "fprop", {"promotion": "multiply_add"}),
    ("mxfp4", None, "fprop", {}),
    ("mxfp4", "blackwell.tcgen05.mxf4.fp32", "fprop", {}),
    ("nvfp4", "blackwell.tcgen05.nvf4.fp32", "fprop", {}),
    ("nvfp4", "rtx_blackwell.mma.nvf4.fp32", "fprop", {}),
    ("mxfp8", "blackwell.tcgen05.mxf8f6f4.fp32", "dgrad", {}),
    ("fp8_tensor", None, "fprop", {}),
    ("fp8_tensor", "hopper.wgmma.fp8.fp32", "fprop", {}),
    ("fp8_tensor", "hopper.mma.fp8.fp32", "fprop", {}),
    ("bf16", "hopper.wgmma.fp16.fp16", "fprop", {"fprop": HALF}),
    ("fp8_tensor", "fp32", "fprop", {"order": "split_k.3"}),
    ("te_current", None, "wgrad", {}),
    ("bf16", "cdna3.mfma.bf16.fp32", "fprop", {}),
    ("bf16", "kulisch", "fprop", {"output": lp.get_format("float32")}),
    ("bf16", "ampere.mma.tf32.fp32", "fprop", {}),
    ("mxfp4_h32", None, "fprop", {}),
    ("nvfp4_training", None, "wgrad", {}),
    ("te_nvfp4_row_scaled", None, "fprop", {}),
    ("int8_dynamic", None, "dgrad", {}),
    ("weight_only_nf4", None, "fprop", {}),
]


def _id(case: tuple[str, str | None, str, dict[str, Any]]) -> str:
    name, engine, role, changes = case
    return "-".join([name, engine or "own", role, *changes])


@pytest.mark.parametrize(
    "case",
    graded(CASES, fast=[x for x in CASES if x[:2] in FAST and not x[3]], name=_id),
)
def test_every_term_is_exact(case: tuple[str, str | None, str, dict[str, Any]]) -> None:
    name, engine, role, changes = case
    a, b = operands()
    recipe = get_recipe(name)
    if engine is not None:
        changes = {**changes, "engine": lp.get_engine(engine)}
    recipe = in_role(recipe, role, **changes)
    key = KEY if recipe.stochastic else None
    found = ledger(a, b, recipe, key=key)
    sides = read_sides(recipe, "fprop", jnp.asarray(a), jnp.asarray(b), key)
    gains = sides[0].gain, sides[1].gain
    want = exact_ledger(a, b, recipe, gains, key)
    for i, j in np.ndindex(found.output.shape):
        assert Fraction(float(found.output[i, j])) == want[i][j]["output"]
        for term in found.terms:
            got = int(term.integers[i, j]) * Fraction(2) ** found.unit
            assert got == want[i][j][term.name], (term.name, i, j)
    assert_bits_equal(found.output, np.asarray(gemm(a, b, recipe, key=key)))
    assert found.check() == a.shape[0] * b.shape[1]
    assert abs(found["total"].decibels) < 200 and found.total.energy > 0


def test_gains_are_least_squares() -> None:
    a, b = operands()
    side, _ = read_sides(get_recipe("mxfp4"), "fprop", jnp.asarray(a), jnp.asarray(b), None)
    quantized, given = side.stands * side.tensor, side.given
    slope = np.sum(quantized * given) / np.sum(given * given)
    assert slope - 1 == pytest.approx(side.gain, rel=1e-9)
    assert -0.1 < side.gain < -0.001


@pytest.fixture(scope="module")
def sampled() -> tuple[Ledger, NDArray[Any], NDArray[Any]]:
    a, b = operands(40, 96, 30, seed=3)
    return ledger(a, b, "mxfp8", outputs=60, seed=1), a, b


def test_a_sample_is_of_the_whole_product(sampled: tuple[Ledger, Any, Any]) -> None:
    found, a, b = sampled
    assert found.output.size <= 60 and found.shape == (40, 96, 30)
    here = np.ix_(found.rows, found.columns)
    assert_bits_equal(found.output, np.asarray(gemm(a, b, "mxfp8"))[here])
    wide = (a.astype(np.float64) @ b.astype(np.float64))[here]
    np.testing.assert_allclose(found.exact, wide, rtol=1e-12)
    again = ledger(a, b, "mxfp8", outputs=60, seed=2)
    assert not np.array_equal(again.rows, found.rows)


def test_the_numbers_of_terms_are_sums_over_outputs(sampled: tuple[Ledger, Any, Any]) -> None:
    found, _, _ = sampled
    assert [term.name for term in found.terms] == list(TERMS)
    y, total = found.exact, found.total.values
    np.testing.assert_allclose(total, found.output.astype(np.float64) - y, rtol=1e-12)
    for term in (*found.terms, found.total):
        v = term.values
        assert term.energy == pytest.approx(np.sum(v * v))
        assert term.share == pytest.approx(np.sum(v * v) / np.sum(total * total))
        assert term.part == pytest.approx(np.sum(v * total) / np.sum(total * total), abs=1e-12)
        assert term.gain == pytest.approx(np.sum(v * y) / np.sum(y * y), abs=1e-12)
    assert sum(term.part for term in found.terms) == pytest.approx(1)
    assert found["a_grid"].share > 0.1 and found["a_clipping"].energy > 0
    assert "a_grid" in str(found) and "transform" not in str(found)
    with pytest.raises(KeyError, match="terms are a_gain"):
        found["grid"]


def test_check_notices_a_changed_integer(sampled: tuple[Ledger, Any, Any]) -> None:
    found, _, _ = sampled
    assert found.check() == found.output.size
    first = found.terms[0]
    integers = first.integers.copy()
    integers[1, 2] += 1
    terms = (dataclasses.replace(first, integers=integers), *found.terms[1:])
    with pytest.raises(ArithmeticError, match=r"output \(1, 2\)"):
        dataclasses.replace(found, terms=terms).check()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda a, b: (np.where(a > 2, np.inf, a), b, "mxfp8"), r"`a` is inf at \(0, "),
        (lambda a, b: (a, np.where(b > 2, np.nan, b), "mxfp8"), r"`b` is nan at \("),
        (lambda a, b: (a * 1e30, b * 1e30, "float32"), "the output is not finite"),
        (lambda a, b: (a[None], b, "mxfp8"), r"`a` of shape \(1, 2, 160\).*two matrices"),
        (lambda a, b: (a, b[:-1], "mxfp8"), "do not multiply"),
        (lambda a, b: (a, b, "mxfp4_stochastic"), "needs `key`"),
    ],
)
def test_refusals(arguments: Any, message: str) -> None:
    a, b, recipe = arguments(*operands())
    with pytest.raises(ValueError, match=message):
        ledger(a.astype(np.float32), b.astype(np.float32), recipe)


def test_refused_arguments() -> None:
    a, b = operands()
    with pytest.raises(ValueError, match="`outputs` = 0; at least 1"):
        ledger(a, b, "mxfp8", outputs=0)
    with pytest.raises(ValueError, match=r"stream_k\.7' without promote_every"):
        ledger(a, b, "fp8_tensor", engine="fp32", order="stream_k.7")
    with pytest.raises(ValueError, match="`role` = 'forward'"):
        ledger(a, b, "mxfp8", role="forward")  # type: ignore[arg-type] - what is refused


@pytest.mark.slow
def test_stream_k_is_cut_where_the_whole_product_is() -> None:
    a, b = operands(140, 256, 130, seed=4)
    options: dict[str, Any] = {"order": "stream_k.3", "engine": "fp32"}
    found = ledger(a, b, "deepseek_v3", outputs=300, **options)
    want = np.asarray(gemm(a, b, "deepseek_v3", **options))[np.ix_(found.rows, found.columns)]
    assert_bits_equal(found.output, want)
    assert found["promotion"].energy > 0


def representatives() -> list[str]:
    """One recipe for each way in which products are summed."""
    found: dict[Any, str] = {}
    for name in list_recipes():
        recipe = get_recipe(name)
        if not recipe.takes_history and recipe.prepare is None:
            found.setdefault(summation(recipe.in_role("fprop"), "fprop"), name)
    return list(found.values())


@pytest.mark.parametrize("name", graded(representatives(), every=3))
def test_a_ledger_of_every_way_to_sum(name: str) -> None:
    a, b = operands(24, 300, 20, seed=6)
    a[-1, :2] = 1.0
    recipe = get_recipe(name)
    key = KEY if recipe.stochastic else None
    found = ledger(a, b, recipe, key=key, outputs=100)
    want = np.asarray(gemm(a, b, recipe, key=key))[np.ix_(found.rows, found.columns)]
    assert_bits_equal(found.output, want)
    assert found.check() == 100
    assert len(np.unique(found.output)) > 20
