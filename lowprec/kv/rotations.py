"""Rotations of a head's numbers by which codes are turned; the same bits everywhere."""

import functools

import jax
import numpy as np

from lowprec.kv.fixed_order import Seed, orthogonal, product
from lowprec.numerics import float32
from lowprec.scaling import transforms


def hadamard(x: jax.Array) -> jax.Array:
    """The Hadamard transform (Sylvester's) of the last axis of float32 over the root of its length.

    It is its own inverse.

    Raises:
      ValueError: the axis is no power of two.

    Example:
      >>> hadamard(jax.numpy.array([1.0, 0.0, 0.0, 0.0])).tolist()
      [0.5, 0.5, 0.5, 0.5]
    """
    dim = x.shape[-1]
    if dim & (dim - 1):
        raise ValueError(
            f"a head's {dim} numbers are no power of two, as a Hadamard rotation needs; use a "
            f"method with another rotation, or with none"
        )
    return _butterflies(x)


# Compiled as a whole also outside a caller's `jit`.
@jax.jit
def _butterflies(x: jax.Array) -> jax.Array:
    return float32.from_bits(transforms.hadamard(float32.to_bits(x), x.shape[-1], -1))


def orthogonal_turn(x: jax.Array, seed: Seed) -> jax.Array:
    """The last axis of float32 `x` times a random orthogonal matrix, in `fixed_order`."""
    return product(x, orthogonal_matrix(x.shape[-1], seed).T)


def orthogonal_turn_back(x: jax.Array, seed: Seed) -> jax.Array:
    """Undoes `orthogonal_turn`, up to rounding."""
    return product(x, orthogonal_matrix(x.shape[-1], seed))


@functools.cache
def orthogonal_matrix(size: int, seed: Seed) -> np.ndarray:
    """`lowprec.kv.fixed_order.orthogonal`, kept."""
    return orthogonal(size, seed)
