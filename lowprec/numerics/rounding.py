"""The rounding modes and overflow policies by name."""

import typing
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
]
"""How a value between two codes is rounded.

`nearest_*` differ on ties alone; `nearest_even` picks the even code, also without mantissa bits.
`to_odd` picks the odd code unless the value is exact. `stochastic` compares random bits with the
fraction.
"""

Overflow = Literal["saturate", "saturate_finite", "nonsaturating"]
"""What happens above the largest finite value.

`saturate`: overflow and Inf go to +-max. `saturate_finite`: Inf stays where the format has one.
`nonsaturating`: IEEE 754 section 7.4; Inf, or NaN where the format has no Inf, in the nearest modes
and `stochastic`; `toward_zero` and `to_odd` stop at +-max, the directed modes by sign; an infinite
input gives Inf or NaN; a format with neither saturates.
"""

ROUNDINGS: tuple[str, ...] = typing.get_args(Rounding)
OVERFLOWS: tuple[str, ...] = typing.get_args(Overflow)


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{argument}` = {value!r}; use one of {', '.join(choices)}")
