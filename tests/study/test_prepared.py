"""Prepared weights compared: what counts as the same data, and what the rows say."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lowprec.gemm import Preparation, get_recipe, prepare
from lowprec.gemm.preparation import Rotation
from lowprec.metrics import sqnr_db
from lowprec.study.prepared import PreparedRow, Sample, compare_prepared, gains, overlap

K, N = 32, 12
GPTQ = get_recipe("gptq_mxfp4")
PLAIN = get_recipe("weight_only_mxfp4")


def rows(count: int, seed: int) -> NDArray[np.float32]:
    """Rows of x of one distribution, whose channels go together."""
    mix = np.random.default_rng(9).normal(size=(K, K))
    return (np.random.default_rng(seed).normal(size=(count, K)) @ mix).astype(np.float32)


def weight() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(K, N)).astype(np.float32)


FITTED, REPORTED = rows(200, 0), rows(64, 1)


def test_a_row_is_the_product_of_the_weight_fitted_to_the_other_sample() -> None:
    row = compare_prepared(
        Sample(x=FITTED), Sample(x=REPORTED), weight(), GPTQ, layer="l", source="s"
    )
    y = prepare(weight(), GPTQ, calibration=FITTED).product(REPORTED)
    exact = REPORTED.astype(np.float64) @ weight().astype(np.float64)
    assert row.sqnr_db == sqnr_db(np.asarray(y).astype(np.float64), exact)
    assert (row.layer, row.source, row.recipe) == ("l", "s", "recipe:gptq_mxfp4")
    assert (row.sample, row.calibration_tokens, row.report_tokens) == ("held_out", 200, 64)
    assert (row.block_a, row.block_b, row.steps) == ("format:bfloat16", "block:mxfp4", "gptq")
    assert (row.k, row.n, row.seed, row.bits_per_element) == (K, N, None, 4.25)
    assert row.reproducibility == "same_backend"
    plain = compare_prepared(Sample(x=FITTED), Sample(x=REPORTED), weight(), PLAIN)
    assert plain.calibration_tokens == 0 and plain.steps == "none"
    assert 10 < plain.sqnr_db < row.sqnr_db - 0.5


@pytest.mark.parametrize(
    ("calibration", "report", "message"),
    [
        (FITTED, FITTED, "200 of 200 rows"),
        (FITTED, FITTED[10:30], "20 of 20 rows"),
        (FITTED, FITTED[10:30].copy(), "20 of 20 rows"),
        (FITTED, FITTED.copy(), "200 of 200 rows"),
        (FITTED, np.concatenate([REPORTED, FITTED[:3]]), "3 of 67 rows"),
        (FITTED, np.concatenate([REPORTED, FITTED[:3]]).astype(np.float16), "3 of 67 rows"),
    ],
)
def test_rows_that_were_fitted_to_are_refused(
    calibration: NDArray[np.float32], report: NDArray[np.float32], message: str
) -> None:
    given = Sample(x=calibration.astype(report.dtype, copy=False)), Sample(x=report)
    with pytest.raises(ValueError, match=f"share {message}.*in_sample=True labels it"):
        compare_prepared(*given, weight(), GPTQ)


def test_an_in_sample_figure_is_labelled() -> None:
    given = Sample(x=FITTED), Sample(x=FITTED)
    row = compare_prepared(*given, weight(), GPTQ, in_sample=True)
    assert row.sample == "in_sample" and row.sqnr_db > 10
    # Nothing is fitted, so nothing can be in sample.
    assert compare_prepared(*given, weight(), PLAIN).sample == "held_out"
    turned = dataclasses.replace(
        PLAIN, prepare=Preparation(rotation=Rotation(kind="hadamard", seed=3))
    )
    row = compare_prepared(*given, weight(), turned)
    assert (row.sample, row.seed, row.steps) == ("held_out", 3, "rotation")


def test_documents_decide_where_both_are_named() -> None:
    same = rows(4, 2)
    one = Sample(x=np.concatenate([rows(9, 3), same]), documents=("a.py", "b.py"))
    other = Sample(x=np.concatenate([rows(5, 4), same]), documents=("c.py",))
    assert overlap(one, other) == ""
    assert overlap(one, dataclasses.replace(other, documents=("b.py",))) == "the documents b.py"
    # Of one whose documents are not known the rows are looked at.
    assert overlap(one, Sample(x=other.x)) == "4 of 9 rows"
    # And the same memory is the same data, whatever it is called.
    assert overlap(one, Sample(x=one.x[:2], documents=("c.py",))) == "2 of 2 rows"


def test_rows_are_compared_as_numbers() -> None:
    zeros = Sample(x=np.zeros((1, K), np.float32))
    assert overlap(zeros, Sample(x=-zeros.x)) == "1 of 1 rows"
    with pytest.raises(ValueError, match=r"`x` has shape \(32,\); it is \(tokens, K\)"):
        Sample(x=FITTED[0])


def row(layer: str, recipe: str, sqnr: float, **changes: Any) -> PreparedRow:
    base = compare_prepared_row()
    return dataclasses.replace(base, layer=layer, recipe=recipe, sqnr_db=sqnr, **changes)


def compare_prepared_row() -> PreparedRow:
    numbers = dict.fromkeys(
        ("gain", "gain_standard_error", "residual_sqnr_db", "relative_frobenius", "sqnr_db"), 0.0
    )
    return PreparedRow(
        source="s", layer="", recipe="", block_a="", block_b="", steps="none", seed=None,
        sample="held_out", calibration_tokens=0, report_tokens=8, k=4, n=2,
        reproducibility="same_backend", bits_per_element=4.25, **numbers,
    )  # fmt: skip


def test_gains_pair_layers_and_average_seeds() -> None:
    found = [
        *(row(name, "base", 10.0) for name in "abc"),
        *(row(name, "better", 12.0 + i, seed=0) for i, name in enumerate("abc")),
        *(row(name, "better", 14.0 + i, seed=1) for i, name in enumerate("abc")),
    ]
    gain = gains(found, "base", "better", seed=0)
    assert (gain.layers, gain.seeds, gain.sample) == (3, 2, "held_out")
    assert (gain.baseline_db, gain.recipe_db, gain.gain_db, gain.worst_db) == (10, 14, 4, 3)
    assert 3 <= gain.low_db < 4 < gain.high_db <= 5 and gain.bits_per_element == 4.25


def test_gains_need_the_same_layers_and_one_sample() -> None:
    found = [row("a", "base", 1.0), row("b", "base", 1.0), row("a", "other", 2.0)]
    with pytest.raises(ValueError, match="other and base must have the same 2 layers or more"):
        gains(found, "base", "other", seed=0)
    mixed = [*found, row("b", "other", 2.0, sample="in_sample")]
    with pytest.raises(ValueError, match=r"samples \['held_out', 'in_sample'\]"):
        gains(mixed, "base", "other", seed=0)
