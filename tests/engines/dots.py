"""Many dots of one engine by `matmul` and by the oracle, over operands that look for trouble."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.engines import Engine, matmul
from lowprec.engines.oracle import dot
from lowprec.numerics import Format, decode, encode, get_format
from tests.helpers import UInts

KINDS = ("normal", "zeros", "tiny", "wide", "cancelling", "bits")
FLOAT32 = get_format("float32")


class Dots(NamedTuple):
    """N dots of length K: codes of the operands and their scales, and bits of c."""

    a: UInts
    b: UInts
    c: UInts
    scales: tuple[UInts, UInts] | None


def draw(
    engine: Engine, formats: tuple[Format, Format], scale: Format | None, kind: str, seed: int
) -> Dots:
    """24 dots of two instructions and a bit, of one kind of operands."""
    rng, count = np.random.default_rng(seed), 24
    depth = 2 * (engine.instruction_length or 8) + 3
    a, b = (_codes(fmt, kind, rng, (count, depth)) for fmt in formats)
    if kind == "cancelling":
        half = depth // 2
        b[:, half : 2 * half] = b[:, :half]
        a[:, half : 2 * half] = _negated(a[:, :half], formats[0])
    scales = None
    if scale is not None and engine.scale_block is not None:
        shape = count, -(-depth // engine.scale_block)
        ends = (0, 2**scale.bits) if kind in ("bits", "zeros") or scale.bits < 8 else (110, 140)
        first, second = (rng.integers(*ends, shape).astype(np.uint8) for _ in "ab")
        scales = first, second
    return Dots(a, b, _accumulators(kind, rng, count), scales)


def _codes(fmt: Format, kind: str, rng: np.random.Generator, shape: tuple[int, int]) -> UInts:
    wide = fmt.bits == 32 or fmt.name == "tensorfloat32"
    if kind == "bits":
        top = 2**32 if wide else 2**fmt.bits
        return rng.integers(0, top, shape, dtype=np.uint64).astype(np.uint32)
    x = rng.standard_normal(shape)
    smallest = fmt.min_subnormal or fmt.min_normal or 1.0
    x = x * 8 * smallest if kind == "tiny" else x
    x = x * np.exp2(rng.integers(-6, 7, shape)) if kind == "wide" else x
    x = np.where(rng.random(shape) < 0.7, 0.0 * x, x) if kind == "zeros" else x
    values = x.astype(np.float32)
    return values.view(np.uint32) if wide else np.asarray(encode(values, fmt)).astype(np.uint32)


def _negated(codes: UInts, fmt: Format) -> UInts:
    wide = fmt.bits == 32 or fmt.name == "tensorfloat32"
    return codes ^ np.uint32(0x80000000 if wide else fmt.sign_mask)


def _accumulators(kind: str, rng: np.random.Generator, count: int) -> UInts:
    if kind == "bits":
        return rng.integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)
    x = rng.standard_normal(count) * np.exp2(rng.integers(-20, 12, count))
    x = x * 2.0**-125 if kind == "tiny" else x
    x = x * (rng.random(count) < 0.5)
    return x.astype(np.float32).view(np.uint32)


def values(codes: UInts, fmt: Format) -> NDArray[np.float32]:
    if fmt.bits == 32 or fmt.name == "tensorfloat32":
        return codes.view(np.float32)
    return np.asarray(decode(jnp.asarray(codes.astype(fmt.code_dtype)), fmt))


def by_matmul(
    engine: Engine, formats: tuple[Format, Format], scale: Format | None, dots: Dots
) -> UInts:
    """float32 bits of every dot; a float16 result is widened, its NaN too."""
    given: dict[str, Any] = {}
    if engine.inputs:
        given |= {"a_format": formats[0], "b_format": formats[1]}
    if dots.scales is not None and scale is not None:
        first, second = (x if scale.dtype is None else x.view(scale.dtype) for x in dots.scales)
        given |= {"a_scale": first[:, None, :], "b_scale": second[:, :, None]}
    left, right = values(dots.a, formats[0]), values(dots.b, formats[1])
    c = dots.c.view(np.float32)[:, None, None]
    out = matmul(left[:, None, :], right[:, :, None], c, engine=engine, **given)
    got = np.asarray(out).ravel()
    if got.dtype == np.float32:
        return got.view(np.uint32)
    payload = (got.view(np.uint16) & 0x3FF).astype(np.uint32) << 13
    return np.where(np.isnan(got), 0x7F800000 | payload, got.astype(np.float32).view(np.uint32))


def by_oracle(
    engine: Engine, formats: tuple[Format, Format], scale: Format | None, dots: Dots
) -> UInts:
    read = [FLOAT32 if fmt.name == "tensorfloat32" else fmt for fmt in formats]
    scales = dots.scales or (np.zeros((len(dots.c), 0), int),) * 2
    rows = zip(dots.a, dots.b, dots.c, *scales, strict=True)
    found = [
        dot(
            engine,
            a.tolist(),
            b.tolist(),
            int(c),
            a_format=read[0],
            b_format=read[1],
            a_scales=first.tolist(),
            b_scales=second.tolist(),
            scale_format=scale,
        )
        for a, b, c, first, second in rows
    ]
    return np.array(found, np.uint32)
