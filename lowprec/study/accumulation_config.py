"""What a study of accumulation runs: experiments/accumulation.toml as values."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distribution:
    """Where the operands come from.

    Attributes:
      name: as rows and figures say it.
      a, b: a kind of `lowprec.study.accumulation_operands.KINDS`, or `card:` and an operand's name.
      scaled: whether a matrix is multiplied so that its largest number is the format's.
    """

    name: str
    a: str
    b: str
    scaled: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """Further lengths of a step, and the widths and promotion intervals that they are run at."""

    fused_length: tuple[int, ...]
    fraction_bits: tuple[int, ...]
    promote_every: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A published error whose setting is unknown, and the settings to look for it in."""

    source: str
    k: int
    least: float
    most: float
    fraction_bits: tuple[int, ...]
    promote_every: int
    distribution: tuple[Distribution, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swamping:
    """Narrow accumulators, and the uniform numbers that they add."""

    source: str
    engines: tuple[str, ...]
    format: str
    mean: float
    standard_deviation: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One study; see experiments/accumulation.toml."""

    seed: int
    seeds: int
    rows: int
    columns: int
    depths: tuple[int, ...]
    engine: str
    format: str
    fraction_bits: tuple[int, ...]
    promote_every: tuple[int, ...]
    lengths: Lengths
    distribution: tuple[Distribution, ...]
    published: Published
    swamping: Swamping

    @property
    def depth(self) -> int:
        """The largest K."""
        return max(self.depths)


def read_config(path: Path) -> Config:
    """Reads a study; unknown and missing keys are errors.

    Raises:
      ValueError: a key that does not belong there, or one that is missing; depths or promotion
        intervals that are no multiples of the steps.
    """
    data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    try:
        published = data.pop("published")
        config = Config(
            lengths=Lengths(**_tuples(data.pop("lengths"))),
            distribution=tuple(Distribution(**x) for x in data.pop("distribution")),
            published=Published(
                distribution=tuple(Distribution(**x) for x in published.pop("distribution")),
                **_tuples(published),
            ),
            swamping=Swamping(**_tuples(data.pop("swamping"))),
            **_tuples(data),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    whole = max(config.promote_every)
    uneven = [k for k in config.depths if k % whole]
    if uneven or list(config.depths) != sorted(config.depths):
        raise ValueError(
            f"{path}: depths = {list(config.depths)} must ascend in multiples of the longest "
            f"promotion interval, {whole}"
        )
    return config


def _tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(x) if isinstance(x, list) else x for key, x in table.items()}
