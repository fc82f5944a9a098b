"""Integers against floats of equal bits: where their errors cross as blocks grow more peaked."""

import functools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.scaling.block import Block
from lowprec.study.crest import (
    FAMILIES,
    crest_factors,
    draw_blocks,
    predicted_crossing,
    predicted_lead_db,
)
from lowprec.study.format_config import Config, Pair
from lowprec.study.format_rows import CrestRow, CrossingRow
from lowprec.study.formats import WORDS, WORKERS, there_and_back
from lowprec.study.ratios import Estimate, crossings, decibels


class _Point(NamedTuple):
    """Tensors of one distribution in blocks of one size."""

    family: str
    parameter: float
    tensors: NDArray[np.float32]
    crest: float
    seed: int


def crest_rows(config: Config) -> Iterator[CrestRow]:
    """Every pair on every distribution; blocks of equal size see the same numbers."""
    made: dict[int, list[_Point]] = {}
    for pair in config.crest.pair:
        integer, floating = config.block(pair.integer), config.block(pair.floating)
        size = _block_size(pair, integer, floating)
        if size not in made:
            made[size] = list(_points(config, size))
        step = functools.partial(_row, pair, integer, floating, size)
        with ThreadPoolExecutor(WORKERS) as pool:
            yield from pool.map(step, made[size])


def _block_size(pair: Pair, integer: Block, floating: Block) -> int:
    rows, size = integer.tile
    if integer.tile != floating.tile or rows != 1 or size == "all":
        raise ValueError(
            f"pair {pair.name}: tiles of {integer.tile} and {floating.tile}; both need the same "
            f"tile of one row"
        )
    return size


def _exact_size(floating: Block, size: int) -> int | None:
    """The size of blocks whose largest value the authors take to be exact."""
    return None if floating.power_of_two else size


def _points(config: Config, size: int) -> Iterator[_Point]:
    shape = (config.crest.tensors, config.rows, config.columns)
    count = math.prod(shape) // size
    for number, family in enumerate(FAMILIES):
        for place, parameter in enumerate(getattr(config.crest, family)):
            seed = config.seed + 10_000 * (number + 1) + 100 * place + size
            rng = np.random.default_rng(seed)
            blocks = draw_blocks(family, parameter, count, size, rng)
            crest = float(np.mean(crest_factors(blocks)))
            yield _Point(family, parameter, blocks.reshape(shape), crest, seed)


def _row(pair: Pair, integer: Block, floating: Block, size: int, point: _Point) -> CrestRow:
    errors = [_relative_errors(block, point, size) for block in (integer, floating)]
    difference = decibels(errors[1], errors[0])
    levels = [-10 * math.log10(float(np.mean(error))) for error in errors]
    return CrestRow(
        pair=pair.name,
        integer=f"block:{integer.name}",
        floating=f"block:{floating.name}",
        family=point.family,
        parameter=point.parameter,
        crest=point.crest,
        integer_db=levels[0],
        float_db=levels[1],
        difference_db=difference.value,
        standard_error=difference.standard_error,
        low=difference.low,
        high=difference.high,
        predicted_db=predicted_lead_db(
            integer.element.bits,
            floating.element,
            point.crest,
            overhead=pair.overhead,
            size=_exact_size(floating, size),
        ),
        blocks=errors[0].size,
        seed=point.seed,
    )


def _relative_errors(block: Block, point: _Point, size: int) -> NDArray[np.float64]:
    """Squared error over energy of every block of the tensors."""
    back = [
        np.asarray(there_and_back(block, jnp.asarray(x), WORDS + point.seed + index)[0])
        for index, x in enumerate(point.tensors)
    ]
    y = np.asarray(back, np.float64).reshape(-1, size)
    x = point.tensors.astype(np.float64).reshape(-1, size)
    return np.sum((y - x) ** 2, axis=1) / np.sum(x * x, axis=1)


def crossing_rows(config: Config, rows: Sequence[CrestRow]) -> Iterator[CrossingRow]:
    """Where each family's curve of each pair crosses zero, the least crest factor first."""
    for pair in config.crest.pair:
        floating = config.block(pair.floating)
        size = _block_size(pair, config.block(pair.integer), floating)
        predicted, predicted_exact = (
            predicted_crossing(
                config.block(pair.integer).element.bits,
                floating.element,
                overhead=pair.overhead,
                size=_exact_size(floating, size),
                exact=exact,
            )
            for exact in (False, True)
        )
        for family in FAMILIES:
            curve = sorted(
                (row for row in rows if row.pair == pair.name and row.family == family),
                key=lambda row: row.crest,
            )
            estimates = [Estimate(row.difference_db, row.standard_error) for row in curve]
            found = crossings([row.crest for row in curve], estimates, seed=config.seed)
            outcomes = [
                ("integer to float" if _falls(curve, at) else "float to integer", (at, low, high))
                for at, low, high in found
            ] or [(_winner(estimates), (None, None, None))]
            for outcome, (at, low, high) in outcomes:
                yield CrossingRow(
                    pair=pair.name,
                    family=family,
                    outcome=outcome,
                    crest=at,
                    low=low,
                    high=high,
                    crest_from=curve[0].crest,
                    crest_to=curve[-1].crest,
                    predicted=predicted,
                    predicted_exact=predicted_exact,
                    published=pair.published,
                    limit=math.sqrt(size),
                    seed=config.seed,
                )


def _falls(curve: Sequence[CrestRow], at: float) -> bool:
    return [row for row in curve if row.crest <= at][-1].difference_db > 0


def _winner(estimates: Sequence[Estimate]) -> str:
    better = "integer" if estimates[0].value > 0 else "float"
    clear = all(x.resolved for x in estimates)
    return f"{better} throughout" if clear else f"{better} throughout, not resolved everywhere"
