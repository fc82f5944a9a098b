"""Long sums of uniform numbers in narrow accumulators, where each number is swamped by the sum.

One number after another is added to the running sum s_t, each addition rounded with unit roundoff
u = 2^-(M + 1). To nearest, whatever the length,

    |y - x| <= (K - 1) u A,    A = sum |x_t|                                       (deterministic)

(Rump, BIT 52, 2012, 201-220; Jeannerod and Rump, SIAM J. Matrix Anal. Appl. 34, 2013, 338-344). A
chunk of L numbers obeys it, and then the sum of K / L chunks in a format of roundoff v, so that
((L - 1) u + (K / L - 1) v (1 + (L - 1) u)) A bounds both. Rounded stochastically an addition may
err by 2 u either way and that argument fails: what remains, ((1 + 2 u)^(K - 1) - 1) A, says nothing
once K passes 1 / (2 u).

An error lies in an interval of 2 u |s_t|, either way of rounding. Where its mean is zero given the
errors before it, Azuma and Hoeffding's inequality gives

    |y - x| <= lambda u sqrt(sum_t s_t^2)                                          (probabilistic)

with probability at least 1 - 2 exp(-lambda^2 / 2), to first order: s_t are exact. Stochastic
rounding has that mean by construction (Connolly, Higham and Mary, SIAM J. Sci. Comput. 43, 2021,
A566-A585); rounding to nearest has not once the numbers are below half a unit of the sum, which is
what swamping is.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from lowprec.engines.engine import Engine, get_engine
from lowprec.engines.matmul import matmul
from lowprec.numerics.format import Format
from lowprec.numerics.rounding import is_stochastic
from lowprec.scaling.cast import cast
from lowprec.study import ratios
from lowprec.study.accumulation import root
from lowprec.study.accumulation_bounds import COVERAGE, LAMBDA
from lowprec.study.accumulation_config import Config
from lowprec.study.accumulation_rows import SwampingRow

Array = NDArray[np.float64]


class Bounds(NamedTuple):
    """Bounds on the errors of sums, each (depths, sums)."""

    deterministic: Array
    probabilistic: Array


def swamping_rows(config: Config) -> Iterator[SwampingRow]:
    """Sums of uniform numbers in narrow accumulators, over the exact sums of the same numbers."""
    swamping = config.swamping
    x = _numbers(config)
    at = [k - 1 for k in config.depths]
    exact = np.cumsum(x.astype(np.float64), axis=1)[:, at].T
    for name in swamping.engines:
        y = _running_sums(jnp.asarray(x), name, swamping.format, config)
        error = np.abs(y - exact)
        bounds = sum_bounds(x, get_engine(name), config.depths)
        last = np.zeros((2, config.seeds))
        for index, k in enumerate(config.depths):
            # Every sum counts the same: the mean of ratios, with its error over sums.
            ratio = ratios.mean(y[index] / exact[index])
            whole = root(ratios.mean((error[index] / exact[index]) ** 2))
            deterministic, probabilistic = (bound[index] for bound in bounds)
            now = np.stack([y[index], exact[index]])
            grown, last = now - last, now
            yield SwampingRow(
                engine=name,
                source=swamping.source,
                mean=swamping.mean,
                standard_deviation=swamping.standard_deviation,
                k=k,
                ratio=ratio.value,
                ratio_low=ratio.low,
                ratio_high=ratio.high,
                grows=float(grown[0].sum() / grown[1].sum()),
                relative_error=whole.value,
                relative_low=whole.low,
                relative_high=whole.high,
                deterministic_bound=_root_mean_square(deterministic / exact[index]),
                probabilistic_bound=_root_mean_square(probabilistic / exact[index]),
                worst_share=float((error[index] / deterministic).max()),
                within_probabilistic=float(np.mean(error[index] <= probabilistic)),
                coverage=COVERAGE,
                sums=config.seeds,
                seed=config.seed,
            )


def sum_bounds(x: NDArray[Any], engine: Engine, depths: Sequence[int]) -> Bounds:
    """Both bounds on the errors of sums of the first numbers of each row.

    Args:
      x: (sums, K), numbers that the engine's registers hold exactly.
      engine: `sequential`, to nearest even or stochastic, or `chunked`.
      depths: how many numbers; of a chunked engine whole chunks.

    Raises:
      ValueError: an engine that sums or rounds otherwise.
    """
    x = np.asarray(x, np.float64)
    chunked = engine.accumulation == "chunked"
    known = engine.output_rounding in ("nearest_even", "stochastic")
    if not known or engine.accumulation not in ("chunked", "sequential"):
        raise ValueError(
            f"no bounds for {engine.name}, which sums {engine.accumulation} and rounds "
            f"{engine.output_rounding}; sequential, to nearest_even or stochastic, and chunked have"
        )
    unit = _unit_roundoff(engine.register_format)
    length = engine.fused_length or 1 if chunked else x.shape[1]
    parts = x.reshape(len(x), -1, length)
    squares = unit**2 * np.cumsum(_squares(parts).reshape(x.shape), axis=1)
    outer = _unit_roundoff(engine.outer or engine.register_format)
    if chunked:
        ends = outer**2 * np.cumsum(_squares(parts.sum(axis=2)), axis=1)
        squares = squares[:, length - 1 :: length] + ends
    sizes = np.cumsum(np.abs(x), axis=1)
    deterministic = []
    for k in depths:
        chunks = -(-k // length)
        factor = (min(k, length) - 1) * unit
        if chunked:
            factor += (chunks - 1) * outer * (1 + factor)
        elif is_stochastic(engine.output_rounding):
            factor = math.expm1((k - 1) * math.log1p(2 * unit))
        deterministic.append(factor * sizes[:, k - 1])
    at = [k // length - 1 if chunked else k - 1 for k in depths]
    return Bounds(np.stack(deterministic), LAMBDA * np.sqrt(squares[:, at].T))


def _squares(x: Array) -> Array:
    """Squares of running sums along the last axis, 0 for the first: it is not rounded."""
    sums = np.cumsum(x, axis=-1) ** 2
    sums[..., 0] = 0
    return sums


def _unit_roundoff(fmt: Format) -> float:
    return 2.0 ** -(fmt.mantissa_bits + 1)


def _root_mean_square(x: Array) -> float:
    return float(np.sqrt(np.mean(x**2)))


def _numbers(config: Config) -> NDArray[np.float32]:
    """Uniform numbers of the mean and the deviation, each one of the format's, (sums, K)."""
    swamping = config.swamping
    reach = math.sqrt(3) * swamping.standard_deviation
    numbers = np.stack(
        [
            np.random.default_rng([config.seed, seed, 2]).random(config.depth)
            for seed in range(config.seeds)
        ]
    )
    drawn = (swamping.mean + reach * (2 * numbers - 1)).astype(np.float32)
    return np.asarray(cast(jnp.asarray(drawn), swamping.format))


def _running_sums(x: jax.Array, engine: str, fmt: str, config: Config) -> Array:
    """Sums of the first k numbers of each row at every depth, (depths, rows)."""
    segment = config.depths[0]
    key = jax.random.key(config.seed) if is_stochastic(get_engine(engine).output_rounding) else None
    running = np.asarray(_segments(x, key, engine, fmt, segment), np.float64)
    return running[[k // segment - 1 for k in config.depths], :, 0]


@functools.partial(jax.jit, static_argnames=("engine", "fmt", "segment"))
def _segments(
    x: jax.Array, key: jax.Array | None, engine: str, fmt: str, segment: int
) -> jax.Array:
    count = x.shape[1] // segment
    ones = jnp.ones((segment, 1), jnp.float32)
    keys = None if key is None else jax.random.split(key, count)

    def step(total: jax.Array, taken: tuple[jax.Array, jax.Array | None]) -> Any:
        total = matmul(
            taken[0], ones, total, engine=engine, a_format=fmt, b_format=fmt, key=taken[1]
        )
        return total, total

    parts = x.reshape(x.shape[0], count, segment).transpose(1, 0, 2)
    return lax.scan(step, jnp.zeros((x.shape[0], 1), jnp.float32), (parts, keys))[1]
