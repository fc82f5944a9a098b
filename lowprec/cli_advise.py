"""`lowprec advise`: the recipes that keep most of the user's products for their bits."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress

from lowprec.cli_layers import layers_of
from lowprec.gemm.recipe import ROLES, Recipe, get_recipe
from lowprec.models.operands import Operands
from lowprec.report import stored
from lowprec.study.advise import Advice, advise, chosen_recipes
from lowprec.study.advise_candidates import entries
from lowprec.study.advise_choice import Goal
from lowprec.study.advise_files import write_recipes
from lowprec.study.advise_parts import Limits
from lowprec.study.advise_rows import AdviceRow, advice_rows, comments, table
from lowprec.study.advise_sensitivity import read_sensitivity, spread_by
from lowprec.study.advise_times import TimeRow, time_rows, time_table
from lowprec.throughput.devices import Device, get_device

TABLE, TIMES = "advice.csv", "times.csv"


@dataclass(frozen=True)
class AdviseCommand:
    """Find the recipes that keep most of your products for their bits, by layer and role.

    Chosen on every second group of tokens and reported on the others, with 95 % intervals over
    groups. Without a goal the whole Pareto front is printed. Stochastic, prepared and delayed
    recipes take no part: they need a key, calibration rows or a history besides operands; nor do
    those with exact sums or error-optimal scales. Names with * are combinations of blocks, summed
    by this machine's float32; no hardware is known to run them. In wgrad each group of tokens is a
    product of its own, of 128 tokens mostly: what scales of whole rows and sums over more tokens
    lose is not seen there, while bits count a row's scale over all tokens of the layer.

    Example: lowprec advise --operands dump.safetensors --budget-bits 4.5 --out advice
    """

    operands: tuple[Path, ...]
    """Files (.npz .safetensors) with keys LAYER.x, LAYER.w, LAYER.dy, or what lowprec capture
    wrote them to."""

    budget_bits: float | None = None
    """At most so many bits per element, scales included, the mean over both operands."""

    sensitivity: Path | None = None
    """The CSV file of lowprec evaluate --sensitivity: the budget is a mean over all layers, spread
    so that the model's predictions are expected to move least; forward products only."""

    min_sqnr: float | None = None
    """At least so many dB between a product and its error."""

    role: tuple[Literal["fprop", "dgrad", "wgrad"], ...] = ()
    """Which products; by default all that the file has."""

    layers: tuple[str, ...] = ()
    """Names or patterns (blocks.0.*) of layers; by default all."""

    recipes: tuple[str, ...] = ()
    """Names or paths to TOML files to choose from; by default the catalogue."""

    combinations: bool = True
    """Also try blocks combined, and with other tiles, scale rules and elements."""

    tokens: int = 2048
    """Use at most so many tokens of a layer, in groups spread over all of them."""

    outputs: int = 512
    """Multiply at most so many columns of a weight or gradient, in stripes of 128."""

    groups: int = 16
    """Cut tokens into so many groups: an even number, fewer in wgrad where tokens are few."""

    device: str | None = None
    """A device, by name or path to a TOML file: add the modelled time of what is chosen there."""

    batch: int | None = None
    """Tokens at once on the device; by default as many as the operands have."""

    out: Path | None = None
    """A directory to write a recipe for each layer to, and the tables as advice.csv, times.csv."""


def run_advise(command: AdviseCommand, shown: Callable[[Console], Progress]) -> int:
    """Prints a line for each product as it is done; 1 where nothing satisfies in any of them."""
    goal = _goal(command)
    limits = Limits(tokens=command.tokens, outputs=command.outputs, groups=command.groups)
    recipes = [get_recipe(name) for name in command.recipes] or entries()
    device = None if command.device is None else get_device(command.device)
    if command.batch is not None and (device is None or command.batch < 1):
        raise ValueError(
            f"`--batch` = {command.batch}; use 1 or more tokens, and name a `--device`"
        )
    if command.out is not None and not command.out.parent.is_dir():
        raise ValueError(f"cannot write {command.out}: {command.out.parent} is not a directory")
    layers, console = _layers(command), Console(stderr=True)
    found: list[Advice] = []
    try:
        with shown(console) as bar:
            task = bar.add_task("loading", total=None)

            def tell(step: str, done: int, total: int) -> None:
                bar.update(task, description=step, completed=done, total=total)

            roles = command.role or (ROLES if command.sensitivity is None else ROLES[:1])
            options = {"roles": roles, "limits": limits, "combine": command.combinations}
            for advice in advise(layers, recipes, goal, **options, progress=tell):
                found.append(advice)
                if not console.is_terminal:
                    console.print(_line(advice), soft_wrap=True, highlight=False)
        if command.sensitivity is not None:
            found = _spread(command, found, layers, recipes)
    finally:
        # What has finished is shown and written whatever ended the run.
        if found:
            _finish(command, found)
            if device is not None:
                _times(command, found, layers, device)
    return 0 if any(advice.picked for advice in found) else 1


def _goal(command: AdviseCommand) -> Goal:
    """The goal of each product; where sensitivities decide, all of its front is looked at."""
    if command.sensitivity is None:
        return Goal(budget_bits=command.budget_bits, min_sqnr=command.min_sqnr)
    if command.budget_bits is None or command.min_sqnr is not None:
        raise ValueError("`--sensitivity` spreads `--budget-bits` over layers, without --min-sqnr")
    if command.role not in ((), ROLES[:1]):
        raise ValueError(
            f"`--role` = {' '.join(command.role)}: sensitivities are of the forward pass; give "
            f"--role {ROLES[0]}"
        )
    # What is wrong with the file is said before the first minute is spent.
    read_sensitivity(command.sensitivity)
    return Goal()


def _spread(
    command: AdviseCommand,
    found: Sequence[Advice],
    layers: Sequence[Operands],
    recipes: Sequence[Recipe],
) -> list[Advice]:
    assert command.sensitivity is not None and command.budget_bits is not None
    made = spread_by(command.sensitivity, found, layers, recipes, command.budget_bits)
    print(
        f"spread by {command.sensitivity.name}: {made.bits:.2f} bits over all weights, expected to "
        f"move predictions by {made.divergence:.2g} nats a token, where layers of at most "
        f"{command.budget_bits:g} bits each have {made.even:.2g}"
    )
    return made.found


def _line(found: Advice) -> str:
    names = ", ".join(x.recipe.name for x in found.picked) or "nothing"
    return f"{found.product.layer} {found.product.role}: {names} of {len(found.scores)}"


def _layers(command: AdviseCommand) -> list[Operands]:
    files = [file for path in command.operands for file in _files(path)]
    loaded = [layer for file in files for layer in layers_of(file)]
    wanted = command.layers or ("*",)
    found = [x for x in loaded if any(fnmatchcase(x.layer, pattern) for pattern in wanted)]
    names = [x.layer for x in found]
    if not found:
        names = ", ".join(x.layer for x in loaded)
        raise ValueError(
            f"{_source(command)} has no layer {' or '.join(wanted)}; its layers are {names}"
        )
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two of the files {_source(command)} have a layer {name}")
    return found


def _files(path: Path) -> list[Path]:
    """A file, or a folder's operands as `lowprec capture` writes them."""
    if not path.is_dir():
        return [path]
    caches = (".kv.safetensors", ".latents.safetensors")
    found = sorted(x for x in path.glob("*.safetensors") if not x.name.endswith(caches))
    if not found:
        raise ValueError(f"{path}: holds no operands, .safetensors that lowprec capture writes")
    return found


def _source(command: AdviseCommand) -> str:
    return ", ".join(path.name for path in command.operands)


def _finish(command: AdviseCommand, found: Sequence[Advice]) -> None:
    by_product = [advice_rows(x, source=_source(command)) for x in found]
    rows = list(itertools.chain.from_iterable(by_product))
    print(table(rows))
    if any(row.made for row in rows):
        print("* a combination of blocks, summed by `native`; no hardware is known to run it")
    for line in _used(found):
        print(line)
    if command.out is None:
        return
    command.out.mkdir(exist_ok=True)
    stored.write_table(rows, AdviceRow, command.out / TABLE)
    chosen = chosen_recipes(found)
    if not chosen:
        print(f"no recipe was chosen, so none is written; the table is {command.out / TABLE}")
    for path in write_recipes(chosen, command.out, comments(rows)):
        print(path)


def _times(
    command: AdviseCommand, found: Sequence[Advice], layers: Sequence[Operands], device: Device
) -> None:
    """What was chosen, as it would run on a device."""
    rows = list(time_rows(found, layers, device, tokens=command.batch))
    if not rows:
        return
    print(f"on the {device.title or device.name}, modelled, not measured:")
    print(time_table(rows))
    if command.out is not None:
        stored.write_table(rows, TimeRow, command.out / TIMES)


def _used(found: Sequence[Advice]) -> list[str]:
    """On how much of the operands the figures rest."""
    tokens = sorted({x.product.tokens for x in found})
    products = sorted({"x".join(map(str, x.product.shape)) for x in found})
    short = {(x.product.shape[1], x.product.depth) for x in found if x.product.role == "wgrad"}
    return [
        f"chosen on {_range(tokens)} tokens, reported on as many others; products (M x K x N) of "
        f"{', '.join(products)}",
        *(
            f"wgrad contracts {k} tokens at a time of the layer's {depth}: bits are of {depth}, "
            f"the errors of sums and of scales of whole rows are of {k}"
            for k, depth in sorted(short)
        ),
    ]


def _range(numbers: Sequence[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
