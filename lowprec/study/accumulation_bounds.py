"""Bounds on the error of a chain of fused steps, promoted or not.

One step takes L products and the running sum c. With m the largest exponent among them, F fraction
bits and a register of M mantissa bits,

- each of the L + 1 terms is cut toward zero to a multiple of 2^(m - F): an error below that each;
- the exact sum S of what is left is rounded toward zero to the register: an error below 2^-M |S|.

Neither makes a magnitude larger, so that |c| and |S| never exceed the sum A of the magnitudes of
all products so far, and 2^m is at most max(2^e, A) with e the largest product's exponent. Errors
then add up over steps t:

    |y - x| <= sum_t (L + 1) 2^-F max(2^e_t, A_(t-1)) + 2^-M A_t                  (deterministic)

That is the block-FMA analysis of Blanchard, Higham, Lopez, Mary and Pranesh (SIAM J. Sci. Comput.
42, 2020, C124-C141) with the alignment's truncation in place of a unit roundoff; with A_t growing
evenly it is about K / (2 L) ((L + 1) 2^-F + 2^-M) A. Promotion restarts c, and A_t with it, every
N_C elements and adds a float32 addition, 2^-24 of the magnitudes so far, for each.

If the errors were independent with mean zero, Hoeffding's inequality would give, as in Higham and
Mary (SIAM J. Sci. Comput. 41, 2019, A2815-A2835),

    |y - x| <= lambda sqrt(sum_t (L + 1) (2^-F max(2^e_t, |s_(t-1)|))^2 + (2^-M |s_t|)^2)

with probability at least 1 - 2 exp(-lambda^2 / 2), which grows as sqrt(K) where the other grows as
K; s_t are the exact running sums, so that it holds to first order. lambda = 3: 97.8 %. Truncation
toward zero has mean zero only where the signs of the terms do; where they are all equal the
assumption fails, and errors beyond this bound show it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowprec.study.accumulation_operands import Operands

LAMBDA = 3.0
COVERAGE = 1 - 2 * math.exp(-(LAMBDA**2) / 2)
_FLOAT32_ROUNDOFF = 2.0**-24
_NONE = -999

Array = NDArray[np.float64]


class Steps(NamedTuple):
    """What every step adds, exactly; each (steps, seeds, rows, columns) float64.

    Attributes:
      sums: of its products. E4M3 products are multiples of 2^-18 below 2^18, so that float64 holds
        the sum of as many as 2^17 of them exactly.
      magnitudes: sums of |products|.
      largest: 2^e of its largest product, e the sum of both exponent fields; 0 where all are 0.
    """

    sums: Array
    magnitudes: Array
    largest: Array


class Terms(NamedTuple):
    """Sums over steps up to every depth, each (depths, seeds, rows, columns), free of F and M.

    Attributes:
      aligned, rounded, added: what (L + 1) 2^-F, 2^-M and 2^-24 multiply in the deterministic
        bound.
      aligned_squares, rounded_squares, added_squares: the same of squares in the probabilistic one.
      length: L.
    """

    aligned: Array
    rounded: Array
    added: Array
    aligned_squares: Array
    rounded_squares: Array
    added_squares: Array
    length: int

    def deterministic(self, fraction_bits: int, register_bits: int) -> Array:
        """The bound that always holds, (depths, seeds, rows, columns)."""
        return (
            (self.length + 1) * 2.0**-fraction_bits * self.aligned
            + 2.0**-register_bits * self.rounded
            + _FLOAT32_ROUNDOFF * self.added
        )

    def probabilistic(self, fraction_bits: int, register_bits: int) -> Array:
        """The bound that errors of mean zero keep with probability `COVERAGE`."""
        squares = (
            (self.length + 1) * 4.0**-fraction_bits * self.aligned_squares
            + 4.0**-register_bits * self.rounded_squares
            + _FLOAT32_ROUNDOFF**2 * self.added_squares
        )
        return LAMBDA * np.sqrt(squares)


def exact_steps(operands: Operands, length: int, least_exponent: int) -> Steps:
    """The exact steps of `length` products.

    Args:
      operands: numbers of a format with at most 8 significant bits in a product.
      length: L, a divisor of K.
      least_exponent: the format's, which its subnormals' exponent field reads as.
    """
    seeds, rows, depth = operands.a.shape
    steps = depth // length
    a = operands.a.reshape(seeds, rows, steps, length).transpose(2, 0, 1, 3).astype(np.float64)
    b = operands.b.reshape(seeds, steps, length, -1).transpose(1, 0, 2, 3).astype(np.float64)
    left, right = (_exponents(x, least_exponent) for x in (a, b))
    largest = np.full((*a.shape[:3], b.shape[3]), _NONE, np.int16)
    for k in range(length):
        np.maximum(largest, left[..., k, None] + right[..., k, None, :], out=largest)
    found = largest > _NONE // 2
    return Steps(
        sums=a @ b,
        magnitudes=np.abs(a) @ np.abs(b),
        largest=np.where(found, np.ldexp(1.0, np.where(found, largest, 0)), 0.0),
    )


def _exponents(x: Array, least: int) -> NDArray[np.int16]:
    exponents = np.maximum(np.frexp(x)[1] - 1, least)
    return np.where(x == 0, _NONE, exponents).astype(np.int16)


def bound_terms(steps: Steps, length: int, promote_every: int, depths: Sequence[int]) -> Terms:
    """Both bounds' sums for one promotion interval, 0 for none, at every depth."""
    count = len(steps.sums)
    per_interval = promote_every // length if promote_every else count
    shape = (count // per_interval, per_interval, *steps.sums.shape[1:])
    cut = [x.reshape(shape) for x in steps]
    sums, magnitudes = (np.cumsum(x, axis=1) for x in cut[:2])
    before = [np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], 1) for x in (sums, magnitudes)]
    at = [k // length - 1 for k in depths]

    def total(x: Array) -> Array:
        return np.cumsum(x.reshape(steps.sums.shape), axis=0)[at]

    added, added_squares = np.zeros((2, len(depths), *steps.sums.shape[1:]))
    if promote_every:
        ends = [k // promote_every - 1 for k in depths]
        so_far = np.cumsum(magnitudes[:, -1], axis=0)
        growth = (1 + _FLOAT32_ROUNDOFF) ** len(so_far)  # of what is added to, by its own errors
        added = growth * np.cumsum(so_far, axis=0)[ends]
        added_squares = np.cumsum(np.cumsum(sums[:, -1], axis=0) ** 2, axis=0)[ends]
    return Terms(
        aligned=total(np.maximum(cut[2], before[1])),
        rounded=total(magnitudes),
        added=added,
        aligned_squares=total(np.maximum(cut[2], np.abs(before[0])) ** 2),
        rounded_squares=total(sums**2),
        added_squares=added_squares,
        length=length,
    )
