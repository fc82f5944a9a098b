"""The main job on a small random model: every row, in order, and again the same."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import lowprec as lp
from lowprec.models import TransformerConfig, init, save_checkpoint
from lowprec.models.corpus import Document, save_held_out
from lowprec.study import Collected, Preset, compare_captured, manifest

pytestmark = pytest.mark.slow

CONFIG = TransformerConfig(
    layers=2, width=32, heads=2, kv_heads=1, head_dim=16, hidden=48, context=32
)
PRESET = Preset(name="test", windows_per_document=2, captured_windows=1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Collected]:
    folder: Path = tmp_path_factory.mktemp("model")
    save_checkpoint(folder / "byte_lm.safetensors", init(jax.random.key(0), CONFIG), CONFIG)
    rng = np.random.default_rng(0)
    documents = [
        Document(name=f"{i}.py", sha256="", part="report", text=bytes(rng.integers(32, 127, 90)))
        for i in range(6)
    ]
    save_held_out(folder / "held_out.jsonl", documents)
    collected = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "lowprec.study.compare.default_checkpoint", lambda: folder / "byte_lm.safetensors"
        )
        for _ in range(2):
            into = Collected()
            told: list[tuple[int, int]] = []
            files = compare_captured(
                [lp.get_recipe("mxfp4")], PRESET, into, lambda _, i, n, t=told: t.append((i, n))
            )
            assert [path.name for path in files] == ["byte_lm.safetensors", "held_out.jsonl"]
            assert told[-1][0] == told[-1][1] == 9
            collected.append(into)
    return collected


def test_every_layer_role_and_recipe_has_a_row(runs: list[Collected]) -> None:
    rows = runs[0].products
    layers = 7 * CONFIG.layers + 1
    assert len({(r.layer, r.role, r.recipe) for r in rows}) == len(rows) == layers * 3 * 3
    assert [r.recipe for r in rows] == sorted(
        (r.recipe for r in rows), key=["recipe:float32", "recipe:bf16", "recipe:mxfp4"].index
    )


def test_errors_are_ordered_as_their_formats(runs: list[Collected]) -> None:
    median = {
        recipe: float(np.median([r.sqnr_db for r in runs[0].products if r.recipe == recipe]))
        for recipe in ("recipe:float32", "recipe:bf16", "recipe:mxfp4")
    }
    assert median["recipe:float32"] > 100 > median["recipe:bf16"] > 45
    assert 25 > median["recipe:mxfp4"] > 8


def test_the_losses_are_paired_with_bf16(runs: list[Collected]) -> None:
    rows = runs[0].model
    assert [r.quantized for r in rows] == ["weights", "activations", "both"]
    for row in rows:
        assert row.low <= row.increase <= row.high and row.documents == 6
        assert row.bytes == 6 * 62 and row.rank == "1"
        assert row.kl_percentile_99 > row.kl_median > 0
        # A random model predicts about 8 bits a byte.
        assert 7 < row.bits_per_byte < 10


def test_again_gives_the_same_numbers(runs: list[Collected]) -> None:
    first, second = runs
    for field in dataclasses.fields(Collected):
        if field.name != "timings":
            assert getattr(first, field.name) == getattr(second, field.name)
    assert {t.step for t in first.timings} == {t.step for t in second.timings}


def test_the_manifest_names_what_was_used(tmp_path: Path) -> None:
    (tmp_path / "operands.npz").write_bytes(b"abc")
    record = manifest([lp.get_recipe("mxfp4")], [tmp_path / "operands.npz"], {"seed": 0})
    names = {(entry["kind"], entry["name"]) for entry in record["catalogue"]}
    assert names == {
        ("recipes", "mxfp4"),
        ("engines", "native"),
        ("blocks", "mxfp4"),
        ("elements", "float4_e2m1fn"),
        ("elements", "float8_e8m0fnu"),
    }
    assert all(len(entry["sha256"]) == 64 for entry in record["catalogue"])
    assert record["files"]["operands.npz"].startswith("ba7816bf")
    assert str(tmp_path) not in str(record)
