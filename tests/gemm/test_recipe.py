"""Recipes as values: what they refuse, a user's own files, and one compilation for equal values."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.gemm import OperandPair, Recipe, gemm, get_recipe, list_recipes
from lowprec.numerics import get_format
from lowprec.scaling import cast, get_block
from tests.helpers import assert_bits_equal

CHANNEL = get_block("fp8_channel")


def everywhere(operand: Any) -> dict[str, Any]:
    pair = OperandPair(a=operand, b=operand)
    return {"fprop": pair, "dgrad": pair, "wgrad": pair}


@pytest.mark.parametrize(
    ("message", "base", "changes"),
    [
        ("output must be float32, bfloat16 or float16", "bf16", {"output": get_format("e5m2")}),
        ("promote_every = 0; at least 1", "bf16", {"promote_every": 0}),
        (
            "scales tiles of 32 along K; scales = 'output' needs 'all'",
            "mxfp8",
            {"scales": "output"},
        ),
        ("scales = 'promotion' needs promote_every", "deepseek_v3", {"promote_every": None}),
        ("promote_every = 96 does not divide", "deepseek_v3", {"promote_every": 96}),
        ("promote_every = 256 does not divide", "deepseek_v3", {"promote_every": 256}),
    ],
)
def test_contradictions_are_refused(message: str, base: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(get_recipe(base), **changes)


def test_the_message_names_role_and_operand() -> None:
    pair = OperandPair(a=CHANNEL, b=get_block("mxfp4"))
    changes: dict[str, Any] = {**everywhere(CHANNEL), "scales": "output", "dgrad": pair}
    with pytest.raises(ValueError, match=r"dgrad\.b = mxfp4"):
        dataclasses.replace(get_recipe("bf16"), **changes)


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_is_a_value(name: str) -> None:
    recipe = get_recipe(name)
    again = dataclasses.replace(recipe)
    assert again is not recipe and again == recipe and hash(again) == hash(recipe)
    assert recipe.name == name and get_recipe(recipe) is recipe
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.name = "other"  # type: ignore[misc] - frozen: that is the test


def test_bits_of_a_pair_are_the_mean() -> None:
    pair = OperandPair(a=get_block("mxfp4"), b=get_format("bfloat16"))
    assert pair.bits_per_element == (4.25 + 16) / 2


def test_equal_recipes_are_traced_once() -> None:
    traces = []

    def product(a: jax.Array, b: jax.Array, recipe: Recipe) -> jax.Array:
        traces.append(recipe.name)
        return gemm(a, b, recipe)

    compiled = jax.jit(product, static_argnames="recipe")
    a, b = jnp.ones((2, 32)), jnp.ones((32, 2))
    recipe = get_recipe("bf16")
    for same in (recipe, dataclasses.replace(recipe), get_recipe("bf16")):
        compiled(a, b, same)
    assert len(traces) == 1
    compiled(a, b, dataclasses.replace(recipe, output=get_format("float16")))
    assert len(traces) == 2


FORMAT = """
name = "e3m1"
exponent_bits = 3
mantissa_bits = 1
bias = 3
"""
BLOCK = """
name = "mine"
element = "e3m1.toml"
tile = [1, 16]
scale_format = "float8_e8m0fnu"
scale_rule = "even"
"""
RECIPE = """
name = "ours"
engine = "fp32"
output = "float32"
fprop = { a = "blocks/mine.toml", b = "blocks/e3m1.toml" }
dgrad = { a = "mxfp8_e4m3", b = "blocks/mine.toml" }
wgrad = { a = "bf16", b = "./blocks/mine.toml" }
"""


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "e3m1.toml").write_text(FORMAT)
    (tmp_path / "blocks" / "mine.toml").write_text(BLOCK)
    path = tmp_path / "ours.toml"
    path.write_text(RECIPE)
    return path


def test_a_users_files_refer_to_each_other(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.normal(size=(3, 40)), jnp.float32)
    b = jnp.asarray(rng.normal(size=(40, 2)), jnp.float32)
    recipe = get_recipe(str(ours))
    block, fmt = recipe.fprop.a, recipe.fprop.b
    assert (block.name, fmt.name) == ("mine", "e3m1")
    assert recipe.wgrad.b == block and recipe.wgrad.a == get_format("bfloat16")
    left, right = np.asarray(cast(a, block)), np.asarray(cast(b, fmt))
    assert len(np.unique(right)) <= 2**5 and not np.array_equal(left, a)
    total = np.zeros((3, 2), np.float32)
    for k in range(40):
        total = total + left[:, k : k + 1] * right[k : k + 1]
    assert_bits_equal(gemm(a, b, str(ours)), total)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('engine = "fp32"', 'engine = "fp33"', "no engine is named 'fp33'"),
        ('output = "float32"', 'outputs = "float32"', "no key is named 'outputs'"),
        ('output = "float32"', "", "missing output"),
        ('a = "mxfp8_e4m3"', 'a = "mxfp8"', "no format or block is named 'mxfp8'"),
        ('a = "mxfp8_e4m3"', "a = 3", "dgrad"),
        ('"blocks/mine.toml" }', '"blocks/yours.toml" }', "cannot read .*yours.toml"),
        ('name = "ours"', 'name = "ours"\nscales = "outputs"', "use one of 'operands'"),
    ],
)
def test_a_mistake_in_a_file_is_named(ours: Path, old: str, new: str, message: str) -> None:
    ours.write_text(RECIPE.replace(old, new))
    with pytest.raises(ValueError, match=message) as caught:
        get_recipe(str(ours))
    assert "Traceback" not in str(caught.value)
