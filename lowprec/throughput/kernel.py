"""The time of one kernel that multiplies, term by term.

    t = launch + soft maximum (memory, waves * main loop) + storing the result

A tile's main loop takes the longest of its products on the tensor cores, of loading its operands
from the cache that all share, of its promotions, and of dequantizing its operands on the scalar
units, all of which overlap; every multiprocessor works on one tile a wave. The kernel takes the
tile, and the way to its recipe, that are fastest. Memory and work overlap too, but not without loss
where both take long: the fourth root of the sum of their fourth powers.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from lowprec.throughput.devices import Device
from lowprec.throughput.plan import Plan
from lowprec.throughput.tiles import Shape, Tile, cut, tiles_of

Bound = Literal["memory", "products", "cache", "promotion", "dequantization", "launch"]
LANES = 128
"""Scalar operations of a multiprocessor in a cycle: CUDA C++ Programming Guide, throughputs."""
POWER = 4
"""Of the soft maximum: two that take equally long take 19 % longer than one of them."""
_SIZES = ("rows", "columns", "count")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelRates:
    """What is reached of a device's peaks, and what a kernel takes besides.

    Attributes:
      memory: the share of peak bandwidth.
      products: the share of the tensor cores' rate at the clock that power leaves.
      kernel_seconds: of a launch, its first loads and its last stores.
      cache_bytes: a cycle, that a multiprocessor loads from the cache that all share.
      link: the share of a link's bandwidth.
      collective_seconds: of a collective, before and after its bytes move.
    """

    memory: float
    products: float
    kernel_seconds: float
    cache_bytes: float
    link: float = 1.0
    collective_seconds: float = 0.0

    def __post_init__(self) -> None:
        shares = self.memory, self.products, self.link
        times = self.kernel_seconds, self.collective_seconds
        if not all(0 < share <= 1 for share in shares) or min(times) < 0 or self.cache_bytes <= 0:
            raise ValueError(f"{self}: use shares within (0, 1], seconds of 0 or more, and "
                             "`cache_bytes` above 0")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """Seconds of a kernel by term, each as if it were alone.

    Attributes:
      plan, shape, tile: what runs, in tiles of what size.
      waves: how often every multiprocessor works on a tile.
      bytes: of the operands, scales included.
      memory: reading the bytes.
      products, cache, promotion, dequantization: of all main loops; the longest counts.
      store: writing the result.
      launch: of the kernel.
    """

    plan: Plan
    shape: Shape
    tile: Tile
    waves: int
    bytes: float
    memory: float
    products: float
    cache: float
    promotion: float
    dequantization: float
    store: float
    launch: float

    @property
    def work(self) -> float:
        """Seconds of all waves."""
        return max(self.products, self.cache, self.promotion, self.dequantization)

    @property
    def seconds(self) -> float:
        """Of the kernel."""
        main = (self.memory**POWER + self.work**POWER) ** (1 / POWER)
        return self.launch + main + self.store

    @property
    def teraflops(self) -> float:
        """1e12 flop a second of the product asked for, padding not counted."""
        return self.shape.flop / self.seconds / 1e12

    @property
    def bound(self) -> Bound:
        """What the kernel waits for most."""
        terms: dict[Bound, float] = {
            "memory": self.memory + self.store,
            "products": self.products,
            "cache": self.cache,
            "promotion": self.promotion,
            "dequantization": self.dequantization,
            "launch": self.launch,
        }
        return max(terms, key=lambda name: terms[name])


def kernel(device: Device, ways: Sequence[Plan], shape: Shape, rates: KernelRates) -> Kernel:
    """The fastest of several ways to a product, each in its fastest tiles.

    Args:
      device: where it runs.
      ways: of `plans`.
      shape: of the product.
      rates: how well it runs.

    Example:
      >>> from lowprec.throughput.devices import get_device
      >>> from lowprec.throughput.plan import plans
      >>> rates = KernelRates(memory=1.0, products=1.0, kernel_seconds=0.0, cache_bytes=64.0)
      >>> h20, shape = get_device("h20"), Shape(m=16, n=24576, k=7168)
      >>> few = kernel(h20, plans(h20, "deepseek_v3"), shape, rates)
      >>> few.tile.rows, few.bound
      (64, 'products')
    """
    found = [_tiled(device, way, shape, rates) for way in ways]
    return min(found, key=lambda x: x.seconds)


def operand_bytes(plan: Plan, shape: Shape) -> float:
    """Bytes of both operands of all groups, scales included."""
    left = shape.m * shape.k * plan.left_bits
    right = shape.n * shape.k * plan.right_bits
    return shape.groups * (left + right) / 8


def result_bytes(plan: Plan, shape: Shape) -> float:
    """Bytes of the results of all groups."""
    return shape.groups * shape.m * shape.n * plan.output_bits / 8


def _tiled(device: Device, plan: Plan, shape: Shape, rates: KernelRates) -> Kernel:
    multiprocessors, clock = device.multiprocessors.value, device.clock_gigahertz.value * 1e9
    # Scalar units run at the clock of the tensor cores beside them.
    cycles = clock * device.sustained_share
    peak = device.peak(plan.product, scaled=plan.scaled)
    rate = peak / multiprocessors * device.sustained_share * rates.products
    promotions = shape.k / plan.promote_every if plan.promote_every else 0.0
    read, bandwidth = operand_bytes(plan, shape), rates.memory * device.bandwidth
    tiles = cut(device.generation, shape, promoted=plan.promote_every is not None)
    rows, columns, count = (np.array([getattr(x, y) for x in tiles], float) for y in _SIZES)
    waves = np.ceil(count / multiprocessors)
    products = waves * 2 * rows * columns * shape.k / rate
    operations = promotions * plan.promotion_operations / LANES
    promotion = waves * operations * rows * columns / cycles
    converted = rows * plan.left_cycles + columns * plan.right_cycles
    dequantization = waves * converted * shape.k / cycles
    # Of an operand that neighbours load together, each loads its share.
    sharing = 1 - 1 / tiles_of(device.generation).sharing
    left, right = rows * plan.left_bits / 8, columns * plan.right_bits / 8
    loaded = left + right - sharing * np.maximum(left, right)
    cache = waves * loaded * shape.k / rates.cache_bytes / cycles
    work = np.max([products, cache, promotion, dequantization], axis=0)
    best = int(work.argmin())
    return Kernel(
        plan=plan,
        shape=shape,
        tile=tiles[best],
        waves=int(waves[best]),
        bytes=read,
        memory=read / bandwidth,
        products=float(products[best]),
        cache=float(cache[best]),
        promotion=float(promotion[best]),
        dequantization=float(dequantization[best]),
        store=result_bytes(plan, shape) / bandwidth,
        launch=rates.kernel_seconds,
    )
