"""Products by recipe, device, split and batch, modelled: layers, roles and published figures.

Nothing here is timed. Every modelled column has two significant digits, and beside it the interval
that the misses of published figures give.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from lowprec.gemm.recipe import ROLES, get_recipe, operand_bits
from lowprec.throughput.architecture import Architecture
from lowprec.throughput.devices import Device
from lowprec.throughput.fit import two_digits
from lowprec.throughput.gemm import BASELINE, modelled, times_faster
from lowprec.throughput.gemm_fit import GemmFit, Miss
from lowprec.throughput.gemm_published import (
    UNITS,
    CollectiveFigure,
    ProductFigure,
    QuantizerFigure,
)
from lowprec.throughput.links import NODE
from lowprec.throughput.parallel import (
    RESULT_BITS,
    Dispatch,
    Layer,
    Split,
    dense_layer,
    expert_layer,
)
from lowprec.throughput.tiles import Shape

MICRO = 1e6
SPLITS: tuple[Split, ...] = ("expert", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRow:
    """A layer on so many devices: its experts, or attention's projections and the MLP.

    `batch` is of an expert, or of a dense layer all tokens. `seconds` is the time of the layer,
    `tokens_per_second` of each device with its interval, `products`, `quantizing` and `links` the
    parts of it. `how` says what the recipe's product becomes on the device. `times` is the rate
    over that of bfloat16 under the same split, between the ends of published ratios; `over_least`
    the time over that of the recipe's fastest split and dispatch, without an interval, for no
    figure is published. Both to three digits, for drawing: what errs in common cancels in them.
    """

    device: str
    architecture: str
    recipe: str
    how: str
    split: str
    dispatch: str
    devices: int
    batch: int
    tokens_per_second: float
    low: float
    high: float
    seconds: float
    seconds_low: float
    seconds_high: float
    products: float
    quantizing: float
    links: float
    times: float
    times_low: float
    times_high: float
    over_least: float
    bound: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoleRow:
    """One product of training, modelled: microseconds of the kernel and of the passes before it.

    `plain_us` are those of bfloat16; `times_low` and `times_high` the ends of published ratios, as
    factors of the ratio of both.
    """

    device: str
    recipe: str
    role: str
    how: str
    m: int
    n: int
    k: int
    product_us: float
    quantizing_us: float
    us: float
    low: float
    high: float
    plain_us: float
    times_low: float
    times_high: float
    bound: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemmPublishedRow:
    """A published figure beside what is modelled of it.

    `miss` is the share by which the published time exceeds the modelled one; `low` and `high` are
    the ends of its term's interval, likewise.
    """

    device: str
    figure: str
    recipe: str
    m: int
    n: int
    k: int
    groups: int
    role: str
    published: float
    unit: str
    modelled: float
    term: str
    bound: str
    miss: float
    low: float
    high: float
    note: str
    source: str


def expert_rows(
    device: Device,
    architecture: Architecture,
    recipes: Sequence[str],
    fit: GemmFit,
    *,
    devices: Sequence[int],
    batches: Sequence[int],
) -> Iterator[LayerRow]:
    """Experts under every recipe and split; what is quantized is sent so, and in bfloat16 too."""
    for count in devices:
        if count > NODE and device.network_gigabytes_per_second is None:
            continue
        for batch in batches:

            def made(
                recipe: str,
                split: Split,
                dispatch: Dispatch,
                count: int = count,
                batch: int = batch,
            ) -> Layer:
                return expert_layer(
                    device,
                    architecture,
                    recipe,
                    fit,
                    split=split,
                    devices=count,
                    batch=batch,
                    dispatch=dispatch,
                )

            plain = {split: made(BASELINE, split, "quantized") for split in SPLITS}
            for recipe in recipes:
                found = {way: made(recipe, *way) for way in _ways(recipe)}
                least = min(x.seconds.value for x in found.values())
                for (split, dispatch), layer in found.items():
                    yield _layer_row(
                        device, architecture, layer, batch, dispatch, plain[split], least, fit
                    )


def dense_rows(
    device: Device,
    architecture: Architecture,
    recipes: Sequence[str],
    fit: GemmFit,
    *,
    devices: Sequence[int],
    batches: Sequence[int],
) -> Iterator[LayerRow]:
    """A dense layer under every recipe, cut among so many devices that its heads allow."""
    for count in devices:
        if architecture.kv_heads % count:
            continue
        for batch in batches:
            sizes = {"devices": count, "batch": batch}
            plain = dense_layer(device, architecture, BASELINE, fit, **sizes)
            for recipe in recipes:
                made = dense_layer(device, architecture, recipe, fit, **sizes)
                least = made.seconds.value
                yield _layer_row(device, architecture, made, batch, "", plain, least, fit)


def role_rows(
    device: Device, recipes: Sequence[str], fit: GemmFit, *, m: int, n: int, k: int
) -> Iterator[RoleRow]:
    """The three products of a training step's linear layer, all operands quantized anew.

    Args:
      device, recipes, fit: what runs where.
      m, n, k: tokens, and the layer's outputs and inputs.
    """
    shapes = Shape(m=m, n=n, k=k), Shape(m=m, n=k, k=n), Shape(m=k, n=n, k=m)
    for recipe in recipes:
        for role, shape in zip(ROLES, shapes, strict=True):
            made, plain = (
                modelled(device, x, shape, role=role, weights="quantized", fit=fit)
                for x in (recipe, BASELINE)
            )
            middle, low, high = (two_digits(MICRO * x) for x in made.seconds)
            times = times_faster(made.recipe, 1.0, 1.0, fit)
            yield RoleRow(
                device=device.name,
                recipe=made.recipe,
                role=role,
                how=made.kernel.plan.how,
                m=shape.m,
                n=shape.n,
                k=shape.k,
                product_us=two_digits(MICRO * made.product.seconds),
                quantizing_us=two_digits(MICRO * made.passes.seconds),
                us=middle,
                low=low,
                high=high,
                plain_us=two_digits(MICRO * plain.seconds.value),
                times_low=three_digits(times.low),
                times_high=three_digits(times.high),
                bound=made.bound,
            )


def gemm_published_rows(fit: GemmFit) -> Iterator[GemmPublishedRow]:
    """Every published figure beside what is modelled of it."""
    for miss in fit.misses:
        low, high = fit.ranges[miss.term]
        figure = miss.figure
        recipe, m, n, k, groups = _sizes(miss)
        yield GemmPublishedRow(
            device=figure.device,
            figure=figure.name,
            recipe=recipe,
            m=m,
            n=n,
            k=k,
            groups=groups,
            role=miss.role,
            published=figure.value,
            unit=UNITS[figure.measure],
            modelled=two_digits(miss.predicted),
            term=miss.term,
            bound=miss.bound,
            miss=two_digits(miss.slower - 1),
            low=two_digits(low - 1),
            high=two_digits(high - 1),
            note="; ".join(filter(None, _notes(miss))),
            source=figure.source,
        )


def _notes(miss: Miss) -> Iterator[str]:
    yield miss.figure.note
    if miss.role == "shown" and miss.figure.role != "shown":
        yield "its operands stay in the cache from call to call"
    if miss.figure.unseen:
        yield "read when the model's form was settled"


def _sizes(miss: Miss) -> tuple[str, int, int, int, int]:
    figure = miss.figure
    if isinstance(figure, ProductFigure):
        shape = figure.shape
        return figure.recipe, shape.m, shape.n, shape.k, shape.groups
    if isinstance(figure, CollectiveFigure):
        return figure.kind, figure.devices, round(figure.size), 0, 1
    if isinstance(figure, QuantizerFigure):
        return figure.block, figure.elements, 0, 0, figure.copies
    return "", 0, 0, 0, 1


def three_digits(value: float) -> float:
    """A ratio as it is drawn.

    Example:
      >>> three_digits(1.23456)
      1.23
    """
    return float(f"{value:.2e}")


def _ways(recipe: str) -> Iterator[tuple[Split, Dispatch]]:
    """Splits and dispatches; bfloat16 dispatch where that is another than the recipe's own."""
    yield "expert", "quantized"
    if operand_bits(get_recipe(recipe).fprop.a) < RESULT_BITS:
        yield "expert", "bfloat16"
    yield "tensor", "quantized"


def _layer_row(
    device: Device,
    architecture: Architecture,
    made: Layer,
    batch: int,
    dispatch: str,
    plain: Layer,
    least: float,
    fit: GemmFit,
) -> LayerRow:
    rate, low, high = (two_digits(x) for x in made.tokens_per_second)
    middle, fast, slow = (two_digits(x) for x in made.seconds)
    quantizing = sum(x.passes.seconds for x in made.products) + made.sending.seconds
    recipe, seconds = made.products[0].recipe, made.seconds.value
    times = times_faster(recipe, seconds, plain.seconds.value, fit)
    return LayerRow(
        device=device.name,
        architecture=architecture.name,
        recipe=recipe,
        how=made.products[0].kernel.plan.how,
        split=made.split,
        dispatch=dispatch,
        devices=made.devices,
        batch=batch,
        tokens_per_second=rate,
        low=low,
        high=high,
        seconds=middle,
        seconds_low=fast,
        seconds_high=slow,
        products=two_digits(sum(x.product.seconds for x in made.products)),
        quantizing=two_digits(quantizing),
        links=two_digits(made.transfers.seconds),
        times=three_digits(times.value),
        times_low=three_digits(times.low),
        times_high=three_digits(times.high),
        over_least=three_digits(seconds / least),
        bound=made.bound,
    )
