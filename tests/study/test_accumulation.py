"""The study of accumulation: its sums, bounds, cost and rows."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from lowprec.engines import get_engine
from lowprec.gemm.gemm import gemm
from lowprec.gemm.recipe import OperandPair, get_recipe
from lowprec.numerics.format import get_format
from lowprec.study import accumulation as study
from lowprec.study.accumulation_bounds import bound_terms, exact_steps
from lowprec.study.accumulation_config import Config, Distribution, read_config
from lowprec.study.accumulation_cost import cost, pareto
from lowprec.study.accumulation_operands import Card, draw, synthesize
from lowprec.study.accumulation_swamping import sum_bounds

CONFIG = Path(__file__).parents[2] / "experiments" / "accumulation.toml"
E4M3 = get_format("float8_e4m3fn")


@pytest.fixture(scope="module")
def config() -> Config:
    whole = read_config(CONFIG)
    lengths = dataclasses.replace(whole.lengths, fused_length=())
    return dataclasses.replace(
        whole, seeds=4, rows=2, columns=3, depths=(256, 1024), fraction_bits=(9, 13),
        promote_every=(128,), lengths=lengths,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cases(config: Config) -> dict[str, tuple[study.Case, list[study.Sums]]]:
    """Same signs, random signs, and heavy tails with outlying channels."""
    cards = {"x": Card(1.0, 300.0, 19.0, 704)}
    found = {}
    for name, kind in (("U(0,1)", "uniform"), ("N(0,1)", "normal"), ("card", "card:x")):
        distribution = Distribution(name=name, a=kind, b=kind, scaled=kind == "card:x")
        case = study.prepare(name, draw(distribution, config, E4M3, cards), config)
        found[name] = case, list(study.run(case, config))
    return found


@pytest.mark.slow
def test_sums_are_those_of_gemm(
    config: Config, cases: dict[str, tuple[study.Case, list[study.Sums]]]
) -> None:
    case, sums = cases["U(0,1)"]
    (found,) = (s for s in sums if (s.fraction_bits, s.promote_every) == (13, 128))
    engine, pair = get_engine(config.engine), OperandPair(a=E4M3, b=E4M3)
    recipe = dataclasses.replace(
        get_recipe("float32"), engine=engine, promote_every=128, fprop=pair
    )  # fmt: skip
    wanted = gemm(case.operands.a[1], case.operands.b[1], recipe)
    np.testing.assert_array_equal(found.y[-1][1], np.asarray(wanted, np.float64))


@pytest.mark.slow
def test_reference_is_exact(cases: dict[str, tuple[study.Case, list[study.Sums]]]) -> None:
    for case, _ in cases.values():
        a, b = (x[0].astype(np.float64) for x in case.operands)
        wanted = sum(int(x * 512) * int(y * 512) for x, y in zip(a[0], b[:, 0], strict=True))
        assert case.exact[-1][0, 0, 0] * 512 * 512 == wanted


def test_deterministic_bound_holds(
    config: Config, cases: dict[str, tuple[study.Case, list[study.Sums]]]
) -> None:
    for case, sums in cases.values():
        for s in sums:
            terms = case.terms[s.length, s.promote_every]
            bound = terms.deterministic(s.fraction_bits, study.register_bits(s.fraction_bits))
            error = np.abs(s.y - case.exact)
            assert (error <= bound).all() and error.max() > 0
            assert (terms.probabilistic(13, 13) < terms.deterministic(13, 13)).all()


def test_bound_of_one_step_by_hand() -> None:
    """Four products, the largest 2^3: 5 terms of 2^(3 - 4), and the rounding of a sum below 15."""
    a = np.array([[[2.0, 1.0, 1.0, 1.0]]], np.float32)
    b = np.array([[[4.0], [1.0], [1.0], [-2.0]]], np.float32)
    steps = exact_steps(study.Operands(a, b), 4, -6)
    assert (steps.sums.item(), steps.magnitudes.item(), steps.largest.item()) == (8.0, 12.0, 8.0)
    terms = bound_terms(steps, 4, 0, (4,))
    assert terms.deterministic(4, 5).item() == 5 * 8 / 16 + 12 / 32


def test_truncation_shrinks_and_promotion_helps(
    config: Config, cases: dict[str, tuple[study.Case, list[study.Sums]]]
) -> None:
    case, sums = cases["U(0,1)"]
    rows = [row for s in sums for row in study.error_rows(case, s, config)]
    assert len(rows) == 2 * 2 * 2
    found = {(row.fraction_bits, row.promote_every, row.k): row for row in rows}
    assert all(row.gain_high < 0 for row in rows)
    for bits in (9, 13):
        assert found[bits, 128, 1024].relative_error < found[bits, 0, 1024].relative_error
    assert found[9, 0, 1024].relative_error > 8 * found[13, 0, 1024].relative_error
    for row in rows:
        parts = np.hypot(row.gain, row.residual)
        assert parts == pytest.approx(row.relative_error, rel=1e-9)
        assert 0 < row.relative_error <= row.deterministic_bound and row.worst_share <= 1
    never, promoted = (s for s in sums if s.fraction_bits == 13)
    paired = list(study.promotion_rows(case, never, promoted, config))
    assert [row.outcome for row in paired] == ["less", "less"]


def test_gain_and_rest_of_known_sums() -> None:
    x = np.array([[3.0, 4.0], [4.0, -3.0], [5.0, 0.0]])
    gain, residual, whole = study.gain_and_rest(0.75 * x, x)
    assert (gain.value, residual.value, whole.value) == (-0.25, 0.0, 0.25)
    gain, residual, _ = study.gain_and_rest(x + np.array([[-4.0, 3.0], [3.0, 4.0], [0.0, 5.0]]), x)
    assert gain.value == 0 and residual.value == 1


def test_front_has_no_dominated_point(
    config: Config, cases: dict[str, tuple[study.Case, list[study.Sums]]]
) -> None:
    errors = [
        row for case, sums in cases.values() for s in sums
        for row in study.error_rows(case, s, config)
    ]  # fmt: skip
    rows = list(study.front_rows(errors, 1024))
    assert len(rows) == 12 and {row.on_front for row in rows} <= {True, False}
    for name in ("U(0,1)", "card"):
        best = sorted((r for r in rows if r.distribution == name and r.on_front),
                      key=lambda r: r.cost)  # fmt: skip
        assert best and all(
            a.relative_error > b.relative_error for a, b in itertools.pairwise(best)
        )
    assert pareto([(1.0, 1.0), (1.0, 1.0), (2.0, 0.5)]) == [True, True, True]


def test_cost_grows_with_bits_and_promotion() -> None:
    assert cost(32, 14, 14, 0).per_product > cost(32, 13, 13, 0).per_product
    assert cost(32, 13, 13, 128).promotion == 32 + 297 / 4
    # A tree of three terms with 4 fraction bits: one adder of 8 bits, then one of 9.
    assert cost(2, 4, 4, 0).adder == 8 + 9


def test_synthetic_numbers_follow_their_card() -> None:
    card = Card(0.6, 5.0, 2.5, 256)
    x = synthesize(card, np.random.default_rng(0), (512, 4096))
    assert np.sqrt(np.mean(x**2)) == pytest.approx(0.6, rel=0.02)
    kurtosis = np.mean(x**4) / np.mean(x**2) ** 2 - 3
    assert 3 < kurtosis < 7
    sizes = np.sqrt(np.mean(x[:, :256] ** 2, axis=0))
    assert 1.8 < sizes.max() / np.median(sizes) < 3.5


def test_engine_is_the_catalogues_at_its_own_width() -> None:
    base = get_engine("hopper.wgmma.fp8.fp32")
    made = study.imagined(base, 13, 32)
    assert dataclasses.replace(made, name=base.name, evidence=base.evidence) == base


def test_bounds_of_sums_by_hand() -> None:
    """Running sums 1, 2, 3, 4; the first needs no rounding. u = 2^-11, and 2^-8 of bfloat16."""
    ones, u, v = np.ones((1, 4)), 2.0**-11, 2.0**-8
    nearest = sum_bounds(ones, get_engine("sequential.float16.nearest_even"), (2, 4))
    assert nearest.deterministic.tolist() == [[u * 2], [3 * u * 4]]
    np.testing.assert_allclose(nearest.probabilistic[1], 3 * u * np.sqrt(4 + 9 + 16), rtol=1e-15)
    stochastic = sum_bounds(ones, get_engine("sequential.float16.stochastic"), (4,))
    np.testing.assert_allclose(stochastic.deterministic, ((1 + 2 * u) ** 3 - 1) * 4, rtol=1e-12)
    np.testing.assert_array_equal(stochastic.probabilistic[0], nearest.probabilistic[1])
    chunks = sum_bounds(ones, get_engine("chunked.2.float16.bfloat16"), (2, 4))
    assert chunks.deterministic.tolist() == [[u * 2], [(u + v * (1 + u)) * 4]]
    squares = 2 * (2 * u) ** 2 + (4 * v) ** 2
    np.testing.assert_allclose(chunks.probabilistic[1], 3 * np.sqrt(squares), rtol=1e-15)
    with pytest.raises(ValueError, match=r"no bounds for pairwise\.float16, which sums tree"):
        sum_bounds(ones, get_engine("pairwise.float16"), (4,))


def test_bounds_of_sums_hold_in_numpys_float16() -> None:
    """NumPy accumulates one by one, each sum rounded to nearest even."""
    x = (1 + np.random.default_rng(0).uniform(-1.7, 1.7, (64, 16384))).astype(np.float16)
    depths = (256, 1024, 16384)
    at = [k - 1 for k in depths]
    running = np.add.accumulate(x, axis=1, dtype=np.float16).astype(np.float64)[:, at].T
    exact = np.cumsum(x.astype(np.float64), axis=1)[:, at].T
    bounds = sum_bounds(x, get_engine("sequential.float16.nearest_even"), depths)
    error = np.abs(running - exact)
    assert (error <= bounds.deterministic).all() and error.max() > 1
    within = np.mean(error <= bounds.probabilistic, axis=1)
    # Swamped, sums err by far more than errors of mean zero would.
    assert within[0] == within[1] == 1 and within[2] == 0


def test_errors_name_what_is_wrong(tmp_path: Path, config: Config) -> None:
    wrong = Distribution(name="x", a="cauchy", b="normal")
    with pytest.raises(ValueError, match="no numbers are called 'cauchy'; use uniform"):
        draw(wrong, config, E4M3, {})
    text = CONFIG.read_text(encoding="utf-8").replace("depths = [256,", "depths = [300,")
    (tmp_path / "x.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="must ascend in multiples of the longest"):
        read_config(tmp_path / "x.toml")
