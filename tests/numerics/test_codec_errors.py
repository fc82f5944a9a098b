"""What a wrong call to `encode` or `decode` is told."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.numerics import decode, encode
from lowprec.scaling import cast, quantize
from tests.helpers import assert_bits_equal

X = np.ones(3, np.float32)
E4M3 = "float8_e4m3fn"


def u(*shape: int, dtype: Any = np.uint32) -> np.ndarray:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"rounding": "nearest"}, ValueError, "`rounding` = 'nearest'; use one of nearest_even"),
        ({"overflow": "wrap"}, ValueError, "`overflow` = 'wrap'; use one of saturate, "),
        ({"rounding": "stochastic"}, ValueError, "needs `random_bits`, an unsigned array"),
        ({"random_bits": u(3)}, ValueError, "one of its variants, got 'nearest_even'"),
        ({"random_bit_count": 3}, ValueError, "need rounding='stochastic'"),
        (
            {"rounding": "stochastic", "random_bits": u(3, dtype=np.int32)},
            TypeError,
            "`random_bits` must be an unsigned integer array, got int32",
        ),
        (
            {"rounding": "stochastic", "random_bits": u(2)},
            ValueError,
            "`random_bits` has shape (2,); x has shape (3,)",
        ),
        (
            {"rounding": "stochastic", "random_bits": u(3, dtype=np.uint8), "random_bit_count": 9},
            ValueError,
            "`random_bit_count` = 9; use 1 to 8 (uint8)",
        ),
        (
            {"rounding": "stochastic", "random_bits": u(3), "random_bit_count": 0},
            ValueError,
            "`random_bit_count` = 0; use 1 to 32",
        ),
        ({"nan_code": 256}, ValueError, "`nan_code` = 256; float8_e4m3fn has the codes 0 to 255"),
        ({"nan_code": -1}, ValueError, "`nan_code` = -1"),
        (
            {"nan_code": 3.7},
            TypeError,
            "`nan_code` must be an integer, got 3.7 (float); use an int",
        ),
        ({"nan_code": True}, TypeError, "`nan_code` must be an integer, got True"),
        (
            {"rounding": "stochastic", "random_bits": u(3), "random_bit_count": 8.0},
            TypeError,
            "`random_bit_count` must be an integer, got 8.0 (float); use an int",
        ),
    ],
)
def test_encode(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        encode(X, E4M3, **kwargs)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint8, np.bool_])
def test_encode_takes_three_types(dtype: type) -> None:
    message = f"`x` must be float32, bfloat16 or float16, got {np.dtype(dtype).name}"
    with pytest.raises(TypeError, match=message):
        encode(X.astype(dtype), E4M3)


def test_encode_refuses_float8_input() -> None:
    with pytest.raises(TypeError, match="got float8_e5m2; convert it first"):
        encode(jnp.ones(3, jnp.float8_e5m2), E4M3)


def test_encode_takes_python_floats_but_no_integers() -> None:
    floats: Any = [1.0, 0.3, -1000.0]
    integers: Any = [1, 2]
    assert np.asarray(encode(floats, E4M3)).tolist() == [56, 42, 254]
    assert np.asarray(encode(1.0, E4M3)).tolist() == 56
    with pytest.raises(TypeError, match="`x` must be float32"):
        encode(integers, E4M3)


def test_python_floats_are_rounded_once() -> None:
    """Just above a tie that float32 rounds to."""
    tie = 1.0625 + 2.0**-30
    assert np.asarray(encode(tie, E4M3)).tolist() == 56
    with jax.enable_x64(True):
        given: list[Any] = [tie, [tie], np.float64(tie), np.array([tie])]
        for x in given:
            assert np.asarray(encode(x, E4M3)).ravel().tolist() == [57]
        assert cast(tie, E4M3) == 1.125 and cast(tie, E4M3).dtype == np.float64
        assert quantize([[tie]], "mxfp8_e4m3").codes.tolist() == [[0x78]]  # type: ignore[arg-type] - a list is what a user may pass


def test_random_words_of_64_bits_count_32_by_default() -> None:
    words = np.array([2**31 - 1, 2**31, 2**63 + 2**31], np.uint64)
    x = np.full(3, 1.0625, np.float32)
    with jax.enable_x64(True):
        codes = encode(x, E4M3, rounding="stochastic", random_bits=words)
        narrow = words.astype(np.uint32)
        assert_bits_equal(codes, encode(x, E4M3, rounding="stochastic", random_bits=narrow))
        assert codes.tolist() == [56, 57, 57]
        with pytest.raises(ValueError, match="use 1 to 32"):
            encode(x, E4M3, rounding="stochastic", random_bits=words, random_bit_count=33)


def test_an_unknown_format() -> None:
    with pytest.raises(ValueError, match="no element is named 'float8_e4m3x'; did you mean"):
        encode(X, "float8_e4m3x")


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_decode_codes(dtype: type) -> None:
    message = f"`codes` must be an unsigned integer array, got {np.dtype(dtype).name}"
    with pytest.raises(TypeError, match=message):
        decode(X.astype(dtype), E4M3)


def test_decode_dtype() -> None:
    message = "`dtype` must be float32, bfloat16 or float16, got int32"
    with pytest.raises(TypeError, match=message):
        decode(u(3, dtype=np.uint8), E4M3, dtype=jnp.int32)


@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd, lambda f: jax.jit(jax.grad(f))])
def test_a_gradient_is_refused(transform: Any) -> None:
    def loss(x: jax.Array) -> jax.Array:
        return decode(encode(x, E4M3), E4M3).sum()

    with pytest.raises(ValueError, match=r"`encode` has no gradient: .*lowprec\.cast"):
        transform(loss)(jnp.ones(3))


def test_a_stopped_gradient_passes() -> None:
    def loss(x: jax.Array) -> jax.Array:
        return (x * decode(encode(jax.lax.stop_gradient(x), E4M3), E4M3)).sum()

    assert np.asarray(jax.grad(loss)(jnp.full(3, 2.0))).tolist() == [2.0] * 3
