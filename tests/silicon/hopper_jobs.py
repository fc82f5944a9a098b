"""Tiles of dot products as jobs of capture_hopper.cu, and the program that runs them."""

import json
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.silicon.hopper_instructions import COLUMNS, ROWS, Instruction
from tests.silicon.hopper_layout import (
    LEADING_OFFSET,
    STRIDE_OFFSET,
    THREADS,
    pack_accumulators,
    pack_operands,
    unpack_accumulators,
)

SOURCE = Path(__file__).with_name("capture_hopper.cu")
PROMOTE_EVERY = 128
_HEADER = struct.Struct("<48s5i")


class Dots(NamedTuple):
    """Dot products of every row of a with every row of b, as codes.

    Attributes:
      a: (rows, K), at most 64 rows.
      b: (8, K).
      c: (rows, 8) codes of the output.
      a_scale: (rows, K / 128) float32 bits where the sum is promoted, else None.
      b_scale: (8, K / 128), the same.
    """

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    a_scale: np.ndarray | None = None
    b_scale: np.ndarray | None = None


class Job(NamedTuple):
    """One tile, packed: see the header of capture_hopper.cu."""

    instruction: Instruction
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    promote_every: int
    scales: tuple[np.ndarray, np.ndarray]

    def to_bytes(self) -> bytes:
        name, registers = self.instruction.name.encode(), self.instruction.registers
        offsets = LEADING_OFFSET, STRIDE_OFFSET
        header = _HEADER.pack(name, len(self.a), self.promote_every, registers, *offsets)
        words = (self.a, self.b, self.c, *self.scales)
        return header + b"".join(np.ascontiguousarray(x, "<u4").tobytes() for x in words)


Device = Callable[[Sequence[Job]], list[np.ndarray]]
"""What runs jobs: (128, registers) uint32 of each."""


def make_job(instruction: Instruction, dots: Dots) -> Job:
    """Packs a tile; rows that are missing to 64 are copies of those there are."""
    rows = np.arange(ROWS) % len(dots.a)
    a, b = pack_operands(instruction, dots.a[rows], dots.b)
    c = pack_accumulators(instruction, dots.c[rows])
    if dots.a_scale is None or dots.b_scale is None:
        none = np.zeros(0, np.uint32)
        return Job(instruction, a, b, c, 0, (none, none))
    shape = (ROWS, COLUMNS)
    # A scale for each accumulator: the kernel knows no layout.
    spread = [
        np.stack([pack_accumulators(instruction, x) for x in chunks])
        for chunks in (
            [np.broadcast_to(x[:, None], shape) for x in dots.a_scale[rows].T],
            [np.broadcast_to(x[None, :], shape) for x in dots.b_scale.T],
        )
    ]
    every = PROMOTE_EVERY // instruction.length
    return Job(instruction, a, b, c, every, (spread[0], spread[1]))


def results(instruction: Instruction, dots: Dots, registers: np.ndarray) -> np.ndarray:
    """(rows, 8) codes of what came back.

    Raises:
      ValueError: copies of one row gave different bits.
    """
    d = unpack_accumulators(instruction, registers)
    rows = len(dots.a)
    if (wrong := d != d[np.arange(ROWS) % rows]).any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"{instruction.name}: row {row} is a copy of row {row % rows}, and column {column} "
            f"came back as {d[row, column]:#x} and {d[row % rows, column]:#x}"
        )
    return d[:rows]


def build(folder: Path, nvcc: str = "nvcc") -> Path:
    """Compiles capture_hopper.cu into a folder.

    Raises:
      RuntimeError: there is no such compiler, or it refuses.
    """
    found = shutil.which(nvcc)
    if found is None:
        raise RuntimeError(
            f"no CUDA compiler {nvcc!r}: install the CUDA toolkit, 12.8 or later, put its nvcc on "
            f"PATH or name it by --nvcc"
        )
    program = folder / "capture_hopper"
    options = ["-std=c++17", "-O2", "-gencode", "arch=compute_90a,code=sm_90a"]
    _run([found, *options, "-o", str(program), str(SOURCE)])
    return program


class Program:
    """A `Device`: the compiled program, run once for all jobs; keeps what it says of the GPU."""

    def __init__(self, program: Path) -> None:
        self.program = program
        self.description: dict[str, object] = {}

    def __call__(self, jobs: Sequence[Job]) -> list[np.ndarray]:
        given, returned = (self.program.with_suffix(x) for x in (".jobs", ".results"))
        given.write_bytes(b"".join(job.to_bytes() for job in jobs))
        self.description = json.loads(_run([str(self.program), str(given), str(returned)]))
        words = np.fromfile(returned, "<u4")
        sizes = [THREADS * job.instruction.registers for job in jobs]
        if len(words) != sum(sizes):
            raise RuntimeError(f"{returned} has {len(words)} words; {sum(sizes)} are due")
        parts = np.split(words, np.cumsum(sizes)[:-1])
        return [part.reshape(THREADS, -1) for part in parts]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
