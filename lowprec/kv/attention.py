"""Attention over tiles of keys and values, with named engines and an explicit schedule."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowprec.engines.engine import Engine, get_engine
from lowprec.engines.matmul import matmul
from lowprec.kv.schedule import Schedule
from lowprec.numerics.codec import round_to_format
from lowprec.numerics.format import Format, get_format

Tiles = Callable[[jax.Array], jax.Array]
"""A tile's first token to (batch, kv_heads, tile, dim) float32."""

Operands = tuple[str | Format, str | Format]
"""The formats of a product's two operands: of queries and keys, or of weights and values."""


class Running(NamedTuple):
    """What has been summed: over rows (batch, kv_heads, rows), and values (..., rows, dim)."""

    maximum: jax.Array
    total: jax.Array
    output: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Products:
    """What multiplies; None is this machine's own float32 product.

    Attributes:
      qk, pv: engines; operands are rounded to nearest even, saturating, to the input format.
      qk_formats, pv_formats: which ones, of an engine that takes several, or any numbers.

    Raises:
      ValueError: an engine takes several formats and none are named; it does not take one that is;
        formats of no engine.
    """

    qk: Engine | None = None
    pv: Engine | None = None
    qk_formats: tuple[Format, Format] | None = None
    pv_formats: tuple[Format, Format] | None = None

    def __post_init__(self) -> None:
        for side, engine, named in (
            ("qk", self.qk, self.qk_formats),
            ("pv", self.pv, self.pv_formats),
        ):
            inputs = () if engine is None else engine.inputs
            names = ", ".join(fmt.name for fmt in inputs)
            if named is None and len(inputs) > 1:
                raise ValueError(
                    f"`{side}_engine` takes several formats ({names}): name two of them, "
                    f"{side}_formats=({inputs[0].name!r}, {inputs[0].name!r})"
                )
            if named is not None and engine is None:
                raise ValueError(
                    f"`{side}_formats` says what an engine takes: name `{side}_engine`"
                )
            for fmt in named or ():
                if inputs and fmt not in inputs:
                    raise ValueError(
                        f"`{side}_formats` has {fmt.name}; `{side}_engine` takes {names}"
                    )

    @property
    def qk_narrow(self) -> bool:
        """Whether queries and keys are rounded to 8 bits or fewer."""
        return _narrow(self.qk, self.qk_formats)

    @property
    def pv_narrow(self) -> bool:
        """Whether weights and values are."""
        return _narrow(self.pv, self.pv_formats)


def _narrow(engine: Engine | None, formats: tuple[Format, Format] | None) -> bool:
    taken = formats or (() if engine is None else engine.inputs[:1])
    return any(fmt.bits <= 8 for fmt in taken)


def named_products(
    qk_engine: str | Engine | None = None,
    pv_engine: str | Engine | None = None,
    qk_formats: Operands | None = None,
    pv_formats: Operands | None = None,
) -> Products:
    """The products of `KVMethod.attend`'s arguments; None is this machine's own float32 product."""
    qk, pv = (None if x is None else get_engine(x) for x in (qk_engine, pv_engine))
    formats = [
        None if pair is None else (get_format(pair[0]), get_format(pair[1]))
        for pair in (qk_formats, pv_formats)
    ]
    return Products(qk=qk, pv=pv, qk_formats=formats[0], pv_formats=formats[1])


class Scales(NamedTuple):
    """What products are multiplied by where keys and values are numbers over scales; float32.

    Attributes:
      keys: a tile's first token to (batch, kv_heads, 1, tile), or 1 for tile; of the scores.
      values: a tile's first token to (batch, kv_heads, 1, 1), or dim for the last; only where
        accumulation is in two levels: of one level the caller multiplies the result.
    """

    keys: Tiles | None = None
    values: Tiles | None = None


class Weighed(NamedTuple):
    """A tile's weights: (batch, kv_heads, rows, tile), and (batch, kv_heads, rows) beside.

    Attributes:
      maximum: that they are relative to, from this tile on.
      shrink: what has been summed before is to be multiplied by it.
      exact: exp(scores - maximum), float32.
      rounded: those times the schedule's `weight_scale`, in its format.
    """

    maximum: jax.Array
    shrink: jax.Array
    exact: jax.Array
    rounded: jax.Array


def attend_tiles(
    q: jax.Array,
    keys: Tiles,
    values: Tiles,
    allowed: Callable[[jax.Array], jax.Array],
    *,
    first: jax.Array,
    last: jax.Array,
    products: Products,
    schedule: Schedule,
    splits: int = 1,
    scale: jax.Array | None = None,
    scales: Scales | None = None,
) -> jax.Array:
    """Attention of rows q (batch, kv_heads, rows, dim), scaled already, over tokens first to last.

    Args:
      keys, values: see `Tiles`; zero beyond the last token.
      allowed: a tile's places (tile,) to a mask that broadcasts to (batch, kv_heads, rows, tile).
      first, last: the tokens that any row may see, int32; the loop runs over their tiles alone.
      products, schedule: how.
      splits: independent parts of the tokens, combined at the end in float32 (split-K).
      scale, scales: see `sum_tiles`.

    Returns:
      (batch, kv_heads, rows, dim) float32; NaN where a row may see nothing.
    """
    done = sum_tiles(
        q,
        keys,
        values,
        allowed,
        first=first,
        last=last,
        products=products,
        schedule=schedule,
        splits=splits,
        scale=scale,
        scales=scales,
    )
    return done.output / done.total[..., None]


def sum_tiles(
    q: jax.Array,
    keys: Tiles,
    values: Tiles,
    allowed: Callable[[jax.Array], jax.Array],
    *,
    first: jax.Array,
    last: jax.Array,
    products: Products,
    schedule: Schedule,
    splits: int = 1,
    scale: jax.Array | None = None,
    scales: Scales | None = None,
) -> Running:
    """What `attend_tiles` divides at the end; log-sum-exp is maximum + log(total).

    Args:
      scale: what scores are multiplied by, where q is not scaled already.
      scales: of keys and values that are numbers over scales.

    Raises:
      ValueError: scales of values where the engine adds to what it is handed.
    """
    if scales is not None and scales.values is not None and schedule.accumulation == "engine":
        raise ValueError(
            "`scales` of values need schedule.accumulation = 'tile'; with 'engine' leave them out "
            "and multiply the result, if they are all one number"
        )
    begin, end = first // schedule.tile, -(-last // schedule.tile)
    width = jax.eval_shape(values, jnp.int32(0)).shape[-1]
    each = -(-(end - begin) // splits)
    parts = []
    for number in range(splits):
        low = jnp.minimum(begin + number * each, end)
        high = jnp.minimum(low + each, end)
        step = functools.partial(
            _tile_step,
            q,
            keys,
            values,
            allowed,
            products=products,
            schedule=schedule,
            scale=scale,
            scales=scales or Scales(),
        )
        parts.append(_loop(step, low, high, _nothing(q, width), schedule))
    return functools.reduce(_combined, parts)


def _nothing(q: jax.Array, width: int) -> Running:
    rows = q.shape[:-1]
    return Running(
        jnp.full(rows, -jnp.inf, jnp.float32),
        jnp.zeros(rows, jnp.float32),
        jnp.zeros((*rows, width), jnp.float32),
    )


def _loop(
    step: Callable[[jax.Array, Running], Running],
    low: jax.Array,
    high: jax.Array,
    start: Running,
    schedule: Schedule,
) -> Running:
    """The steps of tiles low to high - 1, in the schedule's order."""

    def one(index: jax.Array, running: Running) -> Running:
        tile = index if schedule.order == "ascending" else low + high - 1 - index
        return step(tile * schedule.tile, running)

    return lax.fori_loop(low, high, one, start)


def _tile_step(
    q: jax.Array,
    keys: Tiles,
    values: Tiles,
    allowed: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    running: Running,
    *,
    products: Products,
    schedule: Schedule,
    scale: jax.Array | None,
    scales: Scales,
) -> Running:
    scores = _scores(q, keys(start), products)
    if scale is not None:
        scores = scores * scale
    if scales.keys is not None:
        scores = scores * scales.keys(start)
    seen = allowed(start + jnp.arange(schedule.tile))
    found = weigh(jnp.where(seen, scores, -jnp.inf), running.maximum, schedule)
    if schedule.row_sum == "before":
        added = jnp.sum(found.exact, axis=-1)
    else:
        added = jnp.sum(found.rounded, axis=-1) / schedule.weight_scale
    # An infinite score has no weight: what is rounded to a format without NaN would hide it.
    nothing_yet = found.maximum == -jnp.inf
    added = jnp.where(jnp.isfinite(found.maximum) | nothing_yet, added, jnp.nan)
    output = running.output * found.shrink[..., None]
    v = values(start)
    if schedule.accumulation == "tile" or products.pv is None:
        factor = None if scales.values is None else scales.values(start)
        output = _promoted(output, found.rounded, v, products, schedule, factor)
    else:
        # The engine's accumulator holds weights times their scale.
        held = output * schedule.weight_scale
        output = _product(found.rounded, v, products.pv, products.pv_formats, held)
        output = output / schedule.weight_scale
    return Running(found.maximum, running.total * found.shrink + added, output)


def _scores(q: jax.Array, keys: jax.Array, products: Products) -> jax.Array:
    if products.qk is None:
        # XLA copies keys to turn them, but not queries, which are few.
        return _product(keys, q.swapaxes(-1, -2), None, None).swapaxes(-1, -2)
    return _product(q, keys.swapaxes(-1, -2), products.qk, products.qk_formats)


def weigh(scores: jax.Array, maximum: jax.Array, schedule: Schedule) -> Weighed:
    """The weights of a tile's scores after tiles of which `maximum` was the running maximum.

    Args:
      scores: (..., rows, tile) float32, -Inf where nothing is seen.
      maximum: (..., rows), -Inf before the first tile.
    """
    new = _next_maximum(maximum, jnp.max(scores, axis=-1), schedule)
    # A row that has seen nothing has no maximum yet: exp(-inf - -inf) would be NaN.
    base = jnp.where(jnp.isfinite(new), new, 0.0)
    exact = jnp.exp(scores - base[..., None])
    rounded = exact * schedule.weight_scale
    if schedule.weight_format is not None:
        rounded = _rounded(rounded, schedule.weight_format)
    return Weighed(new, jnp.exp(maximum - base), exact, rounded)


def _promoted(
    output: jax.Array,
    weights: jax.Array,
    v: jax.Array,
    products: Products,
    schedule: Schedule,
    factor: jax.Array | None,
) -> jax.Array:
    """The output and, in float32, the sums of each part of a tile, times a factor."""
    every = min(schedule.promote_every or schedule.tile, schedule.tile)
    count = -(-schedule.tile // every)
    if count == 1:
        parts = [_product(weights, v, products.pv, products.pv_formats)]
    else:
        missing = count * every - schedule.tile
        weights = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, missing)])
        v = jnp.pad(v, [(0, 0)] * (v.ndim - 2) + [(0, missing), (0, 0)])
        left = jnp.moveaxis(weights.reshape(*weights.shape[:-1], count, every), -2, 0)
        right = jnp.moveaxis(v.reshape(*v.shape[:-2], count, every, v.shape[-1]), -3, 0)
        parts = list(_product(left, right, products.pv, products.pv_formats))
    for part in parts:
        added = part / schedule.weight_scale
        output = output + (added if factor is None else added * factor)
    return output


def _next_maximum(old: jax.Array, tile: jax.Array, schedule: Schedule) -> jax.Array:
    new = jnp.maximum(old, tile)
    if schedule.rescale_threshold == 0:
        return new
    stale = jnp.isfinite(old) & (new - old <= schedule.rescale_threshold)
    return jnp.where(stale, old, new)


def _product(
    a: jax.Array,
    b: jax.Array,
    engine: Engine | None,
    formats: tuple[Format, Format] | None,
    c: jax.Array | None = None,
) -> jax.Array:
    if engine is None:
        product = jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
        return product if c is None else product + c
    if formats is None and not engine.inputs:
        return matmul(a, b, c, engine=engine).astype(jnp.float32)
    left, right = formats or (engine.inputs[0], engine.inputs[0])
    a, b = _rounded(a, left), _rounded(b, right)
    product = matmul(a, b, c, engine=engine, a_format=left, b_format=right)
    return product.astype(jnp.float32)


def _rounded(x: jax.Array, fmt: Format) -> jax.Array:
    return round_to_format(x, fmt, "nearest_even", "saturate", None, None, None)


def _combined(one: Running, other: Running) -> Running:
    """Two parts of the tokens as one."""
    maximum = jnp.maximum(one.maximum, other.maximum)
    base = jnp.where(jnp.isfinite(maximum), maximum, 0.0)
    shrinks = [jnp.exp(part.maximum - base) for part in (one, other)]
    total = one.total * shrinks[0] + other.total * shrinks[1]
    output = one.output * shrinks[0][..., None] + other.output * shrinks[1][..., None]
    return Running(maximum, total, output)
