"""One ingredient changed at a time: what is changed, and what of the error is said to move."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import lowprec as lp
from lowprec.gemm.recipe import ROLES
from lowprec.models.operands import Operands
from lowprec.scaling.block import Block
from lowprec.study import anatomy
from lowprec.study.anatomy import Change, Product, anatomy_rows, base_of, ledgers, read_config
from lowprec.study.gemm_recipes_operands import plain

TOML = Path(__file__).parents[2] / "experiments" / "recipe_anatomy.toml"


def block(x: object) -> Block:
    assert isinstance(x, Block)
    return x


def test_every_committed_change_is_a_recipe_that_differs_in_what_it_says() -> None:
    config = read_config(TOML)
    assert {x.base for x in config.change} == {"mxfp4", "nvfp4", "deepseek_v3"}
    names = [(x.base, x.ingredient, x.value) for x in config.change]
    assert len(set(names)) == len(names) > 40
    for change in config.change:
        base, recipe = lp.get_recipe(change.base), change.apply()
        changed = [getattr(recipe, x) != getattr(base, x) for x in (*ROLES, "engine")]
        assert any(changed) or recipe.promote_every != base.promote_every, recipe.name
        assert base_of(change).apply() == dataclasses.replace(
            base, name=base_of(change).apply().name
        )


def test_a_tile_keeps_what_is_one_row_or_a_whole_axis() -> None:
    recipe = Change(base="deepseek_v3", ingredient="tile", value="256", block={"tile": 256}).apply()
    assert block(recipe.fprop.a).tile == (1, 256) and block(recipe.fprop.b).tile == (256, 256)
    mixed = Change(base="mxfp4", ingredient="mixed", value="a", a={"element": "float8_e4m3fn"})
    pair = mixed.apply().wgrad
    assert (block(pair.a).element.bits, block(pair.b).element.bits) == (8, 4)


def test_what_a_recipe_refuses_is_said_with_the_change() -> None:
    wrong = Change(base="mxfp4", ingredient="tile", value="x", block={"tilde": 1})
    with pytest.raises(ValueError, match=r"mxfp4, tile: x: .*tilde"):
        wrong.apply()
    bad = Change(base="mxfp4", ingredient="rule", value="amax", block={"scale_rule": "amax"})
    with pytest.raises(ValueError, match="needs a scale format with mantissa bits"):
        bad.apply()


def test_unknown_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text(TOML.read_text().replace("outputs =", "outputz ="))
    with pytest.raises(ValueError, match=r"some\.toml: .*outputz"):
        read_config(path)


def operands() -> list[Operands]:
    rng = np.random.default_rng(0)
    draw = lambda *shape: plain(rng.standard_t(4, shape))
    return [Operands(f"fc{i}", x=draw(32, 32), w=draw(32, 32), dy=draw(32, 32)) for i in range(2)]


def test_products_are_of_three_roles_and_of_seeds() -> None:
    config = dataclasses.replace(
        read_config(TOML), layers=("fc0", "fc1"), tokens=32, vectors=32, depth=32
    )
    found = anatomy.products(config, operands())
    captured = [(x.role, x.unit) for x in found if x.source == anatomy.CAPTURED]
    assert captured == [(role, name) for role in ROLES for name in ("fc0", "fc1")]
    seeds = [x for x in found if x.source == anatomy.SYNTHETIC]
    assert len(seeds) == config.synthetic_seeds and {x.a.shape for x in found} == {(32, 32)}
    assert not np.array_equal(seeds[0].a, seeds[1].a)
    with pytest.raises(ValueError, match=r"layers = \['fc1'\]; captured are fc0"):
        anatomy.products(config, operands()[:1])


@pytest.mark.slow
def test_contributions_sum_to_the_change_of_the_whole() -> None:
    config = dataclasses.replace(read_config(TOML), outputs=64)
    on = [
        Product(anatomy.CAPTURED, "fprop", x.layer, *(plain(y) for y in x.product("fprop")))
        for x in operands()
    ]
    change = Change(
        base="mxfp4", ingredient="scale rule", value="ceil", block={"scale_rule": "ceil"}
    )
    base = ledgers(lp.get_recipe("mxfp4"), on, config)
    found = ledgers(change.apply(), on, config)
    rows = {x.term: x for x in anatomy_rows(change, change.apply(), found, base, on)}
    own = {x.term: x for x in anatomy_rows(base_of(change), lp.get_recipe("mxfp4"), base, base, on)}
    terms = [x for x in rows.values() if x.term != anatomy.TOTAL]
    total = rows[anatomy.TOTAL]
    ratios = [f.total.energy / b.total.energy for f, b in zip(found, base, strict=True)]
    assert sum(x.contribution for x in terms) == pytest.approx(np.mean(ratios), rel=1e-9)
    assert total.contribution == pytest.approx(np.mean(ratios), rel=1e-9)
    assert sum(x.moved for x in terms) == pytest.approx(np.mean(ratios) - 1, rel=1e-9)
    assert total.change_db == pytest.approx(np.mean(10 * np.log10(ratios)))
    assert total.change_low is not None and total.change_db is not None
    assert total.change_low < total.change_db and abs(total.change_db) > 0.05
    # The ceil rule clips nothing, and floor does.
    assert own["a_clipping"].decibels > -60 and rows["a_clipping"].decibels == -np.inf
    assert rows["a_clipping"].change_db is None and own["a_grid"].change_db == 0
    assert sum(x.contribution for x in own.values()) == pytest.approx(2)
    assert total.units == 2 and total.bits_per_element == 4.25
