"""Files of tensors: exact round trips, and one line for everything that is wrong with one."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowprec.models import tensor_files
from lowprec.models.tensor_files import read_tensors

safetensors = pytest.importorskip(
    "safetensors", reason="the files under test need the safetensors package"
)

STORED = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
}
HYPOTHESIS = settings(derandomize=True, deadline=None, database=None, max_examples=150)


def file_bytes(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file that examples overwrite: Hypothesis cannot use a fixture of function scope."""
    return tmp_path_factory.mktemp("scratch") / "file.safetensors"


def complaint(path: Path, kind: type[Exception] = ValueError) -> str:
    """The message of the error that reading gives: one printable line that names the file."""
    with pytest.raises(kind) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.isprintable()
    return message


# What is read


@HYPOTHESIS
@given(
    dtype=st.sampled_from(sorted(STORED)),
    rows=st.integers(0, 3),
    columns=st.integers(0, 5),
    content=st.data(),
)
def test_safetensors_keep_every_bit(
    scratch: Path, dtype: str, rows: int, columns: int, content: st.DataObject
) -> None:
    size = rows * columns * np.dtype(STORED[dtype]).itemsize
    data = content.draw(st.binary(min_size=size, max_size=size))
    scratch.write_bytes(file_bytes({"t": entry(dtype, [rows, columns], 0, size)}, data))
    tensor = read_tensors(scratch)["t"]
    assert tensor.dtype == STORED[dtype]
    assert tensor.shape == (rows, columns)
    assert tensor.tobytes() == data


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz), ("F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz)],
)
def test_fnuz_floats(tmp_path: Path, dtype: str, expected: type) -> None:
    path = tmp_path / "fnuz.safetensors"
    path.write_bytes(file_bytes({"t": entry(dtype, [256], 0, 256)}, bytes(range(256))))
    if tuple(map(int, safetensors.__version__.split(".")[:2])) < (0, 8):
        assert "unknown variant" in complaint(path)
        return
    tensor = read_tensors(path)["t"]
    assert tensor.dtype == expected and tensor.tobytes() == bytes(range(256))


def test_safetensors_share_a_file_by_offset_not_by_order(tmp_path: Path) -> None:
    path = tmp_path / "two.safetensors"
    header = {"b": entry("U8", [1], 4, 5), "a": entry("F32", [], 0, 4)}
    path.write_bytes(file_bytes(header, np.float32(1.5).tobytes() + b"\x07"))
    tensors = read_tensors(path)
    assert list(tensors) == ["a", "b"]
    assert tensors["a"].shape == () and tensors["a"] == 1.5
    assert tensors["b"].tolist() == [7]


def test_f4_unpacks_the_low_half_first(tmp_path: Path) -> None:
    path = tmp_path / "f4.safetensors"
    path.write_bytes(file_bytes({"w": entry("F4", [2, 2], 0, 2)}, bytes([0x21, 0xF7])))
    tensor = read_tensors(path)["w"]
    assert tensor.dtype == ml_dtypes.float4_e2m1fn
    assert tensor.astype(np.float32).tolist() == [[0.5, 1.0], [6.0, -6.0]]


def test_bool_reads_any_nonzero_byte_as_true(tmp_path: Path) -> None:
    path = tmp_path / "mask.safetensors"
    path.write_bytes(file_bytes({"m": entry("BOOL", [3], 0, 3)}, bytes([0, 1, 7])))
    assert read_tensors(path)["m"].tolist() == [False, True, True]


def test_npy_is_named_after_its_file_and_comes_in_native_order(tmp_path: Path) -> None:
    path = tmp_path / "act.npy"
    np.save(path, np.array([[1.0, 2.0]], ">f4"))
    tensor = read_tensors(path)["act"]
    assert tensor.dtype == np.dtype(np.float32) and tensor.dtype.isnative
    assert tensor.tolist() == [[1.0, 2.0]]


def test_npz_keeps_names_and_order(tmp_path: Path) -> None:
    path = tmp_path / "two.npz"
    np.savez_compressed(path, **{"fc.x": np.ones((2, 3)), "fc.n": np.arange(4)})
    tensors = read_tensors(str(path))
    assert [(name, t.shape, str(t.dtype)) for name, t in tensors.items()] == [
        ("fc.x", (2, 3), "float64"),
        ("fc.n", (4,), "int64"),
    ]


# What is refused


def test_directory_missing_file_and_unknown_extension(tmp_path: Path) -> None:
    assert "is a directory" in complaint(tmp_path, IsADirectoryError)
    assert "no such file" in complaint(tmp_path / "no.npy", FileNotFoundError)
    weights = tmp_path / "weights.bin"
    weights.touch()
    message = complaint(weights)
    assert "'.bin'" in message and ".npy, .npz, .safetensors" in message


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    path.touch()

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert complaint(path, OSError).endswith("cannot be read: Permission denied")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    member = io.BytesIO()
    np.save(member, np.array([Bomb()], object), allow_pickle=True)
    npz = tmp_path / "objects.npz"
    with zipfile.ZipFile(npz, "w") as archive:
        archive.writestr("x.npy", member.getvalue())
    raw = tmp_path / "raw.npy"
    raw.write_bytes(pickle.dumps(Bomb()))
    npy = tmp_path / "object.npy"
    npy.write_bytes(member.getvalue())
    for path in (npz, raw, npy):
        assert "pickles are never loaded" in complaint(path)


def test_truncated_numpy_files(tmp_path: Path) -> None:
    for name in ("a.npy", "a.npz"):
        path = tmp_path / name
        save = np.save if name.endswith("npy") else np.savez
        save(path, np.ones((20, 20), np.float32))
        whole = path.read_bytes()
        for length in (0, 3, 40, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            complaint(path)


def test_npz_member_that_is_no_array(tmp_path: Path) -> None:
    path = tmp_path / "notes.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme\n.txt", "hello")
    assert "is not a .npy array" in complaint(path)


def test_numpy_files_that_lost_a_narrow_dtype(tmp_path: Path) -> None:
    path = tmp_path / "narrow.npy"
    np.save(path, np.ones(3, ml_dtypes.bfloat16))
    assert "tensor `narrow` has dtype |V2" in complaint(path)
    np.save(path, np.ones(3, ml_dtypes.float8_e5m2))
    assert "hold no ml_dtypes types, use .safetensors" in complaint(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "header too small"),
        (struct.pack("<Q", 2**63), "header too large"),
        (struct.pack("<Q", 100) + b"{}", "invalid header length"),
        (file_bytes(b'{"a":'), "invalid JSON"),
        (file_bytes(b"\xff\xfe\xff"), "invalid UTF-8"),
        (file_bytes(b"[" * 10_000), "invalid JSON"),
        (file_bytes({"a": entry("Q9", [1], 0, 1)}, b"\0"), "unknown variant `Q9`"),
        (file_bytes({"a": entry("F32", [4], 0, 16)}, b"\0" * 4), "not fully covered"),
        (file_bytes({"a": entry("F32", [1], 0, 4)}, b"\0" * 9), "not fully covered"),
        (file_bytes({"a": entry("F32", [2], 0, 4)}, b"\0" * 4), "invalid shape, data type"),
        (file_bytes({"a": entry("F32", [-1], 0, 4)}, b"\0" * 4), "invalid value"),
        (file_bytes({"a": entry("F32", [2**40, 2**40], 0, 4)}, b"\0" * 4), "overflow"),
        (
            file_bytes({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, b"\0" * 6),
            "invalid offset",
        ),
        (file_bytes({"a": entry("F4", [3], 0, 2)}, b"\0\0"), "byte boundary"),
        (file_bytes({"a\n": entry("F6_E2M3", [4], 0, 3)}, b"\0" * 3), "has dtype F6_E2M3"),
        (file_bytes({"a": entry("C64", [1], 0, 8)}, b"\0" * 8), "C64"),
        (file_bytes({"a": entry("F32", [0, 2**63], 0, 0)}), "tensor `a` has shape"),
    ],
)
def test_hostile_safetensors(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(content)
    assert expected in complaint(path)


WHOLE = file_bytes(
    {
        "__metadata__": {"k": "v"},
        "fc.x": entry("BF16", [2, 3], 0, 12),
        "s": entry("F4", [2], 12, 13),
    },
    bytes(13),
)


@HYPOTHESIS
@given(length=st.integers(0, len(WHOLE) - 1))
def test_every_truncation_is_refused(scratch: Path, length: int) -> None:
    scratch.write_bytes(WHOLE[:length])
    complaint(scratch)


@HYPOTHESIS
@given(
    position=st.integers(0, len(WHOLE) - 1),
    replacement=st.binary(min_size=1, max_size=12),
    removed=st.integers(0, 12),
)
def test_damage_gives_tensors_or_one_line(
    scratch: Path, position: int, replacement: bytes, removed: int
) -> None:
    scratch.write_bytes(WHOLE[:position] + replacement + WHOLE[position + removed :])
    try:
        read_tensors(scratch)
    except (ValueError, OSError) as error:
        assert str(error).isprintable() and str(scratch) in str(error)


@HYPOTHESIS
@given(content=st.binary(max_size=200), extension=st.sampled_from(tensor_files.EXTENSIONS))
def test_noise_is_refused(scratch: Path, content: bytes, extension: str) -> None:
    path = scratch.with_suffix(extension)
    prefix = {".npy": b"\x93NUMPY\x01\x00", ".npz": b"PK\x03\x04", ".safetensors": b""}[extension]
    path.write_bytes(prefix + content)
    complaint(path)


def test_without_the_package_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "safetensors", None)
    path = tmp_path / "x.safetensors"
    path.touch()
    assert 'pip install "lowprec[report]"' in complaint(path, ImportError)
