"""Stochastic rounding's decision: do random bits, added to those of the fraction, carry?"""

import jax
import jax.numpy as jnp
import numpy as np


def carries(
    fraction: jax.Array,
    half: jax.Array,
    rest: jax.Array,
    words: jax.Array,
    word_bits: int,
    rounding: str,
) -> jax.Array:
    """Whether a value is rounded away from zero; `lowprec.numerics.rounding` has the rules.

    Args:
      fraction: the first r = word_bits bits of the fraction, below 2^r.
      half: bool, the bit after them.
      rest: bool, whether any bit after that one is set.
      words: uint32 below 2^r.
    """
    match rounding:
        case "stochastic":
            rounded_up = jnp.zeros_like(half)
        case "stochastic_fast":
            rounded_up = half
        case _:
            odd = (fraction & 1) == 1
            rounded_up = half & (rest | (odd if rounding == "stochastic_corrected" else ~odd))
    # word + fraction + rounded_up >= 2^r, without the carry out of 32 bits.
    room = np.asarray((1 << word_bits) - 1, fraction.dtype) - fraction
    words = words.astype(fraction.dtype)
    return (words > room) | (rounded_up & (words == room))
