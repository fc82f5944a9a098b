"""What experiments/prepare.py compares, and that it goes on where it stopped."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.gemm import get_recipe
from lowprec.models.capture import capture
from lowprec.models.corpus import Windows
from lowprec.models.parameters import TransformerConfig, init
from lowprec.report import stored
from lowprec.study import prepared_layers
from lowprec.study.prepared import PreparedRow, Sample
from lowprec.study.prepared_layers import PreparedLayer, layer_rows, variants, whole_windows
from tests.helpers import load_experiment

prepare = load_experiment("prepare")


def layer(name: str) -> PreparedLayer:
    rng = np.random.default_rng(len(name))
    x, w = rng.normal(size=(96, 32)).astype(np.float32), rng.normal(size=(32, 8))
    return PreparedLayer(
        name=name,
        w=w.astype(np.float32),
        calibration=Sample(x=x[:64], documents=("a.py",)),
        report=Sample(x=x[64:], documents=("b.py",)),
    )


LAYERS = [layer("one"), layer("other")]


def test_a_random_rotation_comes_with_every_seed() -> None:
    found = list(variants("mxfp4", ["quarot_w4a4_rotated", "gptq_mxfp4"], [3, 5], "fp32"))
    names = ["mxfp4", *["mxfp4 + quarot_w4a4_rotated"] * 2, "mxfp4 + gptq_mxfp4"]
    assert [x.name for x in found] == names and {x.engine.name for x in found} == {"fp32"}
    steps = [x.prepare for x in found]
    assert steps[0] is None and steps[3] == get_recipe("gptq_mxfp4").prepare
    assert [x.rotation.seed for x in steps[1:3] if x and x.rotation] == [3, 5]
    assert {x.fprop.b for x in found} == {get_recipe("mxfp4").fprop.b}
    with pytest.raises(ValueError, match="recipe 'nvfp4' has no preparation to put into 'mxfp4'"):
        list(variants("mxfp4", ["nvfp4"], [0], "native"))


def test_windows_are_whole_and_of_as_many_documents_as_there_are() -> None:
    mask = np.ones((6, 3), bool)
    mask[2, 1:] = False
    text = Windows(
        tokens=np.zeros((6, 4), np.uint8),
        mask=mask,
        document=np.array([0, 0, 0, 1, 1, 2], np.int32),
        document_count=3,
    )
    assert whole_windows(text, 3).tolist() == [0, 3, 5]
    assert whole_windows(text, 9).tolist() == [0, 3, 5, 1, 4]


def test_rows_say_on_what_they_are_reported() -> None:
    (plain, fitted) = variants("weight_only_mxfp4", ["gptq_mxfp4"], [], "native")
    held_out = layer_rows(LAYERS, fitted, in_sample=False)
    assert [(x.layer, x.sample, x.report_tokens) for x in held_out] == [
        ("one", "held_out", 32),
        ("other", "held_out", 32),
    ]
    own = layer_rows(LAYERS, fitted, in_sample=True)
    assert {(x.sample, x.report_tokens, x.calibration_tokens) for x in own} == {
        ("in_sample", 64, 64)
    }
    base = layer_rows(LAYERS, plain, in_sample=False)
    gains = prepared_layers.gain_rows(
        [*base, *held_out], "weight_only_mxfp4", ["gptq_mxfp4"], seed=0
    )
    assert [(x.layers, x.sample) for x in gains] == [(2, "held_out")]
    assert gains[0].gain_db == pytest.approx(
        np.mean([a.sqnr_db - b.sqnr_db for a, b in zip(held_out, base, strict=True)])
    )
    assert 5 < base[0].sqnr_db < 60


@pytest.mark.slow
def test_inputs_are_those_that_capture_has() -> None:
    config = TransformerConfig(
        vocabulary=32, layers=2, width=32, heads=2, kv_heads=1, head_dim=16, hidden=64
    )
    params = init(jax.random.key(0), config)
    tokens = np.random.default_rng(0).integers(0, 32, (2, 16)).astype(np.uint8)
    found = prepared_layers.layer_inputs(params, tokens, config)
    captured = capture(params, jnp.asarray(tokens), config)
    assert sorted(found) == sorted(x.layer for x in captured)
    for layer in captured:
        assert found[layer.layer].dtype == layer.x.dtype
        assert np.array_equal(found[layer.layer], np.asarray(layer.x)), layer.layer
        weight = prepared_layers._weight(params, layer.layer).astype(layer.w.dtype)
        assert np.array_equal(weight, layer.w)
    assert np.std(found["head"].astype(np.float32)) > 0.1


def row(name: str, recipe: str, seed: int | None = None) -> PreparedRow:
    numbers = dict.fromkeys(
        ("gain", "gain_standard_error", "residual_sqnr_db", "relative_frobenius"), 0.0
    )
    return PreparedRow(
        source="captured", layer=name, recipe=recipe, block_a="", block_b="", steps="none",
        seed=seed, sample="held_out", calibration_tokens=0, report_tokens=8, k=4, n=2,
        reproducibility="bit_exact", bits_per_element=4.25, sqnr_db=10.0, **numbers,
    )  # fmt: skip


def test_known_rows_are_not_measured_again() -> None:
    # Samples of other lengths than the weight: a product would fail.
    broken = [dataclasses.replace(x, report=Sample(x=np.ones((3, 5), np.float32))) for x in LAYERS]
    recipe = get_recipe("weight_only_mxfp4")
    known = [row(x.name, "recipe:weight_only_mxfp4") for x in LAYERS]
    known.append(row("one", "recipe:mxfp4"))
    assert prepare.rows_of(broken, recipe, known, False) == known[:2]
    with pytest.raises((ValueError, TypeError)):
        prepare.rows_of(broken, recipe, known[1:], False)


@pytest.mark.parametrize(
    ("resume", "version", "kept"), [(True, 1, True), (True, 2, False), (False, 1, False)]
)
def test_rows_of_other_settings_are_removed(
    tmp_path: Path, resume: bool, version: int, kept: bool
) -> None:
    path = tmp_path / prepare.TABLES["family"]
    prepare.begin(tmp_path, {"versions": 1}, False)
    stored.write_table([row("one", "recipe:a")], PreparedRow, path)
    prepare.begin(tmp_path, {"versions": version}, resume)
    assert path.is_file() == kept
    assert stored.read_manifest(tmp_path) == {"versions": version}
