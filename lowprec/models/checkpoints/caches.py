"""Attention through KV caches, for the hooks of a checkpoint.

A layer's cache at a token holds what that layer made of the tokens up to it. Layers can therefore
be run one after another over a whole text, each as if it had been decoded token by token.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.kv import KVMethod, Rope
from lowprec.kv.block_selection import BlockSelectionSpec
from lowprec.kv.expected_attention import ExpectedAttention
from lowprec.kv.latent import LatentSpec
from lowprec.kv.pair import PairSpec
from lowprec.kv.selection import SelectionSpec
from lowprec.kv.teacher import teacher_forced
from lowprec.models import transformer
from lowprec.models.checkpoints.architecture import (
    Architecture,
    Attention,
    Hooks,
    LatentAttention,
    exact_attention,
)

KEPT = 0.25
"""The share of a prompt's tokens that methods which choose some keep."""


def check_method(
    method: KVMethod, architecture: Architecture, *, prompt: int | None = None, kept: float = KEPT
) -> None:
    """Raises TypeError or ValueError where a model's caches cannot be kept by a method.

    Args:
      method: in question.
      architecture: of the model.
      prompt, kept: as in `cached_attention`; a method that chooses tokens would keep all of so
        short a prompt, and is refused.
    """
    if not architecture.causal:
        raise ValueError("an encoder keeps no cache; leave the KV method out")
    spec = method.spec
    if architecture.latent:
        if not isinstance(spec, LatentSpec) or spec.values != "latent":
            raise TypeError(
                f"`method` = {method.name}: this model caches latents (MLA); use a method such as "
                f"mla_fp8_656 that mixes these"
            )
    elif not isinstance(spec, PairSpec | SelectionSpec | BlockSelectionSpec):
        raise TypeError(
            f"`method` = {method.name} keeps latents; this model has keys and values: use a method "
            f"such as kivi_2bit"
        )
    if prompt is None or kept >= 1 or not isinstance(spec, SelectionSpec):
        return
    if spec.raised(round(kept * prompt)) >= prompt:
        raise ValueError(
            f"`method` = {method.name} keeps {spec.raised(round(kept * prompt))} tokens in any "
            f"case, which is all of a prompt of {prompt}: give longer windows"
        )


def cached_attention(methods: Sequence[KVMethod], *, prompt: int, kept: float = KEPT) -> Attention:
    """Attention of every token to what its layer's cache would hold.

    Args:
      methods: one a layer, fitted where they are calibrated.
      prompt: so many first tokens see each other exactly where a method chooses tokens, and it
        chooses from them; methods that keep every token code these as they come.
      kept: the share of the prompt that is kept by those that choose.
    """

    def attention(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, rope: Rope) -> jax.Array:
        options = {"rope": rope, "prompt": prompt, "kept": kept}
        return _cached(methods[layer], q, k, v, **options)

    return attention


def cached_latent_attention(methods: Sequence[KVMethod]) -> LatentAttention:
    """Attention to latents as their layer's cache holds them; `methods` is one a layer."""

    def attention(
        layer: int,
        q_latent: jax.Array,
        q_rope: jax.Array,
        latent: jax.Array,
        k_rope: jax.Array,
        scale: float,
    ) -> jax.Array:
        return _cached_latents(methods[layer], q_latent, q_rope, latent, k_rope, scale=scale)

    return attention


class FittingHooks:
    """Exact hooks that fit a calibrated method to every layer they pass.

    Attributes:
      methods: the fitted ones, a layer after the other.
    """

    def __init__(self, method: KVMethod) -> None:
        self._method = method
        self.methods: list[KVMethod] = []

    def attention(
        self, layer: int, q: jax.Array, k: jax.Array, v: jax.Array, rope: Rope
    ) -> jax.Array:
        """Exact attention; a hook."""
        places = jnp.arange(k.shape[2])
        found = {"k": rope.turn(k, places), "v": v, "q": rope.turn(q, places), "k_before_rope": k}
        sample = {name: np.asarray(x) for name, x in found.items()}
        self.methods.append(self._method.fit([sample]))
        return exact_attention(layer, q, k, v, rope)

    def hooks(self, hooks: Hooks) -> Hooks:
        """Hooks like these but for attention."""
        return Hooks(linear=hooks.linear, attention=self.attention)


@functools.partial(jax.jit, static_argnames=("rope", "prompt", "kept"))
def _cached(
    method: KVMethod,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    rope: Rope,
    prompt: int,
    kept: float,
) -> jax.Array:
    def one(sequence: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q, k, v = (x[None] for x in sequence)
        if isinstance(method.spec, PairSpec):
            return teacher_forced(method, q, k, v, rope=rope)[0]
        return _decoded(method, q, k, v, rope, min(prompt, q.shape[2]), kept)[0]

    # One sequence after another: scores of all would be large.
    mixed = jax.lax.map(one, (q, k, v))
    return mixed.swapaxes(1, 2).reshape(q.shape[0], q.shape[2], -1)


def _decoded(
    method: KVMethod,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    rope: Rope,
    prompt: int,
    kept: float,
) -> jax.Array:
    """A prompt at once, and the tokens behind it one after another; (1, heads, tokens, dim)."""
    places = jnp.arange(q.shape[2])
    q, k = rope.turn(q, places), rope.turn(k, places)
    _, heads, length, dim = k.shape
    cache = method.init(1, heads, dim, length, **_given(method, rope, prompt, kept))
    cache = method.append(cache, k[:, :, :prompt], v[:, :, :prompt], q=q[:, :, :prompt])
    first = transformer.attention(q[:, :, :prompt], k[:, :, :prompt], v[:, :, :prompt])
    first = transformer.split_heads(first, dim)

    def step(cache: Any, token: tuple[jax.Array, ...]) -> Any:
        q, k, v = (x[None, :, None] for x in token)
        cache = method.append(cache, k, v, q=q)
        return cache, method.attend(cache, q)[0, :, 0]

    rest = tuple(x[0, :, prompt:].swapaxes(0, 1) for x in (q, k, v))
    _, mixed = jax.lax.scan(step, cache, rest)
    return jnp.concatenate([first, mixed.swapaxes(0, 1)[None]], axis=2)


def _given(method: KVMethod, rope: Rope, prompt: int, kept: float) -> dict[str, Any]:
    """What a method that chooses tokens is told beside sizes."""
    spec = method.spec
    if not isinstance(spec, SelectionSpec):
        return {}
    given: dict[str, Any] = {"budget": spec.raised(round(kept * prompt))}
    if spec.decode == "keep":
        given["prompt"] = prompt
    if isinstance(spec.rule, ExpectedAttention):
        given["rope"] = rope
    return given


@functools.partial(jax.jit, static_argnames=("scale",))
def _cached_latents(
    method: KVMethod,
    q_latent: jax.Array,
    q_rope: jax.Array,
    latent: jax.Array,
    k_rope: jax.Array,
    *,
    scale: float,
) -> jax.Array:
    batch, tokens, latent_dim = latent.shape
    cache = method.init(batch, latent_dim, k_rope.shape[-1], tokens)
    cache = method.append(cache, latent, k_rope)
    return method.attend(cache, q_latent, q_rope, scale=scale)
