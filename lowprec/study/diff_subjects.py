"""What `lowprec diff` runs both sides of: a model layer by layer, and windows of a text.

Nothing but products and attention is compiled, so that all else is the same program on both sides:
what differs between them is what their recipes and methods do.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from numpy.typing import NDArray

from lowprec.kv import KVMethod, Rope
from lowprec.models.checkpoint import default_checkpoint, load_checkpoint
from lowprec.models.checkpoints import Checkpoint
from lowprec.models.checkpoints.architecture import Hooks
from lowprec.models.checkpoints.caches import FittingHooks, check_method
from lowprec.models.checkpoints.products import recipe_linear
from lowprec.models.checkpoints.run import run_layers
from lowprec.models.checkpoints.texts import TokenWindows
from lowprec.models.corpus import load_held_out, windows
from lowprec.models.transformer import TransformerConfig, apply_layer, bfloat16_linear, rms_norm
from lowprec.study.kv_model import fitted_by_layer
from lowprec.study.kv_sources import HELD_OUT
from lowprec.study.prepared_layers import whole_windows

SMALL = ("byte_lm", "byte_gqa")
"""The repository's models with keys and values."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """A model and a text.

    Attributes:
      name: of the model.
      layers: how many it has.
      tokens: (windows, length) integers, every window whole.
      places: which tokens of a window are the text's and have one before them: they are scored.
      unit: (windows,) integers: the document of each, or its own number. Intervals are over these.
      units: what they are called.
      embed: tokens to the stream (windows, length, width) float32.
      layer: number, stream and hooks to the stream behind the layer.
      head: a stream to logits (windows, length, vocabulary) float32, the same on both sides.
      fit: the methods by layer of one that may be calibrated, on text that is not among `tokens`.
      files: that were read.
    """

    name: str
    layers: int
    tokens: NDArray[Any]
    places: NDArray[np.intp]
    unit: NDArray[np.intp]
    units: Literal["documents", "windows"]
    embed: Callable[[NDArray[Any]], jax.Array]
    layer: Callable[[int, jax.Array, Hooks], jax.Array]
    head: Callable[[jax.Array], jax.Array]
    fit: Callable[[KVMethod], Sequence[KVMethod]]
    files: tuple[Path, ...] = ()


def small_subject(model: str = "byte_lm", *, count: int, calibration: int = 1) -> Subject:
    """A committed model on whole windows of the held-out part `report`, of many documents.

    Args:
      model: `byte_lm` or `byte_gqa`.
      count: how many windows, at most.
      calibration: windows of the part `calibrate` that calibrated methods are fitted to.

    Raises:
      FileNotFoundError: lowprec runs without its repository.
      ValueError: another model.
    """
    if model not in SMALL:
        raise ValueError(f"`model` = {model!r}; use one of {', '.join(SMALL)}")
    checkpoint = default_checkpoint(model)
    held_out = checkpoint.with_name(HELD_OUT)
    params, config = load_checkpoint(checkpoint)
    text, other = (
        windows(load_held_out(held_out, part), config.context) for part in ("report", "calibrate")
    )
    chosen, fitting = whole_windows(text, count), whole_windows(other, calibration)
    return own_subject(
        params,
        config,
        text.tokens[chosen],
        name=model,
        unit=np.unique(text.document[chosen], return_inverse=True)[1],
        units="documents",
        calibration=other.tokens[fitting],
        files=(checkpoint, held_out),
    )


def own_subject(
    params: Any,
    config: TransformerConfig,
    tokens: NDArray[Any],
    *,
    name: str,
    unit: NDArray[np.intp],
    units: Literal["documents", "windows"],
    calibration: NDArray[Any],
    files: tuple[Path, ...] = (),
) -> Subject:
    """A model of `lowprec.models.transformer` on whole windows (windows, tokens)."""
    params = jax.tree.map(jax.numpy.asarray, params)
    rope = Rope(theta=config.rope_theta)

    def layer(number: int, stream: jax.Array, hooks: Hooks) -> jax.Array:
        weights = jax.tree.map(lambda x: x[number], params["layers"])
        return apply_layer(
            stream,
            weights,
            config,
            lambda which, x, w: hooks.linear(f"layers.{number}.{which}", x, w).astype(np.float32),
            lambda q, k, v, _: hooks.attention(number, q, k, v, rope),
        )

    def head(stream: jax.Array) -> jax.Array:
        x = rms_norm(stream, params["final_norm"], config.norm_epsilon)
        return bfloat16_linear(x, params["head"])

    def fit(method: KVMethod) -> Sequence[KVMethod]:
        if method.latent:
            raise TypeError(
                f"kv={method.name}: this model has keys and values, no latents: use a method such "
                f"as kivi_2bit"
            )
        if not method.spec.calibrated:
            return [method] * config.layers
        stacked = fitted_by_layer(method, params, config, calibration)
        return [jax.tree.map(lambda x, n=n: x[n], stacked) for n in range(config.layers)]

    return Subject(
        name=name,
        layers=config.layers,
        tokens=tokens,
        places=np.arange(1, tokens.shape[1]),
        unit=unit,
        units=units,
        embed=lambda tokens: params["embedding"][tokens].astype(np.float32),
        layer=layer,
        head=head,
        fit=fit,
        files=files,
    )


def checkpoint_subject(checkpoint: Checkpoint, text: TokenWindows) -> Subject:
    """A decoder in a folder on windows of a user's text, the first of which is left to fit to.

    Args:
      checkpoint: as `open_checkpoint` returns it.
      text: three windows or more, as `read_text` returns them.

    Raises:
      ValueError: an encoder, or fewer windows.
    """
    model, weights = checkpoint.architecture, checkpoint.weights
    if not model.causal:
        raise ValueError(
            f"{checkpoint.name} is an encoder, which predicts no next token; give a decoder"
        )
    if len(text.tokens) < 3:
        raise ValueError(
            f"an interval needs 2 windows or more beside the first, which calibrated methods are "
            f"fitted to, and the text has {len(text.tokens)}: give a longer text, or shorter "
            f"windows"
        )
    head = model.head(weights)

    def fit(method: KVMethod) -> Sequence[KVMethod]:
        check_method(method, model)
        if not method.spec.calibrated:
            return [method] * model.layers
        fitting = FittingHooks(method)
        passes = {method.name: [fitting.hooks(Hooks(linear=recipe_linear("bf16")))] * model.layers}
        run_layers(checkpoint, text.tokens[:1], passes)
        return fitting.methods

    return Subject(
        name=checkpoint.name,
        layers=model.layers,
        tokens=text.tokens[1:],
        places=1 + np.flatnonzero(text.mask[0, 1:]),
        unit=np.arange(len(text.tokens) - 1),
        units="windows",
        embed=lambda tokens: model.embed(weights, tokens),
        layer=lambda number, stream, hooks: model.layer(weights, number, stream, hooks),
        head=lambda stream: head(stream, recipe_linear("bf16")),
        fit=fit,
    )
