"""How long the recipes that were chosen take on a device, modelled, beside bfloat16."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from lowprec.gemm.recipe import Recipe, Role, get_recipe
from lowprec.models.operands import Operands
from lowprec.study.advise import Advice
from lowprec.throughput.devices import Device
from lowprec.throughput.fit import two_digits
from lowprec.throughput.gemm import BASELINE, Modelled, modelled, times_faster
from lowprec.throughput.gemm_fit import gemm_fit
from lowprec.throughput.tiles import Shape

MICRO = 1e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeRow:
    """A chosen recipe's modelled time on a device, in microseconds with its interval.

    `m`, `n` and `k` are of the layer's own product, all outputs and so many tokens. `times` is the
    modelled time of bfloat16 over it, with the interval of published ratios.
    """

    layer: str
    role: str
    recipe: str
    device: str
    m: int
    n: int
    k: int
    us: float
    low: float
    high: float
    times: float
    times_low: float
    times_high: float
    how: str
    bound: str


def time_rows(
    found: Sequence[Advice], layers: Sequence[Operands], device: Device, *, tokens: int | None
) -> Iterator[TimeRow]:
    """A row for every recipe that was chosen.

    Args:
      found: what was chosen.
      layers: the operands that it was chosen on.
      device: where it would run.
      tokens: at once on the device; by default as many as the layer's operands have.
    """
    by_name: Mapping[str, Operands] = {x.layer: x for x in layers}
    for advice in found:
        role = advice.product.role
        shape = layer_shape(by_name[advice.product.layer], role, tokens)
        plain = _modelled(device, get_recipe(BASELINE), shape, role)
        for candidate in advice.picked:
            made = _modelled(device, candidate.recipe, shape, role)
            yield _row(advice.product.layer, role, shape, made, plain)


def layer_shape(layer: Operands, role: Role, tokens: int | None = None) -> Shape:
    """The shape of a layer's product in a role, as `lowprec.gemm` takes it.

    Args:
      layer: with the two operands of the role.
      role: which product.
      tokens: in place of the operands' own.

    Example:
      >>> import numpy as np
      >>> fc = Operands("fc", x=np.ones((4, 8)), w=np.ones((8, 2)), dy=np.ones((4, 2)))
      >>> layer_shape(fc, "fprop", 64), layer_shape(fc, "wgrad").k
      (Shape(m=64, n=2, k=8, groups=1), 4)
    """
    a, b = layer.product(role)
    (m, k), n = a.shape, b.shape[1]
    if tokens is not None:
        m, k = (m, tokens) if role == "wgrad" else (tokens, k)
    return Shape(m=m, n=n, k=k)


def time_table(rows: Sequence[TimeRow]) -> str:
    """Rows as text: a line each, columns as wide as what stands in them."""
    heads = ("layer", "role", "recipe", "modelled us", "times bf16", "waits for", "as")
    lines: list[tuple[str, ...]] = [heads]
    for row in rows:
        lines.append((
            row.layer,
            row.role,
            row.recipe,
            f"{row.us:,.10g} ({row.low:,.10g} to {row.high:,.10g})",
            f"{row.times:g} ({row.times_low:g} to {row.times_high:g})",
            row.bound,
            row.how,
        ))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    padded = (
        "  ".join(x.ljust(width) for x, width in zip(line, widths, strict=True)) for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def _modelled(device: Device, recipe: Recipe, shape: Shape, role: Role) -> Modelled:
    return modelled(device, recipe, shape, role=role)


def _row(layer: str, role: Role, shape: Shape, made: Modelled, plain: Modelled) -> TimeRow:
    middle, low, high = made.seconds
    times = times_faster(made.recipe, middle, plain.seconds.value, gemm_fit())
    plan = made.kernel.plan
    return TimeRow(
        layer=layer,
        role=role,
        recipe=made.recipe,
        device=made.device.name,
        m=shape.m,
        n=shape.n,
        k=shape.k,
        us=two_digits(MICRO * middle),
        low=two_digits(MICRO * low),
        high=two_digits(MICRO * high),
        times=two_digits(times.value),
        times_low=two_digits(times.low),
        times_high=two_digits(times.high),
        how=f"{plan.product}, {plan.how}",
        bound=str(made.bound),
    )
