"""Bit equality with ml_dtypes and NumPy, over every code and every 16-bit input."""

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest

from lowprec.numerics import Format, decode, encode, oracle
from tests.helpers import FORMATS, assert_bits_equal

PEERS = [fmt for fmt in FORMATS if fmt.dtype is not None and fmt.exponent_bits]
E8M0 = "float8_e8m0fnu"
ROUNDED = [fmt for fmt in PEERS if fmt.name != E8M0]
SOURCES = (ml_dtypes.bfloat16, np.float16)

each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda dtype: np.dtype(dtype).name)


@pytest.fixture(autouse=True)
def quiet_invalid() -> Iterator[None]:
    """Every pattern is an input here, signalling NaNs too."""
    with np.errstate(all="ignore"):
        yield


def peer(fmt: Format) -> np.dtype:
    assert fmt.dtype is not None
    return fmt.dtype


def every_input(source: type) -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(source)


def cast(x: np.ndarray, fmt: Format) -> np.ndarray:
    """The peer's codes."""
    return x.astype(peer(fmt)).view(fmt.code_dtype)


def test_the_peers_are_those_of_the_catalogue() -> None:
    names = {fmt.name for fmt in PEERS}
    assert names >= {"float8_e4m3fn", "float8_e5m2", "float6_e2m3fn", "float4_e2m1fn", E8M0}


@each_source
@pytest.mark.parametrize("fmt", ROUNDED, ids=lambda fmt: fmt.name)
def test_every_input(fmt: Format, source: type) -> None:
    x = every_input(source)
    got, want = np.asarray(encode(x, fmt, overflow="nonsaturating")), cast(x, fmt)
    numbers = ~np.isnan(x)
    assert_bits_equal(got[numbers], want[numbers], fmt=fmt, inputs=x[numbers])
    if fmt.has_nan:
        assert np.isnan(want[~numbers].view(peer(fmt))).all()
        assert np.isnan(got[~numbers].view(peer(fmt))).all()
        signs = np.signbit(x[~numbers]) | (fmt.nan == "negative_zero")
        np.testing.assert_array_equal((got[~numbers] & fmt.sign_mask) != 0, signs)


@each_source
@pytest.mark.parametrize("fmt", [fmt for fmt in PEERS if not fmt.has_nan], ids=lambda fmt: fmt.name)
def test_nan_where_there_is_none(fmt: Format, source: type) -> None:
    x = every_input(source)
    x = x[np.isnan(x)]
    want = [
        oracle.encode(float(value), fmt, rounding="nearest_even", overflow="nonsaturating")
        for value in x.astype(np.float32)
    ]
    got = encode(x, fmt, overflow="nonsaturating")
    assert_bits_equal(got, np.array(want, fmt.code_dtype), fmt=fmt, inputs=x)
    assert_bits_equal(got, cast(x, fmt), fmt=fmt, inputs=x)


@pytest.mark.parametrize("fmt", PEERS, ids=lambda fmt: fmt.name)
def test_every_code(fmt: Format) -> None:
    if fmt.bits > 16:
        codes = np.arange(0, 1 << 32, 65521, dtype=np.uint64).astype(np.uint32)
    else:
        codes = np.arange(1 << fmt.bits).astype(fmt.code_dtype)
    want = codes.view(peer(fmt)).astype(np.float32)
    got = np.asarray(decode(codes, fmt))
    numbers = ~np.isnan(want)
    assert_bits_equal(got[numbers], want[numbers], inputs=codes[numbers])
    assert np.isnan(got[~numbers]).all()


@pytest.mark.parametrize(
    "fmt", [fmt for fmt in ROUNDED if fmt.bits <= 16], ids=lambda fmt: fmt.name
)
def test_values_attribute(fmt: Format) -> None:
    codes = np.arange(1 << fmt.bits).astype(fmt.code_dtype)
    want = codes.view(peer(fmt)).astype(np.float64)
    assert fmt.values is not None
    np.testing.assert_array_equal(np.isnan(fmt.values), np.isnan(want))
    numbers = ~np.isnan(want)
    assert_bits_equal(fmt.values[numbers], want[numbers])


@pytest.mark.parametrize(
    ("source", "ties", "below_normal"),
    [(ml_dtypes.bfloat16, 128, 31), (np.float16, 20, 0)],
    ids=["bfloat16", "float16"],
)
def test_where_e8m0_differs(source: type, ties: int, below_normal: int) -> None:
    """For three reasons, each of a known number of inputs.

    E8M0 has no zero: ml_dtypes makes 0 and -0 NaN, lowprec the smallest value, 2^-127. A tie,
    1.5 * 2^k, goes to the even code here and always up there, so every other one differs, among
    them 1.5 * 2^127, which there overflows to NaN. And ml_dtypes rounds all of
    (2^-127, 1.5 * 2^-127) up to 2^-126, where the nearest value is 2^-127.
    """
    x = every_input(source)
    got = np.asarray(encode(x, E8M0, overflow="nonsaturating"))
    want = x.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)
    values = x.astype(np.float64)
    zero = (got != want) & (values == 0)
    tie = (got != want) & (np.frexp(values)[0] == 0.75)
    low = (got != want) & (values > 2.0**-127) & (values < 1.5 * 2.0**-127)
    assert (zero.sum(), tie.sum(), low.sum()) == (2, ties, below_normal)
    np.testing.assert_array_equal(got != want, zero | tie | low)
    assert set(want[zero]) <= {255} and set(got[zero]) <= {0}
    assert set(want[low]) <= {1} and set(got[low]) <= {0}
    np.testing.assert_array_equal(want[tie], got[tie] + 1)
    exact = [
        oracle.encode(value, E8M0, rounding="nearest_even", overflow="nonsaturating")
        for value in values[got != want].tolist()
    ]
    assert got[got != want].tolist() == exact
