"""A product that is only called: dots are laid out for it, and its bits are read back."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lowprec.engines.engine import Engine
from lowprec.engines.matmul import matmul
from lowprec.numerics.format import Format

_WIDEST = 60
"""Powers of two tried go from 2^-60 to 2^60: enough to lose any term, far from every edge."""


class Dots(NamedTuple):
    """Dot products to be computed: a and b (P, K) and c (P,), float64 that the formats hold."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray


@dataclasses.dataclass(frozen=True)
class BlackBox:
    """A product and how it wants its operands.

    Attributes:
      multiply: (M, K), (K, N) and, where `takes_c`, (M, N) to (M, N); or with leading batch axes.
      formats: of a and b; arrays are of their NumPy types where they have one, else float32.
      k: the length of every dot product.
      takes_c: whether `multiply` has a third argument, `c`.
      size: M and N. One product computes so many dots, on its diagonal.
      batched: whether dots are given as a batch of (1, K) by (K, 1) products instead.
      widened: whether operands are given in float32 whatever their formats.
    """

    multiply: Callable[..., Any]
    formats: tuple[Format, Format]
    k: int
    takes_c: bool
    size: int = 16
    batched: bool = False
    widened: bool = False

    def bits(self, dots: Dots) -> np.ndarray:
        """float32 bits (P,) of each dot; narrower results are widened."""
        count = len(dots.a)
        per_call = 256 if self.batched else self.size
        missing = -count % per_call
        a, b, c = (np.concatenate([x, np.zeros((missing, *x.shape[1:]))]) for x in dots)
        starts = range(0, len(a), per_call)
        parts = [self._call(*(x[start : start + per_call] for x in (a, b, c))) for start in starts]
        return np.concatenate(parts)[:count]

    def values(self, dots: Dots) -> np.ndarray:
        """The results as float64."""
        return self.bits(dots).view(np.float32).astype(np.float64)

    @functools.cached_property
    def half_results(self) -> bool:
        """Whether results are of float16."""
        count = 256 if self.batched else self.size
        zeros = np.zeros((count, self.k))
        return self._results(zeros, zeros, np.zeros(count)).dtype == np.float16

    def _call(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        out = self._results(a, b, c)
        chosen = out[:, 0, 0] if self.batched else np.diagonal(out)
        return chosen.astype(np.float32).view(np.uint32)

    def _results(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        left, right = (self._typed(x, fmt) for x, fmt in zip((a, b), self.formats, strict=True))
        start = c.astype(np.float32)
        if self.batched:
            operands = [left[:, None, :], right[:, :, None], start[:, None, None]]
        else:
            operands = [left, np.ascontiguousarray(right.T), np.diag(start)]
        out = np.asarray(self.multiply(*operands[: 3 if self.takes_c else 2]))
        wanted = (len(a), 1, 1) if self.batched else (len(a), len(a))
        if out.shape != wanted:
            raise ValueError(
                f"`multiply` returned shape {out.shape} for operands of shapes "
                f"{operands[0].shape} and {operands[1].shape}; {wanted} is needed"
            )
        if out.dtype not in (np.float32, np.float16, ml_dtypes.bfloat16):
            raise TypeError(
                f"`multiply` returned {out.dtype}; float32, float16 and bfloat16 can be probed"
            )
        return out

    def _typed(self, x: np.ndarray, fmt: Format) -> np.ndarray:
        dtype = None if self.widened else fmt.dtype
        return x.astype(np.float32 if dtype is None else dtype)


def of_engine(engine: Engine, formats: tuple[Format, Format], k: int) -> BlackBox:
    """An engine as a black box, called through `matmul` alone."""
    names = [None if fmt.name == "float32" else fmt for fmt in formats]
    if not engine.inputs:
        names = [None, None]

    def multiply(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> Any:
        return matmul(a, b, c, engine=engine, a_format=names[0], b_format=names[1])

    batched = engine.accumulation != "native"
    return BlackBox(multiply, formats, k, True, batched=batched, widened=True)


def takes_c(multiply: Callable[..., Any]) -> bool:
    """Whether a product has an argument named `c`."""
    try:
        return "c" in inspect.signature(multiply).parameters
    except (TypeError, ValueError):
        return False


def reach(fmt: Format, subnormals: bool) -> tuple[int, int]:
    """The exponents of a format's least and largest power of two."""
    top = math.floor(math.log2(fmt.max))
    low = fmt.min_exponent - (fmt.mantissa_bits if subnormals else 0)
    return low, top


def exponents(formats: tuple[Format, Format], subnormals: bool) -> tuple[int, int]:
    """The exponents that products of two powers of two can have, within what is tried."""
    ends = [reach(fmt, subnormals) for fmt in formats]
    return max(-_WIDEST, sum(x[0] for x in ends)), min(_WIDEST, sum(x[1] for x in ends))


def factors(formats: tuple[Format, Format], exponent: int) -> tuple[float, float]:
    """Two powers of two, one of each format, whose product is 2^exponent; subnormal if need be."""
    for subnormals in (False, True):
        (low_a, top_a), (low_b, top_b) = (reach(fmt, subnormals) for fmt in formats)
        if low_a + low_b <= exponent <= top_a + top_b:
            left = min(max(exponent // 2, low_a, exponent - top_b), top_a, exponent - low_b)
            return 2.0**left, 2.0 ** (exponent - left)
    raise ValueError(f"2^{exponent} is no product of {formats[0].name} and {formats[1].name}")


Term = tuple[float, float]


def terms(box: BlackBox, rows: Sequence[dict[int, Term]], c: Sequence[float] = ()) -> Dots:
    """Dots that are zero but for the operand pairs named by k."""
    a, b = np.zeros((2, len(rows), box.k))
    for index, row in enumerate(rows):
        for place, (x, y) in row.items():
            a[index, place], b[index, place] = x, y
    return Dots(a, b, np.array(c if len(c) else [0.0] * len(rows)))


def power(box: BlackBox, exponent: int, sign: int = 1, significand: float = 1.0) -> Term:
    """An operand pair whose product is sign * significand * 2^exponent."""
    x, y = factors(box.formats, exponent)
    return sign * significand * x, y
