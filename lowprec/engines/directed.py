"""Directed dot products: operands that show what an engine does where random ones do not.

A case fills one instruction, which starts from c: numbers at the edges of the alignment, ties of
the output's rounding, cancellation, overflow, specials. What a format cannot reach is left to c or
to the scales. Results are not computed here.
"""

import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lowprec.engines.drawing import Drawing, Layout, Operands
from lowprec.engines.operand_codes import codes_of


def _normal(draw: Drawing) -> Operands:
    dot = draw.blank()
    dot.c = draw.rng.choice([draw.number(draw.c), 0])
    return dot


def _zeros(draw: Drawing) -> Operands:
    dot = draw.blank(zeros=True)
    for k in range(draw.size):
        if draw.rng.random() < 0.3:
            dot.a[k] = draw.number(draw.a)
        if draw.rng.random() < 0.3:
            dot.b[k] = draw.number(draw.b)
    dot.c = draw.rng.choice([dot.c, *draw.c.zeros])
    if draw.scales and draw.scales.zeros and draw.rng.random() < 0.3:
        dot.a_scales[0] = draw.scales.zeros[0]
    return dot


def _subnormals(draw: Drawing) -> Operands:
    dot = draw.blank()
    small = draw.rng.random() < 0.5
    for k in range(draw.size):
        for codes, own in ((draw.a, dot.a), (draw.b, dot.b)):
            if codes.subnormals and draw.rng.random() < 0.7:
                own[k] = draw.rng.choice(codes.subnormals)
            elif small:
                own[k] = draw.number(codes, min(codes.by_exponent))
    dot.c = draw.rng.choice([0, *draw.rng.sample(draw.c.subnormals, 2), dot.c])
    if draw.scales and draw.scales.subnormals:
        dot.b_scales[0] = draw.rng.choice(draw.scales.subnormals)
    return dot


def _extremes(draw: Drawing) -> Operands:
    dot = draw.blank()
    for k in range(draw.size):
        if draw.rng.random() < 0.6:
            dot.a[k] = draw.rng.choice(draw.a.extremes)
        if draw.rng.random() < 0.6:
            dot.b[k] = draw.rng.choice(draw.b.extremes)
    dot.c = draw.rng.choice([0, draw.rng.choice(draw.c.extremes)])
    if draw.scales:
        dot.a_scales[0] = draw.rng.choice(draw.scales.extremes)
        dot.b_scales[0] = draw.rng.choice([draw.rng.choice(draw.scales.extremes), dot.b_scales[0]])
    return dot


def _cancel(draw: Drawing, dot: Operands, places: range) -> None:
    """Neighbouring products are each other's opposite."""
    for k in places[: len(places) // 2 * 2 : 2]:
        dot.a[k + 1], dot.b[k + 1] = draw.a.negated(dot.a[k]), dot.b[k]


def _cancellation(draw: Drawing) -> Operands:
    dot = draw.blank()
    _cancel(draw, dot, range(draw.size))
    for k in draw.rng.sample(range(draw.size), min(2, draw.size)):
        dot.b[k] = draw.rng.choice([dot.b[k], draw.number(draw.b)])
    dot.c = draw.rng.choice([0, dot.c])
    return dot


def _alignment_edges(draw: Drawing) -> Operands:
    """Terms that end F and F +- 1 bits below the largest exponent, which cancels or does not."""
    dot, gap = draw.blank(), draw.fraction_bits + draw.rng.choice([-1, 0, 1])
    draw.unit_scales(dot)
    variant = draw.rng.choice(["products", "c is small", "c is large", "scales"])
    if variant == "products" and _low_products(draw, dot, gap):
        return dot
    if variant == "scales" and _low_scales(draw, dot, gap):
        return dot
    if draw.size >= 2 and draw.rng.random() < 0.5:
        _cancel(draw, dot, range(draw.size))
    top = draw.top_exponent(dot) or 0
    dot.c = draw.c_number(top + gap if variant == "c is large" else top - gap)
    return dot


def _low_products(draw: Drawing, dot: Operands, gap: int) -> bool:
    """Products so far below the first one; whether the formats reach as far."""
    if draw.engine.accumulation == "grouped":
        return False
    lowest = min(draw.a.by_exponent) + min(draw.b.by_exponent) + gap
    highest = max(draw.a.by_exponent) + max(draw.b.by_exponent)
    if lowest > highest:
        return False
    top = draw.rng.randint(lowest, highest)
    dot.a[0], dot.b[0] = draw.pair(top)
    for k in range(1, draw.size):
        low = draw.rng.random() < 0.6
        dot.a[k], dot.b[k] = draw.pair(top - gap) if low else (draw.zero(draw.a), draw.zero(draw.b))
    if draw.size > 2 and draw.rng.random() < 0.7:
        _cancel(draw, dot, range(2))
    dot.c = 0
    return True


def _low_scales(draw: Drawing, dot: Operands, gap: int) -> bool:
    """Groups so far below the first one; whether the scales reach as far."""
    codes, block = draw.scales, draw.engine.scale_block
    if codes is None or not block or draw.size <= block:
        return False
    options = [e for e in codes.by_exponent if e - gap in codes.by_exponent]
    if not options:
        return False
    top = draw.rng.choice(options)
    one = draw.number(codes, min(codes.by_exponent, key=abs), power=True)
    dot.b_scales = [one] * len(dot.b_scales)
    for place in range(-(-draw.size // block)):
        dot.a_scales[place] = draw.number(codes, top if place == 0 else top - gap)
    if draw.rng.random() < 0.7:
        _cancel(draw, dot, range(block))
    dot.c = 0
    return True


def _alignment_floor(draw: Drawing) -> Operands:
    """A sum on a step of the output, or half of one, and less by a bit that the floor decides."""
    dot, reach = draw.blank(zeros=True), _floor_reach(draw.layout)
    assert reach is not None
    large, small = reach.large, reach.small + draw.rng.choice([-1, 0, 1])
    shift = draw.rng.randint(reach.lowest_scale, reach.highest_scale)
    places = (0, 1)
    if reach.grouped:
        block = draw.engine.scale_block or 1
        _set_scales(draw, dot, 0, large)
        _set_scales(draw, dot, 1, small)
        large = small = 0
        places = (0, block)
    elif draw.scales:
        for place in range(draw.layout.scale_count):
            _set_scales(draw, dot, place, shift)
        large, small = large - shift, small - shift
    for place, exponent in zip(places, (large, small), strict=True):
        options = [e for e in draw.a.powers if exponent - e in draw.b.powers]
        left = draw.rng.choice(options)
        dot.a[place], dot.b[place] = draw.a.powers[left], draw.b.powers[exponent - left]
    which = draw.rng.choice(places)
    dot.a[which] = draw.a.negated(dot.a[which])
    dot.c = draw.rng.choice(draw.c.zeros)
    return dot


class _Reach(NamedTuple):
    """Exponents of the two terms, and those of the scales that bring both within reach."""

    large: int
    small: int
    lowest_scale: int
    highest_scale: int
    grouped: bool


def _floor_reach(layout: Layout) -> _Reach | None:
    """How operands come to where the alignment's floor tells; None where none do."""
    engine, register = layout.engine, layout.engine.register_format
    if engine.min_exponent is None or engine.fraction_bits is None or layout.instruction < 2:
        return None
    large = register.min_exponent - register.mantissa_bits
    large -= engine.output_rounding.startswith("nearest")
    small = engine.min_exponent - engine.fraction_bits
    powers = [codes_of(fmt).powers for fmt in (layout.a, layout.b)]
    low, high = (sum(end(x) for x in powers) for end in (min, max))
    scales = codes_of(layout.scale).powers if layout.scale else {0: 0}
    grouped = engine.accumulation == "grouped"
    if grouped:
        block = engine.scale_block
        wide = block and layout.instruction > block and low <= 0 <= high
        reached = 2 * min(scales) < small and large < 2 * max(scales)
        return _Reach(large, small, 0, 0, True) if wide and reached else None
    lowest = max(large - high, 2 * min(scales))
    highest = min(small - 1 - low, 2 * max(scales))
    return _Reach(large, small, lowest, highest, False) if lowest <= highest else None


def _set_scales(draw: Drawing, dot: Operands, place: int, exponent: int) -> None:
    """Both scales of a block: powers of two whose exponents add up."""
    assert draw.scales is not None
    options = [e for e in draw.scales.powers if exponent - e in draw.scales.powers]
    left = draw.rng.choice(options)
    dot.a_scales[place] = draw.scales.powers[left]
    dot.b_scales[place] = draw.scales.powers[exponent - left]


def _ties(draw: Drawing) -> Operands:
    """c and half a unit of its last place, or nearly."""
    dot = draw.blank(zeros=True)
    draw.unit_scales(dot)
    a, b = draw.rng.choice(draw.a.ordinary), draw.rng.choice(draw.b.ordinary)
    dot.a[0] = draw.number(draw.a, a, power=True)
    dot.b[0] = draw.number(draw.b, b, power=True)
    values = (draw.a.value(dot.a[0]), draw.b.value(dot.b[0]))
    scale = draw.scale_exponent(dot, 0)
    register = draw.engine.register_format
    exponent = sum(x.binade for x in values) + (scale or 0) + register.mantissa_bits + 1
    dot.c = draw.c_number(exponent)
    # A register with fewer bits than the output has none of c's last ones.
    dot.c &= -1 << draw.engine.output.mantissa_bits - register.mantissa_bits
    if draw.size > 1 and draw.rng.random() < 0.7:
        # The last bit that is aligned breaks the tie; a smaller one is cut off.
        last = exponent - draw.fraction_bits + draw.rng.choice([-1, 0, 1]) - (scale or 0)
        low, high = (sum(end(x.by_exponent) for x in (draw.a, draw.b)) for end in (min, max))
        dot.a[1], dot.b[1] = draw.pair(min(max(last, low), high))
    if draw.rng.random() < 0.5:
        dot.a[0] = draw.a.negated(dot.a[0])
    return dot


def _overflow(draw: Drawing) -> Operands:
    dot = draw.blank()
    top, top_b = max(draw.a.by_exponent), max(draw.b.by_exponent)
    for k in range(draw.size):
        dot.a[k] = draw.number(draw.a, top - draw.rng.choice([0, 0, 1]) if top > 1 else top)
        dot.b[k] = draw.number(draw.b, top_b)
        if not draw.rng.random() < 0.2:
            code = draw.a.negated(dot.a[k])
            same = draw.a.value(dot.a[k]).negative == draw.b.value(dot.b[k]).negative
            dot.a[k] = dot.a[k] if same else code
    if draw.scales:
        highest = max(draw.scales.by_exponent)
        dot.a_scales[0] = draw.number(draw.scales, highest)
        dot.b_scales[0] = draw.rng.choice([dot.b_scales[0], draw.number(draw.scales, highest)])
    high = max(draw.c.by_exponent)
    dot.c = draw.rng.choice([draw.number(draw.c, high), max(draw.c.by_exponent[high]), 0])
    return dot


def _specials(draw: Drawing) -> Operands:
    """Inf and NaN, one or several, beside zeros and numbers."""
    dot = draw.blank()
    for _ in range(draw.rng.choice([1, 1, 2, 3])):
        places: list[tuple[list[int], int, list[int]]] = []
        k = draw.rng.randrange(draw.size)
        for codes, own, others, other in (
            (draw.a, dot.a, draw.b, dot.b),
            (draw.b, dot.b, draw.a, dot.a),
        ):
            found = [*draw.rng.sample(codes.infinities, len(codes.infinities)), *codes.nans[:2]]
            if found:
                places += [(own, k, found[:1]), (own, k, found)]
                if draw.rng.random() < 0.3:
                    other[k] = draw.zero(others)
        if draw.scales and draw.scales.nans:
            places.append((draw.rng.choice([dot.a_scales, dot.b_scales]), 0, draw.scales.nans))
        if places and draw.rng.random() < 0.8:
            where, at, found = draw.rng.choice(places)
            where[at] = draw.rng.choice(found)
        else:
            dot.c = draw.rng.choice([*draw.c.infinities, draw.c.nans[0]])
    return dot


def _sign_of_zero(draw: Drawing) -> Operands:
    """Sums that are zero, or round to it."""
    tiny = draw.rng.random() < 0.4
    dot = draw.blank(zeros=not tiny)
    draw.unit_scales(dot)
    if tiny:
        for codes, own in ((draw.a, dot.a), (draw.b, dot.b)):
            small = codes.subnormals or codes.by_exponent[min(codes.by_exponent)]
            own[: draw.size] = [draw.rng.choice(small) for _ in range(draw.size)]
        sign = draw.rng.random() < 0.6
        for k in range(draw.size):
            if sign and draw.a.value(dot.a[k]).negative == draw.b.value(dot.b[k]).negative:
                dot.a[k] = draw.a.negated(dot.a[k])
    elif draw.size > 1 and draw.rng.random() < 0.5:
        dot.a[0], dot.b[0] = draw.number(draw.a), draw.number(draw.b)
        _cancel(draw, dot, range(2))
    dot.c = draw.rng.choice(draw.c.zeros)
    return dot


CASES: Mapping[str, Callable[[Drawing], Operands]] = {
    "normal": _normal,
    "zeros": _zeros,
    "subnormals": _subnormals,
    "extremes": _extremes,
    "cancellation": _cancellation,
    "alignment edges": _alignment_edges,
    "floor of the alignment": _alignment_floor,
    "ties of the output": _ties,
    "overflow": _overflow,
    "infinities and NaNs": _specials,
    "sign of zero": _sign_of_zero,
}
"""The kinds of directed dot products by name."""


def cases_of(layout: Layout) -> tuple[str, ...]:
    """The cases that a layout has; the alignment's floor is often out of its operands' reach."""
    reaches = _floor_reach(layout) is not None
    return tuple(x for x in CASES if CASES[x] is not _alignment_floor or reaches)


def draw_operands(layout: Layout, case: str, rng: random.Random) -> Operands:
    """One dot product of a case; of those beyond an instruction half end in zeros."""
    draw = Drawing(layout, rng)
    dot = CASES[case](draw)
    if rng.random() < 0.5:
        for k in range(draw.size, layout.k):
            dot.a[k], dot.b[k] = draw.zero(draw.a), draw.zero(draw.b)
    return dot
