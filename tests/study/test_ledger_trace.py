"""The sums on an engine's way: a chain that ends in the product's bits, rounded where it says."""

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from lowprec.engines import get_engine, list_engines
from lowprec.engines.aligned import Aligned
from lowprec.engines.engine import Engine
from lowprec.engines.matmul import nameless, product
from lowprec.engines.trace import aligns, trace
from tests.engines.test_modes import given
from tests.helpers import as_bits, assert_bits_equal, graded

FAST = ("hopper.wgmma.fp8.fp32",)


def sorts() -> list[str]:
    """One engine of each sort: those of a sort differ in operands and widths alone."""
    names = (
        "accumulation",
        "accumulator",
        "interleave",
        "alignment_rounding",
        "output_rounding",
        "truncate_operands",
        "output",
        "halves",
    )
    found: dict[Any, str] = {}
    for name in (*FAST, *list_engines()):
        engine = get_engine(name)
        if aligns(engine):
            key = (*(getattr(engine, x) for x in names), bool(engine.scale_formats))
            found.setdefault(key, name)
    return list(found.values())


ENGINES = sorts()


def traced(name: str) -> tuple[Engine, Aligned, Any]:
    """An engine's sums on operands of several instructions and a bit, and its product."""
    engine = nameless(get_engine(name))
    a, b, _, options = given(name)
    formats = engine.inputs[0], engine.inputs[0]
    scales = (None, None)
    if engine.scale_formats:
        # One scale format, as recipes make of an engine; codes near 1 in any of them.
        fmt = engine.scale_formats[0]
        engine = dataclasses.replace(engine, scale_formats=(fmt,))
        near = fmt.bias << fmt.mantissa_bits
        scales = tuple(options[f"{x}_scale"] % 5 + np.uint8(near - 2) for x in "ab")
    sums = trace(a, b, engine, formats, scales)
    return engine, sums, product(a, b, None, engine, formats, scales)


@pytest.mark.parametrize("name", graded(ENGINES))
def test_sums_are_a_chain_that_ends_in_the_product(name: str) -> None:
    engine, sums, out = traced(name)
    starts, ends = np.asarray(sums.start), np.asarray(sums.end)
    assert starts.shape == (engine.interleave * -(-150 // (engine.instruction_length or 1)), 5, 3)
    want = as_bits(np.asarray(out, np.float32))
    assert np.isfinite(np.asarray(out, np.float32)).all() and len(np.unique(want)) > 5
    if engine.accumulator == "separate":
        assert not starts[:: engine.interleave].any()
        starts = starts.reshape(-1, engine.interleave, 5, 3)[:, 1:]
        ends = ends.reshape(-1, engine.interleave, 5, 3)[:, :-1]
        assert_bits_equal(starts, ends)
        return
    assert not starts[0].any()
    assert_bits_equal(starts[1:], ends[:-1])
    assert_bits_equal(ends[-1], want)


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow] * (x not in FAST)) for x in ENGINES]
)
def test_ends_are_sums_rounded_once(name: str) -> None:
    engine, sums, _ = traced(name)
    fmt = engine.register_format
    high, low = (np.asarray(x).astype(np.uint64) for x in (sums.high, sums.low))
    whole = (high << np.uint64(32) | low).view(np.int64)
    inexact = 0
    for place in np.ndindex(*whole.shape):
        added = Fraction(float(np.asarray(sums.added)[place].view(np.float32)))
        exact = int(whole[place]) * Fraction(2) ** int(np.asarray(sums.unit)[place]) + added
        end = Fraction(float(np.asarray(sums.end)[place].view(np.float32)))
        size = max(abs(exact), Fraction(2) ** fmt.min_exponent)
        # Less than a unit in the last place of the register, whatever the rounding.
        assert abs(end - exact) * 2**fmt.mantissa_bits < size
        inexact += end != exact
    narrow = fmt.mantissa_bits < 20
    assert inexact > 0 or not narrow
