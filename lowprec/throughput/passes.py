"""What quantizing operands takes: passes over memory, and the scalar units' work on each element.

An operand comes as bfloat16 and leaves in its format with its scales: one pass where a tile's own
largest magnitude scales it, one more over all of it where the whole tensor's does. A transposed
copy, as the products of gradients need it, takes its bytes, in the same pass (`copies`) or, as
`recipe_passes` counts them, in one of its own before each product.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Literal

from lowprec.catalogue import decode
from lowprec.gemm.recipe import Recipe, Role, get_recipe, operand_bits
from lowprec.numerics.format import Format
from lowprec.numerics.rounding import is_stochastic
from lowprec.scaling.block import Block
from lowprec.scaling.codings import Transform
from lowprec.throughput.devices import Device, beside, read_toml
from lowprec.throughput.kernel import KernelRates
from lowprec.throughput.tiles import Shape

Weights = Literal["stored", "quantized"]
PLAIN = 16
"""Bits of an element as the layer before leaves it: bfloat16."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Cycles of one multiprocessor an element, and what they rest on."""

    cycles: float
    note: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """Quantizing one tensor.

    Attributes:
      elements: of the tensor.
      bytes: read and written.
      kernels: launched.
      cycles: of one multiprocessor, of each element.
    """

    elements: int
    bytes: float
    kernels: int
    cycles: float

    def seconds(self, device: Device, rates: KernelRates) -> float:
        """On a device: the longer of moving the bytes and working on them, and the launches."""
        memory = self.bytes / (rates.memory * device.bandwidth)
        work = self.elements * self.cycles / (device.vector_cycles * device.sustained_share)
        return self.kernels * rates.kernel_seconds + max(memory, work)


def quantize_pass(
    operand: Format | Block, elements: int, *, source: Format | Block | None = None, copies: int = 1
) -> Pass | None:
    """Quantizing a tensor into an operand; None where there is nothing to do.

    Args:
      operand: a block scaling, or a plain format, to which 16 bits are already rounded.
      elements: of the tensor.
      source: the stored copy that it starts from, in place of bfloat16.
      copies: along how many axes it is written.

    Example:
      >>> from lowprec.scaling.block import get_block
      >>> found = quantize_pass(get_block("nvfp4"), 1000)
      >>> found.bytes, found.kernels
      (4562.5, 2)
      >>> quantize_pass(get_block("fp8_1x128"), 1000).bytes
      3031.25
    """
    if isinstance(operand, Format) and operand.bits >= PLAIN:
        return None
    read = PLAIN if source is None else operand_bits(source)
    whole = isinstance(operand, Block) and _scaled_as_a_whole(operand)
    bits = read * (2 if whole else 1) + copies * operand_bits(operand)
    return Pass(
        elements=elements,
        bytes=elements * bits / 8,
        kernels=2 if whole else 1,
        cycles=copies * _cycles(operand),
    )


def recipe_passes(
    recipe: str | Recipe, role: Role, shape: Shape, *, weights: Weights = "stored"
) -> tuple[Pass, ...]:
    """The passes before a recipe's product.

    Args:
      recipe, role: what is multiplied.
      shape: of the product, groups included.
      weights: whether the right operand of fprop and dgrad is stored in its format, as when
        serving, or quantized for this product, as when training.

    Example:
      >>> shape = Shape(m=4096, n=4096, k=4096)
      >>> [len(recipe_passes("deepseek_v3", role, shape)) for role in ("fprop", "wgrad")]
      [1, 2]
    """
    pair = getattr(get_recipe(recipe), role)
    stored = weights == "stored" and role != "wgrad"
    left, right = shape.m * shape.k * shape.groups, shape.n * shape.k * shape.groups
    found = (
        quantize_pass(pair.a, left, source=pair.a_from),
        None if stored else quantize_pass(pair.b, right, source=pair.b_from),
    )
    return tuple(x for x in found if x is not None)


def works() -> Mapping[str, Work]:
    """What is done to an element, by name, and what it takes."""
    return _registry()


def _scaled_as_a_whole(block: Block) -> bool:
    """Whether all of a tensor is read before any of it can be scaled."""
    if block.amax_source == "given":
        return False
    return block.tile == ("all", "all") or block.tensor_scale == "amax"


def _cycles(operand: Format | Block) -> float:
    found = _registry()
    if isinstance(operand, Format):
        return found["convert"].cycles
    total = found["amax"].cycles + found["convert"].cycles
    if is_stochastic(operand.rounding):
        total += found["stochastic"].cycles
    if operand.transform is not None:
        total += found["butterfly"].cycles * _stages(operand.transform)
    if operand.scale_rule in ("four_over_six", "minimum_error"):
        total += found["search"].cycles
    return total


def _stages(transform: Transform) -> float:
    """Operations on each element: a butterfly's, a dense matrix's, or the one of a factor."""
    if transform.kind == "hadamard":
        return math.log2(transform.size)
    return max(1, transform.size)


@functools.cache
def _registry() -> dict[str, Work]:
    path = beside("passes.toml")
    return {
        name: decode(entry, Work, where=f"{path}: {name}")
        for name, entry in read_toml(path).items()
    }
