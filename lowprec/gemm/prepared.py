"""A weight that a recipe prepared, with what its inputs and its product then take."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from lowprec.engines.engine import Engine
from lowprec.gemm.gemm import gemm
from lowprec.gemm.recipe import Recipe, get_recipe, operand_bits
from lowprec.numerics import float32
from lowprec.numerics.arguments import float_array, refuse_gradient
from lowprec.numerics.codec import narrow
from lowprec.scaling import transforms
from lowprec.scaling.addition import add
from lowprec.scaling.codings import Transform
from lowprec.scaling.qtensor import QTensor


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `lowprec.prepare` made of a weight; a pytree, so it passes through `jit` and `scan`.

    y = product(x) is gemm(inputs(x), w, recipe) plus the product with the low-rank matrices.

    Attributes:
      w: what is multiplied: the float32 weight, smoothed, rotated and (K', N), which the recipe's
        own block rounds; or, of GPTQ, the QTensor of the codes that it chose, whose scales a second
        quantization of its values would not find again.
      smoothing: the factors that x is divided by, (K,) float32, or None.
      signs: of the rotation, (K',) float32, or None.
      low_rank: A (K', rank) and B (rank, N) in the type that they are kept in, or None.
      ratio: of AWQ, the exponent that the search found, a float32 scalar; or None.
      recipe: the recipe, with the preparation.
      depth: K. K' is K padded with zeros to whole blocks of rotation and transforms.
    """

    w: jax.Array | QTensor
    smoothing: jax.Array | None = None
    signs: jax.Array | None = None
    low_rank: tuple[jax.Array, jax.Array] | None = None
    ratio: jax.Array | None = None
    recipe: Recipe = dataclasses.field(metadata={"static": True})
    depth: int = dataclasses.field(metadata={"static": True})

    @property
    def rotation(self) -> Transform | None:
        """The rotation of both operands, or None."""
        steps = self.recipe.prepare
        if steps is None or steps.rotation is None:
            return None
        return steps.rotation.transform(self.depth)

    @property
    def bits_per_element(self) -> float:
        """Bits of the weight for each of its K * N numbers: block and low-rank matrices.

        Smoothing factors are not counted: a model folds them into what comes before.
        """
        total = operand_bits(self.recipe.fprop.b) * self.w.shape[0] * self.w.shape[1]
        if self.low_rank is not None:
            total += sum(8 * x.size * x.dtype.itemsize for x in self.low_rank)
        return total / (self.depth * self.w.shape[1])

    def inputs(self, x: ArrayLike) -> jax.Array:
        """What becomes of x (..., K) before it is multiplied: float32 (..., K').

        x / s, each quotient rounded once, zeros up to K', then the rotation; x itself where there
        is none of these. NaN and Inf spread over the block of a rotation.

        Raises:
          TypeError: x is not float32, bfloat16 or float16.
          ValueError: its last axis is not K long; or under `jax.grad`, where x is changed.

        Example:
          >>> lp.prepare(jnp.eye(4), "quarot_w4a4_rotated").inputs(jnp.ones((1, 4))).shape
          (1, 4)
        """
        x = float_array("x", x)
        if not x.ndim or x.shape[-1] != self.depth:
            raise ValueError(
                f"`x` of shape {x.shape} does not multiply the weight, whose K is {self.depth}: "
                f"(..., {self.depth}) is needed"
            )
        if self.smoothing is None and self.rotation is None and self.w.shape[0] == self.depth:
            return x
        fixed = refuse_gradient("Prepared.inputs", x)
        return turn(
            fixed, self.smoothing, self.signs, self.rotation, axis=-1, length=self.w.shape[0]
        )

    def product(
        self,
        x: ArrayLike,
        *,
        engine: str | Engine | None = None,
        promote_every: int | None = None,
        order: str | None = None,
        out_dtype: DTypeLike | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The product of x and the weight under the recipe, as `gemm` in the role fprop.

        With low-rank matrices x A and then (x A) B are products of the recipe `bf16` or `float32`,
        as their type says, put out in float32; the sum with the quantized product, in float32 too,
        is rounded once to the output type.

        Args:
          x: (..., K) float32, bfloat16 or float16; all axes but the last are rows of one matrix.
          engine, promote_every, order, out_dtype, key: as `gemm`.

        Returns:
          (..., N) of the output type.

        Raises:
          TypeError, ValueError: as `inputs` and `gemm`.

        Example:
          >>> lp.prepare(jnp.eye(4), "mxfp4").product(jnp.ones((1, 4)))
          Array([[1, 1, 1, 1]], dtype=bfloat16)
        """
        plain = dataclasses.replace(self.recipe, prepare=None)
        turned = self.inputs(x)
        rows = turned.reshape(-1, turned.shape[-1])
        options = {"engine": engine, "promote_every": promote_every, "order": order, "key": key}
        if self.low_rank is None:
            y = gemm(rows, self.w, plain, out_dtype=out_dtype, **options)
            return y.reshape(*turned.shape[:-1], y.shape[-1])
        wide = gemm(rows, self.w, plain, out_dtype=jnp.float32, **options)
        left, right = self.low_rank
        beside = get_recipe("bf16" if left.dtype == jnp.bfloat16 else "float32")
        thin = gemm(rows, left, beside, out_dtype=jnp.float32)
        correction = gemm(thin, right, beside, out_dtype=jnp.float32)
        total = add(float32.to_bits(wide), float32.to_bits(correction))
        output = plain.in_role("fprop").output.name if out_dtype is None else out_dtype
        y = narrow(total, np.dtype(output))
        return y.reshape(*turned.shape[:-1], y.shape[-1])


@functools.partial(jax.jit, static_argnames=("rotation", "axis", "length"))
def turn(
    x: jax.Array,
    smoothing: jax.Array | None,
    signs: jax.Array | None,
    rotation: Transform | None,
    *,
    axis: int,
    length: int,
) -> jax.Array:
    """x / s along the last axis, or s * w along the one before; padded, then rotated: float32."""
    bits = float32.to_bits(x)
    if smoothing is not None:
        factors = Transform(kind="smoothing", inverse=axis == -2)
        bits, _ = transforms.apply(bits, factors, axis, smoothing)
    missing = length - x.shape[axis]
    if missing:
        bits = jnp.pad(bits, [(0, missing if i == x.ndim + axis else 0) for i in range(x.ndim)])
    if rotation is not None:
        bits, _ = transforms.apply(bits, rotation, axis, signs)
    return float32.from_bits(bits)
