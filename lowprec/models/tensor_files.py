"""Reading the tensors of a `.npy`, `.npz` or `.safetensors` file, none of which can run code.

Files come from strangers. Nothing is unpickled; the `safetensors` library checks a header before
any byte is looked at; and whatever is wrong with a file ends in one line that names it.
"""

from pathlib import Path

import ml_dtypes
import numpy as np

from lowprec.models.array_checks import quoted

try:
    import safetensors
except ImportError:  # the extra is not installed: said by `read_tensors`, when it matters
    safetensors = None

EXTENSIONS = (".npy", ".npz", ".safetensors")

SAFETENSORS_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
}
"""What a header calls a type, as NumPy and ml_dtypes have it; `F4` and `BOOL` are apart."""


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a file, by name.

    A `.npy` file holds one tensor, which is named after the file without its extension. Narrow
    floats of `.safetensors` come back as ml_dtypes types (`F8_E4M3` is `float8_e4m3fn`). `F4` is
    unpacked to one `float4_e2m1fn` an element; the element with the lower index is the lower
    half of its byte, as in PyTorch's `float4_e2m1fn_x2`.

    Args:
        path: a file whose name ends in `.npy`, `.npz` or `.safetensors`.

    Returns:
        Arrays in the machine's byte order, of any shape and of any number dtype, in the order
        of the file (`.safetensors`: sorted by name).

    Raises:
        ValueError: the extension is another, or the content is damaged, hostile, pickled or of
            a dtype that numpy and ml_dtypes lack.
        OSError: the path is missing, unreadable or not a regular file.
        ImportError: `.safetensors` without the `safetensors` package.

    Example:
        >>> np.save("/tmp/activations.npy", np.ones((2, 3), np.float32))
        >>> read_tensors("/tmp/activations.npy")["activations"].shape
        (2, 3)
    """
    path = Path(path)
    extension = path.suffix.lower()
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory; name one file inside it")
    if extension not in EXTENSIONS:
        raise ValueError(
            f"{path}: unknown extension {path.suffix!r}; the files read here end in "
            f"{', '.join(EXTENSIONS)}"
        )
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise OSError(f"{path}: is not a regular file")
    if extension == ".safetensors":
        return _read_safetensors(path)
    return _read_numpy(path)


def _read_numpy(path: Path) -> dict[str, np.ndarray]:
    try:
        # The content decides between one array and an archive, as in numpy itself.
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.lib.npyio.NpzFile):
                with loaded:
                    arrays = {name: loaded[name] for name in loaded.files}
            else:
                arrays = {path.stem: loaded}
    except OSError as error:
        raise OSError(f"{path}: cannot be read: {_one_line(error)}") from error
    except Exception as error:  # zipfile, zlib and numpy document no closed list of what they raise
        raise ValueError(f"{path}: {_numpy_complaint(path, error)}") from error
    return {name: _native(path, name, array) for name, array in arrays.items()}


def _numpy_complaint(path: Path, error: Exception) -> str:
    text = _one_line(error)
    if "pickle" in text:
        return (
            "holds pickled Python objects or is no numpy file at all; pickles are never loaded, "
            "because they can run any code: save plain arrays of numbers"
        )
    if "dtype descriptor" in text:
        return f"numpy's own files hold no ml_dtypes types, use .safetensors for those ({text})"
    return f"is not a complete {path.suffix.lower()} file: {text or type(error).__name__}"


def _native(path: Path, name: str, array: object) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: member {quoted(name)} is not a .npy array")
    if array.dtype.kind not in "fiubc":
        raise ValueError(
            f"{path}: tensor {quoted(name)} has dtype {array.dtype}, not numbers (numpy's own "
            "files lose the type of bfloat16 and narrower floats: use .safetensors for those)"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    if safetensors is None:
        raise ImportError(
            f'{path}: reading .safetensors needs a package: pip install "lowprec[report]"'
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OSError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: is not a valid .safetensors file: {_one_line(error)}") from error
    del data  # `entries` holds copies; a checkpoint should not stand in memory twice
    return {
        name: _view(path, name, entry["dtype"], entry["shape"], entry["data"])
        for name, entry in sorted(entries, key=lambda pair: pair[0])
    }


def _view(path: Path, name: str, dtype: str, shape: list[int], data: bytearray) -> np.ndarray:
    """The bytes of one tensor as an array that shares them."""
    raw = np.frombuffer(data, np.uint8)
    if dtype == "F4":
        pairs = np.stack([raw & 0xF, raw >> 4], axis=-1)
        flat = pairs.reshape(-1).view(ml_dtypes.float4_e2m1fn)
    elif dtype == "BOOL":
        flat = raw != 0
    elif dtype in SAFETENSORS_DTYPES:
        stored = SAFETENSORS_DTYPES[dtype]
        flat = raw.view(stored).astype(stored.newbyteorder("="), copy=False)
    else:
        raise ValueError(
            f"{path}: tensor {quoted(name)} has dtype {dtype}, which is not read; "
            f"those that are: {', '.join(SAFETENSORS_DTYPES)}, F4, BOOL"
        )
    try:
        return flat.reshape(shape)
    except (ValueError, OverflowError) as error:  # an empty shape beyond numpy's index range
        raise ValueError(
            f"{path}: tensor {quoted(name)} has shape {shape}: {_one_line(error)}"
        ) from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text.isprintable() else repr(text)[1:-1]
