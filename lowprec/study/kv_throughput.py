"""Decode throughput by cache method, modelled: rows for every device, context and batch.

Nothing here is timed. Bytes are those of the catalogue's methods at the context: of codes, scales,
windows and sinks. Every modelled column has two significant digits, and beside it the interval that
the misses of published figures give.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from lowprec.kv import KVMethod, get_kv_method
from lowprec.kv.latent import LatentSpec
from lowprec.numerics.format import Format
from lowprec.study.kv_tensors import exempt
from lowprec.throughput.architecture import Architecture, get_architecture
from lowprec.throughput.cache import CacheCost, dequantization
from lowprec.throughput.decode import Bound, Step, largest_batch, step
from lowprec.throughput.devices import Constant, Device, Link, ProductFormat
from lowprec.throughput.fit import (
    TIMES,
    UNITS,
    Fit,
    range_of,
    scaled,
    tokens_per_second,
    two_digits,
)

Fill = Literal["one", "between", "largest"]
NANO = 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A method of the catalogue, and what its kernels do, which no catalogue says.

    Attributes:
      kv: the method.
      dequantization: how kernels turn an element into an operand, a name of `dequantization.toml`.
      product: the format that attention multiplies in.
      source: of these two.
    """

    kv: KVMethod
    dequantization: str
    product: ProductFormat
    source: str

    @property
    def name(self) -> str:
        """Of the method."""
        return self.kv.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThroughputRow:
    """One step on one device. Seconds are of the whole step, by term; see `lowprec.throughput`.

    `bits_per_element` are of a cache of `context` tokens, windows, sinks and metadata included.
    `fill` is `one` sequence, the `largest` batch that fits, or `between`. Where nothing fits
    `batch` is 0, `bound` says so and the rest is 0.
    """

    device: str
    architecture: str
    shards: int
    method: str
    bits_per_element: float
    context: int
    fill: Fill
    batch: int
    tokens_per_second: float
    low: float
    high: float
    bound: str
    weights: float
    cache_memory: float
    attention_products: float
    dequantization: float
    overhead: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionRow:
    """Attention over one cached token of one layer: nanoseconds by term; the longest counts.

    `bytes` are of a token in a cache of `context` tokens, windows and sinks spread over them.
    `low` and `high` are the ends of the interval, of a term under its own name. `resolved` says
    whether no other term can be the longest with both anywhere in their ranges.
    """

    device: str
    form: str
    context: int
    bytes: float
    flop: float
    intensity: float
    ridge: float
    memory_ns: float
    memory_low: float
    memory_high: float
    products_ns: float
    products_low: float
    products_high: float
    dequantization_ns: float
    dequantization_low: float
    dequantization_high: float
    bound: Bound
    resolved: bool
    ns: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """A published figure beside the prediction.

    `miss` is the share by which the published time exceeds the predicted one, of a speedup the
    predicted the published; `low` and `high` are the ends of its term's range, likewise, and
    `predicted_low` and `predicted_high` those of the prediction in its unit.
    """

    device: str
    figure: str
    role: str
    published: float
    unit: str
    predicted: float
    predicted_low: float
    predicted_high: float
    term: str
    miss: float
    low: float
    high: float
    note: str
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantRow:
    """A constant of a device or link, with its source."""

    of: str
    constant: str
    value: float
    evidence: str
    source: str
    note: str


def methods(config: Mapping[str, Any]) -> list[Method]:
    """The cache methods of the experiment, by their names in the catalogue."""
    return [_method(**entry) for entry in config["method"]]


def _method(*, name: str, **kernels: Any) -> Method:
    return Method(kv=get_kv_method(name), **kernels)


def cost(method: Method, architecture: Architecture, device: Device, context: int) -> CacheCost:
    """What a method costs on a model and a device, in a cache of `context` tokens.

    Bytes are those of its arrays over `context`; a token in a window is not dequantized.

    Raises:
      ValueError: a method of latents and a model of heads, or the other way round.

    Example:
      >>> from lowprec.throughput.devices import get_device
      >>> given = get_architecture("qwen_2_5_7b"), get_device("h100")
      >>> kivi = Method(
      ...     kv=get_kv_method("kivi_2bit"), dequantization="integer_or_table",
      ...     product="bfloat16", source="",
      ... )
      >>> [cost(kivi, *given, context).bytes_per_token_layer for context in (1024, 32768)]
      [641.0, 392.03125]
    """
    if not belongs(method, architecture):
        raise ValueError(
            f"`method` = {method.name} keeps {'latents' if method.kv.latent else 'keys and values'}"
            f", and {architecture.name} has others to keep"
        )
    spent = dequantization(method.dequantization, device.generation)
    return CacheCost(
        name=method.name,
        bytes_per_token_layer=_bytes(method.kv, *_shape(architecture), context),
        elements_per_token_layer=architecture.cached_elements * _dequantized(method, context),
        cycles_per_element=spent.cycles,
        product=method.product,
    )


def belongs(method: Method, architecture: Architecture) -> bool:
    """Whether a method of a latent cache meets a latent model, or neither is latent."""
    return method.kv.latent == (architecture.latent is not None)


def _shape(architecture: Architecture) -> tuple[int, int]:
    """Heads of a cache, and numbers of one: of a latent with its rotary key, one."""
    if architecture.latent is not None:
        return 1, architecture.cached_elements
    return architecture.kv_heads, architecture.head_dim


@functools.cache
def _bytes(method: KVMethod, heads: int, dim: int, context: int) -> float:
    return method.bytes_per_token(layers=1, kv_heads=heads, dim=dim, length=context)


def _dequantized(method: Method, context: int) -> float:
    """The share of a token's numbers that are dequantized: those not in 16 bits."""
    if method.dequantization == "none":
        return 0.0
    spec = method.kv.spec
    if not isinstance(spec, LatentSpec):
        return 1 - exempt(method.kv, context)
    parts = ((spec.latents, spec.latent_dim), (spec.rope_keys, spec.rope_dim))
    coded = [size for kind, size in parts if not (isinstance(kind, Format) and kind.bits == 16)]
    return sum(coded) / (spec.latent_dim + spec.rope_dim)


def throughput_rows(
    device: Device,
    architecture: Architecture,
    found: Sequence[Method],
    fitted: Fit,
    *,
    contexts: Sequence[int],
    batch_context: int,
    shards: int = 1,
) -> Iterator[ThroughputRow]:
    """One sequence and the largest batch at every context; all powers of two at one of them."""
    for method in found:
        for context in contexts:
            cache = cost(method, architecture, device, context)
            most = largest_batch(device, architecture, cache, context=context, shards=shards)
            for fill, batch in _fills(most, every=context == batch_context):
                made = None
                if batch:
                    made = step(
                        device,
                        architecture,
                        cache,
                        fitted.rates,
                        batch=batch,
                        context=context,
                        shards=shards,
                    )
                yield _row(device, architecture, shards, cache, context, fill, made, fitted)


def _fills(most: int, *, every: bool) -> list[tuple[Fill, int]]:
    """The batches of a context; one and the largest also where they are the same."""
    found: list[tuple[Fill, int]] = []
    if most:
        found.append(("one", 1))
    if every:
        found.extend(("between", 2**n) for n in range(1, most.bit_length()) if 2**n < most)
    found.append(("largest", most))
    return found


def attention_row(
    device: Device,
    architecture: Architecture,
    cache: CacheCost,
    fitted: Fit,
    *,
    context: int,
) -> AttentionRow:
    """Attention alone on a device.

    Args:
      device, architecture, cache: what runs, on what.
      fitted: rates and ranges.
      context: that the cache's bytes are of.
    """
    own = architecture.attention_flop
    made = step(device, architecture, cache, fitted.rates, batch=1, context=1)
    fast, slow = scaled(made, fitted.ranges, 0), scaled(made, fitted.ranges, 1)
    each = NANO / architecture.layers
    return AttentionRow(
        device=device.name,
        form=cache.name,
        context=context,
        bytes=cache.bytes_per_token_layer,
        flop=float(own),
        intensity=two_digits(own / cache.bytes_per_token_layer),
        ridge=two_digits(device.ridge(cache.product)),
        memory_ns=two_digits(made.cache_memory * each),
        memory_low=two_digits(fast.cache_memory * each),
        memory_high=two_digits(slow.cache_memory * each),
        products_ns=two_digits(made.attention_products * each),
        products_low=two_digits(fast.attention_products * each),
        products_high=two_digits(slow.attention_products * each),
        dequantization_ns=two_digits(made.dequantization * each),
        dequantization_low=two_digits(fast.dequantization * each),
        dequantization_high=two_digits(slow.dequantization * each),
        bound=made.attention_bound,
        resolved=_resolved(made, fast, slow),
        ns=two_digits(made.attention * each),
        low=two_digits(fast.attention * each),
        high=two_digits(slow.attention * each),
    )


def form_rows(
    forms: Sequence[Mapping[str, Any]], device: Device, fitted: Fit, *, context: int
) -> Iterator[AttentionRow]:
    """The forms of a latent model's attention: its heads expanded, grouped, or absorbed."""
    for form in forms:
        architecture = get_architecture(form["architecture"])
        if "kv_heads" in form:
            heads = {"kv_heads": form["kv_heads"], "head_dim": form["head_dim"]}
            architecture = dataclasses.replace(architecture, latent=None, **heads)
        method = _method(
            name=form["method"],
            dequantization=form["dequantization"],
            product="bfloat16",
            source="",
        )
        cache = cost(method, architecture, device, context)
        named = dataclasses.replace(cache, name=form["name"])
        yield attention_row(device, architecture, named, fitted, context=context)


def published_rows(fitted: Fit) -> Iterator[PublishedRow]:
    """Every published figure beside what the model predicts of it."""
    for miss in fitted.misses:
        figure = miss.figure
        ends = range_of(miss, fitted)
        times = ends if figure.kind in TIMES else (1 / ends[1], 1 / ends[0])
        yield PublishedRow(
            device=figure.device,
            figure=figure.name,
            role=figure.role,
            published=figure.value,
            unit=UNITS[figure.kind],
            predicted=two_digits(miss.predicted),
            predicted_low=two_digits(miss.predicted * times[0]),
            predicted_high=two_digits(miss.predicted * times[1]),
            term=miss.term,
            miss=two_digits(miss.slower - 1),
            low=two_digits(ends[0] - 1),
            high=two_digits(ends[1] - 1),
            note=figure.note,
            source=figure.source,
        )


def constant_rows(found: Sequence[Device | Link]) -> Iterator[ConstantRow]:
    """All constants of devices and links, with their sources."""
    for one in found:
        for field in dataclasses.fields(one):
            constant = getattr(one, field.name)
            if isinstance(constant, Constant):
                yield ConstantRow(
                    of=one.name,
                    constant=field.name,
                    value=constant.value,
                    evidence=constant.evidence,
                    source=constant.source,
                    note=constant.note,
                )


def _row(
    device: Device,
    architecture: Architecture,
    shards: int,
    cache: CacheCost,
    context: int,
    fill: Fill,
    made: Step | None,
    fitted: Fit,
) -> ThroughputRow:
    rate, low, high = (0.0, 0.0, 0.0) if made is None else tokens_per_second(made, fitted.ranges)
    terms = (0.0,) * 5
    if made is not None:
        terms = (
            made.weights, made.cache_memory, made.attention_products, made.dequantization,
            made.overhead,
        )  # fmt: skip
    weights, memory, products, vectors, overhead = map(two_digits, terms)
    return ThroughputRow(
        device=device.name,
        architecture=architecture.name,
        shards=shards,
        method=cache.name,
        bits_per_element=round(8 * cache.bytes_per_token_layer / architecture.cached_elements, 3),
        context=context,
        fill=fill,
        batch=0 if made is None else made.batch,
        tokens_per_second=two_digits(rate),
        low=two_digits(low),
        high=two_digits(high),
        bound="does not fit" if made is None else made.bound,
        weights=weights,
        cache_memory=memory,
        attention_products=products,
        dequantization=vectors,
        overhead=overhead,
    )


def _resolved(made: Step, fast: Step, slow: Step) -> bool:
    fields = {
        "cache memory": "cache_memory",
        "attention products": "attention_products",
        "dequantization": "dequantization",
    }
    longest = getattr(fast, fields.pop(made.attention_bound))
    return all(getattr(slow, other) < longest for other in fields.values())
