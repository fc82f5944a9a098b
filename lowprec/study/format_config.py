"""What a comparison of formats compares: experiments/formats.toml as values."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowprec.numerics.format import get_format
from lowprec.scaling.block import Block, get_block, list_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """Figures that others published, by block: `mean_squared_error` or `sqnr_db` on N(0, 1).

    Attributes:
      source: where.
      measure: which of the two.
      half_unit: half a unit of the last place that was printed.
      values: by block.
      numbers: how many random numbers each rests on, where that is known.
    """

    source: str
    measure: str
    half_unit: float
    values: Mapping[str, float]
    numbers: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Earlier:
    """Signal-to-noise ratios of earlier runs of this project on N(0, 1), by block, in dB.

    Attributes:
      half_unit: half a unit of the last place that was noted.
      values: by block.
      numbers: how many random numbers each rests on.
    """

    half_unit: float
    values: Mapping[str, float]
    numbers: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """An integer block and a floating-point one of equal bits, with the published crossing."""

    name: str
    integer: str
    floating: str
    published: float
    overhead: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crest:
    """The sweep of crest factors: parameters of each family, tensors a point, and pairs."""

    tensors: int
    generalised_normal: tuple[float, ...]
    student_t: tuple[float, ...]
    outlier: tuple[float, ...]
    pair: tuple[Pair, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleRules:
    """Blocks whose rules are compared: every base under every rule, and further entries."""

    bases: tuple[str, ...]
    rules: tuple[str, ...]
    further: tuple[str, ...]
    two_level: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One comparison; see experiments/formats.toml."""

    seed: int
    tensors: int
    rows: int
    columns: int
    skip: tuple[str, ...]
    unscaled: tuple[str, ...]
    lloyd_max: Mapping[int, float]
    scale_rules: ScaleRules
    nvfp4: tuple[str, ...]
    crest: Crest
    variants: Mapping[str, Mapping[str, str]]
    published: tuple[Published, ...]
    earlier: tuple[Earlier, ...]

    def block(self, name: str) -> Block:
        """A block of the catalogue, a variant of one, or one under another rule."""
        if name in self.variants:
            base, *others = (self.variants[name][key] for key in ("base", "element"))
            element = get_format(others[0])
            return dataclasses.replace(get_block(base), name=name, element=element)
        if name in list_blocks():
            return get_block(name)
        base, rule = self._base_of(name)
        return dataclasses.replace(get_block(base), name=name, scale_rule=rule)

    def under_rule(self, base: str, rule: str) -> str:
        """The name of a base block under a rule."""
        return base if get_block(base).scale_rule == rule else f"{base}_{rule}"

    def _base_of(self, name: str) -> tuple[str, Any]:
        for base in self.scale_rules.bases:
            for rule in self.scale_rules.rules:
                if name == f"{base}_{rule}":
                    return base, rule
        raise ValueError(
            f"no block is called {name!r}: it is neither in the catalogue nor a [[variant]], nor "
            f"one of `scale_rules.bases` with one of its rules"
        )


def read_config(path: Path) -> Config:
    """Reads a comparison; unknown and missing keys are errors.

    Raises:
      ValueError: a key that does not belong there, or one that is missing.
    """
    data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    try:
        crest = data.pop("crest")
        return Config(
            scale_rules=ScaleRules(**_tuples(data.pop("scale_rules"))),
            nvfp4=tuple(data.pop("nvfp4")["blocks"]),
            crest=Crest(**_tuples(crest | {"pair": [Pair(**pair) for pair in crest["pair"]]})),
            variants={variant["name"]: variant for variant in data.pop("variant", [])},
            published=tuple(Published(**entry) for entry in data.pop("published", [])),
            earlier=tuple(Earlier(**entry) for entry in data.pop("earlier", [])),
            lloyd_max={int(bits): error for bits, error in data.pop("lloyd_max").items()},
            **_tuples(data),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(x) if isinstance(x, list) else x for key, x in table.items()}
