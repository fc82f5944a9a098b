"""Comparisons that figures and findings share: series, floors, and paired differences."""

import dataclasses
import math
from collections.abc import Sequence

import polars as pl

from lowprec.report import words

ROLES = ("fprop", "dgrad", "wgrad")
FLOAT32, BF16 = "recipe:float32", "recipe:bf16"
BASELINES = (FLOAT32, BF16)


def with_series(products: pl.DataFrame) -> pl.DataFrame:
    """Adds `series`, the recipe, with its engine where a recipe ran on several; and `place`.

    An engine is followed by the level of its evidence, `[V]` say.

    `place` is the layer, with its source where there are several. Only products whose SQNR is
    finite are kept.
    """
    engines = pl.col("engine").n_unique().over("recipe") > 1
    one_source = products["source"].n_unique() <= 1
    engine = pl.concat_str("engine", pl.col("evidence").str.slice(0, 3), separator=" ")
    both = pl.concat_str("recipe", engine.str.strip_chars(), separator=", ")
    return products.filter(pl.col("sqnr_db").is_finite()).with_columns(
        series=pl.when(engines).then(both).otherwise("recipe"),
        place=pl.col("layer") if one_source else pl.concat_str("source", "layer", separator=": "),
    )


def in_order(column: pl.Series) -> list[str]:
    """The distinct values in the order in which they come."""
    return column.unique(maintain_order=True).to_list()


def roles(products: pl.DataFrame) -> list[str]:
    """The roles that occur: fprop, dgrad and wgrad first."""
    found = in_order(products["role"])
    return [role for role in ROLES if role in found] + [r for r in found if r not in ROLES]


def lossy(products: pl.DataFrame) -> pl.DataFrame:
    """The products of everything but the baselines."""
    return products.filter(~pl.col("recipe").is_in(BASELINES))


def floor(products: pl.DataFrame, baseline: str, role: str | None = None) -> float | None:
    """The median SQNR of a baseline, None where it was not run."""
    rows = products.filter(pl.col("recipe") == baseline)
    return median((rows if role is None else rows.filter(pl.col("role") == role))["sqnr_db"])


def by_bits(products: pl.DataFrame) -> list[str]:
    """The series that are no baselines, fewest bits per element first."""
    bits = lossy(products).group_by("series").agg(pl.col("bits_per_element").median())
    return bits.sort("bits_per_element", "series")["series"].to_list()


def median(values: pl.Series) -> float | None:
    """The median as a float; None where there is nothing."""
    found = values.median()
    return float(found) if isinstance(found, int | float) else None


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of a median by order statistics; None below six values, which allow none.

    Example:
      >>> median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
      (1.0, 6.0)
    """
    ordered, count = sorted(values), len(values)
    below, rank = 0, 0
    while 40 * (below := below + math.comb(count, rank)) <= 2**count:
        rank += 1
    return (ordered[rank - 1], ordered[count - rank]) if rank else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The paired difference in SQNR between two series, over the layers that both ran."""

    better: str
    worse: str
    role: str
    decibels: float
    interval: tuple[float, float] | None
    layers: int
    more_bits: float

    @property
    def resolved(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and self.interval[0] > 0

    def title(self) -> str:
        """The finding in a line."""
        if not self.resolved:
            return (
                f"{self.better} against {self.worse} in {self.role}: "
                f"{words.signed(self.decibels)} dB, not resolved"
            )
        bits = words.number(abs(self.more_bits), 2)
        cost = f"for {bits} bits {'more' if self.more_bits > 0 else 'less'}"
        return (
            f"{self.better} keeps {words.number(self.decibels)} dB more than {self.worse} in "
            f"{self.role}, {cost if float(bits) else 'at equal bits'}"
        )

    def evidence(self) -> str:
        """What the finding rests on."""
        over = f"median over {words.counted(self.layers, 'layer')}"
        if self.interval is None:
            return f"{over}, too few for an interval"
        low, high = (words.signed(end, 2) for end in self.interval)
        return f"{over}, 95 % interval {low} to {high} dB"


def difference(products: pl.DataFrame, one: str, other: str, role: str) -> Difference | None:
    """The paired difference of two series in a role, put so that it is not negative."""
    keys, values = ("source", "layer"), ("sqnr_db", "bits_per_element")
    rows = products.filter(pl.col("role") == role)
    left, right = (
        rows.filter(pl.col("series") == name)
        .group_by(keys, maintain_order=True)
        .agg(pl.col(values).mean())
        for name in (one, other)
    )
    pairs = left.join(right, on=keys, suffix="_other", maintain_order="left")
    if pairs.is_empty():
        return None
    gaps = (pairs["sqnr_db"] - pairs["sqnr_db_other"]).to_list()
    middle = median(pl.Series(gaps)) or 0.0
    sign = -1 if middle < 0 else 1
    bits = median(pairs["bits_per_element"] - pairs["bits_per_element_other"]) or 0.0
    return Difference(
        better=other if sign < 0 else one,
        worse=one if sign < 0 else other,
        role=role,
        decibels=sign * middle,
        interval=median_interval([sign * gap for gap in gaps]),
        layers=len(gaps),
        more_bits=sign * bits,
    )


def lowest_bits(products: pl.DataFrame) -> Difference | None:
    """The two series of the fewest bits, compared in the first role."""
    names = by_bits(products)
    if len(names) < 2:
        return None
    return difference(products, names[0], names[1], roles(products)[0])
