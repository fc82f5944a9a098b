"""A quantized tensor: codes with the scales that give them back their size."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from lowprec.numerics import float32, html
from lowprec.numerics.arguments import undifferentiable
from lowprec.numerics.codec import decode_bits, narrow
from lowprec.numerics.packing import packed_bytes
from lowprec.scaling import affine, logarithmic, transforms
from lowprec.scaling.block import Block
from lowprec.scaling.ordinary import decode_scaled
from lowprec.scaling.tiles import tiles_of

NO_GRADIENT = (
    "QTensor.dequantize has no gradient: its codes are integers, and the gradient would "
    "silently be zero. Use lowprec.cast(x, block), or jax.lax.stop_gradient"
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class QTensor:
    """Codes and scales of a tensor; a pytree, so it passes through `jit`, `vmap` and `scan`.

    Attributes:
      codes: element codes, of the tensor's shape.
      scales: one a tile, `scales.shape[i] = ceil(shape[i] / tile[i])`: codes of the scale format
        where it has 8 bits or fewer, else float32.
      offsets: zero points or minima; None for symmetric blocks.
      transform_state: what undoing the block's transform takes: the signs or smoothing factors that
        were given, or the means that were taken off, float32; else None.
      tensor_scale: float32 with as many axes as `codes`: all 1 long, or, with one scale a row, the
        contraction axis alone; or None.
      block: the block scaling.
      axis: the contraction axis, counted from the end.
    """

    codes: jax.Array
    scales: jax.Array
    offsets: jax.Array | None = None
    tensor_scale: jax.Array | None = None
    transform_state: jax.Array | None = None
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
        bits += self._tensor_scales * 32
        bits += self.scales.size * self.block.offset_bits + 32 * self._means
        return bits / self.codes.size

    @property
    def nbytes(self) -> int:
        """Bytes of the packed codes, the scales and the tensor scale."""
        codes = packed_bytes(self.codes.size, self.block.element.bits)
        scales = packed_bytes(self.scales.size, self.block.scale_format.bits)
        offsets = packed_bytes(self.scales.size, self.block.offset_bits)
        return codes + scales + offsets + 4 * (self._tensor_scales + self._means)

    @property
    def _tensor_scales(self) -> int:
        """How many tensor scales are stored; the constant of `three_quarter` is not."""
        if self.tensor_scale is None or self.block.tensor_scale == "none":
            return 0
        return self.tensor_scale.size

    @property
    def _means(self) -> int:
        """How many means are stored; signs and smoothing factors are the caller's."""
        transform, state = self.block.transform, self.transform_state
        return state.size if transform and transform.kind == "mean" and state is not None else 0

    def dequantize(self, dtype: DTypeLike = jnp.float32) -> jax.Array:
        """The values: code * scale, then * tensor_scale, each product rounded once to float32.

        Affine and logarithmic blocks decode as their tables say; a transform is then undone.

        A NaN scale makes its whole tile NaN. Subnormal results are exact; products above float32's
        range are Inf. A narrower `dtype` (bfloat16, float16) is rounded to nearest even at the end.

        Raises:
          ValueError: under `jax.grad`, which would silently be zero; use `lowprec.cast`.

        Example:
          >>> lp.quantize(jnp.array([[1.0, 3.1, -7.0]]), "mxfp4").dequantize()
          Array([[ 1.,  3., -6.]], dtype=float32)
        """
        floats = {
            name: undifferentiable(NO_GRADIENT, value)
            for name in ("scales", "offsets", "tensor_scale", "transform_state")
            if (value := getattr(self, name)) is not None
        }
        fixed = dataclasses.replace(self, **floats)
        return _dequantize(fixed, np.dtype(dtype).name)

    def element_bits(self) -> jax.Array:
        """float32 bits of the elements before scaling, of the tensor's shape."""
        return decode_bits(self.codes.astype(jnp.uint32), self.block.element)

    def scaled_bits(self) -> jax.Array:
        """float32 bits of element * scale, the tensor scale left out.

        Raises:
          ValueError: the block has a transform, so that these are not the tensor's values.
        """
        if self.block.transform is not None:
            raise ValueError(
                f"the block {self.block.name} quantizes a transformed tensor, whose values these "
                f"are; use dequantize(), which turns them back"
            )
        return self._inner_bits()

    def _inner_bits(self, tensor: jax.Array | None = None) -> jax.Array:
        """float32 bits of the values as quantized: before a transform is undone.

        With the tensor scale, where its bits are given.
        """
        if self.block.coding != "scaled":
            return self._coded_bits()
        scales = self.scale_bits()
        tiles = tiles_of(self.shape, scales.shape, self.block, self.axis)
        return decode_scaled(self.codes, scales, tensor, self.block, tiles)

    def _coded_bits(self) -> jax.Array:
        """float32 bits of the values of an affine or logarithmic block."""
        tiles = tiles_of(self.shape, self.scales.shape, self.block, self.axis)
        offsets = None if self.offsets is None else float32.to_bits(self.offsets)
        decode = affine.dequantize if self.block.coding == "affine" else logarithmic.dequantize
        return decode(self.codes, float32.to_bits(self.scales), offsets, self.block, tiles)

    def scale_bits(self) -> jax.Array:
        """float32 bits of the scales, one a tile, the tensor scale left out.

        Raises:
          ValueError: a value is not element * scale, as in affine and logarithmic blocks.
        """
        if self.block.coding != "scaled":
            raise ValueError(
                f"values of the {self.block.coding} block {self.block.name} are not elements times "
                f"scales; use dequantize()"
            )
        if self.scales.dtype == jnp.float32:
            return float32.to_bits(self.scales)
        return decode_bits(self.scales.astype(jnp.uint32), self.block.scale_format)

    def _repr_html_(self) -> str:
        arrays = ("codes", "scales", "offsets", "tensor_scale", "transform_state")
        held = {name: getattr(self, name) for name in arrays}
        shown = {name: f"{x.dtype} {x.shape}" for name, x in held.items() if x is not None}
        figures = {"axis": self.axis, "bits_per_element": f"{self.bits_per_element:.6g}"}
        sizes = {"bytes, packed": f"{self.nbytes:,}"}
        return html.pairs(f"QTensor of block:{self.block.name}", shown | figures | sizes)

    def __repr__(self) -> str:
        shape = getattr(self.codes, "shape", "?")
        scales = getattr(self.scales, "shape", "?")
        return f"QTensor({self.block.name}, shape={shape}, scales={scales}, axis={self.axis})"


@functools.partial(jax.jit, static_argnames="dtype")
def _dequantize(q: QTensor, dtype: str) -> jax.Array:
    tensor = None if q.tensor_scale is None else float32.to_bits(q.tensor_scale)
    value = q._inner_bits(tensor)
    if q.block.transform is not None:
        value = lax.optimization_barrier(value)
        value = transforms.undo(value, q.block.transform, q.axis, q.transform_state)
    return narrow(value, dtype)
