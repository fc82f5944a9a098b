"""Blocks just below a power of two: what is left of them, against rules written in Fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest

from lowprec.study.collapse import between, collapse_row, collapse_rows, value_rows

E4M3 = sorted(
    {Fraction(m, 8) * Fraction(2) ** max(e - 7, -6) + (Fraction(2) ** (e - 7) if e else 0)
     for e in range(16) for m in range(8) if (e, m) != (15, 7)}
)  # fmt: skip
"""The positive numbers of float8_e4m3fn: m / 8 below 2^-6, (1 + m / 8) 2^(e - 7) above."""


def power_of(rule: str, amax: Fraction) -> int:
    """The exponent of a block's scale, as the rule's words say."""
    log2 = math.floor(math.log2(amax))
    assert Fraction(2) ** log2 <= amax < Fraction(2) ** (log2 + 1)
    match rule:
        case "floor":
            return log2 - 8
        case "ceil":
            return log2 + (amax > Fraction(2) ** log2) - 8
        case "rceil":
            power = log2 - 10
            while amax / Fraction(2) ** power > 448:
                power += 1
            return power
    raise AssertionError(rule)


def nearest(x: Fraction) -> Fraction:
    """The nearest number of E4M3, or the largest."""
    return min(E4M3, key=lambda y: abs(y - x))


def test_what_a_block_becomes_is_what_its_rule_says() -> None:
    assert max(E4M3) == 448 and len(E4M3) == 127
    for name, rule in (("mxfp8_e4m3", "floor"), ("mxfp8_e4m3_ceil", "ceil"),
                       ("mxfp8_e4m3_rceil", "rceil")):  # fmt: skip
        rows = value_rows([name], 0.7, 1.0)
        numbers = [Fraction(row.value) for row in rows]
        scale = Fraction(2) ** power_of(rule, max(numbers))
        assert [Fraction(row.result) for row in rows] == [
            nearest(x / scale) * scale for x in numbers
        ]
        assert {row.rule for row in rows} == {rule}


@pytest.mark.parametrize("exponent", [0, -7, 100, -110])
def test_the_floor_rule_makes_one_number_of_a_block_inside(exponent: int) -> None:
    row = collapse_row("mxfp8_e4m3", 0.875, 1.0, exponent=exponent)
    assert row.values == 1024 and row.left == 1 and row.spread_kept == 0 and row.at_maximum == 1
    # All become 0.875: the slope is 0.875 <x> / <x^2> of a uniform x, and below one.
    x = between(0.875, 1.0, 32, 32).astype(np.float64)
    np.testing.assert_allclose(row.gain, 0.875 * x.sum() / (x * x).sum() - 1, rtol=1e-12)
    assert -0.08 < row.gain < -0.06


@pytest.mark.slow
def test_other_rules_and_other_blocks_keep_values() -> None:
    rules = [f"mxfp8_e4m3_{rule}" for rule in ("even", "ceil", "rceil")]
    for row in collapse_rows(rules, [(0.875, 1.0)]):
        assert row.left == 3 and row.spread_kept > 0.8 and abs(row.gain) < 0.01
    # A block that ends below 0.875 is not clipped, and one with a number above 1 is scaled down.
    assert collapse_row("mxfp8_e4m3", 0.75, 0.875).left == 3
    wide = collapse_row("mxfp8_e4m3", 0.875, 1.1)
    assert wide.left == 4 and wide.at_maximum == 0
    # E5M2's largest number has the same significand. E2M1's is 6: all from 5 to 8 becomes 6.
    assert collapse_row("mxfp8_e5m2", 0.875, 1.0).left == 1
    assert collapse_row("mxfp4", 0.625, 1.0).left == 1 < collapse_row("mxfp4", 0.6, 1.0).left
    # No scale is below 2^-127, so that tiny blocks are not clipped.
    assert collapse_row("mxfp8_e4m3", 0.875, 1.0, exponent=-126).left == 3


def test_a_block_without_tiles_along_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"block 'fp8_128x128' has tiles of \(128, 128\); use one"):
        collapse_row("fp8_128x128", 0.875, 1.0)
