"""What a result depends on: versions, device, seeds, and the hashes of everything that was read."""

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from lowprec import catalogue
from lowprec.engines.engine import Engine
from lowprec.gemm.recipe import Recipe
from lowprec.numerics import families
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block

_PACKAGES = ("lowprec", "jax", "jaxlib", "ml_dtypes", "numpy")


def manifest(
    recipes: Sequence[Recipe], files: Iterable[Path], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The record of a run: no clock and no absolute path, so that equal runs give equal records."""
    device = jax.devices()[0]
    return {
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
        "catalogue": [entry(value) for _, value in _used(recipes)],
        "files": {path.name: sha256(path) for path in files},
    }


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _used(recipes: Sequence[Recipe]) -> list[tuple[catalogue.Kind, Any]]:
    """Every recipe with the engines, blocks and formats that it names, without repetition."""
    found: dict[tuple[str, str], tuple[catalogue.Kind, Any]] = {}

    def add(value: Recipe | Engine | Block | Format) -> None:
        kind = _kind(value)
        found[kind, value.name] = (kind, value)

    for recipe in recipes:
        add(recipe)
        add(recipe.engine)
        for pair in (recipe.fprop, recipe.dgrad, recipe.wgrad):
            if pair.engine is not None:
                add(pair.engine)
            for operand in (pair.a, pair.b, pair.a_from, pair.b_from):
                if operand is None:
                    continue
                add(operand)
                if isinstance(operand, Block):
                    add(operand.element)
                    add(operand.scale_format)
    return [found[key] for key in sorted(found)]


def _kind(value: Recipe | Engine | Block | Format) -> catalogue.Kind:
    match value:
        case Recipe():
            return "recipes"
        case Engine():
            return "engines"
        case Block():
            return "blocks"
        case Format():
            return "elements"


def entry(value: Recipe | Engine | Block | Format) -> dict[str, Any]:
    """An entry's name, citation and file hash; a value that is not the catalogue's says so."""
    kind = _kind(value)
    record: dict[str, Any] = {"kind": kind, "name": value.name}
    if isinstance(value, Engine):
        record["reproducibility"] = value.reproducibility
    name = families.entry_name(value.name) if kind == "elements" else value.name
    if name == value.name and name not in catalogue.names(kind):
        return record | {"citation": "the user's own", "sha256": ""}
    found = catalogue.lookup(kind, name)
    return record | {"citation": str(found.citation), "sha256": found.digest}
