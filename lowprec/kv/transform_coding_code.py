"""The code of transform coding: a token's principal components in as many bits as each is worth."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.kv.codes import Code, Fitted, Parts, as_stored, from_stored
from lowprec.kv.fixed_order import product
from lowprec.numerics import float32
from lowprec.numerics.format import get_format
from lowprec.numerics.spec import check_spec
from lowprec.scaling.addition import subtract

ARRAYS = ("mean", "basis", "symbol", "place", "group", "largest")
"""What is fitted."""

OVERHEAD = 32
"""Bits of a group's float16 scale and float16 shift."""

_EIGHT = np.arange(8, dtype=np.uint32)[None, :, None]
"""Places within a byte, along the second axis of three."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformCode(Code):
    """A token of all heads, less a mean, times a basis, each group of components in integers.

    With low and high the ends of a group's components, shift = float16(low), scale =
    float16((high - low) / m) and m = 2^bits - 1, a component c is the code round((c - shift) /
    scale), to nearest even and within [0, m], 0 where the scale is; it decodes to shift + code *
    scale, and a component without bits to 0. Up to here every operation is rounded once to float32
    and the stored bits are the same everywhere; the product with the basis on decoding is this
    machine's own (`same_backend`).

    Which component has how many bits is among the fitted arrays, so that a compiled program serves
    every layer: `codes` of a token are one stream of bits (`Stream`), of a fixed length, cut into
    equal rows for the heads.

    Attributes:
      ratio: 16 bits over those of a number, with scales and shifts: a head's token has
        floor(2 * dim / ratio) bytes.
      least_group: the size of the smallest groups.
    """

    ratio: float
    least_group: int

    def __post_init__(self) -> None:
        check_spec("transform code", self)
        if not self.ratio > 0 or self.least_group < 1:
            raise ValueError(
                f"transform code: `ratio` = {self.ratio} must be above 0 and `least_group` = "
                f"{self.least_group} at least 1"
            )

    def width(self, dim: int) -> int:
        """Bytes of a head's token.

        Raises:
          ValueError: it has none.
        """
        found = math.floor(round(2 * dim / self.ratio, 9))
        if not found:
            raise ValueError(f"`dim` = {dim}: a ratio of {self.ratio} leaves a token of it no byte")
        return found

    def room(self, heads: int, dim: int) -> int:
        """The most groups that a token of all heads has."""
        return -(-heads * dim // self.least_group)

    def encode(self, x: jax.Array, fitted: Fitted) -> Parts:
        """See `Code.encode`; NaN, Inf and components beyond float16's range make NaN or Inf."""
        own = {name: jnp.asarray(fitted[name]) for name in ARRAYS}
        return _coded(x, own, self)

    def decode(self, parts: Parts, dim: int, fitted: Fitted) -> jax.Array:
        """See `Code.decode`."""
        own = {name: jnp.asarray(fitted[name]) for name in ARRAYS}
        return _decoded(parts, own, self, dim)

    def empty(self, batch: int, heads: int, dim: int, units: int, fitted: Fitted) -> Parts:
        """See `Code.empty`."""
        del fitted
        return {"codes": jnp.zeros((batch, heads, units, self.width(dim)), jnp.uint8)}


# Compiled as wholes also outside a caller's `jit`. Components run along the first axis: what is
# gathered and summed by fitted places are then whole rows of tokens.
@functools.partial(jax.jit, static_argnames="code")
def _coded(x: jax.Array, fitted: Fitted, code: TransformCode) -> Parts:
    batch, heads, tokens, dim = x.shape
    rows = x.swapaxes(1, 2).reshape(batch * tokens, heads * dim)
    mean = jnp.broadcast_to(fitted["mean"].reshape(1, -1), rows.shape)
    components = product(rows - mean, fitted["basis"]).T
    group, room = fitted["group"], code.room(heads, dim)
    ends = [
        reduced(components, group, num_segments=room + 1)[:room]
        for reduced in (jax.ops.segment_min, jax.ops.segment_max)
    ]
    largest = jnp.broadcast_to(fitted["largest"][:, None], ends[0].shape)
    low, high, most = (float32.to_bits(each) for each in (*ends, largest))
    half = get_format("float16")
    stored = [
        as_stored(float32.from_bits(each), half)
        for each in (float32.divide(subtract(high, low), most), low)
    ]
    scale, shift, top = (
        _of_components(each, group) for each in (*(from_stored(s, half) for s in stored), largest)
    )
    above = subtract(float32.to_bits(components), float32.to_bits(shift))
    steps = float32.from_bits(float32.divide(above, float32.to_bits(scale)))
    codes = jnp.where(scale == 0, 0.0, jnp.clip(jnp.round(steps), 0.0, top))
    ends16 = [jax.lax.bitcast_convert_type(s, jnp.uint16).astype(jnp.uint32) for s in stored]
    zero = jnp.zeros((1, components.shape[1]), jnp.uint32)
    symbols = jnp.concatenate([codes.astype(jnp.uint32), *ends16, zero])
    place = fitted["place"].astype(jnp.uint32)[:, None]
    bits = (symbols[fitted["symbol"]] >> place) & 1
    packed = jnp.sum(bits.reshape(-1, 8, bits.shape[1]) << _EIGHT, axis=1, dtype=jnp.uint32)
    lines = packed.astype(jnp.uint8).T.reshape(batch, tokens, heads, -1)
    return {"codes": lines.swapaxes(1, 2)}


@functools.partial(jax.jit, static_argnames=("code", "dim"))
def _decoded(parts: Parts, fitted: Fitted, code: TransformCode, dim: int) -> jax.Array:
    batch, heads, tokens, _ = parts["codes"].shape
    lines = parts["codes"].swapaxes(1, 2).reshape(batch * tokens, -1).T.astype(jnp.uint32)
    bits = ((lines[:, None] >> _EIGHT) & 1).reshape(-1, lines.shape[1])
    place = fitted["place"].astype(jnp.uint32)[:, None]
    count, room = heads * dim, code.room(heads, dim)
    symbols = jax.ops.segment_sum(
        bits << place, fitted["symbol"], num_segments=count + 2 * room + 1
    )
    stored = symbols[count : count + 2 * room].astype(jnp.uint16)
    both = from_stored(stored, get_format("float16"))
    scale, shift = (_of_components(each, fitted["group"]) for each in jnp.split(both, 2))
    # A float16 number times a code of up to 13 bits is exact, fused into the sum or not.
    value = shift + scale * symbols[:count].astype(jnp.float32)
    basis = fitted["basis"].T
    rows = jnp.matmul(value.T, basis, precision=jax.lax.Precision.HIGHEST)
    rows = rows + jnp.broadcast_to(fitted["mean"].reshape(1, -1), rows.shape)
    return rows.reshape(batch, tokens, heads, dim).swapaxes(1, 2)


def _of_components(groups: jax.Array, group: jax.Array) -> jax.Array:
    """A group's number for each of its components, 0 for those without bits."""
    none = jnp.zeros((1, groups.shape[1]), groups.dtype)
    return jnp.concatenate([groups, none])[group]
