"""The family `polarquant`: turned tokens in polar coordinates, block by block."""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.kv.codes import Code, Fitted, Parts, as_stored, from_stored
from lowprec.kv.fixed_order import norm
from lowprec.kv.index_format import index_format
from lowprec.kv.pair import PairSpec
from lowprec.kv.rotations import orthogonal_turn, orthogonal_turn_back
from lowprec.kv.store import Layout
from lowprec.numerics import float32
from lowprec.numerics.format import get_format
from lowprec.numerics.packing import pack, unpack
from lowprec.numerics.spec import check_spec

Floats = NDArray[np.floating[Any]]

_GRID = 1 << 14
"""Points on which the density of an angle is summed."""
_ITERATIONS = 2000
_TINY = 2.0**-63


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolarCode(Code):
    """Blocks of 2^n numbers as a float16 radius and 2^n - 1 angles.

    Numbers are paired with their neighbours: a pair is an angle in [0, 2 pi) and a radius; pairs of
    radii are angles in [0, pi/2] and radii again, and so on. At the first level the circle is cut
    into equal parts. At level l angles of normal numbers have a density like
    sin(2 x)^(2^(l-1) - 1), whose 2^bits means of least squared error are the levels. An angle is
    never computed: y >= tan(border) x decides, in float32, and radii are `fixed_order.norm`.

    Attributes:
      bits: of the angles of each level, the first level first; as many levels as a block has
        halvings.
      seed: of the random orthogonal matrix that tokens are turned by.
    """

    bits: tuple[int, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        check_spec("polar code", self)
        if not self.bits or self.bits[0] < 2 or min(self.bits) < 1 or max(self.bits) > 8:
            raise ValueError(
                f"polar code: `bits` = {self.bits}; use 2 to 8 for the first level, then 1 to 8"
            )

    def turn(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        """See `Code.turn`."""
        del fitted
        return orthogonal_turn(x, self.seed)

    def turn_back(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        """See `Code.turn_back`."""
        del fitted
        return orthogonal_turn_back(x, self.seed)

    def encode(self, x: jax.Array, fitted: Fitted) -> Parts:
        """See `Code.encode`; NaN and Inf make NaN and Inf of their block."""
        del fitted
        size = 1 << len(self.bits)
        if x.shape[-1] % size:
            raise ValueError(f"a head's {x.shape[-1]} numbers are no whole blocks of {size}")
        return _coded(x, self)

    def decode(self, parts: Parts, dim: int, fitted: Fitted) -> jax.Array:
        """See `Code.decode`."""
        del fitted
        return _decoded(parts, self, dim)


# Compiled as wholes also outside a caller's `jit`.
@functools.partial(jax.jit, static_argnames="code")
def _coded(x: jax.Array, code: PolarCode) -> Parts:
    # Below this a tangent's product could be subnormal, and a norm counts it as zero.
    x = jnp.where(jnp.abs(x) < np.float32(_TINY), 0.0, x)
    parts = {}
    for level, bits in enumerate(code.bits):
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        angle = _sector(pairs, bits) if level == 0 else _quarter(pairs, borders(level, bits))
        parts[_name(level)] = pack(angle, index_format(bits))
        x = float32.from_bits(norm(float32.to_bits(pairs)))[..., 0]
    return parts | {"radii": as_stored(x, get_format("float16"))}


@functools.partial(jax.jit, static_argnames=("code", "dim"))
def _decoded(parts: Parts, code: PolarCode, dim: int) -> jax.Array:
    x = from_stored(parts["radii"], get_format("float16"))
    for level in reversed(range(len(code.bits))):
        bits = code.bits[level]
        angle = unpack(parts[_name(level)], index_format(bits), dim >> level + 1)
        middles = angles(level, bits)
        factors = np.stack([np.cos(middles), np.sin(middles)], axis=-1).astype(np.float32)
        pairs = x[..., None] * jnp.take(jnp.asarray(factors), angle.astype(jnp.int32), axis=0)
        x = pairs.reshape(*x.shape[:-1], -1)
    return x


@functools.cache
def angles(level: int, bits: int) -> Floats:
    """The angles that codes of a level stand for, ascending; level 0 is the first.

    Example:
      >>> angles(1, 1).round(4)
      array([0.5   , 1.0708])
    """
    size = 1 << bits
    if level == 0:
        return (np.arange(size) + 0.5) * (2 * math.pi / size)
    places = (np.arange(_GRID) + 0.5) * (math.pi / 2 / _GRID)
    density = np.sin(2 * places) ** ((1 << level) - 1)
    mass, moment = (np.concatenate([[0.0], np.cumsum(x)]) for x in (density, density * places))
    grid = np.arange(_GRID + 1) * (math.pi / 2 / _GRID)
    means = (np.arange(size) + 0.5) * (math.pi / 2 / size)
    for _ in range(_ITERATIONS):
        ends = np.concatenate([[0.0], (means[1:] + means[:-1]) / 2, [math.pi / 2]])
        means = np.diff(np.interp(ends, grid, moment)) / np.diff(np.interp(ends, grid, mass))
    return means


def borders(level: int, bits: int) -> Floats:
    """The angles halfway between those of a level but the first."""
    middles = angles(level, bits)
    return (middles[1:] + middles[:-1]) / 2


def _sector(pairs: jax.Array, bits: int) -> jax.Array:
    """Codes of the angles of (..., 2) on the circle."""
    first, second = pairs[..., 0], pairs[..., 1]
    left, below = first < 0, second < 0
    # Quarters, each with its first ray: (x, y) in the first is (p, r) in any.
    quarter = jnp.where(below, jnp.where(left, 2, 3), jnp.where(left, 1, 0))
    quarter = jnp.where((first == 0) & (second > 0), 1, quarter)
    quarter = jnp.where((second == 0) & left, 2, quarter)
    odd = quarter % 2 == 1
    size = jnp.abs(pairs)
    along = jnp.where(odd, size[..., 1], size[..., 0])
    across = jnp.where(odd, size[..., 0], size[..., 1])
    parts = 1 << (bits - 2)
    inner = np.arange(1, parts) * (math.pi / 2 / parts)
    within = _quarter(jnp.stack([along, across], axis=-1), inner)
    return quarter.astype(jnp.uint8) * jnp.uint8(parts) + within


def _quarter(pairs: jax.Array, limits: Floats) -> jax.Array:
    """How many angles lie at or below that of (..., 2), neither number negative."""
    count = jnp.zeros(pairs.shape[:-1], jnp.uint8)
    for limit in np.tan(limits).astype(np.float32):
        count += (pairs[..., 1] >= limit * pairs[..., 0]).astype(jnp.uint8)
    return count


def _name(level: int) -> str:
    return f"codes.{level + 1}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolarQuantSpec(PairSpec):
    """PolarQuant (arXiv 2502.02617) with the levels of normal numbers; tokens as they come.

    NaN, Inf and a finite number so large that a radius is beyond 65519 make NaN of all of a head's
    token, over which the turn back spreads them.

    Attributes:
      name: the entry's name.
      family: `polarquant`.
      bits, seed: see `PolarCode`.
    """

    name: str
    family: Literal["polarquant"] = "polarquant"
    bits: tuple[int, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        check_spec(f"method {self.name!r}", self)
        self.layouts()

    def layouts(self) -> tuple[Layout, Layout]:
        """See `PairSpec.layouts`."""
        layout = Layout(
            code=PolarCode(bits=self.bits, seed=self.seed), exact=get_format("bfloat16")
        )
        return layout, layout
