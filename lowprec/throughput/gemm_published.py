"""The published times of `gemm_published.toml`: products, quantizers and collectives."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal

from lowprec.catalogue import decode, unknown
from lowprec.throughput.devices import beside, read_toml
from lowprec.throughput.fit import Role
from lowprec.throughput.tiles import Shape

Measure = Literal["teraflops", "microseconds", "gigabytes_per_second"]
UNITS: dict[Measure, str] = {
    "teraflops": "TFLOPS",
    "microseconds": "us",
    "gigabytes_per_second": "GB/s",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Table:
    """What an entry of any kind says."""

    name: str
    device: str
    role: Role
    source: str
    note: str = ""
    unseen: bool = False
    rows: tuple[tuple[float, ...], ...]
    measure: Measure = "microseconds"
    recipe: str = ""
    passes: bool = False
    cached: bool = False
    block: str = ""
    copies: int = 1
    kind: Literal["", "all_reduce", "all_gather", "nvlink", "network"] = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Figure:
    """A published number, as it stands in its source.

    Attributes:
      name, device, role, source, note, unseen: see the file.
      measure, value: the number and its unit.
    """

    name: str
    device: str
    role: Role
    source: str
    note: str
    unseen: bool
    measure: Measure
    value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductFigure(_Figure):
    """Of a product.

    Attributes:
      recipe: what was multiplied.
      shape: of the product.
      passes: whether the time holds quantizing the left operand.
      cached: whether the benchmark leaves operands in the cache from one call to the next.
    """

    recipe: str
    shape: Shape
    passes: bool
    cached: bool

    @property
    def seconds(self) -> float:
        """The published time."""
        if self.measure == "teraflops":
            return self.shape.flop / self.value / 1e12
        return self.value * 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShareFigure(_Figure):
    """Of what another kernel reaches of memory, or of products of bfloat16."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizerFigure(_Figure):
    """Of quantizing `elements` into a block, along so many axes."""

    block: str
    elements: int
    copies: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectiveFigure(_Figure):
    """Of a collective among `devices`, of `size` bytes each where a time is given."""

    kind: str
    devices: int
    size: float


@functools.cache
def product_figures() -> tuple[ProductFigure, ...]:
    """The published products.

    Example:
      >>> found = product_figures()
      >>> sorted({x.device for x in found if x.role == "fitted"})
      ['h100']
    """
    return tuple(
        ProductFigure(
            **_common(table),
            value=row[4],
            recipe=table.recipe,
            shape=Shape(m=int(row[0]), n=int(row[1]), k=int(row[2]), groups=int(row[3])),
            passes=table.passes,
            cached=table.cached,
        )
        for table in _tables("products")
        for row in table.rows
    )


@functools.cache
def share_figures() -> tuple[ShareFigure, ...]:
    """The published bandwidths and rates of other kernels."""
    return tuple(
        ShareFigure(**_common(table), value=row[0])
        for table in _tables("shares")
        for row in table.rows
    )


@functools.cache
def quantizer_figures() -> tuple[QuantizerFigure, ...]:
    """The published quantizers."""
    return tuple(
        QuantizerFigure(
            **_common(table),
            value=row[2],
            block=table.block,
            elements=int(row[0] * row[1]),
            copies=table.copies,
        )
        for table in _tables("quantizers")
        for row in table.rows
    )


@functools.cache
def collective_figures() -> tuple[CollectiveFigure, ...]:
    """The published collectives."""
    return tuple(
        CollectiveFigure(
            **_common(table),
            value=row[-1],
            kind=table.kind,
            devices=int(row[0]),
            size=row[1] * 1e6 if table.measure == "microseconds" else 0.0,
        )
        for table in _tables("collectives")
        for row in table.rows
    )


def _common(table: _Table) -> dict[str, Any]:
    names = ("name", "device", "role", "source", "note", "unseen", "measure")
    return {name: getattr(table, name) for name in names}


def _tables(kind: str) -> Iterator[_Table]:
    path = beside("gemm_published.toml")
    content = read_toml(path)
    sources = content["sources"]
    for entry in content[kind]:
        if entry["source"] not in sources:
            raise ValueError(f"{path}: {unknown('source', entry['source'], sources)}")
        full = entry | {"source": sources[entry["source"]]}
        yield decode(full, _Table, where=f"{path}: {entry['name']}")
