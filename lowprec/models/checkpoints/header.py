"""The header of a `.safetensors` file: which tensor lies where, believed only after it is checked.

The file is eight bytes of length, a JSON object, and the tensors' bytes. Only the first two are
read here, so that a shard of many gigabytes costs nothing to look at.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowprec.models.array_checks import quoted
from lowprec.models.tensor_files import SAFETENSORS_DTYPES

LARGEST_HEADER = 100_000_000
"""Bytes, as the format's own reader allows."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor lies.

    Attributes:
      path: the file.
      dtype: as the header spells it, such as `BF16`.
      shape: of the tensor.
      start: of its first byte, counted from the file's.
      size: in bytes.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_header(path: Path) -> dict[str, Place]:
    """Every tensor of a file by name.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is cut short, or its header is not what the format says: the message
        names the tensor.

    Example:
      >>> from safetensors.numpy import save_file
      >>> import numpy as np
      >>> save_file({"a": np.zeros((2, 3), np.float32)}, "/tmp/shard.safetensors")
      >>> read_header(Path("/tmp/shard.safetensors"))["a"].shape
      (2, 3)
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    whole = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(whole - 8, LARGEST_HEADER):
            raise ValueError(
                f"{path}: is not a whole .safetensors file: it has {whole} bytes, and its header "
                f"would take {8 + length}"
            )
        text = file.read(length)
    try:
        table = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the header is no JSON object: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: the header is no JSON object")
    entries = {name: entry for name, entry in table.items() if name != "__metadata__"}
    places = {name: _place(path, name, entry, 8 + length) for name, entry in entries.items()}
    _check_layout(path, places, 8 + length, whole)
    return places


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{quoted(repeated)} stands there twice")
    return table


def _place(path: Path, name: str, entry: Any, first: int) -> Place:
    what = f"{path}: tensor {quoted(name)}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{what} needs `dtype`, `shape` and `data_offsets` in the header")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise ValueError(f"{what} has `dtype` = {dtype!r}; it is a name, such as BF16")
    if not _whole_numbers(shape):
        raise ValueError(f"{what} has `shape` = {shape!r}; it is a list of whole numbers")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{what} has `data_offsets` = {offsets!r}; they are [begin, end]")
    size = offsets[1] - offsets[0]
    if dtype in SAFETENSORS_DTYPES:
        needed = math.prod(shape) * SAFETENSORS_DTYPES[dtype].itemsize
        if size != needed:
            raise ValueError(
                f"{what} of shape {shape} and dtype {dtype} takes {needed} bytes; its "
                f"`data_offsets` span {size}"
            )
    return Place(path=path, dtype=dtype, shape=tuple(shape), start=first + offsets[0], size=size)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(x) is int and x >= 0 for x in value)


def _check_layout(path: Path, places: dict[str, Place], first: int, whole: int) -> None:
    """Tensors follow each other without a gap, and the file ends where the last one does."""
    end = first
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].size)):
        if place.start != end:
            raise ValueError(
                f"{path}: tensor {quoted(name)} begins at byte {place.start}, where the one before "
                f"it ends at {end}"
            )
        end = place.start + place.size
        if end > whole:
            raise ValueError(
                f"{path}: is cut short: tensor {quoted(name)} ends at byte {end} of a file of "
                f"{whole}"
            )
    if end != whole:
        raise ValueError(f"{path}: has {whole - end} bytes behind its last tensor")
