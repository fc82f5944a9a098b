"""A quantized tensor: codes with the scales that give them back their size."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lowprec.numerics import float32
from lowprec.numerics.codec import decode_bits, narrow
from lowprec.numerics.packing import packed_bytes
from lowprec.scaling.block import Block
from lowprec.scaling.tiles import spread, tiles_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class QTensor:
    """Codes and scales of a tensor; a pytree, so it passes through `jit`, `vmap` and `scan`.

    Attributes:
      codes: element codes, of the tensor's shape.
      scales: one a tile, `scales.shape[i] = ceil(shape[i] / tile[i])`: codes of the scale format
        where it has 8 bits or fewer, else float32.
      offsets: zero points or minima; None for symmetric blocks.
      tensor_scale: float32 with as many axes as `codes`, all 1 long, or None.
      block: the block scaling.
      axis: the contraction axis, counted from the end.
    """

    codes: jax.Array
    scales: jax.Array
    offsets: jax.Array | None = None
    tensor_scale: jax.Array | None = None
    block: Block = dataclasses.field(metadata={"static": True})
    axis: int = dataclasses.field(default=-1, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.codes.shape

    @property
    def bits_per_element(self) -> float:
        """Bits of codes, scales and tensor scale together, for each element."""
        bits = self.codes.size * self.block.element.bits
        bits += self.scales.size * self.block.scale_format.bits
        bits += 0 if self.tensor_scale is None else self.tensor_scale.size * 32
        return bits / self.codes.size

    @property
    def nbytes(self) -> int:
        """Bytes of the packed codes, the scales and the tensor scale."""
        codes = packed_bytes(self.codes.size, self.block.element.bits)
        scales = packed_bytes(self.scales.size, self.block.scale_format.bits)
        return codes + scales + (0 if self.tensor_scale is None else self.tensor_scale.size * 4)

    def dequantize(self, dtype: DTypeLike = jnp.float32) -> jax.Array:
        """The values: code * scale, then * tensor_scale, each product rounded once to float32.

        A NaN scale makes its whole tile NaN. Subnormal results are exact; products above float32's
        range are Inf. A narrower `dtype` (bfloat16, float16) is rounded to nearest even at the end.

        Raises:
          ValueError: under `jax.grad`, which would silently be zero; use `lowprec.cast`.

        Example:
          >>> lp.quantize(jnp.array([[1.0, 3.1, -7.0]]), "mxfp4").dequantize()
          Array([[ 1.,  3., -6.]], dtype=float32)
        """
        scales, tensor_scale = _refuse_gradient(self.scales), self.tensor_scale
        if tensor_scale is not None:
            tensor_scale = _refuse_gradient(tensor_scale)
        fixed = dataclasses.replace(self, scales=scales, tensor_scale=tensor_scale)
        return _dequantize(fixed, np.dtype(dtype).name)

    def element_bits(self) -> jax.Array:
        """float32 bits of the elements before scaling, of the tensor's shape."""
        return decode_bits(self.codes.astype(jnp.uint32), self.block.element)

    def scaled_bits(self) -> jax.Array:
        """float32 bits of element * scale, the tensor scale left out."""
        scales, element = self.scale_bits(), self.block.element
        tiles = tiles_of(self.shape, scales.shape, self.block, self.axis)
        short = element.mantissa_bits < 8 and element.min_exponent - element.mantissa_bits >= -126
        multiply = float32.multiply_short if short else float32.multiply
        return multiply(self.element_bits(), spread(scales, self.shape, tiles))

    def scale_bits(self) -> jax.Array:
        """float32 bits of the scales, one a tile, the tensor scale left out."""
        if self.scales.dtype == jnp.float32:
            return float32.to_bits(self.scales)
        return decode_bits(self.scales.astype(jnp.uint32), self.block.scale_format)

    def __repr__(self) -> str:
        shape = getattr(self.codes, "shape", "?")
        scales = getattr(self.scales, "shape", "?")
        return f"QTensor({self.block.name}, shape={shape}, scales={scales}, axis={self.axis})"


@functools.partial(jax.jit, static_argnames="dtype")
def _dequantize(q: QTensor, dtype: str) -> jax.Array:
    value = q.scaled_bits()
    if q.tensor_scale is not None:
        tensor = jnp.broadcast_to(float32.to_bits(q.tensor_scale), value.shape)
        value = float32.multiply(value, tensor)
    return narrow(value, dtype)


@jax.custom_jvp
def _refuse_gradient(x: jax.Array) -> jax.Array:
    return x


@_refuse_gradient.defjvp
def _refuse_gradient_jvp(primals: Any, tangents: Any) -> Any:
    raise ValueError(
        "QTensor.dequantize has no gradient: its codes are integers, and the gradient would "
        "silently be zero. Use lowprec.cast(x, block), or jax.lax.stop_gradient"
    )
