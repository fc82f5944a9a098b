"""The catalogue's number formats as JSON, for the page on which a person tries numbers.

The page's script looks values up and compares; every value and code it shows is in here. Values are
written as runs of evenly spaced ones, so that float32's four billion take a few hundred entries.
What happens beyond the largest value, to NaN and to zeros is asked of the exact oracle.
"""

import functools
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from lowprec import catalogue
from lowprec.numerics import families, get_format, list_formats, oracle, table
from lowprec.numerics.format import Format
from lowprec.numerics.rounding import OVERFLOWS, ROUNDINGS, Rounding, is_stochastic

FAMILY = "families/p3109"
"""The family of which the page has the members that its entry lists."""
FIRST = "float8_e4m3fn"
"""The format that the page begins with."""
MODES: tuple[str, ...] = tuple(mode for mode in ROUNDINGS if not is_stochastic(mode))


class Run(NamedTuple):
    """Evenly spaced values in ascending order: value + i * step, for i below `length`.

    Their codes are code + i * code_step; every second of them counts as odd in ties, beginning with
    `odd` of the first.
    """

    value: float
    step: float
    length: int
    code: int
    code_step: int
    odd: int


def names() -> tuple[str, ...]:
    """The formats that the page has: the catalogue's, then members of the P3109 family."""
    members = catalogue.lookup("elements", FAMILY).value["members"]
    return (*list_formats(), *(name for name in members if name not in list_formats()))


def runs(fmt: Format) -> list[Run]:
    """The finite values of a format, each number once, in ascending order.

    Example:
      >>> [tuple(run) for run in runs(get_format("float4_e2m1fn"))][3:]
      [(0.0, 0.5, 4, 0, 1, 0), (2.0, 1.0, 2, 4, 1, 0), (4.0, 2.0, 2, 6, 1, 0)]
    """
    if fmt.table is not None:
        return _merged(_of_table(fmt))
    first = 0 if fmt.zero == "none" else 1
    below = _merged(_magnitudes(fmt, first, _last(fmt, True))) if fmt.signed else []
    return [_mirrored(run, fmt) for run in reversed(below)] + _merged(
        _magnitudes(fmt, 0, _last(fmt, False))
    )


def explained(fmt: Format) -> dict[str, Any]:
    """All that the page's script knows of a format.

    Example:
      >>> explained(get_format("float4_e2m1fn"))["past"]["saturate"][1][:2]
      [7, 7]
    """
    found = runs(fmt)
    codes = functools.partial(oracle.encode, fmt=fmt, rounding="nearest_even", overflow="saturate")
    zeros, nans = ([codes(x), codes(-x)] for x in (0.0, math.nan))
    past = {policy: [_past(fmt, policy, side) for side in (-1.0, 1.0)] for policy in OVERFLOWS}
    negative = codes(-1.0) if fmt.min >= 0 else None
    shown = {code for sides in past.values() for side in sides for code in side} | set(nans)
    words = {code: _word(fmt.value(code)) for code in sorted(shown | {negative} - {None})}  # type: ignore[arg-type] - None is left out
    return {
        "name": fmt.name,
        "bits": fmt.bits,
        "fields": _fields(fmt),
        "source": str(catalogue.lookup("elements", families.entry_name(fmt.name)).citation or ""),
        "runs": found,
        "ends": _ends(fmt, found),
        "zero": zeros,
        "nan": nans,
        "negative": negative,
        "past": past,
        "special": {code: word for code, word in words.items() if word is not None},
    }


def formats_json() -> str:
    """The formats of the page as JSON that can stand in a `<script>` element."""
    data = {
        "modes": MODES,
        "first": FIRST,
        "formats": [explained(get_format(name)) for name in names()],
    }
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _last(fmt: Format, negative: bool) -> int:
    """The code without its sign of the finite value farthest from zero on one side."""
    if not negative:
        return fmt.max_code
    code = fmt.min_code
    return (1 << fmt.bits) - code if fmt.encoding == "twos_complement" else code & ~fmt.sign_mask


def _magnitudes(fmt: Format, first: int, last: int) -> Iterator[Run]:
    """Binade by binade; the step of the last value leads to where the next would lie."""
    width = 1 << fmt.mantissa_bits
    while first <= last:
        count = min(width - first % width, last + 1 - first)
        value = fmt.magnitude(first)
        yield Run(value, fmt.magnitude(first + 1) - value, count, first, 1, first % 2)
        first += count


def _of_table(fmt: Format) -> Iterator[Run]:
    lattice = table.lattice(fmt)
    numbers = [
        (float(value), code, int(odd))
        for value, code, odd in zip(*(part[1:-1] for part in lattice), strict=True)
    ]
    # Of two zeros one is left: `zero` has the code of each.
    numbers = [
        x for x, after in itertools.pairwise([*numbers, (math.nan, 0, 0)]) if x[0] != after[0]
    ]
    for (value, code, odd), after in itertools.pairwise([*numbers, numbers[-1]]):
        yield Run(value, after[0] - value, 1, code, 1, odd)


def _merged(found: Iterable[Run]) -> list[Run]:
    """Runs that go on as the one before are one."""
    merged: list[Run] = []
    for run in found:
        before = merged[-1] if merged else None
        if before is not None and _goes_on(before, run):
            merged[-1] = before._replace(length=before.length + run.length)
        else:
            merged.append(run)
    return merged


def _goes_on(before: Run, run: Run) -> bool:
    return (before.step, before.odd ^ before.length & 1) == (run.step, run.odd) and (
        before.value + before.length * before.step,
        before.code + before.length * before.code_step,
    ) == (run.value, run.code)


def _mirrored(run: Run, fmt: Format) -> Run:
    """A run of magnitudes on the negative side, from the farthest on."""
    farthest = run.code + run.length - 1
    value = -(run.value + (run.length - 1) * run.step)
    if fmt.encoding == "twos_complement":
        return Run(value, run.step, run.length, (1 << fmt.bits) - farthest, 1, farthest % 2)
    return Run(value, run.step, run.length, fmt.sign_mask | farthest, -1, farthest % 2)


def _ends(fmt: Format, found: list[Run]) -> list[float | None]:
    """Where the values beyond the lowest and the largest would lie; None where all are clipped."""
    if fmt.table is not None:
        values = table.lattice(fmt).values
        return [None if x is None else float(x) for x in (values[0], values[-1])]
    above = fmt.magnitude(_last(fmt, False) + 1)
    return [-fmt.magnitude(_last(fmt, True) + 1) if fmt.signed else None, above]


def _past(fmt: Format, policy: str, side: float) -> list[int]:
    """The codes on one side of Inf, then of what overflows by the modes' order."""
    modes: tuple[Rounding, ...] = ("nearest_even", *MODES)  # type: ignore[assignment] - names of modes
    inputs = (math.inf, *[_FAR] * len(MODES))
    return [
        oracle.encode(math.copysign(x, side), fmt, rounding=mode, overflow=policy)  # type: ignore[arg-type] - a policy's name
        for x, mode in zip(inputs, modes, strict=True)
    ]


_FAR = 2.0**1023
"""Beyond every format's largest value."""


def _word(value: float) -> str | None:
    """How JavaScript spells a value that JSON lacks."""
    return (
        None
        if math.isfinite(value)
        else "NaN"
        if math.isnan(value)
        else str(value)[:-3] + "Infinity"
    )


def _fields(fmt: Format) -> list[list[Any]]:
    """The parts of a code from the left, each with its width."""
    if fmt.table is not None or fmt.encoding == "twos_complement":
        return [["code", fmt.bits]]
    parts = [
        ("sign", int(fmt.signed)),
        ("exponent", fmt.exponent_bits),
        ("mantissa", fmt.mantissa_bits),
    ]
    return [[name, width] for name, width in parts if width]
