"""Loading code of others for bit_equality_sources.py, and reading the bits that it returns."""

import ast
import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lowprec.numerics import Format, get_format
from lowprec.scaling import Block

_TORCH_NAMES = {"float6_e2m3fn": "fp6_e2m3", "float6_e3m2fn": "fp6_e3m2"}


# Loading.


def torch_here() -> Any:
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    return torch


def package_of(name: str, folder: Path) -> None:
    """A package of whose own `__init__` nothing runs, so that its files can be imported."""
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module


def empty_module(name: str, **contents: Any) -> None:
    """A module that holds nothing but what another imports from it."""
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__dict__.update(contents)
        sys.modules[name] = module


def file_module(name: str, path: Path) -> Any:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise ImportError(f"no file {path}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def defined_in(path: Path, **known: Any) -> dict[str, Any]:
    """The functions and constants of a file, its own imports left out: `known` stands for them.

    What does not work without them stays undefined.
    """
    if not path.is_file():
        raise ImportError(f"no file {path}")
    scope = dict(known)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.Assign):
            with contextlib.suppress(NameError, AttributeError):
                exec(compile(ast.Module([node], []), str(path), "exec"), scope)
    return scope


# Shapes and bits.


def each(x: np.ndarray, one: Callable[[Any], tuple[Any, ...]]) -> list[np.ndarray]:
    """What a function of a torch matrix returns for every tensor, as stacked NumPy arrays."""
    torch = torch_here()
    found = [[to_numpy(part) for part in one(torch.from_numpy(tensor.copy()))] for tensor in x]
    return [np.stack(parts) for parts in zip(*found, strict=True)]


def to_numpy(x: Any) -> np.ndarray:
    torch = torch_here()
    if isinstance(x, np.ndarray):
        return x
    x = x.detach().contiguous()
    if x.dtype.itemsize == 1 and x.dtype != torch.int8:
        x = x.view(torch.uint8)
    return x.numpy()


def byte_codes(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.uint8)


def unpacked(x: np.ndarray) -> np.ndarray:
    """Two codes of four bits from every byte, the low one first."""
    x = byte_codes(x)
    return np.stack([x & 15, x >> 4], axis=-1).reshape(*x.shape[:-1], -1)


def power_of(codes: np.ndarray) -> np.ndarray:
    """The float32 of UE8M0 codes."""
    codes = codes.astype(np.uint32)
    bits = np.where(codes == 0, np.uint32(1 << 22), codes << np.uint32(23))
    return np.where(codes == 255, np.uint32(0x7FC00000), bits).astype(np.uint32).view(np.float32)


def e4m3_values(codes: np.ndarray) -> np.ndarray:
    values = get_format("float8_e4m3fn").values
    assert values is not None
    return values[codes].astype(np.float32)


def torch_type(fmt: Format) -> Any:
    name = _TORCH_NAMES.get(fmt.name, fmt.name.replace("e2m1fn", "e2m1fn_x2"))
    return getattr(torch_here(), name, name)


def tile_size(block: Block) -> tuple[int, int]:
    rows, columns = block.tile
    assert rows != "all" and columns != "all"
    return rows, columns
