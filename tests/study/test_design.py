"""A study's file: what it expands to, and how it says what is wrong with it."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lowprec.study.design import read_study
from lowprec.study.point_operands import Stored

EXAMPLE = Path(__file__).parents[2] / "experiments" / "study_example.toml"
PLAIN = '[[grid]]\nrecipe = "bf16"\nshape = [2, 32, 4]\n'


def study(tmp_path: Path, text: str):
    path = tmp_path / "study.toml"
    path.write_text(text)
    return read_study(path)


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    found = study(
        tmp_path,
        """
        name = "three axes"
        [[grid]]
        recipe = ["bf16", "mxfp8"]
        m = 2
        k = [32, 64]
        n = 4
        operands = ["gaussian", { distribution = "student_t", degrees = [3, 5] }]
        seed = { first = 7, count = 2 }
        """,
    )
    assert found.name == "three axes" and len(found.points) == 2 * 2 * 3 * 2
    specs = [point.spec for point in found.points.values()]
    assert Counter(spec["a"] for spec in specs) == {
        "gaussian": 8,
        "student_t(degrees=3)": 8,
        "student_t(degrees=5)": 8,
    }
    assert {(x["recipe"], x["k"], x["seed"]) for x in specs} == {
        (recipe, k, seed) for recipe in ("bf16", "mxfp8") for k in (32, 64) for seed in (7, 8)
    }
    assert all(key == point.key for key, point in found.points.items())


def test_a_point_that_two_tables_ask_for_is_there_once(tmp_path: Path) -> None:
    # The second table's engine is the recipe's own.
    assert len(study(tmp_path, f'{PLAIN}{PLAIN}engine = ["native", "recipe"]\n').points) == 1


def test_what_a_study_sets_stands_in_the_recipe(tmp_path: Path) -> None:
    found = study(
        tmp_path,
        f"""{PLAIN}
        engine = "fp32"
        promote_every = [16, "never", "recipe"]
        promotion = "multiply_add"
        order = "split_k.2"
        output = "float32"
        role = "dgrad"
        """,
    )
    recipes = [point.recipe for point in found.points.values()]
    assert sorted(str(x.promote_every) for x in recipes) == ["16", "None"]
    for recipe in recipes:
        assert (recipe.engine.name, recipe.promotion, recipe.order) == (
            "fp32",
            "multiply_add",
            "split_k.2",
        )
        assert recipe.output.name == "float32"
    assert {point.role for point in found.points.values()} == {"dgrad"}


@pytest.mark.parametrize("method", ["sobol", "random"])
def test_a_sample_draws_from_its_axes(tmp_path: Path, method: str) -> None:
    text = f"""
        [[sample]]
        method = "{method}"
        points = 32
        recipe = ["bf16", "mxfp8"]
        m = {{ low = 2, high = 8 }}
        k = {{ low = 32, high = 512, spacing = "logarithmic", multiple_of = 32 }}
        n = 4
        operands = [
          {{ distribution = "student_t", degrees = {{ low = 2.5, high = 30 }} }},
          {{ a = "gaussian", b = {{ distribution = "laplace", scale = {{ low = 1, high = 2 }} }} }},
        ]
        seed = {{ count = 1000 }}
        """
    points = list(study(tmp_path, text).points.values())
    assert len(points) == 32
    assert {x.k % 32 for x in points} == {0} and all(32 <= x.k <= 512 for x in points)
    assert {type(x.m) for x in points} == {int} and all(2 <= x.m <= 8 for x in points)
    pairs = [point.operands for point in points if isinstance(point.operands, tuple)]
    drawn = [x for pair in pairs for x in pair]
    degrees = [dict(x.arguments)["degrees"] for x in drawn if x.distribution == "student_t"]
    assert len(set(degrees)) > 5 and all(2.5 <= x <= 30 for x in degrees)
    counts = Counter(point.recipe.name for point in points)
    if method == "sobol":
        # Half of the places of a scrambled Sobol sequence lie in either half of an axis.
        assert counts == {"bf16": 16, "mxfp8": 16}
        octaves = Counter(math.floor(math.log2(x.k)) for x in points)
        assert octaves[7] + octaves[8] > 8
    again = study(tmp_path, text).points
    assert list(again) == [point.key for point in points]
    other = study(tmp_path, text.replace("points = 32", "points = 32\nsample_seed = 1")).points
    assert len(set(other) & set(again)) < 4


def test_a_layer_of_a_file_gives_its_own_shapes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(s).astype(np.float32) for s in ((3, 8), (8, 5), (3, 5)))
    tensors = {"one.x": x, "one.w": w, "one.dy": dy, "two.x": x, "two.w": w}
    np.savez(tmp_path / "dump.npz", allow_pickle=False, **tensors)
    text = '[[grid]]\nrecipe = "bf16"\noperands = { file = "dump.npz", layer = "one" }\n'
    found = study(tmp_path, text + 'role = ["fprop", "dgrad", "wgrad"]\nseed = { count = 9 }\n')
    shapes = {point.role: (point.m, point.k, point.n) for point in found.points.values()}
    assert shapes == {"fprop": (3, 8, 5), "dgrad": (3, 5, 8), "wgrad": (8, 3, 5)}
    assert len(found.points) == 3  # seeds change nothing where nothing is drawn
    both = study(tmp_path, text.replace(', layer = "one"', "")).points.values()
    assert [x.operands.layer for x in both if isinstance(x.operands, Stored)] == ["one", "two"]
    for more, said in {
        "shape = [3, 8, 5]\n": "shape belong to operands that are drawn",
        'role = "stray"\n': "use one of fprop, dgrad, wgrad",
    }.items():
        with pytest.raises(ValueError, match=said):
            study(tmp_path, text + more)
    with pytest.raises(ValueError, match="has no wgrad"):
        study(tmp_path, text.replace('"one"', '"two"') + 'role = "wgrad"\n')


def test_paths_lie_beside_the_study(tmp_path: Path) -> None:
    recipe = (Path(__file__).parents[2] / "formats" / "recipes" / "bf16.toml").read_text()
    (tmp_path / "mine.toml").write_text(recipe.replace('name = "bf16"', 'name = "mine"'))
    points = study(tmp_path, PLAIN.replace('"bf16"', '"./mine.toml"')).points.values()
    assert [point.recipe.name for point in points] == ["mine"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[grid]\n", "is not a TOML file"),
        ("", r"has no \[\[grid\]\] and no \[\[sample\]\]"),
        ("[[gird]]\n", "no key is named 'gird'; did you mean grid"),
        ("name = 3\n" + PLAIN, "name = 3; use a text"),
        ('[grid]\nrecipe = "bf16"\n', "write .*two brackets"),
        (PLAIN + "promote_evry = 4\n", "promote_evry.*did you mean promote_every"),
        (PLAIN + "points = 4\n", "no key is named 'points'"),
        ("[[grid]]\nshape = [2, 32, 4]\n", "missing recipe"),
        (PLAIN.replace("bf16", "bf17"), r"recipe: no recipe is named 'bf17'; did you mean bf16"),
        (PLAIN + 'engine = "hoper"\n', "engine: no engine is named 'hoper'"),
        (PLAIN + "engine = 3\n", "engine: got 3; use a text"),
        (PLAIN + 'role = "forward"\n', "role: got 'forward'; use one of fprop"),
        (PLAIN + 'promote_every = "always"\n', "promote_every: .*use one of never, recipe"),
        (PLAIN + 'promotion = "plus"\n', "promotion: .*use one of fma"),
        (PLAIN + 'order = "split_k"\n', r"point 1: order = 'split_k'; use sequential"),
        (PLAIN + 'output = "float8_e5m2"\n', "output must be float32, bfloat16 or float16"),
        (PLAIN + "skip_impossible = 1\n", "skip_impossible = 1; use a bool"),
        (PLAIN + "seed = -1\n", "seed = -1; use whole numbers of at least 0"),
        (PLAIN + "seed = { count = 0 }\n", "count = 0; at least 1"),
        (PLAIN + "seed = { cuont = 2 }\n", "no key is named 'cuont'; did you mean count"),
        (PLAIN + "seed = []\n", "give at least one value"),
        (PLAIN + "m = 3\n", "give either shape, or m, k and n"),
        (PLAIN.replace("[2, 32, 4]", "[2, 32]"), r"use \[M, K, N\]"),
        ('[[grid]]\nrecipe = "bf16"\nm = 2\n', r"missing shape = \[M, K, N\]"),
        (PLAIN + "seed = { low = 1, high = 4 }\n", r"seed is a range, which only a \[\[sample"),
        (PLAIN + 'operands = "gausian"\n', "no distribution is named 'gausian'"),
        (PLAIN + "operands = 3\n", "use a distribution's name, or a table"),
        (PLAIN + 'operands = { a = "gaussian" }\n', "a and b go together"),
        (PLAIN + 'operands = { a = "gaussian", c = "laplace" }\n', "no key is named 'c'"),
        (PLAIN + 'operands = { distribution = "laplace", sacle = 2 }\n', "did you mean scale"),
        (PLAIN + 'operands = { distribution = "laplace", scale = "x" }\n', "use a number"),
        (PLAIN + 'operands = { distribution = "card", rms = 1 }\n', "needs excess_kurtosis"),
        (PLAIN + 'operands = { file = "x.npz", layers = "a" }\n', "did you mean layer"),
        ("[[sample]]\n" + PLAIN[9:], "points = 0; say how many to draw"),
        ("[[sample]]\npoints = 2\nmethod = 'grid'\n" + PLAIN[9:], "use 'sobol' or 'random'"),
        ("[[sample]]\npoints = 2\nm = { low = 4, high = 2 }\n" + PLAIN[9:], "low must be below"),
        ("[[sample]]\npoints = 2\nm = { low = 1, hihg = 2 }\n" + PLAIN[9:], "did you mean high"),
        (PLAIN.replace("bf16", "te_delayed"), "needs a history of magnitudes besides operands"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        study(tmp_path, text)


def test_combinations_that_cannot_be_computed_are_left_out_where_asked(tmp_path: Path) -> None:
    text = PLAIN.replace('"bf16"', '["bf16", "fp8_tensor"]') + 'engine = "hopper.wgmma.fp8.fp32"\n'
    with pytest.raises(ValueError, match=r"point 1: .*skip_impossible = true leaves"):
        study(tmp_path, text)
    found = study(tmp_path, text + "skip_impossible = true\nseed = { count = 3 }\n")
    assert {point.recipe.name for point in found.points.values()} == {"fp8_tensor"}
    assert list(found.left_out.values()) == [3] and "bfloat16" in next(iter(found.left_out))
    with pytest.raises(ValueError, match="no combination can be computed"):
        study(tmp_path, PLAIN + 'engine = "hopper.wgmma.fp8.fp32"\nskip_impossible = true\n')


def test_the_example_is_a_study_of_thousands() -> None:
    found = read_study(EXAMPLE)
    assert len(found.points) == 2560 and not found.left_out
    assert len({point.program for point in found.points.values()}) < 20
