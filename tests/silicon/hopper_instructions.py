"""Hopper's matrix instructions that are captured, each with the engine that it is said to be."""

import itertools
from typing import Literal, NamedTuple

import numpy as np

from lowprec.engines import Engine, get_engine
from lowprec.numerics.format import Format, get_format

STEP_BYTES = 32
"""Bytes of a row of A, or a column of B, in one instruction, whatever the format."""
ROWS, COLUMNS = 64, 8
"""Results of one tile: of one wgmma.m64n8, or of four warps' mma.m16n8."""
_FORMATS = {
    "e4m3": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
    "f16": "float16",
    "bf16": "bfloat16",
    # Operands are float32, of which the instruction takes the upper bits.
    "tf32": "float32",
    "f32": "float32",
}
_OPERANDS = {"e4m3": "fp8", "e5m2": "fp8", "f16": "fp16", "bf16": "bf16", "tf32": "tf32"}


class Instruction(NamedTuple):
    """`wgmma.mma_async` or `mma.sync` with the types that PTX names them by."""

    unit: Literal["wgmma", "mma"]
    a: str
    b: str
    output: str

    @property
    def types(self) -> str:
        return f"{self.a}_{self.b}_{self.output}"

    @property
    def name(self) -> str:
        """As capture_hopper.cu calls it."""
        return f"{self.unit}.{self.types}"

    @property
    def engine(self) -> Engine:
        output = f"fp{self.output[1:]}"
        return get_engine(f"hopper.{self.unit}.{_OPERANDS[self.a]}.{output}")

    @property
    def formats(self) -> tuple[Format, Format]:
        return format_of(self.a), format_of(self.b)

    @property
    def length(self) -> int:
        """How many k one instruction takes."""
        return STEP_BYTES // self.formats[0].code_dtype.itemsize

    @property
    def registers(self) -> int:
        """Accumulators of one thread, of 32 bits."""
        return 4 if self.output == "f32" else 2

    @property
    def output_dtype(self) -> np.dtype:
        """Of codes of c and d."""
        return format_of(self.output).code_dtype


def format_of(ptx_type: str) -> Format:
    """The format that codes of a PTX type are written in.

    Example:
      >>> format_of("tf32").name
      'float32'
    """
    return get_format(_FORMATS[ptx_type])


_FP8 = tuple(itertools.product(("e4m3", "e5m2"), repeat=2))
_TYPES = (
    *((a, b, output) for output in ("f32", "f16") for a, b in _FP8),
    ("f16", "f16", "f32"),
    ("f16", "f16", "f16"),
    ("bf16", "bf16", "f32"),
    ("tf32", "tf32", "f32"),
)
INSTRUCTIONS = tuple(Instruction(unit, *types) for unit in ("wgmma", "mma") for types in _TYPES)
PROMOTED = Instruction("wgmma", "e4m3", "e4m3", "f32")
"""The one that runs DeepSeek-V3's promoted product too."""
