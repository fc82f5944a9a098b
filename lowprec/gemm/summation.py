"""Sums above the instruction: promotion to float32, scales of tiles, and the order over K."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowprec.engines.engine import Engine
from lowprec.engines.matmul import product
from lowprec.engines.native import sums_in_turn
from lowprec.gemm.operand import Operand
from lowprec.gemm.promotion import add_in_floats, add_promoted, plus, within_range
from lowprec.gemm.recipe import Recipe, split_of
from lowprec.numerics import float32
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block

_TILE = 128
"""Rows and columns of the output tiles that `stream_k` hands out."""
_STEP = 32
"""The least k that `split_k` and `stream_k` cut at, where no instruction is longer."""


def sum_products(left: Operand, right: Operand, recipe: Recipe) -> jax.Array:
    """float32 bits of the sum over K of (M, K) and (K, N), promoted where the recipe says so.

    Scales of the operands are applied at promotion. The sum of a recipe that does not promote is
    the engine's own, over all of K or over each part of it.
    """
    every, formats = recipe.promote_every, (_format(recipe.fprop.a), _format(recipe.fprop.b))
    if every is None and recipe.order == "sequential":
        scales = (left.block_scales, right.block_scales)
        return _engine_sum(left.values, right.values, None, recipe.engine, formats, scales)
    depth = left.values.shape[1]
    length = every or least_step(recipe.engine)
    steps = -(-depth // length)
    shape = (left.values.shape[0], right.values.shape[1])
    if every is None and recipe.order.startswith("split_k"):
        in_range = within_range(left, right, recipe.engine, depth)
        return _split(left, right, recipe, formats, length, in_range)
    chunks = _cut(left, right, length, steps, recipe.engine.scale_block or 1)
    in_range = within_range(left, right, recipe.engine, length)
    add = functools.partial(_add, recipe, formats, in_range)
    if recipe.order == "sequential":
        one = lambda total, chunk: (add(total, chunk), None)
        whole = lambda chunks: lax.scan(one, jnp.zeros(shape, jnp.uint32), chunks)[0]
        if every is None or in_range is None or not _in_tiles(recipe.engine, every):
            return whole(chunks)
        tiles = functools.partial(_promoted_in_tiles, recipe, every, left.values, right.values)
        return lax.cond(in_range, tiles, whole, chunks)
    starts = jnp.asarray(part_starts(recipe.order, shape, steps))

    def step(state: Any, operands: Any) -> tuple[Any, None]:
        chunk, begins = operands
        total, part = state
        begins = jnp.repeat(jnp.repeat(begins, _TILE, 0), _TILE, 1)[: shape[0], : shape[1]]
        total = jnp.where(begins, plus(total, part, in_range), total)
        return (total, add(jnp.where(begins, 0, part), chunk)), None

    # -0 is what leaves every part as it is, the first included.
    start = jnp.full(shape, float32.SIGN), jnp.full(shape, float32.SIGN)
    total, part = lax.scan(step, start, (chunks, starts))[0]
    return plus(total, part, in_range)


def add_products(
    total: jax.Array, left: Operand, right: Operand, recipe: Recipe, in_range: jax.Array | None
) -> jax.Array:
    """A total with the products over the next k added to it, as `sum_products` goes on in sequence.

    From a total of zeros, over one part of K after the other, of `least_part` k or multiples of
    it, that is the sum of all of K.

    Args:
      total: (M, N) float32 bits.
      left, right: (M, K) and (K, N), with their scales.
      recipe: with the order `sequential`.
      in_range: what `within_range` says of sums of `promote_every` k, or of all k.
    """
    engine, formats = recipe.engine, (_format(recipe.fprop.a), _format(recipe.fprop.b))
    length = recipe.promote_every or (engine.tile and engine.tile[1])
    if length is None:
        scales = (left.block_scales, right.block_scales)
        return _engine_sum(left.values, right.values, total, engine, formats, scales)
    # A native product adds what it starts from last: of one tile's k that is the same sum.
    steps = -(-left.values.shape[1] // length)
    chunks = _cut(left, right, length, steps, engine.scale_block or 1)
    one = lambda total, chunk: (_add(recipe, formats, in_range, total, chunk), None)
    return lax.scan(one, total, chunks)[0]


def least_part(recipe: Recipe) -> int | None:
    """What a part of K that `add_products` takes is a multiple of.

    None where the engine sums all of K at once: it keeps more on the way than a total.
    """
    engine = recipe.engine
    if recipe.promote_every is not None:
        return recipe.promote_every
    at_once = engine.accumulation == "exact" and engine.fused_length is None
    if at_once or engine.accumulation in ("tree", "compensated"):
        return None
    tile = 1 if engine.tile is None else engine.tile[1]
    return math.lcm(tile, engine.instruction_length or 1, engine.scale_block or 1)


def _in_tiles(engine: Engine, every: int) -> bool:
    """Whether the engine's own tiles may be promoted one by one."""
    return engine.tile is not None and every % engine.tile[1] == 0


def _promoted_in_tiles(
    recipe: Recipe, every: int, a: jax.Array, b: jax.Array, chunks: Any
) -> jax.Array:
    """float32 bits of the native engine's sum, promoted in floats."""
    add = functools.partial(add_in_floats, recipe.promotion)
    beside = tuple(None if x is None else float32.from_bits(x) for x in chunks[2:4])
    found = sums_in_turn(recipe.engine, a, b, (beside[0], beside[1]), every, add)
    return float32.to_bits(found)


def _format(target: Format | Block) -> Format:
    return target.element if isinstance(target, Block) else target


def least_step(engine: Engine) -> int:
    """Whole instructions, of 32 k at least: where a sum may be cut."""
    length = math.lcm(engine.instruction_length or 1, engine.scale_block or 1)
    return length * -(-_STEP // length)


def _split(
    left: Operand,
    right: Operand,
    recipe: Recipe,
    formats: tuple[Format, Format],
    length: int,
    in_range: jax.Array | None,
) -> jax.Array:
    """Each part of K as the engine sums it from zero; the parts added first to last."""
    _, count = split_of(recipe.order)
    depth, every = left.values.shape[1], recipe.engine.scale_block or 1
    steps = -(-depth // length)
    per_part = length * -(-steps // count)
    total = None
    for start in range(0, depth, per_part):
        part, blocks = (slice(start // n, -(-(start + per_part) // n)) for n in (1, every))
        a_scales = None if left.block_scales is None else left.block_scales[:, blocks]
        b_scales = None if right.block_scales is None else right.block_scales[blocks]
        a, b = left.values[:, part], right.values[part]
        found = _engine_sum(a, b, None, recipe.engine, formats, (a_scales, b_scales))
        total = found if total is None else plus(total, found, in_range)
    assert total is not None
    return total


def part_starts(order: str, shape: tuple[int, int], steps: int) -> np.ndarray:
    """Whether a part of the sum begins: bool (steps, tiles down, tiles across)."""
    kind, count = split_of(order)
    down, across = (-(-size // _TILE) for size in shape)
    if kind == "split_k":
        per_part = -(-steps // count)
        begins = np.arange(steps) % per_part == 0
        return np.broadcast_to(begins[:, None, None], (steps, down, across)).copy()
    per_worker = -(-steps * down * across // count)
    work = np.arange(steps * down * across).reshape(down, across, steps)
    return ((work % per_worker == 0) | (work % steps == 0)).transpose(2, 0, 1)


def _add(
    recipe: Recipe,
    formats: tuple[Format, Format],
    in_range: jax.Array | None,
    total: jax.Array,
    chunk: Any,
) -> jax.Array:
    """One step's products added to a total, float32 bits."""
    a, b, a_scale, b_scale, blocks = chunk
    if recipe.promote_every is None:
        return _engine_sum(a, b, total, recipe.engine, formats, blocks)
    partial = _engine_sum(a, b, None, recipe.engine, formats, blocks)
    rows = None if a_scale is None else a_scale[:, None]
    columns = None if b_scale is None else b_scale[None, :]
    return add_promoted(total, partial, rows, columns, recipe.promotion, in_range)


def _engine_sum(
    a: jax.Array,
    b: jax.Array,
    c: jax.Array | None,
    engine: Engine,
    formats: tuple[Format, Format],
    block_scales: tuple[jax.Array | None, jax.Array | None],
) -> jax.Array:
    start = None if c is None else float32.from_bits(c)
    known = tuple(None if x.name == "float32" else x for x in formats)
    out = product(a, b, start, engine, (known[0], known[1]), block_scales)
    return float32.to_bits(out.astype(jnp.float32))


def _cut(left: Operand, right: Operand, length: int, steps: int, every: int) -> Any:
    """Operands and scales by steps of so many k, zero-padded; a block scale is of `every` k."""
    (m, depth), n = left.values.shape, right.values.shape[1]
    padded = steps * length - depth
    a = jnp.pad(left.values, [(0, 0), (0, padded)]).reshape(m, steps, length).transpose(1, 0, 2)
    b = jnp.pad(right.values, [(0, padded), (0, 0)]).reshape(steps, length, n)
    a_scales = _per_step(None if left.scales is None else left.scales.T, length, steps)
    a_blocks = None if left.block_scales is None else left.block_scales.T
    a_blocks = _blocks_per_step(a_blocks, steps, length // every)
    a_blocks = None if a_blocks is None else a_blocks.transpose(0, 2, 1)
    blocks = (a_blocks, _blocks_per_step(right.block_scales, steps, length // every))
    return a, b, a_scales, _per_step(right.scales, length, steps), blocks


def _per_step(scales: jax.Array | None, length: int, steps: int) -> jax.Array | None:
    """Scales (K, rows), or (1, rows), as (steps, rows): a step lies within one tile."""
    if scales is None:
        return None
    return jnp.repeat(scales, steps, axis=0) if scales.shape[0] == 1 else scales[::length]


def _blocks_per_step(codes: jax.Array | None, steps: int, per_step: int) -> jax.Array | None:
    """Codes of block scales (blocks, rows) as (steps, blocks of a step, rows), zero-padded."""
    if codes is None:
        return None
    blocks, rows = codes.shape
    padded = jnp.pad(codes, [(0, steps * per_step - blocks), (0, 0)])
    return padded.reshape(steps, per_step, rows)
