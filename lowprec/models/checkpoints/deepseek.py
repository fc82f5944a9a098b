"""DeepSeek-V3: multi-head latent attention, and a mixture of experts behind the first layers.

Attention is computed in either of two forms, which `lowprec.models.latent_transformer` describes:
expanded into every head's keys and values, or absorbed into the latent space, as decoding through a
cache of latents does. The stored matrices stay whole: `kv_down` makes latents and the rotary key at
once, and the expanded form's `kv_up` keys and values of all heads.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.models import transformer
from lowprec.models.checkpoints.architecture import (
    Architecture,
    Hooks,
    LatentAttention,
    linear_with_bias,
    rms_norm,
)
from lowprec.models.checkpoints.experts import Experts, read_experts
from lowprec.models.checkpoints.llama import gated_layers, normed_head
from lowprec.models.checkpoints.rope import CheckpointRope, read_rope, yarn_mscale
from lowprec.models.checkpoints.settings import Settings
from lowprec.models.checkpoints.weights import Weights
from lowprec.models.transformer import NamedLinear, split_heads

LATENT_EPSILON = 1e-6
"""Of the norms inside attention, whatever config.json says of the others: so the published code."""


@dataclass(frozen=True, kw_only=True)
class DeepseekV3(Architecture):
    """A decoder whose cache holds a latent and one rotary key a token.

    Attributes:
      vocabulary, layers, width, heads, hidden, context, norm_epsilon: as in `LlamaLike`.
      query_rank: numbers that queries are compressed to; 0 for none.
      latent_dim, nope_dim, rope_dim, value_dim: as in
        `lowprec.models.latent_parameters.LatentTransformerConfig`.
      scale: of the scores, with what YaRN adds.
      rope: of the rotary parts.
      bias: whether the layers down to latents, and `o`, have biases.
      dense: so many first layers have SwiGLU in place of experts.
      experts: of the other layers.
      tied: whether the head is the table of embeddings.
    """

    vocabulary: int
    layers: int
    width: int
    heads: int
    hidden: int
    context: int
    norm_epsilon: float
    query_rank: int
    latent_dim: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    scale: float
    rope: CheckpointRope
    bias: bool
    dense: int
    experts: Experts
    tied: bool
    latent: bool = True

    @classmethod
    def read(cls, settings: Settings, name: str) -> Self:
        """See `Architecture.read`."""
        del name
        settings.one_of("hidden_act", ("silu",), "silu")
        if settings.whole("moe_layer_freq", 1) != 1:
            raise settings.error("moe_layer_freq", "is not 1, which is all that is implemented")
        nope_dim, rope_dim = settings.whole("qk_nope_head_dim"), settings.whole("qk_rope_head_dim")
        interleaved = settings.flag("rope_interleave", True)
        return cls(
            vocabulary=settings.whole("vocab_size"),
            layers=settings.whole("num_hidden_layers"),
            width=settings.whole("hidden_size"),
            heads=settings.whole("num_attention_heads"),
            hidden=settings.whole("intermediate_size"),
            context=settings.whole("max_position_embeddings"),
            norm_epsilon=settings.number("rms_norm_eps"),
            query_rank=settings.whole("q_lora_rank", 0),
            latent_dim=settings.whole("kv_lora_rank"),
            nope_dim=nope_dim,
            rope_dim=rope_dim,
            value_dim=settings.whole("v_head_dim"),
            scale=_scale(settings, nope_dim + rope_dim),
            rope=read_rope(settings, rope_dim, interleaved=interleaved),
            bias=settings.flag("attention_bias", False),
            dense=settings.whole("first_k_dense_replace", least=0),
            experts=read_experts(settings),
            tied=settings.flag("tie_word_embeddings", False),
        )

    def embed(self, weights: Weights, tokens: np.ndarray) -> jax.Array:
        """See `Architecture.embed`."""
        return weights.rows("model.embed_tokens.weight", (self.vocabulary, self.width), tokens)

    def layer(self, weights: Weights, number: int, stream: jax.Array, hooks: Hooks) -> jax.Array:
        """See `Architecture.layer`."""
        prefix = f"model.layers.{number}"
        gain = weights.vector(f"{prefix}.input_layernorm.weight", self.width)
        x = rms_norm(stream, gain, epsilon=self.norm_epsilon)
        stream = stream + self._attention(weights, number, x, hooks)
        gain = weights.vector(f"{prefix}.post_attention_layernorm.weight", self.width)
        x = rms_norm(stream, gain, epsilon=self.norm_epsilon)
        if number >= self.dense:
            return stream + self.experts.apply(weights, number, x, hooks.linear)
        own = (f"{prefix}.mlp", f"layers.{number}.mlp")
        return stream + gated_layers(weights, *own, x, self.hidden, hooks.linear)

    def head(self, weights: Weights) -> Callable[[jax.Array, NamedLinear], jax.Array]:
        """See `Architecture.head`."""
        return normed_head(weights, self.vocabulary, self.width, self.norm_epsilon, tied=self.tied)

    def _attention(self, weights: Weights, number: int, x: jax.Array, hooks: Hooks) -> jax.Array:
        tensor, name = f"model.layers.{number}.self_attn", f"layers.{number}.attention"

        def linear(stored: str, own: str, x: jax.Array, outside: int, bias: bool) -> jax.Array:
            names = (f"{tensor}.{stored}", f"{name}.{own}")
            return linear_with_bias(weights, *names, x, outside, hooks.linear, bias=bias)

        def norm(stored: str, x: jax.Array) -> jax.Array:
            gain = weights.vector(f"{tensor}.{stored}.weight", x.shape[-1])
            return rms_norm(x, gain, epsilon=LATENT_EPSILON)

        queries = self.heads * (self.nope_dim + self.rope_dim)
        if self.query_rank:
            low = norm("q_a_layernorm", linear("q_a_proj", "q_down", x, self.query_rank, self.bias))
            q = linear("q_b_proj", "q_up", low, queries, False)
        else:
            q = linear("q_proj", "q", x, queries, False)
        q = split_heads(q, self.nope_dim + self.rope_dim)
        width = self.latent_dim + self.rope_dim
        down = linear("kv_a_proj_with_mqa", "kv_down", x, width, self.bias)
        latent = norm("kv_a_layernorm", down[..., : self.latent_dim])
        q_nope, q_rope = q[..., : self.nope_dim], _turned(q[..., self.nope_dim :], rope=self.rope)
        k_rope = _turned(down[..., self.latent_dim :], rope=self.rope)
        if hooks.latents is not None:
            hooks.latents(number, latent, k_rope)
        if hooks.latent_attention is None:
            outside = self.heads * (self.nope_dim + self.value_dim)
            up = split_heads(
                linear("kv_b_proj", "kv_up", latent, outside, False), self.nope_dim + self.value_dim
            )
            mixed = _expanded(q_nope, q_rope, up, k_rope, scale=self.scale)
        else:
            # (latent_dim, heads * (nope_dim + value_dim))
            outside = self.heads * (self.nope_dim + self.value_dim)
            up = weights.matrix(f"{tensor}.kv_b_proj.weight", self.latent_dim, outside)
            mixed = self._absorbed(
                number, up, (q_nope, q_rope, latent, k_rope), hooks.linear, hooks.latent_attention
            )
        return linear("o_proj", "o", mixed, self.width, self.bias)

    def _absorbed(
        self,
        number: int,
        up: jax.Array,
        parts: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
        linear: NamedLinear,
        attention: LatentAttention,
    ) -> jax.Array:
        """Attention to latents, the keys' and values' matrices applied head by head."""
        q_nope, q_rope, latent, k_rope = parts
        name = f"layers.{number}.attention"
        heads = [
            (own[:, : self.nope_dim], own[:, self.nope_dim :])
            for own in jnp.split(up, self.heads, axis=1)
        ]
        into = [linear(f"{name}.k_up", q_nope[:, n], heads[n][0].T) for n in range(self.heads)]
        q_latent = jnp.stack(into, axis=1).astype(jnp.float32)
        mixed = attention(number, q_latent, q_rope, latent, k_rope, self.scale)
        out = [linear(f"{name}.v_up", mixed[:, n], heads[n][1]) for n in range(self.heads)]
        return jnp.concatenate(out, axis=-1).astype(jnp.float32)


def _scale(settings: Settings, dim: int) -> float:
    given = settings.inner("rope_parameters") or settings.inner("rope_scaling")
    if given is None or not given.has("mscale_all_dim") or not given.has("factor"):
        return dim**-0.5
    mscale = yarn_mscale(given.number("factor"), given.number("mscale_all_dim"))
    return dim**-0.5 * mscale * mscale


@functools.partial(jax.jit, static_argnames=("rope",))
def _turned(x: jax.Array, *, rope: CheckpointRope) -> jax.Array:
    return rope.turn(x, jnp.arange(x.shape[-2]))


@functools.partial(jax.jit, static_argnames=("scale",))
def _expanded(
    q_nope: jax.Array, q_rope: jax.Array, up: jax.Array, k_rope: jax.Array, *, scale: float
) -> jax.Array:
    """(batch, tokens, heads * value_dim) from every head's own keys and values."""
    k_nope, v = up[..., : q_nope.shape[-1]], up[..., q_nope.shape[-1] :]
    shared = jnp.broadcast_to(k_rope[:, None], q_rope.shape)
    queries = jnp.concatenate([q_nope, q_rope], axis=-1)
    keys = jnp.concatenate([k_nope, shared], axis=-1)
    return transformer.attention(queries, keys, v, scale)
