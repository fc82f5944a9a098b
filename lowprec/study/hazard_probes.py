"""What this machine's compiler does to floats, and that none of it reaches lowprec's bits.

Each probe shows, under `jit`, whether XLA's own operation has the hazard here, and compares a
function of lowprec that must be immune with an exact oracle.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.engines import matmul
from lowprec.engines.oracle import sequential_dot
from lowprec.numerics import oracle
from lowprec.scaling import cast, quantize
from lowprec.scaling import oracle as scaling_oracle

_COUNT = 512
_BLOCK = "fp8_1x128"


class Probe(NamedTuple):
    """What one hazard is here.

    Attributes:
      backend: what the backend does, in words.
      immune: what of lowprec was compared.
      compared: how many numbers were.
      wrong: how many differ from the oracle.
    """

    backend: str
    immune: str
    compared: int
    wrong: int


def _normal(*shape: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * np.exp2(rng.integers(-8, 8, shape))).astype(np.float32)


def _differ(got: jax.Array | np.ndarray, want: np.ndarray) -> int:
    """How many float32 numbers have other bits."""
    return int(np.sum(np.asarray(got).view(np.uint32) != want.view(np.uint32)))


def _rounded(x: np.ndarray) -> np.ndarray:
    """bfloat16 values by the oracle, as float32."""
    codes = [
        oracle.encode(float(v), "bfloat16", rounding="nearest_even", overflow="saturate") for v in x
    ]
    return (np.array(codes, np.uint32) << 16).view(np.float32)


def _subnormals() -> Probe:
    smallest = np.float32(np.finfo(np.float32).smallest_normal)
    half = jax.jit(lambda x: x * np.float32(0.5))(jnp.asarray(smallest))
    flushed = float(half) == 0
    bits = np.random.default_rng(1).integers(1, 1 << 23, _COUNT, np.uint32)
    x = (bits | (np.arange(_COUNT, dtype=np.uint32) % 2 << 31)).view(np.float32)
    got = jax.jit(lambda x: cast(x, "bfloat16"))(x)
    does = "flushes subnormals" if flushed else "keeps subnormals"
    return Probe(does, "cast of subnormals", _COUNT, _differ(got, _rounded(x)))


def _fused_products() -> Probe:
    a, b = _normal(_COUNT, 1, 2, seed=2), _normal(_COUNT, 2, 1, seed=3)
    x, y = a[:, 0, 0], b[:, 0, 0]
    residue = jax.jit(lambda a, b, c: a * b + c)(x, y, -(x * y))
    contracted = int(np.count_nonzero(residue))
    got = np.asarray(jax.jit(lambda a, b: matmul(a, b, engine="fp32"))(a, b)).ravel()
    rows, columns = a[:, 0].view(np.uint32).tolist(), b[:, :, 0].view(np.uint32).tolist()
    want = np.array([sequential_dot(*pair) for pair in zip(rows, columns, strict=True)], np.uint32)
    does = (
        f"contracts a * b + c ({contracted} of {_COUNT})"
        if contracted
        else "rounds a * b before + c"
    )
    return Probe(does, "matmul, rounding each product", _COUNT, _differ(got, want))


def _dropped_roundings() -> Probe:
    x, y = (jnp.asarray(_normal(_COUNT, seed=seed), jnp.bfloat16) for seed in (4, 5))
    widened = jax.jit(lambda a, b: (a * b).astype(jnp.float32))(x, y)
    exact = np.asarray(x).astype(np.float32) * np.asarray(y).astype(np.float32)
    dropped = _differ(widened, _rounded(exact))
    z = _normal(_COUNT, seed=6)
    # Zero everywhere, were the rounding dropped.
    got = jax.jit(lambda x: cast(x, "bfloat16") - x)(z)
    does = (
        f"drops bfloat16 roundings before widening ({dropped} of {_COUNT})"
        if dropped
        else "keeps bfloat16 roundings"
    )
    return Probe(does, "cast to bfloat16, then a sum", _COUNT, _differ(got, _rounded(z) - z))


def _reciprocals() -> Probe:
    x = _normal(16, 128, seed=7)
    divided = jax.jit(lambda x: x / np.float32(448))(x)
    changed = _differ(divided, x / np.float32(448))
    got = jax.jit(lambda x: quantize(x, _BLOCK))(x)
    want = scaling_oracle.quantize(x.view(np.uint32), _BLOCK)
    scales = np.asarray(got.scales).view(np.uint32).ravel()
    wrong = int(np.sum(scales != np.asarray(want.scales).ravel()))
    wrong += int(np.sum(np.asarray(got.codes) != want.codes))
    does = (
        f"turns x / 448 into x * (1 / 448) ({changed} of {x.size})" if changed else "divides by 448"
    )
    return Probe(does, f"quantize to {_BLOCK}", x.size + len(scales), wrong)


PROBES: tuple[Callable[[], Probe], ...] = (
    _subnormals,
    _fused_products,
    _dropped_roundings,
    _reciprocals,
)
"""One for each hazard."""
