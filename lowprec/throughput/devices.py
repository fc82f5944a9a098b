"""Devices and links to host memory: constants of the models, each with its source.

`devices.toml` is the registry; a user's own TOML file has the keys of one `Device`, and plain
numbers where it names no source.
"""

import dataclasses
import functools
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from lowprec.catalogue import decode, is_path, unknown

Evidence = Literal["cited", "inferred"]
Generation = Literal["hopper", "blackwell", "ada", "rtx_blackwell"]
ProductFormat = Literal["bfloat16", "float8", "float4"]
OWN = "the user's own"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """A number with its source; `inferred` where the source does not state it, as `note` says."""

    value: float
    source: str
    evidence: Evidence = "cited"
    note: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.value < float("inf"):
            raise ValueError(f"`value` = {self.value}; a device's constant is positive and finite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """A device of the models of decoding and of products.

    Attributes:
      name, title: how it is asked for, and what figures call it.
      generation: of its instructions, by which dequantization costs differ.
      link: the name of the link to its host's memory.
      memory_gigabytes, memory_terabytes_per_second: 1e9 and 1e12 bytes.
      bfloat16_teraflops, float8_teraflops, float4_teraflops: dense tensor-core rates with float32
        accumulation; None where there are none.
      scaled_float8_teraflops: of the instructions of 8 bits that apply block scales; None where
        they are as fast as the plain ones.
      multiprocessors, clock_gigahertz: of the units that dequantize.
      sustained_gigahertz: what power leaves of the clock while tensor cores work; None for all.
      l2_megabytes: of the cache that all share; tells which benchmarks read no memory.
      nvlink_gigabytes_per_second: in both directions together; None where devices meet on the link
        to the host alone.
      network_gigabytes_per_second: of the network card beside each device, in one direction.
    """

    name: str
    title: str = ""
    generation: Generation
    link: str
    memory_gigabytes: Constant
    memory_terabytes_per_second: Constant
    bfloat16_teraflops: Constant
    float8_teraflops: Constant | None = None
    float4_teraflops: Constant | None = None
    scaled_float8_teraflops: Constant | None = None
    multiprocessors: Constant
    clock_gigahertz: Constant
    sustained_gigahertz: Constant | None = None
    l2_megabytes: Constant | None = None
    nvlink_gigabytes_per_second: Constant | None = None
    network_gigabytes_per_second: Constant | None = None

    @property
    def memory(self) -> float:
        """Bytes of memory."""
        return self.memory_gigabytes.value * 1e9

    @property
    def bandwidth(self) -> float:
        """Peak bytes per second of its memory."""
        return self.memory_terabytes_per_second.value * 1e12

    @property
    def vector_cycles(self) -> float:
        """Cycles per second of all multiprocessors together."""
        return self.multiprocessors.value * self.clock_gigahertz.value * 1e9

    @property
    def sustained_share(self) -> float:
        """The share of the clock, and of peak flop, that power leaves to products.

        Example:
          >>> [round(get_device(name).sustained_share, 2) for name in ("h800", "h20")]
          [0.87, 1.0]
        """
        if self.sustained_gigahertz is None:
            return 1.0
        return min(1.0, self.sustained_gigahertz.value / self.clock_gigahertz.value)

    def has(self, product: ProductFormat) -> bool:
        """Whether the device has products of a format."""
        return getattr(self, f"{product}_teraflops") is not None

    def peak(self, product: ProductFormat = "bfloat16", *, scaled: bool = False) -> float:
        """Peak flop per second of products of a format.

        Args:
          product: the format.
          scaled: whether the instruction applies block scales.

        Raises:
          ValueError: the device has no such products.

        Example:
          >>> get_device("h20").peak()
          148000000000000.0
          >>> rtx = get_device("rtx_5090")
          >>> rtx.peak("float8", scaled=True) / rtx.peak("float8")
          2.0
        """
        rate: Constant | None = getattr(self, f"{product}_teraflops")
        if scaled and product == "float8" and self.scaled_float8_teraflops is not None:
            rate = self.scaled_float8_teraflops
        if rate is None:
            raise ValueError(f"{self.name} has no products of {product}; use a cache whose "
                             "`product` is bfloat16")  # fmt: skip
        return rate.value * 1e12

    def ridge(self, product: ProductFormat = "bfloat16") -> float:
        """Flop per byte at which products and memory take equally long at their peaks.

        Example:
          >>> [round(get_device(name).ridge()) for name in ("h800", "h20", "b200", "rtx_5090")]
          [295, 37, 281, 117]
        """
        return self.peak(product) / self.bandwidth


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """A link between a device and its host's memory; bandwidths are of one direction.

    Attributes:
      name, title: how it is asked for, and what figures call it.
      gigabytes_per_second: by specification.
      achieved_gigabytes_per_second: of large copies from pinned memory.
      host_gigabytes: memory of the host, for a cache held there.
    """

    name: str
    title: str = ""
    gigabytes_per_second: Constant
    achieved_gigabytes_per_second: Constant
    host_gigabytes: Constant

    @property
    def bandwidth(self) -> float:
        """Achieved bytes per second."""
        return self.achieved_gigabytes_per_second.value * 1e9

    @property
    def fastest(self) -> float:
        """The time by specification over the time achieved."""
        return self.achieved_gigabytes_per_second.value / self.gigabytes_per_second.value


def list_devices() -> tuple[str, ...]:
    """The sorted names of the devices of `devices.toml`."""
    return tuple(sorted(_registry()["device"]))


def list_links() -> tuple[str, ...]:
    """The sorted names of the links of `devices.toml`."""
    return tuple(sorted(_registry()["link"]))


def get_device(device: str | Device) -> Device:
    """A device by name, by path to a TOML file, or as the object.

    Raises:
      ValueError: no such device (near matches are listed), or the file does not fit `Device`.

    Example:
      >>> h100 = get_device("h100")
      >>> h100.bandwidth, h100.memory_gigabytes.source
      (3350000000000.0, 'glennklockwood.com/garden/processors/h100')
    """
    if isinstance(device, Device):
        return device
    if is_path(device):
        return _own(Path(device), Device)
    if device not in list_devices():
        raise ValueError(unknown("device", device, list_devices()))
    return _registry()["device"][device]


def get_link(link: str | Link) -> Link:
    """A link by name, by path to a TOML file, or as the object.

    Raises:
      ValueError: no such link, or the file does not fit `Link`.

    Example:
      >>> get_link("pcie_5").bandwidth
      50000000000.0
    """
    if isinstance(link, Link):
        return link
    if is_path(link):
        return _own(Path(link), Link)
    if link not in list_links():
        raise ValueError(unknown("link", link, list_links()))
    return _registry()["link"][link]


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a table.

    Raises:
      ValueError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error


def beside(name: str) -> Path:
    """A data file of this package."""
    return Path(str(files("lowprec.throughput"))) / name


@functools.cache
def _registry() -> dict[str, dict[str, Any]]:
    path = beside("devices.toml")
    table = read_toml(path)
    kinds: dict[str, type] = {"device": Device, "link": Link}
    return {
        kind: {
            name: decode(
                {"name": name} | _cited(entry, table["sources"], f"{path}: {name}"),
                cls,
                where=f"{path}: {name}",
            )
            for name, entry in table[kind].items()
        }
        for kind, cls in kinds.items()
    }


def _cited(entry: Mapping[str, Any], sources: Mapping[str, str], where: str) -> dict[str, Any]:
    """The entry with each constant's source written out."""
    found = dict(entry)
    for key, value in entry.items():
        if isinstance(value, Mapping):
            source = value.get("source", "")
            if source not in sources:
                raise ValueError(f"{where}: {key}: {unknown('source', source, sources)}")
            found[key] = {**value, "source": sources[source]}
    return found


def _own(path: Path, cls: type[Any]) -> Any:
    """A user's file, where a plain number is a constant without a source."""
    hints = {field.name: field.type for field in dataclasses.fields(cls)}
    table = {
        key: {"value": value, "source": OWN}
        if hints.get(key) in (Constant, Constant | None)
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        else value
        for key, value in read_toml(path).items()
    }
    return decode(table, cls, where=str(path))
