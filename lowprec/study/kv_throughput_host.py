"""A cache in the host's memory, modelled: against all on the device, and against computing it.

Sequences beyond those that fit on the device live in the host's memory in bfloat16; of each of
them the tokens that a step reads cross the link, as they are or compressed. A step reads all
tokens, or a few that it selects; what selecting costs is not counted, and nothing overlaps with the
link.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

from lowprec.study.kv_throughput import Method, cost
from lowprec.throughput.architecture import Architecture
from lowprec.throughput.cache import CacheCost, plain_cache
from lowprec.throughput.decode import (
    Step,
    cache_bytes,
    fetch_seconds,
    largest_batch,
    recompute_seconds,
    step,
)
from lowprec.throughput.devices import Device, Link
from lowprec.throughput.fit import Fit, tokens_per_second, two_digits

Place = Literal["device", "host"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostRow:
    """One batch, some of it in the host's memory.

    Attributes:
      device, link, architecture, context: of the step.
      read: tokens of a sequence that a step reads.
      place: `device`, all sequences there, or `host`, those beyond in the host's memory.
      stored, sent: the methods of the cache on the device and of what crosses the link.
      batch, away: sequences, and those of them in the host's memory.
      last: whether one more would fit nowhere.
      tokens_per_second, low, high: modelled.
      bound: the largest term of the step.
    """

    device: str
    link: str
    architecture: str
    context: int
    read: int
    place: Place
    stored: str
    sent: str
    batch: int
    away: int
    last: bool
    tokens_per_second: float
    low: float
    high: float
    bound: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecomputeRow:
    """A prompt's cache fetched from the host, or computed again.

    `gain` is the time of computing over that of fetching, with its interval; both times have
    theirs.
    """

    device: str
    link: str
    architecture: str
    method: str
    tokens: int
    fetch_seconds: float
    fetch_low: float
    fetch_high: float
    recompute_seconds: float
    recompute_low: float
    recompute_high: float
    gain: float
    low: float
    high: float


def host_rows(
    device: Device,
    link: Link,
    architecture: Architecture,
    compressed: Sequence[Method],
    fitted: Fit,
    *,
    context: int,
    read: int,
) -> Iterator[HostRow]:
    """All on the device, plain and compressed; and plain with more in the host, sent both ways."""
    plain = plain_cache(architecture)
    small = [cost(method, architecture, device, context) for method in compressed]
    fits = largest_batch(device, architecture, plain, context=context)
    spare = int(link.host_gigabytes.value * 1e9 // cache_bytes(architecture, plain, context))
    arms: list[tuple[CacheCost, CacheCost | None]] = [(cache, None) for cache in (plain, *small)]
    for stored, sent in arms + [(plain, sent) for sent in (plain, *small)]:
        held = largest_batch(device, architecture, stored, context=context)
        most = held if sent is None else fits + spare
        for batch in _sizes(most, held):
            away = max(0, batch - held)
            made = step(device, architecture, stored, fitted.rates, batch=batch, context=read)
            if sent is not None:
                other = step(device, architecture, sent, fitted.rates, batch=batch, context=read)
                crossing = fetch_seconds(link, architecture, sent, tokens=away * read)
                made = _mixed(made, other, away / batch, crossing)
            rate, low, high = tokens_per_second(made, fitted.ranges, link.fastest)
            yield HostRow(
                device=device.name,
                link=link.name,
                architecture=architecture.name,
                context=context,
                read=read,
                place="device" if sent is None else "host",
                stored=stored.name,
                sent="" if sent is None else sent.name,
                batch=batch,
                away=away,
                last=batch == most,
                tokens_per_second=two_digits(rate),
                low=two_digits(low),
                high=two_digits(high),
                bound=made.bound,
            )


def recompute_rows(
    device: Device,
    link: Link,
    architecture: Architecture,
    found: Sequence[Method],
    fitted: Fit,
    *,
    prompts: Sequence[int],
) -> Iterator[RecomputeRow]:
    """Fetching a prompt's cache against computing it, by method and length."""
    for method in found:
        for tokens in prompts:
            cache = cost(method, architecture, device, tokens)
            fetched = fetch_seconds(link, architecture, cache, tokens=tokens)
            computed = recompute_seconds(device, architecture, fitted.rates, tokens=tokens)
            products = fitted.ranges.products
            yield RecomputeRow(
                device=device.name,
                link=link.name,
                architecture=architecture.name,
                method=method.name,
                tokens=tokens,
                fetch_seconds=two_digits(fetched),
                fetch_low=two_digits(fetched * link.fastest),
                fetch_high=two_digits(fetched),
                recompute_seconds=two_digits(computed),
                recompute_low=two_digits(computed * products[0]),
                recompute_high=two_digits(computed * products[1]),
                gain=two_digits(computed / fetched),
                low=two_digits(computed * products[0] / fetched),
                high=two_digits(computed * products[1] / (fetched * link.fastest)),
            )


def _sizes(most: int, held: int) -> list[int]:
    """Powers of two up to the most, what the device holds and the most itself."""
    powers = {2**n for n in range(most.bit_length()) if 2**n <= most}
    return sorted(powers | {size for size in (held, most) if 0 < size <= most})


def _mixed(stored: Step, sent: Step, away: float, crossing: float) -> Step:
    """A step of which a share of the sequences is read in the form that crossed the link."""
    mixed = {
        name: (1 - away) * getattr(stored, name) + away * getattr(sent, name)
        for name in ("cache_memory", "attention_products", "dequantization")
    }
    return dataclasses.replace(stored, **mixed, link=crossing)
