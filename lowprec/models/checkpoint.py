"""Parameters on disk: one safetensors file, bfloat16, with the model's shape in its metadata."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lowprec.models import latent_parameters
from lowprec.models.latent_parameters import AnyConfig, LatentTransformerConfig
from lowprec.models.parameters import Parameters, TransformerConfig, parameter_shapes
from lowprec.models.tensor_files import read_tensors

try:
    from safetensors.numpy import save as _serialize
except ImportError:  # the extra is not installed: said by `save_checkpoint`, when it matters
    _serialize = None

_Config = TypeVar("_Config", TransformerConfig, LatentTransformerConfig)

_CONFIG_KEYS = {
    TransformerConfig: "transformer_config",
    LatentTransformerConfig: "latent_transformer_config",
}


def default_checkpoint(name: str = "byte_lm") -> Path:
    """A trained byte model that the repository carries.

    Args:
      name: `byte_lm`; or `byte_gqa` and `byte_mla`, whose caches are compared, trained to look back
        through 1024 bytes.

    Raises:
      FileNotFoundError: lowprec runs without its repository; the wheel has no checkpoint.
    """
    path = Path(__file__).parents[2] / "experiments" / "checkpoints" / f"{name}.safetensors"
    if not path.is_file():
        script = "train_lm.py" if name == "byte_lm" else "train_kv_models.py"
        raise FileNotFoundError(
            f"no checkpoint at {path}: the installed package does not carry it. Clone the lowprec "
            f"repository and run from there, pass the path of its "
            f"experiments/checkpoints/{name}.safetensors, or train one with "
            f"experiments/{script}"
        )
    return path


def save_checkpoint(path: str | Path, params: Parameters, config: AnyConfig) -> None:
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
    expected = _flatten_names(_shapes(config))
    for name, array in _flatten_names(params).items():
        arrays[name] = np.asarray(array).astype(ml_dtypes.bfloat16)
        if not np.isfinite(arrays[name].astype(np.float32)).all():
            raise ValueError(f"`params` must be finite in bfloat16, got a NaN or Inf in {name}")
    _check_shapes("`params`", {name: array.shape for name, array in arrays.items()}, expected)
    metadata = {_CONFIG_KEYS[type(config)]: json.dumps(asdict(config), sort_keys=True)}
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
    return _load(default_checkpoint() if path is None else Path(path), TransformerConfig)


def load_latent_checkpoint(path: str | Path) -> tuple[dict[str, Any], LatentTransformerConfig]:
    """The (params, config) of a checkpoint of `latent_transformer`; bfloat16 arrays, as stored.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a whole `.safetensors` file, or not one of these.
      ImportError: the `safetensors` package is not installed.

    >>> params, config = load_latent_checkpoint("byte_mla.safetensors")  # doctest: +SKIP
    """
    return _load(Path(path), LatentTransformerConfig)


def _load(path: Path, kind: type[_Config]) -> tuple[dict[str, Any], _Config]:
    arrays = read_tensors(path)
    config = _read_config(path, kind)
    shapes = {name: array.shape for name, array in arrays.items()}
    _check_shapes(str(path), shapes, _flatten_names(_shapes(config)))
    wrong = {str(array.dtype) for array in arrays.values()} - {"bfloat16"}
    if wrong:
        raise ValueError(f"{path} must hold bfloat16 arrays only, got {', '.join(sorted(wrong))}")
    return _nest({name: jnp.asarray(array) for name, array in arrays.items()}), config


def _shapes(config: AnyConfig) -> dict[str, Any]:
    if isinstance(config, LatentTransformerConfig):
        return latent_parameters.parameter_shapes(config)
    return parameter_shapes(config)


def _read_config(path: Path, kind: type[_Config]) -> _Config:
    # `read_tensors` has checked the header: eight bytes of length, then JSON.
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata, key = header.get("__metadata__", {}), _CONFIG_KEYS[kind]
    if key not in metadata:
        raise ValueError(
            f"{path} must name its `{key}` in the metadata, got the keys {list(metadata)}; "
            "write checkpoints with save_checkpoint"
        )
    try:
        return kind(**json.loads(metadata[key]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has a malformed `{key}`: {error}") from error


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
