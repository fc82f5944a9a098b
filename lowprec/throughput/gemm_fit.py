"""The GEMM model's rates, fitted on one device and format, and how far it errs elsewhere.

Four rates are fitted on published times of cuBLAS's bfloat16 products on the H100, by least squares
of their logarithms: the shares of memory and of tensor cores, the seconds of a kernel, and what a
multiprocessor loads from the cache. Two more on one all-reduce there and on DeepEP's NVLink figures
of the H800. All FP8 and FP4, all other devices, sizes and quantizers are predicted, and the ratio
of two recipes' times wherever both are published. `lowprec.throughput.gemm_intervals` makes their
intervals. The form of the model was chosen with held-out figures in sight, its rates not;
figures marked as unseen were read when the form was settled.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowprec.gemm.recipe import get_recipe
from lowprec.scaling.block import get_block
from lowprec.throughput.devices import get_device
from lowprec.throughput.fit import Role
from lowprec.throughput.gemm_intervals import Observed, Term, intervals
from lowprec.throughput.gemm_published import (
    CollectiveFigure,
    ProductFigure,
    QuantizerFigure,
    ShareFigure,
    collective_figures,
    product_figures,
    quantizer_figures,
    share_figures,
)
from lowprec.throughput.kernel import Kernel, KernelRates, kernel, operand_bytes
from lowprec.throughput.links import all_gather, all_reduce, medium
from lowprec.throughput.passes import quantize_pass, recipe_passes
from lowprec.throughput.plan import plans
from lowprec.throughput.tiles import Shape

Array = NDArray[np.floating[Any]]
Values = Sequence[float] | Array
Figure = ProductFigure | ShareFigure | QuantizerFigure | CollectiveFigure
_PEAKS = KernelRates(memory=1.0, products=1.0, kernel_seconds=0.0, cache_bytes=64.0)
_START = (0.95, 0.88, 5e-6, 70.0)
_STEPS = (1e-3, 1e-3, 1e-8, 0.1)
_ROUNDS = 12
_LEAST, _MOST = (0.5, 0.5, 0.0, 10.0), (1.0, 1.0, 2e-5, 500.0)


class Miss(NamedTuple):
    """A published figure beside what the model predicts of it.

    Attributes:
      figure: as published.
      role: the figure's; `shown` too where its operands stay in a cache.
      predicted: in the same unit.
      term: what decides it.
      bound: of a kernel what it waits for, else the term.
      slower: the published time over the predicted one.
    """

    figure: Figure
    role: Role
    predicted: float
    term: Term
    bound: str
    slower: float


class Check(NamedTuple):
    """So many of so many figures inside intervals that were made without them."""

    inside: int
    figures: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemmFit:
    """Rates, intervals and the misses that they rest on.

    Attributes:
      rates: what is fitted.
      ranges: by term the least and the most that a time is multiplied with; of `ratio`, what the
        ratio of two recipes' times is.
      misses: of all figures.
      ratios: published over predicted ratios of two recipes' times.
      left_out: held-out figures, against intervals without their own source.
      left_out_ratios: likewise of ratios.
      unseen: figures read when the model's form was settled, against intervals without all of them.
    """

    rates: KernelRates
    ranges: dict[Term, tuple[float, float]]
    misses: tuple[Miss, ...]
    ratios: tuple[float, ...]
    left_out: Check
    left_out_ratios: Check
    unseen: Check


@functools.cache
def gemm_fit() -> GemmFit:
    """The rates that the figures marked as fitted give, and the misses of all.

    Example:
      >>> found = gemm_fit()
      >>> round(found.rates.memory, 2), round(found.rates.products, 2)
      (0.95, 0.87)
    """
    figures = product_figures()
    fitted = [x for x in figures if x.role == "fitted"]
    values = _least_squares(lambda values: _logarithms(fitted, values))
    rates = _with_links(_rates(values))
    misses = [_product_miss(x, rates) for x in figures]
    misses += [_share_miss(x, rates) for x in share_figures()]
    misses += [_quantizer_miss(x, rates) for x in quantizer_figures()]
    misses += [_collective_miss(x, rates) for x in collective_figures()]
    pairs = _ratios(misses)
    every, of_pairs = intervals(_observed(misses)), intervals(pairs)
    return GemmFit(
        rates=rates,
        ranges=every.ranges | of_pairs.ranges,
        misses=tuple(misses),
        ratios=tuple(x.slower for x in pairs),
        left_out=Check(every.inside, every.figures),
        left_out_ratios=Check(of_pairs.inside, of_pairs.figures),
        unseen=_unseen(misses),
    )


def kernel_term(found: Kernel) -> Term:
    """Whose range a kernel's time has: of memory, or of work on the multiprocessors."""
    return "memory" if found.memory >= found.work else "products"


def _rates(values: Values) -> KernelRates:
    memory, products, launch, cache = values
    return KernelRates(memory=memory, products=products, kernel_seconds=launch, cache_bytes=cache)


def _with_links(rates: KernelRates) -> KernelRates:
    """The rates with a link's share and the seconds of a collective, of what is fitted of them."""
    fitted = [x for x in collective_figures() if x.role == "fitted"]
    shares = [
        x.value * 1e9 / medium(get_device(x.device), x.devices)[1]
        for x in fitted
        if x.measure == "gigabytes_per_second"
    ]
    rates = dataclasses.replace(rates, link=math.exp(sum(map(math.log, shares)) / len(shares)))
    [timed] = [x for x in fitted if x.measure == "microseconds"]
    moving = all_reduce(get_device(timed.device), timed.devices, timed.size).seconds(rates)
    return dataclasses.replace(rates, collective_seconds=max(0.0, timed.value * 1e-6 - moving))


def _logarithms(figures: Sequence[ProductFigure], values: Values) -> Array:
    """Of the misses; 0 of what stays in a cache."""
    misses = [_product_miss(x, _rates(values)) for x in figures]
    return np.array([0.0 if x.role == "shown" else math.log(x.slower) for x in misses])


def _least_squares(function: Callable[[Values], Array]) -> list[float]:
    """So many damped Gauss-Newton steps from the start, slopes by differences."""
    found, damping = np.array(_START), 1e-3
    rest = function(found)
    for _ in range(_ROUNDS):
        inner = np.where(found + _STEPS > _MOST, -1.0, 1.0) * _STEPS
        slopes = np.stack(
            [(function(found + step) - rest) / size for step, size in _moves(inner)], axis=1
        )
        scaled = slopes * _STEPS
        normal = scaled.T @ scaled
        normal += damping * np.diag(np.diag(normal) + 1e-12)
        move = -np.linalg.solve(normal, scaled.T @ rest) * _STEPS
        other = np.clip(found + move, _LEAST, _MOST)
        trial = function(other)
        if trial @ trial < rest @ rest:
            found, rest, damping = other, trial, damping / 4
        else:
            damping *= 4
    return [float(x) for x in found]


def _moves(steps: Array) -> list[tuple[Array, float]]:
    return [(np.eye(len(steps))[i] * size, float(size)) for i, size in enumerate(steps)]


def _product_miss(figure: ProductFigure, rates: KernelRates) -> Miss:
    device = get_device(figure.device)
    made = kernel(device, plans(device, figure.recipe), figure.shape, rates)
    seconds = made.seconds
    if figure.passes:
        passes = recipe_passes(get_recipe(figure.recipe), "fprop", figure.shape)
        seconds += sum(x.seconds(device, rates) for x in passes)
    term = kernel_term(made)
    role = "shown" if _stays_cached(figure) else figure.role
    predicted = seconds * 1e6
    if figure.measure == "teraflops":
        predicted = figure.shape.flop / seconds / 1e12
    return Miss(figure, role, predicted, term, made.bound, figure.seconds / seconds)


@functools.cache
def _stays_cached(figure: ProductFigure) -> bool:
    """Whether a benchmark would wait for memory, at all peaks, that a cache spares it."""
    device = get_device(figure.device)
    if not figure.cached or device.l2_megabytes is None:
        return False
    made = kernel(device, plans(device, figure.recipe), figure.shape, _PEAKS)
    fits = operand_bytes(made.plan, figure.shape) < device.l2_megabytes.value * 1e6
    return fits and kernel_term(made) == "memory"


def _share_miss(figure: ShareFigure, rates: KernelRates) -> Miss:
    device = get_device(figure.device)
    term: Term = "memory" if figure.measure == "gigabytes_per_second" else "products"
    predicted = rates.memory * device.bandwidth / 1e9
    if term == "products":
        predicted = rates.products * device.sustained_share * device.peak() / 1e12
    return Miss(figure, figure.role, predicted, term, term, predicted / figure.value)


def _quantizer_miss(figure: QuantizerFigure, rates: KernelRates) -> Miss:
    made = quantize_pass(get_block(figure.block), figure.elements, copies=figure.copies)
    assert made is not None
    predicted = made.seconds(get_device(figure.device), rates) * 1e6
    return Miss(figure, figure.role, predicted, "passes", "passes", figure.value / predicted)


def _collective_miss(figure: CollectiveFigure, rates: KernelRates) -> Miss:
    device = get_device(figure.device)
    if figure.measure == "microseconds":
        collective = all_gather if figure.kind == "all_gather" else all_reduce
        predicted = collective(device, figure.devices, figure.size).seconds(rates) * 1e6
        return Miss(figure, figure.role, predicted, "link", "link", figure.value / predicted)
    peak = medium(device, figure.devices)[1]
    if figure.kind == "network":
        # Measured over the network alone, however few the devices.
        assert device.network_gigabytes_per_second is not None
        peak = device.network_gigabytes_per_second.value * 1e9
    predicted = rates.link * peak / 1e9
    return Miss(figure, figure.role, predicted, "link", "link", predicted / figure.value)


def _observed(misses: Sequence[Miss]) -> list[Observed]:
    return [
        Observed(x.term, x.figure.source, x.slower, x.role == "held out")
        for x in misses
        if x.role != "shown"
    ]


def _ratios(misses: Sequence[Miss]) -> list[Observed]:
    """Of two recipes' times at one shape on one device, in the order of the file."""
    found: dict[tuple[str, Shape], list[Miss]] = {}
    for x in misses:
        if isinstance(x.figure, ProductFigure) and x.role != "shown":
            found.setdefault((x.figure.device, x.figure.shape), []).append(x)
    return [
        Observed("ratio", other.figure.source, other.slower / one.slower, True)
        for some in found.values()
        for one, other in combinations(some, 2)
        if _recipe(one) != _recipe(other)
    ]


def _recipe(miss: Miss) -> str:
    assert isinstance(miss.figure, ProductFigure)
    return miss.figure.recipe


def _unseen(misses: Sequence[Miss]) -> Check:
    """What was unseen, against the intervals of all else."""
    ranges = intervals(_observed([x for x in misses if not x.figure.unseen])).ranges
    some = [x for x in misses if x.figure.unseen and x.role == "held out"]
    inside = [ranges[x.term][0] <= x.slower <= ranges[x.term][1] for x in some]
    return Check(sum(inside), len(inside))
