"""Families of formats: what of an input decides its code, and the proof over that alone.

A code of M mantissa bits depends on the sign, the exponent, the leading one with the M + 1 bits
after it, and on whether any bit below is set. So does that of a table whose values have M bits.
`leading_bits_decide` shows so over all 2^32 inputs; `prove_reduced` then needs one input of each
kind, which makes whole families affordable.
"""

import math
import time
from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from lowprec.numerics.codec import encode_bits
from lowprec.numerics.format import Format
from lowprec.study.proof import Encode, Proof, Way, exact_codes, exact_steps
from lowprec.study.steps import SIGN

_PART = 1 << 18
_RUN = 1 << 14


def collapse(bits: jax.Array, kept: int) -> jax.Array:
    """Float32 patterns with all below the leading one and `kept` bits gathered in the last bit.

    Args:
      bits: uint32, any shape.
      kept: from 0 to 22.

    Example:
      >>> [hex(x) for x in collapse(jnp.array([0x3F810000, 0x3F810001], jnp.uint32), 7).tolist()]
      ['0x3f810000', '0x3f810001']
    """
    magnitude = bits & np.uint32(SIGN - 1)
    normal = magnitude >= np.uint32(1 << 23)
    leading = jnp.where(normal, 23, 31 - lax.clz(magnitude).astype(jnp.int32))
    low = jnp.maximum(leading - kept, 0).astype(jnp.uint32)
    top = (bits >> low) << low
    return top | (top != bits).astype(jnp.uint32)


def reduced_inputs(kept: int) -> NDArray[np.uint32]:
    """What `collapse` leaves: every pattern of `kept` bits, with and without a bit below."""
    fields = np.arange(256, dtype=np.uint32)[:, None, None] << np.uint32(23)
    tops = np.arange(1 << kept, dtype=np.uint32)[:, None] << np.uint32(23 - kept)
    sticky = np.arange(2, dtype=np.uint32)
    normal = (fields[1:] | tops | sticky).ravel()
    few = np.arange(1 << (kept + 1), dtype=np.uint32)
    one = few[1 << kept :, None]
    subnormal = [((one << np.uint32(p)) | sticky).ravel() for p in range(1, 23 - kept)]
    magnitudes = np.concatenate([few, *subnormal, normal])
    return np.concatenate([magnitudes, magnitudes | np.uint32(SIGN)])


def _mantissa_bits(fmt: Format) -> int:
    """Bits after the leading one that some value has."""
    if fmt.table is None:
        return fmt.mantissa_bits
    finite = [abs(Fraction(x).numerator) for x in fmt.table if math.isfinite(x) and x]
    # An odd numerator over a power of two; of an even one the last zeros do not count.
    return max((n // (n & -n)).bit_length() - 1 for n in finite)


def prove_reduced(fmt: Format, ways: Sequence[Way], *, encode: Encode = encode_bits) -> list[Proof]:
    """As `prove`, over one input of every kind that a format of M mantissa bits can tell apart."""
    start = time.perf_counter()
    bits = reduced_inputs(_mantissa_bits(fmt) + 1)
    wrong = np.zeros(len(ways), np.int64)

    @jax.jit
    def codes(bits: jax.Array) -> list[jax.Array]:
        return [encode(bits, fmt, rounding, overflow) for rounding, overflow in ways]

    tables = exact_steps(fmt, ways)
    size = min(_PART, len(bits))
    for first in range(0, len(bits), size):
        part = bits[first : first + size]
        got = codes(np.resize(part, size))
        wanted = exact_codes(tables, part)
        wrong += [np.sum(np.asarray(x)[: len(part)] != y) for x, y in zip(got, wanted, strict=True)]
    seconds = time.perf_counter() - start
    return [
        Proof(
            format=fmt.name,
            bits=fmt.bits,
            rounding=rounding,
            overflow=overflow,
            inputs=len(bits),
            thresholds=0,
            mismatches=int(wrong[index]),
            asked=0,
            disagreements=0,
            seconds=seconds,
        )
        for index, (rounding, overflow) in enumerate(ways)
    ]


def leading_bits_decide(
    fmt: Format, ways: Sequence[Way], *, encode: Encode = encode_bits
) -> list[bool]:
    """For each way, whether all 2^32 inputs have the code of their `collapse`."""
    kept, offsets = _mantissa_bits(fmt) + 1, np.arange(_RUN, dtype=np.uint32)

    @jax.jit
    def sweep() -> jax.Array:
        def turn(index: jax.Array, found: jax.Array) -> jax.Array:
            bits = jnp.asarray(offsets) + index.astype(jnp.uint32) * np.uint32(_RUN)
            short = collapse(bits, kept)
            mask = jnp.zeros(_RUN, jnp.uint32)
            for place, (rounding, overflow) in enumerate(ways):
                whole = encode(bits, fmt, rounding, overflow)
                differs = whole != encode(short, fmt, rounding, overflow)
                mask |= differs.astype(jnp.uint32) << place
            return found | lax.reduce(mask, np.uint32(0), lax.bitwise_or, (0,))

        return lax.fori_loop(0, (1 << 32) // _RUN, turn, jnp.uint32(0))

    found = int(sweep())
    return [not found >> place & 1 for place in range(len(ways))]
