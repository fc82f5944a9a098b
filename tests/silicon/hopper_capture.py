"""A capture of Hopper's matrix instructions: how it is made, kept in a file, and compared."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from lowprec.gemm.operand import Operand
from lowprec.gemm.recipe import get_recipe
from lowprec.gemm.summation import sum_products
from lowprec.study.engine_dots import product_codes
from tests.silicon.hopper_groups import (
    GROUPS,
    PROMOTED_GROUP,
    draw_group,
    small_integers,
    to_values,
)
from tests.silicon.hopper_instructions import INSTRUCTIONS, PROMOTED, Instruction
from tests.silicon.hopper_jobs import PROMOTE_EVERY, Device, Dots, make_job, results

METADATA = "metadata"
_OPTIONAL = ("a_scale", "b_scale")


class Captured(NamedTuple):
    """One group of one instruction: its dot products, and what the GPU returned."""

    instruction: Instruction
    group: str
    dots: Dots
    d: np.ndarray


class Compared(NamedTuple):
    """How many results of a group an engine gives otherwise, and the first of them."""

    captured: Captured
    wrong: int
    first: str

    def __str__(self) -> str:
        name, group = self.captured.instruction.name, self.captured.group
        found = f"{name:<20} {group:<12} {self.captured.d.size:4d} compared, {self.wrong:4d} differ"
        return f"{found}{self.first}"


def plan(instructions: Iterable[Instruction] = INSTRUCTIONS) -> list[tuple[Instruction, str]]:
    """Every group of every instruction."""
    found = [(instruction, group) for instruction in instructions for group in GROUPS]
    if any(instruction == PROMOTED for instruction, _ in found):
        found.append((PROMOTED, PROMOTED_GROUP))
    return found


def check_layout(device: Device, instructions: Iterable[Instruction] = INSTRUCTIONS) -> int:
    """Runs sums of small integers, which no arithmetic rounds.

    Returns:
      How many were exact: all.

    Raises:
      ValueError: some were not; then operands are not where the instruction reads them, and
        nothing can be said of its arithmetic.
    """
    chosen = list(instructions)
    drawn = [small_integers(instruction) for instruction in chosen]
    returned = device([make_job(x, dots) for x, (dots, _) in zip(chosen, drawn, strict=True)])
    wrong, count = [], 0
    for instruction, (dots, want), registers in zip(chosen, drawn, returned, strict=True):
        got = results(instruction, dots, registers)
        count += got.size
        # Either zero will do: which it is, is arithmetic.
        differing = int(np.sum((got != want) & ((got | want) << 1 != 0)))
        if differing:
            wrong.append(f"{instruction.name} ({differing} of {got.size})")
    if wrong:
        raise ValueError(
            f"layout wrong: sums of small integers are not exact in {', '.join(wrong)}; mend "
            f"hopper_layout.py before anything is compared"
        )
    return count


def capture(
    device: Device, groups: Iterable[tuple[Instruction, str]], rows: int = 32
) -> list[Captured]:
    """Runs groups on a device, all in one go.

    Raises:
      ValueError: rows that are copies of each other came back different.
    """
    chosen = list(groups)
    drawn = [draw_group(instruction, group, rows) for instruction, group in chosen]
    jobs = [make_job(x, dots) for (x, _), dots in zip(chosen, drawn, strict=True)]
    return [
        Captured(x, group, dots, results(x, dots, registers))
        for (x, group), dots, registers in zip(chosen, drawn, device(jobs), strict=True)
    ]


def save(path: Path, captured: Iterable[Captured], metadata: Mapping[str, object]) -> None:
    """Writes a capture; operands that several instructions share stand there once."""
    arrays: dict[str, np.ndarray] = {METADATA: np.array(json.dumps(dict(metadata), indent=1))}
    for one in captured:
        names = _names(one.instruction, one.group)
        values = {**one.dots._asdict(), "d": one.d}
        for field, name in names.items():
            if values[field] is None:
                continue
            if name in arrays and not np.array_equal(arrays[name], values[field]):
                raise ValueError(f"{name}: two instructions should share it and do not")
            arrays[name] = values[field]
    # NumPy's stub takes the names for options.
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType] - keywords are arrays, not options


def load(path: Path) -> tuple[dict[str, object], list[Captured]]:
    """Reads a capture: metadata, and the groups that it has."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    found = []
    for instruction, group in plan():
        names = _names(instruction, group)
        if names["d"] not in arrays:
            continue
        optional = (arrays.get(names[field]) for field in _OPTIONAL)
        a, b, c = (arrays[names[field]] for field in "abc")
        found.append(Captured(instruction, group, Dots(a, b, c, *optional), arrays[names["d"]]))
    return json.loads(str(arrays[METADATA])), found


def _names(instruction: Instruction, group: str) -> dict[str, str]:
    """The arrays of a group in the file."""
    return {
        "a": f"{group}/a/{instruction.a}",
        "b": f"{group}/b/{instruction.b}",
        "c": f"{group}/c/{instruction.types}",
        "d": f"{group}/d/{instruction.name}",
        **{field: f"{group}/{field}" for field in _OPTIONAL},
    }


def compare(captured: Iterable[Captured]) -> Iterator[Compared]:
    """What the GPU returned beside what the engine of each instruction computes, bit for bit.

    The sign of zero and the bits of NaN count.
    """
    for one in captured:
        want = _promoted_sum(one.dots) if one.group == PROMOTED_GROUP else _engine_sum(one)
        differing = one.d != want
        first = ""
        if differing.any():
            row, column = np.argwhere(differing)[0]
            gpu, engine = one.d[row, column], want[row, column]
            first = f"; first row {row}, column {column}: GPU {gpu:#x}, engine {engine:#x}"
        yield Compared(one, int(differing.sum()), first)


def _engine_sum(one: Captured) -> np.ndarray:
    a, b, c = one.dots.a, one.dots.b, one.dots.c
    if c.dtype == np.uint16:
        with np.errstate(invalid="ignore"):  # of signalling NaN
            c = c.view(np.float16).astype(np.float32).view(np.uint32)
    return product_codes(one.instruction.engine, one.instruction.formats, a, b.T, c)


def _promoted_sum(dots: Dots) -> np.ndarray:
    """Products of 128 k from zero, scaled and added in float32, as the recipe deepseek_v3 does."""
    left, right = PROMOTED.formats
    assert dots.a_scale is not None and dots.b_scale is not None
    a, b = (to_values(x, fmt).astype(np.float32) for x, fmt in ((dots.a, left), (dots.b.T, right)))
    a_scale = np.repeat(dots.a_scale, PROMOTE_EVERY, 1)
    b_scale = np.repeat(dots.b_scale.T, PROMOTE_EVERY, 0)
    left_operand = Operand(jnp.asarray(a), jnp.asarray(a_scale))
    right_operand = Operand(jnp.asarray(b), jnp.asarray(b_scale))
    return np.asarray(sum_products(left_operand, right_operand, get_recipe("deepseek_v3")))
