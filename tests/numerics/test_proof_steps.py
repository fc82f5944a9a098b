"""The exact steps that the proof compares with: against the oracle, by hand, and reduced inputs."""

import itertools
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.numerics import Format, get_format
from lowprec.numerics.rounding import OVERFLOWS
from lowprec.study.leading_bits import collapse, prove_reduced, reduced_inputs
from lowprec.study.proof import DETERMINISTIC, exact_codes, exact_steps
from lowprec.study.steps import INFINITY, first_pattern, steps, value
from tests.helpers import FORMATS, edges, exactly_encoded, random_words, sized

pytestmark = pytest.mark.slow

WAYS = tuple(itertools.product(DETERMINISTIC, OVERFLOWS))
TABLES = (
    Format(name="uneven_without_zero", table=(-1.5, -0.25, 0.5, 2.0)),
    Format(name="uneven_the_other_way", table=(2.0, -0.5, 0.25, -1.5)),
    Format(name="even_gap_around_zero", table=(-0.5, 0.75, 0.5, -3.0)),
)


# Wider ones take seconds to be placed; those above 16 bits a minute, and are `make prove`'s.
PLACED = [fmt for fmt in (*FORMATS, *TABLES) if fmt.bits <= 16 or fmt.name == "float32"]


@pytest.mark.parametrize(
    "fmt",
    [pytest.param(x, marks=[pytest.mark.slow] * (8 < x.bits < 32), id=x.name) for x in PLACED],
)
def test_steps_are_the_oracles(fmt: Format) -> None:
    """At random patterns and at edges; the proof asks at every threshold."""
    bits = np.concatenate([sized(edges(fmt), 60), random_words(20, 1)]).astype(np.uint32)
    exact = exact_codes(exact_steps(fmt, WAYS), bits)
    for (rounding, overflow), codes in zip(WAYS, exact, strict=True):
        want = exactly_encoded(bits, fmt, rounding, overflow)
        np.testing.assert_array_equal(codes, want, err_msg=f"{rounding} {overflow}")


def floats_of(first: np.ndarray) -> list[float]:
    return [value(int(pattern), False) for pattern in first]


def test_steps_by_hand() -> None:
    fmt = get_format("float4_e2m1fn")
    up = steps(fmt, "toward_zero", "saturate", negative=False)
    assert floats_of(up.first[:-1]) == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert up.codes.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    away = steps(fmt, "nearest_away", "saturate", negative=True)
    assert floats_of(away.first[:-1]) == [0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5]
    even = steps(fmt, "nearest_even", "saturate", negative=False)
    # A tie that goes down leaves the threshold one pattern later.
    assert (even.first - away.first).tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    odd = steps(fmt, "to_odd", "saturate", negative=False)
    assert odd.first[1] == 1 and floats_of(odd.first[2:3]) == [1.0]
    e4m3 = steps(get_format("float8_e4m3fn"), "nearest_even", "nonsaturating", negative=False)
    assert e4m3.codes[-1] == 0x7F and e4m3.first[-1] == np.float32(464).view(np.uint32) + 1


def test_stochastic_rounding_has_no_steps() -> None:
    with pytest.raises(ValueError, match="'stochastic' is no deterministic mode"):
        steps(get_format("e5m2"), "stochastic", "saturate", negative=False)


@pytest.mark.parametrize("pattern", [1, 2, 3, 0x7FFFFF, 0x800000, 0x800001, 0x3F800000, 0x7F7FFFFF])
def test_first_pattern(pattern: int) -> None:
    x, tiny = Fraction(value(pattern, False)), Fraction(1, 2**200)
    assert first_pattern(x) == (pattern, True)
    assert first_pattern(x - tiny) == (pattern, False)
    assert first_pattern(x + tiny) == (pattern + 1, False)


def test_first_pattern_at_the_ends() -> None:
    assert first_pattern(Fraction(0)) == (0, True)
    assert first_pattern(Fraction(2**128)) == (INFINITY, False)
    assert first_pattern(Fraction(1, 2**16000)) == (1, False)
    with pytest.raises(ValueError, match="dyadic"):
        first_pattern(Fraction(1, 3))


@pytest.mark.parametrize("kept", [1, 4, 8])
def test_reduced_inputs_are_what_collapse_leaves(kept: int) -> None:
    reduced = reduced_inputs(kept)
    assert len(np.unique(reduced)) == len(reduced)
    np.testing.assert_array_equal(collapse(jnp.asarray(reduced), kept), reduced)
    words = random_words(1 << 14, kept)
    words[::2] &= np.uint32(0x807FFFFF)
    words[1::4] >>= words[1::4] & 31
    assert np.isin(collapse(jnp.asarray(words), kept), reduced).all()


def test_collapse_keeps_leading_bits_and_whether_more_follow() -> None:
    words = random_words(1 << 12)
    short = np.asarray(collapse(jnp.asarray(words), 5))
    assert ((short >> 18) == (words >> 18))[(words & 0x7FFFFFFF) >= 1 << 23].all()
    assert ((words & 0x3FFFF) != 0)[short & 1 == 1].all()
    small = collapse(jnp.array([0b1, 0b10110000, 0b10110001, 0b10110011], jnp.uint32), 3)
    assert small.tolist() == [0b1, 0b10110000, 0b10110001, 0b10110001]


def test_the_reduced_proof_can_fail() -> None:
    fmt = get_format("float4_e2m1fn")
    ways = [("nearest_even", "saturate")]

    def broken(bits, fmt, rounding, overflow):
        return jnp.where(bits == 0x40200000, np.uint8(5), np.uint8(0)) + 0 * bits.astype(jnp.uint8)

    (proof,) = prove_reduced(fmt, ways, encode=broken)
    assert proof.mismatches > 1000
    (proof,) = prove_reduced(fmt, ways)
    assert proof.mismatches == 0 and proof.inputs == len(reduced_inputs(2))
