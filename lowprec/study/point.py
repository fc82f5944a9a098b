"""One point of a study: which product under which recipe, and the key that its result has."""

import dataclasses
import functools
import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from lowprec.gemm.recipe import Recipe, Role
from lowprec.study.point_operands import Drawn, Stored

_PACKAGE = Path(__file__).parents[1]
SOURCES = (
    "catalogue.py",
    "metrics.py",
    "numerics/*.py",
    "scaling/*.py",
    "engines/*.py",
    "gemm/*.py",
    "models/array_checks.py",
    "models/cards.py",
    "models/operands.py",
    "models/synthetic_operands.py",
    "models/tensor_files.py",
    "study/fate.py",
    "study/point.py",
    "study/point_operands.py",
    "study/point_rows.py",
    "study/products.py",
    "study/rows.py",
)
"""The code that decides a point's result; a test follows the imports and finds no other."""
_PACKAGES = ("jax", "jaxlib", "ml_dtypes", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A product under a recipe.

    Attributes:
      recipe: as its role runs it (`Recipe.in_role`), with all that the study sets instead.
      role: whose operands are multiplied.
      m, k, n: the product's shape.
      operands: what draws a, (M, K), and b, drawn as (N, K); or a layer of a file.
      seed: of what is drawn, operands and stochastic rounding.
    """

    recipe: Recipe
    role: Role
    m: int
    k: int
    n: int
    operands: tuple[Drawn, Drawn] | Stored
    seed: int = 0

    @property
    def spec(self) -> dict[str, Any]:
        """What the point is, in words and numbers that JSON holds: the first columns of its row."""
        recipe, of = self.recipe, self.operands
        a, b = (str(of), str(of)) if isinstance(of, Stored) else map(str, of)
        return {
            "recipe": recipe.name,
            "engine": recipe.engine.name,
            "role": self.role,
            "promote_every": recipe.promote_every,
            "promotion": recipe.promotion,
            "scales": recipe.scales,
            "order": recipe.order,
            "output": recipe.output.name,
            "a": a,
            "b": b,
            "m": self.m,
            "k": self.k,
            "n": self.n,
            "seed": self.seed,
        }

    @property
    def inputs(self) -> dict[str, str]:
        """Hashes of what the names in `spec` stand for: the recipe's values, a file's bytes."""
        file = {"file": self.operands.digest} if isinstance(self.operands, Stored) else {}
        return {"recipe": recipe_digest(self.recipe), **file}

    @property
    def code(self) -> dict[str, str]:
        """What computes the point: hash of the sources, versions, and the device where it counts.

        The result of an engine that is `bit_exact` is the same on every device.
        """
        exact = self.recipe.engine.reproducibility == "bit_exact"
        return code_version() | ({} if exact else {"device": device_kind()})

    @property
    def key(self) -> str:
        """SHA-256 of spec, inputs and code version, in hexadecimal."""
        return _hash({"spec": self.spec, "inputs": self.inputs, "code": self.code})

    @property
    def program(self) -> tuple[Any, ...]:
        """Points that are equal in this share compiled programs; it sorts, shapes first."""
        recipe = self.recipe
        shape = (self.m, self.k, self.n, self.role)
        return (*shape, recipe.engine.name, recipe.name, recipe_digest(recipe))


@functools.cache
def recipe_digest(recipe: Recipe) -> str:
    """A hash of all values of a recipe, its engine, blocks and formats; citations do not count."""
    engine = dataclasses.replace(recipe.engine, evidence=None)
    # Not the value's own repr, which gives a long table of levels by its length.
    return _hash(dataclasses.asdict(dataclasses.replace(recipe, engine=engine)))


@functools.cache
def code_version() -> dict[str, str]:
    """Hash of the sources that compute, and the versions of the libraries that they rest on."""
    found = hashlib.sha256()
    for some in SOURCES:
        for path in sorted(_PACKAGE.glob(some)):
            name = path.relative_to(_PACKAGE).as_posix().encode()
            found.update(name + b"\0" + path.read_bytes() + b"\0")
    return {"lowprec": found.hexdigest()} | {name: version(name) for name in _PACKAGES}


@functools.cache
def device_kind() -> str:
    """The device that products run on; of processors, which JAX all calls alike, the model."""
    device = jax.devices()[0]
    kind = _processor() if device.platform == "cpu" else device.device_kind
    return f"{device.platform} {kind}"


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    for line in listed.read_text().splitlines() if listed.is_file() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _hash(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()
