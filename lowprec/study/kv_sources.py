"""Where keys and values come from: the small model, drawn ones, and the user's own file."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lowprec.kv import Rope
from lowprec.models.checkpoint import (
    default_checkpoint,
    load_checkpoint,
    load_latent_checkpoint,
)
from lowprec.models.copy_spans import planted_keys
from lowprec.models.corpus import Windows, load_held_out, windows
from lowprec.models.key_values import MEMBERS, KeyValueSample, load_key_values
from lowprec.models.synthetic_kv import SyntheticKV, generate
from lowprec.study.kv_compare import Source, Text, captured_samples

HELD_OUT = "held_out.jsonl"
"""The text beside the checkpoint."""

GQA, MLA = "byte_gqa", "byte_mla"
"""The checkpoints of the two models."""

ROPE_ERROR = 0.02
"""Largest relative difference of keys after RoPE from those before it, turned: rounding both to
bfloat16 moves them by at most 2^-7 together."""


def spread(text: Windows, count: int) -> Windows:
    """At most so many windows of a text, evenly spread."""
    chosen = np.linspace(0, len(text.tokens) - 1, min(count, len(text.tokens))).round().astype(int)
    return dataclasses.replace(
        text, tokens=text.tokens[chosen], mask=text.mask[chosen], document=text.document[chosen]
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyQuestions:
    """Which planted keys are asked for: see `planted_keys`."""

    distances: Sequence[int]
    cases: int
    digits: int
    seed: int


def small_model_text(
    *,
    scored: int,
    calibration: int,
    prompt: int,
    model: str = GQA,
    keys: KeyQuestions | None = None,
) -> Text:
    """A committed model, windows of the part `report` to score, of `calibrate` to fit to.

    Args:
      scored, calibration: windows, evenly spread.
      prompt: tokens of a window that are not scored.
      model: `byte_gqa` or `byte_mla`.
      keys: what is asked for in text of the part `report`; None for nothing.

    Raises:
      FileNotFoundError: lowprec runs without its repository.
    """
    checkpoint = default_checkpoint(model)
    params, shape = (load_latent_checkpoint if model == MLA else load_checkpoint)(checkpoint)
    documents = {
        name: load_held_out(checkpoint.with_name(HELD_OUT), name)
        for name in ("calibrate", "report")
    }
    parts = {name: windows(x, shape.context) for name, x in documents.items()}
    asked = None
    if keys is not None:
        asked = planted_keys(documents["report"], length=shape.context, **dataclasses.asdict(keys))
    return Text(
        params=params,
        config=shape,
        calibration=spread(parts["calibrate"], calibration).tokens,
        scored=spread(parts["report"], scored),
        prompt=prompt,
        asked=asked,
    )


def captured_source(text: Text, count: int) -> Source:
    """Keys and values of the model's layers on so many windows that are scored.

    Methods are fitted to the same layer's on the windows to fit to.
    """
    chosen = spread(text.scored, count).tokens
    fitting = [captured_samples(text.params, row, text.shape) for row in text.calibration]
    samples, calibration = [], {}
    for number, row in enumerate(chosen):
        for layer, sample in enumerate(captured_samples(text.params, row, text.shape)):
            name = f"{sample.layer} of window {number}"
            samples.append(dataclasses.replace(sample, layer=name))
            calibration[name] = [layers[layer] for layers in fitting]
    rope = Rope(theta=text.shape.rope_theta)
    return Source(name="captured", samples=samples, calibration=calibration, rope=rope)


def synthetic_source(seeds: Sequence[int], tokens: int) -> Source:
    """Drawn keys and values, a layer a seed.

    Methods are fitted to another sequence of the same layer: means of channels are a layer's, as
    they are in a model.
    """
    spec = SyntheticKV(tokens=tokens, batch=2)
    samples, calibration = [], {}
    for seed in seeds:
        both = dataclasses.replace(generate(spec, seed), layer=f"seed {seed}")
        samples.append(_taken(both, slice(0, 1)))
        calibration[both.layer] = [_taken(both, slice(1, 2))]
    rope = Rope(theta=spec.rope_theta)
    return Source(name="synthetic", samples=samples, calibration=calibration, rope=rope)


def _taken(sample: KeyValueSample, batch: slice) -> KeyValueSample:
    given = {name: getattr(sample, name) for name in MEMBERS}
    kept = {name: None if x is None else x[batch] for name, x in given.items()}
    return dataclasses.replace(sample, **kept)


def file_source(path: Path, rope_theta: float | None = None) -> Source:
    """The second halves of a file's layers, and the first ones for methods to fit to.

    Args:
      path: for `load_key_values`.
      rope_theta: the base of RoPE. With it the second half is turned back as if it stood at
        position 0; without it methods that need keys before RoPE are left out.

    Raises:
      ValueError: a layer of a single token, or keys that `rope_theta` does not turn into those
        after RoPE; and what `load_key_values` raises.
    """
    rope = None if rope_theta is None else Rope(theta=rope_theta)
    samples, calibration = [], {}
    for sample in load_key_values(path):
        if sample.k.shape[2] < 2:
            raise ValueError(
                f"{path}: layer {sample.layer!r} has a single token; methods are fitted to the "
                f"first half of at least two, and reported on the second"
            )
        if rope is not None:
            _check_rope(sample, rope, path)
        first, second = halves(sample, rope)
        samples.append(second)
        calibration[sample.layer] = [first]
    return Source(name=path.name, samples=samples, calibration=calibration, rope=rope)


def halves(sample: KeyValueSample, rope: Rope | None) -> tuple[KeyValueSample, KeyValueSample]:
    """The first and the second half of a sample's tokens, each with the queries it has.

    With `rope` keys and queries after RoPE are turned back, so that the second half begins at
    position 0.
    """
    middle = sample.k.shape[2] // 2
    parts = []
    for first, end in ((0, middle), (middle, sample.k.shape[2])):
        arrays = {}
        for name in MEMBERS:
            x = getattr(sample, name)
            if x is None:
                continue
            # Queries are those of the last tokens.
            skipped = sample.k.shape[2] - x.shape[2]
            part = x[:, :, max(first - skipped, 0) : max(end - skipped, 0)]
            if rope is not None and first and name in ("k", "q"):
                part = _turned(part, rope, np.full(part.shape[2], -first))
            arrays[name] = part if part.shape[2] else None
        parts.append(dataclasses.replace(sample, **arrays))
    return parts[0], parts[1]


def _check_rope(sample: KeyValueSample, rope: Rope, path: Path) -> None:
    if sample.k_before_rope is None:
        return
    turned = _turned(sample.k_before_rope, rope, sample.positions)
    k = np.asarray(sample.k, np.float32)
    away = np.linalg.norm(turned - k) / np.linalg.norm(k)
    if not away <= ROPE_ERROR:
        raise ValueError(
            f"{path}: layer {sample.layer!r}: `rope_theta` = {rope.theta:g} turns k_before_rope "
            f"into keys {100 * away:.2g} % away from k; give the model's own base, and pair "
            f"element i with element i + dim / 2"
        )


def _turned(x: np.ndarray, rope: Rope, positions: np.ndarray) -> np.ndarray:
    return np.asarray(rope.turn(jnp.asarray(x, jnp.float32), jnp.asarray(positions)))
