"""A run that is killed and run again gives the bits of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "train_recipes.py"
STEPS = 300
RECIPE = """
name = "drawn_and_delayed"
engine = "native"
output = "bfloat16"
fprop = { a = "fp8_tensor_delayed", a_amax = "history", b = "bfloat16" }
dgrad = { a = "mxfp4_stochastic", b = "mxfp4_rceil" }
wgrad = { a = "mxfp4_rceil", b = "mxfp4_stochastic" }

[delayed]
algorithm = "max"
"""
STUDY = f"""
seeds = 1
steps = {STEPS}
batch = 2
history = 4
record_every = 10
checkpoint_every = 7
capture_steps = [0, 5]
held_out_windows = 3
budget_minutes = 5
baseline = "arm"
null = "arm"

[optimizer]
learning_rate = 0.003
final_fraction = 0.1
warmup_steps = 5
beta1 = 0.9
beta2 = 0.95
epsilon = 1e-8
clip = 1.0

[model]
layers = 1
width = 32
heads = 2
kv_heads = 1
head_dim = 16
hidden = 32
context = 32

[[arm]]
name = "arm"
recipe = "RECIPE"
"""


def command(folder: Path, state: str) -> list[str]:
    given = {"--config": "study.toml", "--state": state}
    paths = [x for name, path in given.items() for x in (name, str(folder / path))]
    return [sys.executable, "-u", str(SCRIPT), *paths, "--core", "0"]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    study = STUDY.replace("RECIPE", str(tmp_path / "recipe.toml"))
    (tmp_path / "study.toml").write_text(study, encoding="utf-8")
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    whole = subprocess.run(
        command(tmp_path, "whole"), capture_output=True, text=True, env=surroundings, check=True
    )
    assert "plan: " in whole.stdout and "goes on" not in whole.stdout
    stored = tmp_path / "killed" / "arm" / "seed0.state.npz"
    with subprocess.Popen(
        command(tmp_path, "killed"), stdout=subprocess.DEVNULL, env=surroundings
    ) as run:
        while not stored.exists() and run.poll() is None:
            time.sleep(0.002)
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    assert stored.exists() and not stored.with_name("seed0.json").exists()
    again = subprocess.run(
        command(tmp_path, "killed"), capture_output=True, text=True, env=surroundings, check=True
    )
    assert "goes on after step" in again.stdout
    one, other = (
        json.loads((tmp_path / name / "arm" / "seed0.json").read_text())
        for name in ("whole", "killed")
    )
    assert len(one["losses"]) == STEPS == len(set(one["losses"]))
    assert one["losses"][-1] < one["losses"][0] - 1
    for key in ("losses", "held_out", "held_out_bf16"):
        assert one[key] == other[key]
    for name in ("seed0.final.npz", "seed0.step5.npz"):
        first, second = (np.load(tmp_path / run / "arm" / name) for run in ("whole", "killed"))
        assert first.files == second.files and len(first.files) > 10
        for array in first.files:
            assert first[array].tobytes() == second[array].tobytes()
