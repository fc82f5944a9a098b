"""GEAR's code: a block's integers, the largest and smallest numbers apart, and a low-rank rest."""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.kv.codes import BlockCode, Code, Fitted, Parts, as_stored, from_stored
from lowprec.kv.fixed_order import ordered
from lowprec.kv.gear_low_rank import low_rank
from lowprec.numerics import float32
from lowprec.numerics.format import get_format
from lowprec.numerics.spec import check_spec
from lowprec.scaling.addition import tree_sum

_BACKBONE = ("codes", "scales", "offsets")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GearCode(Code):
    """GEAR (arXiv 2403.05527): x is near backbone + outliers + Q P^T, a buffer of tokens at a time.

    Numbers are rounded to float16. A vector's `tail` largest and `tail` smallest (of equal ones the
    first) are kept as they are, with their places, and become the vector's mean before the backbone
    codes it; restored to their places they and the backbone's values are subtracted from x, and
    what is left of each head's buffer is approximated by `low_rank`, its factors rounded to
    float16. On decoding, products of factors are added to the restored numbers one after the other,
    each sum rounded to float32. NaN, Inf and a backbone's or factor's overflow of float16 make NaN
    or Inf of the buffer's head.

    Attributes:
      backbone: of the other numbers.
      per: a vector is a channel over the buffer's tokens, or a token over all heads.
      outliers: the share of a vector that is kept apart, both tails together, each rounded up; 0
        for GEAR-L, which keeps none.
      buffer: tokens that are coded together.
      rank, iterations, seed: see `low_rank`; rank 0 leaves the rest away.
    """

    backbone: BlockCode
    per: Literal["channel", "token"]
    outliers: float
    buffer: int
    rank: int
    iterations: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_spec("GEAR code", self)
        if not 0 <= self.outliers < 1:
            raise ValueError(f"GEAR code: `outliers` = {self.outliers}; from 0 to below 1")
        for name, least in (("rank", 0), ("iterations", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"GEAR code: `{name}` = {getattr(self, name)}: at least {least}")
        if self.buffer < 1 or self.buffer % self.backbone.group:
            raise ValueError(
                f"GEAR code: `buffer` = {self.buffer} must be a multiple of the "
                f"{self.backbone.group} tokens that the backbone codes together"
            )

    @property
    def group(self) -> int:  # type: ignore[override]  # a property here, a constant elsewhere
        """Tokens of a unit."""
        return self.buffer

    def tail(self, size: int) -> int:
        """How many numbers of a vector of `size` are kept apart at either end."""
        # Through a decimal, so that 1 % of 400 is 4 and not a little more.
        count = math.ceil(round(self.outliers / 2 * size, 9))
        if size > 1 << 16 or 2 * count > size:
            raise ValueError(
                f"a vector of {size} numbers: `outliers` = {self.outliers} needs at least "
                f"{2 * count} and at most {1 << 16}"
            )
        return count

    def encode(self, x: jax.Array, fitted: Fitted) -> Parts:
        """See `Code.encode`."""
        del fitted
        if self.rank > min(self.buffer, x.shape[3]):
            raise ValueError(
                f"a head's {x.shape[3]} numbers and a buffer of {self.buffer} tokens: `rank` = "
                f"{self.rank} is more than the smaller of them"
            )
        return _coded(x, self)

    def decode(self, parts: Parts, dim: int, fitted: Fitted) -> jax.Array:
        """See `Code.decode`."""
        del fitted
        return _decoded(parts, self, dim)


# Compiled as wholes also outside a caller's `jit`: one by one, the operations take seconds.
@functools.partial(jax.jit, static_argnames="code")
def _coded(x: jax.Array, code: GearCode) -> Parts:
    half = get_format("float16")
    batch, heads, tokens, dim = x.shape
    units = tokens // code.buffer
    x = from_stored(as_stored(x, half), half)
    vectors = _vectors(x, code)
    tail, parts = code.tail(vectors.shape[-1]), {}
    near, apart = x, None
    if tail:
        apart = _extreme(vectors, tail)
        taken = jnp.take_along_axis(vectors, apart, axis=-1)
        mean = jnp.broadcast_to(_mean(vectors), apart.shape)
        near = _numbers(_put(vectors, apart, mean), x.shape, code)
        kind = jnp.uint8 if vectors.shape[-1] <= 256 else jnp.uint16
        for name, each in (("outliers", as_stored(taken, half)), ("places", apart.astype(kind))):
            parts[name] = each.reshape(*each.shape[:3], -1)
    backbone = code.backbone.encode(near, {})
    parts |= {name: each.reshape(batch, heads, units, -1) for name, each in backbone.items()}
    if code.rank:
        rest = (x - _restored(parts, code, dim)).reshape(-1, code.buffer, dim)
        factors = low_rank(rest, rank=code.rank, iterations=code.iterations, seed=code.seed)
        for name, each in zip(("left", "right"), factors, strict=True):
            parts[name] = as_stored(each, half).reshape(batch, heads, units, -1)
    return parts


@functools.partial(jax.jit, static_argnames=("code", "dim"))
def _decoded(parts: Parts, code: GearCode, dim: int) -> jax.Array:
    value = _restored(parts, code, dim)
    if not code.rank:
        return value
    half, shape = get_format("float16"), value.shape
    head = (*shape[:2], -1)
    left, right = (
        from_stored(parts[name], half).reshape(*head, size, code.rank)
        for name, size in (("left", code.buffer), ("right", dim))
    )
    total = value.reshape(*head, code.buffer, dim)
    # Products of float16 numbers are exact: fused into the sum or not, the bits are the same.
    for column in range(code.rank):
        added = left[..., column, None] * right[..., None, :, column]
        total = total + added
    return total.reshape(shape)


def _restored(parts: Parts, code: GearCode, dim: int) -> jax.Array:
    """The backbone's values with the outliers in their places."""
    batch, heads, units, _ = parts["codes"].shape
    rows = units * (code.buffer // code.backbone.group)
    own = {name: parts[name].reshape(batch, heads, rows, -1) for name in _BACKBONE if name in parts}
    value = code.backbone.decode(own, dim, {})
    if "outliers" not in parts:
        return value
    vectors = _vectors(value, code)
    shape = (*vectors.shape[:-1], -1)
    taken = from_stored(parts["outliers"], get_format("float16")).reshape(shape)
    places = parts["places"].astype(jnp.int32).reshape(shape)
    return _numbers(_put(vectors, places, taken), value.shape, code)


def _vectors(x: jax.Array, code: GearCode) -> jax.Array:
    """(batch, heads or 1, units, vectors of a unit, their length)."""
    batch, heads, tokens, dim = x.shape
    if code.per == "token":
        return x.swapaxes(1, 2).reshape(batch, 1, tokens // code.buffer, code.buffer, heads * dim)
    return x.reshape(batch, heads, tokens // code.buffer, code.buffer, dim).swapaxes(-1, -2)


def _numbers(vectors: jax.Array, shape: tuple[int, ...], code: GearCode) -> jax.Array:
    """Undoes `_vectors`, for numbers of that shape."""
    batch, heads, tokens, dim = shape
    if code.per == "token":
        return vectors.reshape(batch, tokens, heads, dim).swapaxes(1, 2)
    return vectors.swapaxes(-1, -2).reshape(shape)


def _extreme(vectors: jax.Array, tail: int) -> jax.Array:
    """The places of the largest numbers, then of the smallest, int32 (..., 2 * tail)."""
    key = ordered(float32.to_bits(vectors))
    return jnp.concatenate([lax.top_k(each, tail)[1] for each in (key, ~key)], axis=-1)


def _mean(vectors: jax.Array) -> jax.Array:
    """The sum, neighbours first, over the count; each float32, rounded to nearest even."""
    total = tree_sum(float32.to_bits(vectors), -1)
    count = np.float32(vectors.shape[-1]).view(np.uint32)
    return float32.from_bits(float32.divide(total, jnp.full_like(total, count)))


def _put(vectors: jax.Array, places: jax.Array, values: jax.Array) -> jax.Array:
    """The vectors with other numbers in some places."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    rows = jnp.arange(flat.shape[0])[:, None]
    count = places.shape[-1]
    return (
        flat.at[rows, places.reshape(-1, count)]
        .set(values.reshape(-1, count))
        .reshape(vectors.shape)
    )
