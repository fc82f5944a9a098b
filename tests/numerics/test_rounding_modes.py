"""The rounding modes and overflow policies against tables written out by hand."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.numerics import encode, get_format, oracle
from lowprec.numerics.rounding import (
    OVERFLOWS,
    ROUNDINGS,
    STOCHASTIC,
    check_choice,
    is_stochastic,
)
from tests.helpers import as_bits, encoded

# E2M1: codes 0 to 7 are 0, 0.5, 1, 1.5, 2, 3, 4, 6.
E2M1_INPUTS = (0.25, 0.5, 0.6, 0.75, 1.25, 1.4, 2.5, 3.5, 4.9, 5.0, 5.1)
E2M1_CODES = {
    "nearest_even": (0, 1, 1, 2, 2, 3, 4, 6, 6, 6, 7),
    "nearest_away": (1, 1, 1, 2, 3, 3, 5, 6, 6, 7, 7),
    "nearest_toward_zero": (0, 1, 1, 1, 2, 3, 4, 5, 6, 6, 7),
    "toward_zero": (0, 1, 1, 1, 2, 2, 4, 5, 6, 6, 6),
    "toward_positive": (1, 1, 2, 2, 3, 3, 5, 6, 7, 7, 7),
    "toward_negative": (0, 1, 1, 1, 2, 2, 4, 5, 6, 6, 6),
    "to_odd": (1, 1, 1, 1, 3, 3, 5, 5, 7, 7, 7),
}
MIRRORED = {"toward_positive": "toward_negative", "toward_negative": "toward_positive"}


def codes(x: Any, name: str, rounding: Any, overflow: Any = "saturate", **kwargs: Any) -> list[int]:
    values = jnp.asarray(x, jnp.float32)
    return np.asarray(encode(values, name, rounding=rounding, overflow=overflow, **kwargs)).tolist()


def test_the_names() -> None:
    assert set(E2M1_CODES) | set(STOCHASTIC) == set(ROUNDINGS)
    assert OVERFLOWS == ("saturate", "saturate_finite", "nonsaturating")


@pytest.mark.parametrize("rounding", E2M1_CODES)
def test_e2m1_table(rounding: str) -> None:
    assert tuple(codes(E2M1_INPUTS, "float4_e2m1fn", rounding)) == E2M1_CODES[rounding]
    negated = codes([-x for x in E2M1_INPUTS], "float4_e2m1fn", MIRRORED.get(rounding, rounding))
    assert tuple(code - 8 for code in negated) == E2M1_CODES[rounding]


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("nearest_even", (0, 2, 2, -2, -2)),
        ("nearest_away", (1, 2, 3, -2, -3)),
        ("nearest_toward_zero", (0, 1, 2, -1, -2)),
        ("toward_zero", (0, 1, 2, -1, -2)),
        ("toward_positive", (1, 2, 3, -1, -2)),
        ("toward_negative", (0, 1, 2, -2, -3)),
        ("to_odd", (1, 1, 3, -1, -3)),
    ],
)
def test_integers(rounding: str, expected: tuple[int, ...]) -> None:
    got = codes([0.5, 1.5, 2.5, -1.5, -2.5], "int8", rounding)
    assert tuple((code + 128) % 256 - 128 for code in got) == expected


def test_a_tie_without_mantissa_bits_goes_to_the_even_code() -> None:
    # 2^k has the code k + 127: 1.5 lies between 127 and 128, 3 between 128 and 129.
    assert codes([1.5, 3.0, 6.0], "float8_e8m0fnu", "nearest_even") == [128, 128, 130]
    assert codes([1.5, 3.0, 6.0], "float8_e8m0fnu", "nearest_away") == [128, 129, 130]
    assert codes([1.5, 3.0, 6.0], "float8_e8m0fnu", "nearest_toward_zero") == [127, 128, 129]


MAX, INF, NAN = "max", "inf", "nan"
NONSATURATING = {
    # Of a finite overflow and of Inf, above zero and below.
    "nearest_even": (INF, INF, INF, INF),
    "nearest_away": (INF, INF, INF, INF),
    "nearest_toward_zero": (INF, INF, INF, INF),
    "toward_zero": (MAX, INF, MAX, INF),
    "toward_positive": (INF, INF, MAX, INF),
    "toward_negative": (MAX, INF, INF, INF),
    "to_odd": (MAX, INF, MAX, INF),
    **dict.fromkeys(STOCHASTIC, (INF, INF, INF, INF)),
}


@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", ["float8_e5m2", "float8_e4m3fn", "float6_e2m3fn"])
def test_overflow_table(name: str, rounding: str, overflow: str) -> None:
    fmt = get_format(name)
    wanted = {
        "saturate": (MAX,) * 4,
        "saturate_finite": (MAX, INF, MAX, INF) if fmt.has_inf else (MAX,) * 4,
        "nonsaturating": NONSATURATING[rounding],
    }[overflow]
    words = np.zeros(4, np.uint32) if is_stochastic(rounding) else None
    x = np.array([1e30, math.inf, -1e30, -math.inf], np.float32)
    got = encoded(as_bits(x), fmt, rounding, overflow, words).tolist()
    special = fmt.infinity_code if fmt.has_inf else fmt.nan_code
    beyond = fmt.max_code if special is None else special
    expected = [fmt.max_code if word == MAX else beyond for word in wanted]
    assert got == [code | (fmt.sign_mask if i > 1 else 0) for i, code in enumerate(expected)]


def test_the_overflow_threshold_is_where_the_next_value_would_round() -> None:
    x = [448.0, 463.99997, 464.0, 464.00003, 480.0]
    assert codes(x, "float8_e4m3fn", "nearest_even", "nonsaturating") == [126] * 3 + [127] * 2
    assert codes(x, "float8_e4m3fn", "nearest_away", "nonsaturating") == [126] * 2 + [127] * 3
    assert codes(x, "float8_e4m3fn", "toward_positive", "nonsaturating") == [126] + [127] * 4
    y = [57344.0, 61439.996, 61440.0]
    assert codes(y, "float8_e5m2", "nearest_even", "nonsaturating") == [0x7B, 0x7B, 0x7C]


def test_stochastic_compares_the_low_bits_of_a_word() -> None:
    # 4.5 is a quarter of the way from 4 to 6: of the words of two bits, the last goes up.
    x, words = np.full(8, 4.5, np.float32), np.arange(8, dtype=np.uint32)
    got = codes(x, "float4_e2m1fn", "stochastic", random_bits=words, random_bit_count=2)
    assert got == [6, 6, 6, 7] * 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_all_bits_of_a_word_count_by_default(dtype: type) -> None:
    top = np.iinfo(dtype).max
    words = np.array([0, top // 2, top // 2 + 1, top], dtype)
    got = codes(np.full(4, 5.0, np.float32), "float4_e2m1fn", "stochastic", random_bits=words)
    assert got == [6, 6, 7, 7]


@pytest.mark.parametrize(
    ("rounding", "counts"),
    # How many of eight words take x = 1 + (k + 1/2) / 8 steps away from zero, k = 0, 1, ... 7.
    [
        ("stochastic", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("stochastic_fast", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("stochastic_corrected", [0, 2, 2, 4, 4, 6, 6, 8]),
        ("stochastic_odd", [1, 1, 3, 3, 5, 5, 7, 7]),
    ],
)
def test_ties_between_words(rounding: Any, counts: list[int]) -> None:
    words = np.arange(8, dtype=np.uint32)
    for k, count in enumerate(counts):
        x = 1 + (2 * k + 1) / 128
        got = codes(
            np.full(8, x, np.float32),
            "float8_e4m3fn",
            rounding,
            random_bits=words,
            random_bit_count=3,
        )
        want = [
            oracle.encode(
                x, "float8_e4m3fn", rounding=rounding, overflow="saturate", word=int(w), word_bits=3
            )
            for w in words
        ]
        assert got == want
        assert sum(code - 0x38 for code in got) == count


def test_an_unknown_choice_is_told_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="`rounding` = 'up'; use one of nearest_even, nearest_away"
    ):
        check_choice("rounding", "up", ROUNDINGS)
