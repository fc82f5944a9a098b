"""Codes at the border: every code of every type goes through, and other libraries' arrays do."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import lowprec as lp
from lowprec.numerics import dlpack
from tests.helpers import assert_bits_equal

TYPED = [name for name in lp.list_formats() if lp.get_format(name).dtype is not None]
NOT_IN_XLA = ("float6_e2m3fn", "float6_e3m2fn")
"""jnp has the names, and XLA refuses arrays of them."""
BROKEN_IN_XLA = ("int1", "uint1")
"""XLA 0.10 mixes their arrays up with bool."""


def every_code(fmt: lp.Format) -> np.ndarray:
    count = 1 << min(fmt.bits, 16)
    codes = np.arange(count, dtype=np.uint32)
    return (codes if fmt.bits <= 16 else codes * 65537).astype(fmt.code_dtype)


@pytest.mark.parametrize("name", TYPED)
def test_every_code_of_every_type(name: str) -> None:
    fmt = lp.get_format(name)
    codes = every_code(fmt).reshape(2, -1)
    typed = lp.from_codes(codes, fmt)
    assert typed.dtype == fmt.dtype and typed.shape == codes.shape
    assert_bits_equal(lp.to_codes(typed), codes)
    if name not in NOT_IN_XLA + BROKEN_IN_XLA:
        assert_bits_equal(lp.to_codes(jnp.asarray(typed)), codes)
    if fmt.values is not None and fmt.bits <= 8:
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(typed.astype(np.float32).ravel(), fmt.values)


def test_under_jit() -> None:
    codes = np.arange(256, dtype=np.uint8)
    typed = jnp.asarray(lp.from_codes(codes, "float8_e4m3fn"))
    assert_bits_equal(jax.jit(lp.to_codes)(typed), codes)


def test_codes_are_codes_already_and_scalars_have_types() -> None:
    codes = np.arange(3, dtype=np.uint16)
    assert_bits_equal(lp.to_codes(codes), codes)
    assert lp.to_codes(np.float32(1)) == 0x3F800000
    assert lp.to_codes(ml_dtypes.bfloat16(1)) == 0x3F80


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([1.0], r"`x` is a list; pass an array"),
        (np.ones(2), r"`x` is float64, which is no format of the catalogue"),
        (np.ones(2, bool), r"`x` is bool"),
    ],
)
def test_arrays_without_a_format(x: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        lp.to_codes(x)


def test_formats_without_a_type_and_codes_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"has a type for nf4; keep the codes"):
        lp.from_codes(np.zeros(2, np.uint8), "nf4")
    with pytest.raises(TypeError, match=r"unsigned integer array, got int8"):
        lp.from_codes(np.zeros(2, np.int8), "float8_e5m2")


class Foreign:
    """An array of a library that nobody knows, which speaks DLPack."""

    def __init__(self, x: jax.Array | np.ndarray, name: str | None = None) -> None:
        self.x, self.dtype = x, f"foreign.{name or x.dtype.name}"

    def __dlpack__(self, **options: Any) -> Any:
        return self.x.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return getattr(self.x, "__dlpack_device__")()  # noqa: B009 - JAX does not declare it


class Refusing(Foreign):
    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("no such\ndevice")


def test_arrays_of_other_libraries_are_taken_where_floats_are() -> None:
    x = jnp.linspace(-3, 3, 64).reshape(2, 32)
    codes = lp.encode(x, "float8_e4m3fn")
    foreign: Any = Foreign(x)
    assert_bits_equal(lp.encode(foreign, "float8_e4m3fn"), codes)
    assert_bits_equal(lp.from_torch(foreign), x)
    half: Any = Foreign(x.astype(jnp.bfloat16))
    assert lp.from_torch(half).dtype == jnp.bfloat16
    assert_bits_equal(lp.to_codes(half), lp.to_codes(x.astype(jnp.bfloat16)))


def test_memory_is_not_shared() -> None:
    x = np.ones(64, np.float32)
    own = lp.from_torch(Foreign(x))
    x += 1
    np.testing.assert_array_equal(own, 1)


def test_a_type_that_jax_would_narrow_is_refused() -> None:
    wide: Any = Foreign(jnp.ones(2), "float64")
    for call in (lp.from_torch, lambda x: lp.encode(x, "e5m2")):
        with pytest.raises(TypeError, match=r"is float64, which JAX would narrow to float32"):
            call(wide)


def test_what_dlpack_refuses_says_what_works() -> None:
    refusing: Any = Refusing(jnp.ones(2))
    with pytest.raises(TypeError, match=r"`x` of type float32.*\(no such device\).*\.cpu\(\)"):
        lp.encode(refusing, "e5m2")


def test_only_arrays_are_foreign() -> None:
    own = (np.ones(2), jnp.ones(2), np.float32(1), 1.0, [1.0], None)
    assert not any(map(dlpack.is_foreign, own))
    with pytest.raises(TypeError, match=r"`tensor` is a ndarray, not a PyTorch tensor"):
        lp.from_torch(np.ones(2))


def test_without_pytorch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(dlpack.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install \"lowprec\[torch\]\""):
        lp.to_torch(jnp.ones(2))
