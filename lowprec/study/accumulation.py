"""How many bits a fused accumulator must keep, and how often it must be promoted to float32.

One compiled program for each width F runs every step of a chain and gives back the running sum
after each, from which the sums at all depths are read; a traced flag restarts the chain, so that
the same program gives all promotion intervals. Promoted sums are added in float32 on the host,
which IEEE 754 leaves no choice in.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from lowprec.engines.engine import Engine, get_engine
from lowprec.engines.matmul import product
from lowprec.numerics.format import Format, get_format
from lowprec.study import ratios
from lowprec.study.accumulation_bounds import COVERAGE, Terms, bound_terms, exact_steps
from lowprec.study.accumulation_config import Config
from lowprec.study.accumulation_cost import cost, pareto
from lowprec.study.accumulation_operands import Operands
from lowprec.study.accumulation_rows import ErrorRow, FrontRow, PromotionRow

NEVER = 0
"""`promote_every` where nothing is promoted."""


class Case(NamedTuple):
    """One distribution's operands with what every engine is compared with.

    Attributes:
      operands: of every seed.
      exact: (depths, seeds, rows, columns) float64.
      magnitude: the same of |a| |b|.
      terms: of the bounds, by fused length and promotion interval.
    """

    distribution: str
    operands: Operands
    exact: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    terms: Mapping[tuple[int, int], Terms]


class Sums(NamedTuple):
    """What one engine makes of a case: y at every depth, (depths, seeds, rows, columns) float64."""

    length: int
    fraction_bits: int
    promote_every: int
    y: NDArray[np.float64]


def imagined(base: Engine, fraction_bits: int, length: int) -> Engine:
    """The engine with other widths: the register keeps as many bits, at most float32's 23."""
    register = get_format(f"e8m{fraction_bits}") if fraction_bits < 23 else None
    return dataclasses.replace(
        base,
        name=f"{base.name}, F = {fraction_bits}, L = {length}",
        fraction_bits=fraction_bits,
        register=register,
        fused_length=length,
        evidence=None,
    )


def register_bits(fraction_bits: int) -> int:
    """The mantissa bits of an `imagined` engine's register."""
    return min(fraction_bits, 23)


def prepare(name: str, operands: Operands, config: Config) -> Case:
    """The exact sums of a distribution, and its bounds at every length and interval."""
    least = get_format(config.format).min_exponent
    terms: dict[tuple[int, int], Terms] = {}
    exact = magnitude = np.zeros(0)
    for length, (_, intervals) in _plan(config).items():
        steps = exact_steps(operands, length, least)
        for every in intervals:
            terms[length, every] = bound_terms(steps, length, every, config.depths)
        at = [k // length - 1 for k in config.depths]
        exact, magnitude = (np.cumsum(x, axis=0)[at] for x in (steps.sums, steps.magnitudes))
    return Case(name, operands, exact, magnitude, terms)


def engine_sums(
    engine: Engine, fmt: Format, operands: Operands, intervals: tuple[int, ...], config: Config
) -> Iterator[Sums]:
    """The sums of an engine at every depth, for each promotion interval in turn."""
    length, bits = engine.fused_length, engine.fraction_bits
    assert length is not None and bits is not None
    seeds, rows, depth = operands.a.shape
    count = depth // length
    a = jnp.asarray(operands.a.reshape(seeds, rows, count, length).transpose(2, 0, 1, 3))
    b = jnp.asarray(operands.b.reshape(seeds, count, length, -1).transpose(1, 0, 2, 3))
    for every in intervals:
        per_interval = every // length if every else count
        starts = np.arange(count) % per_interval == 0
        running = np.asarray(_chain(a, b, starts, engine, fmt))
        if every:
            # float32 addition on the host is IEEE 754's; the partial sums begin at +0.
            running = np.cumsum(running[per_interval - 1 :: per_interval], axis=0, dtype=np.float32)
        at = [k // (every or length) - 1 for k in config.depths]
        yield Sums(length, bits, every, running[at].astype(np.float64))


@functools.partial(jax.jit, static_argnames=("engine", "fmt"))
def _chain(a: jax.Array, b: jax.Array, starts: jax.Array, engine: Engine, fmt: Format) -> jax.Array:
    """The running sum after each step, (steps, seeds, rows, columns) float32."""

    def step(
        total: jax.Array, taken: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        left, right, start = taken
        total = product(left, right, jnp.where(start, 0.0, total), engine, (fmt, fmt))
        return total, total

    start = jnp.zeros((*a.shape[1:3], b.shape[3]), jnp.float32)
    return lax.scan(step, start, (a, b, starts))[1]


def run(case: Case, config: Config) -> Iterator[Sums]:
    """Every engine and interval of a study on one distribution."""
    base, fmt = get_engine(config.engine), get_format(config.format)
    for length, (widths, intervals) in _plan(config).items():
        for bits in widths:
            engine = imagined(base, bits, length)
            yield from engine_sums(engine, fmt, case.operands, intervals, config)


def error_rows(case: Case, sums: Sums, config: Config) -> Iterator[ErrorRow]:
    """The errors of one engine and interval, a row for each depth."""
    kept = register_bits(sums.fraction_bits)
    terms = case.terms[sums.length, sums.promote_every]
    deterministic = terms.deterministic(sums.fraction_bits, kept)
    probabilistic = terms.probabilistic(sums.fraction_bits, kept)
    for index, k in enumerate(config.depths):
        y, x = sums.y[index], case.exact[index]
        error, size = np.abs(y - x), np.abs(x)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(error == 0, 0.0, error / size)
            share = np.where(error == 0, 0.0, error / deterministic[index])
        gain, residual, whole = gain_and_rest(y, x)
        norm = float(np.linalg.norm(x))
        yield ErrorRow(
            distribution=case.distribution,
            fused_length=sums.length,
            fraction_bits=sums.fraction_bits,
            register_bits=kept,
            promote_every=sums.promote_every,
            k=k,
            gain=gain.value,
            gain_low=gain.low,
            gain_high=gain.high,
            residual=residual.value,
            residual_low=residual.low,
            residual_high=residual.high,
            relative_error=whole.value,
            relative_low=whole.low,
            relative_high=whole.high,
            median_relative=float(np.median(relative)),
            max_relative=float(relative.max()),
            backward_error=float((error / case.magnitude[index]).max()),
            deterministic_bound=float(np.linalg.norm(deterministic[index])) / norm,
            probabilistic_bound=float(np.linalg.norm(probabilistic[index])) / norm,
            worst_share=float(share.max()),
            within_probabilistic=float(np.mean(error <= probabilistic[index])),
            coverage=COVERAGE,
            outputs=y.size,
            seeds=config.seeds,
            seed=config.seed,
        )


def gain_and_rest(
    y: NDArray[np.float64], x: NDArray[np.float64]
) -> tuple[ratios.Estimate, ratios.Estimate, ratios.Estimate]:
    """The gain minus 1, the residual and the whole relative error, with errors over seeds.

    Args:
      y, x: (seeds, ...) sums and exact sums.

    Returns:
      <y, x> / <x, x> - 1; |y - (1 + gain) x| / |x|; |y - x| / |x|, pooled over seeds, standard
      errors by linearisation.
    """
    units = (len(y), -1)
    y, x = y.reshape(units), x.reshape(units)
    energy = np.sum(x * x, axis=1)
    gain = _ratio(np.sum((y - x) * x, axis=1), energy)
    rest = np.sum((y - x - gain.value * x) ** 2, axis=1)
    whole = np.sum((y - x) ** 2, axis=1)
    return gain, root(_ratio(rest, energy)), root(_ratio(whole, energy))


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> ratios.Estimate:
    value = float(numerator.sum() / denominator.sum())
    spread = (numerator - value * denominator) / denominator.mean()
    return ratios.Estimate(value, float(spread.std(ddof=1) / np.sqrt(spread.size)))


def root(square: ratios.Estimate) -> ratios.Estimate:
    """The root of an estimate, its standard error by linearisation."""
    value = float(np.sqrt(square.value))
    return ratios.Estimate(value, square.standard_error / (2 * value) if value else 0.0)


def promotion_rows(
    case: Case, never: Sums, promoted: Sums, config: Config
) -> Iterator[PromotionRow]:
    """Noise with and without promotion, paired, where neither is zero."""
    for index, k in enumerate(config.depths):
        x = case.exact[index]
        axes = tuple(range(1, x.ndim))
        noise = [np.sum((s.y[index] - x) ** 2, axis=axes) for s in (promoted, never)]
        if min(n.sum() for n in noise) == 0:
            continue
        found = ratios.decibels(*noise)
        outcome = "not resolved"
        if found.resolved:
            outcome = "less" if found.value < 0 else "more"
        yield PromotionRow(
            distribution=case.distribution,
            fused_length=promoted.length,
            fraction_bits=promoted.fraction_bits,
            promote_every=promoted.promote_every,
            k=k,
            noise_db=found.value,
            low=found.low,
            high=found.high,
            outcome=outcome,
            seeds=config.seeds,
            seed=config.seed,
        )


def front_rows(errors: list[ErrorRow], k: int) -> Iterator[FrontRow]:
    """Cost and error of every engine at one depth, and which of them no other beats in both."""
    for name in dict.fromkeys(row.distribution for row in errors):
        rows = [row for row in errors if row.distribution == name and row.k == k]
        costs = [
            cost(row.fused_length, row.fraction_bits, row.register_bits, row.promote_every)
            for row in rows
        ]
        points = [(c.per_product, row.relative_error) for c, row in zip(costs, rows, strict=True)]
        for row, found, best in zip(rows, costs, pareto(points), strict=True):
            yield FrontRow(
                distribution=name,
                k=k,
                fused_length=row.fused_length,
                fraction_bits=row.fraction_bits,
                register_bits=row.register_bits,
                promote_every=row.promote_every,
                shifter_bits=found.shifter,
                adder_bits=found.adder,
                held_bits=found.register,
                promotion_bits=found.promotion,
                cost=found.per_product,
                relative_error=row.relative_error,
                relative_low=row.relative_low,
                relative_high=row.relative_high,
                deterministic_bound=row.deterministic_bound,
                probabilistic_bound=row.probabilistic_bound,
                outputs=row.outputs,
                seeds=row.seeds,
                seed=row.seed,
                on_front=best,
            )


def _plan(config: Config) -> dict[int, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The widths and promotion intervals of every fused length."""
    length, further = get_engine(config.engine).fused_length, config.lengths
    assert length is not None
    others = further.fraction_bits, (NEVER, *further.promote_every)
    own = config.fraction_bits, (NEVER, *config.promote_every)
    return dict.fromkeys(further.fused_length, others) | {length: own}
