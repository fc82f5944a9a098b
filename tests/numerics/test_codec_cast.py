"""A cast in one step gives the bits of encoding and decoding, for every format."""

import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.numerics import Format
from lowprec.numerics.codec import round_to_format
from tests.helpers import (
    FORMATS,
    NOT_FINITE,
    SIZE,
    assert_bits_equal,
    decoded,
    edges,
    encoded,
    floats,
    graded,
    random_words,
    sized,
)

WAYS = (
    ("nearest_even", "saturate"),
    ("nearest_even", "nonsaturating"),
    ("toward_positive", "saturate"),
    ("to_odd", "nonsaturating"),
)
KINDS = ("float8_e4m3fnuz", "float8_e8m0fnu", "table_that_overflows")
"""No code for -0, none for zero, a table; the others are slow."""


@pytest.mark.parametrize(
    "fmt",
    graded(FORMATS, fast=[x for x in FORMATS if x.name in KINDS], name=lambda x: x.name),
)
def test_one_step_is_encode_and_decode(fmt: Format) -> None:
    special = np.array([sign | x for sign in (0, 1 << 31) for x in NOT_FINITE], np.uint32)
    x = np.concatenate([special, random_words(64, 2), sized(edges(fmt), SIZE - 72)])
    for rounding, overflow in WAYS:
        got = round_to_format(jnp.asarray(floats(x)), fmt, rounding, overflow, None, None, None)
        want = decoded(encoded(x, fmt, rounding, overflow), fmt)
        assert_bits_equal(got, floats(want), inputs=floats(x))
        assert len(np.unique(want)) > min(fmt.max_code, 8)
