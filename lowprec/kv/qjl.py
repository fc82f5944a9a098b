"""The family `qjl`: signs of random projections of keys, values by their range."""

import dataclasses
import functools
import math
from typing import Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.kv.codes import BlockCode, Code, Fitted, Parts, as_stored, from_stored
from lowprec.kv.fixed_order import norm, product, square_root
from lowprec.kv.norm_split import sketch_matrix
from lowprec.kv.pair import PairSpec
from lowprec.kv.store import Layout
from lowprec.numerics import float32
from lowprec.numerics.format import get_format
from lowprec.numerics.packing import pack, unpack
from lowprec.numerics.spec import check_spec
from lowprec.scaling.block import Block

_SIGN = "uint1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignSketchCode(Code):
    """QJL: a token's norm and the signs of S k, its group's largest channels sketched apart.

    The `outliers` channels of the largest norm over the group's tokens (of equal ones the first)
    make k_out, the others k_in. A bit is 1 where a projection is above zero. With m rows of S for
    k_in and the first n of them for k_out, a key decodes to the vector whose product with any query
    is QJL's estimate: sqrt(pi/2) / m |k_in| S^T signs within the channels of k_in, and the same of
    k_out with n. |k| and |k_out| are float16; |k_in| is the root of the difference of their
    squares, 0 where their rounding makes that negative.

    Attributes:
      group: tokens that share outlier channels.
      outliers: see above.
      size, outlier_size: m and n, multiples of 8; n is at most m.
      seed: of S, whose rows are sets of orthogonal ones of length sqrt(dim).
    """

    group: int
    outliers: int
    size: int
    outlier_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_spec("sign-sketch code", self)
        for name in ("group", "outliers"):
            if getattr(self, name) < 1:
                raise ValueError(f"sign-sketch code: `{name}` = {getattr(self, name)}: at least 1")
        sizes = (self.size, self.outlier_size)
        if min(sizes) < 8 or any(x % 8 for x in sizes) or sizes[1] > sizes[0]:
            raise ValueError(
                f"sign-sketch code: `size` = {self.size} and `outlier_size` = {self.outlier_size} "
                f"must be multiples of 8, the first not the smaller"
            )

    def encode(self, x: jax.Array, fitted: Fitted) -> Parts:
        """See `Code.encode`; NaN and Inf make NaN of the tokens that have them."""
        del fitted
        if not self.outliers < x.shape[-1] <= 256:
            raise ValueError(
                f"a head's {x.shape[-1]} numbers: `outliers` = {self.outliers} channels need more, "
                f"and their places are of 8 bits"
            )
        return _coded(x, self)

    def decode(self, parts: Parts, dim: int, fitted: Fitted) -> jax.Array:
        """See `Code.decode`."""
        del fitted
        return _decoded(parts, self, dim)

    def matrix(self, dim: int) -> np.ndarray:
        """S, float32 (size, dim)."""
        return sketch_matrix(self.size, dim, "orthogonal", self.seed)


# Compiled as wholes also outside a caller's `jit`.
@functools.partial(jax.jit, static_argnames="code")
def _coded(x: jax.Array, code: SignSketchCode) -> Parts:
    batch, heads, tokens, dim = x.shape
    units = tokens // code.group
    grouped = x.reshape(batch, heads, units, code.group, dim)
    lengths = norm(float32.to_bits(grouped.swapaxes(-1, -2)))[..., 0]
    _, places = lax.top_k(lengths, code.outliers)
    inside = _mask(places, dim)
    apart = [jnp.where(chosen, grouped, 0.0) for chosen in (~inside, inside)]
    matrix = code.matrix(dim)
    signs = [
        (product(part, matrix[:rows].T) > 0).astype(jnp.uint8).reshape(batch, heads, units, -1)
        for part, rows in zip(apart, (code.size, code.outlier_size), strict=True)
    ]
    half = get_format("float16")
    norms = [
        as_stored(float32.from_bits(norm(float32.to_bits(part)))[..., 0], half)
        for part in (grouped, apart[1])
    ]
    return {
        "codes": pack(signs[0], _SIGN),
        "outlier_codes": pack(signs[1], _SIGN),
        "norms": norms[0],
        "outlier_norms": norms[1],
        "places": places.astype(jnp.uint8),
    }


@functools.partial(jax.jit, static_argnames=("code", "dim"))
def _decoded(parts: Parts, code: SignSketchCode, dim: int) -> jax.Array:
    half = get_format("float16")
    whole, outer = (from_stored(parts[name], half) for name in ("norms", "outlier_norms"))
    # Squares of float16 numbers are exact.
    rest = whole * whole - outer * outer
    rest = jnp.where(rest < 0, 0.0, rest)
    inner = float32.from_bits(square_root(float32.to_bits(rest)))
    matrix = code.matrix(dim)
    values = [
        _estimate(parts[name], matrix[:rows], length)
        for name, rows, length in (
            ("codes", code.size, inner),
            ("outlier_codes", code.outlier_size, outer),
        )
    ]
    inside = _mask(parts["places"].astype(jnp.int32), dim)
    found = jnp.where(inside, values[1], values[0])
    return found.reshape(*found.shape[:2], -1, dim)


def _estimate(packed: jax.Array, matrix: np.ndarray, length: jax.Array) -> jax.Array:
    """sqrt(pi/2) / rows * length * S^T signs, for each token of units (..., units, group)."""
    rows = matrix.shape[0]
    bits = unpack(packed, _SIGN, length.shape[-1] * rows)
    signs = bits.reshape(*length.shape, rows).astype(jnp.float32) * 2 - 1
    factor = np.float32(math.sqrt(math.pi / 2) / rows) * length
    return factor[..., None] * product(signs, matrix)


def _mask(places: jax.Array, dim: int) -> jax.Array:
    """Whether channels are among places (batch, heads, units, n): (batch, heads, units, 1, dim)."""
    channels = jnp.arange(dim).reshape(1, 1, 1, 1, dim)
    return jnp.any(places[..., None] == channels, axis=-2, keepdims=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QjlSpec(PairSpec):
    """QJL (arXiv 2406.03482) as its code has it, values as in KIVI.

    NaN, Inf and a norm above 65519 make NaN and Inf of all of a head's key, and NaN of the numbers
    of a token's values that share a scale.

    Attributes:
      name: the entry's name.
      family: `qjl`.
      group, outliers, size, outlier_size, seed: see `SignSketchCode`.
      values: a block of values, along a head's numbers.
      buffer: tokens that keys wait for until so many are coded together, and that stay exact among
        values; a multiple of `group`, or 0 for the variant without a window.
    """

    name: str
    family: Literal["qjl"] = "qjl"
    group: int
    outliers: int
    size: int
    outlier_size: int
    values: Block
    buffer: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_spec(f"method {self.name!r}", self)
        if self.buffer < 0 or self.buffer % self.group:
            raise ValueError(
                f"method {self.name!r}: buffer = {self.buffer} must be a multiple of group = "
                f"{self.group}, or 0"
            )
        self.layouts()

    def without_window(self) -> Self:
        """See `Spec.without_window`."""
        return dataclasses.replace(self, buffer=0)

    def layouts(self) -> tuple[Layout, Layout]:
        """See `PairSpec.layouts`."""
        exact = get_format("float16")
        keys = SignSketchCode(
            group=self.group,
            outliers=self.outliers,
            size=self.size,
            outlier_size=self.outlier_size,
            seed=self.seed,
        )
        return (
            Layout(code=keys, exact=exact, step=self.buffer or self.group),
            Layout(code=BlockCode(block=self.values), exact=exact, keep=self.buffer),
        )
