"""Codes of a token's norm and of its direction, turned so that its coordinates are near normal.

Every step is a float32 operation in a fixed order (`lowprec.kv.fixed_order`), so that the stored
bits depend on neither backend, transformation nor on how many tokens are coded at once.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.kv.codes import Code, Fitted, Parts, as_stored, from_stored
from lowprec.kv.fixed_order import (
    Seed,
    norm,
    normal,
    ordered,
    orthogonal,
    product,
    square_root,
)
from lowprec.kv.gaussian_levels import LloydMax, gaussian_levels
from lowprec.kv.rotations import hadamard, orthogonal_turn, orthogonal_turn_back
from lowprec.numerics import float32
from lowprec.numerics.codec import decode
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.packing import pack, unpack
from lowprec.numerics.spec import check_spec
from lowprec.scaling.addition import add, subtract, tree_sum

Matrix = Literal["gaussian", "orthogonal"]

_SIGN = "uint1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormSplitCode(Code):
    """A float16 norm, and for each coordinate of the turned direction the nearest of 2^bits levels.

    x / (|x| + epsilon) is turned; a coordinate at or above the midpoint of two levels, a float32
    sum halved, takes the upper one. It decodes to the norm times the level, turned back.

    Attributes:
      bits: of a coordinate.
      levels: how the levels for normal numbers of deviation dim**-0.5 are found.
      rotation: Sylvester's Hadamard matrix over the root of dim, or a random orthogonal matrix.
      seed: of random matrices.
      epsilon: is added to the norm that is divided by; where that is 0, so is what is divided.
      norm_correction: levels are divided by their own norm, the root of their squares' sum and
        this; None leaves them.
      sketch: QJL: beside the levels the signs of S (direction - levels), in the turned frame, and
        the float16 norm g of that rest; sqrt(pi / 2) / dim * g * S^T signs is added on decoding.
        The rows of S are normal, or orthogonal ones of length sqrt(dim).
    """

    bits: int
    levels: LloydMax
    rotation: Literal["hadamard", "orthogonal"]
    seed: int = 0
    epsilon: float = 0.0
    norm_correction: float | None = None
    sketch: Matrix | None = None

    def __post_init__(self) -> None:
        check_spec("norm-split code", self)
        if not 1 <= self.bits <= 8:
            raise ValueError(f"norm-split code: `bits` = {self.bits}; use 1 to 8")
        if self.epsilon < 0:
            raise ValueError(f"norm-split code: `epsilon` = {self.epsilon} must be at least 0")

    def turn(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        """See `Code.turn`."""
        del fitted
        if self.rotation == "orthogonal":
            return orthogonal_turn(x, self.seed)
        return hadamard(x)

    def turn_back(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        """See `Code.turn_back`."""
        del fitted
        if self.rotation == "orthogonal":
            return orthogonal_turn_back(x, self.seed)
        return hadamard(x)

    def encode(self, x: jax.Array, fitted: Fitted) -> Parts:
        """See `Code.encode`; `code` is what the sources do."""
        return self.code(self.turn_back(x, fitted), fitted)

    def code(self, x: jax.Array, fitted: Fitted) -> Parts:
        """See `Code.code`: the norm is that of `x` before it is turned.

        A token with NaN or Inf, or of a norm above 65519, decodes to NaN and Inf.
        """
        del fitted
        return _coded(x, self)

    def decode(self, parts: Parts, dim: int, fitted: Fitted) -> jax.Array:
        """See `Code.decode`."""
        del fitted
        return _decoded(parts, self, dim)

    def table(self, dim: int) -> Format:
        """The levels of a head of `dim` numbers."""
        return gaussian_levels(self.bits, dim, self.levels)

    def matrix(self, dim: int) -> np.ndarray:
        """S, whose rows are sketched with."""
        assert self.sketch is not None
        return sketch_matrix(dim, dim, self.sketch, (self.seed, 1))


@functools.cache
def sketch_matrix(rows: int, dim: int, kind: Matrix, seed: Seed) -> np.ndarray:
    """Rows to sketch with, float32 (rows, dim): normal, or orthogonal ones of length sqrt(dim).

    More than dim orthogonal rows are several such sets.
    """
    if kind == "gaussian":
        return normal(rows, dim, seed).astype(np.float32)
    first = (seed,) if isinstance(seed, int) else seed
    sets = [orthogonal(dim, (*first, number)) for number in range(-(-rows // dim))]
    scaled = np.concatenate(sets).astype(np.float64) * math.sqrt(dim)
    return scaled[:rows].astype(np.float32)


# Compiled as wholes also outside a caller's `jit`.
@functools.partial(jax.jit, static_argnames="code")
def _coded(x: jax.Array, code: NormSplitCode) -> Parts:
    bits, dim = float32.to_bits(x), x.shape[-1]
    length = norm(bits)
    divisor = add(length, jnp.full_like(length, _bits(code.epsilon)))
    # Barriers: fused into one expression, quotient and rotation compile slowly.
    divisor = lax.optimization_barrier(jnp.where(divisor == 0, float32.ONE, divisor))
    unit = float32.divide(bits, jnp.broadcast_to(divisor, bits.shape))
    direction = code.turn(float32.from_bits(lax.optimization_barrier(unit)), {})
    table = code.table(dim)
    codes = _at_or_above(float32.to_bits(direction), table)
    parts = {"codes": pack(codes, table), "norms": _half(length)}
    if code.sketch is not None:
        level = float32.to_bits(decode(codes, table))
        rest = subtract(float32.to_bits(direction), level)
        sketched = product(float32.from_bits(rest), code.matrix(dim).T)
        parts["signs"] = pack((sketched > 0).astype(jnp.uint8), _SIGN)
        parts["rests"] = _half(norm(rest))
    return parts


@functools.partial(jax.jit, static_argnames=("code", "dim"))
def _decoded(parts: Parts, code: NormSplitCode, dim: int) -> jax.Array:
    table = code.table(dim)
    codes = unpack(parts["codes"], table, dim)
    value = float32.to_bits(decode(codes, table))
    if code.norm_correction is not None:
        value = _corrected(value, codes, table, code.norm_correction)
    # No product here is subnormal, and none is added to anything but as bits.
    if code.sketch is not None:
        signs = unpack(parts["signs"], _SIGN, dim).astype(jnp.float32) * 2 - 1
        length = from_stored(parts["rests"], get_format("float16"))
        factor = np.float32(math.sqrt(math.pi / 2) / dim) * length[..., None]
        value = add(value, float32.to_bits(factor * product(signs, code.matrix(dim))))
    length = from_stored(parts["norms"], get_format("float16"))
    return length[..., None] * float32.from_bits(value)


def _at_or_above(bits: jax.Array, table: Format) -> jax.Array:
    """How many midpoints of a table lie at or below; 0 for NaN."""
    levels = np.array(table.table, np.float32)
    key = ordered(bits)
    count = jnp.zeros(bits.shape, jnp.uint8)
    for middle in (levels[:-1] + levels[1:]) / np.float32(2):
        count += (key >= ordered(jnp.uint32(middle.view(np.uint32)))).astype(jnp.uint8)
    return jnp.where((bits & float32.MAGNITUDE) > float32.INFINITY, jnp.uint8(0), count)


def _corrected(value: jax.Array, codes: jax.Array, table: Format, epsilon: float) -> jax.Array:
    """The bits of values times 1 / sqrt(sum of their squares + epsilon)."""
    levels = np.array(table.table, np.float32)
    squares = jnp.take(jnp.asarray((levels * levels).view(np.uint32)), codes, mode="clip")
    total = tree_sum(squares, -1)
    length = square_root(add(total, jnp.full_like(total, _bits(epsilon))))
    inverse = float32.divide(jnp.full_like(length, float32.ONE), length)
    return float32.to_bits(float32.from_bits(value) * float32.from_bits(inverse))


def _half(length: jax.Array) -> jax.Array:
    """Norms (..., 1) as bits to float16 (...), nearest even; Inf above 65519."""
    return as_stored(float32.from_bits(length)[..., 0], get_format("float16"))


def _bits(number: float) -> np.uint32:
    return np.float32(number).view(np.uint32)
