"""The time of a recipe's product on a device, modelled: kernel and passes, with an interval.

Nothing here is measured. `lowprec.throughput.gemm_fit` says what the rates rest on and how far the
model errs.
"""

import dataclasses
from typing import NamedTuple

from lowprec.gemm.recipe import Recipe, Role, get_recipe
from lowprec.throughput.devices import Device, get_device
from lowprec.throughput.fit import Estimate
from lowprec.throughput.gemm_fit import GemmFit, gemm_fit, kernel_term
from lowprec.throughput.kernel import Bound, Kernel, kernel
from lowprec.throughput.passes import Weights, recipe_passes
from lowprec.throughput.plan import plans
from lowprec.throughput.tiles import Shape

BASELINE = "bf16"
"""The recipe that others are compared with."""


class Part(NamedTuple):
    """Seconds between the ends of their interval."""

    seconds: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Modelled:
    """A recipe's product on a device, modelled.

    Attributes:
      device, recipe, role, shape: what runs where.
      kernel: the product's terms.
      product: its seconds.
      passes: seconds of quantizing, of all passes.
    """

    device: Device
    recipe: str
    role: Role
    shape: Shape
    kernel: Kernel
    product: Part
    passes: Part

    @property
    def seconds(self) -> Estimate:
        """Of all, with its interval."""
        both = zip(self.product, self.passes, strict=True)
        return Estimate(*(x + y for x, y in both))

    @property
    def teraflops(self) -> Estimate:
        """1e12 flop a second of the product asked for, passes included."""
        middle, low, high = self.seconds
        return Estimate(*(self.shape.flop / x / 1e12 for x in (middle, high, low)))

    @property
    def bound(self) -> Bound | str:
        """What takes longest: a term of the kernel, or the passes."""
        return "quantizing" if self.passes.seconds > self.product.seconds else self.kernel.bound


def modelled(
    device: str | Device,
    recipe: str | Recipe,
    shape: Shape,
    *,
    role: Role = "fprop",
    weights: Weights = "stored",
    quantizing: bool = True,
    fit: GemmFit | None = None,
) -> Modelled:
    """The time of a recipe's product, and what it waits for.

    Args:
      device: a name, a path to a TOML file, or the object.
      recipe: likewise.
      shape: of the product, as `lowprec.gemm` takes it: (m, k) x (k, n), so many groups.
      role: which of the recipe's products.
      weights: whether fprop's and dgrad's right operand is stored in its format.
      quantizing: whether passes count; not where the layer before does them in passing.
      fit: rates and intervals, by default those of the published figures.

    Raises:
      ValueError: no such device or recipe.

    Example:
      >>> shape = Shape(m=16, n=4096, k=7168)
      >>> [modelled(name, "deepseek_v3", shape).kernel.bound for name in ("h800", "h20")]
      ['memory', 'products']
    """
    found, recipe = get_device(device), get_recipe(recipe)
    fit = gemm_fit() if fit is None else fit
    made = kernel(found, plans(found, recipe, role), shape, fit.rates)
    low, high = fit.ranges[kernel_term(made)]
    passes = recipe_passes(recipe, role, shape, weights=weights) if quantizing else ()
    spent = sum(x.seconds(found, fit.rates) for x in passes)
    return Modelled(
        device=found,
        recipe=recipe.name,
        role=role,
        shape=shape,
        kernel=made,
        product=Part(made.seconds, low * made.seconds, high * made.seconds),
        passes=Part(spent, *(x * spent for x in fit.ranges["passes"])),
    )


def times_faster(recipe: str, seconds: float, plain: float, fit: GemmFit) -> Estimate:
    """How many times as fast a recipe is as bfloat16, with the interval of published ratios.

    Two recipes' times err together, so that their ratio is known better than either: the interval
    is that of ratios published of one device and shape.

    Args:
      recipe: its name; bfloat16 against itself is exactly 1.
      seconds, plain: its modelled time and that of bfloat16.
      fit: with the interval.

    Example:
      >>> found = times_faster("mxfp8", 1.0, 2.0, gemm_fit())
      >>> found.low < found.value == 2.0 < found.high
      True
    """
    if recipe == BASELINE:
        return Estimate(1.0, 1.0, 1.0)
    low, high = fit.ranges["ratio"]
    ratio = plain / seconds
    return Estimate(ratio, ratio / high, ratio / low)
