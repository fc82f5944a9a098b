"""What experts and devices send each other: captured from the small model, or drawn at random.

The small model has one dense MLP a layer where a mixture has many experts. What it would be sent is
the MLP's input, and what it would send back its output; backward the gradient of that output, and
of that input. The outputs of attention are added to the same stream as those of the MLP.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.models.capture import inputs_and_gradients
from lowprec.models.checkpoint import default_checkpoint, load_checkpoint
from lowprec.models.corpus import load_held_out, windows
from lowprec.models.parameters import Parameters, TransformerConfig
from lowprec.models.transformer import bfloat16_linear
from lowprec.study.crest import draw_blocks
from lowprec.study.prepared_layers import whole_windows

STAGES = ("dispatch", "combine", "dispatch gradient", "combine gradient", "other inputs")
"""Forward to the experts and back, backward to them and back, and the other layers' inputs."""
UNITS, TILE = 14, 128
DRAWN: Mapping[str, tuple[str, float]] = {
    "normal": ("generalised_normal", 2.0),
    "Laplace": ("generalised_normal", 1.0),
    "Student t (3)": ("student_t", 3.0),
    "one outlier": ("outlier", 0.9),
}
"""Synthetic tiles by name: a family of `lowprec.study.crest` and its parameter."""


class Sent(NamedTuple):
    """A tensor that is sent, before it is rounded to anything.

    Attributes:
      stage: one of `STAGES`, or for synthetic ones the name.
      name: such as `layers.0.mlp.down.y`: a layer and its input x, output y or their gradients; or
        the name of a distribution.
      values: float32 (units, tokens, channels); a unit is a document, or a seed.
    """

    stage: str
    name: str
    values: NDArray[np.float32]


def captured_tensors(documents: int = UNITS, part: str = "report") -> list[Sent]:
    """Of the stored model on the first whole window of so many documents, each a unit."""
    checkpoint = default_checkpoint()
    params, config = load_checkpoint(checkpoint)
    text = windows(load_held_out(checkpoint.with_name("held_out.jsonl"), part), config.context)
    chosen = whole_windows(text, min(documents, text.document_count))
    tokens = jnp.asarray(text.tokens[chosen])
    found = _sent(params, tokens, jnp.asarray(text.mask[chosen]), config)
    return [
        Sent(stage, f"layers.{layer}.{name}", np.asarray(values[layer]))
        for (stage, name), values in found.items()
        for layer in range(config.layers)
    ]


def _sent(
    params: Parameters, tokens: jax.Array, mask: jax.Array, config: TransformerConfig
) -> dict[tuple[str, str], jax.Array]:
    """By stage and name, each (layers, units, tokens, channels)."""
    captured, backward = inputs_and_gradients(params, tokens, mask, config)
    inputs, gradients = captured["layers"], backward["layers"]
    mlp, heads = params["layers"]["mlp"], params["layers"]["attention"]
    product = jax.vmap(bfloat16_linear)
    back: Any = jax.vmap(lambda dy, w: bfloat16_linear(dy, w.T))
    return {
        ("dispatch", "mlp.up.x"): inputs["mlp.up"],
        ("combine", "mlp.down.y"): product(inputs["mlp.down"], mlp["down"]),
        ("combine", "attention.o.y"): product(inputs["attention.o"], heads["o"]),
        ("dispatch gradient", "mlp.down.dy"): gradients["mlp.down"],
        ("combine gradient", "mlp.up.dx"): back(gradients["mlp.gate"], mlp["gate"])
        + back(gradients["mlp.up"], mlp["up"]),
        ("other inputs", "attention.q.x"): inputs["attention.q"],
        ("other inputs", "attention.o.x"): inputs["attention.o"],
        ("other inputs", "mlp.down.x"): inputs["mlp.down"],
    }


def drawn_tensors(seed: int, tokens: int = 512, channels: int = 256) -> list[Sent]:
    """Independent tiles of every kind of `DRAWN`; a unit is a seed."""
    blocks = tokens * channels // TILE
    return [
        Sent(
            name,
            name,
            np.stack(
                [
                    draw_blocks(*kind, blocks, TILE, np.random.default_rng([seed, unit]))
                    for unit in range(UNITS)
                ]
            ).reshape(UNITS, tokens, channels),
        )
        for name, kind in DRAWN.items()
    ]
