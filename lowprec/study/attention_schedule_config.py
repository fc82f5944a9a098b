"""What a study of attention's schedules runs: experiments/attention_schedule.toml as values."""

import dataclasses
import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from lowprec.engines.engine import get_engine
from lowprec.kv.attention import Products
from lowprec.kv.schedule import Schedule
from lowprec.numerics.format import get_format


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to compute attention.

    Attributes:
      name: as rows and figures say it.
      source: where it is from, empty where it is ours.
      qk, pv: engines, empty for float32 products.
      order, weight_scale, row_sum, accumulation, tile, promote_every, splits: as `Schedule` and
        `attend_tiles` have them.
      weight_format: as `Schedule` has it; empty for float32.
      operand_format: of both operands of engines.
      rescale_threshold_log2: the logarithm to base 2 of the factor that a weight may exceed 1 by.
    """

    name: str
    source: str = ""
    qk: str = ""
    pv: str = ""
    tile: int = 128
    order: Literal["ascending", "descending"] = "descending"
    weight_format: str = "float8_e4m3fn"
    operand_format: str = "float8_e4m3fn"
    weight_scale: float = 256.0
    row_sum: Literal["before", "after"] = "before"
    rescale_threshold_log2: float = 0.0
    accumulation: Literal["tile", "engine"] = "tile"
    promote_every: int | None = None
    splits: int = 1

    @property
    def schedule(self) -> Schedule:
        """Of `attend_tiles`."""
        return Schedule(
            tile=self.tile,
            order=self.order,
            weight_format=get_format(self.weight_format) if self.weight_format else None,
            weight_scale=self.weight_scale,
            row_sum=self.row_sum,
            rescale_threshold=self.rescale_threshold_log2 * math.log(2),
            accumulation=self.accumulation,
            promote_every=self.promote_every,
        )

    @property
    def products(self) -> Products:
        """Of `attend_tiles`."""
        qk, pv = (get_engine(name) if name else None for name in (self.qk, self.pv))
        fmt = get_format(self.operand_format)
        return Products(
            qk=qk,
            pv=pv,
            qk_formats=None if qk is None else (fmt, fmt),
            pv_formats=None if pv is None else (fmt, fmt),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """What a synthetic head's keys, values and queries are drawn from.

    Attributes:
      name: as rows say it.
      score_deviation: of the scores, which are normal.
      value_mean: the root mean square of a channel's mean over tokens, the rest having 1.
      token_spread: the standard deviation of the logarithm of a token's size.
      sinks: tokens at the beginning with equal scores.
      sink_share: of the weights, which they have together at the greatest length.
      sink_value: what their values are multiplied by.
    """

    name: str
    score_deviation: float
    value_mean: float
    token_spread: float = 0.0
    sinks: int = 0
    sink_share: float = 0.0
    sink_value: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accumulation:
    """Long contexts under accumulators of the product with the values.

    Attributes:
      together: so many heads at once.
    """

    source: str
    seeds: int
    together: int
    rows: int
    dim: int
    lengths: tuple[int, ...]
    format: str
    head: tuple[Head, ...]
    setting: tuple[Setting, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Underflow:
    """Sinks whose scores exceed the others' by a gap, and weights that vanish beside theirs.

    Attributes:
      within: a difference of shares that counts as reproduced.
      least, most: times that the mean square error is published to fall.
    """

    source: str
    seeds: int
    rows: int
    dim: int
    length: int
    sinks: int
    gaps: tuple[float, ...]
    sink_values: tuple[float, ...]
    within: float
    least: float
    most: float
    setting: tuple[Setting, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saturation:
    """Weights above 1 relative to a maximum that was left as it is.

    Attributes:
      published: errors by deviation of the scores, of the settings that `published_settings` names.
    """

    source: str
    seeds: int
    rows: int
    dim: int
    length: int
    format: str
    deviations: tuple[float, ...]
    published_settings: tuple[str, ...]
    published: tuple[tuple[float, ...], ...]
    within: float
    setting: tuple[Setting, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outliers:
    """Rare large numbers in queries, keys and values, under scales and rotations.

    Attributes:
      large: the standard deviation of what is added, to the share `rare` of the numbers.
      arms: scale of queries, keys and values (`none`, `tensor` or `tile`) and whether queries and
        keys are rotated, by the arm's name.
      published: root mean square errors by arm.
      least, most: of the ratio of errors that is to be found.
      alone: up to which ratio something does not help.
    """

    source: str
    seeds: int
    rows: int
    lengths: tuple[int, ...]
    dims: tuple[int, ...]
    format: str
    large: float
    rare: float
    least: float
    most: float
    alone: float
    arms: Mapping[str, tuple[str, bool]]
    published: Mapping[str, float]
    setting: Setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One study; see experiments/attention_schedule.toml."""

    seed: int
    accumulation: Accumulation
    underflow: Underflow
    saturation: Saturation
    outliers: Outliers


def read_config(path: Path) -> Config:
    """Reads a study; unknown and missing keys are errors.

    Raises:
      ValueError: a key that does not belong there, one that is missing, or one with a value that
        engines, formats or schedules refuse.
    """
    data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    try:
        parts: dict[str, Any] = {
            "accumulation": _several(Accumulation, data.pop("accumulation")),
            "underflow": _several(Underflow, data.pop("underflow")),
            "saturation": _several(Saturation, data.pop("saturation")),
            "outliers": _outliers(data.pop("outliers")),
        }
        config = Config(**parts, **data)
        for setting in (*config.accumulation.setting, *config.underflow.setting,
                        *config.saturation.setting, config.outliers.setting):  # fmt: skip
            _ = setting.schedule, setting.products
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def _several(kind: Callable[..., Any], table: dict[str, Any]) -> Any:
    lists: dict[str, Callable[..., Any]] = {"head": Head, "setting": Setting}
    made = {
        key: tuple(make(**x) for x in table.pop(key)) for key, make in lists.items() if key in table
    }
    return kind(**made, **{key: _tuple(x) for key, x in table.items()})


def _outliers(table: dict[str, Any]) -> Outliers:
    arms = {name: (x["scale"], x["rotated"]) for name, x in table.pop("arms").items()}
    setting = Setting(**table.pop("setting"))
    return Outliers(arms=arms, setting=setting, **{key: _tuple(x) for key, x in table.items()})


def _tuple(x: Any) -> Any:
    return tuple(map(_tuple, x)) if isinstance(x, list) else x
