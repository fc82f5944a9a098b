"""Products as a comparison computes them: those of `gemm`, whatever is padded to share programs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.gemm import OperandPair, Recipe, gemm, get_recipe
from lowprec.metrics import sqnr_db
from lowprec.models.operands import Operands
from lowprec.numerics import get_format
from lowprec.scaling import get_block
from lowprec.scaling.codings import Transform
from lowprec.study.products import compare_products


def centred() -> Recipe:
    """Activations without their mean over rows, which rows of zeros would change."""
    block = dataclasses.replace(
        get_block("mxfp8_e4m3"), name="centred", transform=Transform(kind="mean")
    )
    pair = OperandPair(a=block, b=get_format("float32"))
    return dataclasses.replace(get_recipe("float32"), name="centred", fprop=pair)


@pytest.mark.parametrize(
    "recipe",
    [centred(), pytest.param(get_recipe("mxfp8"), marks=pytest.mark.slow)],
    ids=lambda x: x.name,
)
def test_a_row_has_the_error_of_gemm(recipe: Recipe) -> None:
    rng = np.random.default_rng(0)
    x = (10 + rng.random((5, 64))).astype(np.float32)
    w = rng.standard_normal((64, 7)).astype(np.float32)
    (row,) = compare_products([Operands(layer="one", x=x, w=w)], recipe, source="here")
    got = np.asarray(gemm(jnp.asarray(x), jnp.asarray(w), recipe), np.float64)
    want = sqnr_db(got, x.astype(np.float64) @ w.astype(np.float64))
    # Sums of padded products may be ordered otherwise.
    assert row.sqnr_db == pytest.approx(want, abs=0.05)
    assert row.role == "fprop" and (row.m, row.k, row.n) == (5, 64, 7) and 20 < want < 70
