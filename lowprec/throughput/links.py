"""What devices send each other: bytes and seconds of collectives over NVLink or the network."""

import dataclasses
from typing import Literal

from lowprec.throughput.devices import Device, get_link
from lowprec.throughput.kernel import KernelRates

Medium = Literal["nvlink", "host link", "network"]
NODE = 8
"""Devices that meet on NVLink, or on their host's link: a node of an HGX board."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
    """What one device sends and receives at the same time, and over what.

    Attributes:
      medium: between the devices; over the network where they fill more than a node.
      bytes: that the busiest device sends.
      peak: bytes per second of one direction.
    """

    medium: Medium
    bytes: float
    peak: float

    def seconds(self, rates: KernelRates) -> float:
        """Nothing where nothing is sent."""
        if not self.bytes:
            return 0.0
        return rates.collective_seconds + self.bytes / (rates.link * self.peak)


def medium(device: Device, devices: int) -> tuple[Medium, float]:
    """What so many devices meet on, and its bytes per second in one direction.

    Raises:
      ValueError: there are more than a node holds, and no network is known.

    Example:
      >>> from lowprec.throughput.devices import get_device
      >>> [medium(get_device("h800"), count) for count in (8, 16)]
      [('nvlink', 200000000000.0), ('network', 50000000000.0)]
    """
    if devices > NODE:
        if device.network_gigabytes_per_second is None:
            raise ValueError(f"`devices` = {devices}: no network between nodes of {device.name} is "
                             f"known; use {NODE} or fewer")  # fmt: skip
        return "network", device.network_gigabytes_per_second.value * 1e9
    if device.nvlink_gigabytes_per_second is None:
        return "host link", get_link(device.link).gigabytes_per_second.value * 1e9
    return "nvlink", device.nvlink_gigabytes_per_second.value / 2 * 1e9


def all_reduce(device: Device, devices: int, size: float) -> Transfer:
    """Every device's `size` bytes summed onto all of them: a reduction and a gathering.

    Example:
      >>> from lowprec.throughput.devices import get_device
      >>> all_reduce(get_device("h100"), 8, 1024.0).bytes
      1792.0
    """
    return _transfer(device, devices, 2 * (devices - 1) / devices * size)


def all_gather(device: Device, devices: int, size: float) -> Transfer:
    """`size` bytes in all, of which each device holds a share, onto all; or reduced and scattered.

    Example:
      >>> from lowprec.throughput.devices import get_device
      >>> all_gather(get_device("h100"), 8, 1024.0).bytes
      896.0
    """
    return _transfer(device, devices, (devices - 1) / devices * size)


def all_to_all(
    device: Device, devices: int, *, tokens: float, copies: int, size: float
) -> Transfer:
    """A device's tokens sent to the experts that they chose, or their results back.

    Experts lie on all devices alike and are chosen at random, one transfer for each, the sender's
    own left out, as DeepEP's low-latency kernels send them.

    Args:
      device: of all of them.
      devices: that hold experts.
      tokens: of each device.
      copies: experts that a token goes to.
      size: bytes of a token.

    Example:
      >>> from lowprec.throughput.devices import get_device
      >>> round(all_to_all(get_device("h800"), 64, tokens=128, copies=8, size=7168).bytes)
      7225344
    """
    return _transfer(device, devices, tokens * copies * size * (devices - 1) / devices)


def _transfer(device: Device, devices: int, size: float) -> Transfer:
    if devices < 1:
        raise ValueError(f"`devices` = {devices}; use 1 or more")
    kind, peak = medium(device, devices)
    return Transfer(medium=kind, bytes=size, peak=peak)
