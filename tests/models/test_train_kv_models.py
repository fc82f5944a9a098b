"""A killed training run of the models for caches goes on to the bits of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("optax", reason="trains: the extra `train`")
pytest.importorskip("safetensors", reason="writes the checkpoint: the extra `report`")

from lowprec.models.checkpoint import load_checkpoint, load_latent_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "train_kv_models.py"
STEPS = 400
STUDY = f"""
checkpoint_every = 7
check_windows = 2
budget_minutes = 5

[short]
steps = 100
context = 32

[training]
seed = 0
steps = {STEPS}
batch = 2
warmup_steps = 5
matrix_learning_rate = 0.02
other_learning_rate = 0.004
final_fraction = 0.02
progress_every = 10
evaluate_every = 100

[copies]
share = 0.5
spans = 1
shortest_span = 4
longest_span = 8
asks = 1
fewest_digits = 1
most_digits = 2
periodic = 0.5
shortest_period = 4

[keys]
distances = [24]
cases = 2
check_cases = 1
digits = 2
seed = 1

[model.gqa]
layers = 1
width = 32
heads = 2
kv_heads = 1
head_dim = 16
hidden = 32
context = 64

[model.mla]
layers = 1
width = 32
heads = 2
latent_dim = 16
nope_dim = 16
rope_dim = 8
value_dim = 16
hidden = 32
context = 64
"""


def command(folder: Path, model: str, run: str, *more: str) -> list[str]:
    paths = {"--config": "study.toml", "--state": run, "--output": f"{run}_output"}
    given = [x for name, path in paths.items() for x in (name, str(folder / path))]
    return [sys.executable, "-u", str(SCRIPT), "--model", model, *given, "--core", "0", *more]


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("model", ["gqa", "mla"])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, model: str) -> None:
    (tmp_path / "study.toml").write_text(STUDY, encoding="utf-8")
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}

    def whole(*given: str) -> str:
        run = command(tmp_path, model, *given)
        done = subprocess.run(run, capture_output=True, text=True, env=surroundings, check=True)
        return done.stdout

    said = whole("whole")
    assert "plan: 400 steps and 4 checks" in said and "goes on" not in said
    stored = tmp_path / "killed" / f"{model}.npz"
    with subprocess.Popen(
        command(tmp_path, model, "killed"), stdout=subprocess.DEVNULL, env=surroundings
    ) as run:
        while not stored.exists() and run.poll() is None:
            time.sleep(0.002)
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    assert stored.exists() and not (tmp_path / "killed_output").exists()
    assert "goes on after step" in whole("killed")
    name = f"byte_{model}"
    for end in (".safetensors", ".json", "_curve.csv"):
        one, other = (tmp_path / f"{run}_output" / f"{name}{end}" for run in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes()
    first, second = (np.load(tmp_path / run / f"{model}.npz") for run in ("whole", "killed"))
    assert first.files == second.files and len(first.files) > 20
    for array in first.files:
        assert first[array].tobytes() == second[array].tobytes()
    check_what_is_written(tmp_path / "whole_output", model)


def check_what_is_written(folder: Path, model: str) -> None:
    load = load_latent_checkpoint if model == "mla" else load_checkpoint
    params, config = load(folder / f"byte_{model}.safetensors")
    assert config.context == 64
    manifest = json.loads((folder / f"byte_{model}.json").read_text())
    assert manifest["config"]["width"] == params["embedding"].shape[1] == 32
    assert [check["step"] for check in manifest["checks"]] == [100, 200, 300, 400]
    curve = (folder / f"byte_{model}_curve.csv").read_text().splitlines()[1:]
    losses = [float(line.split(",")[2]) for line in curve]
    assert len(losses) == STEPS // 10 and losses[-1] < losses[0] - 1
    keys = manifest["planted_keys"]
    assert keys["chance_bits_per_digit"] == 4.0 and keys["by_distance"][0]["distance"] == 24


@pytest.mark.slow
@pytest.mark.thorough
def test_a_run_beyond_its_budget_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY, encoding="utf-8")
    refused = subprocess.run(
        command(tmp_path, "gqa", "refused", "--budget-minutes", "0.0001"),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert refused.returncode == 1 and "more than its budget of 0" in refused.stderr
    assert not (tmp_path / "refused").exists()
