"""What a result depends on: versions, device, seeds, and the hashes of everything that was read."""

import dataclasses
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from lowprec import catalogue
from lowprec.engines.engine import Engine
from lowprec.gemm.recipe import Recipe
from lowprec.kv import KVMethod, get_kv_method
from lowprec.kv.method import Spec
from lowprec.numerics import families
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block

_PACKAGES = ("lowprec", "jax", "jaxlib", "ml_dtypes", "numpy")
_CODE = ("lowprec", "formats", "experiments")
"""Folders of the repository that results depend on; reports are what is written."""

AnyEntry = Recipe | Engine | Block | Format | KVMethod


def manifest(
    used: Sequence[Recipe | KVMethod], files: Iterable[Path], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The record of a run: no clock and no absolute path, so that equal runs give equal records.

    Args:
      used: the recipes and KV methods of the run; what they name is recorded with them.
      files: that were read.
      settings: of the run.
    """
    device = jax.devices()[0]
    return {
        "commit": commit(),
        "versions": {name: _version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
        },
        "settings": dict(settings),
        "catalogue": [entry(value) for _, value in _used(used)],
        "files": {path.name: sha256(path) for path in files},
    }


def commit(root: Path = Path(__file__).parents[2]) -> str:
    """The commit of the repository that the package is run from, or that there is none.

    Args:
      root: of the repository.
    """
    # A package that is installed may lie within somebody else's repository.
    if not (root / ".git").exists():
        return "none: not run from a git checkout"
    try:
        found = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", *_CODE)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown: git does not say ({type(error).__name__})"
    return f"{found}, with changes that are not committed" if changed else found


def _git(root: Path, *arguments: str) -> str:
    # A commit that is made meanwhile is not to find the index locked.
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _used(values: Sequence[Recipe | KVMethod]) -> list[tuple[catalogue.Kind, Any]]:
    """Every value with the engines, blocks, formats and methods it names, without repetition."""
    found: dict[tuple[str, str], tuple[catalogue.Kind, Any]] = {}

    def add(value: AnyEntry) -> None:
        kind = _kind(value)
        found[kind, value.name] = (kind, value)
        for part in _named_by(value):
            add(part)

    for value in values:
        add(value)
    return [found[key] for key in sorted(found)]


def _named_by(value: AnyEntry) -> list[AnyEntry]:
    """The entries that an entry names itself."""
    match value:
        case Recipe():
            pairs = (value.fprop, value.dgrad, value.wgrad)
            parts = [
                x for pair in pairs for x in (pair.engine, pair.a, pair.b, pair.a_from, pair.b_from)
            ]
            return [value.engine, *(x for x in parts if x is not None)]
        case Block():
            return [value.element, value.scale_format]
        case KVMethod():
            spec: Any = value.spec
            held = [getattr(spec, field.name) for field in dataclasses.fields(spec)]
            stores = [KVMethod(spec=x) for x in held if isinstance(x, Spec)]
            return [*stores, *(x for x in held if isinstance(x, Block | Format))]
    return []


def _kind(value: AnyEntry) -> catalogue.Kind:
    match value:
        case Recipe():
            return "recipes"
        case Engine():
            return "engines"
        case Block():
            return "blocks"
        case Format():
            return "elements"
        case KVMethod():
            return "kv"


def entry(value: AnyEntry) -> dict[str, Any]:
    """An entry's name, citation and file hash; a value that is not the catalogue's says so."""
    kind = _kind(value)
    record: dict[str, Any] = {"kind": kind, "name": value.name}
    if isinstance(value, Engine):
        record["reproducibility"] = value.reproducibility
    name = families.entry_name(value.name) if kind == "elements" else value.name
    if _own(value, kind, name):
        return record | {"citation": "the user's own", "sha256": ""}
    found = catalogue.lookup(kind, name)
    return record | {"citation": str(found.citation), "sha256": found.digest}


def _own(value: AnyEntry, kind: catalogue.Kind, name: str) -> bool:
    """Whether a value is not the catalogue's; a method of a catalogued name may be another one."""
    if isinstance(value, KVMethod):
        return name not in catalogue.names(kind) or get_kv_method(name).spec != value.spec
    return name == value.name and name not in catalogue.names(kind)
