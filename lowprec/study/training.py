"""Training runs that can be killed: an arm and a seed from wherever they are to their end."""

import dataclasses
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.models.corpus import Windows
from lowprec.models.parameters import Parameters
from lowprec.models.scoring import bits_per_byte, log_probabilities
from lowprec.models.transformer import forward
from lowprec.study.training_config import Arm, TrainingConfig
from lowprec.study.training_state import (
    Finished,
    check_digest,
    load_arrays,
    load_finished,
    run_path,
    save_arrays,
    save_finished,
)
from lowprec.study.training_step import (
    State,
    batch_of,
    beside,
    hook,
    key_of,
    make_step,
    start,
)

Say = Callable[[str], None]
STATE, FINAL = "state.npz", "final.npz"
_TRIALS = 5


def versions() -> dict[str, str]:
    """Of what the bits of a run depend on."""
    found = {name: version(name) for name in ("jax", "jaxlib", "numpy")}
    return found | {"python": platform.python_version(), "machine": platform.machine()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What an arm costs: seconds of compilation, of a step, and of scoring held-out text."""

    compile: float
    step: float
    score: float


class Program:
    """An arm's compiled step and its score of held-out text.

    Args:
      config, arm: what to train.
      text: uint8 (bytes,), what windows are drawn from.
      held_out: windows to score.
    """

    def __init__(
        self, config: TrainingConfig, arm: Arm, text: np.ndarray, held_out: Windows
    ) -> None:
        self.config, self.arm, self.recipe = config, arm, arm.on_native()
        self.text, self.held_out = text, held_out
        self.digest = config.digest(arm, text.tobytes())
        begin = time.perf_counter()
        numbers = jnp.uint32(0), jnp.uint32(0)
        tokens = batch_of(text, config, 0, 0)
        first = start(config, self.recipe, 0)
        self._step = (
            jax.jit(make_step(config, self.recipe)).lower(first, tokens, *numbers).compile()
        )
        self._score = jax.jit(self._log_probabilities, static_argnames="plain")
        self.compile_seconds = time.perf_counter() - begin

    def step(self, state: State, seed: int, number: int) -> tuple[float, State]:
        """The loss of a step's windows before it, and the state after it."""
        tokens = batch_of(self.text, self.config, seed, number)
        loss, state = self._step(state, tokens, jnp.uint32(seed), jnp.uint32(number))
        return float(loss), state

    def score(self, state: State, seed: int, *, plain: bool) -> float:
        """Bits per byte of held-out text, the layers as in training or, `plain`, in bfloat16."""
        size, windows = self.config.batch, self.held_out.tokens
        padded = np.pad(windows, ((0, -len(windows) % size), (0, 0)))
        histories = {} if plain else state.histories
        pieces = [
            self._score(
                state.params, histories, padded[i : i + size], jnp.uint32(seed), plain=plain
            )
            for i in range(0, len(padded), size)
        ]
        mask = jnp.asarray(self.held_out.mask)
        return float(bits_per_byte(jnp.concatenate(pieces)[: len(windows)], mask))

    def _log_probabilities(
        self,
        params: Parameters,
        histories: dict[str, jax.Array],
        tokens: jax.Array,
        seed: jax.Array,
        *,
        plain: bool,
    ) -> jax.Array:
        model, given = self.config.model, {}
        if not plain:
            # A key that no step has.
            key = key_of(seed, jnp.uint32(self.config.steps))
            states = beside(model, self.recipe, histories, key)
            given = {"linear": hook(self.recipe), "states": states}
        return log_probabilities(forward(params, tokens, model, **given), tokens)

    def measure(self) -> Measured:
        """Times of a few steps and a score; what they compute is thrown away."""
        state = start(self.config, self.recipe, 0)
        _, state = self.step(state, 0, 0)
        begin = time.perf_counter()
        for plain in (False, True):
            self.score(state, 0, plain=plain)
        compiled = self.compile_seconds + time.perf_counter() - begin
        seconds = []
        for number in range(_TRIALS):
            begin = time.perf_counter()
            self.step(state, 0, number)
            seconds.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        for plain in (False, True):
            self.score(state, 0, plain=plain)
        score = time.perf_counter() - begin
        return Measured(compile=compiled, step=statistics.median(seconds), score=score)


def steps_left(config: TrainingConfig, arm: Arm, seed: int, folder: Path, text: np.ndarray) -> int:
    """How many steps an arm and a seed still need, and one more to score; 0 when finished.

    Raises:
      ValueError: what lies in the folder was made under other settings.
    """
    digest = config.digest(arm, text.tobytes())
    if load_finished(folder, arm.name, seed, digest) is not None:
        return 0
    path = run_path(folder, arm.name, seed, STATE)
    if not path.is_file():
        return config.steps + 1
    _, meta = load_arrays(path, _shapes(config, arm))
    check_digest(path, meta["digest"], digest)
    return config.steps + 1 - len(meta["losses"])


def train(program: Program, seed: int, folder: Path, say: Say) -> Finished:
    """Trains an arm with a seed to its last step, from where an earlier run left it.

    The state is stored every `checkpoint_every` steps: a run that is killed at any moment and run
    again gives the bits of one that was not. One that is finished is read.

    Args:
      program: of the arm.
      seed: of start, data and random words.
      folder: the state of the whole study.
      say: is told a line now and then.

    Raises:
      ValueError: what lies in the folder was made under other settings.
    """
    config, arm = program.config, program.arm
    done = load_finished(folder, arm.name, seed, program.digest)
    if done is not None:
        return done
    path = run_path(folder, arm.name, seed, STATE)
    state, losses = start(config, program.recipe, seed), list[float]()
    if path.is_file():
        state, meta = load_arrays(path, state)
        check_digest(path, meta["digest"], program.digest)
        losses = meta["losses"]
        say(f"{arm.name} seed {seed}: goes on after step {len(losses)}")
    seconds = []
    for number in range(len(losses), config.steps):
        _capture(program, seed, number, state, folder)
        begin = time.perf_counter()
        loss, state = program.step(state, seed, number)
        seconds.append(time.perf_counter() - begin)
        losses.append(loss)
        if (number + 1) % config.checkpoint_every == 0:
            save_arrays(path, state, {"digest": program.digest, "losses": losses})
            recent = float(np.mean(losses[-config.record_every :]))
            say(
                f"{arm.name} seed {seed}: step {number + 1} of {config.steps}, "
                f"{recent:.4f} bits per byte, {statistics.median(seconds):.3f} s a step"
            )
    _capture(program, seed, config.steps, state, folder)
    held_out, plain = (program.score(state, seed, plain=plain) for plain in (False, True))
    done = Finished(
        arm=arm.name,
        recipe=arm.recipe,
        seed=seed,
        digest=program.digest,
        losses=losses,
        held_out=held_out,
        held_out_bf16=plain,
        step_seconds=statistics.median(seconds) if seconds else 0.0,
        versions=versions(),
    )
    save_arrays(run_path(folder, arm.name, seed, FINAL), state.params, {"digest": program.digest})
    save_finished(folder, done)
    path.unlink(missing_ok=True)
    return done


def _capture(program: Program, seed: int, number: int, state: State, folder: Path) -> None:
    """Keeps the baseline's parameters for the replay, of the first seed."""
    config = program.config
    if program.arm.name == config.baseline and seed == 0 and number in config.capture_steps:
        meta = {"digest": program.digest, "step": number}
        save_arrays(captured_path(folder, config, number), state.params, meta)


def captured_path(folder: Path, config: TrainingConfig, step: int) -> Path:
    """Where the baseline's parameters before a step lie."""
    return run_path(folder, config.baseline, 0, f"step{step}.npz")


def load_params(path: Path, config: TrainingConfig) -> tuple[Any, dict[str, Any]]:
    """Parameters that a run kept, and what it said beside them."""
    return load_arrays(path, _shapes(config, config.named(config.baseline)).params)


def _shapes(config: TrainingConfig, arm: Arm) -> State:
    """An arm's state without its numbers."""
    return jax.eval_shape(lambda: start(config, arm.on_native(), 0))
