"""Tiles of a cache as attention reads them: values, or the elements that engines multiply."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.kv.attention import Products, Scales, Tiles
from lowprec.kv.codes import Fitted
from lowprec.kv.pair_cache import SIDES, PairCache
from lowprec.kv.schedule import Schedule
from lowprec.kv.store import Layout, Store


def common_group(layouts: tuple[Layout, ...]) -> int:
    """The fewest tokens that are whole units of every layout."""
    return int(np.lcm.reduce([x.code.group for x in layouts]))


def fitting(schedule: Schedule, layouts: tuple[Layout, ...], cache: PairCache) -> Schedule:
    """The schedule with a tile no longer than the cache.

    Raises:
      ValueError: the tile is no whole number of the tokens that are coded together.
    """
    group = common_group(layouts)
    if schedule.tile % group:
        raise ValueError(
            f"`schedule`: tile = {schedule.tile} must be a multiple of the {group} tokens that are "
            f"coded together"
        )
    tile = min(schedule.tile, -(-cache.capacity // group) * group)
    every = schedule.promote_every
    return dataclasses.replace(
        schedule, tile=tile, promote_every=None if every is None else min(every, tile)
    )


def tile_readers(
    cache: PairCache, layouts: tuple[Layout, Layout], tile: int, fitted: Fitted
) -> list[Callable[[jax.Array], jax.Array]]:
    """What reads a tile of keys, and of values, from a token on; the last is filled with zeros."""
    return [
        _whole_tiles(
            functools.partial(_slice, layout.slice, cache, side, tile, fitted),
            _last_start(layout, getattr(cache, side), tile),
            tile,
        )
        for side, layout in zip(SIDES, layouts, strict=True)
    ]


def _slice(
    read: Callable[..., Any], cache: PairCache, side: str, tile: int, fitted: Fitted, start: Any
) -> Any:
    return read(getattr(cache, side), start, tile, cache.length, cache.dim, fitted.get(side, {}))


def _last_start(layout: Layout, store: Store, tile: int) -> int:
    """Where the last tile that the arrays have whole begins."""
    return jax.tree.leaves(store.parts)[0].shape[2] * layout.code.group - tile


def _whole_tiles(read: Callable[[jax.Array], jax.Array], last: int, tile: int) -> Tiles:
    """`read` where a tile may reach beyond the arrays: what lies there is zero."""
    if last % tile == 0:
        return read

    def tile_from(start: jax.Array) -> jax.Array:
        held = jnp.minimum(start, last)

        def moved(x: jax.Array) -> jax.Array:
            wide = jnp.concatenate([x, jnp.zeros_like(x)], axis=2)
            return jax.lax.dynamic_slice_in_dim(wide, start - held, tile, axis=2)

        return jax.lax.cond(start > last, moved, lambda x: x, read(held))

    return tile_from


def operand_readers(
    cache: PairCache,
    layouts: tuple[Layout, Layout],
    schedule: Schedule,
    fitted: Fitted,
    products: Products,
) -> tuple[Tiles, Tiles, Scales | None, jax.Array | None]:
    """What reads keys and values as the engines multiply them, and what scales the products.

    An engine of 8 bits or fewer is handed elements: rounding what was scaled back would round
    twice. Scales then multiply scores, and the output.

    Returns:
      The readers; scales of tiles; and what the output is to be multiplied by at the end.

    Raises:
      ValueError: such an engine, and keys or values that are no elements times one scale a token;
        values with more than one scale, which a product over tokens cannot be multiplied by.
    """
    readers = tile_readers(cache, layouts, schedule.tile, fitted)
    narrow = products.qk_narrow, products.pv_narrow
    if not any(narrow):
        return readers[0], readers[1], None, None
    found: list[Tiles | None] = [None, None]
    for number, (side, layout) in enumerate(zip(SIDES, layouts, strict=True)):
        if not narrow[number]:
            continue
        last = _last_start(layout, getattr(cache, side), schedule.tile)
        try:
            pick = functools.partial(_slice, layout.elements, cache, side, schedule.tile, fitted)
            sizes = jax.eval_shape(pick, jnp.int32(0))
        except ValueError as error:
            raise ValueError(f"{side} of the method {cache.spec.name}: {error}") from None
        if number == 0 and cache.rope is not None:
            raise ValueError(
                f"keys of the method {cache.spec.name} are turned by position after they are read; "
                f"use an engine of 16-bit formats"
            )
        readers[number] = _whole_tiles(lambda start, pick=pick: pick(start)[0], last, schedule.tile)
        each = sizes[1].shape[2] > 1
        scale = lambda start, pick=pick: pick(start)[1]
        found[number] = _whole_tiles(scale, last, schedule.tile) if each else scale
    keys, values = found
    factor = None
    if values is not None:
        if jax.eval_shape(values, jnp.int32(0)).shape[2] > 1:
            raise ValueError(
                f"values of the method {cache.spec.name} have a scale a token, which a product "
                f"over tokens cannot be multiplied by; use a `pv_engine` of 16-bit formats"
            )
        factor = values(jnp.int32(0))[..., None]
    scores = None if keys is None else Scales(keys=lambda start: keys(start)[:, :, None])
    return readers[0], readers[1], scores, factor
