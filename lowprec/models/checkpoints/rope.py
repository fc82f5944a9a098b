"""RoPE as a `config.json` asks for it: plain, or with its frequencies stretched for longer text."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.kv import Rope
from lowprec.models.checkpoints.settings import Settings

Floats = NDArray[np.float64]
KINDS = ("default", "linear", "llama3", "yarn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointRope(Rope):
    """RoPE by a table of angular speeds; frozen and hashable.

    Attributes:
      theta: the base that the speeds were made from.
      speeds: radians a token of each pair, of which there are dim / 2.
      gain: what turned numbers are multiplied by, 1 but for YaRN.
      interleaved: whether element 2 i is paired with 2 i + 1, as DeepSeek stores it; else i with
        i + dim / 2. The result has first and second halves either way.
    """

    speeds: tuple[float, ...]
    gain: float = 1.0
    interleaved: bool = False

    def turn(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """`x` (..., tokens, dim) float32 at `positions` (tokens,)."""
        half = len(self.speeds)
        speeds = np.asarray(self.speeds, np.float32)
        angles = positions.astype(jnp.float32)[:, None] * speeds[None]
        if self.interleaved:
            first, second = x[..., 0::2], x[..., 1::2]
        else:
            first, second = x[..., :half], x[..., half:]
        gain = np.float32(self.gain)
        cosine, sine = (jnp.broadcast_to(f(angles) * gain, first.shape) for f in (jnp.cos, jnp.sin))
        turned = [first * cosine - second * sine, second * cosine + first * sine]
        return jnp.concatenate(turned, axis=-1)


def read_rope(settings: Settings, dim: int, *, interleaved: bool = False) -> CheckpointRope:
    """RoPE of `dim` numbers, from `rope_parameters` or from `rope_theta` and `rope_scaling`.

    Raises:
      ValueError: a kind that is not implemented, or one that lacks a key.

    Example:
      >>> from pathlib import Path
      >>> read_rope(Settings(Path("config.json"), {"rope_theta": 100.0}), 4).speeds
      (1.0, 0.1)
    """
    if dim % 2:
        raise ValueError(f"{settings.path}: RoPE turns pairs, and its heads have {dim} numbers")
    given = settings.inner("rope_parameters") or settings.inner("rope_scaling")
    given = given or Settings(settings.path, {}, "rope_scaling.")
    theta = (given if given.has("rope_theta") else settings).number("rope_theta", 10000.0)
    key = "rope_type" if given.has("rope_type") else "type"
    kind = given.one_of(key, KINDS, "default")
    for owner in (given, settings):
        if owner.number("partial_rotary_factor", 1.0) != 1.0:
            raise owner.error("partial_rotary_factor", "below 1 is not implemented")
    plain = theta ** (-np.arange(0, dim, 2) / dim)
    speeds, gain = plain, 1.0
    if kind == "linear":
        speeds = plain / given.number("factor")
    elif kind == "llama3":
        speeds = _llama3(plain, given)
    elif kind == "yarn":
        speeds, gain = _yarn(plain, theta, given), _yarn_gain(given)
    kept = tuple(float(x) for x in speeds)
    return CheckpointRope(theta=theta, speeds=kept, gain=gain, interleaved=interleaved)


def _llama3(plain: Floats, given: Settings) -> Floats:
    """Llama 3.1: slow pairs are slowed by `factor`, fast ones left, those between mixed."""
    factor, low = given.number("factor"), given.number("low_freq_factor")
    high, context = given.number("high_freq_factor"), _original_context(given)
    # How often a pair turns around within the original context.
    turns = context * plain / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - share) * plain / factor + share * plain


def _yarn(plain: Floats, theta: float, given: Settings) -> Floats:
    """YaRN (arXiv 2309.00071) section 3.2, ramping over pairs by how often they turn."""
    factor, context = given.number("factor"), _original_context(given)
    dim = 2 * plain.size

    def pair(turns: float) -> float:
        return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(given.number("beta_fast", 32.0)), pair(given.number("beta_slow", 1.0))
    if given.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # as the published code avoids a division by zero
    slowed = np.clip((np.arange(plain.size) - low) / (high - low), 0.0, 1.0)
    return slowed * plain / factor + (1 - slowed) * plain


def _yarn_gain(given: Settings) -> float:
    if given.has("attention_factor"):
        return given.number("attention_factor")
    factor = given.number("factor")
    if given.has("mscale") and given.has("mscale_all_dim"):
        return yarn_mscale(factor, given.number("mscale")) / yarn_mscale(
            factor, given.number("mscale_all_dim")
        )
    return yarn_mscale(factor, 1.0)


def yarn_mscale(factor: float, mscale: float) -> float:
    """What YaRN makes attention sharper by, where a context is stretched by `factor`.

    Example:
      >>> yarn_mscale(1.0, 1.0)
      1.0
    """
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _original_context(given: Settings) -> int:
    return given.whole("original_max_position_embeddings")
