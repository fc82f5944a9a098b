"""A number format drawn in text, for a terminal."""

import math
from collections.abc import Callable

from lowprec.numerics import Format

ENUMERATED_BITS = 16
"""Formats of more bits are sampled at a sixteenth of a binade, far below a column."""


def number_line(fmt: Format, width: int = 72) -> str:
    """The positive values of a format on a logarithmic axis, with powers of two as ticks.

    A column is marked `|` where one value falls on it, `:` where that is a subnormal one, and `#`
    where several do. The first line counts the values.

    Args:
      fmt: any format.
      width: columns, at least 24.

    Returns:
      Lines of at most `width` characters, but for a first line of a long name.

    Raises:
      ValueError: `width` is too small.

    Example:
      >>> from lowprec.numerics import get_format
      >>> print(number_line(get_format("float4_e2m1fn"), 40))
      float4_e2m1fn: 7 positive values, 0.5 to 6
      :         |     |    |     |   |     |
      +---------+----------+---------+--------
      0.5       1          2         4
      | one value  : one subnormal
    """
    if width < 24:
        raise ValueError(f"`width` = {width}; a number line needs at least 24 columns")
    values, count = _positive_values(fmt)
    if not values:
        return f"{fmt.name}: no positive values"
    low, high = math.log2(values[0]), math.log2(values[-1])
    # Half an octave of room where there is but one value.
    unit = (width - 1 - 2) / max(high - low, 0.5)

    def column(value: float) -> int:
        return round((math.log2(value) - low) * unit)

    marks = _marks(values, fmt.min_normal, column, width)
    first, last = math.ceil(low), math.floor(high)
    labels, ticks = _ticks(first, last, column, width)
    used = {"|": "one value", ":": "one subnormal", "#": "several"}
    legend = "  ".join(f"{mark} {word}" for mark, word in used.items() if mark in marks)
    counted = f"{count:,} positive value{'s' if count != 1 else ''}"
    span = f"{_short(values[0])} to {_short(values[-1])}"
    lines = (f"{fmt.name}: {counted}, {span}", marks, ticks, labels, legend)
    return "\n".join(line.rstrip() for line in lines)


def _positive_values(fmt: Format) -> tuple[list[float], int]:
    """The positive values ascending, or enough of them to fill a line; and how many there are."""
    if fmt.table is not None:
        positive = sorted(x for x in fmt.table if 0 < x < math.inf)
        return positive, len(positive)
    first = 0 if fmt.zero == "none" else 1
    count = fmt.max_code - first + 1
    if fmt.bits <= ENUMERATED_BITS:
        every = [fmt.magnitude(code) for code in range(first, fmt.max_code + 1)]
        # What lies beyond a Python float's range is counted, and not drawn.
        return [x for x in every if 0 < x < math.inf], count
    step = 1 << max(0, fmt.mantissa_bits - 4)
    codes = {1 << bit for bit in range(fmt.mantissa_bits)} | set(range(first, fmt.max_code, step))
    codes = {code for code in codes if first <= code < fmt.max_code} | {first, fmt.max_code}
    return sorted(fmt.magnitude(code) for code in codes if code), count


def _marks(
    values: list[float], min_normal: float | None, column: Callable[[float], int], width: int
) -> str:
    line = [" "] * width
    for value in values:
        single = ":" if min_normal is not None and value < min_normal else "|"
        at = column(value)
        line[at] = single if line[at] == " " else "#"
    return "".join(line)


def _ticks(first: int, last: int, column: Callable[[float], int], width: int) -> tuple[str, str]:
    """The labels of as many powers of two as fit, evenly apart, and the axis they stand on."""
    plain = first >= -4 and last <= 13
    for step in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, 256, 512, 1024):
        chosen = [power for power in range(first, last + 1) if power % step == 0]
        names = [_short(2.0**power) if plain else f"2^{power}" for power in chosen]
        places = [column(2.0**power) for power in chosen]
        starts = [min(at, width - len(name)) for at, name in zip(places, names, strict=True)]
        ends = [start + len(name) + 1 for start, name in zip(starts, names, strict=True)]
        if all(end <= start for end, start in zip(ends, starts[1:], strict=False)):
            break
    labels, axis = [" "] * width, ["-"] * width
    for at, start, name in zip(places, starts, names, strict=True):
        labels[start : start + len(name)] = name
        axis[at] = "+"
    return "".join(labels), "".join(axis)


def _short(value: float) -> str:
    return f"{value:.6g}"
