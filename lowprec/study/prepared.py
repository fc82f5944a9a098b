"""Prepared weights compared: fitted on some rows of x, reported on others.

A figure on the rows that a preparation was fitted to says how well it fits, not how well it does.
It is refused unless it is asked for, and then the row says so.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec.gemm.prepare import prepare
from lowprec.gemm.prepared import Prepared
from lowprec.gemm.recipe import Recipe
from lowprec.metrics import measure
from lowprec.study.intervals import paired_interval
from lowprec.study.products import qualified
from lowprec.study.rows import error_columns


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """Rows of a layer's input, and where they are from.

    Attributes:
      x: (tokens, K) float32, bfloat16 or float16.
      documents: the names of the documents that the rows come from. Where both samples name theirs,
        those decide whether they are apart: rows of two documents may be equal, as those of a first
        layer are whenever the same byte is read. Empty where they are not known.
    """

    x: NDArray
    documents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or not self.x.size:
            raise ValueError(f"`x` has shape {self.x.shape}; it is (tokens, K), with some of both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedRow:
    """One product of a prepared weight, against the float64 product of the operands as stored.

    `sample` is `held_out`, or `in_sample` where rows that were fitted to are reported; a recipe
    that fits nothing is held out whatever it is given. `bits_per_element` is the weight's,
    low-rank matrices included; `reproducibility` the lower class of engine and preparation.
    """

    source: str
    layer: str
    recipe: str
    block_a: str
    block_b: str
    steps: str
    seed: int | None
    sample: Literal["held_out", "in_sample"]
    calibration_tokens: int
    report_tokens: int
    k: int
    n: int
    reproducibility: str
    bits_per_element: float
    sqnr_db: float
    gain: float
    gain_standard_error: float
    residual_sqnr_db: float
    relative_frobenius: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class GainRow:
    """How much a recipe keeps over a baseline, in dB of SQNR, and its 95 % interval over layers.

    Layers are drawn with replacement: the interval speaks of other layers of this model, not of
    other models. Seeds of one layer are averaged first.
    """

    baseline: str
    recipe: str
    sample: str
    layers: int
    seeds: int
    baseline_db: float
    recipe_db: float
    gain_db: float
    low_db: float
    high_db: float
    worst_db: float
    bits_per_element: float


def compare_prepared(
    calibration: Sample,
    report: Sample,
    w: NDArray,
    recipe: Recipe,
    *,
    layer: str = "",
    source: str = "",
    in_sample: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> PreparedRow:
    """The product of one layer's weight, prepared on one sample and reported on another.

    Args:
      calibration: what the recipe's preparation is fitted to, where it is fitted.
      report: what the product's error is measured on.
      w: (K, N) float32, bfloat16 or float16.
      recipe: with a preparation, or without one: the baseline.
      layer, source: names for the row.
      in_sample: allows rows that both samples share, and labels the row.
      progress: as `lowprec.prepare`.

    Raises:
      ValueError: the samples share rows or documents and `in_sample` is false; or what `prepare`
        and the product refuse.

    Example:
      >>> x, w = np.random.default_rng(0).normal(size=(64, 32)).astype("f4"), np.eye(32, dtype="f4")
      >>> recipe = lp.get_recipe("gptq_mxfp4")
      >>> row = compare_prepared(Sample(x=x[:32]), Sample(x=x[32:]), w, recipe)
      >>> row.sample, row.calibration_tokens, row.report_tokens
      ('held_out', 32, 32)
    """
    fitted = recipe.prepare is not None and recipe.prepare.fitted
    shared = overlap(calibration, report) if fitted else ""
    if shared and not in_sample:
        raise ValueError(
            f"`report` and `calibration` share {shared}: a figure on what was fitted to says "
            f"nothing of other data; report other documents, or in_sample=True labels it"
        )
    prepared = prepare(w, recipe, calibration=calibration.x if fitted else None, progress=progress)
    wide_x, wide_w = report.x.astype(np.float64), w.astype(np.float64)
    y = np.asarray(prepared.product(jnp.asarray(report.x))).astype(np.float64)
    columns = error_columns(measure(y, wide_x @ wide_w))
    pair = recipe.fprop
    return PreparedRow(
        source=source,
        layer=layer,
        recipe=f"recipe:{recipe.name}",
        block_a=qualified(pair.a),
        block_b=qualified(pair.b),
        steps=steps_of(recipe),
        seed=_seed(recipe),
        sample="in_sample" if fitted and in_sample else "held_out",
        calibration_tokens=len(calibration.x) if fitted else 0,
        report_tokens=len(report.x),
        k=w.shape[0],
        n=w.shape[1],
        reproducibility=_reproducibility(prepared),
        bits_per_element=prepared.bits_per_element,
        **columns,
    )


def overlap(calibration: Sample, report: Sample) -> str:
    """What two samples share, in words; empty where they are apart.

    Memory and whole arrays are always compared, rows where a sample does not name its documents.

    Example:
      >>> one, two = np.ones((2, 4), np.float32), np.zeros((3, 4), np.float32)
      >>> overlap(Sample(x=one), Sample(x=two)), overlap(Sample(x=one), Sample(x=one[1:].copy()))
      ('', '1 of 1 rows')
    """
    named = set(calibration.documents) & set(report.documents)
    if named:
        return f"the documents {', '.join(sorted(named))}"
    if np.shares_memory(calibration.x, report.x) or np.array_equal(calibration.x, report.x):
        return f"{len(report.x)} of {len(report.x)} rows"
    if calibration.documents and report.documents:
        return ""
    seen = {row.tobytes() for row in _plain(calibration.x)}
    equal = sum(row.tobytes() in seen for row in _plain(report.x))
    return f"{equal} of {len(report.x)} rows" if equal else ""


def _plain(x: NDArray) -> NDArray:
    """The numbers as float32, whatever type holds them; -0 as 0."""
    return np.ascontiguousarray(x.astype(np.float32) + np.float32(0))


def steps_of(recipe: Recipe) -> str:
    """The steps of a preparation in words; `none` for a recipe that has none.

    Example:
      >>> steps_of(lp.get_recipe("quarot_w4a4_gptq")), steps_of(lp.get_recipe("mxfp4"))
      ('rotation + gptq', 'none')
    """
    steps = recipe.prepare
    if steps is None:
        return "none"
    given = (steps.smoothing and steps.smoothing.method, steps.rotation and "rotation")
    rest = (steps.gptq and "gptq", steps.low_rank and "low rank")
    return " + ".join(word for word in (*given, *rest) if word)


def _seed(recipe: Recipe) -> int | None:
    rotation = recipe.prepare and recipe.prepare.rotation
    return rotation.seed if rotation else None


def _reproducibility(prepared: Prepared) -> str:
    recipe = prepared.recipe
    classes = {recipe.engine.reproducibility}
    if recipe.prepare is not None:
        classes.add(recipe.prepare.reproducibility)
    return next(x for x in ("statistical", "same_backend", "bit_exact") if x in classes)


def gains(rows: Sequence[PreparedRow], baseline: str, recipe: str, *, seed: int) -> GainRow:
    """What a recipe keeps over another on the same layers.

    Args:
      rows: of both, and perhaps of others.
      baseline, recipe: as the rows name them.
      seed: of the bootstrap.

    Raises:
      ValueError: the two do not have the same layers, fewer than two, or rows of both samples.
    """
    of = {name: [row for row in rows if row.recipe == name] for name in (baseline, recipe)}
    samples = {row.sample for row in of[recipe]}
    means = {name: _by_layer(found) for name, found in of.items()}
    layers = sorted(means[recipe])
    if len(samples) != 1 or layers != sorted(means[baseline]) or len(layers) < 2:
        raise ValueError(
            f"{recipe} and {baseline} must have the same 2 layers or more, of one sample each; "
            f"got {len(layers)} and {len(means[baseline])} layers, samples {sorted(samples)}"
        )
    both = [np.array([means[name][layer] for layer in layers]) for name in (baseline, recipe)]
    difference = both[1] - both[0]
    mean, low, high = paired_interval(difference, np.ones_like(difference), seed=seed)
    numbers = sum(row.k * row.n for row in of[recipe])
    return GainRow(
        baseline=baseline,
        recipe=recipe,
        sample=samples.pop(),
        layers=len(layers),
        seeds=len({row.seed for row in of[recipe]}),
        baseline_db=float(both[0].mean()),
        recipe_db=float(both[1].mean()),
        gain_db=mean,
        low_db=low,
        high_db=high,
        worst_db=float(difference.min()),
        bits_per_element=sum(row.bits_per_element * row.k * row.n for row in of[recipe]) / numbers,
    )


def _by_layer(rows: Sequence[PreparedRow]) -> dict[str, float]:
    """The mean SQNR of each layer over its rows."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row.layer, []).append(row.sqnr_db)
    return {layer: float(np.mean(values)) for layer, values in found.items()}
