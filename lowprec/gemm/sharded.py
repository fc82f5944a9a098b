"""A GEMM over many devices: M, N and K cut, and the same bits as on one.

Each device holds its part of both operands and of the result alone. Along K the sum is a chain, as
it is in the engine: a device goes on from the total of the one before it. The rows of the result go
through the devices in pieces, one after the other, so that all work at once but at both ends.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec
from jax.typing import ArrayLike, DTypeLike

from lowprec.engines.engine import Engine
from lowprec.gemm.gemm import check_key, of_matrices, overridden
from lowprec.gemm.operand import Operand
from lowprec.gemm.promotion import plus, within_range
from lowprec.gemm.recipe import ROLES, Recipe, Role, get_recipe, split_of
from lowprec.gemm.summation import add_products, least_part, least_step, sum_products
from lowprec.numerics import float32
from lowprec.numerics.codec import float_array
from lowprec.numerics.rounding import check_choice

PIECES = 4
"""Pieces of rows for each device along K: with d devices of which d - 1 wait, in 4 d + d - 1."""
Axis = str | None
Advance = Callable[[jax.Array, jax.Array], jax.Array]
"""The total of a piece of rows before this device, and its first row, to the total after it."""


def sharded_gemm(
    a: ArrayLike,
    b: ArrayLike,
    recipe: str | Recipe,
    *,
    mesh: Mesh,
    rows: Axis = None,
    depth: Axis = None,
    columns: Axis = None,
    role: Role = "fprop",
    engine: str | Engine | None = None,
    promote_every: int | None = None,
    order: str | None = None,
    out_dtype: DTypeLike | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """`gemm` of two matrices over the devices of a mesh, bit for bit what it is on one.

    Operands that lie elsewhere are placed first, NumPy arrays part by part. With the order
    `sequential` devices along K hand the total on; with `split_k.<parts>` each sums its own parts
    at once, and their sums are added first to last. Inf, NaN and gradients are those of `gemm`.

    Args:
      a: (M, K) float32, bfloat16 or float16.
      b: (K, N), the same.
      recipe: a recipe by name, path or value.
      mesh: the devices.
      rows, depth, columns: the axes of the mesh that cut M, K and N; None leaves one whole.
      role, engine, promote_every, order, out_dtype, key: as `gemm` has them.

    Returns:
      (M, N) of the output type, cut by `rows` and `columns`.

    Raises:
      TypeError: an operand is not float32, bfloat16 or float16.
      ValueError: what `gemm` refuses; an axis that the mesh lacks, or two that are one; a size that
        an axis does not divide; K cut inside an instruction, a promotion or a part; an order or an
        engine whose sum cannot be handed on.

    Example:
      >>> mesh = jax.make_mesh((1, 1), ("m", "k"))
      >>> sharded_gemm(np.ones((2, 256), np.float32), np.ones((256, 1), np.float32),
      ...              "deepseek_v3", mesh=mesh, rows="m", depth="k")
      Array([[256],
             [256]], dtype=bfloat16)
    """
    whole = get_recipe(recipe)
    check_choice("role", role, ROLES)
    chosen = overridden(whole.in_role(role), engine, promote_every, order, out_dtype)
    check_key(whole, key)
    cut = Cut(mesh=Mesh(mesh.devices, mesh.axis_names), rows=rows, depth=depth, columns=columns)
    cut.check_order(chosen)
    a, b = cut.placed("a", a, (rows, depth)), cut.placed("b", b, (depth, columns))
    if a.shape[1] != b.shape[0] or 0 in (*a.shape, *b.shape):
        raise ValueError(f"`a` of shape {a.shape} and `b` of shape {b.shape} do not multiply")
    return of_matrices(chosen, role, a, b, key, cut)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """How a product is cut over devices; sums over K as `sum_products` does.

    Attributes:
      mesh: the devices.
      rows, depth, columns: the axes of the mesh that cut M, K and N, or None.

    Raises:
      ValueError: an axis that the mesh lacks, or one that is named twice.
    """

    mesh: Mesh
    rows: Axis = None
    depth: Axis = None
    columns: Axis = None

    def __post_init__(self) -> None:
        named = [x for x in (self.rows, self.depth, self.columns) if x is not None]
        for name in named:
            if name not in self.mesh.axis_names or named.count(name) > 1:
                raise ValueError(
                    f"`rows`, `depth`, `columns` = {self.rows!r}, {self.depth!r}, "
                    f"{self.columns!r}; each is another axis of the mesh, "
                    f"{', '.join(map(repr, self.mesh.axis_names))}, or None"
                )

    @property
    def parts(self) -> int:
        """Among how many devices K is cut."""
        return 1 if self.depth is None else self.mesh.shape[self.depth]

    def check_order(self, recipe: Recipe) -> None:
        """ValueError for a sum whose order could not be kept."""
        kind, _ = split_of(recipe.order)
        if kind == "stream_k":
            raise ValueError(
                f"order = {recipe.order!r} deals the tiles of a whole product to workers; over "
                f"devices use sequential, or split_k.<parts>"
            )
        if self.parts > 1 and kind == "sequential" and least_part(recipe) is None:
            raise ValueError(
                f"engine {recipe.engine.name!r} sums all of K at once and keeps more than a total "
                f"on the way, which no device can go on from: leave K whole (depth=None), or use "
                f"promote_every or order = 'split_k.{self.parts}'"
            )

    def placed(self, argument: str, x: ArrayLike, axes: tuple[Axis, Axis]) -> jax.Array:
        """A matrix where its devices are; no device sees the whole."""
        given = x if isinstance(x, jax.Array) else np.asarray(x)
        if given.ndim != 2:
            raise ValueError(f"`{argument}` has shape {given.shape}; a matrix is needed")
        for size, axis in zip(given.shape, axes, strict=True):
            if axis is not None and size % self.mesh.shape[axis]:
                raise ValueError(
                    f"`{argument}` has shape {given.shape}, of which the {self.mesh.shape[axis]} "
                    f"devices along {axis!r} do not divide {size}"
                )
        where = NamedSharding(self.mesh, Spec(*axes))
        if isinstance(given, Tracer):
            return float_array(argument, lax.with_sharding_constraint(given, where))
        return float_array(argument, jax.device_put(given, where))

    def __call__(self, left: Operand, right: Operand, recipe: Recipe) -> jax.Array:
        """float32 bits of the sum over K, (M, N), cut by rows and columns."""
        whole = left.values.shape[1]
        part = self._part(recipe, whole)
        in_range = within_range(left, right, recipe.engine, recipe.promote_every or whole)
        left, right = (x._replace(tensor_scale=None) for x in (left, right))
        specs = _specs(left, (self.rows, self.depth)), _specs(right, (self.depth, self.columns))
        run = jax.shard_map(
            functools.partial(self._of_device, recipe, part),
            mesh=self.mesh,
            in_specs=(*specs, Spec()),
            out_specs=Spec(self.rows, self.columns),
            check_vma=False,
        )
        return run(left, right, in_range)

    def _part(self, recipe: Recipe, depth: int) -> int:
        """How many k are summed together; ValueError where devices would cut through them."""
        if self.parts == 1:
            return depth
        kind, count = split_of(recipe.order)
        if kind == "sequential":
            least = least_part(recipe)
            assert least is not None
            what = "instructions" if recipe.promote_every is None else "promotions"
        else:
            length = recipe.promote_every or least_step(recipe.engine)
            steps = -(-depth // length)
            least = length * -(-steps // count)
            what = f"parts of {recipe.order}"
        if depth % (self.parts * least):
            raise ValueError(
                f"K = {depth} over {self.parts} devices cuts through {what} of {least} k; it must "
                f"be a multiple of {self.parts * least}"
            )
        return least

    def _of_device(
        self,
        recipe: Recipe,
        part: int,
        left: Operand,
        right: Operand,
        in_range: jax.Array | None,
    ) -> jax.Array:
        """The device's rows and columns of the result, from its part of K and the others'."""
        if self.parts == 1:
            return sum_products(left, right, recipe)
        shape = left.values.shape[0], right.values.shape[1]
        one = dataclasses.replace(recipe, order="sequential")
        if recipe.order == "sequential":
            height = -(-shape[0] // (PIECES * self.parts))
            left = jax.tree.map(lambda x: _filled(x, height), left)

            def advance(total: jax.Array, first: jax.Array) -> jax.Array:
                cut = lambda x: lax.dynamic_slice_in_dim(x, first, height)
                return add_products(total, jax.tree.map(cut, left), right, one, in_range)

            return self._chain(advance, shape, height, jnp.uint32(0))
        sums = [
            sum_products(_between(left, 1, k, part), _between(right, 0, k, part), one)
            for k in range(0, left.values.shape[1], part)
        ]
        # -0 is what leaves the first sum as it is.
        add = lambda total, _: functools.reduce(lambda x, y: plus(x, y, in_range), sums, total)
        return self._chain(add, shape, shape[0], float32.SIGN)

    def _chain(
        self, advance: Advance, shape: tuple[int, int], height: int, start: np.uint32 | jax.Array
    ) -> jax.Array:
        """Totals of pieces of rows, from device to device along K: float32 bits of a shape."""
        assert self.depth is not None
        axis, pieces = self.depth, -(-shape[0] // height)
        index, onward = lax.axis_index(axis), [(i, i + 1) for i in range(self.parts - 1)]

        def turn(time: jax.Array, carried: tuple[jax.Array, jax.Array]) -> tuple:
            total, out = carried
            total = jnp.where(index == 0, start, total)
            piece = time - index
            first = jnp.clip(piece, 0, pieces - 1) * height
            here = (piece >= 0) & (piece < pieces)
            total = lax.cond(here, advance, lambda total, _: total, total, first)
            kept = jnp.where(here, total, lax.dynamic_slice_in_dim(out, first, height))
            out = lax.dynamic_update_slice_in_dim(out, kept, first, 0)
            return lax.ppermute(total, axis, onward), out

        nothing = jnp.zeros((height, shape[1]), jnp.uint32)
        out = jnp.zeros((pieces * height, shape[1]), jnp.uint32)
        out = lax.fori_loop(0, pieces + self.parts - 1, turn, (nothing, out))[1][: shape[0]]
        return lax.psum(jnp.where(index == self.parts - 1, out, 0), axis)


def _specs(operand: Operand, axes: tuple[Axis, Axis]) -> Operand:
    """How an operand is cut: scales that span an axis, of size 1, are everybody's."""
    return jax.tree.map(
        lambda x: Spec(*(a if size > 1 else None for a, size in zip(axes, x.shape, strict=True))),
        operand,
    )


def _filled(x: jax.Array, height: int) -> jax.Array:
    """Rows of zeros up to whole pieces."""
    return jnp.pad(x, [(0, -x.shape[0] % height), (0, 0)])


def _between(operand: Operand, axis: int, first: int, length: int) -> Operand:
    """The part of an operand that belongs to so many k."""
    depth = operand.values.shape[axis]

    def cut(x: jax.Array) -> jax.Array:
        size = x.shape[axis]
        if size == 1:
            return x
        begin, end = first * size // depth, (first + length) * size // depth
        return lax.slice_in_dim(x, begin, end, axis=axis)

    return jax.tree.map(cut, operand)
