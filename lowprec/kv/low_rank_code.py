"""The code of low-rank methods: groups of heads projected on fitted bases, kept in few numbers."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.kv.codes import BlockCode, Code, Fitted, Parts, PlainCode
from lowprec.kv.fixed_order import product
from lowprec.numerics.format import Format
from lowprec.numerics.spec import check_spec
from lowprec.scaling.block import Block

BASES = ("down", "up")
"""What is fitted: float32 (groups, numbers of a group, rank) and (groups, rank, numbers)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRankCode(Code):
    """A token's numbers in a group of heads, x (n), as z = x down (rank); they decode to z up.

    z is `lowprec.kv.fixed_order.product` in float32, so that what is stored is the same bits
    everywhere; z up is this machine's own float32 product (`same_backend`). `codes` of a group lie
    in equal parts in the rows of its heads.

    Attributes:
      latents: what keeps z: a format of 16 bits or fewer, or a block, whose tiles run along z.
      ratio: rank over numbers, above 0 and at most 1: rank is the group's heads times this share of
        a head's numbers, rounded to a whole number of at least 1.
      head_group: heads that are projected together; where a cache has fewer, all of them.
    """

    latents: Format | Block
    ratio: float
    head_group: int

    def __post_init__(self) -> None:
        check_spec("low-rank code", self)
        if not 0 < self.ratio <= 1:
            raise ValueError(f"low-rank code: `ratio` = {self.ratio}; above 0 and at most 1")
        if self.head_group < 1:
            raise ValueError(f"low-rank code: `head_group` = {self.head_group}: at least 1")

    def sizes(self, heads: int, dim: int) -> tuple[int, int, int]:
        """Groups of heads, heads of each, and rank.

        Raises:
          ValueError: the groups do not divide the heads.

        Example:
          >>> from lowprec.numerics import get_format
          >>> code = LowRankCode(latents=get_format("bfloat16"), ratio=0.5, head_group=4)
          >>> code.sizes(heads=8, dim=128)
          (2, 4, 256)
        """
        each = min(self.head_group, heads)
        if heads % each:
            raise ValueError(
                f"`heads` = {heads}: `head_group` = {self.head_group} must divide it, or be no less"
            )
        # Half a number up, through a decimal, so that 0.3 of 5 is 2.
        return heads // each, each, each * max(1, math.floor(round(self.ratio * dim, 9) + 0.5))

    def encode(self, x: jax.Array, fitted: Fitted) -> Parts:
        """See `Code.encode`; NaN and Inf make NaN of the group's token, or what the block says."""
        return _coded(x, {name: jnp.asarray(fitted[name]) for name in BASES}, self)

    def decode(self, parts: Parts, dim: int, fitted: Fitted) -> jax.Array:
        """See `Code.decode`."""
        return _decoded(parts, jnp.asarray(fitted["up"]), self, dim)

    def empty(self, batch: int, heads: int, dim: int, units: int, fitted: Fitted) -> Parts:
        """See `Code.empty`; of what is fitted nothing but its shape would matter."""
        del fitted
        groups, each, rank = self.sizes(heads, dim)
        down = np.zeros((groups, each * dim, rank), np.float32)
        return super().empty(batch, heads, dim, units, {"down": down, "up": down.swapaxes(1, 2)})

    @property
    def own(self) -> Code:
        """Of the latents."""
        if isinstance(self.latents, Format):
            return PlainCode(format=self.latents)
        return BlockCode(block=self.latents)


# Compiled as wholes also outside a caller's `jit`.
@functools.partial(jax.jit, static_argnames="code")
def _coded(x: jax.Array, fitted: Fitted, code: LowRankCode) -> Parts:
    batch, heads, tokens, dim = x.shape
    groups, each, _ = code.sizes(heads, dim)
    rows = x.reshape(batch, groups, each, tokens, dim).swapaxes(2, 3)
    rows = rows.reshape(batch, groups, tokens, each * dim)
    latents = jax.vmap(product, in_axes=(1, 0), out_axes=1)(rows, fitted["down"])
    parts = code.own.encode(latents, {})
    packed = parts["codes"]
    width = -(-packed.shape[3] // each)
    packed = jnp.pad(packed, [(0, 0)] * 3 + [(0, width * each - packed.shape[3])])
    shared = packed.reshape(batch, groups, tokens, each, width).swapaxes(2, 3)
    return parts | {"codes": shared.reshape(batch, heads, tokens, width)}


@functools.partial(jax.jit, static_argnames=("code", "dim"))
def _decoded(parts: Parts, up: jax.Array, code: LowRankCode, dim: int) -> jax.Array:
    batch, heads, tokens, width = parts["codes"].shape
    groups, each, rank = code.sizes(heads, dim)
    shared = parts["codes"].reshape(batch, groups, each, tokens, width).swapaxes(2, 3)
    packed = shared.reshape(batch, groups, tokens, each * width)
    one = jax.eval_shape(lambda x: code.own.encode(x, {}), _one_token(rank))
    own = parts | {"codes": packed[..., : one["codes"].shape[3]]}
    latents = code.own.decode(own, rank, {})
    rows = jnp.einsum("bgtr,grn->bgtn", latents, up, precision=jax.lax.Precision.HIGHEST)
    rows = rows.reshape(batch, groups, tokens, each, dim).swapaxes(2, 3)
    return rows.reshape(batch, heads, tokens, dim)


def _one_token(rank: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, 1, 1, rank), jnp.float32)
