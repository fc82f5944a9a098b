"""BERT and RoBERTa: encoders, whose tokens see those behind them too and are told from them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.models.checkpoints.architecture import (
    Architecture,
    Hooks,
    add_vector,
    exact_attention,
    linear_with_bias,
)
from lowprec.models.checkpoints.settings import Settings
from lowprec.models.checkpoints.weights import Weights
from lowprec.models.transformer import NamedLinear, split_heads

_HIGHEST = jax.lax.Precision.HIGHEST


@dataclass(frozen=True, kw_only=True)
class Head:
    """Names of the tensors that make logits: a layer, its norm, and the output head."""

    dense: str
    norm: str
    decoder: str
    bias: str


BERT_HEAD = Head(
    dense="cls.predictions.transform.dense",
    norm="cls.predictions.transform.LayerNorm",
    decoder="cls.predictions.decoder.weight",
    bias="cls.predictions.bias",
)
ROBERTA_HEAD = Head(
    dense="lm_head.dense",
    norm="lm_head.layer_norm",
    decoder="lm_head.decoder.weight",
    bias="lm_head.bias",
)


@dataclass(frozen=True, kw_only=True)
class Bert(Architecture):
    """Attention and a feed-forward layer, each with a layer norm behind its residual sum.

    Every token is of the first segment (token type 0).

    Attributes:
      body: what the names of all tensors but the head's begin with.
      head_names: of the head's.
      padding: RoBERTa's token that fills texts up: it stands at the position of its own number, and
        the others are counted from the next one on. None where positions are places in the text.
      vocabulary, layers, width, heads, hidden: of the model.
      context: positions that a text may have.
      segments: kinds of segment that it has embeddings for.
      norm_epsilon: of all norms.
      tied: whether the head is the table of embeddings.
    """

    body: str
    head_names: Head
    padding: int | None
    vocabulary: int
    layers: int
    width: int
    heads: int
    hidden: int
    context: int
    segments: int
    norm_epsilon: float
    tied: bool
    stack: str
    causal: bool = False

    @classmethod
    def read(cls, settings: Settings, name: str) -> Self:
        """See `Architecture.read`."""
        roberta = name.startswith("Roberta")
        body = "roberta" if roberta else "bert"
        padding = settings.whole("pad_token_id", least=0) if roberta else None
        settings.one_of("hidden_act", ("gelu",), "gelu")
        settings.one_of("position_embedding_type", ("absolute",), "absolute")
        width, heads = settings.whole("hidden_size"), settings.whole("num_attention_heads")
        if width % heads:
            raise settings.error("num_attention_heads", f"= {heads} must divide {width}")
        places = settings.whole("max_position_embeddings")
        if padding is not None and places <= padding + 1:
            raise settings.error("max_position_embeddings", f"= {places} leaves no position")
        return cls(
            body=body,
            head_names=ROBERTA_HEAD if roberta else BERT_HEAD,
            padding=padding,
            stack=f"{body}.encoder.layer.",
            vocabulary=settings.whole("vocab_size"),
            layers=settings.whole("num_hidden_layers"),
            width=width,
            heads=heads,
            hidden=settings.whole("intermediate_size"),
            context=places if padding is None else places - padding - 1,
            segments=settings.whole("type_vocab_size", 2),
            norm_epsilon=settings.number("layer_norm_eps", 1e-12),
            tied=settings.flag("tie_word_embeddings", True),
        )

    def embed(self, weights: Weights, tokens: np.ndarray) -> jax.Array:
        """See `Architecture.embed`."""
        name = f"{self.body}.embeddings"
        shape = (self.vocabulary, self.width)
        words = weights.rows(f"{name}.word_embeddings.weight", shape, tokens)
        places = np.broadcast_to(np.arange(tokens.shape[1])[None], tokens.shape)
        size = self.context
        if self.padding is not None:
            said = tokens != self.padding
            places = np.where(said, np.cumsum(said, axis=1), 0) + self.padding
            size += self.padding + 1
        shape = (size, self.width)
        positions = weights.rows(f"{name}.position_embeddings.weight", shape, places)
        shape = (self.segments, self.width)
        kinds = weights.rows(f"{name}.token_type_embeddings.weight", shape, np.zeros_like(places))
        return self._norm(weights, f"{name}.LayerNorm", words + kinds + positions)

    def layer(self, weights: Weights, number: int, stream: jax.Array, hooks: Hooks) -> jax.Array:
        """See `Architecture.layer`."""
        if hooks.attention is not exact_attention:
            raise ValueError("an encoder keeps no cache; run it with exact attention")
        tensor, name = f"{self.stack}{number}", f"layers.{number}"

        def linear(stored: str, own: str, x: jax.Array, outside: int) -> jax.Array:
            names = (f"{tensor}.{stored}", f"{name}.{own}")
            return linear_with_bias(weights, *names, x, outside, hooks.linear, bias=True)

        parts = {"q": "query", "k": "key", "v": "value"}
        q, k, v = (
            split_heads(
                linear(f"attention.self.{stored}", f"attention.{own}", stream, self.width),
                self.width // self.heads,
            )
            for own, stored in parts.items()
        )
        mixed = _attention(q, k, v)
        said = linear("attention.output.dense", "attention.o", mixed, self.width)
        stream = self._norm(weights, f"{tensor}.attention.output.LayerNorm", stream + said)
        inside = _gelu(linear("intermediate.dense", "mlp.up", stream, self.hidden))
        said = linear("output.dense", "mlp.down", inside, self.width)
        return self._norm(weights, f"{tensor}.output.LayerNorm", stream + said)

    def head(self, weights: Weights) -> Callable[[jax.Array, NamedLinear], jax.Array]:
        """See `Architecture.head`: a layer named `transform`, and the head."""
        names = self.head_names
        tied = f"{self.body}.embeddings.word_embeddings.weight"
        table = tied if self.tied else names.decoder
        matrix = weights.matrix(table, self.width, self.vocabulary)
        bias = weights.vector(names.bias, self.vocabulary)

        def logits(stream: jax.Array, linear: NamedLinear) -> jax.Array:
            own = (names.dense, "transform")
            inside = linear_with_bias(weights, *own, stream, self.width, linear, bias=True)
            x = self._norm(weights, names.norm, _gelu(inside))
            return add_vector(linear("head", x, matrix).astype(jnp.float32), bias)

        return logits

    def _norm(self, weights: Weights, tensor: str, x: jax.Array) -> jax.Array:
        # The oldest published files have the names of TensorFlow.
        old = f"{tensor}.weight" not in weights and f"{tensor}.gamma" in weights
        names = ("gamma", "beta") if old else ("weight", "bias")
        gain, shift = (weights.vector(f"{tensor}.{name}", self.width) for name in names)
        return _layer_norm(x, gain, shift, epsilon=self.norm_epsilon)


@functools.partial(jax.jit, static_argnames=("epsilon",))
def _layer_norm(x: jax.Array, gain: jax.Array, shift: jax.Array, *, epsilon: float) -> jax.Array:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    away = x - mean
    variance = jnp.mean(jnp.square(away), axis=-1, keepdims=True)
    gains, shifts = (jnp.broadcast_to(vector, x.shape) for vector in (gain, shift))
    return away * jax.lax.rsqrt(variance + epsilon) * gains + shifts


@jax.jit
def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


@jax.jit
def _attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax attention of (batch, heads, tokens, dim) to all tokens, heads side by side."""
    scores = jnp.einsum("bhqd,bhsd->bhqs", q, k, precision=_HIGHEST) * q.shape[-1] ** -0.5
    mixed = jnp.einsum("bhqs,bhsd->bhqd", jax.nn.softmax(scores, axis=-1), v, precision=_HIGHEST)
    batch, _, tokens, _ = q.shape
    return mixed.swapaxes(1, 2).reshape(batch, tokens, -1)
