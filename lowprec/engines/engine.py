"""A matrix engine as a value: how the products of one dot product are summed.

Parameters are independent: any combination that passes the checks computes something, be it built
or imagined. What is only known of one, which domain it was seen in and who says otherwise, stands
in its `evidence`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Literal

from lowprec import catalogue
from lowprec.engines import families
from lowprec.numerics import html
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.rounding import Rounding, is_stochastic
from lowprec.numerics.spec import check_spec

Accumulation = Literal[
    "fused",
    "grouped",
    "exact",
    "pairwise",
    "two_step",
    "sequential",
    "chunked",
    "tree",
    "compensated",
    "native",
    "unknown",
]
Reproducibility = Literal["bit_exact", "same_backend", "statistical"]
Joins = Literal["early", "last", "separate"]
Level = Literal["V", "O", "P", "?"]
LEVELS: dict[Level, str] = {
    "V": "equal to bits captured on silicon",
    "O": "equal to an independent bit-level model",
    "P": "published, not checked",
    "?": "disputed or unknown",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an engine rests on.

    Attributes:
      level: `V` (equal to bits captured on silicon), `O` (equal to an independent bit-level model),
        `P` (published, not checked), `?` (disputed or unknown).
      domain: the inputs for which that was seen; of what lies outside it nothing is claimed.
      dispute: what sources say differently, and the parameter that gives their reading.
    """

    level: Level
    domain: str
    dispute: str = ""

    def __post_init__(self) -> None:
        check_spec("evidence", self)

    def __str__(self) -> str:
        return f"[{self.level}] {LEVELS[self.level]}: {self.domain}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """How sum(a * b) + c is computed; frozen and hashable.

    Attributes:
      name: the entry's name.
      inputs: the formats that operands may have; both may differ where there are several.
      output: float32 or float16: what c is rounded to, and what is returned.
      accumulation: how one step sums.
        `fused`: the products of `fused_length` k, and c, are aligned to the largest exponent,
        kept to `fraction_bits` bits below it, summed exactly and rounded once.
        `grouped`: groups of `group` products are summed exactly and scaled, then fused so, each
        group with the exponent of its scales.
        `exact`: the products of `fused_length` k (of all, where it is None) and c, rounded once.
        `pairwise`: each product rounded, neighbours added, then their sum to c.
        `two_step`: products aligned to their own largest exponent, then to c, with bits cut off
        downwards; rounded once (AMD CDNA3).
        `sequential`: k ascending from c, each product rounded, then added. `chunked`: so over every
        `fused_length` k from zero, in the `register`; sums of chunks in `outer`. `tree`: products
        added pairwise, neighbours first, then c. `compensated`: Kahan's sum.
        `native`: the machine's own float32 dot product over tiles.
        `unknown`: nobody has published how; such an engine cannot multiply.
      register: the format that each step's sum is rounded to; None for `output`. A register with
        fewer bits is stored in `output`.
      fused_length: how many k one step takes; longer products are chains of steps.
      fraction_bits: how many bits below the largest exponent take part in a step's sum.
      alignment_rounding: of products and c to those bits.
      accumulator: c joins `early`, aligned as the products are; `last`, added exactly to their
        aligned sum before the one rounding; or is added in a `separate` operation after it, rounded
        to nearest even.
      output_rounding: of a step's sum to the register. `stochastic` in a `sequential` sum draws
        23 - mantissa_bits random bits, and takes so many bits of the fraction.
      min_exponent: the alignment never goes below this exponent; None for no limit.
      zero_sign: a sum that rounds to zero is `positive`, or keeps its sign.
      nan: the NaN that an invalid sum gives: `quiet` (the first bit of the mantissa) or `all_ones`.
      truncate_operands: operands are cut to the input format rather than refused (tf32).
      through: the format in which operands are multiplied, whose exponents count; None for their
        own.
      interleave: of `fused_length` * interleave consecutive k, pairs are dealt in turn to that many
        steps, which start from zero and chain; c joins as `accumulator` says after the last.
      scale_formats, scale_block: block scales are codes of one of these formats, each for so many
        k; their product scales a product before it is aligned.
      group: how many products `grouped` sums exactly.
      outer, outer_rounding: of `chunked`, the format and rounding of the sum over chunks.
      fused_multiply: products are not rounded before they are added.
      subnormals: of `sequential` and its like, `keep` them, or `flush` to zero operands below
        2^-126, and products and sums that lie there after rounding to 24 bits. A register whose
        numbers end above 2^-126 keeps its own subnormals either way.
      second_fraction_bits: of `two_step`, the bits kept where c joins.
      halves: of `two_step`, even and odd k are aligned and cut apart first.
      drop_accumulator_below: of `two_step`, c is dropped so many binades below the products.
      tile: rows, contraction and columns of `native`'s tiles.
      reproducibility: `bit_exact` on every backend, or `same_backend`: the same bits on one machine
        and version.
      evidence: what the entry rests on.
    """

    name: str
    inputs: tuple[Format, ...] = ()
    output: Format
    accumulation: Accumulation = "fused"
    register: Format | None = None
    fused_length: int | None = None
    fraction_bits: int | None = None
    alignment_rounding: Rounding = "toward_zero"
    accumulator: Joins = "early"
    output_rounding: Rounding = "nearest_even"
    min_exponent: int | None = None
    zero_sign: Literal["positive", "kept"] = "positive"
    nan: Literal["quiet", "all_ones"] = "quiet"
    truncate_operands: bool = False
    through: Format | None = None
    interleave: int = 1
    scale_formats: tuple[Format, ...] = ()
    scale_block: int | None = None
    group: int | None = None
    outer: Format | None = None
    outer_rounding: Rounding = "nearest_even"
    fused_multiply: bool = False
    subnormals: Literal["keep", "flush"] = "keep"
    second_fraction_bits: int | None = None
    halves: bool = False
    drop_accumulator_below: int | None = None
    tile: tuple[int, int, int] | None = None
    reproducibility: Reproducibility = "bit_exact"
    evidence: Evidence | None = None

    def __post_init__(self) -> None:
        check_spec(f"engine {self.name!r}", self)
        for broken, message in self._rules():
            if broken():
                raise ValueError(f"engine {self.name!r}: {message}")

    def _rules(self) -> Iterator[tuple[Callable[[], object], str]]:
        kind, aligned = self.accumulation, self.accumulation in ("fused", "grouped", "two_step")
        length, bits = self.fused_length, self.fraction_bits
        yield (
            lambda: self.output.name not in ("float32", "float16"),
            f"output must be float32 or float16, got {self.output.name}",
        )
        yield (
            lambda: aligned and (length is None or bits is None),
            f"accumulation = {kind!r} needs fused_length and fraction_bits",
        )
        yield (
            lambda: length is not None and not 1 <= length <= 1024,
            f"fused_length = {length}; 1 to 1024",
        )
        yield lambda: bits is not None and not 1 <= bits <= 48, f"fraction_bits = {bits}; 1 to 48"
        yield (
            lambda: is_stochastic(self.alignment_rounding) or is_stochastic(self.outer_rounding),
            "only output_rounding may be stochastic",
        )
        yield (
            lambda: is_stochastic(self.output_rounding) and kind not in ("sequential", "fused"),
            f"accumulation = {kind!r} has no stochastic rounding; 'sequential' and 'fused' have",
        )
        yield (
            lambda: kind == "grouped" and (self.group is None or (length or 0) % self.group),
            f"group = {self.group} must divide fused_length = {length}",
        )
        yield (
            lambda: kind == "two_step" and self.second_fraction_bits is None,
            "accumulation = 'two_step' needs second_fraction_bits",
        )
        yield (
            lambda: bool(self.scale_formats) != (self.scale_block is not None),
            "scale_formats and scale_block belong together",
        )
        yield (
            lambda: (kind == "native") != (self.tile is not None),
            "`tile` belongs to accumulation = 'native'",
        )
        yield (
            lambda: self.tile is not None and min(self.tile) < 1,
            f"tile = {self.tile}; sizes are at least 1",
        )
        yield (
            lambda: kind == "chunked" and (length is None or self.outer is None),
            "accumulation = 'chunked' needs fused_length and outer",
        )
        plain = kind in ("sequential", "chunked", "tree", "compensated", "pairwise")
        wide = self.register_format.mantissa_bits > 21
        yield (
            lambda: plain and wide and self.output_rounding != "nearest_even",
            f"output_rounding = {self.output_rounding!r}: {self.register_format.name} accumulates "
            f"to nearest_even only; a register of at most 21 mantissa bits, such as e8m21, as you "
            f"like",
        )
        yield lambda: self.interleave < 1, f"interleave = {self.interleave}; at least 1"
        yield from self._rules_of_registers()
        yield from self._rules_of_steps()

    def _rules_of_registers(self) -> Iterator[tuple[Callable[[], object], str]]:
        register, output = self.register_format, self.output
        yield (
            lambda: (
                register.mantissa_bits > output.mantissa_bits
                or register.exponent_bits > output.exponent_bits
            ),
            f"register = {register.name} holds more than output = {output.name}",
        )
        yield (
            lambda: (
                self.outer is not None
                and self.outer.mantissa_bits > 21
                and self.outer_rounding != "nearest_even"
            ),
            f"outer_rounding = {self.outer_rounding!r}: float32 accumulates to nearest_even only",
        )

    def _rules_of_steps(self) -> Iterator[tuple[Callable[[], object], str]]:
        kind, length = self.accumulation, self.fused_length or 1
        bits, more = self.fraction_bits or 0, self.second_fraction_bits or 0
        yield (
            lambda: kind == "pairwise" and (self.fused_length not in (2, 4)),
            f"accumulation = 'pairwise' needs fused_length = 2 or 4, got {self.fused_length}",
        )
        yield (
            lambda: kind == "pairwise" and self.output.name != "float32",
            "accumulation = 'pairwise' has output = 'float32'",
        )
        yield (
            lambda: self.scale_formats and kind not in ("fused", "grouped", "unknown"),
            f"accumulation = {kind!r} takes no block scales",
        )
        yield (
            lambda: kind not in ("fused", "unknown") and self.interleave != 1,
            f"interleave = {self.interleave} belongs to accumulation = 'fused'",
        )
        yield (
            lambda: kind in ("grouped", "two_step") and self.accumulator != "early",
            f"accumulator = {self.accumulator!r}: in accumulation = {kind!r} c joins 'early'",
        )
        yield (
            lambda: (
                kind == "grouped"
                and self.scale_block is not None
                and self.group is not None
                and self.scale_block % self.group
            ),
            f"group = {self.group} must divide scale_block = {self.scale_block}",
        )
        yield (
            lambda: kind == "grouped" and bits > 40,
            f"fraction_bits = {bits}; 'grouped' sums have at most 40",
        )
        yield (
            lambda: kind == "two_step" and not bits <= more <= bits + 24,
            f"second_fraction_bits = {more}; from fraction_bits = {bits} to 24 more",
        )
        yield (
            lambda: kind == "two_step" and (length << (bits + 2)) > 1 << 31,
            f"fraction_bits = {bits} and fused_length = {length}: a 'two_step' sum has 31 bits",
        )
        yield (
            lambda: kind == "two_step" and self.alignment_rounding != "toward_zero",
            "alignment_rounding: products of 'two_step' are cut toward_zero",
        )

    def __repr__(self) -> str:
        shown = [f"name={self.name!r}"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("name", "evidence") or value == field.default:
                continue
            named = isinstance(value, Format)
            shown.append(f"{field.name}={value.name if named else _short(value)}")
        if self.evidence is not None:
            shown.append(f"evidence={self.evidence}")
        return f"Engine({', '.join(shown)})"

    def _repr_html_(self) -> str:
        figures = {"instruction_length": self.instruction_length}
        return html.spec(self, "engine", "engines", get_engine, figures)

    @property
    def register_format(self) -> Format:
        """The format that a step's sum is rounded to."""
        return self.output if self.register is None else self.register

    @property
    def instruction_length(self) -> int | None:
        """How many consecutive k are taken before c has joined once."""
        return None if self.fused_length is None else self.fused_length * self.interleave


def _short(value: object) -> object:
    if isinstance(value, tuple) and value and isinstance(value[0], Format):
        return [fmt.name for fmt in value]
    return value


_RESOLVERS = {Format: get_format}


def list_engines() -> tuple[str, ...]:
    """The names of the catalogue's engines, sorted.

    Example:
      >>> "hopper.wgmma.fp8.fp32" in list_engines()
      True
    """
    return catalogue.names("engines")


@functools.cache
def _catalogued(name: str) -> Engine:
    if name not in catalogue.names("engines") and families.matches(name):
        return Engine(**families.fields(name))
    return catalogue.read("engines", name, Engine, _RESOLVERS).value


def get_engine(engine: str | Engine) -> Engine:
    """Finds an engine by name or path to a TOML file, or passes an `Engine` through.

    Families are found by name too: `sequential.<format>.<rounding>`,
    `chunked.<length>.<inner>.<outer>` and `pairwise.<format>`.

    Raises:
      ValueError: no engine has that name; near matches are listed.
      TypeError: `engine` is neither a string nor an `Engine`.

    Example:
      >>> get_engine("native").reproducibility
      'same_backend'
      >>> get_engine("hopper.wgmma.fp8.fp32").evidence.level
      'V'
    """
    if isinstance(engine, Engine):
        return engine
    if not isinstance(engine, str):
        raise TypeError(
            f"`engine` must be an engine's name, a path to a TOML file or an Engine, "
            f"got {type(engine)}"
        )
    if catalogue.is_path(engine):
        return catalogue.read("engines", engine, Engine, _RESOLVERS).value
    return _catalogued(engine)
