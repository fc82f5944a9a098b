"""Trains the two small models whose KV caches are compared: GQA and MLA, the same way.

    python experiments/train_kv_models.py --model gqa --state DIRECTORY --core 0
    python experiments/train_kv_models.py --model mla --state DIRECTORY --core 1
    python experiments/train_kv_models.py --model mla --state DIRECTORY --plan   # measure and stop

The parameters stand in train_kv_models.toml. Both read the same windows of Python's standard
library, into which copied spans and planted keys are mixed, so that they learn to look far back. A
few steps are measured first, and a run that would exceed the budget is refused. Killed at any step,
the same command goes on to the same bits: those of one core, whichever, where `--core` is given,
else those of all cores. Written to experiments/checkpoints: byte_gqa.safetensors and byte_mla
likewise, a manifest and a curve for each.
"""

import argparse
import csv
import dataclasses
import datetime
import hashlib
import json
import os
import statistics
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import train_lm

from lowprec.models import (
    checkpoint,
    corpus,
    latent_parameters,
    latent_transformer,
    parameters,
    transformer,
)
from lowprec.models.copy_spans import CopyMix, PlantedKeys, mix_copies, planted_keys, score_keys
from lowprec.models.latent_parameters import AnyConfig, LatentTransformerConfig
from lowprec.models.parameters import Parameters, TransformerConfig
from lowprec.models.scoring import bits_per_byte, document_bits_per_byte, log_probabilities
from lowprec.study.training_state import check_digest, load_arrays, save_arrays

CONFIG = Path(__file__).with_suffix(".toml")
MODELS = ("gqa", "mla")
TRIALS = 5
SCORING_BATCH = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyTest:
    """How memory is tested: see `planted_keys`; `check_cases` of `cases` while training goes on."""

    distances: list[int]
    cases: int
    check_cases: int
    digits: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Short:
    """The first steps: so many, of windows of so many bytes, as many bytes in all as the others."""

    steps: int
    context: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What one model's training follows from: a reading of train_kv_models.toml."""

    name: str
    config: AnyConfig
    settings: train_lm.Settings
    short: Short
    copies: CopyMix
    keys: KeyTest
    checkpoint_every: int
    check_windows: int
    budget_minutes: float

    def init(self) -> Parameters:
        """The parameters before the first step."""
        key = jax.random.key(self.settings.seed)
        if isinstance(self.config, LatentTransformerConfig):
            return latent_parameters.init(key, self.config)
        return parameters.init(key, self.config)

    def forward(self, params: Parameters, tokens: jax.Array, **options: Any) -> jax.Array:
        """Logits of the model."""
        if isinstance(self.config, LatentTransformerConfig):
            return latent_transformer.forward(params, tokens, self.config, **options)
        return transformer.forward(params, tokens, self.config, **options)

    def digest(self, text: np.ndarray) -> str:
        """SHA-256 of all that the numbers follow from, machine and versions aside."""
        said = dataclasses.asdict(self)
        del said["checkpoint_every"], said["budget_minutes"]
        said["text"] = hashlib.sha256(text.tobytes()).hexdigest()
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class State(NamedTuple):
    """All that the next step follows from, beside its number and the text."""

    params: Parameters
    optimizer: Any


class Measured(NamedTuple):
    """Processor seconds of a step, one of the first and a check, and the step's by the clock."""

    step: float
    short: float
    check: float
    step_by_clock: float


def say(line: str) -> None:
    print(f"{datetime.datetime.now(datetime.UTC):%H:%M:%S} {line}", flush=True)


def read_study(path: Path, name: str) -> Study:
    """The part of the file that one model is trained by; unknown and missing keys are errors."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    shape = data.pop("model")[name]
    kind = LatentTransformerConfig if name == "mla" else TransformerConfig
    return Study(
        name=name,
        config=kind(**shape),
        settings=train_lm.Settings(**data.pop("training"), model=shape),
        short=Short(**data.pop("short")),
        copies=CopyMix(**data.pop("copies")),
        keys=KeyTest(**data.pop("keys")),
        **data,
    )


class Trainer:
    """A model's compiled step, and what it is checked with while it learns."""

    def __init__(self, study: Study, text: np.ndarray) -> None:
        self.study, self.text, self.digest = study, text, study.digest(text)
        documents = corpus.load_held_out(train_lm.HELD_OUT, "calibrate")
        windows = corpus.windows(documents, study.config.context)
        count = min(study.check_windows, len(windows.tokens))
        chosen = np.linspace(0, len(windows.tokens) - 1, count).round().astype(int)
        self.tokens, self.mask = windows.tokens[chosen], windows.mask[chosen]
        self.asked = asked(study, "calibrate", study.keys.check_cases)
        self._method = train_lm.optimizer(study.settings)
        self._update = jax.jit(self._one)
        self._score = jax.jit(
            lambda params, batch: log_probabilities(study.forward(params, batch), batch)
        )
        digits = study.keys.digits
        self._keys = jax.jit(
            lambda params, batch: score_keys(study.forward(params, batch), batch, digits)
        )

    def start(self) -> State:
        """The state before the first step."""
        params = self.study.init()
        return State(params, self._method.init(params))

    def batch(self, number: int) -> np.ndarray:
        """The windows of a step, uint8: (batch, context), or more and shorter ones."""
        settings, short = self.study.settings, self.study.short
        whole = self.study.config.context
        context = short.context if number < short.steps else whole
        random = np.random.default_rng((settings.seed, number))
        starts = random.integers(0, len(self.text) - context, settings.batch * whole // context)
        windows = self.text[starts[:, None] + np.arange(context)]
        return mix_copies(windows, self.study.copies, random)

    def step(self, state: State, number: int) -> tuple[float, State]:
        """Bits per byte of a step's windows before it, and the state after it."""
        loss, state = self._update(state, self.batch(number))
        return float(loss), state

    def _one(self, state: State, tokens: jax.Array) -> tuple[jax.Array, State]:
        def loss(params: Parameters) -> jax.Array:
            logits = self.study.forward(params, tokens, linear=train_lm.product)
            return bits_per_byte(log_probabilities(logits, tokens))

        value, gradient = jax.value_and_grad(loss)(state.params)
        updates, optimizer = self._method.update(gradient, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        return value, State(params, optimizer)

    def log_probabilities(self, params: Parameters, tokens: np.ndarray) -> jax.Array:
        """Of windows (count, length), by the default product: (count, length - 1)."""
        return jnp.concatenate(_batches(self._score, params, tokens))[: len(tokens)]

    def key_rows(self, params: Parameters, asked: PlantedKeys) -> list[dict[str, float]]:
        """A row a distance: bits a digit and the share of exact keys, over the cases."""
        parts = _batches(self._keys, params, asked.tokens)
        bits, exact = (
            np.concatenate(part)[: len(asked.tokens)] for part in zip(*parts, strict=True)
        )
        rows = []
        for distance in np.unique(asked.distance):
            here = asked.distance == distance
            rows.append(
                {
                    "distance": int(distance),
                    "bits_per_digit": round(float(bits[here].mean()), 4),
                    "exact": round(float(exact[here].mean()), 4),
                }
            )
        return rows

    def check(self, params: Parameters) -> dict[str, Any]:
        """How the model does on some held-out text and planted keys of the part `calibrate`."""
        logarithms = self.log_probabilities(params, self.tokens)
        total = float(bits_per_byte(logarithms, jnp.asarray(self.mask)))
        return {"held_out": round(total, 4), "keys": self.key_rows(params, self.asked)}

    def measure(self) -> Measured:
        """Medians of a few steps and a check; what they compute is thrown away."""
        short = self.study.short.steps
        _, state = self.step(self.start(), 0)
        self.step(state, short)
        self.check(state.params)
        found = []
        for number in range(TRIALS):
            for shift in (0, short):
                begin = time.perf_counter(), time.process_time()
                self.step(state, number + shift)
                found.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
        begin = time.process_time()
        self.check(state.params)
        check = time.process_time() - begin
        (_, first), (clock, processor) = (
            (statistics.median(x) for x in zip(*found[which::2], strict=True)) for which in (0, 1)
        )
        return Measured(processor, first, check, clock)


def _batches(score: Callable[..., Any], params: Parameters, tokens: np.ndarray) -> list[Any]:
    padded = np.pad(tokens, ((0, -len(tokens) % SCORING_BATCH), (0, 0)))
    starts = range(0, len(padded), SCORING_BATCH)
    return [score(params, padded[first : first + SCORING_BATCH]) for first in starts]


def asked(study: Study, part: str, cases: int) -> PlantedKeys:
    """Planted keys in a part of the held-out slice."""
    return planted_keys(
        corpus.load_held_out(train_lm.HELD_OUT, part),
        length=study.config.context,
        distances=study.keys.distances,
        cases=cases,
        digits=study.keys.digits,
        seed=study.keys.seed,
    )


def resumed(trainer: Trainer, path: Path) -> tuple[State, list[float], list[dict[str, Any]]]:
    """The state, losses and checks that an earlier run left, or the start."""
    state = trainer.start()
    if not path.is_file():
        return state, [], []
    state, meta = load_arrays(path, state)
    check_digest(path, meta["digest"], trainer.digest)
    return state, meta["losses"], meta["checks"]


def plan(study: Study, cost: Measured, done: int) -> tuple[list[str], float]:
    """Lines that say what is left to do, and its processor minutes."""
    settings = study.settings
    steps = settings.steps - done
    short = max(min(study.short.steps, settings.steps) - done, 0)
    checks = -(-steps // settings.evaluate_every)
    seconds = short * cost.short + (steps - short) * cost.step + checks * cost.check
    minutes = seconds / 60
    tokens = settings.batch * study.config.context
    lines = [
        f"{study.name}: {cost.step:.3f} processor seconds a step of {tokens} bytes "
        f"({cost.step_by_clock:.3f} by the clock), {cost.check:.1f} a check",
        f"plan: {steps} steps and {checks} checks take {minutes:.1f} processor minutes on this "
        f"machine; the budget is {study.budget_minutes:.0f}",
    ]
    return lines, minutes


def train(trainer: Trainer, path: Path) -> tuple[State, list[float], list[dict[str, Any]]]:
    """From wherever an earlier run left it to the last step; the state is kept in `path`."""
    study, settings = trainer.study, trainer.study.settings
    state, losses, checks = resumed(trainer, path)
    if losses:
        say(f"{study.name}: goes on after step {len(losses)}")
    begin, first = time.perf_counter(), len(losses)
    for number in range(first, settings.steps):
        loss, state = trainer.step(state, number)
        losses.append(loss)
        done = number + 1
        if done % settings.progress_every == 0:
            each = (time.perf_counter() - begin) / (done - first)
            say(
                f"{study.name}: step {done} of {settings.steps}, "
                f"{np.mean(losses[-settings.progress_every :]):.4f} bits per byte, "
                f"{each * (settings.steps - done) / 60:.0f} minutes left"
            )
        if done % settings.evaluate_every == 0 or done == settings.steps:
            checks.append({"step": done, **trainer.check(state.params)})
            say(f"{study.name}: {json.dumps(checks[-1])}")
        if done % study.checkpoint_every == 0 or done == settings.steps:
            meta = {"digest": trainer.digest, "losses": losses, "checks": checks}
            save_arrays(path, state, meta)
    return state, losses, checks


def results(trainer: Trainer, path: Path) -> dict[str, Any]:
    """Scores the stored checkpoint: what a user of it will measure."""
    study = trainer.study
    load = checkpoint.load_latent_checkpoint if study.name == "mla" else checkpoint.load_checkpoint
    params, _ = load(path)
    by_part = {}
    for part in corpus.PARTS:
        documents = corpus.load_held_out(train_lm.HELD_OUT, part)
        windows = corpus.windows(documents, study.config.context)
        logarithms = trainer.log_probabilities(params, windows.tokens)
        mask, owner = jnp.asarray(windows.mask), jnp.asarray(windows.document)
        each = document_bits_per_byte(logarithms, mask, owner, windows.document_count)
        names = [name for name, _ in documents]
        by_part[part] = {
            "bits_per_byte": round(float(bits_per_byte(logarithms, mask)), 4),
            "byte_bigram_bits_per_byte": round(
                train_lm.bigram_bits_per_byte(trainer.text, windows), 4
            ),
            "bits_per_byte_by_document": {
                name: round(value, 4) for name, value in zip(names, each.tolist(), strict=True)
            },
        }
    report = asked(study, "report", study.keys.cases)
    return {
        "held_out_sha256": hashlib.sha256(train_lm.HELD_OUT.read_bytes()).hexdigest(),
        "held_out": by_part,
        "planted_keys": {
            "cases": study.keys.cases,
            "digits": study.keys.digits,
            "chance_bits_per_digit": report.chance_bits,
            "chance_exact": report.chance_exact,
            "by_distance": trainer.key_rows(params, report),
        },
    }


def write_curve(path: Path, study: Study, losses: Sequence[float]) -> None:
    """Means over `progress_every` steps; the windows have copies mixed in."""
    settings = study.settings
    rate = train_lm.schedule(settings.matrix_learning_rate, settings)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "bytes_seen", "bits_per_byte", "matrix_learning_rate"])
        for step in range(settings.progress_every, len(losses) + 1, settings.progress_every):
            mean = float(np.mean(losses[step - settings.progress_every : step]))
            seen = step * settings.batch * study.config.context
            speed = float(np.asarray(rate(step)))
            writer.writerow([step, seen, f"{mean:.5f}", f"{speed:.6g}"])


def texts() -> tuple[list[tuple[str, bytes]], np.ndarray]:
    """The training files, and their bytes in a row."""
    held_out = {name for name, _ in corpus.load_held_out(train_lm.HELD_OUT)}
    training = [
        file for file in corpus.split(corpus.standard_library())[0] if file[0] not in held_out
    ]
    # A zero byte, which no source file contains, tells where one file ends.
    return training, np.frombuffer(b"\0".join(content for _, content in training), np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--state", type=Path, required=True, help="where the run is kept")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--output", type=Path, default=train_lm.OUTPUT)
    parser.add_argument("--core", type=int, help="compute on one processor core, this one")
    parser.add_argument("--budget-minutes", type=float, help="in place of the file's")
    parser.add_argument("--plan", action="store_true", help="measure, print the plan and stop")
    arguments = parser.parse_args()
    study = read_study(arguments.config, arguments.model)
    if arguments.budget_minutes is not None:
        study = dataclasses.replace(study, budget_minutes=arguments.budget_minutes)
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    training, text = texts()
    trainer = Trainer(study, text)
    state_path = arguments.state / f"{study.name}.npz"
    done = len(resumed(trainer, state_path)[1])
    if done < study.settings.steps:
        lines, minutes = plan(study, trainer.measure(), done)
        print("\n".join(lines), flush=True)
        if minutes > study.budget_minutes:
            sys.exit(
                f"the run takes {minutes:.0f} processor minutes, more than its budget of "
                f"{study.budget_minutes:.0f}; what would work: fewer `steps` in "
                f"{arguments.config}, or --budget-minutes {minutes + 1:.0f}"
            )
    if arguments.plan:
        return
    state, losses, checks = train(trainer, state_path)

    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"byte_{study.name}.safetensors"
    checkpoint.save_checkpoint(path, state.params, study.config)
    found = results(trainer, path)
    write_curve(arguments.output / f"byte_{study.name}_curve.csv", study, losses)
    manifest = train_lm.manifest_of(study.settings, study.config, training, text) | {
        "copies": dataclasses.asdict(study.copies),
        "keys": dataclasses.asdict(study.keys),
        "parameters": sum(array.size for array in jax.tree.leaves(state.params)),
        "checks": checks,
        **found,
        "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    manifest_path = arguments.output / f"byte_{study.name}.json"
    manifest_path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    say(f"{study.name}: {json.dumps(found['planted_keys'])}")
    say(f"{study.name}: held out, report part: {found['held_out']['report']['bits_per_byte']}")


if __name__ == "__main__":
    main()
