"""The products of a model's layer on one of several devices, and what the devices send each other.

Experts can lie on devices whole, tokens being sent to them and back, or each be cut among all
devices, tokens being gathered by all and results summed. Dense layers are cut, or stand whole on
every device. Tokens are spread over devices and experts evenly, and nothing overlaps with a link.
"""

import dataclasses
import math
from typing import Literal

from lowprec.gemm.recipe import Recipe, get_recipe, operand_bits
from lowprec.throughput.architecture import Architecture, Experts
from lowprec.throughput.devices import Device
from lowprec.throughput.fit import Estimate
from lowprec.throughput.gemm import Modelled, Part, modelled
from lowprec.throughput.gemm_fit import GemmFit
from lowprec.throughput.links import Transfer, all_gather, all_reduce, all_to_all
from lowprec.throughput.passes import quantize_pass
from lowprec.throughput.tiles import Shape

Split = Literal["expert", "tensor"]
Dispatch = Literal["quantized", "bfloat16"]
RESULT_BITS = 16
"""Of an element that is sent back or summed: bfloat16, as DeepEP and tensor parallelism do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer's time on one device, modelled.

    Attributes:
      split, devices: how it is spread over how many.
      tokens: of all devices together.
      products: one after the other.
      links: what is sent between them.
      sending: seconds of quantizing what is sent, by each device its own tokens.
      transfers: seconds of what is sent.
    """

    split: Split
    devices: int
    tokens: float
    products: tuple[Modelled, ...]
    links: tuple[Transfer, ...]
    sending: Part
    transfers: Part

    @property
    def seconds(self) -> Estimate:
        """Of products, passes and transfers, with their interval."""
        found = [*(x.seconds for x in self.products), self.sending, self.transfers]
        return Estimate(*(sum(x[i] for x in found) for i in range(3)))

    @property
    def bound(self) -> str:
        """What takes most of the layer's time: links, or what most of its products wait for."""
        products = sum(x.seconds.value for x in self.products)
        if self.transfers.seconds > products:
            return "links"
        longest = max(self.products, key=lambda x: x.seconds.value)
        return longest.bound

    @property
    def tokens_per_second(self) -> Estimate:
        """Through this layer, of each device."""
        middle, low, high = self.seconds
        return Estimate(*(self.tokens / self.devices / x for x in (middle, high, low)))


def expert_layer(
    device: Device,
    architecture: Architecture,
    recipe: str | Recipe,
    fit: GemmFit,
    *,
    split: Split,
    devices: int,
    batch: int,
    dispatch: Dispatch = "quantized",
) -> Layer:
    """The routed experts of one layer, so many tokens to each.

    Args:
      device, architecture, recipe, fit: what runs where.
      split: whole experts on devices, or each cut among all.
      devices: that share the layer; they divide the experts and their width.
      batch: tokens of an expert, from all devices.
      dispatch: whether tokens are sent as the recipe quantizes them, or in bfloat16 and quantized
        where they arrive.

    Raises:
      ValueError: a model without experts, or devices that do not divide them.

    Example:
      >>> from lowprec.throughput.architecture import get_architecture
      >>> from lowprec.throughput.devices import get_device
      >>> from lowprec.throughput.gemm_fit import gemm_fit
      >>> where = get_device("h800"), get_architecture("deepseek_v3"), "deepseek_v3", gemm_fit()
      >>> found = [expert_layer(*where, split=split, devices=8, batch=64)
      ...          for split in ("expert", "tensor")]
      >>> [x.products[0].shape.n for x in found], [x.products[0].shape.groups for x in found]
      ([4096, 512], [32, 256])
    """
    experts = architecture.experts
    if experts is None:
        raise ValueError(f"{architecture.name} has no experts; use `dense_layer`")
    if experts.routed % devices or experts.hidden % devices:
        raise ValueError(f"`devices` = {devices} do not divide {experts.routed} experts of width "
                         f"{experts.hidden}; use a power of two")  # fmt: skip
    whole = split == "expert"
    groups = experts.routed // devices if whole else experts.routed
    hidden = experts.hidden if whole else experts.hidden // devices
    width, early = architecture.width, dispatch == "quantized"
    products = _gated(device, width, hidden, recipe, fit, batch, groups, ready=early)
    tokens = batch * experts.routed / experts.chosen
    operand = get_recipe(recipe).fprop.a
    bits = min(float(RESULT_BITS), operand_bits(operand)) if early else RESULT_BITS
    sizes = width * bits / 8, width * RESULT_BITS / 8
    links = _expert_links(device, experts, devices, tokens, sizes, whole)
    own = quantize_pass(operand, math.ceil(tokens / devices * width)) if early else None
    sending = 0.0 if own is None else own.seconds(device, fit.rates)
    return _layer(split, devices, tokens, products, links, fit, sending)


def dense_layer(
    device: Device,
    architecture: Architecture,
    recipe: str | Recipe,
    fit: GemmFit,
    *,
    devices: int,
    batch: int,
) -> Layer:
    """Attention's projections and the MLP of one layer, each cut among all devices.

    Args:
      device, architecture, recipe, fit: what runs where.
      devices: that share the layer; they divide its heads and its width.
      batch: tokens of all devices.

    Raises:
      ValueError: a latent model, or devices that do not divide the layer.

    Example:
      >>> from lowprec.throughput.architecture import get_architecture
      >>> from lowprec.throughput.devices import get_device
      >>> from lowprec.throughput.gemm_fit import gemm_fit
      >>> where = get_device("h100"), get_architecture("llama_3_70b"), "fp8_tensor", gemm_fit()
      >>> len(dense_layer(*where, devices=8, batch=64).products)
      4
    """
    heads, keys = architecture.query_heads, architecture.kv_heads
    if architecture.latent is not None:
        raise ValueError(f"{architecture.name} has latent attention, whose projections are not "
                         "modelled; use a dense model")  # fmt: skip
    if heads % devices or architecture.hidden % devices or keys % devices:
        raise ValueError(f"`devices` = {devices} do not divide {heads} heads, {keys} of keys; use "
                         "a power of two up to them")  # fmt: skip
    width, size = architecture.width, architecture.head_dim
    out = (heads + 2 * keys) * size // devices
    shapes = (
        Shape(m=batch, n=out, k=width),
        Shape(m=batch, n=width, k=heads * size // devices),
    )
    products = tuple(modelled(device, recipe, x, fit=fit) for x in shapes)
    products += _gated(device, width, architecture.hidden // devices, recipe, fit, batch, 1)
    summed = all_reduce(device, devices, batch * width * RESULT_BITS / 8)
    return _layer("tensor", devices, batch, products, (summed, summed), fit)


def _gated(
    device: Device,
    width: int,
    hidden: int,
    recipe: str | Recipe,
    fit: GemmFit,
    batch: int,
    groups: int,
    *,
    ready: bool = False,
) -> tuple[Modelled, ...]:
    """Gate and up projections in one product, whose tokens may be quantized, and that down."""
    up = Shape(m=batch, n=2 * hidden, k=width, groups=groups)
    down = Shape(m=batch, n=width, k=hidden, groups=groups)
    return (
        modelled(device, recipe, up, quantizing=not ready, fit=fit),
        modelled(device, recipe, down, fit=fit),
    )


def _expert_links(
    device: Device,
    experts: Experts,
    devices: int,
    tokens: float,
    sizes: tuple[float, float],
    whole: bool,
) -> tuple[Transfer, ...]:
    there, back = sizes
    if whole:
        each = {"tokens": tokens / devices, "copies": experts.chosen}
        return tuple(all_to_all(device, devices, **each, size=x) for x in (there, back))
    return tuple(all_gather(device, devices, tokens * x) for x in (there, back))


def _layer(
    split: Split,
    devices: int,
    tokens: float,
    products: tuple[Modelled, ...],
    links: tuple[Transfer, ...],
    fit: GemmFit,
    sending: float = 0.0,
) -> Layer:
    sent = sum(x.seconds(fit.rates) for x in links)
    return Layer(
        split=split,
        devices=devices,
        tokens=tokens,
        products=products,
        links=links,
        sending=Part(sending, *(x * sending for x in fit.ranges["passes"])),
        transfers=Part(sent, *(x * sent for x in fit.ranges["link"])),
    )
