"""The rounding modes and overflow policies by name, and the bias of stochastic rounding."""

import math
import typing
from fractions import Fraction
from typing import Literal

Rounding = Literal[
    "nearest_even",
    "nearest_away",
    "nearest_toward_zero",
    "toward_zero",
    "toward_positive",
    "toward_negative",
    "to_odd",
    "stochastic",
    "stochastic_fast",
    "stochastic_corrected",
    "stochastic_odd",
]
"""How a value between two codes is rounded.

`nearest_*` differ on ties alone; `nearest_even` picks the even code, also without mantissa bits.
`to_odd` picks the odd code unless the value is exact. The stochastic modes compare r random bits
with the fraction of the way from the code nearer zero to the next; see `away_count`.
"""

Overflow = Literal["saturate", "saturate_finite", "nonsaturating"]
"""What happens above the largest finite value.

`saturate`: overflow and Inf go to +-max. `saturate_finite`: Inf stays where the format has one.
`nonsaturating`: IEEE 754 section 7.4; Inf, or NaN where the format has no Inf, in the nearest and
the stochastic modes; `toward_zero` and `to_odd` stop at +-max, the directed modes by sign; an
infinite input gives Inf or NaN; a format with neither saturates.
"""

ROUNDINGS: tuple[str, ...] = typing.get_args(Rounding)
OVERFLOWS: tuple[str, ...] = typing.get_args(Overflow)


def is_stochastic(rounding: str) -> bool:
    """Whether a mode takes random bits."""
    return rounding.startswith("stochastic")


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{argument}` = {value!r}; use one of {', '.join(choices)}")


def away_count(fraction: Fraction, rounding: Rounding, random_bit_count: int) -> int:
    """How many of the 2^r random words round a value away from zero.

    The value lies `fraction` of the way from the code nearer zero to the next. Dividing by 2^r
    gives the probability, which an unbiased mode would have equal to `fraction`: what differs is
    the mode's bias, see `bias`. With f = fraction * 2^r,

    - `stochastic`: floor(f). A word w rounds away iff w + floor(f) >= 2^r: r bits of the fraction
      are added to the word, and the carry counts. gfloat's `StochasticFastest`.
    - `stochastic_fast`: floor(f + 1/2), as w + 1/2 is added to r + 1 bits of the fraction. gfloat's
      `StochasticFast`.
    - `stochastic_corrected`: f rounded to nearest, ties to even, before the sum. The paper's SRC,
      gfloat's `Stochastic`.
    - `stochastic_odd`: the same with ties to odd. gfloat's `StochasticOdd`.

    Source: Fitzgibbon and Felix, "On Stochastic Rounding with Few Random Bits" (arXiv 2504.20634),
    and gfloat, by the first author.

    Raises:
      ValueError: a mode without random bits, or a fraction outside [0, 1).

    Example:
      >>> [away_count(Fraction(7, 16), mode, 2) for mode in STOCHASTIC]
      [1, 2, 2, 2]
    """
    check_choice("rounding", rounding, STOCHASTIC)
    if not 0 <= fraction < 1:
        raise ValueError(f"`fraction` = {fraction}; use a number from 0 to below 1")
    scaled = fraction * 2**random_bit_count
    whole, half = math.floor(scaled), Fraction(1, 2)
    rest = scaled - whole
    match rounding:
        case "stochastic":
            return whole
        case "stochastic_fast":
            return whole + (rest >= half)
        case "stochastic_corrected":
            return whole + (rest > half or (rest == half and whole % 2 == 1))
        case _:
            return whole + (rest > half or (rest == half and whole % 2 == 0))


def bias(fraction: Fraction, rounding: Rounding, random_bit_count: int) -> Fraction:
    """The expected error of stochastic rounding, in units of the gap, away from zero positive.

    From -2^-r (excluded) to 0 for `stochastic`; within 2^-(r+1) either way for the others. Over all
    fractions of r + k bits the mean is (2^-(r+k) - 2^-r) / 2 for `stochastic`, 2^-(r+k) / 2 for
    `stochastic_fast`, and 0 for the other two.

    Example:
      >>> bias(Fraction(7, 16), "stochastic", 2)
      Fraction(-3, 16)
    """
    count = away_count(fraction, rounding, random_bit_count)
    return Fraction(count, 2**random_bit_count) - fraction


STOCHASTIC: tuple[str, ...] = tuple(mode for mode in ROUNDINGS if is_stochastic(mode))
