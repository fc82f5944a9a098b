"""What a point of a study gives: a row of error measures and the hash of the product's bits.

Every number of it is the same on every machine that the product is the same on: the reference is
summed in one order, without a library whose order follows its threads or the processor.
"""

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec import metrics
from lowprec.gemm.recipe import Recipe
from lowprec.study.point import Point, recipe_digest
from lowprec.study.point_operands import Stored
from lowprec.study.products import qualified, quantized_product

Status = Literal["done", "failed"]
PROGRAMS = 512
"""So many kinds of points, and the programs compiled for them are dropped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PointRow:
    """The result of a point, beside its `spec`.

    `reproducibility` is the class of the engine that summed, `evidence` what its entry rests on.
    Errors are those of `lowprec.metrics` against the float64 product of the operands as they stand,
    summed over k ascending; `relative_frobenius` is of `sqnr_db`. `clipped` and `flushed` are the
    fractions of both operands' elements that saturate and that become zero. `product` is the
    SHA-256 of the result's bytes, row by row.
    """

    block_a: str
    block_b: str
    reproducibility: str
    evidence: str
    bits_per_element: float
    sqnr_db: float
    gain: float
    gain_standard_error: float
    residual_sqnr_db: float
    relative_frobenius: float
    backward_error: float
    clipped: float
    flushed: float
    product: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A point that has been run.

    Attributes:
      key: the point's.
      status: `done`, or `failed` with an `error` in place of a `row`.
      row: the columns of a `PointRow`.
      error: what was raised, in a line.
      seconds: how long it took, compilation included.
    """

    key: str
    status: Status
    row: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Points that share programs, for one worker.

    Attributes:
      points: of one `Point.program`, by key.
      code: the `Point.code` that their keys are of.
    """

    points: tuple[tuple[str, Point], ...]
    code: Mapping[str, str]


def measure_batch(batch: Batch) -> list[Record]:
    """The records of a batch, for a worker that hands them back together.

    Raises:
      ValueError: this machine has other sources or versions than the study was started with.
    """
    return list(measure_points(batch))


def measure_points(batch: Batch) -> Iterator[Record]:
    """The records of a batch as they are done; a point that fails does not stop the next."""
    own = batch.points[0][1].code
    differing = [f"{name} {own.get(name)}" for name, x in batch.code.items() if own.get(name) != x]
    if differing:
        raise ValueError(
            f"a worker computes with another {' and '.join(differing)} than the study was started "
            f"with; run the same versions on the same kind of device everywhere"
        )
    _make_room(batch.points[0][1])
    for key, point in batch.points:
        begin = time.perf_counter()
        try:
            row = dataclasses.asdict(measure(point))
        except Exception as error:  # a study of thousands goes on, and the store says what failed
            text = " ".join(f"{type(error).__name__}: {error}".split())
            record = Record(key=key, status="failed", error=text)
        else:
            record = Record(key=key, status="done", row=row)
        yield dataclasses.replace(record, seconds=time.perf_counter() - begin)


def measure(point: Point) -> PointRow:
    """Runs one point.

    Raises:
      ValueError: the recipe, or its engine, does not fit the operands.

    Example:
      >>> from lowprec.gemm.recipe import get_recipe
      >>> from lowprec.study.point_operands import Drawn
      >>> both = (Drawn(distribution="gaussian"),) * 2
      >>> recipe = get_recipe("mxfp8").in_role("fprop")
      >>> row = measure(Point(recipe=recipe, role="fprop", m=8, k=64, n=8, operands=both))
      >>> 25 < row.sqnr_db < 32, row.reproducibility
      (True, 'same_backend')
    """
    recipe = _known(point.recipe)
    a, b = _operands(point)
    key = _key(point) if recipe.stochastic else None
    found = quantized_product(jnp.asarray(a), jnp.asarray(b), recipe, point.role, key)
    y, left, right = (jax.tree.map(np.asarray, x) for x in found)
    wide_a, wide_b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        # A product that overflowed has errors that are NaN.
        reference = ordered_product(wide_a, wide_b)
        magnitude = ordered_product(np.abs(wide_a), np.abs(wide_b))
        errors = _errors(np.asarray(y, np.float64), reference, magnitude)
    pair, elements = getattr(recipe, point.role), a.size + b.size
    return PointRow(
        block_a=qualified(pair.a),
        block_b=qualified(pair.b),
        reproducibility=recipe.engine.reproducibility,
        evidence=str(recipe.engine.evidence or ""),
        bits_per_element=pair.bits_per_element,
        clipped=(int(left.clipped) + int(right.clipped)) / elements,
        flushed=(int(left.flushed) + int(right.flushed)) / elements,
        product=hashlib.sha256(np.ascontiguousarray(y).tobytes()).hexdigest(),
        **errors,
    )


def _errors(y: NDArray, reference: NDArray, magnitude: NDArray) -> dict[str, float]:
    """The measures of `lowprec.metrics` but for a norm that a threaded library sums."""
    slope, error = metrics.gain(y, reference)
    sqnr = metrics.sqnr_db(y, reference)
    return {
        "sqnr_db": sqnr,
        "gain": slope,
        "gain_standard_error": error,
        "residual_sqnr_db": metrics.sqnr_db(y, (1 + slope) * reference),
        "relative_frobenius": 10 ** (-sqnr / 20),
        "backward_error": metrics.backward_error(y, reference, magnitude),
    }


def ordered_product(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """a @ b in float64, k ascending, each product rounded and then added: the same bits anywhere.

    Example:
      >>> ordered_product(np.array([[1e16, 1.0, -1e16]]), np.ones((3, 1)))
      array([[0.]])
    """
    total = np.zeros((a.shape[0], b.shape[1]))
    for column, row in zip(a.T, b, strict=True):
        total += column[:, None] * row
    return total


def _operands(point: Point) -> tuple[NDArray[Any], NDArray[Any]]:
    if isinstance(point.operands, Stored):
        return point.operands.product(point.role)
    of_a, of_b = point.operands
    a = of_a.draw((point.m, point.k), point.seed, "a")
    return a, np.ascontiguousarray(of_b.draw((point.n, point.k), point.seed, "b").T)


def _key(point: Point) -> jax.Array:
    """The key of stochastic rounding, of seed, role and operands: the same for every recipe."""
    spec = {name: point.spec[name] for name in ("role", "a", "b", "m", "k", "n", "seed")}
    digest = hashlib.sha256(repr(sorted(spec.items())).encode()).digest()
    return jax.random.key(int.from_bytes(digest[:4], "little"))


_recipes: dict[str, Recipe] = {}
_programs: set[tuple[Any, ...]] = set()


def _known(recipe: Recipe) -> Recipe:
    """The recipe as this process met it first.

    Copies that reach a worker are equal but for NaNs in tables of values, and programs are compiled
    for a value.
    """
    return _recipes.setdefault(recipe_digest(recipe), recipe)


def _make_room(point: Point) -> None:
    """Drops what was compiled for earlier points where there is much of it."""
    if len(_programs) >= PROGRAMS and point.program not in _programs:
        _programs.clear()
        _recipes.clear()
        jax.clear_caches()
    _programs.add(point.program)


def batches(points: Sequence[tuple[str, Point]], size: int) -> list[Batch]:
    """Points by what they are compiled for, at most so many together."""
    alike: dict[tuple[Any, ...], list[tuple[str, Point]]] = {}
    for key, point in points:
        alike.setdefault(point.program, []).append((key, point))
    found = []
    for program in sorted(alike):
        some = sorted(alike[program], key=lambda pair: pair[0])
        for first in range(0, len(some), size):
            found.append(Batch(points=tuple(some[first : first + size]), code=some[0][1].code))
    return found
