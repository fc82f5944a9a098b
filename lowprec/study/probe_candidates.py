"""Engines that could have given measured bits: enumerated, and dropped at the first difference.

Bits are predicted by the exact oracle, one dot product at a time, so that hundreds of candidates
cost no compilation.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from lowprec.engines import families
from lowprec.engines.engine import Engine, Joins, get_engine, list_engines
from lowprec.engines.oracle import dot
from lowprec.numerics import oracle as float32_oracle
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.rounding import ROUNDINGS, Rounding, is_stochastic
from lowprec.study.black_box import Dots
from lowprec.study.exact_codes import exact_codes
from lowprec.study.summation_order import Order, Tree

_MODES: tuple[Rounding, ...] = tuple(x for x in ROUNDINGS if not is_stochastic(x))  # type: ignore[assignment] - a subset of names is names
_INFINITY = 0x7F800000
_MAGNITUDE = 0x7FFFFFFF
_ONE = 0x3F800000


@dataclasses.dataclass(frozen=True)
class Widths:
    """What was measured of an accumulator.

    Attributes:
      output: the format of results.
      mantissa_bits: how far below a sum its bits were seen to be kept.
      exponent_bits: of the register.
      fraction_bits: how many bits below the largest product take part; None where no limit showed.
      outer: the mantissa bits that were kept from one chunk to the next.
      zeros: whether the formats have products that round to zero in the output.
    """

    output: Format
    mantissa_bits: int
    exponent_bits: int
    fraction_bits: int | None
    outer: int | None = None
    zeros: bool = True


class Observed:
    """Measured bits of dots, and the codes that the oracle reads.

    NaN counts as one value, whatever its bits.
    """

    def __init__(self, dots: Dots, bits: np.ndarray, formats: tuple[Format, Format]) -> None:
        self.formats, self.values = formats, (dots.a, dots.b)
        self.bits = [_one_nan(int(x)) for x in bits]
        a, b = (exact_codes(x, fmt)[0] for x, fmt in zip(dots[:2], formats, strict=True))
        self.a, self.b = a.tolist(), b.tolist()
        self.c = dots.c.astype(np.float32).view(np.uint32).tolist()

    def __len__(self) -> int:
        return len(self.bits)

    def pairs(self, index: int) -> list[tuple[int, int]]:
        """One dot's operands as float32 bits."""
        rows = (x[index].astype(np.float32).view(np.uint32).tolist() for x in self.values)
        return list(zip(*rows, strict=True))

    def fits(self, engine: Engine, index: int) -> bool:
        """Whether an engine gives the measured bits of one dot."""
        return self.predicted(engine, index) == self.bits[index]

    def predicted(self, engine: Engine, index: int) -> int:
        """The bits that an engine gives."""
        first, second = self.formats
        row = self.a[index], self.b[index], self.c[index]
        return _one_nan(dot(engine, *row, a_format=first, b_format=second))

    def mismatches(self, engine: Engine, most: int | None = None) -> int:
        """How many dots an engine gets wrong; counting stops above `most`."""
        wrong = 0
        for index in range(len(self)):
            wrong += not self.fits(engine, index)
            if most is not None and wrong > most:
                break
        return wrong


def _one_nan(bits: int) -> int:
    return 0x7FC00000 if bits & _MAGNITUDE > _INFINITY else bits


def consistent(candidates: Iterable[Engine], observed: Observed) -> list[Engine]:
    """The candidates that give every measured bit.

    A dot that has refuted one candidate is tried first on the next.
    """
    order = list(range(len(observed)))
    left = []
    for engine in candidates:
        for place, index in enumerate(order):
            if not observed.fits(engine, index):
                order.insert(0, order.pop(place))
                break
        else:
            left.append(engine)
    return left


def candidates(order: Order, widths: Widths, formats: tuple[Format, Format]) -> Iterator[Engine]:
    """Engines with a measured order and measured widths, everything else left open."""
    match order.kind:
        case "chain" if order.length == 1:
            yield from _sequential(widths)
        case "chain":
            yield from _fused(order, widths, formats, ("early",))
            yield from _two_step(order, widths, formats)
        case "last":
            yield from _fused(order, widths, formats, ("last", "separate"))
        case "exact":
            yield from _exact(order, widths, formats)
        case "chunked" | "pairwise":
            yield from _runs(order, widths)


def _sequential(widths: Widths) -> Iterator[Engine]:
    register = _register(widths.exponent_bits, widths.mantissa_bits)
    modes = _MODES if widths.mantissa_bits <= 21 else ("nearest_even",)
    for mode, fused, subnormals in itertools.product(modes, (False, True), ("keep", "flush")):
        yield _engine(
            widths,
            accumulation="sequential",
            register=register,
            output_rounding=mode,
            fused_multiply=fused,
            subnormals=subnormals,
        )
    for subnormals in ("keep", "flush") if "nearest_even" in modes else ():
        yield _engine(widths, accumulation="compensated", register=register, subnormals=subnormals)


def _fused(
    order: Order, widths: Widths, formats: tuple[Format, Format], joins: Sequence[Joins]
) -> Iterator[Engine]:
    if widths.fraction_bits is None:
        return
    throughs: list[Format | None] = [None]
    if order.interleave > 1 and all(fmt.bits <= 8 for fmt in formats):
        throughs.append(get_format("float16"))
    # Where no bit below F is ever seen, the register may be as narrow as F.
    registers = _registers(widths)
    zeros = ("positive", "kept") if widths.zeros else ("positive",)
    choices = itertools.product(throughs, joins, registers, _MODES, _MODES, zeros)
    for through, join, register, output_rounding, alignment, zero in choices:
        yield _engine(
            widths,
            inputs=_inputs(formats),
            fused_length=order.length,
            fraction_bits=widths.fraction_bits,
            interleave=order.interleave,
            through=through,
            accumulator=join,
            register=register,
            output_rounding=output_rounding,
            alignment_rounding=alignment,
            zero_sign=zero,
        )


def _two_step(order: Order, widths: Widths, formats: tuple[Format, Format]) -> Iterator[Engine]:
    if widths.fraction_bits is None:
        return
    for halves, drop in itertools.product((False, True), (None, widths.fraction_bits + 1)):
        try:
            engine = _engine(
                widths,
                inputs=_inputs(formats),
                accumulation="two_step",
                fused_length=order.length,
                fraction_bits=widths.fraction_bits,
                second_fraction_bits=31,
                halves=halves,
                drop_accumulator_below=drop,
            )
        except ValueError:
            # Wider than any such engine: the rules of `Engine` refuse it.
            return
        yield engine


def _exact(order: Order, widths: Widths, formats: tuple[Format, Format]) -> Iterator[Engine]:
    register = _register(widths.exponent_bits, widths.mantissa_bits)
    inputs = _inputs(formats)
    zeros = ("positive", "kept") if widths.zeros else ("positive",)
    for mode, zero in itertools.product(_MODES, zeros):
        yield _engine(
            widths,
            inputs=inputs,
            accumulation="exact",
            fused_length=order.length,
            register=register,
            output_rounding=mode,
            zero_sign=zero,
        )


def _runs(order: Order, widths: Widths) -> Iterator[Engine]:
    register = _register(widths.exponent_bits, widths.mantissa_bits)
    # The range of the outer sum was not measured: as the inner one's where it is as wide, else 8.
    wider = widths.outer is not None and widths.outer != widths.mantissa_bits
    exponent_bits = 8 if wider else widths.exponent_bits
    outer = _register(exponent_bits, widths.outer or widths.mantissa_bits)
    length = order.length
    for subnormals in ("keep", "flush"):
        plain = {"register": register, "subnormals": subnormals}
        if order.kind == "pairwise" and length is None:
            yield _engine(widths, accumulation="tree", **plain)
            continue
        if order.kind == "chunked":
            yield _engine(widths, accumulation="chunked", fused_length=length, outer=outer, **plain)
        if order.kind == "pairwise" or length == 2:
            yield _engine(widths, accumulation="pairwise", fused_length=length, **plain)


def _engine(widths: Widths, **fields: Any) -> Engine:
    return Engine(name="inferred", output=widths.output, **fields)


def _inputs(formats: tuple[Format, Format]) -> tuple[Format, ...]:
    return tuple(dict.fromkeys(formats))


def _registers(widths: Widths) -> list[Format | None]:
    """The measured register; wider ones too where alignment cut the bits that would tell."""
    top = widths.output.mantissa_bits
    first = widths.mantissa_bits
    last = top if first == widths.fraction_bits else first
    # A few bits more hold any sum of aligned products; wider registers then differ no more.
    widths_tried = sorted({*range(first, min(first + 4, last + 1)), last})
    found = [_register(widths.exponent_bits, bits) for bits in widths_tried]
    return [None if fmt == widths.output else fmt for fmt in found]


def _register(exponent_bits: int, mantissa_bits: int) -> Format:
    named = {(8, 23): "float32", (5, 10): "float16", (8, 7): "bfloat16"}
    spelt = f"e{exponent_bits}m{mantissa_bits}"
    fmt = get_format(named.get((exponent_bits, mantissa_bits), spelt))
    return fmt


def shared(engines: Sequence[Engine]) -> tuple[dict[str, str], ...]:
    """The parameters of engines, apart for each way of summing, without those left at default.

    Of a parameter in which they differ: `any`, or the values with `or` between them.
    """
    kinds: dict[tuple[str, str], list[Engine]] = {}
    for engine in engines:
        kinds.setdefault((engine.accumulation, engine.accumulator), []).append(engine)
    return tuple(_parameters(group) for group in kinds.values())


def _parameters(engines: Sequence[Engine]) -> dict[str, str]:
    found = {}
    for field in dataclasses.fields(Engine):
        if field.name in ("name", "evidence"):
            continue
        values = list(dict.fromkeys(getattr(engine, field.name) for engine in engines))
        if values != [field.default]:
            free = len(values) > 2 and set(values) == set(_MODES)
            found[field.name] = "any" if free else " or ".join(map(_shown, values))
    return found


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    return value.name if isinstance(value, Format) else str(value)


@functools.cache
def entries(formats: tuple[Format, Format], extra: tuple[str, ...] = ()) -> tuple[Engine, ...]:
    """The catalogue's engines with defined bits that take both formats, and some by name."""
    found = []
    for name in dict.fromkeys([*list_engines(), *PLAIN, *extra]):
        engine = get_engine(name)
        takes = all(not engine.inputs or fmt in engine.inputs for fmt in formats)
        known = engine.accumulation not in ("native", "unknown")
        if takes and known and not engine.scale_formats:
            found.append(engine)
    return tuple(found)


PLAIN = (
    "sequential.float16.nearest_even",
    "sequential.bfloat16.nearest_even",
    "pairwise.float32",
    "pairwise.float16",
)


def family_names(engines: Sequence[Engine]) -> tuple[str, ...]:
    """Names of the families' members that inferred engines look like."""
    names = []
    for engine in engines:
        register = engine.register_format.name
        outer = register if engine.outer is None else engine.outer.name
        names += {
            "sequential": [f"sequential.{register}.{engine.output_rounding}"],
            "tree": [f"pairwise.{register}"],
            "chunked": [f"chunked.{engine.fused_length}.{register}.{outer}"],
        }.get(engine.accumulation, [])
    return tuple(name for name in dict.fromkeys(names) if _is_member(name))


def _is_member(name: str) -> bool:
    try:
        families.fields(name)
    except ValueError:
        return False
    return True


def tree_mismatches(tree: Tree, observed: Observed, first: int) -> tuple[int, bool, bool]:
    """How many dots without c, from the first given on, float32 sums in a tree get wrong, at best.

    Returns:
      Their number; whether products are added unrounded (fused multiply-add); and whether the later
      of two products that meet is the one that is not rounded.
    """
    results = []
    for fused, later in ((False, False), (True, True), (True, False)):
        wrong = 0
        for index in range(first, len(observed)):
            if observed.c[index]:
                continue
            bits = observed.bits[index]
            pairs = observed.pairs(index)
            got = _tree_sum(tree, pairs, fused, later)
            zero = bits & _MAGNITUDE == got & _MAGNITUDE == 0
            wrong += not zero and _one_nan(got) != bits
        results.append((wrong, fused, later))
    return min(results, key=lambda x: x[0])


def _tree_sum(tree: Tree, pairs: Sequence[tuple[int, int]], fused: bool, later: bool) -> int:
    if isinstance(tree, int):
        return float32_oracle.multiply(*pairs[tree])
    first, second = tree
    if fused and isinstance(first, int) and (not isinstance(second, int) or not later):
        first, second = second, first
    total = _tree_sum(first, pairs, fused, later)
    if fused and isinstance(second, int):
        return float32_oracle.fused_multiply_add(*pairs[second], total)
    added = _tree_sum(second, pairs, fused, later)
    return float32_oracle.fused_multiply_add(_ONE, added, total)


def binary(tree: Tree) -> bool:
    """Whether every sum is of two."""
    return isinstance(tree, int) or (len(tree) == 2 and all(map(binary, tree)))


def meaning(engine: Engine) -> Engine:
    """An engine without its name and evidence: equal ones compute alike."""
    inputs = engine.inputs if engine.truncate_operands else ()
    return dataclasses.replace(engine, name="", evidence=None, inputs=inputs)


def ranked(engines: Sequence[Engine], observed: Observed) -> list[tuple[tuple[str, ...], int]]:
    """Names of engines and how many dots they get wrong, fewest first; equal engines together.

    Engines that are already worse on a sample than the best are left out.
    """
    together: dict[Engine, list[Engine]] = {}
    for engine in engines:
        together.setdefault(meaning(engine), []).append(engine)
    best, counts = len(observed), []
    for group in together.values():
        wrong = observed.mismatches(group[0], best)
        if wrong <= best:
            best = wrong
            counts.append((tuple(engine.name for engine in group), wrong))
    return sorted((x for x in counts if x[1] == best), key=lambda x: x[0])
