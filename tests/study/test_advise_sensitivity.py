"""Bits spread over layers: against all choices there are, and what a file of measurements says."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from lowprec.gemm.gemm import gemm
from lowprec.gemm.recipe import get_recipe
from lowprec.models.operands import Operands
from lowprec.study.advise import Advice, advise
from lowprec.study.advise_choice import Goal
from lowprec.study.advise_sensitivity import (
    Measured,
    read_sensitivity,
    sensitivities,
    spread,
    spread_by,
)

RECIPES = [get_recipe(name) for name in ("mxfp4", "mxfp6", "mxfp8")]
WIDTHS = {"layers.0.mlp.up": 32, "layers.0.mlp.down": 8, "layers.1.mlp.up": 16}


@pytest.fixture(scope="module")
def layers() -> list[Operands]:
    rng = np.random.default_rng(3)
    shapes = {name: ((16, 32), (32, width)) for name, width in WIDTHS.items()}
    drawn = {n: [rng.standard_t(5, x).astype(np.float32) for x in y] for n, y in shapes.items()}
    return [Operands(name, x=x, w=w) for name, (x, w) in drawn.items()]


@pytest.fixture(scope="module")
def fronts(layers: list[Operands]) -> list[Advice]:
    return list(advise(layers, RECIPES, Goal(), combine=False))


def measured(layer: str, divergence: float, recipe: str = "mxfp4") -> Measured:
    return Measured(layer=layer, recipe=recipe, divergence=divergence)


def relative_error(advice: Advice, recipe: str) -> float:
    ((a, b),) = advice.product.select.pairs
    exact = a.astype(np.float64) @ b.astype(np.float64)
    return float(np.square(np.asarray(gemm(a, b, recipe)) - exact).sum() / np.square(exact).sum())


def test_a_sensitivity_is_divergence_over_error(fronts: list[Advice]) -> None:
    given = [
        measured("layers.0", 0.5),
        measured("layers.1.mlp.up", 0.1),
        measured("layers.1.mlp.up", 0.01, "mxfp8"),
        # Farther than the linear layer's own rows.
        measured("layers.1", 9.0),
    ]
    found = sensitivities(fronts, given, {x.name: x for x in RECIPES})
    errors = [relative_error(x, "mxfp4") for x in fronts]
    shared = 0.5 / (errors[0] + errors[1])
    both = 0.11 / (errors[2] + relative_error(fronts[2], "mxfp8"))
    np.testing.assert_allclose(found, [shared, shared, both], rtol=1e-6)
    with pytest.raises(ValueError, match=r"nothing was measured of layer layers\.1\.mlp\.up"):
        sensitivities(fronts, given[:1], {})


@pytest.mark.parametrize("budget", [4.25, 4.9, 5.4, 6.0, 7.0, 8.25])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.1, 20.0, 3.0), (0.0, 0.0, 5.0)])
def test_no_choice_within_the_budget_is_much_better(
    fronts: list[Advice], layers: list[Operands], budget: float, weights: tuple[float, ...]
) -> None:
    found = spread(fronts, layers, weights, budget)
    assert found is not None and found.bits <= budget + 1e-9
    sizes = [32 * WIDTHS[x.product.layer] for x in fronts]
    options = [
        [(n * x.bits, w * 10 ** (-y.scores[x] / 10)) for x in y.picked]
        for n, w, y in zip(sizes, weights, fronts, strict=True)
    ]
    within = [
        sum(x[1] for x in choice)
        for choice in itertools.product(*options)
        if sum(x[0] for x in choice) <= budget * sum(sizes) + 1e-9
    ]
    # One step that does not fit any more is all that can be lost.
    largest = max(max(x[1] for x in own) for own in options)
    assert min(within) <= found.divergence <= min(within) + largest
    assert found.divergence <= found.even
    assert [len(x.picked) for x in found.found] == [1] * 3
    assert [x.product.layer for x in found.found] == list(WIDTHS)


def test_what_matters_most_has_most_bits(fronts: list[Advice], layers: list[Operands]) -> None:
    found = spread(fronts, layers, (0.0, 0.0, 5.0), 6.0)
    assert found is not None
    bits = [x.picked[0].bits for x in found.found]
    assert bits[:2] == [4.25, 4.25] and bits[2] > 6
    assert str(found.found[0].goal) == "within 4.25 bits"
    assert spread(fronts, layers, (1.0, 1.0, 1.0), 4.0) is None


def test_the_file_of_an_evaluation_is_read(
    tmp_path: Path, fronts: list[Advice], layers: list[Operands]
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "what,layer,kl_mean\nrecipe:bf16,all,0\nrecipe:mxfp4,all,3\nkv:bf16,layers.0,1\n"
        "recipe:mxfp4,layers.0,0.5\nrecipe:mxfp4,layers.1,0.25\n"
    )
    assert read_sensitivity(path) == [measured("layers.0", 0.5), measured("layers.1", 0.25)]
    made = spread_by(path, fronts, layers, RECIPES, 6.0)
    assert made.bits <= 6 and made.divergence < 0.75
    with pytest.raises(ValueError, match=r"`budget_bits` = 4 is below the mean of the cheapest"):
        spread_by(path, fronts, layers, RECIPES, 4.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("what,layer\n", "needs the columns what, layer and kl_mean"),
        ("", "needs the columns"),
        ("what,layer,kl_mean\nrecipe:mxfp4,all,1\n", "has no recipe in a single layer"),
        ("what,layer,kl_mean\nrecipe:mxfp4,layers.0,nan\n", "`kl_mean` = 'nan' must be a number"),
        ("what,layer,kl_mean\nrecipe:mxfp4,layers.0,-1\n", "`kl_mean` = '-1' must be a number"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_sensitivity(path)
