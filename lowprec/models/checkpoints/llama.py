"""Llama, Qwen2 and Qwen3: decoders that differ in biases and in norms of queries and keys."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import jax
import numpy as np

from lowprec.models.checkpoints.architecture import (
    Architecture,
    Hooks,
    gated,
    linear_with_bias,
    rms_norm,
)
from lowprec.models.checkpoints.rope import CheckpointRope, read_rope
from lowprec.models.checkpoints.settings import Settings
from lowprec.models.checkpoints.weights import Weights
from lowprec.models.transformer import NamedLinear, split_heads


@dataclass(frozen=True, kw_only=True)
class LlamaLike(Architecture):
    """Grouped-query attention with RoPE, then SwiGLU, each behind an RMS norm.

    Attributes:
      vocabulary, layers, width, heads, kv_heads, head_dim, hidden, norm_epsilon: as in
        `lowprec.models.parameters.TransformerConfig`.
      context: positions that the model was made for; no more than its sliding window, within which
        attention is the same with and without one.
      rope: of queries and keys.
      input_bias, output_bias: whether the layers before and behind attention have biases.
      mlp_bias: whether those of SwiGLU have.
      head_norms: whether every head's queries and keys are normed before RoPE (Qwen3).
      tied: whether the head is the table of embeddings.
    """

    vocabulary: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    context: int
    norm_epsilon: float
    rope: CheckpointRope
    input_bias: bool
    output_bias: bool
    mlp_bias: bool
    head_norms: bool
    tied: bool

    @classmethod
    def read(cls, settings: Settings, name: str) -> Self:
        """See `Architecture.read`."""
        settings.one_of("hidden_act", ("silu",), "silu")
        width, heads = settings.whole("hidden_size"), settings.whole("num_attention_heads")
        kv_heads = settings.whole("num_key_value_heads", heads)
        # What transformers takes where a config.json says nothing.
        usual = 128 if name.startswith("Qwen3") else max(width // heads, 1)
        head_dim = settings.whole("head_dim", usual)
        if heads % kv_heads:
            text = f"= {kv_heads} must divide `num_attention_heads` = {heads}"
            raise settings.error("num_key_value_heads", text)
        bias = name.startswith("Qwen2") or settings.flag("attention_bias", False)
        return cls(
            vocabulary=settings.whole("vocab_size"),
            layers=settings.whole("num_hidden_layers"),
            width=width,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            hidden=settings.whole("intermediate_size"),
            context=_context(settings),
            norm_epsilon=settings.number("rms_norm_eps"),
            rope=read_rope(settings, head_dim),
            input_bias=bias,
            output_bias=bias and not name.startswith("Qwen2"),
            mlp_bias=settings.flag("mlp_bias", False),
            head_norms=name.startswith("Qwen3"),
            tied=settings.flag("tie_word_embeddings", False),
        )

    def embed(self, weights: Weights, tokens: np.ndarray) -> jax.Array:
        """See `Architecture.embed`."""
        return weights.rows("model.embed_tokens.weight", (self.vocabulary, self.width), tokens)

    def layer(self, weights: Weights, number: int, stream: jax.Array, hooks: Hooks) -> jax.Array:
        """See `Architecture.layer`."""
        prefix = f"model.layers.{number}"
        x = self._norm(weights, f"{prefix}.input_layernorm", stream)
        stream = stream + self._attention(weights, number, x, hooks)
        x = self._norm(weights, f"{prefix}.post_attention_layernorm", stream)
        return stream + gated_layers(
            weights,
            f"{prefix}.mlp",
            f"layers.{number}.mlp",
            x,
            self.hidden,
            hooks.linear,
            bias=self.mlp_bias,
        )

    def head(self, weights: Weights) -> Callable[[jax.Array, NamedLinear], jax.Array]:
        """See `Architecture.head`."""
        return normed_head(weights, self.vocabulary, self.width, self.norm_epsilon, tied=self.tied)

    def _attention(self, weights: Weights, number: int, x: jax.Array, hooks: Hooks) -> jax.Array:
        tensor, name = f"model.layers.{number}.self_attn", f"layers.{number}.attention"

        def heads(part: str, count: int) -> jax.Array:
            names = (f"{tensor}.{part}_proj", f"{name}.{part}")
            outside = count * self.head_dim
            y = linear_with_bias(weights, *names, x, outside, hooks.linear, bias=self.input_bias)
            y = split_heads(y, self.head_dim)
            if not self.head_norms or part == "v":
                return y
            gain = weights.vector(f"{tensor}.{part}_norm.weight", self.head_dim)
            return rms_norm(y, gain, epsilon=self.norm_epsilon)

        q, k, v = heads("q", self.heads), heads("k", self.kv_heads), heads("v", self.kv_heads)
        mixed = hooks.attention(number, q, k, v, self.rope)
        names = (f"{tensor}.o_proj", f"{name}.o")
        return linear_with_bias(
            weights, *names, mixed, self.width, hooks.linear, bias=self.output_bias
        )

    def _norm(self, weights: Weights, tensor: str, x: jax.Array) -> jax.Array:
        gain = weights.vector(f"{tensor}.weight", self.width)
        return rms_norm(x, gain, epsilon=self.norm_epsilon)


def gated_layers(
    weights: Weights,
    tensor: str,
    name: str,
    x: jax.Array,
    hidden: int,
    linear: NamedLinear,
    *,
    bias: bool = False,
) -> jax.Array:
    """SwiGLU: the tensors `tensor`.gate_proj and so on, under the names `name`.gate and so on."""
    gate, up = (
        linear_with_bias(
            weights, f"{tensor}.{part}_proj", f"{name}.{part}", x, hidden, linear, bias=bias
        )
        for part in ("gate", "up")
    )
    inside = gated(gate, up)
    return linear_with_bias(
        weights, f"{tensor}.down_proj", f"{name}.down", inside, x.shape[-1], linear, bias=bias
    )


def normed_head(
    weights: Weights, vocabulary: int, width: int, epsilon: float, *, tied: bool
) -> Callable[[jax.Array, NamedLinear], jax.Array]:
    """The last norm and the output head of a decoder."""
    table = "model.embed_tokens.weight" if tied else "lm_head.weight"
    matrix = weights.matrix(table, width, vocabulary)
    gain = weights.vector("model.norm.weight", width)

    def logits(stream: jax.Array, linear: NamedLinear) -> jax.Array:
        x = rms_norm(stream, gain, epsilon=epsilon)
        return linear("head", x, matrix).astype(jax.numpy.float32)

    return logits


def _context(settings: Settings) -> int:
    context = settings.whole("max_position_embeddings")
    kinds = settings.table.get("layer_types") or []
    slides = settings.flag("use_sliding_window", False) or "sliding_attention" in kinds
    if slides and settings.has("sliding_window"):
        return min(context, settings.whole("sliding_window"))
    return context
