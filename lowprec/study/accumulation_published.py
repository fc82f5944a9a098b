"""Published errors of accumulation, looked for in every setting that their sources leave open."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from lowprec.engines.engine import get_engine
from lowprec.engines.matmul import matmul
from lowprec.numerics.format import get_format
from lowprec.numerics.rounding import is_stochastic
from lowprec.scaling.cast import cast
from lowprec.study import ratios
from lowprec.study.accumulation import NEVER, engine_sums, imagined
from lowprec.study.accumulation_config import Config
from lowprec.study.accumulation_operands import draw
from lowprec.study.accumulation_rows import PublishedRow, SwampingRow

Array = NDArray[np.float64]
Norm = Callable[[Array, Array, Array], float]


def _relative(y: Array, x: Array) -> Array:
    return np.abs(y - x) / np.abs(x)


NORMS: dict[str, Norm] = {
    "median |y-x|/|x|": lambda y, x, size: float(np.median(_relative(y, x))),
    "mean |y-x|/|x|": lambda y, x, size: float(np.mean(_relative(y, x))),
    "99 % of |y-x|/|x|": lambda y, x, size: float(np.quantile(_relative(y, x), 0.99)),
    "max |y-x|/|x|": lambda y, x, size: float(_relative(y, x).max()),
    "max |y-x| / max |x|": lambda y, x, size: float(np.abs(y - x).max() / np.abs(x).max()),
    "Frobenius": lambda y, x, size: float(np.linalg.norm(y - x) / np.linalg.norm(x)),
    "max |y-x|/(|a||b|)": lambda y, x, size: float((np.abs(y - x) / size).max()),
}
"""What "relative error" may mean, of sums y, exact sums x and |a| |b|, over all outputs."""


def published_rows(config: Config) -> Iterator[PublishedRow]:
    """One published error in every distribution, width, promotion and norm."""
    published = config.published
    once = dataclasses.replace(config, depths=(published.k,))
    base, fmt = get_engine(config.engine), get_format(config.format)
    for distribution in published.distribution:
        operands = draw(distribution, once, fmt, {})
        a, b = (x.astype(np.float64) for x in operands)
        exact, size = a @ b, np.abs(a) @ np.abs(b)
        for bits in published.fraction_bits:
            intervals = (NEVER, published.promote_every) if bits == base.fraction_bits else (NEVER,)
            assert base.fused_length is not None
            engine = imagined(base, bits, base.fused_length)
            for sums in engine_sums(engine, fmt, operands, intervals, once):
                for norm, function in NORMS.items():
                    value = function(sums.y[0], exact, size)
                    yield PublishedRow(
                        source=published.source,
                        distribution=distribution.name,
                        fraction_bits=bits,
                        promote_every=sums.promote_every,
                        k=published.k,
                        norm=norm,
                        value=value,
                        least=published.least,
                        most=published.most,
                        fits=published.least <= value <= published.most,
                        outputs=exact.size,
                        seed=config.seed,
                    )


def swamping_rows(config: Config) -> Iterator[SwampingRow]:
    """Sums of uniform numbers in narrow accumulators, over the exact sums of the same numbers."""
    swamping = config.swamping
    reach = math.sqrt(3) * swamping.standard_deviation
    numbers = np.stack(
        [
            np.random.default_rng([config.seed, seed, 2]).random(config.depth)
            for seed in range(config.seeds)
        ]
    )
    drawn = (swamping.mean + reach * (2 * numbers - 1)).astype(np.float32)
    x = np.asarray(cast(jnp.asarray(drawn), swamping.format))
    wide = np.cumsum(x.astype(np.float64), axis=1)
    for name in swamping.engines:
        y = _running_sums(jnp.asarray(x), name, swamping.format, config)
        last = np.zeros((2, config.seeds))
        for index, k in enumerate(config.depths):
            now = np.stack([y[index], wide[:, k - 1]])
            # Every sum counts the same: the mean of ratios, with its error over sums.
            ratio = ratios.mean(now[0] / now[1])
            grown = now - last
            last = now
            yield SwampingRow(
                engine=name,
                source=swamping.source,
                k=k,
                ratio=ratio.value,
                ratio_low=ratio.low,
                ratio_high=ratio.high,
                grows=float(grown[0].sum() / grown[1].sum()),
                sums=config.seeds,
                seed=config.seed,
            )


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
