"""Weights as products take them: from shards, transposed, and out of FP8 where they are in it."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.models.array_checks import quoted
from lowprec.models.checkpoints.settings import Settings
from lowprec.models.checkpoints.shards import Shards

SCALES = "_scale_inv"
"""What the name of an FP8 weight's scales ends in, behind its own."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Weights:
    """The tensors of a checkpoint as JAX arrays, each read when it is asked for.

    Attributes:
      shards: the files.
      block: rows and columns of a weight, (out, in) as stored, that share a scale; None where
        config.json says nothing of FP8.
    """

    shards: Shards
    block: tuple[int, int] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.shards

    def vector(self, name: str, *shape: int) -> jax.Array:
        """A tensor that no product takes, such as a norm's gains, in float32."""
        return jnp.asarray(self.shards.array(name, shape)).astype(jnp.float32)

    def rows(self, name: str, shape: tuple[int, int], index: np.ndarray) -> jax.Array:
        """The rows `index` of a table of embeddings, float32; the others are not read."""
        table = self.shards.array(name, shape)
        return jnp.asarray(table[index]).astype(jnp.float32)

    def matrix(self, name: str, inside: int, outside: int) -> jax.Array:
        """A linear layer's weight, (in, out).

        A weight in FP8 comes back in float32, each code times its tile's scale, rounded once; any
        other in the type that it is stored in. `name` has the shape (out, in) in the file.

        Raises:
          ValueError: no such tensor, or one of another shape; FP8 without scales.
        """
        stored = self.shards.array(name, (outside, inside))
        if stored.dtype.itemsize > 1:
            return jnp.asarray(stored).T
        if self.block is None:
            raise ValueError(
                f"{self.shards.place(name).path}: {quoted(name)} is {stored.dtype}, and "
                f"config.json has no `quantization_config` with a `weight_block_size`"
            )
        tiles = (-(-outside // self.block[0]), -(-inside // self.block[1]))
        scales = self.shards.array(name + SCALES, tiles)
        return _dequantized(jnp.asarray(stored), jnp.asarray(scales), block=self.block)


@functools.partial(jax.jit, static_argnames=("block",))
def _dequantized(codes: jax.Array, scales: jax.Array, *, block: tuple[int, int]) -> jax.Array:
    scales = scales.astype(jnp.float32)
    for axis in range(2):
        scales = jnp.repeat(scales, block[axis], axis)
    return (codes.astype(jnp.float32) * scales[: codes.shape[0], : codes.shape[1]]).T


def read_block(settings: Settings) -> tuple[int, int] | None:
    """The tile that shares a scale in an FP8 checkpoint, from `quantization_config`.

    Raises:
      ValueError: the weights are quantized another way.
    """
    given = settings.inner("quantization_config")
    if given is None:
        return None
    given.one_of("quant_method", ("fp8",))
    block = given.whole_numbers("weight_block_size")
    if len(block) != 2:
        raise given.error("weight_block_size", f"is {list(block)}; it is [rows, columns]")
    return block[0], block[1]
