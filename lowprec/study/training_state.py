"""What a training run keeps on disk: its state while it runs, its numbers when it is done."""

import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

_META = "meta"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """An arm and a seed that are done.

    Attributes:
      arm, recipe, seed: which.
      digest: of what its numbers follow from.
      losses: bits per byte of every step's windows, before the step.
      held_out, held_out_bf16: bits per byte of held-out text after the last step, the linear layers
        as in training and in bfloat16.
      step_seconds: the median.
      versions: of what computed it.
    """

    arm: str
    recipe: str
    seed: int
    digest: str
    losses: list[float]
    held_out: float
    held_out_bf16: float
    step_seconds: float
    versions: dict[str, str]


def run_path(folder: Path, arm: str, seed: int, end: str) -> Path:
    """Where something of an arm and a seed lies."""
    return folder / arm / f"seed{seed}.{end}"


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is never seen in part: another name, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    other = path.with_name(f"{path.name}.{os.getpid()}.part")
    with other.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(other, path)


def save_arrays(path: Path, tree: Any, meta: dict[str, Any]) -> None:
    """A tree of arrays, by the names of its paths, and what JSON says beside it."""
    leaves = jax.tree.leaves_with_path(tree)
    arrays = {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in leaves}
    buffer = io.BytesIO()
    arrays[_META] = np.array(json.dumps(meta))
    np.savez(buffer, allow_pickle=False, **arrays)
    write_whole(path, buffer.getvalue())


def load_arrays(path: Path, like: Any) -> tuple[Any, dict[str, Any]]:
    """What `save_arrays` wrote, in the structure of `like`.

    Raises:
      ValueError: the file holds other arrays.
    """
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    meta = json.loads(str(arrays.pop(_META)))
    leaves, structure = jax.tree.flatten_with_path(like)
    wanted = {jax.tree_util.keystr(name): np.shape(leaf) for name, leaf in leaves}
    if {name: array.shape for name, array in arrays.items()} != wanted:
        raise ValueError(
            f"{path} holds the state of another model or recipe; remove it, or use another --state"
        )
    return jax.tree.unflatten(structure, [arrays[name] for name in wanted]), meta


def save_finished(folder: Path, done: Finished) -> None:
    """Writes the numbers of an arm and a seed."""
    text = json.dumps(dataclasses.asdict(done), indent=1)
    write_whole(run_path(folder, done.arm, done.seed, "json"), text.encode())


def load_finished(folder: Path, arm: str, seed: int, digest: str | None = None) -> Finished | None:
    """The numbers of an arm and a seed; None where they are not there.

    Raises:
      ValueError: they follow from something else than `digest` is of.
    """
    path = run_path(folder, arm, seed, "json")
    if not path.is_file():
        return None
    done = Finished(**json.loads(path.read_text(encoding="utf-8")))
    check_digest(path, done.digest, digest)
    return done


def check_digest(path: Path, found: str, wanted: str | None) -> None:
    """ValueError where a file was made under other settings, another recipe or another text."""
    if wanted is not None and found != wanted:
        raise ValueError(
            f"{path} was made with other settings, another recipe or another text than this run's; "
            f"use another --state, or remove it"
        )
