"""The tensors of a checkpoint's shards, memory-mapped: what is not looked at is not read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowprec.models.array_checks import quoted
from lowprec.models.checkpoints.header import Place, read_header
from lowprec.models.tensor_files import SAFETENSORS_DTYPES

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, eq=False, kw_only=True)
class Shards:
    """Tensors by name, each in one of the memory-mapped files.

    Attributes:
      directory: where the checkpoint is, for messages.
      places: of the tensors.
      maps: the bytes of each file, read as they are touched.
    """

    directory: Path
    places: Mapping[str, Place]
    maps: Mapping[Path, np.memmap]

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor as a read-only view of its file.

        Args:
          name: of the tensor.
          shape: that the model needs.

        Returns:
          An array of the stored type: of NumPy, or of ml_dtypes for bfloat16 and narrower floats.

        Raises:
          ValueError: there is no such tensor, or it has another shape, or a type that is not read.
        """
        place = self.place(name)
        if place.dtype not in SAFETENSORS_DTYPES:
            raise ValueError(
                f"{place.path}: tensor {quoted(name)} has dtype {quoted(place.dtype)}, which is "
                f"not read; those that are: {', '.join(SAFETENSORS_DTYPES)}"
            )
        if place.shape != shape:
            raise ValueError(
                f"{place.path}: tensor {quoted(name)} must have the shape {shape} that config.json "
                f"implies, got {place.shape}"
            )
        raw = self.maps[place.path][place.start : place.start + place.size]
        return np.asarray(raw).view(SAFETENSORS_DTYPES[place.dtype]).reshape(shape)

    def place(self, name: str) -> Place:
        """Where a tensor lies.

        Raises:
          ValueError: there is no such tensor.
        """
        if name not in self.places:
            raise ValueError(
                f"{self.directory}: the model needs the tensor {quoted(name)}, which no shard holds"
            )
        return self.places[name]


def open_shards(directory: Path) -> Shards:
    """The shards of a checkpoint: `model.safetensors`, or those that its index names.

    Raises:
      FileNotFoundError: there is neither, or a shard that the index names is absent.
      ValueError: only pickles are there, which are never read; a malformed index or shard; a tensor
        that is not where the index says.
    """
    single, index = directory / SINGLE, directory / INDEX
    if single.is_file():
        places = read_header(single)
    elif index.is_file():
        places = _indexed(index)
    else:
        pickles = sorted(x.name for x in directory.iterdir() if x.suffix in PICKLES)
        if pickles:
            raise ValueError(
                f"{directory / pickles[0]}: is a pickle, which can run any code and is never read; "
                f"save the model as {SINGLE}"
            )
        raise FileNotFoundError(f"{directory}: holds neither {SINGLE} nor {INDEX}")
    paths = {place.path for place in places.values() if place.size}
    maps = {path: np.memmap(path, dtype=np.uint8, mode="r") for path in sorted(paths)}
    return Shards(directory=directory, places=places, maps=maps)


def _indexed(index: Path) -> dict[str, Place]:
    try:
        table = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{index}: is no JSON: {error}") from error
    where = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{index}: `weight_map` is missing; it names the shard of every tensor")
    headers: dict[str, dict[str, Place]] = {}
    for name, shard in where.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(
                f"{index}: tensor {quoted(name)} is in {quoted(str(shard))}, which is no file name"
            )
        if Path(shard).suffix in PICKLES:
            raise ValueError(f"{index}: {shard} is a pickle, which can run any code; never read")
        if shard not in headers:
            path = index.with_name(shard)
            if not path.is_file():
                raise FileNotFoundError(
                    f"{index}: names the shard {quoted(shard)}, which is absent"
                )
            headers[shard] = read_header(path)
        if name not in headers[shard]:
            raise ValueError(f"{index}: tensor {quoted(name)} is not in {shard}, as it says")
    return {name: headers[shard][name] for name, shard in where.items()}
