"""A cost proxy of a fused step: bits of shifters, adders and registers as functions of L and F.

It counts cells, each bit of a 2-to-1 multiplexer, full adder or flip-flop as one, and is no area,
delay or power: wiring, the multipliers, exponents and sign logic are left out, being the same at
every F, and so is what moving a sum to be promoted costs. Where the stages of a shifter step up
depends on W, and so on conventions: one bit more or less a term moves the step by one F.

With W = F + 3 bits an aligned term (two integer bits of a product in [0, 4), and a sign) and
G = ceil(log2(L + 1)) bits of growth:

- shifters: L + 1 aligners of W bits in ceil(log2(W)) stages, what is shifted farther being zero,
  and one normalizer of W + G bits in ceil(log2(W + G)) stages;
- adder tree: a binary tree of L + 1 terms, whose adders on level i have W + i bits;
- register: 1 + 8 + M bits of one running sum;
- promotion: a float32 register of 32 bits, and a float32 adder (two shifters of 27 bits in 5
  stages, 27 full adders) that is busy once in N_C / L steps, and counted as that part of one.

The cost is the sum over L: bits a product of one step.
"""

import math
from typing import NamedTuple

_FLOAT32_REGISTER = 32
_FLOAT32_ADDER = 2 * 27 * 5 + 27


class Cost(NamedTuple):
    """Bits of one fused step.

    Attributes:
      shifter, adder, register: of the step itself.
      promotion: of promotion, 0 without it.
      length: L.
    """

    shifter: int
    adder: int
    register: int
    promotion: float
    length: int

    @property
    def per_product(self) -> float:
        """Bits a product."""
        return (self.shifter + self.adder + self.register + self.promotion) / self.length


def cost(length: int, fraction_bits: int, register_bits: int, promote_every: int) -> Cost:
    """The proxy of a step of `length` products; `promote_every` is 0 without promotion.

    Example:
      >>> cost(32, 13, 13, 0)
      Cost(shifter=2222, adder=575, register=22, promotion=0.0, length=32)
    """
    width, growth = fraction_bits + 3, math.ceil(math.log2(length + 1))
    aligners = (length + 1) * width * math.ceil(math.log2(width))
    normalizer = (width + growth) * math.ceil(math.log2(width + growth))
    adder, terms, level = 0, length + 1, 0
    while terms > 1:
        level += 1
        adder += terms // 2 * (width + level)
        terms -= terms // 2
    promotion = 0.0
    if promote_every:
        promotion = _FLOAT32_REGISTER + _FLOAT32_ADDER * length / promote_every
    return Cost(aligners + normalizer, adder, 1 + 8 + register_bits, promotion, length)


def pareto(points: list[tuple[float, float]]) -> list[bool]:
    """Whether no other point is at most as large in both coordinates and smaller in one.

    Example:
      >>> pareto([(1.0, 3.0), (2.0, 2.0), (3.0, 2.0)])
      [True, True, False]
    """
    return [not any(o[0] <= p[0] and o[1] <= p[1] and o != p for o in points) for p in points]
