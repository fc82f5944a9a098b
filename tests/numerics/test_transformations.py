"""One set of bits, eager and under `jit`, `vmap`, `scan` and other compiler options."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.numerics import Format, decode, encode, pack, unpack
from lowprec.numerics.codec import decode_bits
from tests.helpers import (
    FORMATS,
    SIZE,
    STRICT,
    STRICT_SLOW,
    assert_bits_equal,
    each_of,
    edges,
    encoded,
    floats,
    random_words,
    sized,
)

ROWS = 8
SHAPE = (ROWS, SIZE // ROWS)
SOME = tuple(
    fmt
    for fmt in FORMATS
    if fmt.name in ("float8_e4m3fn", "float4_e2m1fn", "float8_e8m0fnu", "int8")
)

every_format = each_of(FORMATS)
some_formats = pytest.mark.parametrize("fmt", SOME, ids=[fmt.name for fmt in SOME])
Outputs = tuple[jax.Array, ...]


def inputs(fmt: Format) -> tuple[jax.Array, jax.Array]:
    bits = sized(edges(fmt), SIZE).reshape(SHAPE)
    return jnp.asarray(floats(bits)), jnp.asarray(random_words(SIZE).reshape(SHAPE))


def everything(fmt: Format) -> Callable[[jax.Array, jax.Array], Outputs]:
    """One row through `encode`, `pack`, `unpack` and `decode`."""

    def run(x: jax.Array, words: jax.Array) -> Outputs:
        codes = []
        for rounding in ("nearest_even", "stochastic"):
            random: dict[str, Any] = {"random_bits": words} if rounding == "stochastic" else {}
            codes.append(encode(x, fmt, rounding=rounding, overflow="nonsaturating", **random))
        packed = pack(codes[0], fmt)
        back = unpack(packed, fmt, x.shape[-1])
        return *codes, packed, back, decode(back, fmt), decode(back, fmt, dtype=jnp.bfloat16)

    return run


def by_scan(run: Callable[..., Outputs]) -> Callable[..., Outputs]:
    def scanned(x: jax.Array, words: jax.Array) -> Outputs:
        return jax.lax.scan(lambda carry, row: (carry, run(*row)), 0, (x, words))[1]

    return scanned


TRANSFORMS: dict[str, Callable[..., Callable[..., Outputs]]] = {
    "jit": jax.jit,
    "strict": lambda run: jax.jit(run, compiler_options=STRICT),
    "strict_slow": lambda run: jax.jit(run, compiler_options=STRICT_SLOW),
    "vmap": jax.vmap,
    "scan": by_scan,
}
QUICK = {
    "float8_e4m3fn": tuple(TRANSFORMS),
    "float4_e2m1fn": ("jit",),
    "float8_e8m0fnu": ("strict",),
    "int8": ("vmap",),
}
"""The fast tests' transformations: all of one format, and one of each other."""


@pytest.mark.parametrize(
    ("fmt", "transform"),
    [
        pytest.param(
            fmt,
            name,
            marks=[pytest.mark.slow] * (name not in QUICK[fmt.name]),
            id=f"{fmt.name}-{name}",
        )
        for fmt in SOME
        for name in TRANSFORMS
    ],
)
def test_one_set_of_bits(fmt: Format, transform: str) -> None:
    x, words = inputs(fmt)
    wanted, got = everything(fmt)(x, words), TRANSFORMS[transform](everything(fmt))(x, words)
    for want, result in zip(wanted, got, strict=True):
        assert_bits_equal(result, want)
        assert result.dtype == want.dtype


@every_format
def test_compiled_as_a_whole_or_operation_by_operation(fmt: Format) -> None:
    """What lets the oracle tests run `encode_bits` uncompiled: `encode` gives the same."""
    x, words = inputs(fmt)
    bits = np.asarray(x).ravel().view(np.uint32)
    got = encode(x, fmt, rounding="stochastic", random_bits=words)
    parts = encoded(bits, fmt, "stochastic", "saturate", np.ravel(words))
    assert_bits_equal(got, parts.reshape(SHAPE), fmt=fmt, inputs=x)
    codes = (words & np.uint32(fmt.code_mask)).astype(fmt.code_dtype)
    assert_bits_equal(
        decode(codes, fmt), np.asarray(decode_bits(codes.astype(jnp.uint32), fmt)).view("f4")
    )


@some_formats
def test_a_rounding_survives_widening(fmt: Format) -> None:
    """The round trip through the format inside one compilation, with arithmetic after it."""
    x, _ = inputs(fmt)

    def trip(x: jax.Array) -> jax.Array:
        return decode(encode(x, fmt), fmt, dtype=jnp.bfloat16).astype(jnp.float32) * 2

    want = decode(encode(x, fmt), fmt, dtype=jnp.bfloat16).astype(jnp.float32) * 2
    assert_bits_equal(jax.jit(trip)(x), want)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1), (2, 3, 5)])
def test_shapes(shape: tuple[int, ...]) -> None:
    x = jnp.full(shape, 1.5, jnp.float32)
    codes = encode(x, "float8_e4m3fn")
    assert codes.shape == shape and codes.dtype == jnp.uint8
    assert_bits_equal(decode(codes, "float8_e4m3fn"), x)
