"""Codes of numbers within a range by the nearest of given levels, and the few outside it as pairs.

The pairs of value and place are kept apart, a fixed number for each token and tail.
"""

import dataclasses
import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.kv.codes import Code, Fitted, Parts, as_stored, from_stored
from lowprec.kv.fixed_order import ordered
from lowprec.kv.index_format import index_format
from lowprec.numerics import float32
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.packing import pack, unpack
from lowprec.numerics.spec import check_spec
from lowprec.scaling.addition import add, subtract

NOWHERE = 0xFFFF
"""The place of a pair that is not used."""

ENDS = ("lower", "upper", "offset", "width")
"""What is fitted to channels."""


class Range(NamedTuple):
    """float32 that broadcast with a token's numbers (batch, tokens, heads * dim)."""

    offset: jax.Array
    width: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class NonuniformCode(Code):
    """KVQuant's dense-and-sparse code: z = (x - offset) / width as its nearest level.

    The range ends at offset +- width. `fitted["levels"]` are 2^bits float32 numbers in ascending
    order; of equally near ones the lower is taken. Values are level * width + offset, each step
    rounded to float32, NaN and Inf made 0, then rounded to float16. A token's numbers beyond its
    range are float16 pairs with their place among the heads * dim numbers of the token, at most
    `tail` above and `tail` below; others beyond it are coded as the level at that end.

    With `per` = `channel` the ends are `fitted["lower"]` and `fitted["upper"]`, float16 (heads,
    dim), and half their sum and difference are float16 too; pairs go to the largest and to the
    smallest z. With `token` the `tail` largest and smallest of a token, over all heads, are the
    pairs (of equal ones the first), and the range is that of the others, stored in float32.

    Attributes:
      bits: of a code.
      outliers: which share of a token's numbers has room for pairs, both tails together.
      per: see above.
    """

    bits: int
    outliers: float
    per: Literal["channel", "token"]

    def __post_init__(self) -> None:
        check_spec("nonuniform code", self)
        if not 1 <= self.bits <= 8:
            raise ValueError(f"nonuniform code: `bits` = {self.bits}; use 1 to 8")
        if not 0 < self.outliers < 1:
            raise ValueError(f"nonuniform code: `outliers` = {self.outliers}; between 0 and 1")

    def tail(self, size: int) -> int:
        """How many pairs a token of `size` numbers has for either tail."""
        # Through a decimal, so that 1 % of 400 is 4 and not a little more.
        count = math.ceil(round(self.outliers / 2 * size, 9))
        if size > NOWHERE or 2 * count >= size:
            raise ValueError(
                f"a token of {size} numbers in all heads: `outliers` = {self.outliers} needs more "
                f"than {2 * count} and at most {NOWHERE}"
            )
        return count

    def encode(self, x: jax.Array, fitted: Fitted) -> Parts:
        """See `Code.encode`; NaN gets an arbitrary code."""
        self.tail(x.shape[1] * x.shape[3])
        return _coded(x, dict(fitted), self)

    def decode(self, parts: Parts, dim: int, fitted: Fitted) -> jax.Array:
        """See `Code.decode`."""
        return _decoded(parts, dict(fitted), self, dim)

    def empty(self, batch: int, heads: int, dim: int, units: int, fitted: Fitted) -> Parts:
        """See `Code.empty`; of what is fitted nothing but its shape would matter."""
        del fitted
        ends = {name: np.zeros((heads, dim), np.float16) for name in ENDS}
        levels = np.zeros(1 << self.bits, np.float32)
        return super().empty(batch, heads, dim, units, {"levels": levels, **ends})

    @property
    def format(self) -> Format:
        """That packs codes."""
        return index_format(self.bits)


# Compiled as wholes also outside a caller's `jit`: one by one, the operations take seconds.
@functools.partial(jax.jit, static_argnames="code")
def _coded(x: jax.Array, fitted: Fitted, code: NonuniformCode) -> Parts:
    batch, heads, tokens, dim = x.shape
    tail = code.tail(heads * dim)
    flat = x.swapaxes(1, 2).reshape(batch, tokens, heads * dim)
    if code.per == "token":
        reach, places, used = _of_tokens(flat, tail)
    else:
        reach = _of_channels(fitted)
        places, used = _beyond(flat, reach, fitted, tail)
    pairs = jnp.take_along_axis(flat, places, axis=-1)
    half = as_stored(jnp.where(used, pairs, 0.0), get_format("float16"))
    codes = _nearest(_scaled(flat, reach), 1 << code.bits, fitted["levels"])
    codes = codes.reshape(batch, tokens, heads, dim).swapaxes(1, 2)
    parts = {
        "codes": pack(codes, code.format),
        "outliers": half[:, None],
        "places": jnp.where(used, places, NOWHERE).astype(jnp.uint16)[:, None],
    }
    if code.per == "token":
        parts["scales"] = jnp.concatenate(reach, axis=-1)[:, None]
    return parts


@functools.partial(jax.jit, static_argnames=("code", "dim"))
def _decoded(parts: Parts, fitted: Fitted, code: NonuniformCode, dim: int) -> jax.Array:
    codes = unpack(parts["codes"], code.format, dim)
    batch, heads, tokens, _ = codes.shape
    levels = jnp.asarray(fitted["levels"], jnp.float32)
    values = jnp.take(levels, codes.astype(jnp.int32), mode="clip")
    flat = values.swapaxes(1, 2).reshape(batch, tokens, heads * dim)
    if code.per == "token":
        reach = Range(*jnp.split(parts["scales"][:, 0], 2, axis=-1))
    else:
        reach = _of_channels(fitted)
    # As bits, or the product would be fused into the sum.
    wide = float32.to_bits(flat * reach.width)
    bits = add(wide, jnp.broadcast_to(float32.to_bits(reach.offset), wide.shape))
    finite = (bits & float32.MAGNITUDE) < float32.INFINITY
    dense = float32.from_bits(jnp.where(finite, bits, np.uint32(0)))
    half = get_format("float16")
    dense = from_stored(as_stored(dense, half), half)
    rows, columns = jnp.arange(batch)[:, None, None], jnp.arange(tokens)[None, :, None]
    places = parts["places"][:, 0].astype(jnp.int32)
    pairs = from_stored(parts["outliers"][:, 0], half)
    dense = dense.at[rows, columns, places].set(pairs, mode="drop")
    return dense.reshape(batch, tokens, heads, dim).swapaxes(1, 2)


def half_range(lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offset and width, float16, of float16 ends: their sum and difference, rounded, halved."""
    two = np.float16(2)
    return (upper + lower) / two, (upper - lower) / two


def _of_channels(fitted: Fitted) -> Range:
    parts = (jnp.asarray(fitted[name]) for name in ("offset", "width"))
    half = get_format("float16")
    return Range(*(from_stored(x.reshape(1, 1, -1), half) for x in parts))


def _of_tokens(x: jax.Array, tail: int) -> tuple[Range, jax.Array, jax.Array]:
    """The range without each token's largest and smallest, their places, and that all count."""
    key = ordered(float32.to_bits(x))
    _, highest = lax.top_k(key, tail + 1)
    _, lowest = lax.top_k(~key, tail + 1)
    high, low = (
        float32.to_bits(jnp.take_along_axis(x, places[..., -1:], axis=-1))
        for places in (highest, lowest)
    )
    half = np.float32(0.5)
    reach = Range(*(float32.from_bits(s) * half for s in (add(high, low), subtract(high, low))))
    places = jnp.concatenate([highest[..., :-1], lowest[..., :-1]], axis=-1)
    return reach, places, jnp.ones(places.shape, bool)


def _beyond(x: jax.Array, reach: Range, fitted: Fitted, tail: int) -> tuple[jax.Array, jax.Array]:
    """The places of numbers beyond their channel's ends, the largest z first, and which count."""
    half = get_format("float16")
    key, rank = ordered(float32.to_bits(x)), ordered(_scaled(x, reach))
    lower, upper = (
        ordered(float32.to_bits(from_stored(jnp.asarray(fitted[name]).reshape(1, 1, -1), half)))
        for name in ("lower", "upper")
    )
    found = [
        lax.top_k(jnp.where(beyond, score, np.uint32(0)), tail)
        for beyond, score in ((key > upper, rank), (key < lower, ~rank))
    ]
    scores, places = (jnp.concatenate(parts, axis=-1) for parts in zip(*found, strict=True))
    return places, scores > 0


def _scaled(x: jax.Array, reach: Range) -> jax.Array:
    """The bits of (x - offset) / width."""
    bits = float32.to_bits(x)
    offset, width = (jnp.broadcast_to(float32.to_bits(part), bits.shape) for part in reach)
    return lax.optimization_barrier(float32.divide(subtract(bits, offset), width))


def _nearest(bits: jax.Array, count: int, levels: jax.Array) -> jax.Array:
    """The first of the levels at the smallest float32 distance; 0 for NaN."""
    z = float32.from_bits(bits)
    levels = jnp.asarray(levels, jnp.float32)
    best, codes = jnp.abs(z - levels[0]), jnp.zeros(z.shape, jnp.uint8)
    for code in range(1, count):
        distance = jnp.abs(z - levels[code])
        nearer = distance < best
        codes = jnp.where(nearer, jnp.uint8(code), codes)
        best = jnp.where(nearer, distance, best)
    return codes
