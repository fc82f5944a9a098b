"""Rotary position embedding, for caches that keep keys as they are before it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.numerics.spec import check_spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """RoPE (arXiv 2104.09864) as the published Llama weights have it; frozen and hashable.

    Element i is paired with element i + dim / 2, and turned by position * theta^(-2 i / dim), in
    float32.

    Attributes:
      theta: the base.
    """

    theta: float = 10000.0

    def __post_init__(self) -> None:
        check_spec("rope", self)
        if self.theta <= 0:
            raise ValueError(f"rope: `theta` = {self.theta} must be above 0")

    def turn(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """`x` (..., tokens, dim) float32 at `positions` (tokens,).

        Raises:
          ValueError: `dim` is odd.

        Example:
          >>> Rope().turn(jnp.ones((1, 2)), jnp.array([0]))
          Array([[1., 1.]], dtype=float32)
        """
        if x.shape[-1] % 2:
            raise ValueError(
                f"`x` of shape {x.shape}: RoPE turns pairs of a head's numbers, of which there are "
                f"{x.shape[-1]}; use an even `dim`"
            )
        half = x.shape[-1] // 2
        speeds = (self.theta ** (-np.arange(half) / half)).astype(np.float32)
        angles = positions.astype(jnp.float32)[:, None] * speeds[None]
        first, second = x[..., :half], x[..., half:]
        cosine, sine = (jnp.broadcast_to(f(angles), first.shape) for f in (jnp.cos, jnp.sin))
        turned = [first * cosine - second * sine, second * cosine + first * sine]
        return jnp.concatenate(turned, axis=-1)
