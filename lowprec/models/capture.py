"""The operands that a real model multiplies: inputs, weights and output gradients of every layer.

Output gradients are the gradient with respect to zeros that are added to the output of each linear
layer. That needs no change to the model and no hook into the backward pass, and it works through
the scan, whose slices carry one zero array a layer.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lowprec.models.parameters import Parameters, TransformerConfig, linear_shapes
from lowprec.models.scoring import log_probabilities
from lowprec.models.transformer import (
    apply_layer,
    bfloat16_linear,
    check_tokens,
    rms_norm,
    rotate,
    split_heads,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerOperands:
    """What one linear layer y = x @ w multiplies, forward and backward; all bfloat16.

    Attributes:
      layer: such as `layers.0.attention.q`, or `head`.
      x: (tokens, in) the input; the batch is flattened into tokens.
      w: (in, out) the weight.
      dy: (tokens, out) the gradient of the mean next-byte loss (in nats) with respect to y.
    """

    layer: str
    x: jax.Array
    w: jax.Array
    dy: jax.Array


@dataclass(frozen=True, eq=False, kw_only=True)
class KeyValue:
    """What one layer's cache holds for one sequence, each (kv_heads, tokens, head_dim) bfloat16.

    Attributes:
      layer: such as `layers.0`.
      k_before_rope: the keys as they leave the linear layer.
      k: the keys after RoPE, at positions 0, 1, 2, ...
      v: the values.
    """

    layer: str
    k_before_rope: jax.Array
    k: jax.Array
    v: jax.Array


def capture(
    params: Parameters,
    tokens: jax.Array,
    config: TransformerConfig,
    *,
    mask: jax.Array | None = None,
) -> list[LayerOperands]:
    """The operands of every linear layer, in call order and the head last.

    The model runs with its default products (`bfloat16_linear`), so `x` and `w` are bit for bit
    what it multiplied; `dy` is computed in float32 and rounded once.

    Args:
      params: as `init` or `load_checkpoint` returns them.
      tokens: (batch, tokens) integers, at least two tokens.
      config: the shape of the model.
      mask: (batch, tokens - 1) bool, the targets whose loss counts, as in `corpus.Windows`;
        all by default. Inputs at padding are captured too: cut the padding off where it matters.

    Raises:
      TypeError: tokens are not integers.
      ValueError: tokens do not fit the config, or the mask does not fit the tokens.

    >>> import jax
    >>> from lowprec.models.parameters import init
    >>> config = TransformerConfig(
    ...     vocabulary=32, layers=1, width=32, heads=2, kv_heads=2, head_dim=16, hidden=32
    ... )
    >>> params = init(jax.random.key(0), config)
    >>> [layer.layer for layer in capture(params, jnp.arange(8)[None], config)][-2:]
    ['layers.0.mlp.down', 'head']
    """
    check_tokens(tokens, config)
    kept = jnp.ones((tokens.shape[0], tokens.shape[1] - 1), bool) if mask is None else mask
    if kept.shape != (tokens.shape[0], tokens.shape[1] - 1) or not kept.size:
        raise ValueError(
            "`mask` must be (batch, tokens - 1) with at least 2 tokens, "
            f"got the shape {kept.shape} for tokens {tokens.shape}"
        )
    inputs, gradients = inputs_and_gradients(params, tokens, kept, config)
    operands = []
    for layer in range(config.layers):
        for name in linear_shapes(config):
            group, weight = name.split(".")
            w = params["layers"][group][weight][layer]
            x, dy = inputs["layers"][name][layer], gradients["layers"][name][layer]
            operands.append(_operands(f"layers.{layer}.{name}", x, w, dy))
    operands.append(_operands("head", inputs["head"], params["head"], gradients["head"]))
    return operands


def capture_key_values(
    params: Parameters, tokens: jax.Array, config: TransformerConfig
) -> list[KeyValue]:
    """The keys and values of every layer for one sequence.

    Args:
      params: as `init` or `load_checkpoint` returns them.
      tokens: (tokens,) integers, one sequence.
      config: the shape of the model.

    Raises:
      TypeError: tokens are not integers.
      ValueError: tokens are not one sequence that fits the config.

    >>> import jax
    >>> from lowprec.models.parameters import init
    >>> config = TransformerConfig(
    ...     vocabulary=32, layers=1, width=32, heads=2, kv_heads=2, head_dim=16, hidden=32
    ... )
    >>> params = init(jax.random.key(0), config)
    >>> capture_key_values(params, jnp.arange(8), config)[0].k.shape
    (2, 8, 16)
    """
    if tokens.ndim != 1:
        raise ValueError(f"`tokens` must be one sequence (tokens,), got the shape {tokens.shape}")
    check_tokens(tokens[None], config)
    keys, values = _keys_and_values(params, tokens[None], config)
    turned = rotate(keys, config)
    before, after, v = (array.astype(jnp.bfloat16) for array in (keys, turned, values))
    return [
        KeyValue(layer=f"layers.{n}", k_before_rope=before[n], k=after[n], v=v[n])
        for n in range(config.layers)
    ]


def output_zeros(config: TransformerConfig, batch: int, tokens: int) -> dict[str, Any]:
    """Zeros in the shape of every linear layer's output: `layers` (stacked, by name) and `head`."""
    layers = {
        name: jnp.zeros((config.layers, batch, tokens, out), jnp.float32)
        for name, (_, out) in linear_shapes(config).items()
    }
    return {"layers": layers, "head": jnp.zeros((batch, tokens, config.vocabulary), jnp.float32)}


def perturbed_loss(
    perturbations: dict[str, Any],
    params: Parameters,
    tokens: jax.Array,
    mask: jax.Array,
    config: TransformerConfig,
) -> tuple[jax.Array, dict[str, Any]]:
    """Mean next-byte loss in nats with `perturbations` added to the linear layers' outputs.

    Returns the loss and the linear layers' inputs, in the structure of `output_zeros`.
    """
    stream = params["embedding"][tokens].astype(jnp.float32)
    stream, (inputs, _) = _scan_layers(stream, params, config, perturbations["layers"])
    x = rms_norm(stream, params["final_norm"], config.norm_epsilon)
    logits = bfloat16_linear(x, params["head"]) + perturbations["head"]
    counted = jnp.where(mask, log_probabilities(logits, tokens), 0.0)
    return -jnp.sum(counted) / jnp.sum(mask, dtype=jnp.float32), {"layers": inputs, "head": x}


@jax.jit(static_argnames="config")
def inputs_and_gradients(
    params: Parameters, tokens: jax.Array, mask: jax.Array, config: TransformerConfig
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `capture` rounds: the linear layers' inputs and output gradients in float32.

    Both come in the structure of `output_zeros`; the arguments are those of `capture`.
    """
    zeros = output_zeros(config, *tokens.shape)
    gradient = jax.grad(perturbed_loss, has_aux=True)
    gradients, inputs = gradient(zeros, params, tokens, mask, config)
    return inputs, gradients


def _scan_layers(
    stream: jax.Array, params: Parameters, config: TransformerConfig, perturbations: Any
) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
    """The stream after all layers, and each linear layer's inputs and outputs, stacked."""

    def layer(stream: jax.Array, slices: Any) -> Any:
        weights, zeros = slices
        inputs: dict[str, jax.Array] = {}
        outputs: dict[str, jax.Array] = {}

        def linear(name: str, x: jax.Array, w: jax.Array) -> jax.Array:
            inputs[name] = x
            outputs[name] = bfloat16_linear(x, w) + zeros[name]
            return outputs[name]

        return apply_layer(stream, weights, config, linear), (inputs, outputs)

    return jax.lax.scan(layer, stream, (params["layers"], perturbations))


@jax.jit(static_argnames="config")
def _keys_and_values(
    params: Parameters, tokens: jax.Array, config: TransformerConfig
) -> tuple[jax.Array, jax.Array]:
    """Keys before RoPE and values of one sequence, (layers, kv_heads, tokens, head_dim)."""
    zeros = output_zeros(config, *tokens.shape)["layers"]
    stream = params["embedding"][tokens].astype(jnp.float32)
    _, (_, outputs) = _scan_layers(stream, params, config, zeros)
    split = jax.vmap(lambda array: split_heads(array, config.head_dim))
    return split(outputs["attention.k"])[:, 0], split(outputs["attention.v"])[:, 0]


def _operands(layer: str, x: jax.Array, w: jax.Array, dy: jax.Array) -> LayerOperands:
    # Not bfloat16 before the flattening: the model itself rounds x and w exactly once, from these.
    rows, gradient = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    x16, w16, dy16 = (array.astype(jnp.bfloat16) for array in (rows, w, gradient))
    return LayerOperands(layer=layer, x=x16, w=w16, dy=dy16)
