"""The packed stream against one big Python integer: code j occupies bits [j*b, (j+1)*b)."""

from typing import Any

import jax
import numpy as np
import pytest

from lowprec.numerics import Format, pack, unpack
from lowprec.numerics.packing import packed_bytes
from tests.helpers import FORMATS, assert_bits_equal, random_words

# One format of every width there is.
WIDTHS = sorted({fmt.bits: fmt for fmt in reversed(FORMATS)}.items())
SIZES = (0, 1, 3, 8, 33)
"""Of the codes in a row: none, less than a byte or a word, whole bytes, and some over."""

STREAMS = [
    pytest.param(
        fmt, size, marks=[pytest.mark.slow] * (bits != 6 and size != SIZES[-1]), id=f"{size}-{bits}"
    )
    for size in SIZES
    for bits, fmt in WIDTHS
]
"""Every width and size; the fast tests have every width, and every size of one width."""

each_width = pytest.mark.parametrize(
    "fmt", [fmt for _, fmt in WIDTHS], ids=[f"{b}" for b, _ in WIDTHS]
)


# Compiled as a whole: operation by operation, a new shape takes ten times as long.
packed_by_jit = jax.jit(pack, static_argnames="fmt")
unpacked_by_jit = jax.jit(unpack, static_argnames=("fmt", "size"))


def codes_of(fmt: Format, *shape: int) -> np.ndarray:
    words = random_words(int(np.prod(shape)), fmt.bits).reshape(shape)
    return (words & np.uint32(fmt.code_mask)).astype(fmt.code_dtype)


def stream(codes: list[int], bits: int) -> list[int]:
    number = sum(code << (position * bits) for position, code in enumerate(codes))
    return list(number.to_bytes(packed_bytes(len(codes), bits), "little"))


def test_the_widths() -> None:
    assert {4, 5, 6, 7, 8, 16, 19, 32} <= {bits for bits, _ in WIDTHS}


@pytest.mark.parametrize(("fmt", "size"), STREAMS)
def test_little_endian_stream(fmt: Format, size: int) -> None:
    codes = codes_of(fmt, 2, size)
    want = np.array([stream(row.tolist(), fmt.bits) for row in codes], np.uint8)
    packed = packed_by_jit(codes, fmt)
    assert packed.dtype == np.uint8
    assert packed.shape == (2, -(-size * fmt.bits // 8))
    assert_bits_equal(packed, want.reshape(packed.shape))
    back = unpacked_by_jit(packed, fmt, size)
    assert back.dtype == fmt.code_dtype
    assert_bits_equal(back, codes, fmt=fmt)


@each_width
def test_all_ones_and_single_bits(fmt: Format) -> None:
    count = SIZES[-1]
    full = [fmt.code_mask] * count
    single = [1 << (position % fmt.bits) for position in range(count)]
    codes = np.array([full, single], fmt.code_dtype)
    want = np.array([stream(row, fmt.bits) for row in (full, single)], np.uint8)
    assert_bits_equal(packed_by_jit(codes, fmt), want)
    assert_bits_equal(unpacked_by_jit(want, fmt, count), codes)


@each_width
def test_bits_above_the_code_are_ignored(fmt: Format) -> None:
    codes = codes_of(fmt, 2, SIZES[-1]).astype(np.uint32)
    above = np.uint32(0xFFFFFFFF & ~fmt.code_mask)
    assert_bits_equal(packed_by_jit(codes | above, fmt), packed_by_jit(codes, fmt))


def test_bits_after_the_last_code_are_ignored() -> None:
    packed = np.array([0x21, 0xF3], np.uint8)
    assert np.asarray(unpack(packed, "float4_e2m1fn", 3)).tolist() == [1, 2, 3]


def test_order_within_a_byte() -> None:
    # Element 0 is the low nibble, as in OCP MX and CUDA.
    assert np.asarray(pack(np.array([0xA, 0xB], np.uint8), "float4_e2m1fn")).tolist() == [0xBA]
    six = pack(np.array([0x3F, 0, 0, 1], np.uint8), "float6_e3m2fn")
    assert np.asarray(six).tolist() == [0x3F, 0, 0x04]


def test_empty_leading_axis() -> None:
    assert pack(np.zeros((0, 5), np.uint8), "float4_e2m1fn").shape == (0, 3)
    assert unpack(np.zeros((0, 3), np.uint8), "float4_e2m1fn", 5).shape == (0, 5)


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        (np.zeros(3, np.int32), TypeError, "`codes` must be an unsigned integer array, got int32"),
        (np.zeros(3, np.float32), TypeError, "`codes` must be an unsigned integer array"),
        (np.uint8(3), ValueError, "`codes` needs at least one axis"),
    ],
)
def test_pack_errors(codes: np.ndarray, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pack(codes, "float4_e2m1fn")


@pytest.mark.parametrize(
    ("packed", "size", "error", "message"),
    [
        (np.zeros(3, np.uint16), 6, TypeError, "`packed` must be uint8, got uint16"),
        (np.zeros(3, np.int8), 6, TypeError, "`packed` must be an unsigned integer array"),
        (
            np.zeros(3, np.uint8),
            7,
            ValueError,
            "`packed` has 3 bytes .* 7 codes of 4 bits .* need 4",
        ),
        (np.zeros(3, np.uint8), 4, ValueError, "`packed` has 3 bytes .* need 2"),
        (np.uint8(3), 2, ValueError, "`packed` needs at least one axis"),
        (np.zeros(0, np.uint8), -1, ValueError, "`size` = -1; it is the number of codes"),
        (np.zeros(3, np.uint8), 6.0, TypeError, "`size` must be an integer, got 6.0"),
    ],
)
def test_unpack_errors(packed: np.ndarray, size: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        unpack(packed, "float4_e2m1fn", size)
