"""Folders of checkpoints for tests, made from the committed ones."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lowprec.models.tensor_files import read_tensors
from tests.models.checkpoints.reference import FIXTURES

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3"}


def copied(name: str, folder: Path) -> Path:
    """A committed checkpoint that a test may damage."""
    return Path(shutil.copytree(FIXTURES / name, folder / name))


def changed_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes config.json in place."""
    path = folder / "config.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint."""
    found = {}
    for shard in sorted(folder.glob("*.safetensors")):
        found |= read_tensors(shard)
    return found


def write_shard(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A `.safetensors` file of any type, byte by byte as the format has it."""
    header, offset, data = {}, 0, []
    for name, x in tensors.items():
        raw = np.ascontiguousarray(x).tobytes()
        header[name] = {
            "dtype": DTYPES[x.dtype.name],
            "shape": list(x.shape),
            "data_offsets": [offset, offset + len(raw)],
        }
        offset += len(raw)
        data.append(raw)
    write_raw(path, header, b"".join(data))


def write_raw(path: Path, header: Any, data: bytes) -> None:
    """A header as it is given, before any bytes."""
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def rewritten(folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Replaces all shards of a checkpoint by a single one."""
    for old in folder.glob("model*"):
        old.unlink()
    write_shard(folder / "model.safetensors", tensors)


def in_fp8(
    tensors: Mapping[str, np.ndarray], block: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Linear layers of the decoder in FP8 with a scale a square block, and what they then are."""
    quantized, plain = dict(tensors), dict(tensors)
    for name, w in tensors.items():
        if not name.endswith("_proj.weight"):
            continue
        tiles = [-(-size // block) for size in w.shape]
        padded = np.zeros([n * block for n in tiles], np.float32)
        padded[: w.shape[0], : w.shape[1]] = w
        view = padded.reshape(tiles[0], block, tiles[1], block)
        scales = (np.abs(view).max(axis=(1, 3)) / np.float32(448)).astype(np.float32)
        spread = np.repeat(np.repeat(scales, block, 0), block, 1)[: w.shape[0], : w.shape[1]]
        codes = (w / spread).astype(ml_dtypes.float8_e4m3fn)
        quantized |= {name: codes, f"{name}_scale_inv": scales}
        plain[name] = codes.astype(np.float32) * spread
    return quantized, plain
