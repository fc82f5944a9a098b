"""Draws the operands of one dot product: numbers with wanted exponents, scales, and c."""

import dataclasses
import random

from lowprec.engines.engine import Engine
from lowprec.engines.operand_codes import Codes, codes_of
from lowprec.engines.oracle_number import field_exponent, min_exponent
from lowprec.numerics.format import Format


@dataclasses.dataclass
class Operands:
    """One dot product without its result: codes, of c in the engine's output format."""

    a: list[int]
    b: list[int]
    c: int
    a_scales: list[int]
    b_scales: list[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What a dot product's columns are.

    Attributes:
      engine: the engine.
      a, b: formats of the operands as their codes are written: float32 where the engine cuts them.
      scale: the scales' format, None where there are none.
      k: the length of a dot product.
    """

    engine: Engine
    a: Format
    b: Format
    scale: Format | None
    k: int

    @property
    def instruction(self) -> int:
        """How many k the directed part of a case has."""
        return min(self.k, self.engine.instruction_length or self.k)

    @property
    def scale_count(self) -> int:
        """How many scales each operand has."""
        block = self.engine.scale_block
        return -(-self.k // block) if block else 0


class Drawing:
    """Draws the operands of one layout."""

    def __init__(self, layout: Layout, rng: random.Random) -> None:
        self.layout, self.rng = layout, rng
        self.engine, self.size = layout.engine, layout.instruction
        cut = self.engine.inputs[0].mantissa_bits if self.engine.truncate_operands else None
        # One operand in four of an engine that cuts operands has bits to cut.
        cut = None if cut is None or rng.random() < 0.25 else cut
        self.a, self.b = codes_of(layout.a, cut), codes_of(layout.b, cut)
        self.c = codes_of(self.engine.output)
        self.scales = codes_of(layout.scale) if layout.scale else None
        register = self.engine.register_format
        self.fraction_bits = self.engine.fraction_bits or register.mantissa_bits + 1

    def number(self, codes: Codes, exponent: int | None = None, *, power: bool = False) -> int:
        """A code with an exponent, by default an ordinary one; `power`: of a positive 2^e."""
        if exponent is None:
            exponent = self.rng.choice(codes.ordinary)
        group = codes.by_exponent[exponent]
        if power:
            return min(x for x in group if not codes.value(x).negative)
        code = self.rng.choice(group)
        if codes.free_bits and self.rng.random() < 0.7:
            drop = codes.format.mantissa_bits - codes.free_bits
            code &= ~((1 << codes.format.mantissa_bits) - 1)
            code |= self.rng.getrandbits(codes.free_bits) << drop
        return code

    def zero(self, codes: Codes) -> int:
        """A zero of either sign, or a small number of a format without one."""
        return self.rng.choice(codes.zeros or codes.by_exponent[min(codes.by_exponent)])

    def c_number(self, exponent: int) -> int:
        """A c with an exponent, or the nearest that the output has; 0 far below it."""
        low, high = min(self.c.by_exponent), max(self.c.by_exponent)
        if exponent < low:
            return self.rng.choice(self.c.subnormals if exponent > low - 12 else self.c.zeros)
        return self.number(self.c, min(exponent, high))

    def blank(self, *, zeros: bool = False) -> Operands:
        """Ordinary numbers, or zeros, in every place; c an ordinary number in the end."""
        pick = self.zero if zeros else self.number
        k, scales = self.layout.k, self.layout.scale_count
        alphas = [self.number(self.scales) for _ in range(scales)] if self.scales else []
        betas = [self.number(self.scales) for _ in range(scales)] if self.scales else []
        a, b = [pick(self.a) for _ in range(k)], [pick(self.b) for _ in range(k)]
        return Operands(a, b, self.number(self.c), alphas, betas)

    def unit_scales(self, dot: Operands) -> None:
        """Scales of 1, or of the format's nearest power of two."""
        if self.scales:
            exponent = min(self.scales.by_exponent, key=abs)
            one = self.number(self.scales, exponent, power=True)
            dot.a_scales = [one] * len(dot.a_scales)
            dot.b_scales = [one] * len(dot.b_scales)

    def scale_exponent(self, dot: Operands, k: int) -> int | None:
        """The sum of both scales' exponents at k; None where a scale is zero or no number."""
        if not self.scales or self.layout.scale is None or self.engine.scale_block is None:
            return 0
        total, lowest = 0, min_exponent(self.layout.scale)
        for codes in (dot.a_scales, dot.b_scales):
            value = self.scales.value(codes[k // self.engine.scale_block])
            if value.kind != "finite" or value.is_zero:
                return None
            total += field_exponent(value, lowest)
        return total

    def top_exponent(self, dot: Operands) -> int | None:
        """The largest exponent that a product of the first instruction is aligned by."""
        found = []
        for k in range(self.size):
            x, y = self.a.value(dot.a[k]), self.b.value(dot.b[k])
            own = self.scale_exponent(dot, k)
            if own is None or x.kind != "finite" or y.kind != "finite" or x.is_zero or y.is_zero:
                continue
            if self.engine.accumulation != "grouped":
                own += field_exponent(x, self._lowest(self.layout.a))
                own += field_exponent(y, self._lowest(self.layout.b))
            found.append(own)
        return max(found, default=None)

    def _lowest(self, fmt: Format) -> int:
        return min_exponent(self.engine.through or fmt)

    def pair(self, exponent: int) -> tuple[int, int]:
        """Codes of two normal numbers with that sum of exponents, which must be within reach."""
        options = [
            (e, exponent - e) for e in self.a.by_exponent if exponent - e in self.b.by_exponent
        ]
        left, right = self.rng.choice(options)
        return self.number(self.a, left), self.number(self.b, right)
