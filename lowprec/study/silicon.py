"""Dot products that GPUs computed, read from files, and the engine of each.

The captures are those of MATLAB-tensor-core (Khattak and Mikaitis, arXiv 2512.07004; folder
model_validation), in its own text layout, `<gpu>/<format>/{a,b}_<gpu>_<format>.txt` with
`{c,d}_<gpu>_fp32.txt` and `d_<gpu>_fp16.txt` beside them, or re-encoded as `<gpu>_<format>.npz`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lowprec.engines import Engine, get_engine
from lowprec.numerics.format import Format, get_format

ARCHITECTURES = {
    "v100": "volta",
    "a100": "ampere",
    "a2": "ampere",
    "ada": "ada",
    "l40s": "ada",
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
_OUTPUTS = ("fp32", "fp16")
_LAYOUTS = (
    "<gpu>_<format>.npz with arrays a, b, c_f32, d_f32, d_f16, or "
    "a_<gpu>_<format>.txt beside b_<gpu>_<format>.txt, c_<gpu>_fp32.txt and d_<gpu>_fp32.txt"
)


class Capture(NamedTuple):
    """What one GPU returned for one format and one output.

    Attributes:
      source: the file of a, or the file that has all.
      engine: the engine that such a GPU is said to be.
      format: of the operands as their codes are written.
      a: (rows, K) codes.
      b: (rows, K) codes.
      c: (rows,) float32 bits.
      d: (rows,) codes of the engine's output.
    """

    source: Path
    engine: Engine
    format: Format
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    d: np.ndarray


def engine_name(gpu: str, fmt: str, output: str) -> str:
    """The engine that gave a file: FP8 in float32 was `wgmma` on Hopper, all else `mma`.

    Example:
      >>> engine_name("h100", "e4m3", "fp32")
      'hopper.wgmma.fp8.fp32'
    """
    architecture, fp8 = ARCHITECTURES[gpu], fmt[0] == "e"
    wgmma = architecture == "hopper" and fp8 and output == "fp32"
    return f"{architecture}.{'wgmma' if wgmma else 'mma'}.{'fp8' if fp8 else fmt}.{output}"


def read_captures(folder: Path) -> Iterator[Capture]:
    """The captures of a folder and those below it, of both layouts, in the order of their names.

    Raises:
      ValueError: there are none, or a file does not hold what its name says.
    """
    if not folder.is_dir():
        raise ValueError(f"cannot read captures: {folder} is not a directory")
    found = False
    for path in sorted(folder.rglob("*")):
        named = _named(path)
        if named is None:
            continue
        found = True
        reader = _from_arrays if path.suffix == ".npz" else _from_text
        for output, (a, b, c, d) in reader(path).items():
            yield _capture(path, named, output, (a, b, c, d))
    if not found:
        gpus = ", ".join(ARCHITECTURES)
        raise ValueError(f"no captures in {folder}: it should hold {_LAYOUTS}; GPUs: {gpus}")


def _named(path: Path) -> tuple[str, str] | None:
    """GPU and format by a file's name, in lower case; None where it is no capture."""
    matched = re.fullmatch(r"(?:a_)?([A-Za-z0-9]+)_([A-Za-z0-9]+)\.(npz|txt)", path.name)
    if matched is None or (path.suffix == ".txt") != path.name.startswith("a_"):
        return None
    gpu, fmt = matched[1].lower(), matched[2].lower()
    return (gpu, fmt) if gpu in ARCHITECTURES and fmt in FORMATS else None


Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _capture(path: Path, named: tuple[str, str], output: str, columns: Columns) -> Capture:
    engine, fmt = get_engine(engine_name(*named, output)), get_format(FORMATS[named[1]])
    a, b, c, d = columns
    if a.ndim != 2 or a.shape != b.shape or c.shape != d.shape or len(c) != len(a):
        raise ValueError(
            f"{path}: a {a.shape}, b {b.shape}, c {c.shape} and d {d.shape} do not fit; a and b "
            f"are (rows, K), c and d (rows,)"
        )
    if ".wgmma." in engine.name:
        # These ran without c, which the file has nevertheless.
        c = np.zeros_like(c)
    return Capture(path, engine, fmt, a, b, c, d)


def _from_arrays(path: Path) -> dict[str, Columns]:
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    if missing := {"a", "b", "c_f32"} - arrays.keys():
        raise ValueError(f"{path}: no array {', '.join(sorted(missing))}; expected {_LAYOUTS}")
    shared = arrays["a"], arrays["b"], arrays["c_f32"]
    found = {"fp32": arrays.get("d_f32"), "fp16": arrays.get("d_f16")}
    return {output: (*shared, d) for output, d in found.items() if d is not None}


def _from_text(path: Path) -> dict[str, Columns]:
    gpu, fmt = path.stem.split("_")[1:]
    a = _operands(path, fmt.lower())
    b = _operands(path.with_name(f"b_{gpu}_{fmt}.txt"), fmt.lower())
    c = _words(path.with_name(f"c_{gpu}_fp32.txt"))
    found = {}
    for output in _OUTPUTS:
        results = path.with_name(f"d_{gpu}_{output}.txt")
        if results.exists():
            d = _words(results)
            # float16 results are written as the float32 of the same value.
            found[output] = (a, b, c, _narrow(results, d, "float16") if output == "fp16" else d)
    return found


def _operands(path: Path, fmt: str) -> np.ndarray:
    """Lines of float32 bits in hexadecimal as codes of a format."""
    try:
        rows = [[int(word, 16) for word in line.split()] for line in _lines(path)]
        bits = np.array(rows, np.uint32)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{path}: lines of 8-digit hexadecimal numbers expected: {error}"
        ) from None
    return _narrow(path, bits, FORMATS[fmt])


def _words(path: Path) -> np.ndarray:
    """Lines of 32 binary digits."""
    lines = _lines(path)
    if wrong := [line for line in lines if not re.fullmatch("[01]{32}", line)]:
        raise ValueError(f"{path}: lines of 32 binary digits expected, got {wrong[0][:40]!r}")
    return np.array([int(line, 2) for line in lines], np.uint32)


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None


def _narrow(path: Path, bits: np.ndarray, name: str) -> np.ndarray:
    """float32 bits as codes of a format, which must hold every value."""
    fmt = get_format(name)
    if fmt.dtype is None or name == "float32":
        return bits
    values = bits.view(np.float32)
    with np.errstate(over="ignore"):
        codes = values.astype(fmt.dtype)
    kept = codes.astype(np.float32).view(np.uint32)
    wrong = (kept != bits) & ~(np.isnan(values) & np.isnan(codes.astype(np.float32)))
    if wrong.any():
        raise ValueError(f"{path}: {values[wrong][0]} is not a {name} number")
    return codes.view(fmt.code_dtype)
