"""Dots that tell accumulators apart: directed ones about roundings, and random ones."""

import numpy as np

from lowprec.numerics.format import Format
from lowprec.study.black_box import BlackBox, Dots, Term, exponents, power, reach, terms
from lowprec.study.exact_codes import exact_codes

_FRACTIONS = (0.25, 0.5, 0.75, 1.25, 1.5, 1.75, 2.5)


def directed_dots(
    box: BlackBox, step: tuple[int, ...], kept: int | None, width: int, ceiling: int
) -> Dots:
    """Sums that end a few quarters past a bit that is kept, both signs of each.

    Args:
      step: the products of one step, or the first few of a chain.
      kept: how many bits below the largest product take part; None where nothing is aligned.
      width: mantissa bits of the register.
      ceiling: the exponent of the largest product that a sum may have a few of.
    """
    low, top = exponents(box.formats, subnormals=True)
    # The middle of the range, unless the low ends of the terms would fall out of it.
    middle = min(top, ceiling, max(0, low + 4 + max(width, kept or 0)))
    rows: list[dict[int, Term]] = []

    def add(parts: list[tuple[int, int, float]]) -> None:
        """(sign, exponent, significand) at the first places of a step, and their negatives."""
        if len(parts) > len(step) or any(not low <= x[1] <= top for x in parts):
            return
        for sign in (1, -1):
            places = zip(step, parts, strict=False)
            rows.append({k: power(box, e, sign * s, x) for k, (s, e, x) in places})

    for fraction in _FRACTIONS:
        whole = int(np.floor(np.log2(fraction)))
        small = fraction / 2.0**whole
        if kept is not None:
            below = middle - kept + whole
            add([(1, middle, 1.0), (-1, middle, 1.0), (1, below, small)])
        add([(1, middle, 1.0), (1, middle - width + whole, small)])
        # Sums of equal products carry, and leave room for bits below the register's last one.
        carried = [(1, middle, 1.0)] * 4
        add([*carried, (1, middle + 2 - width + whole, small)])
        odd = (1, middle + 2 - width, 1.0)
        add([*carried, odd, (1, middle + 2 - width + whole, small)])
    return _held(box, terms(box, rows))


def edge_dots(box: BlackBox) -> Dots:
    """Subnormal operands and results, sums that round to zero, and sums of zeros alone."""
    # Without c, whether a sum starts from +0 or from its first product shows in this sign alone.
    rows: list[dict[int, Term]] = [{k: (-1.0, 0.0) for k in range(box.k)}] * box.takes_c
    starts = [-0.0] * box.takes_c
    for side, fmt in enumerate(box.formats):
        large = 2.0 ** min(reach(box.formats[1 - side], False)[1], 30)
        small = 2.0 ** (fmt.min_exponent - 1)
        if fmt.mantissa_bits:
            pair = (small, large), (large, small)
            rows += [{0: pair[side]}, {0: pair[side], 1: (-1.0, 1.0)}]
    lowest = -14 if box.half_results else -126
    step = 10 if box.half_results else 23
    for exponent in (lowest - 1, lowest - 3, lowest - step - 3):
        low, high = (sum(reach(fmt, False)[end] for fmt in box.formats) for end in (0, 1))
        if low <= exponent <= high:
            small_pair = power(box, exponent)
            minus = (-small_pair[0], small_pair[1])
            rows += [{0: small_pair}, {0: minus}, {0: small_pair, box.k - 1: small_pair}]
    starts += [0.0] * (len(rows) - len(starts))
    return _held(box, terms(box, rows, starts if box.takes_c else ()))


def random_dots(box: BlackBox, count: int, *, seed: int = 0) -> Dots:
    """Dots over several spreads of exponents, a third of them nearly cancelling, with c."""
    rng = np.random.default_rng(seed)
    spreads = np.array([1, 3, 6, 14])[np.arange(count) % 4]
    a, b = (_values(rng, fmt, box.k, spreads) for fmt in box.formats)
    for index in range(0, count, 3):
        # A product and its negative, many k apart.
        order = rng.permutation(box.k)[: box.k // 2 * 2].reshape(2, -1)
        a[index, order[1]], b[index, order[1]] = -a[index, order[0]], b[index, order[0]]
        a[index, order[0, 0]] = 0
    size = np.abs(a * b).max(1)
    c = rng.normal(size=count) * size * 2.0 ** rng.integers(-8, 3, count)
    c = np.clip(np.where(np.arange(count) % 5 == 4, 0, c), -(2.0**15), 2.0**15)
    # Half of them have 11 significant bits, the others 24.
    significand, exponent = np.frexp(c)
    bits = np.where(np.arange(count) % 2 == 0, 11, 24)
    c = np.ldexp(np.rint(np.ldexp(significand, bits)), exponent - bits)
    return Dots(a, b, c.astype(np.float32).astype(np.float64) if box.takes_c else np.zeros(count))


def _values(rng: np.random.Generator, fmt: Format, k: int, spreads: np.ndarray) -> np.ndarray:
    """Values of a format about 1, every significand alike, exponents over the given spreads."""
    shape = (len(spreads), k)
    top = np.minimum(spreads // 2, int(np.floor(np.log2(fmt.max))) - 1)[:, None]
    exponent = top - (rng.random(shape) * spreads[:, None]).astype(np.int64)
    exponent = np.maximum(exponent, fmt.min_exponent)
    significand = rng.integers(0, 1 << fmt.mantissa_bits, shape)
    # Half of the dots have short significands: their sums end exactly between two numbers.
    short = (np.arange(len(spreads)) % 2 == 1)[:, None]
    cut = max(0, fmt.mantissa_bits - 2)
    significand = np.where(short, significand >> cut << cut, significand)
    sign = rng.choice([-1.0, 1.0], shape)
    return sign * np.ldexp(1 + significand / 2.0**fmt.mantissa_bits, exponent)


def _held(box: BlackBox, dots: Dots) -> Dots:
    """Those dots whose operands the formats hold."""
    pairs = zip((dots.a, dots.b), box.formats, strict=True)
    held = np.all([exact_codes(x, fmt)[1].all(1) for x, fmt in pairs], axis=0)
    return Dots(*(x[held] for x in dots))


def joined(*parts: Dots) -> Dots:
    """All dots of several sets, in turn."""
    return Dots(*(np.concatenate(x) for x in zip(*parts, strict=True)))
