"""Writing `.safetensors`: a header of JSON, then the tensors' bytes, without another package.

Every type that the format names can be written, also those which its numpy binding leaves out.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lowprec.models.tensor_files import SAFETENSORS_DTYPES

_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()} | {np.dtype(bool): "BOOL"}
_ALIGNMENT = 8
"""The header is filled with spaces to a multiple of so many bytes."""


def write_tensors(
    path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays by name; the same arrays give the same bytes.

    The file appears whole or not at all. Types of more bytes come first, which aligns them all.

    Args:
      path: ends in `.safetensors`; its directory exists.
      arrays: of any shape, and of the types that safetensors names.
      metadata: texts for the header.

    Raises:
      ValueError: another extension, a type that the format does not name, or two tensors that
        would bear one name in the file.
      OSError: the path cannot be written.

    Example:
      >>> write_tensors("/tmp/scales.safetensors", {"x": np.ones(3, jnp.float8_e8m0fnu)})
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"`path` = {str(path)!r}; it must end in .safetensors")
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    found = {name: np.asarray(array) for name, array in arrays.items()}
    end, blobs = 0, []
    for name in sorted(found, key=lambda name: (-found[name].dtype.itemsize, name)):
        array = found[name]
        kind = _NAMES.get(array.dtype.newbyteorder("<"), _NAMES.get(array.dtype))
        if kind is None or name == "__metadata__":
            raise ValueError(
                f"tensor {name!r} of type {array.dtype} cannot be written to .safetensors; types "
                f"that can: {', '.join(_NAMES.values())} (codes of others as unsigned integers)"
            )
        blobs.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        start, end = end, end + len(blobs[-1])
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(_ALIGNMENT, "little") + text)
        file.writelines(blobs)
    partial.replace(path)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The texts in the header of a `.safetensors` file that `read_tensors` has read; else nothing.

    Example:
      >>> write_tensors("/tmp/scales.safetensors", {"x": np.ones(3)}, {"format": "pt"})
      >>> read_metadata("/tmp/scales.safetensors")
      {'format': 'pt'}
    """
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(_ALIGNMENT), "little")))
    found = header.get("__metadata__", {})
    return found if isinstance(found, dict) else {}
