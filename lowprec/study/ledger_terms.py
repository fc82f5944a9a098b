"""A ledger as a value: terms that sum to the error of every output, and what they amount to."""

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowprec.numerics import html
from lowprec.study.ledger_exact import Exact, ratio, to_float

TERMS = {
    "a_gain": "a shrunk or stretched as a whole: (gain of quantized a on a - 1) times the product",
    "a_clipping": "elements of a beyond the largest value, less what the gain took of them",
    "a_dead_zone": "elements of a other than zero that became zero, less what the gain took",
    "a_grid": "all else that quantizing a does",
    "b_gain": "the same of b",
    "b_clipping": "the same of b",
    "b_dead_zone": "the same of b",
    "b_grid": "the same of b",
    "cross": "what quantizing both does beyond quantizing one and the other",
    "transform": "the float32 rounding of a transform that turns both operands alike",
    "scaling": "every rounding of a product with a scale: element, other scale, or sum",
    "alignment": "bits of products and of the accumulator that an engine cuts off to align them",
    "accumulator_rounding": "the rounding of sums to the engine's accumulator",
    "promotion": "the float32 additions above the engine: of promoted sums, or of parts of K",
    "output_rounding": "the rounding to the output's type",
}
"""Every term in its order, and what it is."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Term:
    """One part of the error, for every output that was looked at.

    Attributes:
      name: of `TERMS`, or `total`.
      integers: Python integers (rows, columns) in units of 2^`Ledger.unit`: the exact numbers.
      values: the same as float64, correctly rounded.
      energy: the sum of squares.
      share: `energy` over that of the total error; shares do not add up to 1, terms correlate.
      part: <term, total> / <total, total>; parts add up to 1, and may be negative.
      gain: <term, y> / <y, y> with y the exact product: the least-squares coefficient.
      decibels: 10 log10 of `energy` over the exact product's; -inf of a term that is zero.
    """

    name: str
    integers: NDArray[np.object_]
    values: NDArray[np.float64]
    energy: float
    share: float
    part: float
    gain: float
    decibels: float


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Ledger:
    """The error of a product under a recipe, split into terms that sum to it to the last bit.

    Attributes:
      recipe, role, engine: names.
      shape: M, K and N of the whole product.
      rows, columns: which outputs were looked at.
      terms: in the order of `TERMS`, all of them; a term that does not occur is zero.
      total: the error, output - exact.
      exact: the exact product of the operands as given, correctly rounded to float64.
      exact_integers: the same as Python integers in units of 2^`unit`.
      output: what `lowprec.gemm` gives there, bit for bit, in its type.
      unit: the power of two that all integers count.
    """

    recipe: str
    role: str
    engine: str
    shape: tuple[int, int, int]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    terms: tuple[Term, ...]
    total: Term
    exact: NDArray[np.float64]
    exact_integers: NDArray[np.object_]
    output: NDArray[Any]
    unit: int

    def __getitem__(self, name: str) -> Term:
        for term in (*self.terms, self.total):
            if term.name == name:
                return term
        raise KeyError(f"{name!r}; terms are {', '.join((*TERMS, 'total'))}")

    def check(self) -> int:
        """Adds the terms up again, and the exact product to them, which must give the output.

        Returns:
          How many outputs were compared, each as an exact number.

        Raises:
          ArithmeticError: a sum differs; it names the first such output.
        """
        total = sum((term.integers for term in self.terms), self.exact_integers)
        output = Exact.of(self.output)
        unit = min(self.unit, output.unit)
        left, right = Exact(total, self.unit).at_unit(unit), output.at_unit(unit)
        stated = Exact(self.exact_integers + self.total.integers, self.unit).at_unit(unit)
        wrong = np.argwhere((left.integers != right.integers) | (left.integers != stated.integers))
        if len(wrong):
            raise ArithmeticError(
                f"the terms of {self.recipe} do not sum to the error of output "
                f"{tuple(int(i) for i in wrong[0])}"
            )
        return total.size

    def __str__(self) -> str:
        lines = [f"{'term':<22}{'part':>9}{'energy':>9}{'gain':>12}{'dB':>8}"]
        for x in (*self.terms, self.total):
            if x.energy or x.name == "total":
                lines.append(
                    f"{x.name:<22}{x.part:>9.2%}{x.share:>9.2%}{x.gain:>12.2e}{x.decibels:>8.1f}"
                )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        m, k, n = self.shape
        rows = [x for x in (*self.terms, self.total) if x.energy or x.name == "total"]
        return html.grid(
            f"recipe:{self.recipe} in {self.role} on engine:{self.engine}",
            ["term", "part", "energy", "gain", "dB"],
            [_headed(x) for x in rows],
            f"{self.output.size:,} outputs of {m} x {k} times {k} x {n}; parts add up to 100 %",
        )


def _headed(x: Term) -> list[str]:
    return [x.name, f"{x.part:.2%}", f"{x.share:.2%}", f"{x.gain:.2e}", f"{x.decibels:.1f}"]


def made(terms: dict[str, Exact], exact: Exact, output: NDArray[Any], **about: Any) -> Ledger:
    """A ledger of exact terms by name, with their sums over the outputs; all in one unit."""
    terms = {name: terms[name] for name in TERMS}
    total = Exact.of(output) - exact
    unit = min(x.unit for x in (*terms.values(), exact, total))
    rows = [_term(name, x, total, exact, unit) for name, x in (terms | {"total": total}).items()]
    return Ledger(
        terms=tuple(rows[:-1]),
        total=rows[-1],
        exact=exact.floats(),
        exact_integers=exact.at_unit(unit).integers,
        output=output,
        unit=unit,
        **about,
    )


def _term(name: str, x: Exact, total: Exact, exact: Exact, unit: int) -> Term:
    energy, signal = x.dot(x), exact.dot(exact)
    loud = ratio(energy, signal)
    return Term(
        name=name,
        integers=x.at_unit(unit).integers,
        values=x.floats(),
        energy=to_float(*energy),
        share=ratio(energy, total.dot(total)),
        part=ratio(x.dot(total), total.dot(total)),
        gain=ratio(x.dot(exact), signal),
        decibels=10 * math.log10(loud) if loud else -math.inf,
    )
