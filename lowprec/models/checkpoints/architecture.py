"""What every architecture has in common: the hooks a model is run with, and parts of layers.

A model is run layer by layer, and a layer product by product, each weight read from its shard when
its product comes: no more than one is ever held. Nothing but these parts is compiled, so that a
hook sees arrays and not tracers, and may keep what it sees.
"""

import abc
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.kv import Rope
from lowprec.models import transformer
from lowprec.models.checkpoints.settings import Settings
from lowprec.models.checkpoints.weights import Weights
from lowprec.models.transformer import NamedLinear

Attention = Callable[[int, jax.Array, jax.Array, jax.Array, Rope], jax.Array]
"""`attention(layer, q, k, v, rope) -> mixed`: q (batch, heads, tokens, head_dim), k and v (batch,
kv_heads, tokens, head_dim), float32, q and k before RoPE; mixed (batch, tokens, heads * head_dim).
"""

LatentAttention = Callable[[int, jax.Array, jax.Array, jax.Array, jax.Array, float], jax.Array]
"""`attention(layer, q_latent, q_rope, latent, k_rope, scale) -> mixed`, as in
`lowprec.models.latent_transformer.latent_attention`: mixed is (batch, heads, tokens, latent_dim).
"""

LatentObserver = Callable[[int, jax.Array, jax.Array], None]
"""`observer(layer, latent, k_rope)`: (batch, tokens, latent_dim) and (batch, tokens, rope_dim)."""

MOST_ROWS = 128
"""Rows of a product are a multiple of this, or a power of two below it."""


def float32_linear(name: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """The product of a layer's input and its weight in this machine's own float32."""
    del name
    return by_rows(lambda x: _product(x, w), x)


def by_rows(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """function(*arrays) of arrays (..., n) as rows, with zeros added up to one of few numbers.

    A compiled function is of given shapes, and experts see any number of tokens: without zeros it
    would be compiled for each. They change no scale, as they are never the largest.

    Returns:
      (..., n) of whatever width the function's rows have.
    """
    shape = arrays[0].shape[:-1]
    count = math.prod(shape)
    unit = min(MOST_ROWS, 1 << (count - 1).bit_length())
    missing = -count % unit
    if not missing:
        y = function(*(x.reshape(-1, x.shape[-1]) for x in arrays))
        return y.reshape(*shape, -1)
    # On the host, where nothing is compiled for a shape.
    rows = (np.asarray(x).reshape(-1, x.shape[-1]) for x in arrays)
    padded = [jnp.asarray(np.pad(x, ((0, missing), (0, 0)))) for x in rows]
    return jnp.asarray(np.asarray(function(*padded))[:count].reshape(*shape, -1))


def exact_attention(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, rope: Rope) -> jax.Array:
    """RoPE and causal softmax attention in float32."""
    del layer
    return _rotated_attention(q, k, v, rope=rope)


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a pass through a model computes its products and its attention with.

    Attributes:
      linear: for every linear layer, by name, such as `layers.0.attention.q`, and `head`.
      attention: of models with keys and values.
      latent_attention: of models with latents (MLA); None makes every head's keys and values.
      latents: told what a cache of latents would hold.
    """

    linear: NamedLinear = float32_linear
    attention: Attention = exact_attention
    latent_attention: LatentAttention | None = None
    latents: LatentObserver | None = None


class Architecture(abc.ABC):
    """What a config.json becomes: frozen, hashable, without arrays. A family is a subclass.

    Attributes:
      stack: what the names of all layers' tensors begin with, before the layer's number.
      vocabulary, layers, width, context: of the model.
      causal: whether a token sees only those before it, so that the logits predict the next one.
      latent: whether its cache holds latents (MLA).
    """

    stack: str = "model.layers."
    vocabulary: int
    layers: int
    width: int
    context: int
    causal: bool = True
    latent: bool = False

    @classmethod
    @abc.abstractmethod
    def read(cls, settings: Settings, name: str) -> Self:
        """The model that a config.json of the architecture `name` describes."""

    @abc.abstractmethod
    def embed(self, weights: Weights, tokens: np.ndarray) -> jax.Array:
        """The residual stream (batch, tokens, width) of tokens (batch, tokens), float32."""

    @abc.abstractmethod
    def layer(self, weights: Weights, number: int, stream: jax.Array, hooks: Hooks) -> jax.Array:
        """The stream after a layer."""

    @abc.abstractmethod
    def head(self, weights: Weights) -> Callable[[jax.Array, NamedLinear], jax.Array]:
        """What makes logits (batch, tokens, vocabulary) of a stream, its weights read once."""


def linear_with_bias(
    weights: Weights,
    tensor: str,
    name: str,
    x: jax.Array,
    outside: int,
    linear: NamedLinear,
    *,
    bias: bool,
) -> jax.Array:
    """x @ w, and the bias: the tensors `tensor`.weight and `tensor`.bias, under the hook's name."""
    y = linear(name, x, weights.matrix(f"{tensor}.weight", x.shape[-1], outside))
    y = y.astype(jnp.float32)
    return add_vector(y, weights.vector(f"{tensor}.bias", outside)) if bias else y


@jax.jit
def add_vector(x: jax.Array, vector: jax.Array) -> jax.Array:
    """x (..., n) + vector (n,)."""
    return x + jnp.broadcast_to(vector, x.shape)


def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """SwiGLU's inside: silu(gate) * up."""
    return by_rows(_gated, gate, up)


@jax.jit
def _gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    return jax.nn.silu(gate) * up


@functools.partial(jax.jit, static_argnames=("epsilon",))
def rms_norm(x: jax.Array, gain: jax.Array, *, epsilon: float) -> jax.Array:
    """`lowprec.models.transformer.rms_norm`, compiled."""
    return transformer.rms_norm(x, gain, epsilon)


@jax.jit
def _product(x: jax.Array, w: jax.Array) -> jax.Array:
    rows = x.astype(jnp.float32)
    return jnp.matmul(rows, w.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames=("rope",))
def _rotated_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, rope: Rope) -> jax.Array:
    places = jnp.arange(q.shape[2])
    return transformer.attention(rope.turn(q, places), rope.turn(k, places), v)
