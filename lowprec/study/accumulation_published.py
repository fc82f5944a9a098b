"""Published errors of accumulation, looked for in every setting that their sources leave open."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from lowprec.engines.engine import get_engine
from lowprec.numerics.format import get_format
from lowprec.study.accumulation import NEVER, engine_sums, imagined
from lowprec.study.accumulation_config import Config
from lowprec.study.accumulation_operands import draw
from lowprec.study.accumulation_rows import PublishedRow

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
