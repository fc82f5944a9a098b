"""What a bit is worth: the arithmetic that takes as long as moving it, and trades between the two.

A bit that need not be moved leaves time for so many operations of the scalar units, or so much flop
of the tensor cores, before work, and not the bit, is what a device waits for. A trade spends
operations on an element to save bits of it; it pays where it spends fewer than its bits are worth.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from lowprec.scaling.block import get_block
from lowprec.throughput.cache import dequantization
from lowprec.throughput.devices import Device
from lowprec.throughput.fit import two_digits
from lowprec.throughput.gemm_fit import GemmFit
from lowprec.throughput.kernel import LANES
from lowprec.throughput.links import NODE, medium
from lowprec.throughput.passes import quantize_pass

Where = Literal["memory", "node", "network"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExchangeRow:
    """What a bit is worth on a device: scalar operations, and flop of its fastest 8-bit products.

    `operations`, `low` and `high` follow from the bandwidth's interval; `medium` is what a node's
    devices meet on.
    """

    device: str
    where: Where
    medium: str
    operations: float
    low: float
    high: float
    flop: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TradeRow:
    """A trade on a device: `times` what it saves over what it spends, with its interval."""

    device: str
    trade: str
    where: Where
    bits: float
    operations: float
    times: float
    low: float
    high: float
    pays: Literal["yes", "no", "not resolved"]


def exchange_rows(device: Device, fit: GemmFit) -> Iterator[ExchangeRow]:
    """A bit in memory, between the devices of a node, and between nodes where that is known."""
    for where, name, peak, share, ends in _media(device, fit):
        seconds = 1 / 8 / (share * peak)
        lanes = LANES * device.vector_cycles * device.sustained_share
        product = device.peak("float8" if device.has("float8") else "bfloat16")
        flop = seconds * product * device.sustained_share * fit.rates.products
        found = [seconds * x * lanes for x in (1.0, *ends)]
        middle, low, high = (two_digits(x) for x in found)
        yield ExchangeRow(
            device=device.name,
            where=where,
            medium=name,
            operations=middle,
            low=low,
            high=high,
            flop=two_digits(flop),
        )


def trade_rows(
    device: Device, trades: Sequence[Mapping[str, Any]], fit: GemmFit
) -> Iterator[TradeRow]:
    """Every trade of `gemm_throughput.toml` on a device.

    Args:
      device: where it is made.
      trades: each with a `name`, `where` its bits are saved, `from_bits` and `to_bits` of an
        element, `copies` that move, and what is spent: the `block` that it is quantized into, or
        the `dequantization` of `dequantization.toml` that undoes it.
      fit: rates and intervals.
    """
    worth = {x.where: x for x in exchange_rows(device, fit)}
    for trade in trades:
        if trade["where"] not in worth:
            continue
        rate = worth[trade["where"]]
        bits = (trade["from_bits"] - trade["to_bits"]) * trade.get("copies", 1)
        spent = _operations(trade, device)
        times = [bits * x / spent for x in (rate.operations, rate.low, rate.high)]
        yield TradeRow(
            device=device.name,
            trade=trade["name"],
            where=rate.where,
            bits=bits,
            operations=two_digits(spent),
            times=two_digits(times[0]),
            low=two_digits(times[1]),
            high=two_digits(times[2]),
            pays="yes" if times[1] > 1 else "no" if times[2] < 1 else "not resolved",
        )


def _media(
    device: Device, fit: GemmFit
) -> Iterator[tuple[Where, str, float, float, tuple[float, float]]]:
    rates, ranges = fit.rates, fit.ranges
    yield "memory", "memory", device.bandwidth, rates.memory, ranges["memory"]
    yield "node", *medium(device, NODE), rates.link, ranges["link"]
    if device.network_gigabytes_per_second is not None:
        yield "network", *medium(device, 2 * NODE), rates.link, ranges["link"]


def _operations(trade: Mapping[str, Any], device: Device) -> float:
    """Scalar operations on each element."""
    if "block" in trade:
        made = quantize_pass(get_block(trade["block"]), 1)
        assert made is not None
        return LANES * made.cycles
    return LANES * dequantization(trade["dequantization"], device.generation).cycles
