"""`lowprec ledger`: the error of products under recipes, split exactly."""

import csv
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax

from lowprec.cli_layers import layers_of
from lowprec.gemm.recipe import Recipe, get_recipe
from lowprec.models.operands import Operands, as_narrow
from lowprec.study.ledger import ledger
from lowprec.study.ledger_rows import LedgerRow, captured_operands, ledger_rows
from lowprec.study.ledger_terms import Ledger

LAYER = "layers.0.mlp.down"


@dataclass(frozen=True)
class LedgerCommand:
    """Split the error of a product under recipes into terms that sum to it, to the last bit.

    Example: lowprec ledger --recipes deepseek_v3 mxfp4 --role wgrad --out ledger.csv
    """

    operands: Path | None = None
    """A file (.npz .safetensors) with keys LAYER.x, LAYER.w, LAYER.dy; else captured operands."""

    layer: str | None = None
    """Which layer; by default layers.0.mlp.down of the captured ones, all of a file's."""

    role: Literal["fprop", "dgrad", "wgrad"] = "fprop"
    """Which product."""

    recipes: tuple[str, ...] = ("deepseek_v3", "mxfp4", "nvfp4")
    """Names or paths to TOML files."""

    engine: str | None = None
    """In place of the recipes' engines."""

    outputs: int = 4096
    """How many outputs are looked at, at most."""

    seed: int = 0
    """Of the outputs that are drawn, and of stochastic rounding."""

    out: Path | None = None
    """A CSV file to write all terms to."""


def run_ledger(command: LedgerCommand) -> None:
    """Prints a table for every layer and recipe as it is done, and writes all as CSV at the end."""
    if command.out is not None and not command.out.parent.is_dir():
        raise ValueError(f"cannot write {command.out}: {command.out.parent} is not a directory")
    recipes = [get_recipe(name) for name in command.recipes]
    source = "captured" if command.operands is None else command.operands.name
    rows: list[LedgerRow] = []
    try:
        for layer, recipe in itertools.product(_layers(command), recipes):
            found = _ledger(command, layer, recipe)
            print(f"{heading(found, layer.layer)}\n{found}\n", flush=True)
            rows += ledger_rows(found, source=source, layer=layer.layer)
    finally:
        # What has finished is written whatever ended the run.
        if command.out is not None and rows:
            write_rows(rows, command.out)
            print(command.out)


def _ledger(command: LedgerCommand, layer: Operands, recipe: Recipe) -> Ledger:
    a, b = (as_narrow(x) for x in layer.product(command.role))
    return ledger(
        a,
        b,
        recipe,
        role=command.role,
        engine=command.engine,
        key=jax.random.key(command.seed) if recipe.stochastic else None,
        outputs=command.outputs,
        seed=command.seed,
    )


def heading(found: Ledger, layer: str) -> str:
    """What a table is of, and how many of its sums were compared."""
    m, k, n = found.shape
    return (
        f"recipe:{found.recipe} on engine:{found.engine}, {layer} {found.role}, M, K, N = "
        f"{m}, {k}, {n}: the terms of {found.check()} outputs sum to their errors exactly"
    )


def _layers(command: LedgerCommand) -> list[Operands]:
    if command.operands is None:
        layers, wanted = captured_operands(), command.layer or LAYER
    else:
        layers, wanted = layers_of(command.operands), command.layer
    found = [x for x in layers if command.role in x.roles and wanted in (None, x.layer)]
    if not found:
        names = ", ".join(f"{x.layer} ({', '.join(x.roles)})" for x in layers)
        raise ValueError(
            f"no layer{f' {wanted}' if wanted else ''} has the product {command.role}; those with "
            f"some are {names}"
        )
    return found


def write_rows(rows: Sequence[LedgerRow], out: Path) -> None:
    """Rows as CSV, floats with the fewest digits that read back as they are."""
    with out.open("w", newline="", encoding="utf-8") as file:
        names = [field.name for field in dataclasses.fields(LedgerRow)]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)
