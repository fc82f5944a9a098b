"""The operands that a checkpoint multiplies on a text, and what its caches would hold."""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lowprec.kv import Rope
from lowprec.models.cards import OperandCard, card
from lowprec.models.checkpoints.architecture import Hooks, exact_attention
from lowprec.models.checkpoints.entries import Checkpoint, check_tokens
from lowprec.models.checkpoints.products import bfloat16_linear
from lowprec.models.key_values import KeyValueSample
from lowprec.models.operands import Operands


@dataclass(frozen=True, eq=False, kw_only=True)
class CapturedLayer:
    """What one layer of a model multiplied, in bfloat16.

    Attributes:
      layer: such as `layers.0`, or `head`.
      operands: of the wanted linear layers, x (tokens, in) and w (in, out), in call order.
      key_values: of the layer's cache, where it has one of keys and values.
      latents: of the layer's cache, where it has one of latents (MLA): `latent` (tokens,
        latent_dim) and `k_rope` (tokens, rope_dim), each channel a column.
    """

    layer: str
    operands: list[Operands]
    key_values: KeyValueSample | None
    latents: Mapping[str, np.ndarray] = field(default_factory=dict)

    def cards(self) -> dict[str, OperandCard]:
        """The card of every x and latent, contracted along its last axis, and w, its first."""
        found = {f"{self.layer}.{name}": card(x, 1) for name, x in self.latents.items()}
        for own in self.operands:
            for name, axis in (("x", 1), ("w", 0)):
                x = getattr(own, name)
                # Nothing is known of experts that no token chose.
                if x is not None and x.size:
                    found[f"{own.layer}.{name}"] = card(x, axis)
        return found


def capture_checkpoint(
    checkpoint: Checkpoint, tokens: np.ndarray, *, wanted: Sequence[str] = ("*",)
) -> Iterator[CapturedLayer]:
    """Every layer's operands, one layer after another: only one is held.

    The model runs with `bfloat16_linear`, so x and w are bit for bit what it multiplied. Experts
    are captured on the tokens that chose them.

    Args:
      checkpoint: the model.
      tokens: (batch, tokens) integers; the batch is flattened into tokens.
      wanted: patterns of linear layers' names, such as `layers.*.mlp.down`, as a shell has them.

    Raises:
      ValueError: tokens that do not fit the model; patterns that no layer matches.

    Example:
      >>> for layer in capture_checkpoint(checkpoint, tokens):  # doctest: +SKIP
      ...     print(layer.layer, [own.layer for own in layer.operands])
    """
    check_tokens(tokens, checkpoint.architecture)
    architecture, weights = checkpoint.architecture, checkpoint.weights
    stream, matched = architecture.embed(weights, tokens), 0
    for number in range(architecture.layers):
        recorder = _Recorder(wanted)
        attention = exact_attention if not architecture.causal else recorder.attention
        hooks = Hooks(linear=recorder.linear, attention=attention, latents=recorder.latents)
        stream = architecture.layer(weights, number, stream, hooks)
        found = recorder.layer(f"layers.{number}")
        matched += len(found.operands)
        yield found
    recorder = _Recorder(wanted)
    architecture.head(weights)(stream, recorder.linear)
    found = recorder.layer("head")
    if found.operands:
        yield found
    if not matched + len(found.operands):
        raise ValueError(f"`wanted` = {list(wanted)} match no linear layer of {checkpoint.name}")


class _Recorder:
    """Hooks that keep what they see."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self._wanted = wanted
        self._operands: dict[str, Operands] = {}
        self._key_values: dict[str, np.ndarray] = {}
        self._latents: dict[str, np.ndarray] = {}

    def linear(self, name: str, x: jax.Array, w: jax.Array) -> jax.Array:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self._wanted):
            rows = x.reshape(-1, x.shape[-1])
            self._operands[name] = Operands(name, x=_bfloat16(rows), w=_bfloat16(w))
        return bfloat16_linear(name, x, w)

    def attention(
        self, layer: int, q: jax.Array, k: jax.Array, v: jax.Array, rope: Rope
    ) -> jax.Array:
        places = jnp.arange(k.shape[2])
        found = {
            "k": rope.turn(k, places),
            "v": v,
            "q": rope.turn(q, places),
            "k_before_rope": k,
            "q_before_rope": q,
        }
        self._key_values = {name: _bfloat16(x) for name, x in found.items()}
        return exact_attention(layer, q, k, v, rope)

    def latents(self, layer: int, latent: jax.Array, k_rope: jax.Array) -> None:
        for name, x in (("latent", latent), ("k_rope", k_rope)):
            self._latents[name] = _bfloat16(x.reshape(-1, x.shape[-1]))

    def layer(self, name: str) -> CapturedLayer:
        held = self._key_values
        return CapturedLayer(
            layer=name,
            operands=list(self._operands.values()),
            key_values=KeyValueSample(layer=name, **held) if held else None,
            latents=self._latents,
        )


def _bfloat16(x: jax.Array) -> np.ndarray:
    return np.asarray(x.astype(jnp.bfloat16)).astype(ml_dtypes.bfloat16, copy=False)
