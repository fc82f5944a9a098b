"""The proof of a cast: all 2^32 float32 inputs against their exact steps.

Every input's code is compared with that of the step it lies on, in every deterministic rounding
mode and overflow policy at once. A count of the codec's code changes would say as much as their
number; a comparison also says that each change is where it must be and between the right codes.
The steps themselves are placed in exact fractions, and the oracle is asked on both sides of each.
"""

import dataclasses
import functools
import itertools
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from lowprec.numerics import oracle
from lowprec.numerics.codec import encode_bits
from lowprec.numerics.format import Format
from lowprec.numerics.rounding import OVERFLOWS, ROUNDINGS, is_stochastic
from lowprec.study.steps import SIGN, Steps, steps, value

DETERMINISTIC: tuple[str, ...] = tuple(name for name in ROUNDINGS if not is_stochastic(name))
SAMPLE: tuple[str, ...] = (
    "binary3p1se",
    "binary4p2sf",
    "binary5p5se",
    "binary6p3ue",
    "binary6p1uf",
    "binary7p4sf",
    "binary8p1ue",
    "binary8p3se",
    "binary8p4se",
    "binary8p5uf",
    "binary10p6se",
    "binary15p8ue",
)
"""P3109 members to prove one by one: both signs and domains, precisions from 1 to 8."""
QUESTIONS = 4096
"""Thresholds a sign at most on both sides of which the oracle is asked; more are thinned out."""

_PART = 1 << 14
Way = tuple[str, str]
"""A rounding mode and an overflow policy."""
Encode = Callable[[jax.Array, Format, str, str], jax.Array]
"""From float32 bits, a format, a mode and a policy to codes."""
Tables = dict[int, list[Steps]]
"""By sign bit, the step function of each way."""


@dataclasses.dataclass(frozen=True)
class Proof:
    """What was found for one format, mode and policy.

    Attributes:
      format, bits, rounding, overflow: what was tried.
      inputs: how many float32 patterns were encoded.
      thresholds: how often the exact code changes over the patterns of both signs.
      mismatches: inputs whose code is not that of their exact step.
      asked: how many inputs the oracle was asked, on both sides of thresholds.
      disagreements: how often it contradicted the exact steps.
      seconds: of the sweep, which all modes and policies of a format share.
    """

    format: str
    bits: int
    rounding: str
    overflow: str
    inputs: int
    thresholds: int
    mismatches: int
    asked: int
    disagreements: int
    seconds: float


def prove(
    fmt: Format,
    roundings: Sequence[str] = DETERMINISTIC,
    overflows: Sequence[str] = OVERFLOWS,
    *,
    encode: Encode = encode_bits,
) -> list[Proof]:
    """Encodes all 2^32 float32 inputs and compares every code with the exact one.

    Args:
      fmt: a format of 24 bits or fewer, or float32: elsewhere the steps are too many.
      roundings, overflows: the modes and policies to try; all in one sweep.
      encode: from float32 bits, a format, a mode and a policy to codes.

    Example, which the tests of docstrings leave out since it sweeps all inputs:
      >>> from lowprec.numerics import get_format
      >>> proofs = prove(get_format("e2m1"), ["nearest_even"], ["saturate"])  # doctest: +SKIP
      >>> proofs[0].inputs, proofs[0].mismatches  # doctest: +SKIP
      (4294967296, 0)
    """
    ways = list(itertools.product(roundings, overflows))
    start = time.perf_counter()
    tables = exact_steps(fmt, ways)
    asked, disagreements = _ask(fmt, ways, tables)
    inputs, wrong = _sweep(fmt, ways, tables, encode)
    seconds = time.perf_counter() - start
    return [
        Proof(
            format=fmt.name,
            bits=fmt.bits,
            rounding=rounding,
            overflow=overflow,
            inputs=inputs,
            thresholds=sum(len(table[index].first) - 1 for table in tables.values()),
            mismatches=int(wrong[index]),
            asked=asked,
            disagreements=int(disagreements[index]),
            seconds=seconds,
        )
        for index, (rounding, overflow) in enumerate(ways)
    ]


def exact_steps(fmt: Format, ways: Sequence[Way]) -> Tables:
    """The step functions of some modes and policies, by sign bit."""
    return {
        sign: [
            steps(fmt, rounding, overflow, negative=sign != 0)  # type: ignore[arg-type] - a name from ROUNDINGS
            for rounding, overflow in ways
        ]
        for sign in (0, SIGN)
    }


def exact_codes(tables: Tables, bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The exact codes of float32 patterns, from their steps: (ways, *bits.shape)."""
    codes = np.zeros((len(tables[0]), *bits.shape), np.uint32)
    for sign, table in tables.items():
        here = (bits & SIGN) == sign
        magnitudes = (bits[here] & (SIGN - 1)).astype(np.int64)
        for index, one in enumerate(table):
            codes[index][here] = one.at(magnitudes)
    return codes


def _union(tables: Sequence[Steps]) -> NDArray[np.int64]:
    """Where the code of any of some step functions changes, 0 included."""
    return np.unique(np.concatenate([one.first for one in tables]))


def _run_size(tables: Sequence[Steps]) -> int:
    """Inputs a run at most: as few as lie between two thresholds where there are many."""
    average = (1 << 31) // len(_union(tables))
    return min(1 << 14, max(1 << 8, 1 << average.bit_length()))


def _ask(fmt: Format, ways: Sequence[Way], tables: Tables) -> tuple[int, NDArray[np.int64]]:
    """Inputs on both sides of thresholds; for each way, how often the oracle disagrees."""
    asked, disagreements = 0, np.zeros(len(ways), np.int64)
    for sign, table in tables.items():
        first = _union(table)
        first = first[np.linspace(0, len(first) - 1, min(len(first), QUESTIONS)).astype(np.int64)]
        sides = np.union1d(first, np.maximum(first - 1, 0))
        wanted = np.array([one.at(sides) for one in table])
        for place, pattern in enumerate(sides.tolist()):
            x = value(pattern, sign != 0)
            for index, (rounding, overflow) in enumerate(ways):
                got = oracle.encode(x, fmt, rounding=rounding, overflow=overflow)  # type: ignore[arg-type] - names from ROUNDINGS and OVERFLOWS
                disagreements[index] += got != wanted[index, place]
        asked += len(sides)
    return asked, disagreements


class _Runs(NamedTuple):
    """Runs of inputs on which no exact code changes, or each is one more than the last.

    Attributes:
      start: (n,) uint32, the first pattern, its sign included.
      length: (n,) int32.
      codes: (ways, n), the exact code of the first pattern.
      rise: (n,) the same type, 1 where the code counts on with the patterns; or None.
    """

    start: Any
    length: Any
    codes: Any
    rise: Any = None


def _runs(fmt: Format, tables: Sequence[Steps], sign: int, size: int) -> Iterator[_Runs]:
    """All patterns of one sign in runs of `size` at most, `_PART` at a time."""
    cuts = np.union1d(_union(tables), np.arange(0, SIGN, size))
    ends = np.append(cuts[1:], SIGN)
    counts_on = any(table.identity for table in tables)
    for first in range(0, len(cuts), _PART):
        part = slice(first, first + _PART)
        yield _Runs(
            start=(cuts[part] | sign).astype(np.uint32),
            length=(ends - cuts)[part].astype(np.int32),
            codes=np.array([table.at(cuts[part]) for table in tables], fmt.code_dtype),
            rise=tables[0].rises_at(cuts[part]).astype(fmt.code_dtype) if counts_on else None,
        )


def _sweep(
    fmt: Format, ways: Sequence[Way], tables: Tables, encode: Encode
) -> tuple[int, NDArray[np.int64]]:
    """How many inputs were encoded, and for each way how many of their codes are wrong."""
    size = _run_size(tables[0])
    flags, count = _programs(fmt, ways, encode, size)
    inputs, wrong = 0, np.zeros(len(ways), np.int64)
    for sign, table in tables.items():
        for runs in _runs(fmt, table, sign, size):
            number = len(runs.start)
            padded = jax.tree.map(_padded, runs)
            found = np.asarray(flags(padded, np.int32(number)))
            for index in np.flatnonzero(found).tolist():
                wrong += np.asarray(count(padded, np.int32(index)))
            inputs += int(runs.length.sum())
    return inputs, wrong


def _padded(x: np.ndarray) -> np.ndarray:
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, _PART - x.shape[-1])])


def _programs(
    fmt: Format, ways: Sequence[Way], encode: Encode, size: int
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """Whether each of many runs holds a wrong code; and how many one run holds, for each way."""
    offsets = np.arange(size, dtype=np.uint32)

    def differences(runs: _Runs, index: jax.Array) -> list[jax.Array]:
        bits = jnp.asarray(offsets) + runs.start[index]
        inside = jnp.asarray(offsets.astype(np.int32)) < runs.length[index]
        codes, wrong = runs.codes[:, index], []
        for way, (rounding, overflow) in enumerate(ways):
            wanted = codes[way]
            if runs.rise is not None:
                wanted += runs.rise[index] * offsets.astype(fmt.code_dtype)
            wrong.append((encode(bits, fmt, rounding, overflow) != wanted) & inside)
        return wrong

    def flags(runs: _Runs, number: jax.Array) -> jax.Array:
        def turn(index: jax.Array, found: jax.Array) -> jax.Array:
            any_way = functools.reduce(operator.or_, differences(runs, index))
            return found.at[index].set(jnp.any(any_way))

        return lax.fori_loop(0, number, turn, jnp.zeros(runs.start.shape, bool))

    def count(runs: _Runs, index: jax.Array) -> jax.Array:
        return jnp.stack([jnp.sum(x, dtype=jnp.int32) for x in differences(runs, index)])

    return jax.jit(flags), jax.jit(count)
