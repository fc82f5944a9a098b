"""Bits that GPUs returned, as tests read them (the captures of MATLAB-tensor-core).

Khattak and Mikaitis, github.com/north-numerical-computing/MATLAB-tensor-core, folder
model_validation, commit b12b5a7, half of the rows as one `<gpu>_<format>.npz` each: operands `a`,
`b` as codes, `c_f32` and `d_f32`, `d_f16` as bits. LOWPREC_SILICON names their folder.
"""

import functools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from lowprec.engines import Engine, get_engine
from tests.helpers import UInts

FOLDER = Path(os.environ.get("LOWPREC_SILICON", Path(__file__).parents[3] / "shared" / "silicon"))
ARCHITECTURES = {
    "v100": "volta",
    "a100": "ampere",
    "a2": "ampere",
    "ada": "ada",
    "h100": "hopper",
    "h200": "hopper",
    "b200": "blackwell",
}
FORMATS = {
    "fp16": "float16",
    "bf16": "bfloat16",
    # Operands are float32, of which the instruction takes the upper bits.
    "tf32": "float32",
    "e4m3": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
}
FILES = [
    f"{gpu}_{fmt}"
    for gpu in ARCHITECTURES
    for fmt in FORMATS
    if gpu != "v100" or fmt == "fp16"
    if fmt[0] != "e" or gpu in ("ada", "h100", "h200", "b200")
]
CAPTURES = [
    (file, output)
    for file in FILES
    for output in ("f32", "f16")
    if output == "f32" or file.split("_")[1] in ("fp16", "e4m3", "e5m2")
]


class Capture(NamedTuple):
    """Rows of one file and one output."""

    a: UInts
    b: UInts
    c: UInts
    d: UInts


def engine_of(file: str, output: str) -> Engine:
    """The engine that gave a file's output."""
    gpu, fmt = file.split("_")
    architecture = ARCHITECTURES[gpu]
    wgmma = architecture == "hopper" and fmt[0] == "e" and output == "f32"
    instruction = "wgmma" if wgmma else "mma"
    operand = "fp8" if fmt[0] == "e" else fmt
    return get_engine(f"{architecture}.{instruction}.{operand}.fp{output[1:]}")


@functools.cache
def capture(file: str, output: str) -> Capture:
    """What was captured; float16 results as float32 bits."""
    path = FOLDER / f"{file}.npz"
    if not path.exists():
        pytest.skip(f"no captured vectors at {path}; set LOWPREC_SILICON to their folder")
    with np.load(path) as arrays:
        a, b, c, d = (arrays[key] for key in ("a", "b", "c_f32", f"d_{output}"))
    if output == "f16":
        d = d.view(np.float16).astype(np.float32).view(np.uint32)
    if ".wgmma." in engine_of(file, output).name:
        # These ran without c, which the file has nevertheless.
        c = np.zeros_like(c)
    return Capture(a, b, c, d)
