"""All recipes on the same products: what is measured, kept and concluded."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import lowprec as lp
from lowprec.gemm.recipe import ROLES, Role
from lowprec.models.operands import Operands
from lowprec.study import gemm_recipes, gemm_recipes_front
from lowprec.study.gemm_recipes import Treatment, UnitRow, quantized, treatments
from lowprec.study.gemm_recipes_operands import (
    FAMILIES,
    Group,
    Pair,
    captured_group,
    plain,
    read_config,
    synthetic_groups,
)
from lowprec.study.gemm_recipes_units import Units
from lowprec.study.matmul_bound import least_rate

TOML = Path(__file__).parents[2] / "experiments" / "gemm_recipes.toml"


def layer(name: str = "fc", seed: int = 0) -> Operands:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: plain(rng.standard_t(4, shape))
    return Operands(name, x=draw(64, 128), w=draw(128, 48), dy=draw(64, 48))


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("te_mxfp8_dequantized_backward", "dgrad"),
        ("bitnet_b158", "fprop"),
        pytest.param("nvfp4_rht16", "wgrad", marks=pytest.mark.slow),
        pytest.param("deepseek_v3", "fprop", marks=pytest.mark.slow),
        pytest.param("quarot_w4a4_h128", "fprop", marks=pytest.mark.slow),
        pytest.param("weight_only_int4_asymmetric_g128", "fprop", marks=pytest.mark.slow),
    ],
)
def test_the_error_is_that_of_the_recipe_but_for_its_sums(name: str, role: Role) -> None:
    recipe, (a, b) = lp.get_recipe(name), layer().product(role)
    of_a, of_b = treatments(getattr(recipe, role))
    left = quantized(plain(a), of_a, 0, 0).astype(np.float64)
    right = quantized(plain(b.T), of_b, 0, 1).astype(np.float64)
    # Copies are of the operands' type.
    first, second = (jnp.asarray(x, jnp.bfloat16) for x in (a, b))
    y = lp.gemm(first, second, recipe, role=role, engine="native", out_dtype=jnp.float32)
    error = np.abs(np.asarray(y, np.float64) - left @ right.T)
    assert np.all(error <= 1e-5 * (np.abs(left) @ np.abs(right).T))
    assert 10 < lp.metrics.sqnr_db(left @ right.T, a.astype(float) @ b) < 60 or "bitnet" in name


@pytest.mark.slow
def test_random_words_differ_between_operands_and_signs_do_not() -> None:
    x = plain(np.random.default_rng(0).standard_normal((16, 128)))
    how = Treatment(lp.get_block("mxfp4_h64_stochastic"), None)
    first, again, other = (quantized(x, how, 0, side) for side in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    # With equal signs the turned errors are on the same grid: both are off by whole steps.
    assert 8 < lp.metrics.sqnr_db(first, x) < 20
    assert not np.array_equal(quantized(x, how, 1, 0), first)


def test_what_is_measured_and_kept(tmp_path: Path) -> None:
    recipes = [lp.get_recipe(x) for x in ("bf16", "mxfp4", "mxfp4_exact", "weight_only_mxfp4")]
    group = captured_group([layer("one"), layer("two", 1)], "fprop")
    units = Units(tmp_path / "units.csv")
    for rows in gemm_recipes.measure_group(group, recipes, 16, units.done(group, 2)):
        units.add(rows)
    assert {row.pair for row in units.rows} == {"bf16", "mxfp4", "weight_only_mxfp4"}
    found = {(row.pair, row.unit): row for row in units.rows}
    assert found["bf16", "one"].sqnr_db == np.inf
    assert 12 < found["mxfp4", "one"].sqnr_db < found["weight_only_mxfp4", "one"].sqnr_db < 24
    assert found["mxfp4", "one"] != found["mxfp4", "two"]
    # A line that was cut off is measured again, and nothing else.
    path = tmp_path / "units.csv"
    text = path.read_text()
    path.write_text(text[:-5])
    again = Units(path)
    assert again.rows == units.rows[:-1] and path.read_text() == text[: text[:-1].rfind("\n") + 1]
    assert again.done(group, 2) == {row.pair for row in units.rows[:4]}
    rows = [
        r for x in gemm_recipes.measure_group(group, recipes, 16, again.done(group, 2)) for r in x
    ]
    assert rows == units.rows[-2:]


def unit(pair: str, sqnr: float, seed: int, error: float = 1e-2) -> UnitRow:
    return UnitRow(
        family="gaussian", role="fprop", k=64, unit=f"seed {seed}", pair=pair, sqnr_db=sqnr,
        gain=-0.01, residual_sqnr_db=sqnr + 1, product_error=error,
    )  # fmt: skip


def test_rows_say_what_is_on_the_front() -> None:
    names = ("mxfp4", "mxfp4_exact", "nvfp4", "mxfp6", "mxfp8")
    at = {"mxfp4": 18.0, "nvfp4": 20.0, "mxfp6": 31.0, "mxfp8": 30.9}
    noise = (-0.5, 0.5, 0.1)
    rows = [unit(x, at[x] + noise[i] * (1 + (x == "mxfp8")), i) for x in at for i in range(3)]
    found = gemm_recipes_front.recipe_rows(rows, [lp.get_recipe(x) for x in names])
    by = {row.recipe.removeprefix("recipe:"): row for row in found}
    states = {name: row.front for name, row in by.items()}
    assert states == {**dict.fromkeys(names[:4], "on"), "mxfp8": "tied"}
    assert by["mxfp4_exact"].alike == "recipe:mxfp4"
    assert by["mxfp8"].behind_low < 0 < by["mxfp8"].behind_db
    nvfp4 = by["nvfp4"]
    assert nvfp4.sqnr_low < 20.1 < nvfp4.sqnr_high and nvfp4.residual_sqnr_db == pytest.approx(
        21.033, abs=1e-3
    )
    assert nvfp4.excess_bits == pytest.approx(4.5 - least_rate(1e-2))
    with pytest.raises(ValueError, match="gaussian fprop K = 64 lacks mxfp8 on some of 3 units"):
        gemm_recipes_front.recipe_rows(rows[:-1], [lp.get_recipe(x) for x in names])


def test_scales_of_rows_count_at_each_products_own_depth() -> None:
    recipes = [lp.get_recipe(x) for x in ("int8_dynamic", "mxfp8", "te_current")]
    rows = [
        dataclasses.replace(unit(recipe.name, 30.0 + i, i), family="captured", k=k)
        for recipe in recipes
        for i, k in enumerate((64, 256))
    ]
    found = gemm_recipes_front.recipe_rows(rows, recipes)
    # int8_dynamic has a float32 scale a row of either operand; a scale of a matrix is not counted.
    assert [(x.bits_per_element, x.bits_a, x.bits_b) for x in found] == [
        (8 + (32 / 64 + 32 / 256) / 2,) * 3, (8.25, 8.25, 8.25), (8, 8, 8),
    ]  # fmt: skip
    assert {row.k for row in found} == {0}


def test_intervals_are_students_t_whatever_the_number_of_units() -> None:
    for count, quantile in ((4, 3.182446), (17, 2.119905), (29, 2.048407)):
        x = np.random.default_rng(count).standard_normal(count)
        mean, low, high = gemm_recipes_front.spread(x)
        half = quantile * x.std(ddof=1) / np.sqrt(count)
        assert (mean, high - low) == pytest.approx((x.mean(), 2 * half), rel=1e-6)
        assert mean - low == pytest.approx(high - mean)


def test_a_recipe_far_behind_is_behind() -> None:
    sqnr = {"good": np.array([20.0, 21.0]), "bad": np.array([10.0, 11.01])}
    places = gemm_recipes_front.front(sqnr, {"good": 4.0, "bad": 4.0})
    assert places["good"][0] == "on" and places["bad"][0] == "behind"
    assert places["bad"][1][0] == pytest.approx(9.995)


def test_nothing_lost_is_on_the_front_at_its_fewest_bits() -> None:
    none = np.array([np.inf, np.inf])
    sqnr = {"narrow": none, "wide": none, "lossy": np.array([20.0, 21.0])}
    places = gemm_recipes_front.front(sqnr, {"narrow": 16.0, "wide": 32.0, "lossy": 16.0})
    assert [places[x] for x in sqnr] == [
        ("on", (0, 0, 0)), ("behind", (0, 0, 0)), ("behind", (np.inf, np.inf, np.inf)),
    ]  # fmt: skip


def test_families_have_the_moments_that_they_are_named_for() -> None:
    rng = np.random.default_rng(0)
    moments = {}
    for name, (draw, _) in FAMILIES.items():
        x = draw(rng, (128, 2048))
        moments[name] = np.mean(x**2), np.mean(x**4) / np.mean(x**2) ** 2
    assert moments["gaussian"] == pytest.approx((1, 3), rel=0.03)
    assert moments["laplace"] == pytest.approx((1, 6), rel=0.05)
    assert moments["student_t"][0] == pytest.approx(1, rel=0.15) and moments["student_t"][1] > 12
    # 1 % of channels at 20: 0.99 + 4, and 8 of 262144 numbers at 300.
    assert moments["outlier_channels"][0] == pytest.approx(4.99, rel=0.3)
    assert moments["massive_activations"][0] == pytest.approx(1 + 8 * 9e4 / 2**18, rel=0.01)


def test_the_committed_parameters_make_every_group() -> None:
    config = dataclasses.replace(read_config(TOML), vectors=4, card_layer="fc")
    groups = list(synthetic_groups(config, [layer()]))
    assert [g.family for g in groups[:5]] == list(config.families)
    cards = [(g.role, g.k) for g in groups[5:]]
    first, *rest = config.card_depths
    expected = [("fprop", k) for k in (first, *rest)] + [(role, first) for role in ROLES[1:]]
    assert cards == expected and rest
    pair: Pair = groups[0].pairs()[1]
    assert pair.unit == "seed 1" and pair.a.shape == pair.b.shape == (4, config.depth)
    assert not np.array_equal(pair.a, pair.b) and isinstance(groups[0], Group)
    with pytest.raises(ValueError, match="card_layer = 'fc'; captured are other"):
        list(synthetic_groups(config, [layer("other")]))


def test_unknown_keys_and_families_are_refused(tmp_path: Path) -> None:
    text = TOML.read_text()
    path = tmp_path / "some.toml"
    path.write_text(text.replace('"laplace"', '"cauchy"'))
    with pytest.raises(ValueError, match=r"families = \['cauchy'\]; there are gaussian"):
        read_config(path)
    path.write_text(text.replace("vectors", "vektors"))
    with pytest.raises(ValueError, match=r"some\.toml: .*vektors"):
        read_config(path)
