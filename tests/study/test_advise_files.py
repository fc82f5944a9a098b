"""Recipes written as TOML come back as they were, whatever they are made of."""

import dataclasses
from pathlib import Path

import pytest

import lowprec as lp
from lowprec import catalogue
from lowprec.gemm.recipe import ROLES, Recipe, Role, get_recipe
from lowprec.scaling.block import get_format_or_block
from lowprec.study.advise_candidates import combined
from lowprec.study.advise_files import layer_recipes, recipe_toml, write_recipes


def alike(a: Recipe, b: Recipe, role: Role) -> bool:
    """Whether two recipes do the same in a role: how sums are promoted counts where they are."""
    one, two = (dataclasses.replace(x.in_role(role), name="") for x in (a, b))
    if one.promote_every is None:
        two = dataclasses.replace(two, promotion=one.promotion)
    return one == two


@pytest.mark.parametrize("kind", ["format", "block", "engine"])
def test_every_entry_under_another_name_is_written_whole(kind: str, tmp_path: Path) -> None:
    names = {"format": "elements", "block": "blocks", "engine": "engines"}[kind]
    base, seen = get_recipe("mxfp4"), 0
    for name in catalogue.names(names):  # type: ignore[arg-type] - one of the kinds
        entry = {"format": lp.get_format, "block": lp.get_block, "engine": lp.get_engine}[kind](
            name
        )
        own = dataclasses.replace(entry, name=f"my_{name}")
        try:
            pair = base.fprop if kind == "engine" else dataclasses.replace(base.fprop, a=own)
            engine = own if kind == "engine" else base.engine
            recipe = dataclasses.replace(base, name="mine", fprop=pair, engine=engine)
        except ValueError:
            continue  # no operand of a recipe, or none without more
        path = tmp_path / f"{name}.toml"
        path.write_text(recipe_toml(recipe, tmp_path), encoding="utf-8")
        assert get_recipe(str(path)) == recipe
        seen += 1
    assert seen > 30


def test_every_recipe_in_every_role_is_written_and_read(tmp_path: Path) -> None:
    for name in lp.list_recipes():
        recipe = get_recipe(name)
        if recipe.takes_history or recipe.prepare is not None:
            continue
        chosen: dict[Role, Recipe] = {role: recipe.in_role(role) for role in ROLES}
        paths = write_recipes({name: chosen}, tmp_path, {})
        written = [get_recipe(str(path)) for path in paths]
        for role in ROLES:
            own = written[0] if len(written) == 1 else next(x for x in written if role in x.name)
            assert alike(own, recipe, role), f"{name} {role}"
    assert not (tmp_path / "parts").exists()


def test_roles_that_one_recipe_cannot_hold_get_recipes_of_their_own(tmp_path: Path) -> None:
    names: dict[Role, str] = {
        "fprop": "deepseek_v3",
        "dgrad": "te_blockwise",
        "wgrad": "mxfp4",
    }
    chosen: dict[Role, Recipe] = {
        role: get_recipe(name).in_role(role) for role, name in names.items()
    }
    first, second = layer_recipes("fc", chosen)
    assert (first.name, second.name) == ("advice_fc_fprop_wgrad", "advice_fc_dgrad")
    assert first.promotion == "fma" and second.promotion == "multiply_fma"
    for role, name in names.items():
        assert alike(second if role == "dgrad" else first, get_recipe(name), role)
    # A role that nothing was chosen for is bfloat16's.
    assert alike(second, get_recipe("bf16"), "fprop")


def test_a_combination_brings_its_blocks_and_comments(tmp_path: Path) -> None:
    block = dataclasses.replace(lp.get_block("nvfp4"), name="my tile/8", tile=(1, 8))
    recipe = combined(block, get_format_or_block("block:mxint8"))
    reasons = {"x @ w": ["fprop: because", "dgrad: none"]}
    [path] = write_recipes({"x @ w": {"fprop": recipe.in_role("fprop")}}, tmp_path, reasons)
    assert path.name == "advice_x_w.toml"
    assert path.read_text().startswith("# fprop: because\n# dgrad: none\nname = ")
    found = get_recipe(str(path))
    assert found.fprop == recipe.fprop and found.dgrad == get_recipe("bf16").dgrad
    assert [x.name for x in (tmp_path / "parts").iterdir()] == ["block_my_tile_8.toml"]


def test_what_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="nothing was chosen for layer fc"):
        layer_recipes("fc", {})
    own = {"fprop": get_recipe("mxfp4").in_role("fprop")}
    with pytest.raises(ValueError, match=r"advice_a_b\.toml; rename"):
        write_recipes({"a b": own, "a/b": own}, Path(), {})  # type: ignore[arg-type] - roles
