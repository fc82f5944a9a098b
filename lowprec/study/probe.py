"""What a product does to its sums, inferred from the outside.

Order comes first (see `summation_order`), then how far down bits are kept, then the rest by
elimination: every engine with the measured order and widths is asked, through the exact oracle,
for the bits of dots that were chosen to differ; what is left is all that the bits can say.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lowprec.engines.engine import Engine, get_engine
from lowprec.numerics.format import Format, get_format
from lowprec.study import black_box
from lowprec.study.black_box import BlackBox, Term, exponents, power, terms
from lowprec.study.probe_candidates import (
    Observed,
    Widths,
    binary,
    candidates,
    consistent,
    entries,
    family_names,
    ranked,
    shared,
    tree_mismatches,
)
from lowprec.study.probe_dots import directed_dots, edge_dots, joined, random_dots
from lowprec.study.summation_order import Order, leaves, order_of

_DOTS = 60


@dataclasses.dataclass(frozen=True)
class Probe:
    """What was found.

    Attributes:
      formats: of a and b.
      k: the length of the dot products.
      order: the order of summation.
      fraction_bits: bits below the largest product that a step keeps; None where no limit showed.
      kept_bits: how far below a sum its bits are kept: the register's mantissa bits, unless
        alignment cuts them first.
      register: the register's format, `e8m13`; `or wider` where alignment cuts what would tell.
      facts: further properties by name, in words.
      inferred: all engines of the searched kinds that give every measured bit.
      parameters: what these engines share, a table for each way of summing; `x or y`, or `any`,
        where the bits do not say.
      dots: how many dots both they and `closest` were compared on.
      closest: the catalogue's entries that agree best, equal ones together, with their mismatches.
    """

    formats: tuple[str, str]
    k: int
    order: Order
    fraction_bits: int | None
    kept_bits: int | None
    register: str
    facts: dict[str, str]
    inferred: tuple[Engine, ...]
    parameters: tuple[dict[str, str], ...]
    dots: int
    closest: tuple[tuple[tuple[str, ...], int], ...]

    def __str__(self) -> str:
        lines = {
            "formats": f"{self.formats[0]} x {self.formats[1]}, K = {self.k}",
            "order": str(self.order),
            "alignment": "no limit seen"
            if self.fraction_bits is None
            else f"F = {self.fraction_bits} bits below the largest product",
            "register": self.register,
            **self.facts,
        }
        told = [
            ", ".join(f"{name} = {x}" for name, x in table.items()) for table in self.parameters
        ]
        lines["engine"] = "; or ".join(told) or "none of the kinds searched gives the measured bits"
        if self.inferred:
            lines["checked"] = f"0 of {self.dots} dots differ"
        for names, wrong in self.closest:
            lines.setdefault("catalogue", "")
            verdict = f"{wrong} of {self.dots} dots differ" if wrong else "no dot differs"
            lines["catalogue"] += f"{', '.join(names)}: {verdict}; "
        return "\n".join(f"{name:<12}{text.rstrip('; ')}" for name, text in lines.items())


def probe(
    multiply: Callable[..., Any] | str | Engine,
    *,
    formats: str | Format | Sequence[str | Format] | None = None,
    k: int = 64,
    size: int = 16,
) -> Probe:
    """Infers how a product sums: order, widths, roundings, and the catalogue's closest entries.

    Nothing but calls of `multiply` is used, for an engine's name too. The order is found as FPRev
    does (arXiv 2411.00442), with a check of the whole table, and with steps that are no tree of
    roundings told apart.

    Args:
      multiply: a product of (M, K) and (K, N), and of (M, N) where it has an argument `c`, to
        (M, N) of float32, float16 or bfloat16; it is called with M = N = size. Or an engine, by
        name, path or value. It must give equal bits for equal operands.
      formats: of a and b, or one for both: operands are arrays of that NumPy or ml_dtypes type.
        By default an engine's first input format, and float32.
      k: the length of the dot products. Steps of more than k / 2 products are seen as one.
      size: M and N, which decide the order in some libraries.

    Returns:
      A `Probe`; what cannot be told says so in its place. NaN counts as one value.

    Raises:
      ValueError: the engine cannot be probed (unknown arithmetic, block scales, stochastic
        rounding), or k is below 4.
      TypeError: `multiply` is not callable, or returns another type.

    Example:
      >>> def wide(a, b):
      ...     return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)
      >>> str(probe(wide, formats="float8_e4m3fn", k=8).order)
      'one step over all products; nothing is lost between them'
    """
    box = _black_box(multiply, formats, k, size)
    return _Session(box).run()


def _black_box(multiply: Any, formats: Any, k: int, size: int) -> BlackBox:
    if k < 4:
        raise ValueError(f"`k` = {k}: at least 4 products are needed to tell an order")
    engine = get_engine(multiply) if isinstance(multiply, str | Engine) else None
    if formats is None:
        formats = "float32" if engine is None or not engine.inputs else engine.inputs[0]
    pair = [formats] * 2 if isinstance(formats, str | Format) else list(formats)
    if len(pair) != 2:
        raise ValueError(f"`formats` names {len(pair)} formats; those of a and b are needed")
    first, second = (get_format(fmt) for fmt in pair)
    for fmt in (first, second):
        if fmt.table is not None or not fmt.signed or fmt.zero == "none" or not fmt.exponent_bits:
            raise ValueError(
                f"`formats`: {fmt.name} cannot be probed; a signed floating-point format with a "
                f"zero can, such as float8_e4m3fn"
            )
    if engine is not None:
        if engine.scale_formats or engine.output_rounding.startswith("stochastic"):
            why = "takes block scales" if engine.scale_formats else "rounds stochastically"
            raise ValueError(f"engine {engine.name!r} {why}, and cannot be probed")
        return black_box.of_engine(engine, (first, second), k)
    if not callable(multiply):
        raise TypeError(f"`multiply` must be callable or an engine, got {type(multiply)}")
    return BlackBox(multiply, (first, second), k, black_box.takes_c(multiply), size)


class _Session:
    """One probing: a black box, and what has been found out about it."""

    def __init__(self, box: BlackBox) -> None:
        self.box = box
        self.low, self.high = exponents(box.formats, subnormals=True)

    def run(self) -> Probe:
        self._range()
        self.order = self._order()
        self.step = _first_step(self.order, self.box.k)
        fraction_bits = self._fraction_bits()
        kept = self._kept_bits(*self.step[:2])
        outer = None
        if self.order.kind == "chunked":
            outer = self._kept_bits(0, self.order.length or 1)
        following = (self.order.length or self.box.k) * self.order.interleave
        if self.order.kind == "last" and following < self.box.k:
            # What a step cuts, the sum so far keeps: the register shows from one step to the next.
            kept = max(kept or 0, self._kept_bits(0, following) or 0)
        widths = None
        if kept is not None:
            zeros = self._tiniest() is not None
            widths = Widths(self._output(), kept, self.exponent_bits, fraction_bits, outer, zeros)
        facts = self._facts(kept)
        return self._judged(widths, facts)

    def _values(self, rows: Sequence[dict[int, Term]], c: Sequence[float] = ()) -> np.ndarray:
        with np.errstate(over="ignore"):
            return self.box.values(terms(self.box, rows, c))

    def _range(self) -> None:
        """The mask and the unit: powers of two as far apart as sums allow; the register's range."""
        tried = range(self.low, self.high + 1)
        alone = self._values([{0: power(self.box, e)} for e in tried])
        units = self._values([dict.fromkeys(range(self.box.k), power(self.box, e)) for e in tried])
        exact = {e: x == 2.0**e for e, x in zip(tried, alone, strict=True)}
        counted = {e: x == self.box.k * 2.0**e for e, x in zip(tried, units, strict=True)}
        self.mask = max((e for e in tried if exact[e]), default=None)
        self.unit = min((e for e in tried if counted[e] and exact[e]), default=None)
        overflowed = [e for e, x in zip(tried, alone, strict=True) if not np.isfinite(x)]
        top = min(overflowed) - 1 if overflowed else 127
        self.exponent_bits = (top + 1).bit_length()

    def _order(self) -> Order:
        if self.mask is None or self.unit is None:
            return Order("unresolved")
        found = Order("unresolved")
        # Under a directed rounding, units of one sign would nudge a mask.
        for sign in (1, -1):
            found = order_of(self._survivors(sign))
            if found.kind != "unresolved":
                break
        return found

    def _survivors(self, sign: int) -> np.ndarray:
        assert self.mask is not None and self.unit is not None
        k = self.box.k
        pairs = np.array([(p, q) for p in range(k) for q in range(p + 1, k)])
        (high_a, high_b), (low_a, low_b) = (power(self.box, e) for e in (self.mask, self.unit))
        a, b = np.full((2, len(pairs), k), [[[low_a * sign]], [[low_b]]])
        rows = np.arange(len(pairs))
        for places, mask in ((pairs[:, 0], high_a), (pairs[:, 1], -high_a)):
            a[rows, places], b[rows, places] = mask, high_b
        counts = self.box.values(black_box.Dots(a, b, np.zeros(len(pairs)))) * sign / 2.0**self.unit
        whole = np.isfinite(counts) & (counts == np.floor(counts)) & (counts >= 0)
        table = np.full((k, k), -1)
        valid = np.where(whole & (counts <= k - 2), counts, -1)
        table[pairs[:, 0], pairs[:, 1]] = valid.astype(np.int64)
        return table

    def _fraction_bits(self) -> int | None:
        """The most bits below a cancelling pair that a step keeps; None where none is lost."""
        if self.order.kind not in ("chain", "last") or self.order.length == 1 or self.mask is None:
            return None
        top, step = self.mask, self.step
        if len(step) >= 3:
            places = step[:3]
        elif self.box.k > 2 * len(step):
            # A step of two: one of the pair is the sum that the step before left.
            places = (0, len(step), len(step) + 1)
        else:
            return None
        depths = range(1, top - self.low + 1)
        rows = [
            {
                places[0]: power(self.box, top),
                places[1]: power(self.box, top, -1),
                places[2]: power(self.box, top - depth),
            }
            for depth in depths
        ]
        return _leading(self._values(rows), [2.0 ** (top - depth) for depth in depths])

    def _kept_bits(self, first: int, second: int) -> int | None:
        """How many bits below a first product its sum with a second one has."""
        if self.mask is None:
            return None
        top = self.mask
        depths = range(1, min(30, top - self.low) + 1)
        rows = [
            {first: power(self.box, top), second: power(self.box, top - depth)} for depth in depths
        ]
        return _leading(self._values(rows), [2.0**top + 2.0 ** (top - x) for x in depths])

    def _output(self) -> Format:
        """The type of results; bfloat16 ones are float32 with a narrow register."""
        return get_format("float16" if self.box.half_results else "float32")

    def _facts(self, kept: int | None) -> dict[str, str]:
        found = {}
        if self.mask is not None:
            found["c joins"] = self._joins() if self.box.takes_c else "not tested: no argument `c`"
            found["products"] = self._products(kept)
        found["subnormals"] = self._subnormals()
        found["zeros"] = self._zeros()
        return found

    def _joins(self) -> str:
        """Whether c is lost beside a pair of masks in the first step, and beside -c later."""
        assert self.mask is not None and self.unit is not None
        k = self.box.k
        pair = {
            self.step[0]: power(self.box, self.mask),
            self.step[1]: power(self.box, self.mask, -1),
        }
        early = self._values([pair], [2.0**self.unit])[0] == 0
        masked = [
            dict.fromkeys(range(k), power(self.box, self.unit))
            | {q: power(self.box, self.mask, -1)}
            for q in range(k)
        ]
        left = self._values(masked, [2.0**self.mask] * k) / 2.0**self.unit
        if (left == 0).all() and not early:
            return "last: added to the finished sum"
        if early and self.order.length == 1:
            return "first: the chain starts from it"
        if early:
            return "with the first step, as a term that the largest product can cut"
        if (left == k - 1).all():
            return "exactly: nothing is lost beside it"
        return "first, and a step's cancelling products leave it as it is"

    def _products(self, kept: int | None) -> str:
        """Whether a product is rounded before it is added, where the formats can tell."""
        first, second = self.box.formats
        half = min(first.mantissa_bits, second.mantissa_bits)
        if kept is None or 2 * half <= kept:
            return "exact in the register, so a rounding of them cannot show"
        if self.order.kind in ("last", "exact") or (
            self.order.kind == "chain" and self.order.length != 1
        ):
            return "aligned, not rounded one by one"
        p, q = self._siblings()
        x, rounded = 1 + 2.0**-half, 1 + 2.0 ** (1 - half)
        rows = [{p: (-rounded, 1.0), q: (x, x)}, {p: (x, x), q: (-rounded, 1.0)}]
        if (self._values(rows) == 2.0 ** (-2 * half)).any():
            return "not rounded before they are added (fused multiply-add)"
        return "rounded before they are added"

    def _siblings(self) -> tuple[int, int]:
        """Two products that are added to each other first."""
        tree = self.order.tree
        while tree is not None and not isinstance(tree, int):
            inner = [child for child in tree if not isinstance(child, int)]
            if not inner:
                first, second = leaves(tree)[:2]
                return first, second
            tree = inner[0]
        return 0, 1

    def _subnormals(self) -> str:
        words = []
        for side, fmt in zip("ab", self.box.formats, strict=True):
            other = self.box.formats[side == "a"]
            if not fmt.mantissa_bits:
                continue
            small = 2.0 ** (fmt.min_exponent - 1)
            large = 2.0 ** min(black_box.reach(other, False)[1], 30)
            pair = (small, large) if side == "a" else (large, small)
            kept = self._values([{0: pair}])[0] == small * large
            words.append(f"of {side} {'kept' if kept else 'flushed'}")
        lowest = -14 if self.box.half_results else -126
        if sum(black_box.reach(fmt, False)[0] for fmt in self.box.formats) < lowest:
            kept = self._values([{0: power(self.box, lowest - 1)}])[0] == 2.0 ** (lowest - 1)
            words.append(f"of results {'kept' if kept else 'flushed'}")
        return ", ".join(words)

    def _zeros(self) -> str:
        """The sign of a sum of -0 alone, and of a negative sum that rounds to zero."""
        negative = {k: (-1.0, 0.0) for k in range(self.box.k)}
        rows = terms(self.box, [negative], [-0.0])
        sign = "-0" if self.box.bits(rows)[0] >> 31 else "+0"
        start = "" if self.box.takes_c else " (no c)"
        words = f"a sum of -0{start} is {sign}"
        lowest = self._tiniest()
        if lowest is None:
            return f"{words}; no product of these formats rounds to zero"
        row = {0: power(self.box, lowest, -1)}
        tiny = self.box.bits(terms(self.box, [row]))[0]
        sign = {0: "+0", 0x80000000: "-0"}.get(int(tiny), "not zero")
        return f"{words}; one that rounds to zero from below is {sign}"

    def _tiniest(self) -> int | None:
        """The exponent of a product that rounds to zero in the output; None where none does."""
        lowest = -26 if self.box.half_results else -152
        least = sum(black_box.reach(fmt, False)[0] for fmt in self.box.formats)
        return lowest if least <= lowest else None

    def _tree_check(self, observed: Observed, first: int) -> str:
        """Whether float32 sums in the tree that was found give the measured bits."""
        tree = self.order.tree
        if tree is None or not binary(tree):
            return "not checked: they are not all of two terms"
        wrong, fused, _ = tree_mismatches(tree, observed, first)
        how = "fused multiply-adds" if fused else "rounded products"
        dots = observed.c[first:].count(0)
        return f"float32 in this tree, {how}: {wrong} of {dots} dots without c differ"

    def _judged(self, widths: Widths | None, facts: dict[str, str]) -> Probe:
        """The engines left by elimination, and the catalogue's closest entries."""
        box = self.box
        directed = edge_dots(box)
        if widths is not None and self.mask is not None:
            how = widths.fraction_bits, widths.mantissa_bits, self.mask - 4
            directed = joined(directed, directed_dots(box, self.step, *how))
        dots = joined(directed, random_dots(box, _DOTS))
        observed = Observed(dots, box.bits(dots), box.formats)
        left: list[Engine] = []
        if widths is not None:
            left = consistent(candidates(self.order, widths, box.formats), observed)
        named = entries(box.formats, family_names(left))
        if not left and widths is not None and widths.mantissa_bits == 23:
            facts["sums"] = self._tree_check(observed, len(directed.a))
        register = "not resolved"
        if left:
            register = " or ".join(dict.fromkeys(x.register_format.name for x in left))
        elif widths is not None:
            at_least = widths.mantissa_bits == widths.fraction_bits
            register = f"e{widths.exponent_bits}m{widths.mantissa_bits}" + " or wider" * at_least
        return Probe(
            formats=(box.formats[0].name, box.formats[1].name),
            k=box.k,
            order=self.order,
            fraction_bits=None if widths is None else widths.fraction_bits,
            kept_bits=None if widths is None else widths.mantissa_bits,
            register=register,
            facts=facts,
            inferred=tuple(left),
            parameters=shared(left),
            dots=len(observed),
            closest=tuple(ranked(named, observed)),
        )


def _first_step(order: Order, k: int) -> tuple[int, ...]:
    """The products of the first step, or the first few that are added to each other in turn."""
    length = order.length or k
    if order.interleave > 1:
        return tuple(x for x in range(k) if x // 2 % order.interleave == 0)[:length]
    if order.kind == "tree" and order.tree is not None:
        return leaves(order.tree)
    return tuple(range(max(2, length)))


def _leading(got: np.ndarray, wanted: Sequence[float]) -> int | None:
    """How many results are as wanted before the first that is not; None where all are."""
    wrong = np.flatnonzero(got != np.array(wanted))
    return int(wrong[0]) if len(wrong) else None
