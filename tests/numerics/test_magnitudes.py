"""The short ways of the codec give what the general one gives, and are taken where they may be."""

import itertools

import jax.numpy as jnp
import pytest

from lowprec.numerics import Format, float32, get_format, magnitudes
from lowprec.numerics.codec import decode_bits, encode_bits, encode_number, round_bits
from lowprec.numerics.rounding import OVERFLOWS, ROUNDINGS, is_stochastic
from tests.helpers import FORMATS, SIZE, assert_bits_equal, each_of, edges, floats, sized

pytestmark = pytest.mark.slow

DETERMINISTIC = [mode for mode in ROUNDINGS if not is_stochastic(mode)]
SERVED = [fmt for fmt in FORMATS if magnitudes.serves(fmt, "nearest_even")]
IN_PLACE = [fmt for fmt in SERVED if fmt.signed and fmt.encoding == "sign_magnitude"]


def test_which_formats_are_served() -> None:
    served = {fmt.name for fmt in SERVED}
    assert served >= {"float8_e4m3fn", "float4_e2m1fn", "int8", "ue4m3", "float16", "binary8p4se"}
    # Their units are near float32's smallest, beyond its range, in a table, or without a zero.
    assert not served & {"bfloat16", "float32", "e8m13", "binary15p2sf", "hif8", "float8_e8m0fnu"}
    assert not magnitudes.serves(get_format("float8_e4m3fn"), "stochastic")


@each_of(SERVED)
def test_codes_are_those_of_the_general_way(fmt: Format) -> None:
    bits = jnp.asarray(sized(edges(fmt), 4 * SIZE))
    for rounding, overflow in itertools.product(DETERMINISTIC, OVERFLOWS):
        short = encode_bits(bits, fmt, rounding, overflow)
        general = encode_number(float32.number(bits), fmt, rounding, overflow)
        assert_bits_equal(short, general, fmt=fmt, inputs=floats(bits))


@pytest.mark.parametrize("nan_code", [None, 3])
@each_of(IN_PLACE)
def test_values_are_those_of_the_codes(fmt: Format, nan_code: int | None) -> None:
    bits = jnp.asarray(sized(edges(fmt), 4 * SIZE))
    for rounding, overflow in itertools.product(DETERMINISTIC, OVERFLOWS):
        got = round_bits(bits, fmt, rounding, overflow, nan_code)
        codes = encode_bits(bits, fmt, rounding, overflow, nan_code=nan_code)
        want = decode_bits(codes.astype(jnp.uint32), fmt)
        assert_bits_equal(floats(got), floats(want), inputs=floats(bits))
