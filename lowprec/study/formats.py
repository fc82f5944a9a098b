"""Formats and scale rules on Gaussian numbers: errors, losses and bits above the product bound.

All targets see the same tensors, so that their differences are paired; a tensor is the unit over
which intervals are taken, since its elements may share a scale.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowprec import metrics
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.rounding import is_stochastic
from lowprec.scaling.block import Block, list_blocks
from lowprec.scaling.cast import cast
from lowprec.scaling.codebook import lloyd_max
from lowprec.scaling.quantize import quantize
from lowprec.scaling.tiles import scales_shape, tile_shape
from lowprec.study.fitted_levels import LLOYD_MAX, lloyd_max_block, lloyd_max_name
from lowprec.study.format_config import Config
from lowprec.study.format_rows import (
    BoundRow,
    EarlierRow,
    GaussianRow,
    PublishedRow,
    RoundingRow,
    RuleRow,
)
from lowprec.study.matmul_bound import least_rate
from lowprec.study.ratios import Estimate, decibels, mean

WORKERS = 2
WORDS = 1 << 20
"""Added to a seed for random words, so that they are not those of the numbers."""

Target = Format | Block


class Samples(NamedTuple):
    """Random tensors, with what every target is compared with.

    Attributes:
      x: float32 (tensors, rows, columns).
      products: float64 (tensors / 2, rows, rows): x[2 i] @ x[2 i + 1].T.
      seed: of the numbers, and of the random words of stochastic targets.
    """

    x: NDArray[np.float32]
    products: NDArray[np.float64]
    seed: int


class Measured(NamedTuple):
    """What one target does to the samples.

    Attributes:
      noise, signal: (tensors,) sums of squares of the error and of the tensor.
      errors: measures over all numbers.
      product_errors: (tensors / 2,) squared Frobenius errors of the products.
      bits_per_element: scales included, in tensors of this shape.
    """

    noise: NDArray[np.float64]
    signal: NDArray[np.float64]
    errors: metrics.ErrorMeasures
    product_errors: NDArray[np.float64]
    bits_per_element: float


def normal_samples(tensors: int, rows: int, columns: int, seed: int) -> Samples:
    """Independent tensors of independent N(0, 1) numbers.

    Raises:
      ValueError: an odd number of tensors, or fewer than four: products take two each.
    """
    if tensors < 4 or tensors % 2:
        raise ValueError(f"`tensors` = {tensors}; use an even number of at least 4")
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tensors, rows, columns)).astype(np.float32)
    wide = x.astype(np.float64)
    return Samples(x, wide[0::2] @ wide[1::2].transpose(0, 2, 1), seed)


def there_and_back(target: Target, x: jax.Array, seed: int) -> tuple[jax.Array, float]:
    """A tensor quantized along its last axis and dequantized, and the bits of an element.

    Random words and signs, where the target takes any, are drawn from the seed.
    """
    if isinstance(target, Format):
        return _cast(x, target), float(target.bits)
    rng = np.random.default_rng(seed)
    words, signs, shape = None, None, None
    if target.eden is not None:
        shape = scales_shape(x.shape, tile_shape(target, x.shape, x.ndim - 1))
    elif is_stochastic(target.rounding):
        shape = x.shape
    if shape is not None:
        words = jnp.asarray(rng.integers(0, 1 << 32, shape, np.uint32))
    if target.transform is not None and target.transform.needs == "signs":
        length = target.transform.size or x.shape[-1]
        signs = jnp.asarray(rng.choice(np.array([-1, 1], np.float32), length))
    return _quantize(x, target, words, signs), _bits_per_element(target, x.shape)


@functools.partial(jax.jit, static_argnames="target")
def _cast(x: jax.Array, target: Format) -> jax.Array:
    return cast(x, target)


@functools.partial(jax.jit, static_argnames="target")
def _quantize(
    x: jax.Array, target: Block, words: jax.Array | None, signs: jax.Array | None
) -> jax.Array:
    return quantize(x, target, random_bits=words, signs=signs).dequantize()


@functools.cache
def _bits_per_element(target: Block, shape: tuple[int, ...]) -> float:
    """Bits of an element of a tensor of this shape, its scales and tensor scale included."""
    tiles = scales_shape(shape, tile_shape(target, shape, len(shape) - 1))
    scales = math.prod(tiles) * (target.scale_format.bits + target.offset_bits)
    tensor = {"none": 0, "amax": 32, "row_amax": 32 * shape[0]}[target.tensor_scale]
    return target.element.bits + (scales + tensor) / math.prod(shape)


def measure_target(target: Target, samples: Samples) -> Measured:
    """Runs one target over all samples."""
    back, bits = [], 0.0
    for index, x in enumerate(samples.x):
        value, bits = there_and_back(target, jnp.asarray(x), WORDS + samples.seed + index)
        back.append(np.asarray(value))
    y, x = np.asarray(back, np.float64), samples.x.astype(np.float64)
    products = y[0::2] @ y[1::2].transpose(0, 2, 1)
    return Measured(
        noise=np.sum((y - x) ** 2, axis=(1, 2)),
        signal=np.sum(x * x, axis=(1, 2)),
        errors=metrics.measure(y, x),
        product_errors=np.sum((products - samples.products) ** 2, axis=(1, 2)),
        bits_per_element=bits,
    )


def gaussian_targets(config: Config) -> dict[str, tuple[Target, str]]:
    """Every target by its qualified name, with where it comes from."""
    names = [name for name in list_blocks() if name not in config.skip]
    rules = config.scale_rules
    names += [config.under_rule(base, rule) for base in rules.bases for rule in rules.rules]
    names += [*rules.further, *rules.two_level, *config.nvfp4, *config.variants]
    found: dict[str, tuple[Target, str]] = {}
    for name in dict.fromkeys(names):
        origin = "catalogue" if name in list_blocks() else "variant of this experiment"
        found[f"block:{name}"] = config.block(name), origin
    for name in config.unscaled:
        found[f"format:{get_format(name).name}"] = get_format(name), "catalogue"
    rng = np.random.default_rng(config.seed + 1_000_003)
    density = rng.standard_normal(1 << 20)
    for bits in config.lloyd_max:
        fitted = lloyd_max(density, bits, name=f"{LLOYD_MAX}_{bits}bit")
        found[f"format:{fitted.name}"] = fitted, "fitted to N(0, 1)"
    for base in map(config.block, (*rules.bases, rules.two_level[0])):
        if f"block:{lloyd_max_name(base)}" not in found:
            fitted = lloyd_max_block(base, rng)
            found[f"block:{fitted.name}"] = fitted, "fitted to scaled N(0, 1)"
    return found


def measure_all(
    targets: Mapping[str, tuple[Target, str]],
    samples: Samples,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Measured]:
    """Runs the targets two at a time, since compiling uses one core."""

    def step(name: str) -> Measured:
        measured = measure_target(targets[name][0], samples)
        progress(name)
        return measured

    with ThreadPoolExecutor(WORKERS) as pool:
        return dict(zip(targets, pool.map(step, targets), strict=True))


def gaussian_row(
    name: str, target: Target, origin: str, measured: Measured, samples: Samples
) -> GaussianRow:
    """The errors of one target."""
    sqnr = decibels(measured.signal, measured.noise)
    squared = mean(measured.noise / samples.x[0].size)
    return GaussianRow(
        target=name,
        origin=origin,
        **_described(target),
        bits_per_element=measured.bits_per_element,
        mean_squared_error=squared.value,
        mean_squared_error_low=squared.low,
        mean_squared_error_high=squared.high,
        sqnr_db=sqnr.value,
        sqnr_low=sqnr.low,
        sqnr_high=sqnr.high,
        gain=measured.errors.gain,
        gain_standard_error=measured.errors.gain_standard_error,
        residual_sqnr_db=measured.errors.residual_sqnr_db,
        distribution="N(0, 1)",
        **_sizes(samples),
    )


def _described(target: Target) -> dict[str, str]:
    if isinstance(target, Format):
        kept = {"scale_rule": "none", "tile": "", "scale_format": "", "rounding": "nearest_even"}
        return {"element": target.name, **kept}
    return {
        "element": target.element.name,
        "scale_rule": target.scale_rule if target.coding == "scaled" else target.coding,
        "tile": " x ".join(map(str, target.tile)),
        "scale_format": target.scale_format.name,
        "rounding": target.rounding,
    }


def _sizes(samples: Samples) -> dict[str, Any]:
    return {"tensors": len(samples.x), "numbers": samples.x.size, "seed": samples.seed}


def published_rows(
    config: Config, rows: Sequence[GaussianRow], samples: Samples
) -> Iterator[PublishedRow]:
    """Published figures beside ours, and whether they agree."""
    by_target = {row.target: row for row in rows}
    for entry in config.published:
        for name, value in entry.values.items():
            row = by_target[f"block:{name}"]
            if entry.measure == "sqnr_db":
                ours, low, high = row.sqnr_db, row.sqnr_low, row.sqnr_high
            else:
                ours, low, high = (
                    row.mean_squared_error,
                    row.mean_squared_error_low,
                    row.mean_squared_error_high,
                )
            # Of a figure of unknown sampling, only its last place can be allowed for.
            spread = 1.0 if entry.numbers is None else math.sqrt(1 + row.numbers / entry.numbers)
            allowed = entry.half_unit + spread * (high - low) / 2
            yield PublishedRow(
                target=row.target,
                measure=entry.measure,
                published=value,
                source=entry.source,
                ours=ours,
                low=low,
                high=high,
                difference=ours - value,
                allowed=allowed,
                reproduced=abs(ours - value) <= allowed,
                numbers=row.numbers,
                seed=samples.seed,
            )
    for bits, value in config.lloyd_max.items():
        row = by_target[f"format:{LLOYD_MAX}_{bits}bit"]
        half = (row.mean_squared_error_high - row.mean_squared_error_low) / 2
        unit = 10.0 ** -(len(f"{value}") - 2) / 2
        yield PublishedRow(
            target=row.target,
            measure="mean_squared_error",
            published=value,
            source="Max 1960, table I",
            ours=row.mean_squared_error,
            low=row.mean_squared_error_low,
            high=row.mean_squared_error_high,
            difference=row.mean_squared_error - value,
            allowed=half + unit,
            reproduced=abs(row.mean_squared_error - value) <= half + unit,
            numbers=row.numbers,
            seed=samples.seed,
        )


def earlier_rows(config: Config, rows: Sequence[GaussianRow]) -> Iterator[EarlierRow]:
    """Figures of earlier runs of this project beside today's: has anything changed?"""
    by_target = {row.target: row for row in rows}
    for entry in config.earlier:
        for name, value in entry.values.items():
            row = by_target[f"block:{name}"]
            spread = math.sqrt(1 + row.numbers / entry.numbers)
            allowed = entry.half_unit + spread * (row.sqnr_high - row.sqnr_low) / 2
            yield EarlierRow(
                target=row.target,
                earlier=value,
                ours=row.sqnr_db,
                low=row.sqnr_low,
                high=row.sqnr_high,
                difference=row.sqnr_db - value,
                allowed=allowed,
                within=abs(row.sqnr_db - value) <= allowed,
                numbers=row.numbers,
                seed=row.seed,
            )


def rule_rows(config: Config, measured: dict[str, Measured], samples: Samples) -> Iterator[RuleRow]:
    """Every rule's loss against the scale of least squared error, and Lloyd-Max at equal bits."""
    rules = config.scale_rules
    groups = [
        (base, [(rule, config.under_rule(base, rule)) for rule in rules.rules])
        for base in rules.bases
    ]
    for name in rules.further:
        base, rules_of = next(x for x in reversed(groups) if name.startswith(x[0]))
        rules_of.append((config.block(name).scale_rule, name))
    groups.append((rules.two_level[0], [(_two_level(config, n), n) for n in rules.two_level]))
    for base, members in groups:
        fitted = lloyd_max_name(config.block(base))
        baseline = next(name for rule, name in members if rule == "minimum_error")
        least = measured[f"block:{baseline}"]
        kind = "integer" if config.block(base).element.exponent_bits == 0 else "floating"
        for rule, name in [*members, (LLOYD_MAX, fitted)]:
            mine = measured[f"block:{name}"]
            loss = decibels(mine.noise, least.noise)
            yield RuleRow(
                base=f"block:{base}",
                kind=kind,
                rule=rule,
                target=f"block:{name}",
                baseline=f"block:{baseline}",
                bits_per_element=mine.bits_per_element,
                sqnr_db=mine.errors.sqnr_db,
                loss_db=loss.value,
                low=loss.low,
                high=loss.high,
                outcome=_outcome(loss),
                **_sizes(samples),
            )


def _outcome(loss: Estimate) -> str:
    """Whether a loss is told apart from none; equal errors in every tensor are the same scales."""
    if loss.value == 0 and loss.standard_error == 0:
        return "same"
    if not loss.resolved:
        return "not resolved"
    return "worse" if loss.value > 0 else "better"


def _two_level(config: Config, name: str) -> str:
    """The rule, with what a four-over-six block picks by."""
    block = config.block(name)
    return block.scale_rule if block.error is None else f"{block.scale_rule} ({block.error})"


def rounding_rows(
    config: Config, rows: Sequence[GaussianRow], measured: dict[str, Measured], samples: Samples
) -> Iterator[RoundingRow]:
    """NVFP4 by its rounding, paired with the first one."""
    by_target = {row.target: row for row in rows}
    published = {
        f"block:{name}": (value, entry.source)
        for entry in config.published
        if entry.measure == "mean_squared_error"
        for name, value in entry.values.items()
    }
    nearest = measured[f"block:{config.nvfp4[0]}"]
    for name in config.nvfp4:
        row = by_target[f"block:{name}"]
        more = decibels(measured[row.target].noise, nearest.noise)
        value, source = published.get(row.target, (None, ""))
        yield RoundingRow(
            target=row.target,
            mean_squared_error=row.mean_squared_error,
            low=row.mean_squared_error_low,
            high=row.mean_squared_error_high,
            more_noise_db=more.value,
            more_noise_low=more.low,
            more_noise_high=more.high,
            gain=row.gain,
            gain_standard_error=row.gain_standard_error,
            published=value,
            source=source,
            **_sizes(samples),
        )


def bound_row(name: str, measured: Measured, samples: Samples) -> BoundRow:
    """Bits beyond the least rate at which a product can have this error."""
    count, a, b = samples.products.shape
    n = samples.x.shape[2]
    error: Estimate = mean(measured.product_errors / (n * a * b))
    # The bound falls as the rate grows: the interval's ends change places.
    rate, low, high = (least_rate(e) for e in (error.value, error.high, error.low))
    bits = measured.bits_per_element
    return BoundRow(
        target=name,
        bits_per_element=bits,
        product_error=error.value,
        product_error_low=error.low,
        product_error_high=error.high,
        rate=rate,
        rate_low=low,
        rate_high=high,
        excess_bits=bits - rate,
        excess_low=bits - high,
        excess_high=bits - low,
        products=count,
        n=n,
        a=a,
        b=b,
        seed=samples.seed,
    )
