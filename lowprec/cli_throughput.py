"""`lowprec throughput`: how long a recipe's product takes on a device, modelled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lowprec.gemm.recipe import Role
from lowprec.throughput.devices import list_devices
from lowprec.throughput.fit import Estimate, two_digits
from lowprec.throughput.gemm import BASELINE, Modelled, modelled, times_faster
from lowprec.throughput.gemm_fit import gemm_fit
from lowprec.throughput.gemm_intervals import HELD
from lowprec.throughput.passes import Weights
from lowprec.throughput.tiles import Shape

RECIPES = ("bf16", "deepseek_v3", "mxfp8", "nvfp4")
"""What is compared where no recipe is named."""


@dataclass(frozen=True)
class ThroughputCommand:
    """Model how long a recipe's product takes on a device, and what it waits for; not measured.

    Rates are fitted on published bfloat16 products of the H100; everything else is predicted, to
    two digits and an interval that holds nine tenths of held-out published figures.

    Example: lowprec throughput --recipe deepseek_v3 mxfp8 --shape 128x4096x7168 --device h800 b200
    """

    shape: str
    """MxNxK: rows, columns and the length of the sums; MxNxKxG for G groups, as experts are."""

    recipe: tuple[str, ...] = RECIPES
    """Names or paths to TOML files."""

    device: tuple[str, ...] = ("h100",)
    """Names or paths to TOML files; `all` for those of the package."""

    role: Literal["fprop", "dgrad", "wgrad"] = "fprop"
    """Which of a recipe's products."""

    weights: Literal["stored", "quantized"] = "stored"
    """Whether the right operand of fprop and dgrad is stored in its format, or quantized too."""


def run_throughput(command: ThroughputCommand) -> None:
    """Prints a line for each device and recipe."""
    shape = shape_of(command.shape)
    devices = list_devices() if command.device == ("all",) else command.device
    rows = [
        _one(device, recipe, shape, command.role, command.weights)
        for device in devices
        for recipe in command.recipe
    ]
    print(table(rows))
    print(
        f"modelled, not measured; in brackets intervals that hold {100 * HELD:.0f} % of published "
        "figures when made without their source"
    )


def shape_of(text: str) -> Shape:
    """The shape that MxNxK or MxNxKxG says.

    Raises:
      ValueError: it says none.

    Example:
      >>> shape_of("16x4096x7168x32").groups
      32
    """
    parts = text.lower().split("x")
    if len(parts) not in (3, 4) or not all(x.isdigit() for x in parts):
        raise ValueError(
            f"`--shape` {text!r} is no MxNxK, such as 128x4096x7168, or with groups 8x4096x7168x32"
        )
    return Shape(**dict(zip(("m", "n", "k", "groups"), map(int, parts), strict=False)))


def table(rows: Sequence[Modelled]) -> str:
    """Modelled products as text, a line each."""
    heads = ("device", "recipe", "microseconds", "TFLOPS", "times bf16", "quantizing", "waits for",
             "as")  # fmt: skip
    lines: list[tuple[str, ...]] = [heads]
    for row in rows:
        micro = Estimate(*(1e6 * x for x in row.seconds))
        plan = row.kernel.plan
        lines.append((
            row.device.name,
            row.recipe,
            spanned(micro),
            spanned(row.teraflops),
            spanned(times_faster(row.recipe, row.seconds.value, _plain(row), gemm_fit())),
            f"{two_digits(100 * row.passes.seconds / row.seconds.value):.2g} %",
            str(row.bound),
            f"{plan.product}, {plan.how}",
        ))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    padded = (
        "  ".join(x.ljust(width) for x, width in zip(line, widths, strict=True)) for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def spanned(found: Estimate) -> str:
    """A modelled number to two digits with its interval.

    Example:
      >>> spanned(Estimate(123.4, 99.0, 151.0))
      '120 (99 to 150)'
      >>> spanned(Estimate(1.0, 1.0, 1.0))
      '1'
    """
    middle, low, high = (f"{two_digits(x):,.10g}" for x in found)
    if found.low == found.high:
        return middle
    return f"{middle} ({low} to {high})"


def _plain(row: Modelled) -> float:
    """The seconds of the same product in bfloat16."""
    return modelled(row.device, BASELINE, row.shape, role=row.role).seconds.value


def _one(device: str, recipe: str, shape: Shape, role: Role, weights: Weights) -> Modelled:
    return modelled(device, recipe, shape, role=role, weights=weights)
