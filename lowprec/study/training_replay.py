"""What an accumulator adds to the error of a gradient: captured products summed again.

A short run of a small model shows nothing of a sum of 14 bits: its losses differ more between two
orders of summation. The products of the run are therefore taken as they were at some steps, and
multiplied again in the engine of Hopper's tensor cores, with promotion and without.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.engines.engine import get_engine
from lowprec.gemm.gemm import gemm
from lowprec.gemm.recipe import ROLES, Recipe, Role, get_recipe
from lowprec.metrics import gain, relative_frobenius
from lowprec.models.capture import LayerOperands, capture
from lowprec.models.parameters import Parameters
from lowprec.study.training_config import TrainingConfig
from lowprec.study.training_step import batch_of

ENGINE = "hopper.wgmma.fp8.fp32"
PROMOTED = 128
NEVER = 0
"""`promote_every` of a sum that the engine takes over all of K."""
CASES: tuple[tuple[str, int], ...] = (
    ("deepseek_v3", PROMOTED),
    ("fp8_tensor", PROMOTED),
    ("fp8_tensor", NEVER),
)
"""Recipes and how often they are promoted. Scales of 1 x 128 are applied at promotion, so that
deepseek_v3 cannot go without; one scale for a tensor, of as many bits in E4M3, can."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayRow:
    """One product of a captured layer, summed by the engine and exactly.

    `added` is the relative error in the Frobenius norm of what the engine sums against the exact
    sum of the same quantized operands, rounded to float32; `largest` the largest difference over
    that sum's root mean square; `gain` the least-squares slope of the engine's sums on the exact
    ones, minus 1; `quantization` the relative error of the exact sum of quantized operands
    against the product of the operands as captured. `m` counts the rows that were summed.
    """

    step: int
    layer: str
    role: str
    recipe: str
    engine: str
    promote_every: int
    m: int
    k: int
    n: int
    added: float
    largest: float
    gain: float
    quantization: float


def captured(
    params: Parameters, text: NDArray, config: TrainingConfig, step: int
) -> list[LayerOperands]:
    """The operands of the layers that are at least as wide as the widest, at a step of seed 0."""
    layers = capture(params, jnp.asarray(batch_of(text, config, 0, step)), config.model)
    widest = max(max(one.w.shape) for one in layers)
    return [one for one in layers if max(one.w.shape) == widest]


def product_of(layer: LayerOperands, role: Role) -> tuple[NDArray, NDArray]:
    """A layer's operands in a role, (M, K) and (K, N)."""
    x, w, dy = (np.asarray(one) for one in (layer.x, layer.w, layer.dy))
    return {"fprop": (x, w), "dgrad": (dy, w.T), "wgrad": (x.T, dy)}[role]


def some_rows(a: NDArray, count: int) -> NDArray:
    """About so many rows, evenly spread, and the one with the largest number of all.

    With that one the scale of a tensor stays what it is of the whole.

    Args:
      a: (M, K), finite.
      count: of rows besides; at least M gives all of them.

    >>> some_rows(np.array([[1.0], [2.0], [-9.0], [3.0], [4.0], [5.0]]), 2).ravel()
    array([ 1., -9.,  5.])
    """
    spread = np.linspace(0, len(a) - 1, min(count, len(a))).round().astype(int)
    largest = int(np.abs(a.astype(np.float64)).max(1).argmax())
    return a[np.union1d(spread, [largest])]


def replay_rows(
    layers: Sequence[LayerOperands],
    step: int,
    cases: Sequence[tuple[str, int]] = CASES,
    *,
    outputs: int = 2**13,
) -> Iterator[ReplayRow]:
    """A row for every layer, role and case whose K is above one promotion.

    About `outputs` of a product are summed, in whole rows.
    """
    for layer in layers:
        for role in ROLES:
            a, b = product_of(layer, role)
            if a.shape[1] <= PROMOTED:
                continue
            a = some_rows(a, max(outputs // b.shape[1], 1))
            plain = a.astype(np.float64) @ b.astype(np.float64)
            exact: dict[str, NDArray] = {}
            for name, every in cases:
                if name not in exact:
                    exact[name] = _sum(a, b, get_recipe(f"{name}_exact"), role)
                got = _sum(a, b, summed_by_engine(get_recipe(name), every), role)
                yield _row(layer.layer, step, role, name, every, a, b, got, exact[name], plain)


def summed_by_engine(recipe: Recipe, promote_every: int) -> Recipe:
    """The recipe on the engine, promoted every so many k or never."""
    return dataclasses.replace(
        recipe, engine=get_engine(ENGINE), promote_every=promote_every or None
    )


def _sum(a: NDArray, b: NDArray, recipe: Recipe, role: Role) -> NDArray:
    return np.asarray(gemm(a, b, recipe, role=role, out_dtype=jnp.float32), np.float64)


def _row(
    layer: str,
    step: int,
    role: str,
    recipe: str,
    every: int,
    a: NDArray,
    b: NDArray,
    got: NDArray,
    exact: NDArray,
    plain: NDArray,
) -> ReplayRow:
    return ReplayRow(
        step=step,
        layer=layer,
        role=role,
        recipe=f"recipe:{recipe}",
        engine=f"engine:{ENGINE}",
        promote_every=every,
        m=a.shape[0],
        k=a.shape[1],
        n=b.shape[1],
        added=relative_frobenius(got, exact),
        largest=float(np.abs(got - exact).max() / np.sqrt(np.mean(exact**2))),
        gain=gain(got, exact)[0],
        quantization=relative_frobenius(exact, plain),
    )
