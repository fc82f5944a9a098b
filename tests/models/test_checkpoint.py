"""Checkpoints: the same bits come back, and a wrong file is refused by name."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("safetensors", reason="reads the checkpoint: the extra `report`")
from safetensors.numpy import save_file

from lowprec.models import checkpoint
from lowprec.models.checkpoint import load_checkpoint, save_checkpoint
from lowprec.models.parameters import TransformerConfig
from tests.models.random_parameters import random_parameters

CONFIG = TransformerConfig(
    vocabulary=8, layers=2, width=4, heads=2, kv_heads=1, head_dim=2, hidden=6, context=16
)
PARAMS = random_parameters(CONFIG)


def header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint under their names in the file, to write a changed one."""
    loaded, _ = load_checkpoint(path)
    flat = {"embedding": loaded["embedding"], "final_norm": loaded["final_norm"]}
    flat["head"] = loaded["head"]
    for group, weights in loaded["layers"].items():
        flat |= {f"layers.{group}.{name}": array for name, array in weights.items()}
    return {name: np.asarray(array) for name, array in flat.items()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, PARAMS, CONFIG)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_parameters_come_back_rounded_to_bfloat16(saved: Path) -> None:
    params, config = load_checkpoint(saved)
    assert config == CONFIG
    assert jax.tree.structure(params) == jax.tree.structure(PARAMS)
    for loaded, original in zip(jax.tree.leaves(params), jax.tree.leaves(PARAMS), strict=True):
        assert isinstance(loaded, jax.Array) and loaded.dtype == jnp.bfloat16
        expected = original.astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(np.asarray(loaded).view(np.uint16), expected.view(np.uint16))


def test_the_file_holds_bf16_and_the_same_bytes_again(saved: Path, tmp_path: Path) -> None:
    entries = header(saved)
    entries.pop("__metadata__")
    assert {entry["dtype"] for entry in entries.values()} == {"BF16"}
    assert entries["layers.attention.q"]["shape"] == [2, 4, 4]
    again = tmp_path / "again.safetensors"
    save_checkpoint(again, *load_checkpoint(saved))
    assert again.read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_cut_file_is_refused(saved: Path, size: int) -> None:
    saved.write_bytes(saved.read_bytes()[:size])
    assert "is not a valid .safetensors file" in refusal(saved)


def test_a_file_of_another_kind_is_refused(saved: Path) -> None:
    save_file(arrays(saved), saved, metadata={"format": "pt"})
    assert "must name its `transformer_config` in the metadata, got the keys ['format']" in refusal(
        saved
    )


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ('{"layers": 0}', "`layers` must be positive, got 0"),
        ('{"depth": 2}', "unexpected keyword argument 'depth'"),
        ("[1]", "malformed"),
        ("{", "malformed"),
    ],
)
def test_a_malformed_config_is_refused(saved: Path, config: str, text: str) -> None:
    save_file(arrays(saved), saved, metadata={"transformer_config": config})
    assert text in refusal(saved)


def test_missing_unknown_and_misshapen_arrays_are_refused(saved: Path) -> None:
    metadata, whole = header(saved)["__metadata__"], arrays(saved)
    save_file({name: whole[name] for name in whole if name != "head"}, saved, metadata=metadata)
    assert "must hold the array head, which is missing" in refusal(saved)
    save_file(whole | {"bias": whole["head"]}, saved, metadata=metadata)
    assert "holds the array bias, which the model does not have" in refusal(saved)
    save_file(whole | {"head": whole["head"].T.copy()}, saved, metadata=metadata)
    assert "must have the shape (4, 8), got (8, 4)" in refusal(saved)
    save_file(whole | {"head": whole["head"].astype(np.float32)}, saved, metadata=metadata)
    assert "must hold bfloat16 arrays only, got float32" in refusal(saved)


def test_saving_refuses_what_the_config_does_not_describe(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="embedding in `params` must have the shape"):
        save_checkpoint(path, PARAMS | {"embedding": np.ones((4, 4), np.float32)}, CONFIG)
    with pytest.raises(ValueError, match="got a NaN or Inf in head"):
        save_checkpoint(path, PARAMS | {"head": np.full((4, 8), np.nan, np.float32)}, CONFIG)
    assert not path.exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        load_checkpoint(tmp_path / "absent.safetensors")


def test_without_the_repository_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "lowprec/models/checkpoint.py"))
    with pytest.raises(FileNotFoundError, match=r"Clone the lowprec repository .*train_lm\.py"):
        load_checkpoint()


def test_without_safetensors_saving_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_serialize", None)
    with pytest.raises(ImportError, match=r"pip install"):
        save_checkpoint(tmp_path / "model.safetensors", PARAMS, CONFIG)


def test_the_committed_checkpoint_loads() -> None:
    path = Path(__file__).parents[2] / "experiments" / "checkpoints" / "byte_lm.safetensors"
    if not path.is_file():
        pytest.skip("the checkpoint comes with the repository")
    params, config = load_checkpoint()
    assert config == TransformerConfig()
    assert params["layers"]["attention"]["q"].shape == (4, 256, 256)
    assert path.stat().st_size < 10 * 2**20
