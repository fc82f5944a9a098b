"""How tokens of keys or values become packed arrays, and come back."""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.numerics import float32
from lowprec.numerics.codec import decode, encode, narrow
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.packing import pack, unpack
from lowprec.scaling import transforms
from lowprec.scaling.block import Block, get_block
from lowprec.scaling.qtensor import QTensor
from lowprec.scaling.quantize import quantize

Parts = dict[str, jax.Array]
"""Packed arrays by name, each (batch, heads, units, ...): a unit is a code's `group` of tokens."""

Fitted = Mapping[str, Any]
"""What a calibrated method found on other data: arrays by name, empty where there is nothing."""

Rotation = Literal["none", "hadamard", "random_hadamard"]


class Code(abc.ABC):
    """How (batch, heads, tokens, dim) become `Parts`; frozen and hashable, a static argument.

    Attributes:
      group: tokens that are coded together, a unit.
    """

    group: int = 1

    @abc.abstractmethod
    def encode(self, x: jax.Array, fitted: Fitted) -> Parts:
        """Codes of float32 `x`, turned already, a whole number of units."""

    @abc.abstractmethod
    def decode(self, parts: Parts, dim: int, fitted: Fitted) -> jax.Array:
        """The float32 values of codes, (batch, heads, units * group, dim), still turned."""

    def code(self, x: jax.Array, fitted: Fitted) -> Parts:
        """Codes of float32 `x` as it comes, a whole number of units."""
        return self.encode(self.turn(x, fitted), fitted)

    def elements(self, parts: Parts, dim: int, fitted: Fitted) -> tuple[jax.Array, jax.Array]:
        """The numbers of codes before scaling, and scales (batch, heads, tokens or 1), float32.

        What an engine of 8 bits or fewer multiplies, and what its products are then multiplied by.

        Raises:
          ValueError: values are not numbers of such a format times one scale a token.
        """
        raise ValueError(
            "values are not numbers of a narrow format times one scale a token; use an engine of "
            "16-bit formats, to which what is read is rounded"
        )

    def turn(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        """The rotation along `dim` that is done before coding; products of two turned are kept."""
        del fitted
        return x

    def turn_back(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        """Undoes `turn`."""
        del fitted
        return x

    def empty(self, batch: int, heads: int, dim: int, units: int, fitted: Fitted) -> Parts:
        """Parts of zeros, for that many units."""
        shape = jax.ShapeDtypeStruct((batch, heads, self.group, dim), jnp.float32)
        one = jax.eval_shape(lambda x: self.encode(x, fitted), shape)
        return {
            name: jnp.zeros((*part.shape[:2], units, *part.shape[3:]), part.dtype)
            for name, part in one.items()
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainCode(Code):
    """Every number by itself, in a format of 16 bits or fewer, without scales.

    Attributes:
      format: such as bfloat16.
    """

    format: Format

    def encode(self, x: jax.Array, fitted: Fitted) -> Parts:
        """See `Code.encode`; overflow saturates in 8 bits and fewer, else it gives Inf."""
        del fitted
        narrow_codes = self.format.bits <= 8
        return {"codes": encode(x, self.format) if narrow_codes else as_stored(x, self.format)}

    def decode(self, parts: Parts, dim: int, fitted: Fitted) -> jax.Array:
        """See `Code.decode`."""
        del fitted, dim
        if self.format.bits <= 8:
            return decode(parts["codes"], self.format)
        return from_stored(parts["codes"], self.format)

    def elements(self, parts: Parts, dim: int, fitted: Fitted) -> tuple[jax.Array, jax.Array]:
        """See `Code.elements`: as they are, their scale is 1."""
        x = self.decode(parts, dim, fitted)
        return x, jnp.ones((*x.shape[:2], 1), jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockCode(Code):
    """A block scaling along a head's numbers or along tokens.

    Attributes:
      block: with a tensor scale, or one tile in all, it is static: `amax` says what for.
      axis: what its tiles run along; along `tokens` a tile is a unit.
      amax: the largest magnitude that a static scale is made for, where `fitted` has none under the
        name `amax`, a number or one a head.
      rotation: of every head's numbers before coding: Sylvester's Hadamard matrix, by dim**-0.5, or
        that with random signs before it.
      seed: of those signs.
    """

    block: Block
    axis: Literal["dim", "tokens"] = "dim"
    amax: float | None = None
    rotation: Rotation = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.axis == "tokens" and not isinstance(self.block.tile[1], int):
            raise ValueError(
                f"`block` = {self.block.name}: a block along tokens needs a tile of so many tokens"
            )
        if self.static and self.amax is None:
            raise ValueError(
                f"`amax` is missing: the block {self.block.name} has a scale for the whole cache, "
                f"which has to be known before the first token"
            )

    @property
    def static(self) -> bool:
        """Whether a scale is known before the tensor is."""
        return self.block.tensor_scale == "amax" or self.block.tile == ("all", "all")

    @property
    def group(self) -> int:  # type: ignore[override]  # a property here, a constant elsewhere
        """Tokens of a unit."""
        tile = self.block.tile[1]
        return tile if self.axis == "tokens" and isinstance(tile, int) else 1

    def encode(self, x: jax.Array, fitted: Fitted) -> Parts:
        """See `Code.encode`; NaN, Inf and overflow as the block has them."""
        batch, heads, tokens, dim = x.shape
        q = self._quantize(x, self._amax(fitted, heads))
        units = tokens // self.group
        codes = q.codes.reshape(batch, heads, units, self.group, dim)
        # Along tokens a byte has several tokens of one number; beside it lies the next number's.
        packed = pack(codes, self.block.element, axis=-1 if self.group == 1 else -2)
        parts = {"codes": packed.reshape(batch, heads, units, -1)}
        if self.block.tile != ("all", "all"):
            parts["scales"] = self._stored(q.scales).reshape(batch, heads, units, -1)
        if self.block.offset_bits:
            assert q.offsets is not None
            parts["offsets"] = self._stored(q.offsets).reshape(batch, heads, units, -1)
        return parts

    def decode(self, parts: Parts, dim: int, fitted: Fitted) -> jax.Array:
        """See `Code.decode`."""
        return self._tensor(parts, dim, fitted).dequantize()

    def _codes(self, parts: Parts, dim: int) -> jax.Array:
        """(batch, heads, tokens, dim) of packed units."""
        batch, heads, units, _ = parts["codes"].shape
        if self.group == 1:
            return unpack(parts["codes"], self.block.element, dim)
        rows = parts["codes"].reshape(batch, heads, units, -1, dim)
        codes = unpack(rows, self.block.element, self.group, axis=-2)
        return codes.reshape(batch, heads, units * self.group, dim)

    def elements(self, parts: Parts, dim: int, fitted: Fitted) -> tuple[jax.Array, jax.Array]:
        """See `Code.elements`.

        Raises:
          ValueError: a block whose tiles are not all of a token's numbers, or no plain scaling.
        """
        block = self.block
        plain = block.coding == "scaled" and block.transform is None
        if (
            self.axis != "dim"
            or block.tile[1] != "all"
            or not plain
            or block.tensor_scale != "none"
        ):
            raise ValueError(
                f"the block {block.name} has no single scale a token, which a product of narrow "
                f"numbers could be multiplied by; use an engine of 16-bit formats"
            )
        q = self._tensor(parts, dim, fitted)
        x, scales = (float32.from_bits(bits) for bits in (q.element_bits(), q.scale_bits()))
        scales = jnp.broadcast_to(scales, (*x.shape[:2], *scales.shape[2:]))
        return x, scales.reshape(*x.shape[:2], -1)

    def turn(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        """See `Code.turn`."""
        del fitted
        if self.rotation == "random_hadamard":
            x = _flipped(x, self.seed)
        if self.rotation == "none":
            return x
        return _hadamard(x)

    def turn_back(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        """See `Code.turn_back`."""
        del fitted
        if self.rotation == "none":
            return x
        x = _hadamard(x)
        return _flipped(x, self.seed) if self.rotation == "random_hadamard" else x

    def _amax(self, fitted: Fitted, heads: int) -> jax.Array | None:
        """What static scales are made for, one number a head."""
        if not self.static:
            return None
        amax = jnp.asarray(fitted.get("amax", self.amax), jnp.float32)
        return jnp.broadcast_to(amax, (heads,))

    def _quantize(self, x: jax.Array, amax: jax.Array | None) -> QTensor:
        """Each member of the batch and head by itself, as matrices."""
        one = functools.partial(quantize, block=self.block, axis=self._axis)
        if amax is None:
            return jax.vmap(jax.vmap(one))(x)
        heads = jax.vmap(lambda member, own: one(member, amax=own))
        return jax.vmap(lambda member: heads(member, amax))(x)

    def _tensor(self, parts: Parts, dim: int, fitted: Fitted) -> QTensor:
        """The whole of (batch, heads, tokens, dim), which decodes in one piece."""
        codes = self._codes(parts, dim)
        amax = self._amax(fitted, codes.shape[1])
        held = {x: self._loaded(parts[x]) for x in ("scales", "offsets") if x in parts}
        if amax is not None:
            # Static scales are not stored: those of one tile of zeros are those of any tensor.
            tile = [1 if size == "all" else size for size in self.block.tile]
            zeros = jnp.zeros((1, *amax.shape, *tile), jnp.float32)
            known = self._quantize(zeros, amax)
            held.setdefault("scales", known.scales)
            if known.tensor_scale is not None:
                held["tensor_scale"] = known.tensor_scale
        return QTensor(codes=codes, block=self.block, axis=self._axis, **held)

    @property
    def _axis(self) -> int:
        return -1 if self.axis == "dim" else -2

    def _stored(self, scales: jax.Array) -> jax.Array:
        """Scales or offsets in as many bits as the block counts."""
        wide = scales.dtype == jnp.float32 and self.block.scale_format.bits <= 16
        # An infinite scale makes its tile NaN: the largest finite one would not.
        fmt = self.block.scale_format
        return encode(scales, fmt, overflow="saturate_finite") if wide else scales

    def _loaded(self, stored: jax.Array) -> jax.Array:
        narrow_codes = 8 < self.block.scale_format.bits <= 16
        return decode(stored, self.block.scale_format) if narrow_codes else stored


def as_stored(x: jax.Array, fmt: Format) -> jax.Array:
    """Float32 numbers rounded to nearest even in 16 bits, as uint16 bit patterns.

    Integers, for on a CPU XLA widens a whole bfloat16 array before it reads or writes a slice.
    """
    if fmt.dtype is None:
        raise ValueError(f"`fmt` = {fmt.name} has no array type; use bfloat16 or float16")
    rounded = narrow(float32.to_bits(x), np.dtype(fmt.dtype).name)
    return jax.lax.bitcast_convert_type(rounded, jnp.uint16)


def from_stored(x: jax.Array, fmt: Format) -> jax.Array:
    """Float32 numbers from `as_stored`, or from the format's own arrays; subnormals included."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint16)
    if fmt.name == "bfloat16":
        return float32.from_bits(bits.astype(jnp.uint32) << 16)
    return decode(bits, fmt)


@functools.cache
def _signs(seed: int, dim: int) -> np.ndarray:
    """Random signs, +1 and -1 float32, the same on every machine."""
    words = np.random.Generator(np.random.PCG64(seed)).integers(0, 2, dim)
    return (1 - 2 * words).astype(np.float32)


def _flipped(x: jax.Array, seed: int) -> jax.Array:
    return x * np.broadcast_to(_signs(seed, x.shape[-1]), x.shape)


def _hadamard(x: jax.Array) -> jax.Array:
    """The Hadamard transform of the last axis over the square root of its length."""
    dim = x.shape[-1]
    if dim & (dim - 1):
        raise ValueError(
            f"a head's {dim} numbers are no power of two, as a Hadamard rotation needs"
        )
    bits = transforms.hadamard(float32.to_bits(x), dim, -1)
    return float32.from_bits(bits)


def code_of(name: str) -> Code:
    """A format of 16 bits or a block by name, as the code with its defaults.

    Example:
      >>> code_of("bfloat16").group
      1
    """
    if name in ("bfloat16", "float16"):
        return PlainCode(format=get_format(name))
    return BlockCode(block=get_block(name))
