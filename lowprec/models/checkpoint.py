"""Parameters on disk: one safetensors file, bfloat16, with the model's shape in its metadata."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lowprec.models.parameters import Parameters, TransformerConfig, parameter_shapes
from lowprec.models.tensor_files import read_tensors

try:
    from safetensors.numpy import save as _serialize
except ImportError:  # the extra is not installed: said by `save_checkpoint`, when it matters
    _serialize = None

_CONFIG_KEY = "transformer_config"


def default_checkpoint() -> Path:
    """The trained byte model that the repository carries.

    Raises:
      FileNotFoundError: lowprec runs without its repository; the wheel has no checkpoint.
    """
    path = Path(__file__).parents[2] / "experiments" / "checkpoints" / "byte_lm.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path}: the installed package does not carry it. Clone the lowprec "
            "repository and run from there, pass the path of its "
            "experiments/checkpoints/byte_lm.safetensors, or train one with "
            "experiments/train_lm.py"
        )
    return path


def save_checkpoint(path: str | Path, params: Parameters, config: TransformerConfig) -> None:
    """Writes `params`, rounded to bfloat16 (nearest, ties to even), and `config` to `path`.

    The same parameters give the same bytes.

    Raises:
      ValueError: the arrays are not those that `config` describes, or one is not finite.
      ImportError: the `safetensors` package is not installed.
    """
    if _serialize is None:
        raise ImportError(
            'writing a checkpoint needs a package: pip install "lowprec[report]" for safetensors'
        )
    arrays = {}
    expected = _flatten_names(parameter_shapes(config))
    for name, array in _flatten_names(params).items():
        arrays[name] = np.asarray(array).astype(ml_dtypes.bfloat16)
        if not np.isfinite(arrays[name].astype(np.float32)).all():
            raise ValueError(f"`params` must be finite in bfloat16, got a NaN or Inf in {name}")
    _check_shapes("`params`", {name: array.shape for name, array in arrays.items()}, expected)
    metadata = {_CONFIG_KEY: json.dumps(asdict(config), sort_keys=True)}
    Path(path).write_bytes(_serialize(arrays, metadata=metadata))


def load_checkpoint(path: str | Path | None = None) -> tuple[dict[str, Any], TransformerConfig]:
    """The (params, config) of a checkpoint; the arrays are bfloat16, as stored.

    Args:
      path: a file that `save_checkpoint` wrote; by default the repository's byte model.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a whole `.safetensors` file, or not one of ours.
      ImportError: the `safetensors` package is not installed.

    >>> params, config = load_checkpoint()  # doctest: +SKIP
    """
    path = default_checkpoint() if path is None else Path(path)
    arrays = read_tensors(path)
    config = _read_config(path)
    shapes = {name: array.shape for name, array in arrays.items()}
    _check_shapes(str(path), shapes, _flatten_names(parameter_shapes(config)))
    wrong = {str(array.dtype) for array in arrays.values()} - {"bfloat16"}
    if wrong:
        raise ValueError(f"{path} must hold bfloat16 arrays only, got {', '.join(sorted(wrong))}")
    return _nest({name: jnp.asarray(array) for name, array in arrays.items()}), config


def _read_config(path: Path) -> TransformerConfig:
    # `read_tensors` has checked the header: eight bytes of length, then JSON.
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__", {})
    if _CONFIG_KEY not in metadata:
        raise ValueError(
            f"{path} must name its `{_CONFIG_KEY}` in the metadata, got the keys {list(metadata)}; "
            "write checkpoints with save_checkpoint"
        )
    try:
        return TransformerConfig(**json.loads(metadata[_CONFIG_KEY]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has a malformed `{_CONFIG_KEY}`: {error}") from error


def _check_shapes(source: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    if missing := sorted(expected.keys() - found.keys()):
        raise ValueError(f"{source} must hold the array {missing[0]}, which is missing")
    if unknown := sorted(found.keys() - expected.keys()):
        raise ValueError(f"{source} holds the array {unknown[0]}, which the model does not have")
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise ValueError(f"{name} in {source} must have the shape {shape}, got {found[name]}")


def _flatten_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict as a flat one with dotted names: layers.attention.q."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda node: isinstance(node, tuple))
    return {".".join(str(step.key) for step in path): leaf for path, leaf in leaves}


def _nest(arrays: Mapping[str, jax.Array]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *groups, leaf = name.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = array
    return tree
